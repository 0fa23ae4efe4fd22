"""`verify`: prove a folder against the checkpoint it came from, at any later time and in any place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final, get_args, get_type_hints

from hf_xlmr.cards.card_check import card_fields
from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.converting import card_text, record_of
from hf_xlmr.conversion.export_parity import verify_export
from hf_xlmr.conversion.mapping.architecture import Wanted
from hf_xlmr.conversion.mapping.preparation import Prepared, prepare
from hf_xlmr.conversion.output.card import CardMetadata
from hf_xlmr.conversion.proof.html_report import page_of
from hf_xlmr.conversion.proof.parity import (
    FileHashes,
    ParityError,
    ParityReport,
    compare_companions,
    verify_folder,
)
from hf_xlmr.errors import InputError, IntegrityError, as_named, told_plainly
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.fsync import told_with_place
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.model.folder_records import CONVERSION, FINETUNING, ConversionRecord, conversion_record_text
from hf_xlmr.model.opened_folder import CARD
from hf_xlmr.model.safetensors_files import raise_if_not_text
from hf_xlmr.progress import SILENT, Progress

__all__ = ["verify"]

logger = logging.getLogger(__name__)

CONFIG: Final = "config.json"
NOT_RECORDED: Final = "%s is not as it was converted, so nothing is noted there: its weights are those of an export"
CARD_STAYS: Final = (
    "%s was edited since the conversion, and is left as it is: write there that the folder is verified, as %s now says"
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

    The Transformers folder may be either of the two. What the conversion was asked for is read from its
    `fairseq/conversion.json`. A folder that others made, or that was trained since, is proved against an export of it:
    every weight that `export` writes, the dictionary, the labels, and the outputs. `data` is the folder with the
    dictionaries, where that was given too; `report` is where a page for people goes, which has the date
    (SOURCE_DATE_EPOCH, if that is set). `record` notes the proof of a conversion in `fairseq/conversion.json` and in a
    model card that nobody has edited, as `convert` does where it verifies. Raises ParityError, which names the first
    weight or step that departs, IntegrityError for damage, and InputError.
    """
    source, folder = _pair(source, folder)
    raise_if_not_text(folder)
    with told_plainly():
        noted = ConversionRecord.of(folder)
        wanted = _wanted(noted)
        with (
            open_checkpoint(source, data=data, ema=wanted.ema, progress=progress) as checkpoint,
            FileHashes(checkpoint, folder) as hashes,
        ):
            is_conversion = _is_conversion(noted, folder, checkpoint, hashes)
            if noted.source_weights and not is_conversion and hashes.source == noted.source_weights:
                _raise_if_trained(folder, checkpoint)
            if is_conversion:
                prepared = prepare(checkpoint, wanted)
                compare_companions(prepared, folder)
                found = verify_folder(prepared, folder, hashes=hashes, progress=progress)
            else:
                prepared, found = _verified_export(checkpoint, folder, noted, hashes, progress)
            if report is not None:
                _write_page(Path(report), _encoded(page_of(prepared, found, folder)))
            if record and is_conversion:
                _record(prepared, folder, found)
            elif record:
                logger.warning(NOT_RECORDED, folder)
    return found


def _raise_if_trained(folder: Path, checkpoint: FairseqCheckpoint) -> None:
    """Raise InputError if the folder was trained after its conversion from this checkpoint, so that they differ."""
    if (folder / FINETUNING).is_file():
        raise InputError(
            f"{folder} was trained after its conversion ({FINETUNING}), so it does not equal {checkpoint.files.name}: "
            "export it, and verify the export"
        )


def _verified_export(
    checkpoint: FairseqCheckpoint, folder: Path, noted: ConversionRecord, hashes: FileHashes, progress: Progress
) -> tuple[Prepared, ParityReport]:
    """The proof of an export. Raises ParityError, which says why it is taken for one."""
    try:
        return verify_export(checkpoint, folder, hashes=hashes, progress=progress)
    except ParityError as error:
        why = f"was changed since {CONVERSION} was written" if noted.is_there else f"has no {CONVERSION}"
        told = f"{folder} {why}, so an export of it was compared with {checkpoint.files.name}: {error}"
        raise ParityError(error.where, told) from error


def _pair(one: str | Path, other: str | Path) -> tuple[str | Path, Path]:
    """The checkpoint and the Transformers folder, whichever was named first. Raises InputError if there is none."""
    if (Path(other) / CONFIG).is_file():
        return one, Path(other)
    if (Path(one) / CONFIG).is_file():
        return other, Path(one)
    raise InputError(f"neither {one} nor {other} is a Transformers folder: one of them must have a {CONFIG}")


def _is_conversion(noted: ConversionRecord, folder: Path, checkpoint: FairseqCheckpoint, hashes: FileHashes) -> bool:
    """Whether the record speaks of the folder as it is: what changed is damage only next to its own source.

    Raises IntegrityError.
    """
    if not noted.is_there or (folder / FINETUNING).is_file():
        return False
    if noted.is_verified and noted.source_weights:
        return hashes.source == noted.source_weights or hashes.output == noted.weights
    sizes = {Path(part.name).name: part.length for part in checkpoint.files.checkpoint}
    return sizes.items() <= noted.source_sizes.items() or json_object(folder / CONFIG) == noted.config


def _wanted(record: ConversionRecord) -> Wanted:
    """What the conversion was asked for. Raises InputError for what a newer hf_xlmr wrote, IntegrityError."""
    usual = asdict(Wanted())
    if unknown := sorted(record.asked.keys() - usual.keys()):
        raise InputError(f"{record.path} describes {unknown[0]!r:.40}, which a newer hf_xlmr wrote: install that one")
    if not all(map(_is_sound, record.asked, record.asked.values())):
        raise IntegrityError(f"{record.path} is damaged: it does not say what was asked for")
    return Wanted(**{**usual, **record.asked})


def _is_sound(name: str, value: object) -> bool:
    """Whether a remembered wish has the type it must have."""
    kind = get_type_hints(Wanted)[name]
    return type(value) in (get_args(kind) or (kind,))


# ---- what is noted of a proof ----------------------------------------------------------------------------------------


def _record(prepared: Prepared, folder: Path, found: ParityReport) -> None:
    """Write the proof to the places where `convert` writes it. Raises OSError."""
    before = ConversionRecord.of(folder).fields
    after = {**before, "parity": asdict(found)}
    _note_in_card(prepared, folder, before, after)  # first: after the record it would not be known for the old one
    replace_content(folder / CONVERSION, _encoded(conversion_record_text(after)))


def _note_in_card(prepared: Prepared, folder: Path, before: Mapping[str, object], after: Mapping[str, object]) -> None:
    card = folder / CARD
    if not card.is_file():
        return
    told, usual = _metadata_of(card_fields(folder)), record_of(prepared)
    try:
        texts = [_encoded(card_text(prepared, {**usual, **record}, told)) for record in (before, after)]
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):  # of a record that somebody edited
        texts = []
    if texts and card.read_bytes() == texts[0]:
        replace_content(card, texts[1])
    elif card.read_bytes() not in texts:
        logger.warning(CARD_STAYS, card, CONVERSION)


def _write_page(path: Path, content: bytes) -> None:
    """Write a file whole; what is not a regular file, such as a pipe, is written to. Raises InputError."""
    target = path.resolve()  # a link is not replaced
    with told_with_place(path), as_named(target, str(path)):
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            replace_content(target, content)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="backslashreplace")


def _metadata_of(fields: JsonObject) -> CardMetadata:
    """What the user said of the model when it was converted, as its card says it."""
    languages = fields.get("language") or ()
    return CardMetadata((languages,) if isinstance(languages, str) else tuple(languages), fields.get("license"))
