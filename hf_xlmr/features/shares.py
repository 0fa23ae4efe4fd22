"""How a process gets the rows of its shards: from its part of the input, or from the process that reads a stream."""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Final

from hf_xlmr.data.cuts import Cuts
from hf_xlmr.data.text_files import TextInput
from hf_xlmr.data.text_rows import TextRow
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.features.processes import Processes
from hf_xlmr.features.store.records import (
    CUTS,
    LOCK,
    STATE,
    TEMPORARY,
    ShardRecord,
    read_record,
    scratch,
    write_record,
)
from hf_xlmr.features.store.shards import Shards, TextsDigest
from hf_xlmr.files.fsync import told_with_place
from hf_xlmr.files.locks import locked

__all__ = ["Passed", "ShardRows", "Share", "cuts_of", "own_cuts", "share_of"]

AHEAD: Final = 2  # shards of each process that are handed out before it takes them
POLL_SECONDS: Final = 0.05
LOOKS: Final = 100  # before a process asks whether the first one is still there
PATIENCE_SECONDS: Final = 2.0  # for a thread that may wait for a silent pipe
END: Final = f"rows.end{TEMPORARY}"


@dataclass(frozen=True, slots=True)
class Passed:
    """The rows of a shard that an earlier run made."""

    rows: int


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of a shard that is to be made."""

    number: int
    rows: Iterator[TextRow]


class Share(ABC):
    """The shards of one process, one after another."""

    rows = 0
    """How many rows the whole input has, when all parts were given."""
    own_rows: int | None = None
    """How many of them are of this process, if that is known beforehand."""
    cuts: Cuts | None = None
    """Where each shard begins, if the input can be entered there."""

    def __init__(self, shards: Shards) -> None:
        """Give out what is missing of these shards."""
        self._shards = shards

    @abstractmethod
    def parts(self) -> Iterator[Passed | ShardRows]:
        """Every shard; the next is begun after the rows of this one were used. Raises BadRow, InputError."""

    def _checked(self, number: int, rows: Iterator[TextRow]) -> Passed:
        """A finished shard. Raises InputError if it was made from other texts."""
        digest, count_ = TextsDigest(), 0
        for row in rows:
            digest.add(row.text, row.id, row.language)
            count_ += 1
        self._shards.confirm(number, digest.hexdigest())
        return Passed(count_)


class _Cut(Share):
    """Every `count`-th shard of an input that is entered where each begins."""

    def __init__(self, shards: Shards, texts: TextInput, cuts: Cuts, processes: Processes) -> None:
        super().__init__(shards)
        self._texts, self._cuts, self.rows = texts, cuts, cuts.rows
        self.cuts = cuts
        self._numbers = range(processes.rank, len(cuts), processes.count)
        self.own_rows = sum(map(cuts.rows_in, self._numbers))

    def parts(self) -> Iterator[Passed | ShardRows]:
        for number in self._numbers:
            rows = self._texts.rows_of(self._cuts, number)
            if not self._shards.is_done(number):
                yield ShardRows(number, rows)
            elif self._shards.is_current(number):
                yield Passed(self._cuts.rows_in(number))
            else:
                yield self._checked(number, rows)


class _Stream(Share):
    """All shards of an input that is read from its beginning to its end."""

    def __init__(self, shards: Shards, rows: Iterator[TextRow]) -> None:
        super().__init__(shards)
        self._rows = rows

    def parts(self) -> Iterator[Passed | ShardRows]:
        size = self._shards.layout.rows_per_shard
        while (first := next(self._rows, None)) is not None:
            number, rows = first.number // size, self._counted(chain([first], islice(self._rows, size - 1)))
            if not self._shards.is_done(number):
                yield ShardRows(number, rows)
            elif self._shards.is_current(number):
                yield Passed(sum(1 for _ in rows))
            else:
                yield self._checked(number, rows)

    def _counted(self, rows: Iterator[TextRow]) -> Iterator[TextRow]:
        for row in rows:
            self.rows = row.number + 1
            yield row


class _Taken(Share):
    """Every `count`-th shard of a stream that the first process reads and hands out, as a file for each shard."""

    def __init__(self, shards: Shards, processes: Processes) -> None:
        super().__init__(shards)
        self._processes = processes

    def parts(self) -> Iterator[Passed | ShardRows]:
        size = self._shards.layout.rows_per_shard
        for number in count(self._processes.rank, self._processes.count):
            path = _rows_path(self._shards, number)
            waited = 0
            while (end := self._end()) is None and self._made(number) is None and not path.exists():
                time.sleep(POLL_SECONDS)
                waited += 1
                if waited % LOOKS == 0:
                    self._raise_if_alone()
            state = self._made(number)
            if end is not None and number * size >= end:
                self.rows = end
                return
            if state is not None:
                yield Passed(state["rows"])
            elif path.exists():
                yield ShardRows(number, _taken(path))
            else:
                raise InputError(f"{self._shards.folder}: files of shard {number} were removed while others were made")

    def _made(self, number: int) -> ShardRecord | None:
        return self._shards.state(number) if self._shards.is_done(number) else None

    def _raise_if_alone(self) -> None:
        """Raise InputError if the first process, which holds the lock of the folder, has ended without a word."""
        with suppress(OSError):
            with locked(self._shards.folder / STATE / LOCK, waits=False):
                pass
            if self._end() is None:
                raise InputError(
                    f"the process that reads the input has ended: continue {self._shards.folder} with resume=True"
                )

    def _end(self) -> int | None:
        """How many rows were handed out in all; None as long as there may be more."""
        path = self._shards.folder / STATE / END
        return int(str(read_record(path)["rows"])) if path.exists() else None


class _HandedOut(_Taken):
    """The share of the first process, which also reads the stream, in a thread of its own."""

    def __init__(self, shards: Shards, processes: Processes, rows: Iterator[TextRow]) -> None:
        super().__init__(shards, processes)
        self._stream = _Stream(Shards(shards.folder, shards.layout, made_from=shards.made_from), rows)
        self._handed_rows = 0
        self._given: dict[int, list[Path]] = {}
        """The latest files for each process."""
        self._is_left = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="hand out", daemon=True)

    @contextmanager
    def running(self) -> Iterator[Share]:
        """Read while the block is executed."""
        self._thread.start()
        try:
            yield self
        finally:
            self._is_left.set()
            self._thread.join(PATIENCE_SECONDS)
            if self._thread.is_alive():  # it waits for a silent pipe
                with suppress(InputError, IntegrityError):
                    self._tell_end()

    def parts(self) -> Iterator[Passed | ShardRows]:
        yield from super().parts()
        if self._error is not None:
            raise self._error

    def _raise_if_alone(self) -> None:
        return

    def _end(self) -> int | None:
        return None if self._thread.is_alive() else self._handed_rows

    def _work(self) -> None:
        try:
            for part in self._stream.parts():
                if isinstance(part, ShardRows):
                    self._wait_for_room(part.number)
                    self._hand_out(part)
                if self._is_left.is_set():
                    break
                self._handed_rows = self._stream.rows
        except BaseException as error:  # noqa: BLE001 - raised again after the shards before it
            self._error = error
        finally:
            with suppress(InputError, IntegrityError):
                self._tell_end()

    def _wait_for_room(self, number: int) -> None:
        """Wait until the process of a shard has taken what was handed out to it."""
        given = self._given.setdefault(number % self._processes.count, [])
        while len(given) >= AHEAD and not self._is_left.wait(POLL_SECONDS):
            given[:] = [path for path in given if path.exists()]
        given.append(_rows_path(self._shards, number))

    def _hand_out(self, part: ShardRows) -> None:
        """Write the rows of a shard to its file, which appears whole."""
        path = _rows_path(self._shards, part.number)
        with told_with_place(path), scratch(path) as file:
            try:
                for row in part.rows:
                    file.write(json.dumps([row.number, row.place, row.text, row.id, row.language]).encode() + b"\n")
                file.flush()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise

    def _tell_end(self) -> None:
        path = self._shards.folder / STATE / END
        with told_with_place(path):
            write_record(path, {"rows": self._handed_rows})


def _rows_path(shards: Shards, number: int) -> Path:
    """Where the rows of a shard are handed out; the next run removes it as it does all temporary files."""
    return shards.folder / STATE / f"{number:05d}.rows{TEMPORARY}"


def _taken(path: Path) -> Iterator[TextRow]:
    with path.open("rb") as file:
        path.unlink()
        for line in file:
            yield TextRow(*json.loads(line))


@contextmanager
def share_of(
    texts: TextInput, rows: Iterator[TextRow], shards: Shards, processes: Processes, *, is_whole: bool
) -> Iterator[Share]:
    """What this process makes of `texts`, whose `rows` the first process has begun to read.

    `is_whole` is whether an earlier run made all shards. Raises InputError.
    """
    cuts = cuts_of(texts, shards, processes)
    if cuts is not None:
        yield _Cut(shards, texts, cuts, processes)
    elif processes.count == 1 or processes.agreed(is_whole):
        yield _Stream(shards, rows if processes.is_first else iter(()))
    elif processes.is_first:
        with _HandedOut(shards, processes, rows).running() as share:
            yield share
    else:
        yield _Taken(shards, processes)


def cuts_of(texts: TextInput, shards: Shards, processes: Processes) -> Cuts | None:
    """Where the input is cut into shards; the first process finds that once and keeps it beside the output.

    Raises InputError.
    """
    found = processes.agreed(_kept_cuts(texts, shards) if processes.is_first else None)
    return None if found is None else own_cuts(texts, found, name=f"process {processes.rank}")


def own_cuts(texts: TextInput, found: Cuts, *, name: str) -> Cuts:
    """The cuts that another process found, or those of this machine's copy of the files. Raises InputError."""
    if texts.is_cut_by(found):
        return found
    own = texts.cuts(found.every)
    if own is None or own.rows != found.rows:
        raise InputError(f"{name} sees another input as {texts.name} than the first process")
    return own


def _kept_cuts(texts: TextInput, shards: Shards) -> Cuts | None:
    path, every = shards.folder / STATE / CUTS, shards.layout.rows_per_shard
    with suppress(OSError, IntegrityError, KeyError, ValueError):
        kept = read_record(path)
        cuts = Cuts.of_json(kept)
        if kept["input"] == shards.made_from is not None and cuts.every == every:
            return cuts
    found = texts.cuts(every)
    if found is not None and found.is_whole and shards.made_from is not None and path.parent.is_dir():
        with told_with_place(path):
            write_record(path, {"input": shards.made_from, **found.as_json()})
    return found
