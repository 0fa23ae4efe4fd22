"""Texts of files and data sets, one after another: streamed in their order, with the place of each for messages."""

from __future__ import annotations

import codecs
import glob
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeGuard

from hf_xlmr.errors import InputError, printable, told_plainly

__all__ = [
    "STANDARD_INPUT",
    "BadRow",
    "TextInput",
    "TextRow",
    "arrow_rows",
    "checked_text",
    "hub_data_set",
    "is_hub_name",
    "json_object",
    "kind_name",
    "open_parquet",
    "open_texts",
    "saved_data_set",
    "text_lines",
    "why_no_column",
]

STANDARD_INPUT: Final = "-"
DEFAULT_COLUMN: Final = "text"
LONGEST_LINE: Final = 1 << 28  # bytes: what is longer is no text file, and would only fill the memory
BLOCK: Final = 1 << 20
BATCH_ROWS: Final = 512  # of Arrow data held at once
WIDEST_ID: Final = 1 << 63
HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
JSON_TYPES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "a string",
    bytes: "bytes",
    list: "a list",
    dict: "an object",
}

Record = tuple[str, object, object]  # a row as it is found: its place, its text and its id, both unchecked


class BadRow(InputError):
    """A row that gives no text: `place` says where it is, `reason` why."""

    def __init__(self, place: str, reason: str) -> None:
        """Carry where the row is and what is wrong with it."""
        self.place = place
        self.reason = reason
        super().__init__(printable(f"{place}: {reason}"))


@dataclass(frozen=True, slots=True)
class TextRow:
    """One text of the input."""

    number: int
    """Of the row in the whole input, from 0."""
    place: str
    """For messages, such as `texts.txt, line 17`."""
    text: str
    id: object | None = None
    """A string or an integer of 64 bits; None where no column of ids was asked for."""


class _Source(Protocol):
    """One of the files, or the data set, that an input consists of."""

    def check(self) -> None:
        """Raise InputError where it is plain beforehand that no row can be read."""

    def count(self) -> int | None:
        """How many rows there are, None where only reading them all would tell."""

    def records(self) -> Iterator[Record]:
        """Every row from the first on. Raises BadRow, OSError."""


@dataclass(frozen=True)
class TextInput:
    """The texts of an input in their order; each iteration reads anew, in memory that does not grow with the rows."""

    name: str
    sources: tuple[_Source, ...]
    has_ids: bool = False
    is_repeatable: bool = True
    """Whether it can be read twice, which standard input and pipes cannot."""

    @cached_property
    def count(self) -> int | None:
        """How many rows there are, None where only reading them all would tell."""
        with told_plainly():
            counts = [source.count() for source in self.sources]
        known = [each for each in counts if each is not None]
        return sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[TextRow]:
        """Every row, each checked when it is reached. Raises BadRow, InputError."""
        numbers, ids = count(), _Ids()
        with told_plainly():
            for source in self.sources:
                for place, text, id_ in source.records():
                    text = checked_text(place, text)
                    if self.has_ids:
                        ids.check(place, id_)
                    yield TextRow(next(numbers), place, text, id_)


def open_texts(
    source: str | Path,
    *,
    column: str = DEFAULT_COLUMN,
    id_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> TextInput:
    """The texts of a file, a folder, a pattern such as `texts/*.jsonl`, a data set, or standard input (`-`).

    Files are told apart by their endings: `.txt` (a text per line), `.jsonl`, `.ndjson` and `.json` (an object per
    line), `.csv` and `.tsv` (with a header), `.parquet`; all but the last may also be gzipped (`.gz`). Only a line feed
    ends a line, with or without a carriage return before it. A folder is what `Dataset.save_to_disk` wrote, or files of
    one kind, taken in the order of their names. What is neither, and looks like `owner/name`, is streamed from the Hub
    by `datasets.load_dataset`, which alone knows `config` and `revision`; `split` is for data sets. `column` holds
    the text, and `id_column` what is to be handed on beside it.

    Raises InputError, also for columns that a header, schema or data set does not have.
    """
    asked = _Asked(column, id_column, split, config, revision)
    with told_plainly():
        opened = _opened(str(source), asked)
        for each in opened.sources:
            each.check()
    return opened


def text_lines(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Every line of a file in UTF-8, gzipped or not, without its end, and its place. Raises BadRow, OSError."""
    return ((place, str(line)) for place, line, _ in _Text(name, path, _Asked()).records())


@dataclass(frozen=True)
class _Asked:
    """What of an input is wanted."""

    column: str = DEFAULT_COLUMN
    id_column: str | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    @property
    def columns(self) -> list[str]:
        return [self.column] if self.id_column in (None, self.column) else [self.column, str(self.id_column)]

    @property
    def has_ids(self) -> bool:
        return self.id_column is not None


def _opened(source: str, asked: _Asked) -> TextInput:
    path = Path(source)
    if source == STANDARD_INPUT:
        return _from_files(source, [_StandardInput("standard input", Path(), asked)], asked)
    if path.is_dir():
        return _from_folder(path, asked)
    if path.exists():
        return _from_files(source, [_file(path, path.name, asked)], asked)
    if found := sorted(glob.glob(source)):  # noqa: PTH207  # that of Path takes no absolute pattern
        return _from_files(source, [_file(Path(each), each, asked) for each in found], asked)
    if is_hub_name(source):
        return TextInput(source, (_from_hub(source, asked),), asked.has_ids)
    raise InputError(f"{source} does not exist")


def is_hub_name(source: str) -> bool:
    """Whether what does not exist here can be a data set of the Hub, and not a file that was misspelt."""
    path = Path(source)
    return bool(HUB_ID.fullmatch(source)) and kind_name(path) not in KINDS and not path.parent.exists()


def _from_files(name: str, files: list[_File], asked: _Asked) -> TextInput:
    if asked.split or asked.config or asked.revision:
        raise InputError(f"{name} is no data set, so it has no split, config or revision")
    is_repeatable = all(file.path.is_file() for file in files)
    return TextInput(name, tuple(files), asked.has_ids, is_repeatable)


def _from_folder(folder: Path, asked: _Asked) -> TextInput:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return TextInput(str(folder), (_from_disk(folder, asked),), asked.has_ids)
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    known = [path for path in paths if kind_name(path) in KINDS]
    kinds = sorted({kind_name(path) for path in known})
    if not known:
        raise InputError(f"{folder} holds no data set and none of the files {_kinds_told()}")
    if len(kinds) > 1:
        raise InputError(
            f"{folder} holds files of several kinds ({', '.join(kinds)}); say which, as {folder}/*{kinds[0]}"
        )
    return _from_files(str(folder), [_file(path, path.name, asked) for path in known], asked)


def _file(path: Path, name: str, asked: _Asked) -> _File:
    kind = KINDS.get(kind_name(path))
    if kind is None:
        raise InputError(f"{path} is of no known kind; texts are read from {_kinds_told()}")
    return kind(name, path, asked)


def kind_name(path: Path) -> str:
    """The ending that tells the kind: that before `.gz`, which Parquet has no use for."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    kind = endings[0] if endings[1:] == [".gz"] else "".join(endings[-1:])
    return "" if kind == ".parquet" and endings[-1] == ".gz" else kind


def _kinds_told() -> str:
    zipped = [name for name in KINDS if name != ".parquet"]
    return f"{', '.join(zipped)} (also with .gz) and .parquet"


# ---- what a row must be ----------------------------------------------------------------------------------------------


def checked_text(place: str, value: object, *, what: str = "the text") -> str:
    """`value`, which must be a text that can be written as UTF-8. Raises BadRow."""
    if not _is_text(value):
        raise BadRow(place, _why_no_text(value, what))
    return value


def _is_text(value: object) -> TypeGuard[str]:
    return type(value) is str and (value.isascii() or not _has_surrogates(value))


def _has_surrogates(text: str) -> bool:
    """Whether half of a pair of UTF-16 stands alone, as JSON can say it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _why_no_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        return f"{what} is {JSON_TYPES.get(type(value), type(value).__name__)}, not a string"
    at = next(place for place, each in enumerate(value) if "\ud800" <= each <= "\udfff")
    return f"{what} has half of a surrogate pair, U+{ord(value[at]):04X}, as its character {at + 1}"


class _Ids:
    """Sees to it that ids are all strings or all integers, as one column of the output must be."""

    def __init__(self) -> None:
        self._type: type | None = None

    def check(self, place: str, value: object) -> None:
        """Raise BadRow where an id is neither, or not what those before were."""
        found = JSON_TYPES.get(type(value), type(value).__name__)
        if type(value) not in (str, int):
            raise BadRow(place, f"the id is {found}, neither a string nor an integer")
        if isinstance(value, int) and not -WIDEST_ID <= value < WIDEST_ID:
            raise BadRow(place, "the id does not fit in 64 bits; a string would do")
        if isinstance(value, str) and not _is_text(value):
            raise BadRow(place, "the id has half of a surrogate pair")
        if self._type not in (None, type(value)):
            raise BadRow(place, f"the id is {found}, those before are not")
        self._type = type(value)


def _decoded(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"{name}, line {number}", _why_no_utf8(error, line if number == 1 else b"")) from error


def _why_no_utf8(error: UnicodeDecodeError, first_line: bytes = b"") -> str:
    if first_line.startswith(UTF16_MARKS):
        return "the file is UTF-16; make it UTF-8, as iconv -f UTF-16 -t UTF-8 does"
    return f"byte {error.start + 1} (0x{error.object[error.start]:02X}) is not UTF-8"


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File(ABC):
    """A file of one kind; `name` is what messages call it."""

    name: str
    path: Path
    asked: _Asked

    def check(self) -> None:
        """See that it can be opened; a pipe, which can be only once, is left alone."""
        if self.path.is_file():
            self.path.open("rb").close()

    def count(self) -> int | None:
        return None

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """Every row from the first on. Raises BadRow, OSError."""

    @property
    def is_countable(self) -> bool:
        """Whether a look at the file as it lies there is enough, and does not use it up."""
        return self.path.is_file() and not self._is_gzipped

    @property
    def _is_gzipped(self) -> bool:
        return self.path.suffix.lower() == ".gz"

    def lines(self) -> Iterator[bytes]:
        """Every line with its end, less a byte order mark. Raises BadRow, OSError."""
        number = 0
        damage = _gzip_errors() if self._is_gzipped else ()  # not looked up when a reader is let go of as Python ends
        try:
            with self._open() as file:
                for number in count(1):
                    line = file.readline(LONGEST_LINE + 1)
                    if number == 1:
                        line = line.removeprefix(codecs.BOM_UTF8)
                    if not line:
                        return
                    if len(line) > LONGEST_LINE:
                        raise BadRow(f"{self.name}, line {number}", f"the line is longer than {LONGEST_LINE:,} bytes")
                    yield line
        except damage as error:
            raise BadRow(f"{self.name}, line {number}", f"the gzip file is damaged: {error}") from error

    def _open(self) -> IO[bytes]:
        if not self._is_gzipped:
            return self.path.open("rb", buffering=BLOCK)
        from isal import igzip

        open_gzip: Callable[..., IO[bytes]] = igzip.open
        return open_gzip(self.path, "rb")


def _gzip_errors() -> tuple[type[Exception], ...]:
    from gzip import BadGzipFile

    from isal.igzip_lib import IsalError

    isal_error: Any = IsalError  # a class, whatever its stub says
    return BadGzipFile, EOFError, isal_error


class _Text(_File):
    """A text per line."""

    def check(self) -> None:
        super().check()
        if self.asked.has_ids or self.asked.column != DEFAULT_COLUMN:
            raise InputError(f"{self.name} has no columns: every line of it is a text")

    def count(self) -> int | None:
        """The line feeds, and one for a last line without."""
        if not self.is_countable:
            return None
        feeds, last = 0, b"\n"
        with self._open() as file:
            block = file.read(BLOCK).removeprefix(codecs.BOM_UTF8)
            while block:
                feeds, last = feeds + block.count(b"\n"), block[-1:]
                block = file.read(BLOCK)
        return feeds + (last != b"\n")

    def records(self) -> Iterator[Record]:
        for number, line in enumerate(self.lines(), 1):
            text = line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")
            yield f"{self.name}, line {number}", _decoded(text, self.name, number), None


class _StandardInput(_Text):
    """What is piped in, once."""

    def _open(self) -> IO[bytes]:
        import sys

        if sys.stdin.buffer.closed:
            raise InputError("standard input can be read only once")
        # A reader of our own: Python aborts where a thread still waits for sys.stdin's when the program ends
        reader: IO[bytes] = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=BLOCK)
        sys.stdin.close()
        return reader


class _JsonLines(_File):
    """An object per line; blank lines are none."""

    def count(self) -> int | None:
        return sum(not line.isspace() for line in self.lines()) if self.is_countable else None

    def records(self) -> Iterator[Record]:
        text_name, id_name = self.asked.column, self.asked.id_column
        for number, line in enumerate(self.lines(), 1):
            if line.isspace():
                continue
            place = f"{self.name}, line {number}"
            row = json_object(_decoded(line, self.name, number), place)
            try:
                yield place, row[text_name], None if id_name is None else row[id_name]
            except KeyError as missing:
                raise BadRow(place, why_no_column(str(missing.args[0]), row)) from None


def json_object(line: str, place: str) -> dict[str, object]:
    """The object on a line of JSON Lines. Raises BadRow."""
    import json

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(place, _why_no_object(line) or f"this is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadRow(place, _why_no_object(line) or f"a row is an object, not {JSON_TYPES[type(row)]}")
    return row


def _why_no_object(line: str) -> str:
    is_array = line.lstrip().startswith("[")
    return "an array begins here; put one object on each line, as jq -c '.[]' does" if is_array else ""


def why_no_column(name: str, columns: Iterable[str]) -> str:
    """That there is no such column, and which there are."""
    return f"there is no column {name!r}; the columns are {', '.join(map(repr, columns)) or 'none'}"


class _Csv(_File):
    """Rows of fields below a header; fields in double quotes may hold line ends."""

    delimiter = ","

    def check(self) -> None:
        super().check()
        if self.path.is_file():
            self._header(self._rows())

    def records(self) -> Iterator[Record]:
        rows = self._rows()
        width, text_at, id_at = self._header(rows)
        for place, fields in rows:
            if len(fields) != width:
                raise BadRow(place, f"{len(fields)} fields are below a header of {width}")
            yield place, fields[text_at], None if id_at is None else fields[id_at]

    def _header(self, rows: Iterator[tuple[str, list[str]]]) -> tuple[int, int, int | None]:
        """How many columns there are, and which of them hold the text and the id."""
        place, names = next(rows, (f"{self.name}, line 1", []))
        text_at, *id_at = (self._index(column, names, place) for column in self.asked.columns)
        return len(names), text_at, (id_at or [text_at])[0] if self.asked.has_ids else None

    def _rows(self) -> Iterator[tuple[str, list[str]]]:
        """Every row that is not blank, with the line that it begins on."""
        import csv

        if csv.field_size_limit() < LONGEST_LINE:
            csv.field_size_limit(LONGEST_LINE)  # one for the whole process; texts are longer than what it begins with
        lines = (_decoded(line, self.name, number) for number, line in enumerate(self.lines(), 1))
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            place = f"{self.name}, line {reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadRow(place, f"the row that begins here is not CSV: {error} (line {reader.line_num})") from error
            if fields:
                yield place, fields

    @staticmethod
    def _index(name: str, header: list[str], place: str) -> int:
        if header.count(name) > 1:
            raise BadRow(place, f"there are {header.count(name)} columns {name!r}")
        if name not in header:
            raise BadRow(place, why_no_column(name, header))
        return header.index(name)


class _Tsv(_Csv):
    delimiter = "\t"


# ---- Arrow -----------------------------------------------------------------------------------------------------------


class _Parquet(_File):
    """A Parquet file, read a few rows at a time."""

    def check(self) -> None:
        with open_parquet(self.path) as file:
            _check_columns(self.name, file.schema_arrow, self.asked)

    def count(self) -> int | None:
        with open_parquet(self.path) as file:
            return int(file.metadata.num_rows)

    def records(self) -> Iterator[Record]:
        with open_parquet(self.path) as file:
            batches = file.iter_batches(batch_size=BATCH_ROWS, columns=self.asked.columns, use_threads=False)
            yield from _arrow_records(self.name, batches, self.asked)


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


def _arrow_records(name: str, batches: Iterable[Any], asked: _Asked) -> Iterator[Record]:
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
        raise BadRow(f"{name}, row {number}", _why_no_utf8(error)) from error
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


def _check_columns(name: str, schema: Any, asked: _Asked) -> None:
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
class _DataSet:
    """A `datasets.Dataset`, or an IterableDataset that is streamed."""

    name: str
    data: Any
    asked: _Asked

    def check(self) -> None:
        """A data set of the Hub that does not know its columns is checked when it is read."""
        if self.data.features is not None:
            _check_columns(self.name, self.data.features.arrow_schema, self.asked)

    def count(self) -> int | None:
        return len(self.data) if hasattr(self.data, "__len__") else None

    def records(self) -> Iterator[Record]:
        chosen = self.data.select_columns(self.asked.columns).with_format("arrow")
        try:
            yield from _arrow_records(self.name, chosen.iter(batch_size=BATCH_ROWS), self.asked)
        except KeyError as error:
            raise BadRow(self.name, f"there is no column {error}") from error


def _from_disk(folder: Path, asked: _Asked) -> _DataSet:
    if asked.config or asked.revision:
        raise InputError(f"{folder} is a data set on this disk, so it has no config or revision")
    return _DataSet(folder.name, saved_data_set(folder, asked.split), asked)


def saved_data_set(folder: Path, split: str | None) -> Any:
    """The `datasets.Dataset` that `save_to_disk` wrote, or its `split`. Raises InputError."""
    from datasets import load_from_disk

    return _split_of(str(folder), load_from_disk(str(folder)), split)


def _from_hub(name: str, asked: _Asked) -> _DataSet:
    return _DataSet(name, hub_data_set(name, asked.split, config=asked.config, revision=asked.revision), asked)


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


KINDS: Final[Mapping[str, type[_File]]] = {
    ".txt": _Text,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".json": _JsonLines,
    ".csv": _Csv,
    ".tsv": _Tsv,
    ".parquet": _Parquet,
}
