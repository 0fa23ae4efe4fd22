"""PyTorch's files put together by hand, byte by byte, so that they can hold what PyTorch would never write."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from zlib import crc32

__all__ = [
    "State",
    "binget",
    "clean_state",
    "legacy_file",
    "long_binput",
    "pair",
    "pickles_of",
    "storage",
    "tensor",
    "text",
    "tuple_of",
    "zip_file",
]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


# ---- pickle: pieces that each leave one value on the stack -----------------------------------------------------------


def text(value: str | bytes) -> bytes:
    """A string (BINUNICODE)."""
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """An int of any size."""
    return pickle.dumps(value, 2)[2:-1]


def tuple_of(*items: bytes) -> bytes:
    """A tuple of values."""
    return b"(" + b"".join(items) + b"t"


def ints(values: Iterable[int]) -> bytes:
    """A tuple of ints."""
    return tuple_of(*map(integer, values))


def pair(key: str | bytes, value: bytes) -> bytes:
    """A key and a value, for between MARK and SETITEMS."""
    return (text(key) if isinstance(key, str) else key) + value


def binget(index: int) -> bytes:
    """The value in the memo."""
    return b"j" + struct.pack("<I", index)


def long_binput(index: int) -> bytes:
    """Put the top of the stack into the memo, and leave it there."""
    return b"r" + struct.pack("<I", index)


def storage(
    key: str | bytes, count: int | bytes, *, kind: bytes = b"ctorch\nFloatStorage\n", location: bytes | None = None
) -> bytes:
    """A storage by PyTorch's persistent id."""
    named = text(key) if isinstance(key, str) else key
    counted = integer(count) if isinstance(count, int) else count
    return tuple_of(text("storage"), kind, named, text("cpu") if location is None else location, counted) + b"Q"


def tensor(
    stored: bytes,
    shape: Iterable[int] | bytes,
    stride: Iterable[int] | bytes | None = None,
    *,
    offset: int | bytes = 0,
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
    rebuild: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n",
) -> bytes:
    """A tensor over a storage."""
    sizes = shape if isinstance(shape, bytes) else ints(shape := tuple(shape))
    if stride is None:
        assert not isinstance(shape, bytes)
        stride = contiguous(tuple(shape))
    strides = stride if isinstance(stride, bytes) else ints(stride)
    start = integer(offset) if isinstance(offset, int) else offset
    return rebuild + tuple_of(stored, start, sizes, strides, b"\x89", hooks) + b"R"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor that lies in row-major order."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


# ---- a whole checkpoint ----------------------------------------------------------------------------------------------


@dataclass
class State:
    """A checkpoint as pieces of pickle: change some, then ask for the file."""

    args: bytes
    model: dict[str | bytes, bytes]
    storages: dict[str, bytes]
    more: list[bytes] = field(default_factory=list)
    """Pairs for the top level."""
    built: bytes = b""
    """What follows the dictionary of weights, such as a BUILD."""
    before: bytes = b""
    """What comes before the whole dictionary."""
    after: bytes = b""
    """What comes after it."""

    def pickle(self, *, protocol: int = 2) -> bytes:
        """The pickle of the state."""
        weights = b"".join(pair(name, value) for name, value in self.model.items())
        model = b"ccollections\nOrderedDict\n)R(" + weights + b"u" + self.built
        entries = pair("args", self.args) + pair("model", model) + b"".join(self.more)
        return b"\x80" + bytes([protocol]) + self.before + b"}(" + entries + b"u" + self.after + b"."

    def file(self, container: str) -> bytes:
        """The file, zip or legacy."""
        return (
            zip_file(self.pickle(), self.storages) if container == "zip" else legacy_file(self.pickle(), self.storages)
        )


def clean_state(*, options: Mapping[str, object] | None = None) -> State:
    """A checkpoint of the factory's weights and options."""
    from factory import OPTIONS

    storages = {key: data for key, data, _shape in _weights().values()}
    model: dict[str | bytes, bytes] = {
        name: tensor(storage(key, len(data) // 4), shape) for name, (key, data, shape) in _weights().items()
    }
    fields = pickle.dumps(dict(OPTIONS | (options or {})), 2)[2:-1]
    return State(args=b"cargparse\nNamespace\n)\x81" + fields + b"b", model=model, storages=dict(storages))


@cache
def _weights() -> dict[str, tuple[str, bytes, tuple[int, ...]]]:
    from factory import weights

    keys: dict[int, str] = {}
    made: dict[str, tuple[str, bytes, tuple[int, ...]]] = {}
    for name, values in weights().items():
        key = keys.setdefault(values.data_ptr(), str(len(keys)))
        made[name] = (key, values.numpy().tobytes(), tuple(values.shape))
    return made


def zip_file(data: bytes, storages: Mapping[str, bytes], *, root: str = "model/") -> bytes:
    """The container of PyTorch since 1.6, unaligned."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo(root + "data.pkl"), data)
        for key, content in storages.items():
            archive.writestr(zipfile.ZipInfo(f"{root}data/{key}"), content)
        archive.writestr(zipfile.ZipInfo(root + "version"), b"3\n")
    return made.getvalue()


def legacy_file(
    data: bytes, storages: Mapping[str, bytes], *, keys: bytes | None = None, item_size: int = 4, system: bytes = b"}"
) -> bytes:
    """The container of PyTorch before 1.6."""
    head = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(LEGACY_PROTOCOL, 2) + b"\x80\x02" + system + b"."
    ordered = sorted(storages)
    told = pickle.dumps(ordered, 2) if keys is None else keys
    body = b"".join(struct.pack("<Q", len(storages[key]) // item_size) + storages[key] for key in ordered)
    return head + data + told + body


def pickles_of(data: bytes, count: int = 5) -> list[slice]:
    """Where the first pickles of a legacy file lie."""
    stream, found = io.BytesIO(data), []
    for _ in range(count):
        start = stream.tell()
        for _opcode, _argument, _position in pickletools.genops(stream):
            pass
        found.append(slice(start, stream.tell()))
    return found


# ---- zip, with every field as one likes ------------------------------------------------------------------------------


@dataclass
class Record:
    """A member of a zip; what is None is as it should be."""

    name: bytes
    data: bytes
    crc: int | None = None
    size: int | None = None
    offset: int | None = None
    method: int = 0
    extra: bytes = b""
    local_name: bytes | None = None
    local_extra: bytes = b""
    signature: bytes = b"PK\x03\x04"


def raw_zip(
    records: Iterable[Record], *, comment: bytes = b"", entries: int | None = None, prefix: bytes = b""
) -> bytes:
    """A zip whose directory says what the records say."""
    made, directory, counted = bytearray(prefix), bytearray(), 0
    for record in records:
        crc = crc32(record.data) if record.crc is None else record.crc
        size = len(record.data) if record.size is None else record.size
        offset = len(made) if record.offset is None else record.offset
        local_name = record.name if record.local_name is None else record.local_name
        sizes = (crc & 0xFFFFFFFF, min(size, 0xFFFFFFFF), min(size, 0xFFFFFFFF))
        made += record.signature + struct.pack("<5H3L2H", 20, 0, record.method, 0, 0x21, *sizes, len(local_name),
                                               len(record.local_extra))  # fmt: skip
        made += local_name + record.local_extra + record.data
        directory += struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, record.method, 0, 0x21, *sizes,
                                 len(record.name), len(record.extra), 0, 0, 0, 0, min(offset, 0xFFFFFFFF))  # fmt: skip
        directory += record.name + record.extra
        counted += 1
    start = len(made)
    count = counted if entries is None else entries
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), start, len(comment)
    )
    return bytes(made + directory + end + comment)


def records_of(state: State, *, root: str = "model/") -> list[Record]:
    """The members of a checkpoint."""
    named = [Record(f"{root}data/{key}".encode(), content) for key, content in state.storages.items()]
    return [Record(f"{root}data.pkl".encode(), state.pickle()), *named]


if sys.byteorder != "little":
    raise ImportError("the files are put together for little-endian machines")
