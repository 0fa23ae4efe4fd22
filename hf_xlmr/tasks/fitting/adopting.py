"""`adopt`: a folder that the user's own Trainer wrote gets what the converted model that it was trained from has."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr import __version__
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.fsync import told_with_place
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.hub_interface.loading import ModelFiles, find_model, raise_if_no_path
from hf_xlmr.model.folder_records import ADOPTED, CONVERSION, FINETUNING, finetuning_record_text
from hf_xlmr.model.opened_folder import CARD, CONFIG, OpenedFolder
from hf_xlmr.model.plain_config import raise_if_adapter
from hf_xlmr.model.provenance import deciding_differences
from hf_xlmr.placement.placed_loading import check_weights, files_of_weights
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tasks.fitting.appended_rows import are_unknown, repeat_unknown_row
from hf_xlmr.tasks.fitting.checkpoints import share_weights
from hf_xlmr.tasks.fitting.finetuned_card import adopted_card
from hf_xlmr.tasks.fitting.finetuned_folder import FROM_THE_MODEL, KEPT, OF_CLASSES, name_for_others

if TYPE_CHECKING:
    from transformers import TrainerCallback

logger = logging.getLogger(__name__)

TOKENIZER: Final = "tokenizer.json"
DICTIONARY: Final = "fairseq/dict.txt"
OF_THE_HEAD: Final = ("architectures", "vocab_size")  # fields of config.json that training may change
SHOWN: Final = 4  # differences in a message
TRAINED_ROWS: Final = (
    "{folder}: rows {first} to {last} of the embedding were trained. convert appended them for pieces that are <unk> "
    "to fairseq, so texts with these pieces would have other answers in fairseq. Pass reset_appended_rows=True to make "
    "the rows what <unk> is, as finetune does, and score the model again"
)


@dataclass(frozen=True)
class Adoption:
    """What `adopt` did."""

    folder: Path
    model: str
    """What the folder was trained from, as the user named it."""
    class_name: str
    labels: tuple[str, ...]
    """The names of the classes by number, from `id2label`; empty without classes."""
    written: tuple[str, ...]
    """The files that were added or replaced, by their names in the folder."""
    removed: tuple[str, ...]
    """Files of another tokenizer, or of the classes of another head."""
    kept: tuple[str, ...]
    """Files of the folder that stay, although `adopt` would write them."""


def adopt(
    folder: str | Path, converted: str | Path, *, reset_appended_rows: bool = False, progress: Progress = SILENT
) -> Adoption:
    """Complete a model folder that `Trainer.save_model` or `save_pretrained` wrote with what `converted` has.

    `converted` is the model that it was trained from: what `XLMR.from_pretrained` takes. The folder gets its tokenizer,
    its dictionary, SentencePiece model and options (`fairseq/`), a record with the SHA-256 of the weights of both, and
    a card unless it has one; config.json stays as it is, and so do the weights, but for rows that `convert` appended if
    `reset_appended_rows`. Then `doctor`, `export`, `push` and all else take it. A tokenizer with added tokens stays.
    The records come last, and the same call can be repeated. Raises InputError for a folder that does not belong to
    `converted`, with the numbers, IntegrityError.
    """
    raise_if_no_path(folder=folder, converted=converted)
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    files = find_model(converted, progress=progress)
    return _Adopting.of(path, files, str(converted)).run(reset_appended_rows=reset_appended_rows)


def adopting_callback(converted: str | Path) -> TrainerCallback:
    """A callback of Trainer that completes each checkpoint when it is saved, as `adopt` does.

    A checkpoint that cannot be completed is named in the log, and the training goes on. Raises InputError at once if
    the model does not exist.
    """
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    files = find_model(converted)
    source = OpenedFolder(files.folder)  # whose weights are hashed once

    class AdoptCheckpoints(TrainerCallback):
        """Adopts what Trainer saves."""

        def on_save(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: object
        ) -> None:
            if state.is_world_process_zero:
                folder = _newest_checkpoint(Path(str(args.output_dir)), state.global_step)
                try:
                    _Adopting.of(folder, files, str(converted), source=source).run(reset_appended_rows=False)
                except HfXlmrError as error:
                    logger.warning("%s was saved, and is not adopted: %s", folder, error)

    return AdoptCheckpoints()


def _newest_checkpoint(output: Path, step: int) -> Path:
    """Where Trainer saved last: in a search of hyperparameters each run has a folder of its own."""
    name = f"checkpoint-{step}"
    found = [path for path in (output / name, *output.glob(f"run-*/{name}")) if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=output / name)


@dataclass(frozen=True)
class _Adopting:
    """A folder and the model that it was trained from."""

    path: Path
    opened: OpenedFolder
    files: ModelFiles
    source: OpenedFolder
    named: str
    """How the user named the model."""

    @classmethod
    def of(cls, path: Path, files: ModelFiles, named: str, *, source: OpenedFolder | None = None) -> _Adopting:
        return cls(path, OpenedFolder(path), files, source or OpenedFolder(files.folder), named)

    def run(self, *, reset_appended_rows: bool) -> Adoption:
        path, adopted = self.path, ModelFiles(self.path, given=self.opened)
        with told_with_place(path):
            keeps_tokenizer = self._check(adopted)
            labels = _labels(self.opened.config, path)
            wanted = dict(self._wanted(keeps_tokenizer=keeps_tokenizer))
            _raise_if_in_the_way(path, wanted)
            was_reset = self._settle_appended_rows(reset=reset_appended_rows)
            weights = _hashes(OpenedFolder(path) if was_reset else self.opened)
            removed = tuple(self._stale(wanted, keeps_tokenizer=keeps_tokenizer))
            keeps_card = self.opened.has(CARD) and self.opened.sha256(CARD) != self._own_card
            done = Adoption(
                folder=path,
                model=self.named,
                class_name=adopted.class_name,
                labels=labels,
                written=(*wanted, *([] if keeps_card else [CARD]), FINETUNING),
                removed=removed,
                kept=(*([CARD] if keeps_card else []), *([TOKENIZER] if keeps_tokenizer else [])),
            )
            self._write(done, wanted, weights)
        return done

    def _write(self, done: Adoption, wanted: Mapping[str, Path], weights: Mapping[str, str]) -> None:
        """Write all files, the records last. Raises OSError."""
        path = self.path
        for name in done.removed:
            (path / name).unlink()
        for name, source in wanted.items():
            if name != CONVERSION:
                (path / name).parent.mkdir(exist_ok=True)
                replace_content(path / name, source.read_bytes())
        share_weights(path, as_of=CONFIG)
        card = None
        if CARD not in done.kept:
            card = adopted_card(path, self.files.folder, model=self.named, class_name=done.class_name).encode()
            replace_content(path / CARD, card)
        record = finetuning_record_text(self._record(done.class_name, weights, card))
        replace_content(path / FINETUNING, record.encode())
        if CONVERSION in wanted:  # last: without the record of the training the folder would pass for a conversion
            replace_content(path / CONVERSION, wanted[CONVERSION].read_bytes())

    def _check(self, adopted: ModelFiles) -> bool:
        """Raise InputError unless the folder's network is the model's after training, IntegrityError for damage.

        Return whether the folder's own tokenizer stays, since tokens were added to it.
        """
        path, files = self.path, self.files
        raise_if_adapter(path)
        _ = adopted.config
        if path.resolve() == files.folder.resolve():
            raise InputError(f"{path} is the model itself: give the model that it was trained from")
        if not (files.folder / DICTIONARY).is_file():
            raise InputError(f"{files.name} has no {DICTIONARY}: give a model that convert made from fairseq's files")
        if self.opened.has(FINETUNING) and ADOPTED not in self.opened.training:
            raise InputError(
                f"{path} has {FINETUNING} of finetune, which made a complete folder; if your own training came after "
                "it, delete that file first"
            )
        self._raise_if_other_network(adopted)
        check_weights(path, adopted.shape)
        if _hashes(self.opened) == _hashes(self.source):
            raise InputError(f"{path} holds the weights of {files.name} itself: nothing was trained")
        _raise_if_other_pieces(path, files)
        _ = files.tokenizer, files.dictionary
        return adopted.added is not None

    def _raise_if_other_network(self, adopted: ModelFiles) -> None:
        rows, own_rows = self.files.shape.vocabulary, adopted.shape.vocabulary
        differences = list(deciding_differences(adopted.config, self.files.config, without=OF_THE_HEAD))
        if own_rows != rows and not (own_rows > rows and adopted.added is not None):
            differences.insert(0, f"its embedding has {own_rows:,} rows, and {rows:,} there")
        if differences:
            shown = "; ".join(differences[:SHOWN])
            raise InputError(f"{self.path} was not trained from {self.files.name} as it is: {shown}")

    def _settle_appended_rows(self, *, reset: bool) -> bool:
        """Make the rows that `convert` appended what `<unk>` is, and return whether that changed the weights.

        Without `reset`, raise InputError if they are not.
        """
        rows = self.files.appended_rows
        if not rows or are_unknown(self.path, rows):
            return False
        if not reset:
            raise InputError(TRAINED_ROWS.format(folder=self.path, first=rows.start, last=rows.stop - 1))
        repeat_unknown_row(self.path, rows)
        return True

    def _wanted(self, *, keeps_tokenizer: bool) -> Iterator[tuple[str, Path]]:
        """The files of the model that the folder gets, by their names there."""
        folder = self.files.folder
        for name in () if keeps_tokenizer else FROM_THE_MODEL:
            if (folder / name).is_file():
                yield name, folder / name
        for path in sorted((folder / KEPT).rglob("*")):
            if path.is_file() and path.relative_to(folder / KEPT).parts[0] != OF_CLASSES:
                yield path.relative_to(folder).as_posix(), path

    def _stale(self, wanted: Mapping[str, Path], *, keeps_tokenizer: bool) -> Iterator[str]:
        """The folder's files of another tokenizer, and of fairseq's that the model does not have."""
        kept = sorted(path for path in (self.path / KEPT).rglob("*") if path.is_file())
        of_fairseq = [path.relative_to(self.path).as_posix() for path in kept]
        of_tokenizer = () if keeps_tokenizer else tuple(name for name in FROM_THE_MODEL if self.opened.has(name))
        yield from (name for name in (*of_tokenizer, *of_fairseq) if name not in wanted)

    @property
    def _own_card(self) -> object:
        told = self.opened.training.get(ADOPTED)
        return told.get("card_sha256") if isinstance(told, dict) else None

    def _record(self, class_name: str, weights: Mapping[str, str], card: bytes | None) -> JsonObject:
        told = {
            "weights_sha256": weights,
            "trained_from_sha256": _hashes(self.source),
            "card_sha256": None if card is None else hashlib.sha256(card).hexdigest(),
            "hf_xlmr": __version__,
        }
        return {"model": name_for_others(self.named), "class_name": class_name, ADOPTED: told}


def _hashes(folder: OpenedFolder) -> dict[str, str]:
    return {path.name: folder.sha256(path.name) for path in sorted(set(files_of_weights(folder.path).values()))}


def _raise_if_other_pieces(folder: Path, files: ModelFiles) -> None:
    own, theirs = _pieces(folder / TOKENIZER), _pieces(files.folder / TOKENIZER)
    if own is not None and theirs is not None and own != theirs:
        raise InputError(f"{folder / TOKENIZER} has other pieces than that of {files.name}: train with its tokenizer")


def _pieces(path: Path) -> list[str] | None:
    """The pieces of a tokenizer.json by number, None if there is none; when Transformers saves it, scores change."""
    if not path.is_file():
        return None
    model = json_object(path).get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, dict):
        return sorted(entries, key=lambda piece: str(entries[piece]))
    if not isinstance(entries, list) or not all(isinstance(entry, list) and entry for entry in entries):
        raise IntegrityError(f"{path} is damaged: it has no list of pieces")
    return [str(entry[0]) for entry in entries]


def _raise_if_in_the_way(folder: Path, wanted: Mapping[str, Path]) -> None:
    """Raise InputError if something is where a file goes, or a link would lead the files into another folder."""
    kept = folder / KEPT
    if kept.is_symlink() or (kept.exists() and not kept.is_dir()):
        raise InputError(f"{kept} is a link or a file, and becomes a folder: remove it first")
    if blocked := [name for name in (*wanted, CARD, FINETUNING) if (folder / name).is_dir()]:
        raise InputError(f"{folder / blocked[0]} is a folder, and becomes a file: remove it first")


def _labels(config: JsonObject, folder: Path) -> tuple[str, ...]:
    named = config.get("id2label") or {}
    if not isinstance(named, dict) or not all(str(number).isdecimal() for number in named):
        raise IntegrityError(f"{folder / CONFIG} is damaged: id2label does not give names by number")
    return tuple(str(named[number]) for number in sorted(named, key=int))
