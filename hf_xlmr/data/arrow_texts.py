"""Texts of Parquet files and data sets, which Arrow holds: a few rows at a time; messages about damage name the row."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from hf_xlmr.data.arrow_files import arrow_batches, arrow_schema, errors_of_arrow, rows_of_arrow, size_of
from hf_xlmr.data.cuts import BEGINNING, Start, Starts, arrow_starts
from hf_xlmr.data.parquet_pages import Chunk, DamagedPage, largest_page, row_groups
from hf_xlmr.data.remote_files import RemoteFile
from hf_xlmr.data.text_rows import (
    Asked,
    BadRow,
    Record,
    content_of,
    latest_identity,
    why_no_column,
    why_no_utf8,
    why_too_long,
)
from hf_xlmr.errors import InputError, IntegrityError, printable
from hf_xlmr.files.json_files import json_object

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray
    from pyarrow.parquet import ParquetFile

__all__ = [
    "BATCH_ROWS",
    "AnyDataSet",
    "DataSet",
    "ParquetRows",
    "SavedDataSet",
    "arrow_records",
    "arrow_rows",
    "check_columns",
    "data_set_of_hub",
    "data_set_on_disk",
    "hub_data_set",
    "open_parquet",
    "saved_data_set",
]

Kind = TypeVar("Kind")
AnyDataSet: TypeAlias = "datasets.Dataset | datasets.IterableDataset"
"""A data set on this disk, or one that is streamed."""

BATCH_ROWS: Final = 512  # of Arrow data held at once
BATCH_BYTES: Final = 1 << 26
MOST_PAGE_BYTES: Final = 1 << 29  # of Parquet, unfolded: Arrow holds pages whole
MOST_FOOTER_BYTES: Final = 1 << 26
BLOCK: Final = 1 << 20
SPLITS: Final = "dataset_dict.json"  # of a DatasetDict
STATE: Final = "state.json"  # of a Dataset


def open_parquet(path: Path | RemoteFile) -> ParquetFile:
    """The Parquet file `path`, to be read in little memory. Raises InputError."""
    from pyarrow.parquet import ParquetFile

    with path.open("rb") as opened:
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, end - 8))
        footer = int.from_bytes(opened.read(4), "little")
    if MOST_FOOTER_BYTES < footer < end:
        raise InputError(printable(f"{path} has {footer:,} bytes about its columns; {MOST_FOOTER_BYTES:,} are read"))
    try:  # with a buffer, pages are read one by one instead of a row group's whole column
        file = ParquetFile(path if isinstance(path, Path) else path.open(), buffer_size=BLOCK, pre_buffer=False)
        file.schema_arrow.names  # noqa: B018  # decoded here
    except errors_of_arrow() as error:
        if isinstance(error, OSError) and error.errno is not None:  # else Arrow's own word for damage
            raise
        raise InputError(printable(f"{path} is not a Parquet file: {str(error).strip()}")) from error
    return file


class ParquetRows:
    """The rows of a Parquet file in batches; rows that follow those that were given before are read once."""

    def __init__(self, path: Path | RemoteFile, name: str, columns: Sequence[str]) -> None:
        """Open the file, to read these columns. Raises BadRow, InputError, OSError."""
        self.path, self.identity = path, content_of(latest_identity(path))
        self._name, self._columns = name, list(columns)
        self._file = open_parquet(path)
        paths = [self._file.schema.column(number).path for number in range(len(self._file.schema))]
        self._leaves = [
            n for n, leaf in enumerate(paths) if leaf in columns or leaf.startswith(tuple(f"{c}." for c in columns))
        ]
        with _damage(name):
            groups = row_groups(path, columns=len(paths))
        ends = list(accumulate(group.rows for group in groups))
        self._groups = [
            each for each in zip(ends, count(), groups, strict=False) if each[-1].rows
        ]  # the others have no pages
        self._at = -1
        """The row group that is being read, by its place in this list."""
        self._batches: Iterator[pyarrow.RecordBatch] = iter(())
        self._batch: pyarrow.RecordBatch | None = None
        self._first = 0
        """The row that the batch begins with, or the next one if there is none."""

    def batches(self, first: int) -> Iterator[pyarrow.RecordBatch]:
        """Batches from row `first` on, as large as bounded memory allows for them and their pages.

        Raises BadRow for pages that cannot, InputError, OSError.
        """
        group = bisect_right(self._groups, first, key=lambda each: each[0])
        if group != self._at or first < self._first:
            self._enter(group)
        while self._at < len(self._groups):
            if self._batch is not None:
                rest = self._batch.slice(max(0, min(first - self._first, self._batch.num_rows)))
                if rest.num_rows:
                    yield rest
                self._first += self._batch.num_rows
            self._batch = next(self._batches, None)
            if self._batch is None:
                self._enter(self._at + 1)

    def _enter(self, group: int) -> None:
        self._at, self._batch, self._batches = group, None, iter(())
        if group < len(self._groups):
            end, number, facts = self._groups[group]
            self._first = end - facts.rows
            chunks = [facts.chunks[leaf] for leaf in self._leaves]
            rows = _rows_at_once(self.path, f"{self._name}, row {self._first}", chunks)
            options = {"row_groups": [number], "columns": self._columns, "use_threads": False}
            self._batches = self._file.iter_batches(rows, **options)


@contextmanager
def _damage(place: str) -> Iterator[None]:
    try:
        yield
    except DamagedPage as error:
        raise BadRow(place, f"this or what follows is damaged: {error}") from error


def _rows_at_once(path: Path | RemoteFile, place: str, chunks: Sequence[Chunk]) -> int:
    """How many rows of these column chunks make a batch: no value is larger than the largest page. Raises BadRow."""
    with _damage(place):
        unfolded = sum(largest_page(path, chunk) for chunk in chunks)
    if unfolded > MOST_PAGE_BYTES:
        raise BadRow(
            place,
            f"this row group has pages that take {unfolded:,} bytes in memory, and {MOST_PAGE_BYTES:,} are the most; "
            "write the file again with smaller row groups",
        )
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, unfolded)))


def arrow_records(name: str, batches: Iterable[object], asked: Asked, *, first: int = 0) -> Iterator[Record]:
    """Every row of Arrow `batches`, with its place; `first` is the number of the first one.

    Raises BadRow, OSError.
    """
    text_at, id_at, language_at = asked.places
    for place, values in arrow_rows(name, batches, asked.columns, most=asked.max_row_size, first=first):
        id_, language = (None if at is None else values[at] for at in (id_at, language_at))
        yield place, values[text_at], id_, language


def arrow_rows(
    name: str,
    batches: Iterable[pyarrow.RecordBatch],
    columns: Sequence[str],
    *,
    most: int | None = None,
    first: int = 0,
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """The values of `columns` in every row of Arrow `batches`, with its place.

    Raises BadRow, also for a string of more than `most` bytes, OSError.
    """
    number = first
    try:
        for batch in batches:
            for values in _fitting_rows([batch.column(column) for column in columns], most):
                yield f"{name}, row {number}", values
                number += 1
    except _TooLong as error:
        raise BadRow(
            f"{name}, row {number}", why_too_long(f"the value of {columns[error.column]!r}", error.most)
        ) from None
    except UnicodeDecodeError as error:
        raise BadRow(f"{name}, row {number}", why_no_utf8(error)) from error
    except errors_of_arrow() as error:
        if isinstance(error, OSError) and error.errno is not None:  # else Arrow's own word for damage
            raise
        raise BadRow(f"{name}, row {number}", f"this or what follows is damaged: {str(error).strip()}") from error


class _TooLong(Exception):
    """A string is longer than it may be."""

    def __init__(self, column: int, most: int) -> None:
        super().__init__(column, most)
        self.column, self.most = column, most


def _fitting_rows(columns: Sequence[pyarrow.Array], most: int | None) -> Iterator[tuple[object, ...]]:
    """The values of each row; if they are large, memory holds one row after another. Raises _TooLong."""
    sizes = {} if most is None else {number: _sizes(column, most) for number, column in enumerate(columns)}
    known = {number: each for number, each in sizes.items() if each is not None}
    values = _one_by_one if sum(int(each.sum()) for each in known.values()) > BATCH_BYTES else _values
    limit = most or 0  # if there is none, no sizes are known
    fits = min([len(columns[0]), *(int((each > limit).argmax()) for each in known.values() if each.max() > limit)])
    yield from zip(*(values(column.slice(0, fits)) for column in columns), strict=True)
    if fits < len(columns[0]):
        raise _TooLong(next(number for number, each in known.items() if each[fits] > limit), limit)


def _sizes(column: pyarrow.Array, most: int) -> NDArray[np.int64] | None:
    """The bytes of each string in a column, as a NumPy array; None if it holds no strings, or all of it is small."""
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        lengths = compute.binary_length(_plain(column.dictionary)).take(column.indices)
    elif not _is_string(column.type) or size_of(column) <= min(most, BATCH_BYTES):
        return None
    else:
        lengths = compute.binary_length(_plain(column))
    return lengths.fill_null(0).to_numpy(zero_copy_only=False) if len(lengths) else None


def _plain(column: pyarrow.Array) -> pyarrow.Array:
    """Strings in a form whose lengths Arrow says, which those of views are not."""
    import pyarrow

    return column.cast(pyarrow.large_string()) if pyarrow.types.is_string_view(column.type) else column


def _values(column: pyarrow.Array) -> Iterable[object]:
    """All values; if one is not UTF-8, one by one up to it."""
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        return _one_by_one(column)
    return values


def _one_by_one(column: pyarrow.Array) -> Iterator[object]:
    return (value.as_py() for value in column)


def check_columns(name: str, schema: pyarrow.Schema, asked: Asked) -> None:
    """Raise BadRow if a column is missing, or of a type that gives no texts or ids."""
    from pyarrow import types

    for column in asked.columns:
        if schema.names.count(column) != 1:
            twice = f"there are several columns {column!r}"
            raise BadRow(name, twice if column in schema.names else why_no_column(column, schema.names))
    for column in filter(None, (asked.column, asked.language_column)):
        if not _is_string(schema.field(column).type):
            raise BadRow(name, f"the column {column!r} holds {schema.field(column).type}, not text")
    kind = None if asked.id_column is None else schema.field(asked.id_column).type
    if kind is not None and not (types.is_integer(kind) or _is_string(kind)):
        raise BadRow(name, f"the column {asked.id_column!r} holds {kind}; ids are strings or integers")


def _is_string(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    return any(test(plain) for test in (types.is_string, types.is_large_string, types.is_string_view))


@dataclass(frozen=True)
class DataSet:
    """A data set that is streamed."""

    name: str
    data: datasets.IterableDataset
    asked: Asked

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files are on the Hub."""
        return ()

    def check(self) -> None:
        """A data set of the Hub that does not know its columns is checked when it is read."""
        if self.data.features is not None:
            check_columns(self.name, self.data.features.arrow_schema, self.asked)

    @property
    def has_starts(self) -> bool:
        """It is read from the first row on."""
        return False

    def starts(self, every: int, skipped: int) -> Starts:
        """None can be entered."""
        raise NotImplementedError

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        """Every row from the first on. Raises BadRow, OSError."""
        chosen = self.data.select_columns(self.asked.columns).with_format("arrow")
        try:
            batches = (batch for table in chosen.iter(batch_size=BATCH_ROWS) for batch in table.to_batches())
            yield from arrow_records(self.name, batches, self.asked)
        except KeyError as error:
            raise BadRow(self.name, f"there is no column {error}") from error


@dataclass(frozen=True)
class SavedDataSet:
    """The Arrow files of a data set that `Dataset.save_to_disk` wrote."""

    name: str
    paths: tuple[Path, ...]
    asked: Asked

    def check(self) -> None:
        """Raise InputError if the columns are not there, or no row can be read."""
        for path in self.paths:
            check_columns(self.name, arrow_schema(path), self.asked)

    @cached_property
    def _rows(self) -> tuple[int, ...]:
        """How many rows each file has."""
        return tuple(map(rows_of_arrow, self.paths))

    @property
    def has_starts(self) -> bool:
        """It can be entered anywhere."""
        return True

    def starts(self, every: int, skipped: int) -> Starts:
        """The starts of every n-th row."""
        return arrow_starts(sum(self._rows), every, skipped)

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        """Every row from `start` on, at least up to `end`. Raises BadRow, OSError."""
        yield from arrow_records(self.name, self._batches(start.at), self.asked, first=start.at)

    def _batches(self, skipped: int) -> Iterator[pyarrow.RecordBatch]:
        for path, rows in zip(self.paths, self._rows, strict=True):
            if skipped < rows:
                yield from arrow_batches(path, self.asked.columns, rows=BATCH_ROWS, skipped=skipped)
            skipped = max(0, skipped - rows)


def data_set_on_disk(folder: Path, asked: Asked) -> SavedDataSet:
    """What `Dataset.save_to_disk` wrote. Raises InputError."""
    if asked.config or asked.revision:
        raise InputError(f"{folder} is a data set on this disk, so it has no config or revision")
    part = folder
    if (folder / SPLITS).is_file():
        part = folder / _named_split(str(folder), _written(folder / SPLITS, "splits", str), asked.split)
    state = part / STATE
    names = [str(file.get("filename")) for file in _written(state, "_data_files", dict)]
    if any(Path(name).name != name for name in names):
        raise InputError(printable(f"{state} names files that are elsewhere"))
    own = json_object(state).get("_split")
    if part == folder and asked.split not in (None, own):
        raise InputError(printable(f"{folder} is one data set (split {own}), so it has no split {asked.split!r}"))
    return SavedDataSet(folder.name, tuple(part / name for name in names), asked)


def _written(path: Path, key: str, kind: type[Kind]) -> list[Kind]:
    """A list in a file that `datasets` wrote. Raises IntegrityError."""
    found = json_object(path).get(key)
    if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
        raise IntegrityError(printable(f"{path} is damaged: {key} is not the list that datasets writes"))
    return found


def data_set_of_hub(name: str, asked: Asked) -> DataSet:
    """A data set of the Hub, streamed. Raises InputError."""
    return DataSet(name, hub_data_set(name, asked.split, config=asked.config, revision=asked.revision), asked)


def saved_data_set(folder: Path, split: str | None) -> datasets.Dataset:
    """The data set that `save_to_disk` wrote, or its `split`. Raises InputError."""
    from datasets import load_from_disk

    return _split_of(str(folder), load_from_disk(str(folder)), split)


def hub_data_set(name: str, split: str | None, *, config: str | None, revision: str | None) -> datasets.IterableDataset:
    """A split of a data set of the Hub, streamed. Raises InputError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(name, config, revision=revision, streaming=True)
    except (DatasetsError, OSError, ValueError) as error:
        raise InputError(f"{name} is not here, and as a data set of the Hub: {error}") from error
    return _split_of(name, loaded, split)


def _split_of(name: str, loaded: AnyDataSet | dict[str, AnyDataSet], split: str | None) -> AnyDataSet:
    """The split that was asked for; without asking, the only one."""
    if not isinstance(loaded, dict):
        if split not in (None, str(loaded.split)):
            raise InputError(f"{name} is one data set (split {loaded.split}), so it has no split {split!r}")
        return loaded
    return loaded[_named_split(name, list(map(str, loaded)), split)]


def _named_split(name: str, splits: Sequence[str], split: str | None) -> str:
    """The split that was asked for; without asking, the only one. Raises InputError."""
    if split is None and len(splits) != 1:
        raise InputError(printable(f"{name} has the splits {', '.join(splits)}; say which"))
    if split is not None and split not in splits:
        raise InputError(printable(f"{name} has no split {split!r}; its splits are {', '.join(splits)}"))
    return splits[0] if split is None else split
