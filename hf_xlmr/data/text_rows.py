"""What a row of an input must be to give a text, and what is said of one that is not."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, TypeGuard

from hf_xlmr.data.remote_files import RemoteFile
from hf_xlmr.errors import InputError, printable

__all__ = [
    "DEFAULT_COLUMN",
    "JSON_TYPES",
    "LONGEST_LINE",
    "LONGEST_ROW",
    "Asked",
    "BadRow",
    "Identity",
    "Ids",
    "Record",
    "TextRow",
    "checked_text",
    "content_of",
    "decoded",
    "identity",
    "json_object",
    "latest_identity",
    "unchanged",
    "why_no_column",
    "why_no_utf8",
    "why_too_long",
]

DEFAULT_COLUMN: Final = "text"
LONGEST_ROW: Final = 16_000_000  # bytes of a line, or of a value if there are no lines: memory must hold it often
LONGEST_LINE: Final = 1 << 28  # of files that are read as a whole, such as SQuAD's, whose one line is the file
WIDEST_ID: Final = 1 << 63
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

Identity: TypeAlias = Sequence[object]
Record = tuple[str, object, object, object]  # a row as it is found: its place; its text, id and language, unchecked


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
    """The number of the row in the whole input, from 0."""
    place: str
    """The name of the place in messages, such as `texts.txt, line 17`."""
    text: str
    id: object | None = None
    """A string or an integer of 64 bits; None if no column of ids was asked for."""
    language: str | None = None
    """None if no column of languages was asked for."""


@dataclass(frozen=True)
class Asked:
    """What of an input is wanted."""

    column: str = DEFAULT_COLUMN
    id_column: str | None = None
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    max_row_size: int = LONGEST_ROW
    """Bytes of a line, or of a value if there are no lines."""
    language_column: str | None = None
    left_open: list[object] = field(default_factory=list, compare=False, repr=False)
    """What reads a Parquet file, at most one, from the end of a shard to the beginning of the next."""

    @property
    def columns(self) -> list[str]:
        """The names that are read, each once."""
        names = (self.column, self.id_column, self.language_column)
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def places(self) -> tuple[int, int | None, int | None]:
        """Where among `columns` the text, the id and the language are."""
        names = self.columns
        id_at, language_at = (
            None if name is None else names.index(name) for name in (self.id_column, self.language_column)
        )
        return 0, id_at, language_at

    @property
    def what(self) -> tuple[str | None, ...]:
        """What the rows depend on, besides the files."""
        languages = () if self.language_column is None else (self.language_column,)
        return self.column, self.id_column, self.split, *languages

    @property
    def has_ids(self) -> bool:
        """Whether a column of ids was asked for."""
        return self.id_column is not None


@contextmanager
def unchanged(paths: Sequence[Path | RemoteFile], known: Sequence[Identity | None] | None = None) -> Iterator[None]:
    """Raise InputError if a file is not the same at the end of the block as it was at its beginning, or as `known`.

    A pipe, which cannot be looked at without being used up, is not watched.
    """
    before = [content_of(each) for each in (map(identity, paths) if known is None else known)]
    if known is not None:
        _raise_if_changed(paths, before, None)
    try:
        yield
    except (InputError, OSError) as error:
        _raise_if_changed(paths, before, error)
        raise
    _raise_if_changed(paths, before, None)


def _raise_if_changed(
    paths: Sequence[Path | RemoteFile], before: Sequence[Identity | None], error: Exception | None
) -> None:
    for path, known in zip(paths, before, strict=True):
        if known is not None and content_of(identity(path)) != known:
            why = "changed while it was read; give an input that stays as it is until the end"
            raise InputError(printable(f"{path} {why}")) from error


def identity(path: Path | RemoteFile) -> Identity | None:
    """What changes with a file; None if it is not a regular file, or is gone, or its file system says nothing."""
    if isinstance(path, RemoteFile):
        return path.identity()
    try:
        found = os.stat(path)  # noqa: PTH116  # in one call
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def latest_identity(path: Path | RemoteFile) -> Identity | None:
    """The `identity`; of a file that is elsewhere what it was when that was asked for last."""
    return path.seen[0] if isinstance(path, RemoteFile) and path.seen else identity(path)


def content_of(found: Identity | None) -> Identity | None:
    """The part of an identity that only another content changes: another name or mode changes the time of the inode."""
    return None if found is None else tuple(found[:3])


def checked_text(place: str, value: object, *, what: str = "the text") -> str:
    """`value`, which must be a text that can be written as UTF-8. Raises BadRow."""
    if not is_text(value):
        raise BadRow(place, _why_no_text(value, what))
    return value


def is_text(value: object) -> TypeGuard[str]:
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


class Ids:
    """Sees to it that ids are all strings or all integers, as one column of the output must be."""

    def __init__(self, kind: type | None = None) -> None:
        """See to it that they are of this type, or else of that of the first one."""
        self._type = kind

    def check(self, place: str, value: object) -> None:
        """Raise BadRow if an id is neither, or not what those before were."""
        found = JSON_TYPES.get(type(value), type(value).__name__)
        if type(value) not in (str, int):
            raise BadRow(place, f"the id is {found}, neither a string nor an integer")
        if isinstance(value, int) and not -WIDEST_ID <= value < WIDEST_ID:
            raise BadRow(place, "the id does not fit in 64 bits; a string would do")
        if isinstance(value, str) and not is_text(value):
            raise BadRow(place, "the id has half of a surrogate pair")
        if self._type not in (None, type(value)):
            raise BadRow(place, f"the id is {found}, those before are not: make all of them strings")
        self._type = type(value)


def decoded(line: bytes, name: str, number: int) -> str:
    """A line as text; `number` counts the lines of the file called `name` from 1. Raises BadRow."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadRow(f"{name}, line {number}", why_no_utf8(error, line if number == 1 else b"")) from error


def why_no_utf8(error: UnicodeDecodeError, first_line: bytes = b"") -> str:
    """The sentence about bytes that are not text; `first_line`, if the error is in it, can show UTF-16."""
    if first_line.startswith(UTF16_MARKS):
        return "the file is UTF-16; make it UTF-8, as iconv -f UTF-16 -t UTF-8 does"
    return f"byte {error.start + 1} (0x{error.object[error.start]:02X}) is not UTF-8"


def why_too_long(what: str, most: int) -> str:
    """The sentence that a line or value is longer than a row may be."""
    return f"{what} is longer than {most:,} bytes, the most that a row may have (max_row_size)"


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
    """The sentence that there is no such column, with those that there are."""
    return f"there is no column {name!r}; the columns are {', '.join(map(repr, columns)) or 'none'}"
