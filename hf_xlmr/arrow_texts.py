"""Texts of Parquet files and data sets, which Arrow holds: a few rows at a time, damage told by its row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hf_xlmr.errors import InputError, printable
from hf_xlmr.text_rows import Asked, BadRow, Record, why_no_column, why_no_utf8

__all__ = [
    "BATCH_ROWS",
    "DataSet",
    "arrow_records",
    "arrow_rows",
    "check_columns",
    "data_set_of_hub",
    "data_set_on_disk",
    "hub_data_set",
    "open_parquet",
    "saved_data_set",
]

BATCH_ROWS: Final = 512  # of Arrow data held at once
BLOCK: Final = 1 << 20


def open_parquet(path: Path) -> Any:
    """The `pyarrow.parquet.ParquetFile` of `path`, to be read in little memory. Raises InputError."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:  # with a buffer, pages are read one by one instead of a row group's whole column
        file = ParquetFile(path, buffer_size=BLOCK, pre_buffer=False)
        file.schema_arrow.names  # noqa: B018  # decoded here
    except (pyarrow.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # else Arrow's own word for damage
            raise
        raise InputError(printable(f"{path} is not a Parquet file: {str(error).strip()}")) from error
    return file


def arrow_records(name: str, batches: Iterable[Any], asked: Asked) -> Iterator[Record]:
    """The text and the id of every row of Arrow `batches`, with its place. Raises BadRow, OSError."""
    for place, values in arrow_rows(name, batches, asked.columns):
        yield place, values[0], values[-1] if asked.has_ids else None


def arrow_rows(name: str, batches: Iterable[Any], columns: Sequence[str]) -> Iterator[tuple[str, tuple[object, ...]]]:
    """The values of `columns` in every row of Arrow `batches`, with its place. Raises BadRow, OSError."""
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for values in zip(*(_values(batch.column(column)) for column in columns), strict=True):
                yield f"{name}, row {number}", values
                number += 1
    except UnicodeDecodeError as error:
        raise BadRow(f"{name}, row {number}", why_no_utf8(error)) from error
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # else Arrow's own word for damage
            raise
        raise BadRow(f"{name}, row {number}", f"this or what follows is damaged: {str(error).strip()}") from error


def _values(column: Any) -> Iterable[object]:
    """All values; where one is not UTF-8, one by one up to it."""
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        return (value.as_py() for value in column)
    return values


def check_columns(name: str, schema: Any, asked: Asked) -> None:
    """Raise BadRow where a column is missing, or of a type that gives no texts or ids."""
    from pyarrow import types

    for column in asked.columns:
        if schema.names.count(column) != 1:
            twice = f"there are several columns {column!r}"
            raise BadRow(name, twice if column in schema.names else why_no_column(column, schema.names))
    if not _is_string(schema.field(asked.column).type):
        raise BadRow(name, f"the column {asked.column!r} holds {schema.field(asked.column).type}, not text")
    kind = None if asked.id_column is None else schema.field(asked.id_column).type
    if kind is not None and not (types.is_integer(kind) or _is_string(kind)):
        raise BadRow(name, f"the column {asked.id_column!r} holds {kind}; ids are strings or integers")


def _is_string(kind: Any) -> bool:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    tests: tuple[Callable[[Any], bool], ...] = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(plain) for test in tests)


@dataclass(frozen=True)
class DataSet:
    """A `datasets.Dataset`, or an IterableDataset that is streamed."""

    name: str
    data: Any
    asked: Asked

    def check(self) -> None:
        """A data set of the Hub that does not know its columns is checked when it is read."""
        if self.data.features is not None:
            check_columns(self.name, self.data.features.arrow_schema, self.asked)

    def count(self) -> int | None:
        """How many rows there are, None where only reading them all would tell."""
        return len(self.data) if hasattr(self.data, "__len__") else None

    def records(self) -> Iterator[Record]:
        """Every row from the first on. Raises BadRow, OSError."""
        chosen = self.data.select_columns(self.asked.columns).with_format("arrow")
        try:
            yield from arrow_records(self.name, chosen.iter(batch_size=BATCH_ROWS), self.asked)
        except KeyError as error:
            raise BadRow(self.name, f"there is no column {error}") from error


def data_set_on_disk(folder: Path, asked: Asked) -> DataSet:
    """What `Dataset.save_to_disk` wrote. Raises InputError."""
    if asked.config or asked.revision:
        raise InputError(f"{folder} is a data set on this disk, so it has no config or revision")
    return DataSet(folder.name, saved_data_set(folder, asked.split), asked)


def saved_data_set(folder: Path, split: str | None) -> Any:
    """The `datasets.Dataset` that `save_to_disk` wrote, or its `split`. Raises InputError."""
    from datasets import load_from_disk

    return _split_of(str(folder), load_from_disk(str(folder)), split)


def data_set_of_hub(name: str, asked: Asked) -> DataSet:
    """A data set of the Hub, streamed. Raises InputError."""
    return DataSet(name, hub_data_set(name, asked.split, config=asked.config, revision=asked.revision), asked)


def hub_data_set(name: str, split: str | None, *, config: str | None, revision: str | None) -> Any:
    """The `datasets.IterableDataset` of a split of a data set of the Hub. Raises InputError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(name, config, revision=revision, streaming=True)
    except (DatasetsError, OSError, ValueError) as error:
        raise InputError(f"{name} is not here, and as a data set of the Hub: {error}") from error
    return _split_of(name, loaded, split)


def _split_of(name: str, loaded: Any, split: str | None) -> Any:
    """The split that was asked for; without asking, the only one."""
    if not isinstance(loaded, dict):
        if split not in (None, str(loaded.split)):
            raise InputError(f"{name} is one data set (split {loaded.split}), so it has no split {split!r}")
        return loaded
    if split is None and len(loaded) > 1:
        raise InputError(f"{name} has the splits {', '.join(map(str, loaded))}; say which")
    if split is not None and split not in loaded:
        raise InputError(f"{name} has no split {split!r}; its splits are {', '.join(map(str, loaded))}")
    return loaded[split] if split is not None else next(iter(loaded.values()))
