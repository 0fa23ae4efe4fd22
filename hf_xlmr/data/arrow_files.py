"""Arrow's streams on the disk, as `datasets` saves them: mapped, read in portions, and never unfolded as a whole."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from hf_xlmr.errors import InputError, printable

if TYPE_CHECKING:
    import pyarrow

__all__ = ["arrow_batches", "arrow_schema", "errors_of_arrow", "rows_of_arrow", "size_of", "without_first"]

HELD_BYTES: Final = 1 << 26  # of a mapped file, before its pages are let go of
# Fields of the tables in Arrow's Message.fbs and Schema.fbs, by their numbers
HEADER_TYPE, HEADER = 1, 2
DATA_OF_DICTIONARY: Final = 1
LENGTH, COMPRESSION = 0, 3
DICTIONARY_BATCH, RECORD_BATCH = 2, 3


def errors_of_arrow() -> tuple[type[Exception], ...]:
    """What Arrow raises over damage; an OSError with a number is the system's own."""
    import pyarrow

    return pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError, OSError


def arrow_schema(path: Path) -> pyarrow.Schema:
    """The schema of a stream. Raises InputError, OSError."""
    import pyarrow

    with path.open("rb") as file:
        try:
            return pyarrow.ipc.open_stream(file).schema
        except errors_of_arrow() as error:
            raise _no_stream(path, error) from error


def rows_of_arrow(path: Path) -> int:
    """How many rows a stream has, without a look at them. Raises InputError for one that is compressed, OSError."""
    with path.open("rb") as file:
        return sum(_rows_of(message, path) for message in _messages(path, _mapped(file)))


def arrow_batches(path: Path, columns: Sequence[str], *, rows: int, skipped: int = 0) -> Iterator[pyarrow.RecordBatch]:
    """Record batches of these columns, of at most so many rows, each safe to read; the `skipped` first rows are not.

    Raises InputError, OSError.
    """
    import pyarrow

    rows_of_arrow(path)  # nothing that is compressed comes below
    with path.open("rb") as file:
        data = _mapped(file)
        reader = pyarrow.ipc.open_stream(pyarrow.BufferReader(pyarrow.py_buffer(data)))
        held = 0
        for whole in without_first(reader, skipped):
            batch = whole.select(list(columns))
            for first in range(0, batch.num_rows, rows):
                if os.fstat(file.fileno()).st_size < len(data):  # what was cut off cannot be looked at
                    raise InputError(printable(f"{path} became shorter while it was read"))
                part = batch.slice(first, rows)
                for column in part.columns:
                    _check_offsets(column)
                yield part
                held += size_of(part)
                if held > HELD_BYTES:
                    data.madvise(mmap.MADV_DONTNEED)
                    held = 0


def without_first(batches: Iterable[pyarrow.RecordBatch], rows: int) -> Iterator[pyarrow.RecordBatch]:
    """The batches without so many rows at their beginning, which are not looked at."""
    for batch in batches:
        rest = batch.slice(min(rows, batch.num_rows))
        rows -= batch.num_rows - rest.num_rows
        if rest.num_rows:
            yield rest


def size_of(data: pyarrow.Array | pyarrow.RecordBatch) -> int:
    """The bytes of an array or record batch; with strings as views, of its buffers (pyarrow 21 measures no views)."""
    import pyarrow

    try:
        return int(data.nbytes)
    except pyarrow.ArrowTypeError:
        return int(data.get_total_buffer_size())


def _mapped(file: IO[bytes]) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise InputError(printable(f"{file.name} is empty")) from error


def _check_offsets(column: pyarrow.Array) -> None:
    """Raise ArrowInvalid if strings are outside the data; whether they are UTF-8 is found when they are used."""
    import pyarrow

    kinds = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    kind = kinds.get(column.type)
    (column if kind is None else column.view(kind)).validate(full=True)


def _messages(path: Path, data: mmap.mmap) -> Iterator[pyarrow.Message]:
    import pyarrow

    try:
        yield from pyarrow.ipc.MessageReader.open_stream(pyarrow.BufferReader(pyarrow.py_buffer(data)))
    except errors_of_arrow() as error:
        raise _no_stream(path, error) from error


def _rows_of(message: pyarrow.Message, path: Path) -> int:
    """The rows of a message, 0 for one that has none. Raises InputError if its buffers are compressed."""
    table = _Table.root(message.metadata.to_pybytes())
    kind = table.number(HEADER_TYPE, "<B")
    if kind not in (DICTIONARY_BATCH, RECORD_BATCH):
        return 0
    batch = table.table(HEADER)
    if kind == DICTIONARY_BATCH:
        batch = batch.table(DATA_OF_DICTIONARY)
    if batch.has(COMPRESSION):
        raise InputError(
            printable(f"{path} is compressed, which datasets does not do: load it with datasets and save it again")
        )
    return batch.number(LENGTH, "<q") if kind == RECORD_BATCH else 0


class _Table:
    """A table of FlatBuffers; Arrow has verified the message that it is in."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """The outermost table."""
        return cls(data, *struct.unpack_from("<I", data))

    def _place(self, field: int) -> int:
        """Where the value of a field is, 0 if it has none."""
        entries = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        (size,) = struct.unpack_from("<H", self._data, entries)
        slot = 4 + 2 * field
        offset: int = struct.unpack_from("<H", self._data, entries + slot)[0] if slot < size else 0
        return self._at + offset if offset else 0

    def has(self, field: int) -> bool:
        """Whether the field has a value."""
        return self._place(field) > 0

    def number(self, field: int, form: str) -> int:
        """A number, 0 if there is none."""
        place = self._place(field)
        return int(struct.unpack_from(form, self._data, place)[0]) if place else 0

    def table(self, field: int) -> _Table:
        """The table that a field refers to."""
        place = self._place(field)
        return _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])


def _no_stream(path: Path, error: Exception) -> InputError:
    return InputError(printable(f"{path} is damaged, or not what datasets saves: {str(error).strip()}"))
