"""Where each tensor's bytes are in a PyTorch file, be it the zip container or the legacy stream."""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass, field
from threading import Lock
from typing import Final
from zlib import crc32

from hf_xlmr.conversion.checkpoint.pickles import Inert, StorageRef, TensorRef, read_pickle
from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.errors import InputError, IntegrityError

__all__ = ["ITEM_SIZES", "Container", "StorageRecord", "open_container"]

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C  # torch/serialization.py: MAGIC_NUMBER
LEGACY_PROTOCOL: Final = 1001
LOCAL_HEADER: Final = struct.Struct("<4s5H3L2H")  # PKWARE's APPNOTE, 4.3.7
LARGEST_PICKLE: Final = 1 << 25  # that of the largest checkpoint with its optimizer has some 3 MB
LARGEST_DIRECTORY: Final = 1 << 23  # of a zip; a storage takes some 100 bytes in it

ITEM_SIZES: Final = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


@dataclass(eq=False)
class StorageRecord:
    """The bytes of one storage; `crc32` is what the container says of them, None if it says nothing."""

    key: str
    where: FileSlice
    crc32: int | None
    checked: bool = False
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)
    """Held while a thread checks a storage that several weights are read from."""

    def confirm(self, crc32: int) -> None:
        """Compare `crc32`, taken over all bytes, with the container's. Raises IntegrityError."""
        if self.crc32 is not None and crc32 != self.crc32:
            raise IntegrityError(f"{self.where.name} is damaged: storage {self.key} has another checksum than recorded")
        self.checked = True


@dataclass(frozen=True)
class Container:
    """An opened file: its format, the value of its pickle, and where its storages are."""

    file: FileSlice
    format: str
    value: object
    storages: dict[str, StorageRecord]


def open_container(file: FileSlice) -> Container:
    """Read the structure of a PyTorch file, none of its tensors. Raises InputError, IntegrityError."""
    head = file.read(0, 4)
    if head[:2] == b"PK":
        return _open_zip(file)
    if head[:1] == b"\x80":
        return _open_legacy(file)
    if not head:
        raise InputError(f"{file.name} is empty")
    if head == b"vers":
        raise InputError(f"{file.name} is a Git LFS pointer, not the checkpoint; run `git lfs pull` where it came from")
    raise InputError(f"{file.name} is not a PyTorch checkpoint (it begins with the bytes {head.hex(' ')})")


def _pickle_stream(file: FileSlice) -> io.BytesIO:
    """What a pickle is read from: the beginning of `file`, since `read` of bytes in memory allocates what is there."""
    return io.BytesIO(file.read(0, LARGEST_PICKLE))


class _DirectoryReader(io.BufferedReader):
    """What zipfile reads from; it takes the whole directory in one piece, which must not be the whole file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has {size:,} bytes")
        return super().read(size)


# ---- zip, since PyTorch 1.6 ------------------------------------------------------------------------------------------


def _open_zip(file: FileSlice) -> Container:
    try:
        with zipfile.ZipFile(_DirectoryReader(file.open())) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, struct.error, ValueError) as error:
        raise IntegrityError(f"{file.name} is truncated or damaged: {error}") from error
    members = {member.filename: member for member in listed}
    if len(members) < len(listed):
        raise IntegrityError(f"{file.name} is a zip archive that holds the same name twice")
    root = _root_of(members, file)
    _require_little_endian(members, root, file)
    pickled = _member_slice(members[root + "data.pkl"], file)
    if pickled.length > LARGEST_PICKLE:
        raise IntegrityError(f"{file.name} holds a pickle of {pickled.length:,} bytes, which no checkpoint has")
    _confirm_pickle(pickled, members[root + "data.pkl"].CRC)
    value = read_pickle(_pickle_stream(pickled), name=file.name)
    return Container(file=file, format="zip", value=value, storages=_zip_storages(members, root, file))


def _confirm_pickle(pickled: FileSlice, expected: int) -> None:
    checksum = 0
    for block in pickled.blocks():
        checksum = crc32(block, checksum)
    if checksum != expected:
        raise IntegrityError(f"{pickled.name} is damaged: its pickle has another checksum than recorded")


def _root_of(members: dict[str, zipfile.ZipInfo], file: FileSlice) -> str:
    roots = [name.removesuffix("data.pkl") for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        if inside := next((name for name in members if name.endswith(".pt")), None):
            raise InputError(f"{file.name} is a zip archive that holds {inside:.80}: unpack it, and name its folder")
        raise InputError(f"{file.name} is a zip archive, but not one that PyTorch wrote (it holds no data.pkl)")
    if any(name.startswith(roots[0] + "code/") for name in members):
        raise InputError(f"{file.name} is a TorchScript program, not a checkpoint")
    return roots[0]


def _require_little_endian(members: dict[str, zipfile.ZipInfo], root: str, file: FileSlice) -> None:
    order = members.get(root + "byteorder")
    if order is not None and _member_slice(order, file).read(0, len(b"little") + 1) != b"little":
        raise InputError(f"{file.name} was written on a big-endian machine; save it again on a little-endian one")


def _zip_storages(members: dict[str, zipfile.ZipInfo], root: str, file: FileSlice) -> dict[str, StorageRecord]:
    prefix = root + "data/"
    return {
        name.removeprefix(prefix): StorageRecord(name.removeprefix(prefix), _member_slice(member, file), member.CRC)
        for name, member in members.items()
        if name.startswith(prefix)
    }


def _member_slice(member: zipfile.ZipInfo, file: FileSlice) -> FileSlice:
    """Where the bytes of an uncompressed member are. Raises InputError, IntegrityError."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{file.name} was compressed after PyTorch wrote it; unzip it and zip it again with `zip -0`")
    header = file.read(member.header_offset, LOCAL_HEADER.size)
    if member.header_offset < 0 or len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise IntegrityError(f"{file.name} is truncated or damaged: no header for {member.filename}")
    name_length, extra_length = LOCAL_HEADER.unpack(header)[-2:]
    start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if start + member.file_size > file.length:
        raise IntegrityError(f"{file.name} is truncated: {member.filename} reaches beyond its end")
    return FileSlice(file.path, file.offset + start, member.file_size, file.name)


# ---- the legacy stream, before PyTorch 1.6 ---------------------------------------------------------------------------


def _open_legacy(file: FileSlice) -> Container:
    stream = _pickle_stream(file)
    if read_pickle(stream, name=file.name) != LEGACY_MAGIC:
        raise InputError(f"{file.name} is a bare pickle, not a checkpoint that torch.save wrote")
    _require_known_system(read_pickle(stream, name=file.name), read_pickle(stream, name=file.name), file)
    value = read_pickle(stream, name=file.name)
    keys = read_pickle(stream, name=file.name)
    dtypes = {storage.key: storage.dtype for storage in _storages_in(value)}
    storages = _legacy_storages(keys, dtypes, stream.tell(), file)
    return Container(file=file, format="legacy", value=value, storages=storages)


def _require_known_system(protocol: object, system: object, file: FileSlice) -> None:
    if protocol != LEGACY_PROTOCOL:
        raise InputError(f"{file.name} has an unknown serialization protocol")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError(f"{file.name} was written on a big-endian machine; save it again on a little-endian one")


def _legacy_storages(keys: object, dtypes: dict[str, str], start: int, file: FileSlice) -> dict[str, StorageRecord]:
    """The storages as they follow each other: a 64-bit count of elements, then the bytes."""
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) and _is_short(key) for key in keys):
        raise IntegrityError(f"{file.name} is damaged: no list of storages follows its pickle")
    records: dict[str, StorageRecord] = {}
    for key in map(str, keys):
        size = ITEM_SIZES.get(dtypes.get(key, ""))
        if size is None:
            raise IntegrityError(f"{file.name} holds a storage of unknown type ({dtypes.get(key)}), key {key:.40}")
        length = int.from_bytes(file.read(start, 8), "little") * size
        if start + 8 + length > file.length:
            raise IntegrityError(f"{file.name} is truncated: storage {key:.40} reaches beyond its end")
        records[key] = StorageRecord(key, FileSlice(file.path, file.offset + start + 8, length, file.name), None)
        start += 8 + length
    return records


def _is_short(key: str | int) -> bool:
    return isinstance(key, str) or abs(key) < 1 << 63


def _storages_in(value: object) -> list[StorageRef]:
    """Every storage that a value refers to, found without recursion and with each container visited once."""
    found: list[StorageRef] = []
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, StorageRef):
            found.append(item)
        elif isinstance(item, TensorRef):
            found.append(item.storage)
        elif isinstance(item, (dict, list, tuple, Inert)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(_children(item))
    return found


def _children(item: dict[object, object] | list[object] | tuple[object, ...] | Inert) -> list[object]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    if isinstance(item, Inert):  # its arguments as one: a thousand calls can share them
        return [item.target, item.arguments, item.state, item.added]
    return list(item)
