"""`verify`: prove a folder against the checkpoint it came from, at any later time and in any place."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from hf_xlmr.conversion.architecture import Wanted
from hf_xlmr.conversion.checkpoint import open_checkpoint
from hf_xlmr.conversion.page import page_of
from hf_xlmr.conversion.parity import ParityReport, compare_companions, read_json, verify_folder
from hf_xlmr.conversion.preparation import prepare
from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.progress import SILENT, Progress

__all__ = ["verify"]


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    data: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Prove that the converted `folder` holds what `source` does, as `convert` does at its end.

    What the conversion was asked for is read from `fairseq/conversion.json`. `data` is the folder with the
    dictionaries, where that was given too; `report` is where a page for people goes.
    Raises ParityError, which names the first weight or step that departs, IntegrityError for damage, and InputError.
    """
    folder = Path(folder)
    with told_plainly():
        wanted = _wanted(folder)
        with open_checkpoint(source, data=data, ema=wanted.ema, progress=progress) as checkpoint:
            prepared = prepare(checkpoint, wanted)
            compare_companions(prepared, folder)
            found = verify_folder(prepared, folder, progress=progress)
            if report is not None:
                Path(report).write_text(page_of(prepared, found), encoding="utf-8", errors="backslashreplace")
    return found


def _wanted(folder: Path) -> Wanted:
    """What the conversion was asked for. Raises InputError where the folder does not tell, IntegrityError."""
    record = folder / "fairseq" / "conversion.json"
    if not record.is_file():
        raise InputError(f"{folder} was not made by hf-xlmr convert (it has no fairseq/conversion.json)")
    asked = read_json(record).get("asked")
    usual = asdict(Wanted())
    if not isinstance(asked, dict) or asked.keys() != usual.keys() or not all(map(_is_sound, asked, asked.values())):
        raise IntegrityError(f"{record} is damaged: it does not tell what was asked for")
    return Wanted(**asked)


def _is_sound(name: str, value: object) -> bool:
    """Whether a remembered wish has the type it must have."""
    kinds: dict[str, tuple[type, ...]] = {
        "head": (str, type(None)),
        "encoder_only": (bool,),
        "attention_heads": (int, type(None)),
        "dtype": (str,),
        "ema": (bool,),
    }
    return type(value) in kinds[name]
