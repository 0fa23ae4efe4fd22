"""Where an input can be entered in the middle: each shard of its rows is read without the rows before it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import IO, Final, NamedTuple

from hf_xlmr.data.text_rows import Identity

__all__ = ["BEGINNING", "Cut", "Cuts", "Start", "Starts", "arrow_starts", "line_starts"]

BLOCK: Final = 1 << 14  # the line feeds of most blocks are only counted
FORMAT: Final = 1


class Start(NamedTuple):
    """Where a row of one source begins."""

    at: int
    """The byte in a file of lines; the number of the row in Arrow data."""
    line: int = 1
    """The number of the line that begins there, from 1."""


BEGINNING: Final = Start(0)


class Cut(NamedTuple):
    """Where a shard begins: the number of the source, and the place in it."""

    source: int
    at: int
    line: int


@dataclass
class Starts:
    """The starts of every n-th row of one source."""

    every: int
    skipped: int
    """How many rows are before the first start."""
    rows: int = 0
    """How many rows there are; the last is the bad one if the source is not whole."""
    is_whole: bool = True
    """Whether all rows could be told apart."""
    found: list[Start] = field(default_factory=list)

    @property
    def next_found(self) -> int:
        """The number of the next row whose start is wanted."""
        return self.skipped + len(self.found) * self.every

    def add(self, start: Start) -> None:
        """Count the next row, which begins there."""
        if self.rows == self.next_found:
            self.found.append(start)
        self.rows += 1


@dataclass(frozen=True)
class Cuts:
    """Where each `every`-th row of an input begins."""

    rows: int
    """How many rows the input has."""
    every: int
    cuts: tuple[Cut, ...]
    files: tuple[Identity | None, ...]
    """What identified the files when they were cut; None if nothing does."""
    is_whole: bool = True
    """Whether all rows could be told apart; otherwise the last one is bad."""

    def __len__(self) -> int:
        """How many shards there are."""
        return len(self.cuts)

    def rows_in(self, shard: int) -> int:
        """How many rows a shard has."""
        return min(self.every, self.rows - shard * self.every)

    def as_json(self) -> dict[str, object]:
        """The same in types of JSON."""
        cuts, files = list(map(list, self.cuts)), [None if each is None else list(each) for each in self.files]
        found = {"format": FORMAT, **asdict(self), "cuts": cuts, "files": files}
        return {**found, "sha256": _checksum(found)}

    @classmethod
    def of_json(cls, found: Mapping[str, object]) -> Cuts:
        """The cuts that `as_json` wrote. Raises ValueError if it did not write this."""
        try:
            own = {key: found[key] for key in ("format", "rows", "every", "cuts", "files", "is_whole")}
            if own["format"] != FORMAT or found["sha256"] != _checksum(own):
                raise ValueError("the cuts have another format, or are damaged")
            rows, every, *_ = numbers = _integers([found["rows"], found["every"]])
            cuts = tuple(Cut(*_integers(each)) for each in _lists(found["cuts"]))
            files = tuple(None if each is None else tuple(_listed(each)) for each in _listed(found["files"]))
        except (KeyError, TypeError) as error:
            raise ValueError("these are not cuts") from error
        if min(numbers) < 0 or every < 1 or len(cuts) != -(-rows // every):
            raise ValueError("these are not cuts")
        return cls(rows, every, cuts, files, found["is_whole"] is True)


def _checksum(found: Mapping[str, object]) -> str:
    return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def arrow_starts(rows: int, every: int, skipped: int) -> Starts:
    """The starts of every n-th of so many rows of Arrow data."""
    return Starts(every, skipped, rows, found=list(map(Start, range(skipped, rows, every))))


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _lists(value: object) -> list[list[object]]:
    return [_listed(each) for each in _listed(value)]


def _integers(values: Sequence[object]) -> list[int]:
    found = [value for value in values if type(value) is int]
    if len(found) != len(values):
        raise TypeError(values)
    return found


def line_starts(file: IO[bytes], every: int, skipped: int) -> Starts:
    """The starts of every n-th line, by line feeds alone: no line is held."""
    starts, begin, is_open = Starts(every, skipped), 0, False
    block = file.read(BLOCK)
    if block == codecs.BOM_UTF8:  # and nothing else
        return starts
    while block:
        if not is_open:  # a line begins with this block
            starts.add(Start(begin, starts.rows + 1))
        is_open = not block.endswith(b"\n")
        inner = block.count(b"\n") - (not is_open)  # after each of these, a line begins in this block
        if starts.next_found < starts.rows + inner:
            place = 0
            for _ in range(inner):
                place = block.index(b"\n", place) + 1
                starts.add(Start(begin + place, starts.rows + 1))
        else:
            starts.rows += inner
        begin, block = begin + len(block), file.read(BLOCK)
    return starts
