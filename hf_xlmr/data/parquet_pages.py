"""How large the pages of a Parquet file become in memory: a small file can hold pages of gigabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

__all__ = ["DamagedPage", "largest_page"]

HEADER_BYTES: Final = 1 << 12  # of a page's header are read at first
MOST_HEADER_BYTES: Final = 1 << 24  # as many as Arrow reads
DEEPEST: Final = 8  # structures within each other; parquet.thrift has two
UNFOLDED, STORED = 2, 3  # fields of PageHeader in parquet.thrift: bytes in memory, and in the file
NUMBERS: Final = (4, 5, 6)  # types of Thrift's compact protocol
FIXED: Final = {1: 0, 2: 0, 3: 1, 7: 8}  # true, false, byte, double: how many bytes follow
BINARY: Final = 8
STRUCT: Final = 12
LONGEST_NUMBER: Final = 63  # bits


class DamagedPage(Exception):
    """What should be the header of a page is something else."""


def largest_page(path: Path, chunks: Iterable[Any]) -> int:
    """The bytes that the largest page of these column chunks (`ColumnChunkMetaData`) takes in memory.

    A dictionary is a page, too; no value is larger than the page that it is in. Raises DamagedPage, OSError.
    """
    with path.open("rb", buffering=0) as file:
        return max((size for chunk in chunks for size in _page_sizes(file, chunk)), default=0)


def _page_sizes(file: IO[bytes], chunk: Any) -> Iterator[int]:
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    while at < end:
        fields, length = _header(file, at)
        if min(fields.get(UNFOLDED, -1), fields.get(STORED, -1)) < 0:
            raise DamagedPage(f"the page at byte {at:,} has no size")
        yield max(fields[UNFOLDED], fields[STORED])
        at += length + fields[STORED]


def _header(file: IO[bytes], at: int) -> tuple[dict[int, int], int]:
    """The numbers in the header of a page by their fields, and the length of the header."""
    wanted = HEADER_BYTES
    while wanted <= MOST_HEADER_BYTES:
        file.seek(at)
        data = file.read(wanted)
        reader = _Struct(data)
        try:
            return reader.numbers(), reader.at
        except IndexError:
            if len(data) < wanted:
                break
        wanted *= 8
    raise DamagedPage(f"the header of the page at byte {at:,} does not end")


class _Struct:
    """A structure in Thrift's compact protocol, of which the whole numbers are read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def numbers(self, depth: int = 0) -> dict[int, int]:
        """By field. Raises DamagedPage, IndexError where the data end too early."""
        found: dict[int, int] = {}
        field = 0
        while head := self._byte():
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else self._number()
            if kind in NUMBERS:
                found[field] = self._number()
            elif kind in FIXED:
                self._pass(FIXED[kind])
            elif kind == BINARY:
                self._pass(self._varint())
            elif kind == STRUCT and depth < DEEPEST:
                self.numbers(depth + 1)
            else:
                raise DamagedPage(f"the header of a page has a field of type {kind}")
        return found

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _pass(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while shift <= LONGEST_NUMBER:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise DamagedPage("the header of a page has a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
