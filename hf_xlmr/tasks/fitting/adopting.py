"""`adopt`: a folder that the user's own Trainer wrote gets what the converted model that it was trained from has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr import __version__
from hf_xlmr.errors import InputError
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.fsync import told_with_place
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.model.folder_records import CONVERSION, FINETUNING, finetuning_record_text
from hf_xlmr.model.opened_folder import CARD, OpenedFolder
from hf_xlmr.model.plain_config import raise_if_adapter
from hf_xlmr.placement.placed_loading import check_weights, files_of_weights
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tasks.fitting.finetuned_card import adopted_card
from hf_xlmr.tasks.fitting.finetuned_folder import FROM_THE_MODEL, KEPT, OF_CLASSES, name_for_others

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["Adoption", "adopt", "adopting_callback"]

TOKENIZER: Final = "tokenizer.json"
KEY: Final = "adopted"  # in the record: what was adopted, and by what
COMPARED: Final = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "pad_token_id"),
)
"""What a network keeps through any training."""


@dataclass(frozen=True)
class Adoption:
    """What `adopt` did."""

    folder: Path
    model: str
    """What the folder was trained from, as the user named it."""
    class_name: str
    labels: tuple[str, ...]
    """The names of the classes by number, from `id2label`; empty without classes."""
    added: tuple[str, ...]
    """The files that were written, by their names in the folder."""
    kept: tuple[str, ...]
    """Files of the folder that were there before and stay, although `adopt` would write them."""


def adopt(folder: str | Path, converted: str | Path, *, progress: Progress = SILENT) -> Adoption:
    """Complete a model folder that `Trainer.save_model` or `save_pretrained` wrote with what `converted` has.

    `converted` is the model that it was trained from: what `XLMR.from_pretrained` takes. The folder gets its tokenizer,
    its dictionary, SentencePiece model and options (`fairseq/`), a record with the SHA-256 of the weights of both, and
    a card unless it has one; weights and config.json stay as they are. Then `doctor`, `export`, `push` and all else
    take it. A tokenizer with added tokens stays. The records come last, and the same call can be repeated. Raises
    InputError for a folder that does not belong to `converted`, with the numbers, IntegrityError.
    """
    path = Path(folder)
    raise_if_adapter(path)
    files, opened = find_model(converted, progress=progress), OpenedFolder(path)
    adopted = ModelFiles(path, given=opened)
    with told_with_place(path):
        _raise_if_ours(opened)
        keeps_tokenizer = _raise_if_other(adopted, files)
        check_weights(path, adopted.shape)
        wanted = dict(_wanted(files, keeps_tokenizer=keeps_tokenizer))
        conversion = wanted.pop(CONVERSION, None)
        for name, source in wanted.items():
            (path / name).parent.mkdir(exist_ok=True)
            replace_content(path / name, source.read_bytes())
        ModelFiles(path).tokenizer  # noqa: B018  # raises if the texts would not be fairseq's
        has_card = opened.has(CARD)
        if not has_card:
            card = adopted_card(path, files.folder, model=str(converted), class_name=adopted.class_name)
            replace_content(path / CARD, card.encode())
        replace_content(path / FINETUNING, finetuning_record_text(_record(opened, files, str(converted))).encode())
        if conversion is not None:  # last: without the record of the training the folder would pass for a conversion
            replace_content(path / CONVERSION, conversion.read_bytes())
    return Adoption(
        folder=path,
        model=str(converted),
        class_name=adopted.class_name,
        labels=_labels(opened.config),
        added=(*wanted, *([] if has_card else [CARD]), FINETUNING),
        kept=(*([CARD] if has_card else []), *([TOKENIZER] if keeps_tokenizer else [])),
    )


def adopting_callback(converted: str | Path) -> TrainerCallback:
    """A callback of Trainer that completes each checkpoint when it is saved, as `adopt` does."""
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class AdoptCheckpoints(TrainerCallback):
        """Adopts what Trainer saves."""

        def on_save(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: object
        ) -> None:
            if state.is_world_process_zero:
                adopt(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", converted)

    return AdoptCheckpoints()


# ---- what belongs together -------------------------------------------------------------------------------------------


def _raise_if_ours(folder: OpenedFolder) -> None:
    """Raise InputError for a folder that hf_xlmr made whole: a conversion, or a model of `finetune`."""
    if folder.has(CONVERSION) and not folder.has(FINETUNING):
        raise InputError(f"{folder.path} has {CONVERSION}: it is a conversion itself, so there is nothing to adopt")
    if folder.has(FINETUNING) and KEY not in folder.training:
        raise InputError(f"{folder.path} has {FINETUNING}: finetune made it, and it is complete")


def _raise_if_other(adopted: ModelFiles, files: ModelFiles) -> bool:
    """Raise InputError unless the folder's network is one of `files` after training.

    Return whether the folder's own tokenizer stays, since tokens were added to it.
    """
    rows, own_rows = files.shape.vocabulary, adopted.shape.vocabulary
    has_more = own_rows > rows and adopted.added is not None
    told = [
        f"{name} is {adopted.config.get(name)!r:.40}, and {files.config.get(name)!r:.40} there"
        for name in COMPARED
        if adopted.config.get(name) != files.config.get(name)
    ]
    if own_rows != rows and not has_more:
        told.insert(0, f"its embedding has {own_rows:,} rows, and {rows:,} there")
    if told:
        raise InputError(f"{adopted.folder} was not trained from {files.name}: {'; '.join(told)}")
    if adopted.added is not None:
        return True
    pieces = [_pieces(each) for each in (adopted.folder, files.folder)]
    if None not in pieces and pieces[0] != pieces[1]:
        raise InputError(f"{adopted.folder / TOKENIZER} has other pieces than that of {files.name}: use its tokenizer")
    return False


def _pieces(folder: Path) -> list[str] | None:
    """The pieces of tokenizer.json by number, None if there is none; Transformers writes their scores anew."""
    if not (folder / TOKENIZER).is_file():
        return None
    model = json_object(folder / TOKENIZER).get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, dict):
        return sorted(entries, key=lambda piece: str(entries[piece]))
    return [str(entry[0]) for entry in entries or () if isinstance(entry, list) and entry]


# ---- what is written -------------------------------------------------------------------------------------------------


def _wanted(files: ModelFiles, *, keeps_tokenizer: bool) -> Iterator[tuple[str, Path]]:
    """The files of the converted model that the folder gets, by their names there."""
    for name in () if keeps_tokenizer else FROM_THE_MODEL:
        if (files.folder / name).is_file():
            yield name, files.folder / name
    kept = files.folder / KEPT
    for path in sorted(kept.rglob("*")):
        if path.is_file() and path.relative_to(kept).parts[0] != OF_CLASSES:
            yield path.relative_to(files.folder).as_posix(), path


def _labels(config: JsonObject) -> tuple[str, ...]:
    named = config.get("id2label") or {}
    return tuple(str(named[number]) for number in sorted(named, key=int))


def _record(folder: OpenedFolder, files: ModelFiles, model: str) -> JsonObject:
    source = OpenedFolder(files.folder)
    return {
        "model": name_for_others(model),
        "class_name": folder.config.get("architectures", [None])[0],
        KEY: {"weights_sha256": _hashes(folder), "trained_from_sha256": _hashes(source), "hf_xlmr": __version__},
    }


def _hashes(folder: OpenedFolder) -> dict[str, str]:
    return {path.name: folder.sha256(path.name) for path in sorted(set(files_of_weights(folder.path).values()))}
