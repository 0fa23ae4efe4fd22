"""A PyTorch checkpoint as torch.save writes it, without torch: a zip of a pickle and of storages, block by block."""

from __future__ import annotations

import struct
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from os import SEEK_END
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from hf_xlmr.conversion.checkpoint.weights import Weight
from hf_xlmr.errors import IntegrityError
from hf_xlmr.progress import SILENT, Progress, ProgressTask

__all__ = ["write_checkpoint"]

ROOT: Final = "model/"  # the folder inside the archive; PyTorch takes whatever the first name begins with
FORMAT_VERSION: Final = b"3\n"  # caffe2/serialize/versions.h: what PyTorch 1.6 to 2.x write and read
LARGEST_INTEGER: Final = 255  # bytes: the opcodes that PyTorch's own reader knows
STORAGE_TYPES: Final = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
}


def write_checkpoint(path: Path, value: object, *, progress: Progress = SILENT) -> None:
    """Write `value` as torch.save does; a Weight in it becomes a tensor, and one that comes twice shares its storage.

    `value` is made of None, bool, int, float, str, tuple, list, dict, OrderedDict, argparse.Namespace and Weight. No
    more than a block of a weight is held, and the same value gives the same bytes. Raises IntegrityError, OSError.
    """
    pickle = _Pickle()
    pickle.add(value)
    total = sum(weight.nbytes for weight in pickle.storages)
    with progress.task("writing weights", total=total) as task, path.open("wb") as file:
        archive = _Archive(file)
        archive.add("data.pkl", pickle.data())
        archive.add("byteorder", b"little")
        for number, weight in enumerate(pickle.storages):
            archive.stream(f"data/{number}", weight, task)
        archive.add("version", FORMAT_VERSION)
        archive.finish()


# ---- the pickle ------------------------------------------------------------------------------------------------------


class _Pickle:
    """A pickle of protocol 2, as torch.save writes it, under way; nothing is memoized, which readers need not know."""

    def __init__(self) -> None:
        self.storages: list[Weight] = []
        self._out = bytearray(b"\x80\x02")  # PROTO 2
        self._keys: dict[int, str] = {}

    def data(self) -> bytes:
        """The whole stream."""
        return bytes(self._out) + b"."  # STOP

    def add(self, value: object) -> None:
        """Append the opcodes that make `value`. Raises TypeError for what a checkpoint does not hold."""
        if isinstance(value, Weight):
            self._tensor(value)
        elif type(value) in _WRITERS:
            _WRITERS[type(value)](self, value)
        else:
            raise TypeError(f"a checkpoint does not hold a {type(value).__name__}")

    def constant(self, value: bool | None) -> None:
        self._out += {None: b"N", True: b"\x88", False: b"\x89"}[value]

    def integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self._out += b"J" + struct.pack("<i", value)  # BININT
        else:
            size = value.bit_length() // 8 + 1
            if size > LARGEST_INTEGER:
                raise IntegrityError(f"an option is a number of {size:,} bytes, and PyTorch reads {LARGEST_INTEGER}")
            self._out += b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)  # LONG1

    def real(self, value: float) -> None:
        self._out += b"G" + struct.pack(">d", value)  # BINFLOAT

    def text(self, value: str) -> None:
        encoded = value.encode("utf-8", "surrogatepass")
        self._out += b"X" + struct.pack("<I", len(encoded)) + encoded  # BINUNICODE

    def row(self, value: tuple[object, ...]) -> None:
        self._out += b"("  # MARK
        self._each(value)
        self._out += b"t"  # TUPLE

    def sequence(self, value: list[object]) -> None:
        self._out += b"]("  # EMPTY_LIST, MARK
        self._each(value)
        self._out += b"e"  # APPENDS

    def mapping(self, value: Mapping[object, object]) -> None:
        self._out += b"}"  # EMPTY_DICT
        self._entries(value)

    def ordered(self, value: Mapping[object, object]) -> None:
        self._global("collections", "OrderedDict")
        self._out += b")R"  # EMPTY_TUPLE, REDUCE
        self._entries(value)

    def namespace(self, value: Namespace) -> None:
        self._global("argparse", "Namespace")
        self._out += b")\x81"  # EMPTY_TUPLE, NEWOBJ
        self.add(dict(vars(value)))
        self._out += b"b"  # BUILD

    def _each(self, values: Iterable[object]) -> None:
        for value in values:
            self.add(value)

    def _entries(self, value: Mapping[object, object]) -> None:
        self._out += b"("  # MARK
        for pair in value.items():
            self._each(pair)
        self._out += b"u"  # SETITEMS

    def _global(self, module: str, name: str) -> None:
        self._out += f"c{module}\n{name}\n".encode()  # GLOBAL

    def _tensor(self, weight: Weight) -> None:
        """A call of torch._utils._rebuild_tensor_v2: storage, offset, shape, stride, requires_grad, backward hooks."""
        self._global("torch._utils", "_rebuild_tensor_v2")
        self._out += b"("  # MARK
        self._storage(weight)
        stride = tuple(prod(weight.shape[axis + 1 :]) for axis in range(len(weight.shape)))
        self._each((0, weight.shape, stride, False, OrderedDict()))
        self._out += b"tR"  # TUPLE, REDUCE

    def _storage(self, weight: Weight) -> None:
        """The persistent id of a storage: ("storage", type, key, location, count)."""
        if id(weight) not in self._keys:
            self._keys[id(weight)] = str(len(self.storages))
            self.storages.append(weight)
        self._out += b"("  # MARK
        self.add("storage")
        self._global("torch", STORAGE_TYPES[weight.dtype])
        self._each((self._keys[id(weight)], "cpu", weight.count))
        self._out += b"tQ"  # TUPLE, BINPERSID


_WRITERS: Final[dict[type, Callable[[_Pickle, Any], None]]] = {
    type(None): _Pickle.constant,
    bool: _Pickle.constant,
    int: _Pickle.integer,
    float: _Pickle.real,
    str: _Pickle.text,
    tuple: _Pickle.row,
    list: _Pickle.sequence,
    dict: _Pickle.mapping,
    OrderedDict: _Pickle.ordered,
    Namespace: _Pickle.namespace,
}


# ---- the zip archive, by PKWARE's APPNOTE ----------------------------------------------------------------------------

LOCAL_HEADER: Final = struct.Struct("<4s5H3L2H")  # 4.3.7
CENTRAL_HEADER: Final = struct.Struct("<4s6H3L5H2L")  # 4.3.12
ZIP64_END: Final = struct.Struct("<4sQ2H2L4Q")  # 4.3.14
ZIP64_LOCATOR: Final = struct.Struct("<4sLQL")  # 4.3.15
END: Final = struct.Struct("<4s4H2LH")  # 4.3.16
CRC_OFFSET: Final = 14  # within the local header
ZIP64_FIELD: Final = 1  # the id of the extra field for what does not fit into 32 bits
PADDING_FIELD: Final = 0x4246  # "FB": PyTorch's own extra field
ALIGNMENT: Final = 64  # as PyTorch aligns, so that storages can be mapped
LARGEST: Final = 0xFFFFFFFF  # from here on a number is in a field of 64 bits, and FULL in that of 32
FULL: Final = 0xFFFFFFFF
MOST_ENTRIES: Final = 0xFFFF
VERSION, VERSION_ZIP64 = 20, 45
DATE: Final = 0x21  # 1 January 1980, the first there is: the same input gives the same bytes


class _Entry(NamedTuple):
    name: bytes
    offset: int
    size: int
    crc32: int


class _Archive:
    """A zip archive of uncompressed members under way, in a file that can be sought."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._entries: list[_Entry] = []

    def add(self, name: str, data: bytes) -> None:
        """Append a small member. Raises OSError."""
        with self._member(name, len(data)) as write:
            write(data)

    def stream(self, name: str, weight: Weight, task: ProgressTask) -> None:
        """Append the bytes of a weight. Raises IntegrityError, InputError, OSError."""
        with self._member(name, weight.nbytes) as write:
            for block in weight.blocks():
                write(block)
                task.advance(len(block))

    @contextmanager
    def _member(self, name: str, size: int) -> Iterator[Callable[[bytes | memoryview], None]]:
        """Give what writes a member's bytes; their checksum goes into its header when all are there."""
        from isal.isal_zlib import crc32

        offset, encoded, checksum, written = self._file.tell(), (ROOT + name).encode(), 0, 0
        self._file.write(_local_header(encoded, offset, size))

        def write(block: bytes | memoryview) -> None:
            nonlocal checksum, written
            checksum, written = crc32(block, checksum), written + len(block)
            self._file.write(block)

        yield write
        if written != size:
            raise IntegrityError(f"{name} gave {written} bytes where its shape asks for {size}")
        self._file.seek(offset + CRC_OFFSET)
        self._file.write(struct.pack("<L", checksum))
        self._file.seek(0, SEEK_END)
        self._entries.append(_Entry(encoded, offset, size, checksum))

    def finish(self) -> None:
        """Append the central directory. Raises OSError."""
        start = self._file.tell()
        for entry in self._entries:
            self._file.write(_central_header(entry))
        for part in _end(len(self._entries), start, self._file.tell() - start):
            self._file.write(part)


def _local_header(name: bytes, offset: int, size: int) -> bytes:
    """The header before a member's bytes, padded so that they begin at a multiple of ALIGNMENT; its CRC is still 0."""
    large = struct.pack("<2H2Q", ZIP64_FIELD, 16, size, size) if size >= LARGEST else b""
    start = offset + LOCAL_HEADER.size + len(name) + len(large) + 4
    padding = -start % ALIGNMENT
    extra = large + struct.pack("<2H", PADDING_FIELD, padding) + b"Z" * padding
    version = VERSION_ZIP64 if large else VERSION
    sizes = (_shown(size), _shown(size), len(name), len(extra))
    return LOCAL_HEADER.pack(b"PK\x03\x04", version, 0, 0, 0, DATE, 0, *sizes) + name + extra


def _central_header(entry: _Entry) -> bytes:
    large = [entry.size, entry.size] if entry.size >= LARGEST else []
    large += [entry.offset] if entry.offset >= LARGEST else []
    extra = struct.pack(f"<2H{len(large)}Q", ZIP64_FIELD, 8 * len(large), *large) if large else b""
    version, size = VERSION_ZIP64 if large else VERSION, _shown(entry.size)
    about = (b"PK\x01\x02", version, version, 0, 0, 0, DATE, entry.crc32, size, size)
    lengths = (len(entry.name), len(extra), 0)
    return CENTRAL_HEADER.pack(*about, *lengths, 0, 0, 0, _shown(entry.offset)) + entry.name + extra


def _end(count: int, start: int, size: int) -> Iterator[bytes]:
    """The end of the archive: the place of its central directory, in 64 bits too if it must be."""
    if count >= MOST_ENTRIES or start >= LARGEST or size >= LARGEST:
        versions = (VERSION_ZIP64, VERSION_ZIP64)
        yield ZIP64_END.pack(b"PK\x06\x06", ZIP64_END.size - 12, *versions, 0, 0, count, count, size, start)
        yield ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1)
    shown = count if count < MOST_ENTRIES else 0xFFFF
    yield END.pack(b"PK\x05\x06", 0, 0, shown, shown, _shown(size), _shown(start), 0)


def _shown(number: int) -> int:
    """What is in a field of 32 bits."""
    return number if number < LARGEST else FULL
