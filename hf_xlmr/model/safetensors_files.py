"""What safetensors files and their index say of themselves, held against all that their format asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import BinaryIO, Final

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_files import json_object, strict_json

LFS_POINTER: Final = b"version "  # its first bytes, which a safetensors file would need petabytes to begin with
POINTER_TOLD: Final = "{} is a Git LFS pointer, not the weights; run `git lfs pull` where it came from"
LARGEST_HEADER: Final = 100_000_000  # bytes, as in the format's own library
MOST_DIMENSIONS: Final = 64  # of PyTorch
LARGEST_SIZE: Final = 1 << 63
METADATA: Final = "__metadata__"
# The bits of each type of the format that has whole bytes; of others the size is not compared with the shape
BITS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def raise_if_not_text(folder: Path) -> None:
    """Refuse the path of a folder that the format's own library cannot open. Raises InputError."""
    path = str(folder.absolute())
    if any("\ud800" <= each <= "\udfff" for each in path):
        raise InputError(f"{path}: safetensors and tokenizers cannot open a path that is not UTF-8: rename it")


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header of its file describes it."""

    dtype: str
    """The format's own code, such as F32."""
    shape: tuple[int, ...]
    start: int
    """The place of its first byte in the file."""
    nbytes: int


def file_header(path: Path) -> dict[str, TensorEntry]:
    """The header of the file at `path`, as `read_header`. Raises InputError, IntegrityError, OSError."""
    with path.open("rb") as file:
        return read_header(file, path)


def read_header(file: BinaryIO, path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name, in the order of its header; their bytes fill the file without a gap.

    `path` is what messages call the file. Raises InputError for a Git LFS pointer, IntegrityError for what breaks a
    rule of the format, OSError.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(8)
    if head == LFS_POINTER:
        raise InputError(POINTER_TOLD.format(path))
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(LARGEST_HEADER, size - 8):
        raise IntegrityError(f"{path} is truncated or damaged: its header would be {length:,} bytes long")
    entries = dict(_entries(file.read(length), path, start=8 + length))
    ordered = sorted(entries, key=lambda name: (entries[name].start, entries[name].nbytes))
    end = 8 + length
    for name in ordered:
        if entries[name].start != end:
            fault = "overlap" if entries[name].start < end else "leave a gap"
            raise IntegrityError(f"{path} is damaged: its header says that tensors {fault} before {name:.80}")
        end += entries[name].nbytes
    if end != size:
        raise IntegrityError(f"{path} is truncated or damaged: it has {size:,} bytes, and {end:,} by its header")
    return entries


def shards_of(index: Path) -> dict[str, str]:
    """The file of each weight by an index of shards, which all are next to it. Raises IntegrityError, OSError."""
    listed = json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise IntegrityError(f"{index} is damaged: it has no weight_map")
    for file in dict.fromkeys(listed.values()):
        if Path(file).name != file or file in ("", "..") or "\\" in file or not file.isprintable():
            raise IntegrityError(f"{index} names {file!r:.80}, which is not in the folder")
    return listed


def _entries(header: bytes, path: Path, *, start: int) -> Iterator[tuple[str, TensorEntry]]:
    """Every tensor of a header, whose bytes are from `start` on. Raises IntegrityError."""
    try:
        content = strict_json(header, is_unique=True)
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: its header is not that of a safetensors file ({error})") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} is damaged: its header holds no object")
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"{path} is damaged: its metadata is not a list of texts")
    for name, entry in content.items():
        yield name, _entry(name, entry, path, start=start)


def _entry(name: str, entry: object, path: Path, *, start: int) -> TensorEntry:
    facts = entry if isinstance(entry, dict) else {}
    try:
        code, shape, (first, last) = facts["dtype"], facts["shape"], facts["data_offsets"]
        is_list = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS and isinstance(code, str)
    except (KeyError, TypeError, ValueError):
        is_list = False
    is_list = is_list and all(type(each) is int and 0 <= each < LARGEST_SIZE for each in (*shape, first, last))
    if not is_list or first > last or max(accumulate(shape, mul), default=1) >= LARGEST_SIZE:
        raise IntegrityError(f"{path} is damaged: its header does not say where {name:.80} is")
    nbytes = last - first
    if code in BITS and prod(shape) * BITS[code] != 8 * nbytes:
        raise IntegrityError(f"{path} is damaged: {name:.80} has {nbytes} bytes, not those of its shape")
    return TensorEntry(code, tuple(shape), start + first, nbytes)
