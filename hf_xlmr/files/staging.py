"""A folder that exists only when it is whole: written next to its place, flushed, and renamed once."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError, as_named
from hf_xlmr.files.fsync import flush_path, room_told
from hf_xlmr.files.locks import locked

LOCK: Final = "lock"
DRAFT: Final = "draft"
PREVIOUS: Final = "previous"
AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2  # linux/fs.h
MARK: Final = "config.json"  # shows that this is a model's folder, and not somebody's home


@contextmanager
def staged_folder(output: Path, *, overwrite: bool = False, mark: str = MARK) -> Iterator[Path]:
    """An empty folder to fill, which takes the name `output` when the block ends well, and vanishes when it does not.

    What earlier runs left behind when they were killed is cleared first. Raises InputError if `output` exists,
    unless `overwrite`, which replaces a folder of that kind (one that holds `mark`), and only at the end.
    """
    output = Path(os.path.abspath(output))  # noqa: PTH100  # resolve() would follow a link that is to be replaced
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(output)
    _raise_if_taken(output, overwrite=overwrite, mark=mark)
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        scratch = _locked_scratch(output, stack)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        draft = scratch / DRAFT
        draft.mkdir()
        with as_named(draft, str(output)), room_told(output):
            yield draft
            for path in [*draft.rglob("*"), draft]:
                flush_path(path)
        _publish(draft, output, scratch, overwrite=overwrite, mark=mark)


def _remove_empty(parents: Iterable[Path]) -> None:
    with suppress(OSError):  # they stay if something is in them
        for parent in parents:
            parent.rmdir()


def _raise_if_taken(output: Path, *, overwrite: bool, mark: str) -> None:
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise InputError(f"{output} exists; choose another folder, or pass overwrite=True to replace it")
    if output.is_symlink() or not output.is_dir():
        raise InputError(f"{output} is not a folder; overwrite=True replaces only folders")
    if any(output.iterdir()) and not (output / mark).is_file():
        raise InputError(f"{output} does not look like what is written here: no {mark}; overwrite=True leaves it alone")


def _locked_scratch(output: Path, stack: ExitStack) -> Path:
    """A scratch folder next to `output` whose lock this process holds until `stack` ends."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_prefix(output), dir=output.parent))
        with suppress(FileNotFoundError):  # if another run took the new folder for a leftover
            stack.enter_context(locked(scratch / LOCK))
            return scratch


def _prefix(output: Path) -> str:
    return f".{output.name}.hf-xlmr-"


def sizes_in(folder: Path) -> dict[str, int]:
    """The bytes of every file in a folder, by its name with slashes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _clear_leftovers(output: Path) -> None:
    """Remove the scratch folders of runs that are no longer alive; a live one holds its lock."""
    for scratch in output.parent.glob(glob.escape(_prefix(output)) + "*"):
        with suppress(OSError, InputError):  # alive, just gone, or somebody else's
            _clear(scratch, output)


def _clear(scratch: Path, output: Path) -> None:
    """Remove the scratch folder of a dead run. Raises OSError and InputError if the run is alive, or not hf_xlmr's."""
    if scratch.lstat().st_uid != os.geteuid():
        return
    with locked(scratch / LOCK, waits=False):
        if (scratch / PREVIOUS).exists() and not output.exists():
            (scratch / PREVIOUS).rename(output)
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(draft: Path, output: Path, scratch: Path, *, overwrite: bool, mark: str) -> None:
    """Give the draft its name: in one rename, or in one exchange if a folder is replaced."""
    _raise_if_taken(output, overwrite=overwrite, mark=mark)
    if not (overwrite and output.exists()):
        _rename_to_free(draft, output)
    elif not _exchange(draft, output):
        output.rename(scratch / PREVIOUS)  # the next run repairs what a run killed here leaves (`_clear_leftovers`)
        try:
            draft.rename(output)
        except BaseException:
            (scratch / PREVIOUS).rename(output)
            raise
    flush_path(output.parent)


def _rename_to_free(draft: Path, output: Path) -> None:
    """Take a name that was free a moment ago; the system refuses if another run has put its folder there."""
    try:
        draft.rename(output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise InputError(f"{output} exists by now; another run has made it") from error


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names in one step; False if the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return done == 0
