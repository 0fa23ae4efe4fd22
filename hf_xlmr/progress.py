"""Progress as a protocol that callers hand in: silent unless somebody wants to see it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["SILENT", "Progress", "ProgressTask"]


class ProgressTask(Protocol):
    """One running piece of work."""

    def advance(self, amount: int, *, note: str = "") -> None:
        """Report that `amount` more units are done; a `note`, such as a speed, takes the place of the one before."""


class Progress(Protocol):
    """Whoever shows progress; a command hands in a bar, a library call nothing."""

    def task(
        self, label: str, *, total: int | None = None, unit: str = "bytes"
    ) -> AbstractContextManager[ProgressTask]:
        """Begin a task of `total` units, None if unknown."""


class _SilentTask:
    def advance(self, amount: int, *, note: str = "") -> None:
        """Say nothing."""


class _Silent:
    def task(
        self, label: str, *, total: int | None = None, unit: str = "bytes"
    ) -> AbstractContextManager[ProgressTask]:
        """Begin a task that nobody sees."""
        return nullcontext(_SilentTask())


SILENT: Progress = _Silent()
