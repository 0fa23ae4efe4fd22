"""Files that are safely on the disk, and the system's errors with the place where they happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hf_xlmr.errors import NO_ROOM, told_plainly


def flush(file: IO[bytes]) -> None:
    """See that what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_path(path: Path) -> None:
    """See that what a file holds, or which names are in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_contents(source: Path, target: Path, *, without: str = "") -> None:
    """Copy the files of a folder into `target`, links followed, but for what is in its folder `without`.

    The copies are the user's own: modes, also of read-only folders of others, stay behind. Raises OSError.
    """
    for path in sorted(source.rglob("*")):
        place = path.relative_to(source)
        if path.is_file() and place.parts[0] != without:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)


@contextmanager
def room_told(place: Path) -> Iterator[None]:
    """Name the file for which there is no room; the system does not name a file that is already open."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            error.filename = str(place)
        raise


@contextmanager
def told_with_place(path: Path) -> Iterator[None]:
    """Turn the system's errors into errors of hf_xlmr, which name the place."""
    with told_plainly():
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno is not None:
                error.filename = str(path)
            raise
