"""`finetune`: a model trained for a task on Transformers' Trainer, from data to a finished folder with its scores."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.features.processes import DeviceProcesses, Processes
from hf_xlmr.hub_interface.languages import Languages
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.model.fingerprint import fingerprint
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tasks.encoding.encoding import collate
from hf_xlmr.tasks.evaluation import EvaluationOptions, evaluate_data, question_options, read_what_is_scored
from hf_xlmr.tasks.fitting.adapters import LORA_RANK, LORA_RATE, check_peft, check_rank, merged, with_adapters
from hf_xlmr.tasks.fitting.devices import check_bfloat16, on_one_device
from hf_xlmr.tasks.fitting.encoded_data import EncodedData, encoded_data
from hf_xlmr.tasks.fitting.finetuned_folder import FinetunedFolder, FinetuningReport
from hf_xlmr.tasks.fitting.task_models import (
    TaskHead,
    freeze_language_adapters,
    head_of,
    is_wide,
    load_network,
    longest_text,
)
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.registry import check_options_of_task, task_of
from hf_xlmr.tasks.kinds.task import AnyTask, Coding, Recipe, Setting
from hf_xlmr.tasks.kinds.task_data import MissingLanguages
from hf_xlmr.tasks.mlqa import Misalignment
from hf_xlmr.tasks.xnli import WithoutLabel
from hf_xlmr.tokenizer.plain_tokenizer import quiet_transformers

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, Trainer, TrainingArguments

__all__ = ["FinetuningOptions", "FinetuningReport", "finetune"]

logger = logging.getLogger(__name__)

SOURCE_LANGUAGE: Final = "en"
MODES: Final = ("zero-shot", "translate-train-all")
FREEZE_EMBEDDINGS, FREEZE_ADAPTERS = FREEZES = ("freeze_embeddings", "freeze_language_adapters")
SHARD_SIZE: Final = "5GB"  # as convert; Transformers itself writes up to 50 GB into a file
LOGGED_SHARE: Final = 0.05  # of all steps: a loss is noted twenty times

SEEDS: Final = 2**32  # NumPy takes no others
MOST: Final[Mapping[str, float]] = {  # beyond what anybody has time or memory for
    "learning_rate": sys.float_info.max,
    "epochs": 10**6,
    "max_steps": 10**8,
    **dict.fromkeys(("batch_size", "accumulate", "lora_rank", "save_steps"), 10**9),
}
HOLLOW: Final = (
    "this process was given no weights (fsdp_cpu_ram_efficient_loading: true), and accelerate would train a part of "
    "the model as if it were the whole: say false in the configuration, as those of hf_xlmr do"
)
LONG_WARMUP: Final = (
    "warmup=%g is %d of the training's %d steps: the learning rate rises from 0 in all of them and is never reached; "
    "give a lower one"
)
DIVERGED: Final = (
    "the training diverged: {reason}; lower the learning rate with learning_rate=. The checkpoints of this training "
    "stay in {checkpoints} until another training replaces them (overwrite=True)"
)


@dataclass(frozen=True, kw_only=True)
class FinetuningOptions:
    """How a model is trained; None is what the task's recipe has. Raises InputError."""

    mode: str = "zero-shot"
    """`zero-shot` trains on English alone, `translate-train-all` on every language of the data."""
    split: str | None = None
    """The split of data sets to train on."""
    misaligned: Misalignment = "refuse"
    """`refuse` training data with answers that are elsewhere than they say, or `skip` those."""
    unlabelled: WithoutLabel = "skip"
    """What is done with pairs of sentences on whose label the annotators did not agree."""
    labels: tuple[str, ...] | None = None
    """All tags of entities, in the order of their numbers, also in a new head; None for those of the data. For XNLI the
    labels in the order of the numbers in the data."""
    learning_rate: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    """The number of updates, in place of epochs."""
    batch_size: int | None = None
    """Examples of an update, over all devices."""
    accumulate: int = 1
    """In how many steps a device computes its share of a batch (gradient accumulation)."""
    warmup: float | None = None
    """Below 1 a share of all steps, else their number."""
    weight_decay: float | None = None
    max_length: int | None = None
    stride: int | None = None
    lora: bool = False
    lora_rank: int = LORA_RANK
    freeze_embeddings: bool | None = None
    """None freezes them for models of the XL kind, where they take a third of the memory that training adds, and for
    X-MOD."""
    freeze_language_adapters: bool | None = None
    """Of X-MOD: None freezes them, as fairseq's own task does, so that languages share what is trained."""
    activation_checkpointing: bool = False
    bf16: bool = False
    seed: int = 1
    save_steps: int = 500
    cpu: bool = False
    """Compute on the CPU even if there is a GPU."""

    def __post_init__(self) -> None:
        """Check every option before anything is read. Raises InputError."""
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode!s:.40}: give {' or '.join(MODES)}")
        if self.misaligned not in ("refuse", "skip"):
            raise InputError(f"misaligned={self.misaligned!r:.40}: training refuses such answers or skips them")
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                limit = f" and at most {most:,}" if value > most and isinstance(most, int) else ""
                raise InputError(f"{name}={value!s:.40}: it must be a number above 0{limit}")
        for name in ("warmup", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= sys.float_info.max:
                raise InputError(f"{name}={value!s:.40}: it must be a number, 0 or above")
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"seed={self.seed!s:.40}: it must be from 0 to {SEEDS - 1}")
        if self.epochs is not None and self.max_steps is not None:
            raise InputError(f"epochs={self.epochs:g} and max_steps={self.max_steps} both say how long: give one")
        if self.lora_rank != LORA_RANK and not self.lora:
            raise InputError(f"lora_rank={self.lora_rank!s:.40} is the rank of adapters: train them with lora=True")


def finetune(
    task: str,
    model: str,
    train: Sequence[str],
    output: str | Path,
    *,
    evaluation: Sequence[str] = (),
    options: FinetuningOptions | None = None,
    evaluation_options: EvaluationOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> FinetuningReport:
    """Train `model` for `task` on `train`, into the folder `output`, and score it on `evaluation`.

    `model` is what `find_model` takes, data are inputs as `DataSource` reads them. While training runs, `output` holds
    `checkpoints/` alone; the finished model comes last, a plain Transformers folder that keeps `fairseq/`, with its
    scores in `results.json`, `results.md` and its `README.md`. `resume` continues from the last checkpoint and ends
    with the weights of an unbroken run; for a finished folder it only makes the scores. Raises InputError,
    IntegrityError.
    """
    chosen, scoring, kind = options or FinetuningOptions(), evaluation_options or EvaluationOptions(), task_of(task)
    check_options_of_task(chosen, task)
    kind.check_label_names(chosen.labels)
    check_bfloat16(bf16=chosen.bf16, cpu=chosen.cpu)
    scoring.check(task)
    if not evaluation:
        _check_nothing_is_scored(scoring)
    if chosen.lora:
        check_peft()
    with told_plainly():
        folder = FinetunedFolder(Path(output), (Processes if chosen.cpu else DeviceProcesses).current())
        folder.check(resume=resume, overwrite=overwrite)
        scored = read_what_is_scored(task, evaluation, scoring) if evaluation else None
        files = find_model(model, revision=revision, progress=progress)
        training = _Training.of(kind, files, train, chosen, folder.processes, progress)
        if scored is not None:
            kind.language_numbers(scored.examples, Languages.of(files.shape.adapters))
        for examples in scored.examples.values() if scored else ():
            kind.check_known(examples, training.head.labels or ())
        if resume and folder.is_finished:
            report = folder.report(training.record(), usual=usual_record(), model=model)
        else:
            with folder.written():
                report = training.run(model, folder, resume=resume, progress=progress)
            _let_go()
        if scored is None:
            return report
        found = evaluate_data(kind, str(output), ModelFiles(folder.path), scored, options=scoring, progress=progress)
        results = replace(found.results, settings={**report.settings, **found.results.settings})
        with folder.written():
            folder.add_results(results)
        return replace(report, results=results)


def _let_go() -> None:
    """Free what was trained, with its optimizer's states, before the finished model is loaded to be scored.

    In bfloat16 accelerate lets a network refer to itself: a GPU would hold it until Python happens to collect cycles.
    """
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


OF_SCORES_ALONE: Final = ("split", "languages", "null_threshold")


def _check_nothing_is_scored(scoring: EvaluationOptions) -> None:
    if given := [f"evaluation_options.{name}=" for name in OF_SCORES_ALONE if getattr(scoring, name) is not None]:
        raise InputError(f"{' and '.join(given)}: this is about scores, for which evaluation= must name data")


@dataclass(frozen=True)
class _Training:
    """Everything that a training needs, read and checked."""

    task: AnyTask
    files: ModelFiles
    encoded: EncodedData
    head: TaskHead
    options: FinetuningOptions
    settings: Mapping[str, Setting]

    @classmethod
    def of(
        cls,
        task: AnyTask,
        files: ModelFiles,
        train: Sequence[str],
        options: FinetuningOptions,
        processes: Processes,
        progress: Progress,
    ) -> _Training:
        """Encode the data, or find them encoded: English alone, or every language. Raises InputError."""
        check_rank(options.lora_rank if options.lora else 1, files.shape)
        settings, found = _settings(task, files, options), head_of(files, task)
        reading = Reading(
            split=options.split,
            languages=(SOURCE_LANGUAGE,) if options.mode == "zero-shot" else None,
            misaligned=options.misaligned,
            unlabelled=options.unlabelled,
            labels=options.labels,
        )
        coding = _coding(files, found.labels if found else task.recipe.labels or options.labels, settings)
        try:
            encoded = encoded_data(task, train, reading, coding, processes=processes, progress=progress)
        except MissingLanguages as error:
            message = f"{error}; mode='zero-shot' trains on English, mode='translate-train-all' on all languages"
            raise MissingLanguages(message, error.languages) from error
        return cls(task, files, encoded, found or TaskHead(encoded.labels, is_new=True), options, settings)

    def run(self, model: str, folder: FinetunedFolder, *, resume: bool, progress: Progress) -> FinetuningReport:
        from transformers import set_seed

        arguments = _arguments(self.task.recipe, self.options, self.settings, folder)
        self._tell_of_long_warmup()
        folder.begin(self.record(), usual=usual_record(), resume=resume)
        checkpoint = folder.last_checkpoint() if resume else None
        set_seed(self.options.seed)  # a new head is drawn by it
        plain = self._network()
        parameters = sum(each.numel() for each in plain.parameters())  # of what is written: adapters are merged
        network = self._with_adapters(plain)
        trainable = sum(each.numel() for each in network.parameters() if each.requires_grad)
        trainer = self._trainer(network, arguments, folder, progress)
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if reason := _not_finite(trainer):
            raise InputError(DIVERGED.format(reason=reason, checkpoints=f"{folder.checkpoints}/"))
        report = FinetuningReport(
            task=self.task.name,
            model=model,
            output=folder.path,
            class_name=type(plain).__name__,
            mode=self.options.mode,
            trained_on=self.encoded.data.counts,
            skipped=self.encoded.data.skipped,
            misaligned=self.encoded.data.misaligned,
            steps=trainer.state.global_step,
            losses={int(each["step"]): each["loss"] for each in trainer.state.log_history if "loss" in each},
            parameters=parameters,
            trainable=trainable,
            settings=self.settings,
            results=None,
        )
        self._write(trainer, folder, report)
        return report

    def _tell_of_long_warmup(self) -> None:
        """Warn if the learning rate is never reached; in the first step of a warmup it is 0."""
        warmup, epochs = float(self.settings["warmup"]), float(self.settings.get("epochs", 0.0))
        per_epoch = math.ceil(len(self.encoded.features) / int(self.settings["batch_size"]))
        steps = int(self.settings.get("max_steps", max(math.ceil(epochs * per_epoch), 1)))
        rising = int(warmup) if warmup >= 1 else math.ceil(warmup * steps)  # as Trainer rounds a share
        if rising >= steps:
            logger.warning(LONG_WARMUP, warmup, rising, steps)

    def _network(self) -> PreTrainedModel:
        """The network with its head, frozen where the settings say so. Raises InputError, IntegrityError."""
        network = load_network(self.files, self.task.recipe, self.head)
        if any(each.is_meta for each in network.parameters()):
            raise InputError(HOLLOW)
        if self.settings[FREEZE_EMBEDDINGS]:
            network.base_model.get_submodule("embeddings").requires_grad_(requires_grad=False)
        if self.settings.get(FREEZE_ADAPTERS):
            freeze_language_adapters(network)
        return network

    def _with_adapters(self, network: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """`network`, with the adapters of LoRA inside it if they are wanted."""
        return with_adapters(network, self.task.recipe, rank=self.options.lora_rank) if self.options.lora else network

    def _trainer(
        self, network: nn.Module, arguments: TrainingArguments, folder: FinetunedFolder, progress: Progress
    ) -> Trainer:
        from transformers import PrinterCallback, Trainer

        from hf_xlmr.tasks.fitting.trainer_progress import CheckpointCallback, ProgressCallback

        with quiet_transformers():
            trainer = Trainer(
                model=network,
                args=arguments,
                train_dataset=self.encoded.features,
                data_collator=collate,
                callbacks=[ProgressCallback(progress), CheckpointCallback(folder.record_checkpoint)],
            )
        trainer.remove_callback(PrinterCallback)
        # the classes take the mean: Trainer would multiply it by the processes, and add up the parts of a batch
        trainer.model_accepts_loss_kwargs = False
        return trainer

    def _write(self, trainer: Trainer, folder: FinetunedFolder, report: FinetuningReport) -> None:
        """Write the finished folder: weights gathered from all processes, adapters merged, the files for fairseq."""
        with folder.draft() as draft, quiet_transformers():
            accelerator = trainer.accelerator
            weights = accelerator.get_state_dict(trainer.model)  # of all processes: each may hold a part of them
            if folder.processes.is_first:
                trained = accelerator.unwrap_model(trainer.model)
                trained.save_pretrained(draft, state_dict=weights, max_shard_size=SHARD_SIZE)
                if self.options.lora:
                    base = load_network(self.files, self.task.recipe, self.head)
                    merged(base, draft).save_pretrained(draft, max_shard_size=SHARD_SIZE)
                folder.complete(draft, self.files, report, is_new_head=self.head.is_new)

    def record(self) -> dict[str, object]:
        """What a resumed run must share with the one that it continues from."""
        return {
            "task": self.task.name,
            "model": fingerprint(self.files.folder),
            "data": self.encoded.digest,
            "labels": list(self.head.labels or ()),
            **_deciding(self.options),
            **self.settings,
        }


# change no weight, or are known from the data and the head
FREE: Final = ("save_steps", "cpu", "split", "misaligned", "unlabelled", "labels")


def usual_record() -> dict[str, object]:
    """What an option meant before there was that option: a run that an earlier hf_xlmr began has none of it."""
    return _deciding(FinetuningOptions())


def _deciding(options: FinetuningOptions) -> dict[str, object]:
    return {name: value for name, value in asdict(options).items() if name not in FREE}


def _settings(task: AnyTask, files: ModelFiles, options: FinetuningOptions) -> dict[str, Setting]:
    """The hyperparameters: what the user said, else the recipe's."""
    recipe = task.recipe
    rate = recipe.learning_rate_of_wide if is_wide(files) else recipe.learning_rate
    settings: dict[str, Setting] = {
        "mode": options.mode,
        "learning_rate": options.learning_rate or (LORA_RATE if options.lora else rate),
        "epochs": options.epochs or recipe.epochs,
        "batch_size": options.batch_size or recipe.batch_size,
        "warmup": recipe.warmup if options.warmup is None else options.warmup,
        "weight_decay": recipe.weight_decay if options.weight_decay is None else options.weight_decay,
        "max_length": longest_text(files, options.max_length, recipe.max_length),
        "lora": options.lora,
        **_frozen(files, options),
        "trained_in": "bfloat16" if options.bf16 else "float32",
        "seed": options.seed,
    }
    if options.max_steps is not None:
        del settings["epochs"]
        settings["max_steps"] = options.max_steps
    if "stride" in task.options:
        scoring = EvaluationOptions(stride=options.stride)
        settings["stride"] = question_options(int(settings["max_length"]), scoring).stride
    return settings


def _frozen(files: ModelFiles, options: FinetuningOptions) -> dict[str, Setting]:
    """What of the model is not trained. Raises InputError."""
    has_adapters, embeddings = files.shape.adapters is not None, options.freeze_embeddings
    adapters = options.freeze_language_adapters
    if not has_adapters and adapters is not None:
        raise InputError(f"{FREEZE_ADAPTERS}={adapters}: {files.name} is not an X-MOD and has none: leave it out")
    if options.lora and (trained := [name for name in FREEZES if getattr(options, name) is False]):
        raise InputError(f"{trained[0]}=False: lora=True trains its own adapters and the head alone: leave one out")
    return {
        FREEZE_EMBEDDINGS: is_wide(files) or has_adapters if embeddings is None else embeddings,
        **({FREEZE_ADAPTERS: adapters is not False} if has_adapters else {}),
    }


def _coding(files: ModelFiles, labels: tuple[str, ...] | None, settings: Mapping[str, Setting]) -> Coding:
    max_length, stride = int(settings["max_length"]), settings.get("stride")
    questions = question_options(max_length, EvaluationOptions(stride=None if stride is None else int(stride)))
    return Coding(files.needed_tokenizer(), labels or (), max_length, questions, Languages.of(files.shape.adapters))


def _arguments(
    recipe: Recipe, options: FinetuningOptions, settings: Mapping[str, Setting], folder: FinetunedFolder
) -> TrainingArguments:
    """The arguments of Trainer. Raises InputError for a batch that cannot be shared out."""
    from transformers import TrainingArguments

    warmup = float(settings["warmup"])
    checkpointing: dict[str, Any] = {_checkpointing(TrainingArguments): options.activation_checkpointing}
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=_share_of_device(settings, options, folder.processes),
        gradient_accumulation_steps=options.accumulate,
        num_train_epochs=float(settings.get("epochs", 1.0)),
        max_steps=int(settings.get("max_steps", -1)),
        learning_rate=float(settings["learning_rate"]),
        warmup_steps=warmup if warmup < 1 else int(warmup),
        weight_decay=float(settings["weight_decay"]),
        bf16=options.bf16,
        seed=options.seed,
        use_cpu=options.cpu,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=2,
        logging_steps=LOGGED_SHARE,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it logs another loss in place of one that is not finite
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=list(recipe.label_columns),
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # each step uses all: what is frozen is not a parameter of DDP's
        **checkpointing,
    )
    on_one_device(arguments)
    return arguments


def _share_of_device(settings: Mapping[str, Setting], options: FinetuningOptions, processes: Processes) -> int:
    """How many examples a device computes at once. Raises InputError for a batch that cannot be shared out."""
    parts = processes.count * options.accumulate
    share, rest = divmod(int(settings["batch_size"]), parts)
    if rest or not share:
        raise InputError(
            f"batch_size={settings['batch_size']} cannot be shared by {processes.count} processes in "
            f"{options.accumulate} parts each (accumulate=): give a multiple of {parts}"
        )
    return share


def _checkpointing(arguments: type) -> str:
    """How Transformers calls it: activation checkpointing, and gradient checkpointing before 5.23."""
    names = {each.name for each in fields(arguments)}
    return next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names)


def _not_finite(trainer: Trainer) -> str | None:
    """By which loss that was noted, or which weight, a training diverged; None if all is well."""
    for each in trainer.state.log_history:
        if "loss" in each and not math.isfinite(each["loss"]):
            return f"the loss at step {each['step']} is {each['loss']}"
    for name, weight in () if trainer.model is None else trainer.model.named_parameters():
        held = weight.to_local() if hasattr(weight, "to_local") else weight  # a process may hold a part of it
        if not bool(held.isfinite().all()):
            return f"{name} is not finite after the last step"
    return None
