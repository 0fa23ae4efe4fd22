"""The folder of a fine-tuned model: checkpoints during training, then what Transformers and fairseq need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from traceback import walk_tb
from typing import Final

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.features.processes import Processes
from hf_xlmr.files.fsync import copy_contents, told_with_place
from hf_xlmr.files.json_files import json_object
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.folder_records import FINETUNING, finetuning_record_text
from hf_xlmr.model.opened_folder import CARD, CONFIG, OpenedFolder
from hf_xlmr.tasks.evaluation_folder import write_results
from hf_xlmr.tasks.fitting.appended_rows import repeat_unknown_row
from hf_xlmr.tasks.fitting.checkpoints import checkpoint_name, last_checkpoint, record_checkpoint, share_weights
from hf_xlmr.tasks.fitting.finetuned_card import finetuned_card
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Setting
from hf_xlmr.tasks.mlqa import told_ids
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_card import put_results_in_card

CHECKPOINTS: Final = "checkpoints"
RECORD: Final = "run.json"
RECORD_PART: Final = "run.json.part"
RECORD_KEY: Final = "begun_as"  # the record, as a field of the report
DRAFT: Final = "finished"
KEPT: Final = "fairseq"
OF_CLASSES: Final = "label"  # under fairseq/: names of the classes of another head
WRITERS: Final = frozenset({("safetensors.torch", "save_file"), ("torch.serialization", "save")})
TRAIN_AGAIN: Final = "train again with overwrite=True"
SAME_SETTINGS: Final = f"give the same settings, or {TRAIN_AGAIN}"
LONGEST_ERROR: Final = 200  # characters of what a library says
LONGEST_TOLD: Final = 40  # characters of a value in a message
FROM_THE_MODEL: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True, kw_only=True)
class FinetuningReport:
    """What a training did; what an earlier hf_xlmr did not write into `finetuning.json` yet has a default."""

    task: str
    model: str
    output: Path
    class_name: str
    mode: str
    trained_on: Mapping[str, int]
    """Examples by language."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Training examples that were left out for their answers or labels, by language."""
    misaligned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The ids of questions with answers that are not where they should be, by language."""
    steps: int
    losses: Mapping[int, float] = field(default_factory=dict)
    """By step, the mean training loss since the step before it in this list."""
    parameters: int
    """Of the finished network: adapters of LoRA are merged into it."""
    trainable: int
    """Those that were trained, adapters included."""
    settings: Mapping[str, Setting]
    results: TaskResults | None = None
    """The scores; None if nothing was evaluated."""

    @property
    def left_out(self) -> str:
        """How many training examples were left out, why, and the first of their ids; empty for none."""
        if not any(self.skipped.values()):
            return ""
        ids = told_ids([id_ for several in self.misaligned.values() for id_ in several])
        why = TASKS[self.task].scoring.left_out
        return f"{sum(self.skipped.values()):,}, {why}{f' ({ids})' if ids else ''}"


@dataclass(frozen=True)
class FinetunedFolder:
    """An output folder and the processes that fill it."""

    path: Path
    processes: Processes

    @property
    def checkpoints(self) -> Path:
        """Where Trainer writes while it trains; gone when the model is finished."""
        return self.path / CHECKPOINTS

    @property
    def is_begun(self) -> bool:
        """Whether a training began here that is not finished."""
        return (self.checkpoints / RECORD).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the whole model is here."""
        return (self.path / CONFIG).is_file() and not self.is_begun

    @property
    def _is_bare(self) -> bool:
        """Whether a training was killed here before its record was written: there is nothing to lose."""
        if [path.name for path in self.path.iterdir()] != [CHECKPOINTS] or not self.checkpoints.is_dir():
            return False
        return {path.name for path in self.checkpoints.iterdir()} <= {RECORD_PART}

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that holds something, unless that is to be continued or replaced. Raises InputError."""
        if resume and overwrite:
            raise InputError("resume=True continues the training there, overwrite=True replaces it: give one of them")
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder")
        is_ours = self.is_begun or (self.path / FINETUNING).is_file()
        if self._is_bare:
            return
        if any(self.path.iterdir()) and not is_ours:
            raise InputError(f"{self.path} holds other files; choose another folder")
        if is_ours and not resume and not overwrite:
            state = f"a training that is not finished ({CHECKPOINTS}/)" if self.is_begun else "a finished model"
            raise InputError(
                f"{self.path} holds {state}: choose another folder, continue with resume=True, or replace it with "
                "overwrite=True"
            )

    def begin(self, record: Mapping[str, object], *, usual: Mapping[str, object], resume: bool) -> None:
        """Note what is trained, or check that it is what the begun run has trained. Raises InputError.

        `usual` is what the begun run did where its record, of an earlier hf_xlmr, does not say.
        """
        self.processes.wait()
        if resume and self.is_begun:
            self._check_record({**usual, **_read_object(self.checkpoints / RECORD)}, record)
        elif self.processes.is_first:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            self.checkpoints.mkdir(parents=True)
            part = self.checkpoints / RECORD_PART
            part.write_text(json.dumps(record, indent=2), encoding="utf-8")
            part.replace(self.checkpoints / RECORD)
        self.processes.wait()

    def _check_record(self, begun: Mapping[str, object], record: Mapping[str, object]) -> None:
        wanted = json.loads(json.dumps(record))
        others = [name for name in wanted if begun.get(name) != wanted[name]]
        if others:
            told = ", ".join(_change(name, begun.get(name), wanted[name]) for name in others)
            raise InputError(f"{self.path} was begun with other settings ({told}): {SAME_SETTINGS}")

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole, for Trainer; None if none was written. Raises IntegrityError."""
        return last_checkpoint(self.checkpoints, warns=self.processes.is_first)

    def record_checkpoint(self, step: int) -> None:
        """Record what all processes wrote after an update. Raises OSError."""
        self.processes.wait()
        if self.processes.is_first:
            record_checkpoint(self.checkpoints / checkpoint_name(step))
        self.processes.wait()

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """A folder for the finished model, whose files take their places when the block ends well, config.json last."""
        draft = self.checkpoints / DRAFT
        if self.processes.is_first:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
        self.processes.wait()
        yield draft
        self.processes.wait()
        if self.processes.is_first:
            self._publish(draft)
        self.processes.wait()

    @contextmanager
    def written(self) -> Iterator[None]:
        """Turn what PyTorch and safetensors raise if they cannot write, as on a full disk, into an InputError."""
        from safetensors import SafetensorError

        with told_with_place(self.path):
            try:
                yield
            except (SafetensorError, RuntimeError) as error:
                calls = {
                    (frame.f_globals.get("__name__"), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)
                }
                if calls.isdisjoint(WRITERS):
                    raise
                raise InputError(
                    f"{self.path} cannot be written ({' '.join(str(error).split())[:LONGEST_ERROR]}): make room on the "
                    "disk, and continue the training with resume=True"
                ) from error

    def _publish(self, draft: Path) -> None:
        """Without config.json nothing loads the folder, so that no one meets a part of it."""
        share_weights(draft, as_of=CARD)
        for name in (CONFIG, *(path.name for path in self.path.iterdir() if path != self.checkpoints)):
            _remove(self.path / name)
        for path in sorted(draft.iterdir(), key=lambda path: path.name == CONFIG):
            path.rename(self.path / path.name)
        (self.checkpoints / RECORD).unlink()  # first: with it the finished model counts as unfinished
        shutil.rmtree(self.checkpoints)

    def complete(self, draft: Path, files: ModelFiles, report: FinetuningReport, *, is_new_head: bool) -> None:
        """Add to the trained weights what the model that they come from has, and what was done."""
        for name in FROM_THE_MODEL:
            if (files.folder / name).is_file():
                shutil.copyfile(files.folder / name, draft / name)
        if (files.folder / KEPT).is_dir():
            copy_contents(files.folder / KEPT, draft / KEPT, without=OF_CLASSES if is_new_head else "")
        repeat_unknown_row(draft, files.appended_rows)
        record = _read_object(self.checkpoints / RECORD)
        changed = {"model": name_for_others(report.model), "output": "", "results": None, RECORD_KEY: record}
        (draft / FINETUNING).write_text(finetuning_record_text({**asdict(report), **changed}), encoding="utf-8")
        (draft / CARD).write_text(finetuned_card(draft, files.folder, report), encoding="utf-8")

    def report(self, record: Mapping[str, object], *, usual: Mapping[str, object], model: str) -> FinetuningReport:
        """What the training that made this folder did, from what is now called `model`; `usual` as in `begin`.

        Raises InputError if it is not `record`'s, IntegrityError.
        """
        told = OpenedFolder(self.path).training
        try:
            begun = {**usual, **told[RECORD_KEY]}
            known = {each.name: told[each.name] for each in fields(FinetuningReport) if each.name in told}
            losses = {int(step): float(loss) for step, loss in told.get("losses", {}).items()}
            ids = {key: tuple(each) for key, each in told.get("misaligned", {}).items()}
            changed = {"model": model, "output": self.path, "losses": losses, "misaligned": ids}
            report = FinetuningReport(**{**known, **changed})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IntegrityError(f"{self.path / FINETUNING} is damaged: {error!r}; {TRAIN_AGAIN}") from error
        self._check_record(begun, record)
        return report

    def add_results(self, results: TaskResults) -> None:
        """Write scores next to the model, drawn if matplotlib is installed, and into its card. Raises InputError."""
        if self.processes.is_first:
            told = replace(results, model=name_for_others(results.model))
            write_results(self.path, told)
            put_results_in_card(self.path / CARD, told)
        self.processes.wait()


def name_for_others(model: str) -> str:
    """The name of `model` for a folder that is published: of a local path, the last part only."""
    return Path(model).resolve().name if Path(model).exists() else model


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _change(name: str, begun: object, wanted: object) -> str:
    option = name.replace("_", " ")
    if max(len(str(begun)), len(str(wanted))) > LONGEST_TOLD:
        return f"the {option} differ"
    return f"{option} {begun}, now {wanted}"


def _read_object(path: Path) -> dict[str, object]:
    try:
        return json_object(path, has_paths=True)
    except IntegrityError as error:
        raise IntegrityError(f"{error}; {TRAIN_AGAIN}") from error
