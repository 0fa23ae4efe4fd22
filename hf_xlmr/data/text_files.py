"""Texts of files and data sets, one after another: streamed in their order, with the place of each for messages."""

from __future__ import annotations

import codecs
import glob
import json
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Protocol

from hf_xlmr.data.arrow_files import errors_of_arrow
from hf_xlmr.data.arrow_texts import (
    ParquetRows,
    arrow_records,
    check_columns,
    data_set_of_hub,
    data_set_on_disk,
    open_parquet,
)
from hf_xlmr.data.cuts import BEGINNING, Cut, Cuts, Start, Starts, arrow_starts, line_starts
from hf_xlmr.data.remote_files import RemoteFile, is_url, remote_place
from hf_xlmr.data.sections import opened_part
from hf_xlmr.data.text_rows import (
    DEFAULT_COLUMN,
    LONGEST_LINE,
    LONGEST_ROW,
    Asked,
    BadRow,
    Identity,
    Ids,
    Record,
    TextRow,
    checked_text,
    content_of,
    decoded,
    identity,
    json_object,
    latest_identity,
    unchanged,
    why_no_column,
    why_too_long,
)
from hf_xlmr.errors import InputError, told_plainly

__all__ = ["PACKED", "STANDARD_INPUT", "TextInput", "is_hub_name", "kind_name", "open_texts", "text_lines"]

STANDARD_INPUT: Final = "-"
BLOCK: Final = 1 << 20
LONGEST_END: Final = b"\r\n"  # of a line
HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")


class _Source(Protocol):
    """One of the files, or the data set, that an input consists of."""

    @property
    def asked(self) -> Asked:
        """What is read of it."""

    @property
    def paths(self) -> tuple[Path | RemoteFile, ...]:
        """Its files, as far as they are known."""

    def check(self) -> None:
        """Raise InputError if it is plain beforehand that no row can be read."""

    @property
    def has_starts(self) -> bool:
        """Whether it can be entered in the middle."""

    def starts(self, every: int, skipped: int) -> Starts:
        """Where the row after the `skipped` first, and each `every`-th after it, begins. Raises OSError."""

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        """Every row from `start` on, at least up to `end`, where another of its starts is. Raises BadRow, OSError."""


@dataclass(frozen=True)
class TextInput:
    """The texts of an input in their order; each iteration reads the input again, in bounded memory."""

    name: str
    sources: tuple[_Source, ...]
    has_ids: bool = False
    is_repeatable: bool = True
    """Whether it can be read twice, which standard input and pipes cannot."""

    @property
    def has_languages(self) -> bool:
        """Whether each row names its language."""
        return any(source.asked.language_column is not None for source in self.sources)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of this disk that it consists of."""
        return tuple(path for path in self._files if isinstance(path, Path))

    @property
    def _files(self) -> tuple[Path | RemoteFile, ...]:
        return tuple(path for source in self.sources for path in source.paths)

    def __iter__(self) -> Iterator[TextRow]:
        """Every row, each checked when it is reached. Raises BadRow, InputError."""
        with told_plainly():
            yield from self._checked(self._records(), Ids(), first=0)

    def _records(self) -> Iterator[Record]:
        for source in self.sources:
            with unchanged(source.paths):
                yield from source.records()

    def _checked(self, records: Iterator[Record], ids: Ids, *, first: int) -> Iterator[TextRow]:
        has_languages = self.has_languages
        for number, (place, text, id_, named) in enumerate(records, first):
            text = checked_text(place, text)
            if self.has_ids:
                ids.check(place, id_)
            language = checked_text(place, named, what="the language") if has_languages else None
            yield TextRow(number, place, text, id_, language)

    def fingerprint(self) -> str | None:
        """A checksum that changes with the files and with what is read of them; None if nothing identifies them."""
        with told_plainly():
            files = self._identities()
        if None in files or any(not source.paths for source in self.sources):
            return None
        asked = [(type(source).__name__, *source.asked.what) for source in self.sources]
        return sha256(json.dumps([asked, files]).encode()).hexdigest()

    def is_cut_by(self, cuts: Cuts) -> bool:
        """Whether these are cuts of the files as they are now."""
        return [content_of(each) for each in cuts.files] == [content_of(each) for each in self._identities()]

    def _identities(self) -> tuple[Identity | None, ...]:
        return tuple(map(identity, self._files))

    @cached_property
    def has_cuts(self) -> bool:
        """Whether the input can be entered in the middle."""
        with told_plainly():
            return all(source.has_starts for source in self.sources)

    def cuts(self, every: int) -> Cuts | None:
        """Where each `every`-th row begins, found in one pass; None if the input cannot be entered in the middle.

        A row that cannot be told from what follows it is the last one. Raises InputError.
        """
        if not self.has_cuts:
            return None
        files, rows, found, is_whole = self._identities(), 0, list[Cut](), True
        with told_plainly():
            for number, source in enumerate(self.sources):
                with unchanged(source.paths):
                    part = source.starts(every, -rows % every)
                found += [Cut(number, *start) for start in part.found]
                rows += part.rows
                is_whole = part.is_whole
                if not is_whole:
                    break
        return Cuts(rows, every, tuple(found), files, is_whole)

    def rows_of(self, cuts: Cuts, shard: int) -> Iterator[TextRow]:
        """The rows of one shard, as iterating over all gives them; reads no other part of the input.

        Raises BadRow, InputError, also if a file is not the one that was cut.
        """
        with told_plainly():
            yield from self._checked(self._records_of(cuts, shard), Ids(self._id_type), first=shard * cuts.every)

    @cached_property
    def _id_type(self) -> type | None:
        """The type of the first id, and so of all."""
        return type(next(iter(self)).id) if self.has_ids else None

    def _records_of(self, cuts: Cuts, shard: int) -> Iterator[Record]:
        begin, *after = cuts.cuts[shard : shard + 2]
        start, left, files = Start(begin.at, begin.line), cuts.rows_in(shard), iter(cuts.files)
        for number, source in enumerate(self.sources):
            known = list(islice(files, len(source.paths)))
            if left and number >= begin.source:
                end = after[0].at if after and after[0].source == number else None
                with unchanged(source.paths, known):
                    for record in islice(source.records(start, end), left):
                        left -= 1
                        yield record
                start = BEGINNING


def open_texts(
    source: str | Path,
    *,
    column: str = DEFAULT_COLUMN,
    id_column: str | None = None,
    language_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    max_row_size: int = LONGEST_ROW,
) -> TextInput:
    """The texts of a file, a folder, a pattern such as `texts/*.jsonl`, a data set, or standard input (`-`).

    The ending says the kind of a file: `.txt` (a text per line), `.jsonl`, `.ndjson` and `.json` (an object per
    line), `.csv` and `.tsv` (with a header), `.parquet`; all but the last may also be compressed (`.gz`, `.zst`). Only
    a line feed ends a line, with or without a carriage return before it. A folder is what `Dataset.save_to_disk` wrote,
    or files of one kind, taken in the order of their names. A URL such as `hf://datasets/owner/name/*.parquet` or
    `s3://bucket/texts.jsonl` is read through fsspec, if the package for it is installed; patterns and folders too, if
    they can be listed there. What is neither, and looks like `owner/name`, is streamed from the Hub by
    `datasets.load_dataset`, which alone knows `config` and `revision`; `split` is for data sets. `column` holds the
    text, `id_column` what is copied to the output, and `language_column` the language of each row. A line, a record of
    CSV or a value of Arrow beyond `max_row_size` bytes is a bad row: memory stays bounded, whatever a small file
    unfolds to.

    Raises InputError, also for columns that a header, schema or data set does not have.
    """
    asked = Asked(column, id_column, split, config, revision, max_row_size, language_column)
    with told_plainly():
        opened = _opened(str(source), asked)
        for each in opened.sources:
            each.check()
    return opened


def text_lines(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Every line of a file in UTF-8, gzipped or not, without its end, and its place. Raises BadRow, OSError."""
    return ((place, str(line)) for place, line, *_ in _Text(name, path, Asked(max_row_size=LONGEST_LINE)).records())


def _opened(source: str, asked: Asked) -> TextInput:
    path = Path(source)
    if source == STANDARD_INPUT:
        return _from_files(source, [_StandardInput("standard input", Path(), asked)], asked)
    if is_url(source):
        return _from_url(source, asked)
    if path.is_dir():
        return _from_folder(path, asked)
    if path.exists():
        return _from_files(source, [_file(path, path.name, asked)], asked)
    if found := sorted(glob.glob(source)):  # noqa: PTH207  # that of Path takes no absolute pattern
        return _from_files(source, [_file(Path(each), each, asked) for each in found], asked)
    if is_hub_name(source):
        return TextInput(source, (data_set_of_hub(source, asked),), asked.has_ids)
    raise InputError(f"{source} does not exist")


def is_hub_name(source: str) -> bool:
    """Whether what does not exist here can be a data set of the Hub, and not a file that was misspelt."""
    path = Path(source)
    return bool(HUB_ID.fullmatch(source)) and kind_name(path) not in KINDS and not path.parent.exists()


def _from_files(name: str, files: list[_File], asked: Asked) -> TextInput:
    if asked.split or asked.config or asked.revision:
        raise InputError(f"{name} is not a data set, so it has no split, config or revision")
    is_repeatable = all(file.path.is_file() for file in files)
    return TextInput(name, tuple(files), asked.has_ids, is_repeatable)


def _from_folder(folder: Path, asked: Asked) -> TextInput:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return TextInput(str(folder), (data_set_on_disk(folder, asked),), asked.has_ids)
    return _from_listed(str(folder), [path for path in sorted(folder.iterdir()) if path.is_file()], asked)


def _from_listed(folder: str, paths: Sequence[Path | RemoteFile], asked: Asked) -> TextInput:
    """The files of a known kind in a folder."""
    known = [path for path in paths if kind_name(path) in KINDS and not path.name.startswith(".")]
    kinds = sorted({kind_name(path) for path in known})
    if not known:
        raise InputError(f"{folder} holds no data set and none of the files {_kinds_listed()}")
    if len(kinds) > 1:
        raise InputError(
            f"{folder} holds files of several kinds ({', '.join(kinds)}); say which, as {folder}/*{kinds[0]}"
        )
    return _from_files(folder, [_file(path, path.name, asked) for path in known], asked)


def _from_url(url: str, asked: Asked) -> TextInput:
    place = remote_place(url)
    if isinstance(place, str):  # file://
        return _opened(place, asked)
    if place.is_pattern:
        found = place.matches()
        if not found:
            raise InputError(f"{place.name} matches no file")
        return _from_files(place.name, [_file(each, str(each), asked) for each in found], asked)
    if place.is_folder(is_named_as_file=kind_name(place.file) in KINDS):
        return _from_listed(place.name.rstrip("/"), place.listed(), asked)
    return _from_files(place.name, [_file(place.file, place.file.name, asked)], asked)


def _file(path: Path | RemoteFile, name: str, asked: Asked) -> _File:
    kind = KINDS.get(kind_name(path))
    if kind is None:
        raise InputError(f"{path} is of no known kind; texts are read from {_kinds_listed()}")
    return kind(name, path, asked)


def kind_name(path: Path | RemoteFile) -> str:
    """The ending that says the kind of a file: the one before `.gz` or `.zst`, which Parquet has no use for."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    is_packed = endings[-1:] != endings[:1] and endings[-1] in PACKED
    kind = endings[0] if is_packed else "".join(endings[-1:])
    return "" if kind == ".parquet" and is_packed else kind


def _kinds_listed() -> str:
    zipped = [name for name in KINDS if name != ".parquet"]
    return f"{', '.join(zipped)} (also with .gz or .zst) and .parquet"


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File(ABC):
    """A file of one kind; `name` is what messages call it."""

    name: str
    path: Path | RemoteFile
    asked: Asked

    @property
    def paths(self) -> tuple[Path | RemoteFile, ...]:
        return (self.path,)

    def check(self) -> None:
        """See that it can be opened; a pipe, which can be only once, is left alone."""
        if self.path.is_file():
            self.path.open("rb").close()

    @abstractmethod
    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        """Every row from `start` on, at least up to `end`. Raises BadRow, OSError."""

    @property
    def has_starts(self) -> bool:
        """Whether a look at the file does not use it up, and its bytes are those of its lines."""
        if isinstance(self.path, RemoteFile) and not (self.path.is_random and self.path.identity()):
            return False  # what nothing identifies may change between two looks
        return self.path.is_file() and self._packing is None

    def starts(self, every: int, skipped: int) -> Starts:
        """Where every n-th row begins. Raises OSError."""
        found = Starts(every, skipped)
        try:
            for start in self._row_starts():
                found.add(start)
        except BadRow:  # which is for whoever reads that row
            found.is_whole = False
        return found

    def _row_starts(self) -> Iterator[Start]:
        """Where each row begins, a bad one too. Raises BadRow after the start of one that has no end, OSError."""
        raise NotImplementedError

    @property
    def _packing(self) -> _Packing | None:
        return PACKED.get(self.path.suffix.lower())

    def lines(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[tuple[Start, bytes]]:
        """Every line with its end, less a byte order mark, and where it begins. Raises BadRow, OSError."""
        (at, number), most = start, self.asked.max_row_size
        packing = self._packing
        damage = packing.errors() if packing else ()  # not looked up when a reader is let go of as Python ends
        try:
            with self._open(at, end) as file:
                while line := file.readline(most + len(LONGEST_END) + 1 + (len(codecs.BOM_UTF8) if at == 0 else 0)):
                    if at == 0 and line.startswith(codecs.BOM_UTF8):
                        at, line = at + len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
                        if not line:
                            return
                    if len(line) > most and len(_without_end(line)) > most:
                        raise BadRow(f"{self.name}, line {number}", why_too_long("the line", most))
                    yield Start(at, number), line
                    at, number = at + len(line), number + 1
        except damage as error:
            if packing is None or (isinstance(error, OSError) and error.errno is not None):  # the system's own
                raise
            raise BadRow(f"{self.name}, line {number}", f"the {packing.name} file is damaged: {error}") from error

    def _open(self, start: int = 0, end: int | None = None) -> IO[bytes]:
        if self._packing is not None:
            return self._packing.opened(self.path)
        return opened_part(self.path.open("rb", buffering=0), start, end)


def _without_end(line: bytes) -> bytes:
    return line[:-2] if line.endswith(LONGEST_END) else line.removesuffix(b"\n")


@dataclass(frozen=True)
class _Packing:
    """A form of compressed files."""

    name: str
    opened: Callable[[Path | RemoteFile], IO[bytes]]
    errors: Callable[[], tuple[type[Exception], ...]]
    """What damage raises."""


def _opened_gzip(path: Path | RemoteFile) -> IO[bytes]:
    from isal import igzip

    open_gzip: Callable[..., IO[bytes]] = igzip.open
    return open_gzip(path if isinstance(path, Path) else opened_part(path.open()), "rb")


def _gzip_errors() -> tuple[type[Exception], ...]:
    from gzip import BadGzipFile

    from isal.igzip_lib import IsalError

    isal_error: Any = IsalError  # a class, whatever its stub says
    return BadGzipFile, EOFError, isal_error


def _opened_zstd(path: Path | RemoteFile) -> IO[bytes]:
    import pyarrow

    return opened_part(pyarrow.CompressedInputStream(opened_part(path.open("rb", buffering=0)), "zstd"))


PACKED: Final[Mapping[str, _Packing]] = {
    ".gz": _Packing("gzip", _opened_gzip, _gzip_errors),
    ".zst": _Packing("zstd", _opened_zstd, errors_of_arrow),
}


class _Text(_File):
    """A text per line."""

    def check(self) -> None:
        super().check()
        asked = self.asked
        if asked.has_ids or asked.language_column is not None or asked.column != DEFAULT_COLUMN:
            raise InputError(f"{self.name} has no columns: every line of it is a text")

    def starts(self, every: int, skipped: int) -> Starts:
        """Where every n-th line begins."""
        with self._open() as file:
            return line_starts(file, every, skipped)

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        for (_, number), line in self.lines(start, end):
            yield f"{self.name}, line {number}", decoded(_without_end(line), self.name, number), None, None


class _StandardInput(_Text):
    """What is piped in, once."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return ()

    def check(self) -> None:
        super().check()
        if sys.stdin is None:
            raise InputError("standard input is closed: pipe texts into it, or give a file")

    def _open(self, start: int = 0, end: int | None = None) -> IO[bytes]:
        if sys.stdin is None or sys.stdin.buffer.closed:
            raise InputError("standard input can be read only once")
        # A reader of our own: Python aborts if a thread still waits for sys.stdin's when the program ends
        reader: IO[bytes] = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=BLOCK)
        sys.stdin.close()
        return reader


class _JsonLines(_File):
    """An object per line; blank lines are none."""

    def _row_starts(self) -> Iterator[Start]:
        following = BEGINNING
        try:
            for start, line in self.lines():
                following = Start(start.at + len(line), start.line + 1)
                if not line.isspace():
                    yield start
        except BadRow:
            yield following
            raise

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        for (_, number), line in self.lines(start, end):
            if not line.isspace():
                yield self._record(f"{self.name}, line {number}", decoded(line, self.name, number))

    def _record(self, place: str, line: str) -> Record:
        """Text, id and language alone: what else an object holds can take fifty times the memory of its line."""
        asked, row = self.asked, json_object(line, place)
        id_, language = asked.id_column, asked.language_column
        try:
            return (
                place,
                row[asked.column],
                None if id_ is None else row[id_],
                None if language is None else row[language],
            )
        except KeyError as missing:
            raise BadRow(place, why_no_column(str(missing.args[0]), row)) from None


class _Csv(_File):
    """Rows of fields below a header; fields in double quotes may hold line ends."""

    delimiter = ","

    def check(self) -> None:
        super().check()
        if self.path.is_file():
            self._header(self._rows())

    def _row_starts(self) -> Iterator[Start]:
        lines = _CsvLines(self)
        try:
            for _ in islice(self._fields(lines), 1, None):
                yield lines.start
        except BadRow:
            yield lines.start
            raise

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        rows = self._rows(start, end)
        width, found = self._header(rows) if start == BEGINNING else self._known_header
        places = [None if at is None else found[at] for at in self.asked.places]
        for place, fields in rows:
            if len(fields) != width:
                raise BadRow(place, f"{len(fields)} fields are below a header of {width}")
            text, id_, language = (None if at is None else fields[at] for at in places)
            yield place, text, id_, language

    @cached_property
    def _known_header(self) -> tuple[int, list[int]]:
        return self._header(self._rows())

    def _header(self, rows: Iterator[tuple[str, list[str]]]) -> tuple[int, list[int]]:
        """How many columns there are, and which of them are those that are read."""
        place, names = next(rows, (f"{self.name}, line 1", []))
        return len(names), [self._index(column, names, place) for column in self.asked.columns]

    def _rows(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[tuple[str, list[str]]]:
        """Every row that is not blank, with the line that it begins on."""
        lines = _CsvLines(self, start, end)
        return ((lines.place, fields) for fields in self._fields(lines))

    def _fields(self, lines: _CsvLines) -> Iterator[list[str]]:
        import csv

        most, before = self.asked.max_row_size, lines.start.line - 1
        if csv.field_size_limit() < most:
            csv.field_size_limit(most)  # one for the whole process; texts are longer than what it begins with
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            lines.begin()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                why = f"the row that begins here is not CSV: {error} (line {before + reader.line_num})"
                raise BadRow(lines.place, why) from error
            if fields:
                yield fields

    @staticmethod
    def _index(name: str, header: list[str], place: str) -> int:
        if header.count(name) > 1:
            raise BadRow(place, f"there are {header.count(name)} columns {name!r}")
        if name not in header:
            raise BadRow(place, why_no_column(name, header))
        return header.index(name)


class _CsvLines:
    """The lines of a file for a reader of CSV, of which those of one record must not be too many bytes."""

    def __init__(self, file: _File, start: Start = BEGINNING, end: int | None = None) -> None:
        self.start = self._following = start
        """Where the record begins."""
        self._name, self._most = file.name, file.asked.max_row_size
        self._lines = file.lines(start, end)
        self._bytes = 0

    @property
    def place(self) -> str:
        """The place of the record."""
        return f"{self._name}, line {self.start.line}"

    def begin(self) -> None:
        """What follows is of the next record."""
        self.start, self._bytes = self._following, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        start, line = next(self._lines)
        if self._bytes + len(_without_end(line)) > self._most:
            raise BadRow(self.place, why_too_long("the row that begins here", self._most))
        self._bytes += len(line)
        self._following = Start(start.at + len(line), start.line + 1)
        return decoded(line, self._name, start.line)


class _Tsv(_Csv):
    delimiter = "\t"


# ---- Arrow -----------------------------------------------------------------------------------------------------------


class _Parquet(_File):
    """A Parquet file, read a few rows at a time."""

    def check(self) -> None:
        with open_parquet(self.path) as file:
            check_columns(self.name, file.schema_arrow, self.asked)

    def starts(self, every: int, skipped: int) -> Starts:
        with open_parquet(self.path) as file:
            return arrow_starts(int(file.metadata.num_rows), every, skipped)

    def records(self, start: Start = BEGINNING, end: int | None = None) -> Iterator[Record]:
        rows = self._left_open() or ParquetRows(self.path, self.name, self.asked.columns)
        try:
            yield from arrow_records(self.name, rows.batches(start.at), self.asked, first=start.at)
        except GeneratorExit:  # at the end of a shard
            self.asked.left_open[:] = [rows]
            raise

    def _left_open(self) -> ParquetRows | None:
        """What reads this file, if it was left open at the end of a shard."""
        with suppress(IndexError):
            rows = self.asked.left_open.pop()
            if isinstance(rows, ParquetRows) and rows.path == self.path:
                return rows if rows.identity == content_of(latest_identity(self.path)) else None
        return None


KINDS: Final[Mapping[str, type[_File]]] = {
    ".txt": _Text,
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".json": _JsonLines,
    ".csv": _Csv,
    ".tsv": _Tsv,
    ".parquet": _Parquet,
}
