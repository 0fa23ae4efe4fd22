"""Progress as lines, for a standard error that is not a terminal: a log of nohup, Slurm or cron."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Lock
from typing import Final

import typer

from hf_xlmr.progress import ProgressTask

__all__ = ["Lines"]

SOONEST, LATEST = 30.0, 600.0  # seconds between two lines
SHARE: Final = 0.1  # of the time that a task has taken: a run of days fills no log
MB: Final = 10**6


class _Line:
    def __init__(self, label: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self._label, self._total, self._unit, self._clock = label, total, unit, clock
        self._done, self._begun = 0, clock()
        self._due = self._begun + SOONEST
        self._last: tuple[int, float] | None = None
        """How much was done at the line before, and when."""
        self._lock = Lock()  # weights are written by several threads

    def advance(self, amount: int, *, note: str = "") -> None:
        """Count, and print a line if it is time for one."""
        with self._lock:
            self._done += amount
            now = self._clock()
            if now >= self._due:
                passed = now - self._begun
                self._due = now + min(max(SOONEST, SHARE * passed), LATEST)
                told = " ".join(part for part in (self._told(now), note) if part)
                self._last = self._done, now
                with suppress(OSError):  # a log that is full stops no work
                    typer.echo(f"hf-xlmr: {self._label}: {told}", err=True)

    def _told(self, now: float) -> str:
        of = "" if self._total is None else f" of {self._amount(self._total)}"
        unit = "MB" if self._unit == "bytes" else self._unit
        return f"{self._amount(self._done)}{of} {unit} in {_duration(now - self._begun)}{self._left(now)}"

    def _left(self, now: float) -> str:
        """The time left at the speed since the line before: what an earlier run has done passes in no time."""
        if self._total is None or self._last is None or self._done <= self._last[0]:
            return ""
        done, at = self._last
        return f", about {_duration((now - at) * max(self._total - self._done, 0) / (self._done - done))} left"

    def _amount(self, count: int) -> str:
        return f"{count / MB:,.0f}" if self._unit == "bytes" else f"{count:,}"


class Lines:
    """A line on standard error after half a minute of a task, and then more and more seldom."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Measure time with `clock`, in seconds."""
        self._clock = clock

    @contextmanager
    def task(self, label: str, *, total: int | None = None, unit: str = "bytes") -> Iterator[ProgressTask]:
        """Print lines until the block ends."""
        yield _Line(label, total, unit, self._clock)


def _duration(seconds: float) -> str:
    """Such as 0:01:30."""
    return str(timedelta(seconds=round(seconds)))
