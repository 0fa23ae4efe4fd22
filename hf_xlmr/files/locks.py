"""Locks between processes, by lock files that are never emptied and never followed if they are links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_xlmr.errors import InputError


@contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[None]:
    """Hold the lock file at `path`, which is made if need be and stays, until the block ends or the process dies.

    Raises BlockingIOError if another holds it and `waits` is false, InputError if something else has the place
    of the lock file, OSError.
    """
    from filelock import FileLock, Timeout

    with suppress(FileExistsError):  # with the permissions that any new file has; filelock's own is for its user alone
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    _raise_if_something_else(path)
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=waits)
    except Timeout as error:
        raise BlockingIOError(f"{path} is locked") from error
    try:
        yield
    finally:
        lock.release()


def _raise_if_something_else(path: Path) -> None:
    """Refuse what is not a lock file: filelock before 4.2.3, all that Python 3.10 has, empties what it locks."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_size or found.st_nlink > 1:
        kind = "a link" if stat.S_ISLNK(found.st_mode) or found.st_nlink > 1 else "not an empty file"
        raise InputError(f"{path} should be a lock file, but it is {kind}: remove it")
