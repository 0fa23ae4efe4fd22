"""`verify`: prove a folder against the checkpoint it came from, at any later time and in any place."""

from __future__ import annotations

import json
from pathlib import Path

from hf_xlmr.conversion.architecture import Wanted
from hf_xlmr.conversion.checkpoint import open_checkpoint
from hf_xlmr.conversion.page import page_of
from hf_xlmr.conversion.parity import ParityReport, verify_folder
from hf_xlmr.conversion.preparation import prepare
from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.progress import SILENT, Progress

__all__ = ["verify"]


def verify(
    source: str | Path, folder: str | Path, *, report: str | Path | None = None, progress: Progress = SILENT
) -> ParityReport:
    """Prove that the converted `folder` holds what `source` does, as `convert` does at its end.

    What the conversion was asked for is read from `fairseq/conversion.json`. `report` is where a page for people goes.
    Raises ParityError, which names the first weight or step that departs, IntegrityError for damage, and InputError.
    """
    folder = Path(folder)
    with told_plainly():
        wanted = _wanted(folder)
        with open_checkpoint(source, ema=wanted.ema, progress=progress) as checkpoint:
            prepared = prepare(checkpoint, wanted)
            found = verify_folder(prepared, folder, progress=progress)
            if report is not None:
                Path(report).write_text(page_of(prepared, found), encoding="utf-8", errors="backslashreplace")
    return found


def _wanted(folder: Path) -> Wanted:
    """What the conversion was asked for. Raises InputError where the folder does not tell, IntegrityError."""
    record = folder / "fairseq" / "conversion.json"
    if not record.is_file():
        raise InputError(f"{folder} was not made by hf-xlmr convert (it has no fairseq/conversion.json)")
    try:
        return Wanted(**json.loads(record.read_text(encoding="utf-8"))["asked"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{record} is damaged: {error}") from error
