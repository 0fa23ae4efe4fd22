"""Fields of a text file: what delimits them, and whether quotation marks are CSV's, as the file itself shows."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from hf_xlmr.data.text_rows import LONGEST_ROW, BadRow, why_too_long

__all__ = ["DELIMITERS", "Fields", "Line", "delimited"]

Line: TypeAlias = tuple[str, str]
"""The place of a line, and the line without its end."""
Fields: TypeAlias = tuple[str, list[str]]
"""The place where a record begins, and its fields."""

DELIMITERS: Final = ("\t", ",", ";")
QUOTE: Final = '"'
REST: Final = re.compile(r'([^"]*(?:""[^"]*)*)"(?!")')  # of a field in quotation marks
NUMBER: Final = re.compile(r"[+-]?[0-9.]*")
MOST_LINES: Final = 1_000  # of a record, when a file is judged
MOST_CHARACTERS: Final = 1 << 20  # the same
ENOUGH: Final = 100  # lines against CSV, none of which is refuted
ENOUGH_COMMAS: Final = 3  # fields in quotes for their commas, as spreadsheets write tables at tabs
ESCAPED: Final = r'(?:^|{0})"(?:[^"]*\\")+[^"]*"(?:{0}|$)'  # a field in quotes of Spark or of databases
MANY_TIMES: Final = 10


def delimited(lines: Callable[[], Iterator[Line]], *, is_first: Callable[[Sequence[str]], bool]) -> Iterator[Fields]:
    """Every record that is not blank; none if no delimiter gives a first record for which `is_first` is true.

    `lines` reads the file from its start; it is read twice, in memory that does not grow with it. Quotes are CSV's, and
    are undone, if no line contradicts, and fields in quotes hold doubled quotes, delimiters or line ends, or all texts
    are in quotes, or those with commas alone, or commas or semicolons delimit; else they are characters of the texts. A
    line contradicts where a quote is in a field without quotes around it, is followed by text, or is never closed.

    Raises BadRow if both kinds of lines are in a file, unless nearly all contradict, for quotes behind backslashes,
    and for records not of CSV.
    """
    for delimiter in DELIMITERS:
        plain = next((line.split(delimiter) for _, line in lines() if line), [])
        quoted = _first_of_csv(lines(), delimiter)
        is_plain = is_first(plain)
        if not is_plain and not is_first(quoted):
            continue
        width = len(plain) if is_plain else len(quoted)
        evidence = _Judge(lines(), delimiter, width).evidence()
        if evidence.is_csv(is_plain=is_plain, is_usual=delimiter != "\t"):
            return _csv_records(lines(), delimiter)
        return ((place, line.split(delimiter)) for place, line in lines() if line)
    return iter(())


def _first_of_csv(lines: Iterator[Line], delimiter: str) -> list[str]:
    """The first record if it is CSV and not long."""
    record, characters = _Record(delimiter), 0
    for _, (_, line) in zip(range(MOST_LINES), lines, strict=False):
        characters += len(line)
        if characters > MOST_CHARACTERS:
            break
        try:
            if (line or record.is_open) and record.take(line):
                return record.fields
        except _NotCsvError:
            break
    return []


# ---- a record of CSV -------------------------------------------------------------------------------------------------


class _NotCsvError(Exception):
    """A quotation mark at a place where CSV has none."""


class _Record:
    """The fields of a record, out of the lines that it is written in."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self._open: list[str] = []
        self.fields: list[str] = []
        self.needs_quotes = False
        """Whether a field in quotation marks has one inside, doubled, or a carriage return."""
        self.is_quoted = True
        """Whether all fields but numbers are in quotation marks."""
        self.for_commas: list[bool] = []
        """For each field in quotation marks, whether there is a comma inside."""
        self.has_bare_comma = False
        """Whether there is a comma in another field."""

    @property
    def is_open(self) -> bool:
        """Whether a field continues in the next line."""
        return bool(self._open)

    def take(self, line: str) -> bool:
        """Read one more line; whether the record ends with it. Raises _NotCsvError."""
        at = 0
        while True:
            if self._open or line.startswith(QUOTE, at):
                end = self._quoted(line, at if self._open else at + 1)
            else:
                end = self._plain(line, at)
            if end is None:
                return False
            if end == len(line):
                return True
            if line[end] != self._delimiter:
                raise _NotCsvError
            at = end + 1

    def _quoted(self, line: str, at: int) -> int | None:
        found = REST.match(line, at)
        if found is None:
            self._open.append(line[at:])
            return None
        self._open.append(found[1])
        content, self._open = "\n".join(self._open), []
        self.needs_quotes |= QUOTE in content or "\r" in content
        self.for_commas.append("," in content)
        self.fields.append(content.replace(QUOTE * 2, QUOTE))
        return found.end()

    def _plain(self, line: str, at: int) -> int:
        end = line.find(self._delimiter, at)
        end = len(line) if end < 0 else end
        field = line[at:end]
        if QUOTE in field:
            raise _NotCsvError
        self.is_quoted &= NUMBER.fullmatch(field) is not None
        self.has_bare_comma |= "," in field
        self.fields.append(field)
        return end


def _csv_records(lines: Iterator[Line], delimiter: str) -> Iterator[Fields]:
    record, begun, size = _Record(delimiter), "", 0
    for place, line in lines:
        if not record.is_open:
            if QUOTE not in line:
                if line:
                    yield place, line.split(delimiter)
                continue
            record, begun, size = _Record(delimiter), place, 0
        size += len(line) + 1
        if size > LONGEST_ROW:
            raise BadRow(begun, why_too_long("the row that begins here", LONGEST_ROW))
        try:
            is_whole = record.take(line)
        except _NotCsvError:
            raise BadRow(place, "a quotation mark is where the CSV of the other lines has none") from None
        if is_whole:
            yield begun, record.fields
    if record.is_open:
        raise BadRow(begun, "a quotation mark in the row that begins here is never closed")


# ---- whether a file is CSV -------------------------------------------------------------------------------------------


@dataclass
class _Evidence:
    """Which lines of a file speak for quotation marks of CSV, and which against."""

    n_for: int = 0
    n_against: int = 0
    first_for: str = ""
    first_against: str = ""
    has_quotes: bool = False
    is_quoted: bool = True
    """Whether all fields but numbers are in quotation marks."""
    n_commas: int = 0
    """Fields in quotation marks with a comma inside."""
    is_for_commas: bool = True
    """Whether these are all fields in quotation marks, and all fields with a comma."""
    n_escaped: int = 0
    """Lines against CSV for a backslash before a quotation mark."""

    def add_fields(self, record: _Record) -> None:
        """Note which fields are in quotation marks."""
        self.has_quotes = True
        self.is_quoted &= record.is_quoted
        self.n_commas += sum(record.for_commas)
        self.is_for_commas &= all(record.for_commas) and not record.has_bare_comma

    def add(self, place: str, *, is_for: bool) -> None:
        """Count a line."""
        if is_for:
            self.n_for += 1
            self.first_for = self.first_for or place
        else:
            self.n_against += 1
            self.first_against = self.first_against or place

    def is_csv(self, *, is_plain: bool, is_usual: bool) -> bool:
        """The verdict. Raises BadRow if lines of both kinds are in the file.

        `is_plain` says that the first record is known with its quotes, `is_usual` that the delimiter is one of CSV's.
        """
        if not self.n_against:
            is_for_commas = self.is_for_commas and self.n_commas >= ENOUGH_COMMAS
            return self.n_for > 0 or (self.has_quotes and (self.is_quoted or is_for_commas or is_usual or not is_plain))
        if self.n_escaped == self.n_against:
            raise BadRow(
                self.first_against,
                "a backslash is before a quotation mark in a field in quotation marks, which CSV has doubled "
                "there; write the file so",
            )
        if is_plain and self.n_against > MANY_TIMES * self.n_for:
            return False
        where = self.first_for or "the first line"
        raise BadRow(
            self.first_against,
            f"a quotation mark is a character of the text here, and {where} is quoted as CSV; write the file so that "
            "all of it is the one or the other",
        )


class _Judge:
    """Reads a file, and again the lines that a quotation mark seemed to join."""

    def __init__(self, lines: Iterator[Line], delimiter: str, width: int) -> None:
        self._lines, self._delimiter, self._width = lines, delimiter, width
        self._again: deque[Line] = deque()
        self._found = _Evidence()
        self._escaped = re.compile(ESCAPED.format(re.escape(delimiter)))

    def evidence(self) -> _Evidence:
        """What the file says, as far as it must be read."""
        found = self._found
        while (line := self._next()) is not None and (found.n_for or found.n_against < ENOUGH):
            if QUOTE in line[1]:
                self._weigh([line])
                continue
            if found.is_quoted:
                found.is_quoted = all(NUMBER.fullmatch(each) for each in line[1].split(self._delimiter))
            found.is_for_commas = found.is_for_commas and "," not in line[1]
        return found

    def _next(self) -> Line | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _weigh(self, several: list[Line]) -> None:
        """Count the record that begins with the one line of `several`, for CSV or against it."""
        record = _Record(self._delimiter)
        is_csv = self._is_whole(record, several)
        fits = is_csv and len(record.fields) == self._width
        fits_plainly = all(line.count(self._delimiter) + 1 == self._width for _, line in several)
        is_joined = len(several) > 1
        if fits and not (fits_plainly and is_joined):
            self._found.add_fields(record)
            if record.needs_quotes or not fits_plainly:
                self._found.add(several[0][0], is_for=True)
        elif not is_csv or fits_plainly or is_joined:
            self._found.add(several[0][0], is_for=False)
            self._found.n_escaped += self._escaped.search(several[0][1]) is not None
            self._again.extendleft(reversed(several[1:]))

    def _is_whole(self, record: _Record, several: list[Line]) -> bool:
        """Whether a record of CSV begins with the line of `several`; the lines on which it continues are added."""
        characters = 0
        try:
            while not record.take(several[-1][1]):
                characters += len(several[-1][1])
                following = self._next()
                if following is None:
                    return False
                several.append(following)
                if characters > MOST_CHARACTERS or len(several) > MOST_LINES:
                    return False
        except _NotCsvError:
            return False
        return True
