"""A file whose content is replaced in one rename, so that nobody meets half of it."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from hf_xlmr.durable_files import flush

__all__ = ["replace_content"]

NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # never through a link, and never over another file


def replace_content(path: Path, content: bytes) -> None:
    """Give the file at `path` other content, written beside it first; one that exists keeps its permissions.

    Raises OSError, which names `path`.
    """
    draft = path.with_name(f".hf-xlmr.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, NEW, 0o666), "wb") as file:
            file.write(content)
            flush(file)
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = str(path), None  # what the user knows of
        raise
