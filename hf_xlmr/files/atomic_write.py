"""A file whose content is replaced in one rename, so that nobody reads a part of it."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from hf_xlmr.files.fsync import flush, room_told

NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # never through a link, and never over another file


def replace_content(path: Path, content: bytes) -> None:
    """Give the file at `path` other content, written next to it first; one that exists keeps owner and permissions.

    The owner is kept where the system allows it. Raises OSError, which names `path`.
    """
    draft = path.with_name(f".hf-xlmr.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, NEW, 0o666), "wb") as file:
            file.write(content)
            flush(file)
        with suppress(FileNotFoundError):
            _as_before(draft, path)
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = str(path), None  # what the user knows of
        raise


def replace_keeping(path: Path, content: bytes) -> Path:
    """`replace_content`, with the old file next to it as `NAME.before-fix`, or with a number if that exists.

    Gives where the old file is. Raises OSError.
    """
    names = (f"{path.name}.before-fix{'' if number == 1 else f'.{number}'}" for number in count(1))
    kept = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    with room_told(kept), kept.open("xb") as file:
        try:
            file.write(path.read_bytes())
            flush(file)
            _as_before(kept, path)
            replace_content(path, content)
        except BaseException:
            kept.unlink()
            raise
    return kept


def _as_before(new: Path, old: Path) -> None:
    """Give a file the owner, the permissions and the extended attributes of another."""
    status = old.stat()
    with suppress(PermissionError):
        os.chown(new, status.st_uid, status.st_gid)
    shutil.copystat(old, new)
    os.utime(new)
