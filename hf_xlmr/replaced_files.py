"""A file whose content is replaced in one rename, so that nobody meets half of it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from hf_xlmr.durable_files import flush

__all__ = ["replace_content"]


def replace_content(path: Path, content: bytes) -> None:
    """Give the file at `path` other content, written beside it first; it keeps its permissions. Raises OSError."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            flush(file)
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            Path(file.name).replace(path)
        except BaseException as error:
            Path(file.name).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is not None:
                error.filename, error.filename2 = str(path), None  # what the user knows of
            raise
