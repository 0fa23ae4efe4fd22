"""The files that a conversion keeps under `fairseq/`, read as it wrote them: another dictionary gives wrong ids."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_xlmr.errors import IntegrityError

__all__ = ["read_kept"]

RECORD = "conversion.json"


def read_kept(folder: Path, name: str) -> bytes:
    """The file `name` under the folder `fairseq/`, whose record in `conversion.json`, where there is one, it must fit.

    Raises IntegrityError, OSError.
    """
    data = (folder / name).read_bytes()
    recorded = _recorded(folder / RECORD, name)
    if recorded is not None and sha256(data).hexdigest() != recorded:
        raise IntegrityError(
            f"{folder / name} is not the file that {folder / RECORD} tells of (its SHA-256 begins with "
            f"{recorded:.12}): it was cut off or exchanged; copy it anew, or convert the checkpoint again"
        )
    return data


def _recorded(record: Path, name: str) -> str | None:
    """The SHA-256 that the conversion noted for a file, None for what it did not write. Raises IntegrityError."""
    if not record.is_file():
        return None
    try:
        files: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")).get("source", {}).get("files", {})
        return str(files[name]["sha256"]) if name in files else None
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise IntegrityError(f"{record} is damaged: it does not tell what {name} was") from error
