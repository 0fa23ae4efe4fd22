"""How large the pages of a Parquet file become in memory: a small file can hold pages of gigabytes.

The footer is read here, too: pyarrow's `metadata.row_group(n).column(n)` ends the process if their size statistics
are damaged (seen in pyarrow 26.0; `iter_batches` raises).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeAlias

from hf_xlmr.data.remote_files import RemoteFile

__all__ = ["Chunk", "DamagedPage", "RowGroup", "largest_page", "row_groups"]

HEADER_BYTES: Final = 1 << 12  # of a page's header are read at first
MOST_HEADER_BYTES: Final = 1 << 24  # as many as Arrow reads
TAIL_BYTES: Final = 8  # of the file: the length of the footer, and the magic
DEEPEST: Final = 16  # structures and lists within each other; parquet.thrift has ten
LONGEST_NUMBER: Final = 63  # bits

Wanted = Mapping[int, "Wanted"]  # fields of a structure, and of the structures in them
Value: TypeAlias = "int | Struct | list[Value] | None"
Struct: TypeAlias = "dict[int, Value]"

# fields in parquet.thrift
PAGE_IN_MEMORY, PAGE_IN_FILE = 2, 3
PAGE_HEADER: Final[Wanted] = {PAGE_IN_MEMORY: {}, PAGE_IN_FILE: {}}
ROW_GROUPS, COLUMNS, ROWS, COLUMN, COMPRESSED, FIRST_PAGE, DICTIONARY_PAGE = 4, 1, 3, 3, 7, 9, 11
FOOTER: Final[Wanted] = {
    ROW_GROUPS: {COLUMNS: {COLUMN: {COMPRESSED: {}, FIRST_PAGE: {}, DICTIONARY_PAGE: {}}}, ROWS: {}}
}

# types in Thrift's compact protocol
FIXED: Final = {1: 0, 2: 0, 3: 1, 7: 8}  # true, false, byte, double: how many bytes follow
NUMBERS: Final = (4, 5, 6)
BINARY: Final = 8
LISTS: Final = (9, 10)
STRUCT: Final = 12


class DamagedPage(Exception):
    """What should be the footer of a file or the header of a page is something else."""


@dataclass(frozen=True)
class Chunk:
    """One column in one row group: its bytes in the file."""

    start: int
    end: int

    @classmethod
    def of(cls, column: Struct) -> Chunk:
        """Locate a `ColumnChunk`. Raises KeyError, TypeError if it is not such a structure."""
        (facts,) = _structs([column[COLUMN]])
        first, dictionary = _number(facts[FIRST_PAGE]), _number(facts.get(DICTIONARY_PAGE, 0))
        start = dictionary if 0 < dictionary < first else first
        return cls(start, start + _number(facts[COMPRESSED]))


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def _structs(values: Value) -> list[Struct]:
    if not isinstance(values, list):
        raise TypeError(values)
    found = [each for each in values if isinstance(each, dict)]
    if len(found) < len(values):
        raise TypeError(values)
    return found


@dataclass(frozen=True)
class RowGroup:
    """How many rows a row group has, and its columns."""

    rows: int
    chunks: Sequence[Chunk]


def row_groups(path: Path | RemoteFile, *, columns: int) -> Sequence[RowGroup]:
    """The row groups of a Parquet file of so many `columns`, counted as leaves of its schema.

    Raises DamagedPage, OSError.
    """
    with path.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END) - TAIL_BYTES
        file.seek(max(0, end))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, end - length))
        data = file.read(length)
    try:
        found = _structs(_Reader(data).fields(FOOTER).get(ROW_GROUPS, []))
        groups = [RowGroup(_number(each[ROWS]), list(map(Chunk.of, _structs(each[COLUMNS])))) for each in found]
    except (IndexError, KeyError, TypeError) as error:
        raise DamagedPage("the footer does not say where the columns are") from error
    for number, group in enumerate(groups):
        if len(group.chunks) != columns:
            raise DamagedPage(f"row group {number} has {len(group.chunks)} of {columns} columns")
    return groups


def largest_page(path: Path | RemoteFile, chunk: Chunk) -> int:
    """The bytes that the largest page of one column in one row group takes in memory.

    A dictionary is a page, too; no value is larger than the page that it is in. Raises DamagedPage, OSError.
    """
    with path.open("rb", buffering=0) as file:
        return max(_page_sizes(file, chunk), default=0)


def _page_sizes(file: IO[bytes], chunk: Chunk) -> Iterator[int]:
    at = chunk.start
    while at < chunk.end:
        fields, length = _header(file, at)
        unfolded, stored = fields.get(PAGE_IN_MEMORY), fields.get(PAGE_IN_FILE)
        if not (isinstance(unfolded, int) and isinstance(stored, int) and unfolded >= 0 and stored >= 0):
            raise DamagedPage(f"the page at byte {at:,} has no size")
        yield max(unfolded, stored)
        at += length + stored


def _header(file: IO[bytes], at: int) -> tuple[Struct, int]:
    """The sizes in the header of a page by their fields, and the length of the header."""
    wanted = HEADER_BYTES
    while at >= 0 and wanted <= MOST_HEADER_BYTES:
        file.seek(at)
        data = file.read(wanted)
        reader = _Reader(data)
        try:
            return reader.fields(PAGE_HEADER), reader.at
        except IndexError:
            if len(data) < wanted:
                break
        wanted *= 8
    raise DamagedPage(f"the header of the page at byte {at:,} does not end")


class _Reader:
    """A structure in Thrift's compact protocol, of which some fields are read and the others are passed over."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def fields(self, wanted: Wanted, depth: int = 0) -> Struct:
        """The wanted fields: numbers, structures, and lists of them. Raises DamagedPage; IndexError if the data end."""
        found: Struct = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._number()
            if field in wanted:
                found[field] = self._value(head & 15, wanted[field], depth)
            else:
                self._value(head & 15, {}, depth)
        return found

    def _value(self, kind: int, wanted: Wanted, depth: int) -> Value:
        if kind in NUMBERS:
            return self._number()
        if kind in FIXED or kind == BINARY:
            self._pass(FIXED[kind] if kind in FIXED else self._varint())
            return None
        if kind == STRUCT and depth < DEEPEST:
            return self.fields(wanted, depth + 1)
        if kind in LISTS and depth < DEEPEST:
            return self._list(wanted, depth + 1)
        raise DamagedPage(f"what describes columns or pages has a field of type {kind}")

    def _list(self, wanted: Wanted, depth: int) -> list[Value] | None:
        head = self._byte()
        count, kind = head >> 4, head & 15
        if count == 15:
            count = self._varint()
        kind = 3 if kind in (1, 2) else kind  # truth values take a byte each in a list, and none in a structure
        values = (self._value(kind, wanted, depth) for _ in range(count))
        if wanted:
            return list(values)
        for _ in values:
            pass
        return None

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
        raise DamagedPage("what describes columns or pages has a number of more than 64 bits")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
