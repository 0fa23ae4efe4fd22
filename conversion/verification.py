"""`verify`: prove a folder against the checkpoint it came from, at any later time and in any place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from hf_xlmr.card_check import CARD, told_by_card
from hf_xlmr.conversion.architecture import Wanted
from hf_xlmr.conversion.card import CardMetadata
from hf_xlmr.conversion.checkpoint import open_checkpoint
from hf_xlmr.conversion.page import page_of
from hf_xlmr.conversion.parity import ParityReport, compare_companions, verify_folder
from hf_xlmr.conversion.preparation import Prepared, prepare
from hf_xlmr.conversion.recipe import card_text
from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.folder_records import CONVERSION, ConversionRecord, conversion_record_text
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.replaced_files import replace_content

__all__ = ["verify"]

logger = logging.getLogger(__name__)

CARD_STAYS: Final = (
    "%s was edited since the conversion, and is left as it is: say there that the folder is verified, as %s now tells"
)


def verify(
    source: str | Path,
    folder: str | Path,
    *,
    data: str | Path | None = None,
    report: str | Path | None = None,
    record: bool = False,
    progress: Progress = SILENT,
) -> ParityReport:
    """Prove that the converted `folder` holds what `source` does, as `convert` does at its end.

    What the conversion was asked for is read from `fairseq/conversion.json`. `data` is the folder with the
    dictionaries, where that was given too; `report` is where a page for people goes. `record` notes the proof in
    `fairseq/conversion.json` and in a model card that nobody has edited, as `convert` does where it verifies.
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
            if record:
                _record(prepared, folder, found)
    return found


def _wanted(folder: Path) -> Wanted:
    """What the conversion was asked for. Raises InputError where the folder does not tell, IntegrityError."""
    record, usual = ConversionRecord.of(folder), asdict(Wanted())
    if not record.is_there:
        raise InputError(f"{folder} was not made by hf-xlmr convert (it has no {CONVERSION})")
    if unknown := sorted(record.asked.keys() - usual.keys()):
        raise InputError(f"{record.path} tells of {unknown[0]!r:.40}, which a newer hf_xlmr wrote: install that one")
    if not all(map(_is_sound, record.asked, record.asked.values())):
        raise IntegrityError(f"{record.path} is damaged: it does not tell what was asked for")
    return Wanted(**{**usual, **record.asked})


def _is_sound(name: str, value: object) -> bool:
    """Whether a remembered wish has the type it must have."""
    kind = get_type_hints(Wanted)[name]
    return type(value) in (get_args(kind) or (kind,))


# ---- what is noted of a proof ----------------------------------------------------------------------------------------


def _record(prepared: Prepared, folder: Path, found: ParityReport) -> None:
    """Note the proof where the conversion would have. Raises OSError."""
    before = ConversionRecord.of(folder).fields
    after = {**before, "parity": asdict(found)}
    replace_content(folder / CONVERSION, _encoded(conversion_record_text(after)))
    card = folder / CARD
    if not card.is_file():
        return
    told = _told_of_the_model(told_by_card(folder))
    if card.read_bytes() == _encoded(card_text(prepared, before, told)):
        replace_content(card, _encoded(card_text(prepared, after, told)))
    elif card.read_bytes() != _encoded(card_text(prepared, after, told)):
        logger.warning(CARD_STAYS, card, CONVERSION)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="backslashreplace")


def _told_of_the_model(fields: Mapping[str, Any]) -> CardMetadata:
    """What the user said of the model when it was converted, as its card tells it."""
    languages = fields.get("language") or ()
    return CardMetadata((languages,) if isinstance(languages, str) else tuple(languages), fields.get("license"))
