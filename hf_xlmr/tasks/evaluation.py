"""`evaluate`: what a fine-tuned model scores in each language, whether fairseq or we trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.hub_interface.languages import Languages
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.model.folder_records import FINETUNING
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tasks.encoding.encoding import PAIR_MARKS, Features, Row, batches_of, collate, in_language, without_labels
from hf_xlmr.tasks.encoding.question_answering import QuestionOptions
from hf_xlmr.tasks.evaluation_folder import evaluation_folder, predictions_folder, write_results
from hf_xlmr.tasks.fitting.devices import check_bfloat16, on_one_device
from hf_xlmr.tasks.fitting.task_models import head_of, load_network, longest_text
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.registry import check_options_of_task, task_of
from hf_xlmr.tasks.kinds.task import AnyTask, Coding, Logits, Setting
from hf_xlmr.tasks.kinds.task_data import TaskData, read_task_data
from hf_xlmr.tasks.mlqa import Misalignment
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.xnli import WithoutLabel
from hf_xlmr.tokenizer.plain_tokenizer import quiet_transformers

if TYPE_CHECKING:
    from torch.utils.data import Dataset
    from transformers import PreTrainedModel, Trainer

__all__ = ["Evaluation", "EvaluationOptions", "evaluate", "evaluate_data", "question_options", "read_what_is_scored"]


LENGTHS: Final = ("max_length", "stride")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What scores depend on, besides the model and the data. Raises InputError."""

    split: str | None = None
    """The split of data sets, such as test."""
    languages: tuple[str, ...] | None = None
    """The languages that are wanted (pairs such as en-de in MLQA); None for all there are."""
    misaligned: Misalignment = "keep"
    """What is done with questions whose answers are elsewhere than they say; scores know no positions."""
    unlabelled: WithoutLabel = "skip"
    """What is done with pairs of sentences on whose label the annotators did not agree."""
    labels: tuple[str, ...] | None = None
    """All tags of entities, or the labels of XNLI, in the order of their numbers, if the data have only numbers."""
    head: str | None = None
    """The head to score, if a checkpoint of fairseq's has several."""
    batch_size: int = 32
    """Texts, or windows of them, that are computed together on a device."""
    max_length: int | None = None
    """The most tokens of a text; None for the value of the training, or if unknown, of the task's recipe."""
    stride: int | None = None
    """The distance between the windows over a long text, in tokens; None for the value of the training if `max_length`
    is None too, else for 128, or less if a window holds little."""
    max_answer: int = QuestionOptions.max_answer
    null_threshold: float | None = None
    """For questions that may have no answer, as in SQuAD 2.0: see QuestionOptions."""
    bf16: bool = False
    cpu: bool = False
    """Compute on the CPU even if there is a GPU."""

    def __post_init__(self) -> None:
        """Check every option before anything is read. Raises InputError."""
        for name in ("batch_size", "max_length", "stride", "max_answer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: it must be 1 or more")
        QuestionOptions(null_threshold=self.null_threshold)

    def check(self, task: str) -> None:
        """Raise InputError for an option that means nothing in `task`, or on this machine."""
        check_options_of_task(self, task)
        task_of(task).check_label_names(self.labels)
        check_bfloat16(bf16=self.bf16, cpu=self.cpu)


def evaluate(
    task: str,
    model: str,
    data: Sequence[str],
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    references: bool = False,
    options: EvaluationOptions | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> TaskResults:
    """The scores of `model` in every language of `data`; `output` is a folder for them and for what was predicted.

    `model` is what `find_model` takes: a fine-tuned folder, a checkpoint that fairseq fine-tuned for XNLI, or the id of
    a repository on the Hub. `data` are inputs as `DataSource` reads them. `output` appears when it is whole, and is
    refused where it exists, unless `overwrite`; with `references` its table and figure show what was published, too.
    Several processes under a launcher share the work, and each gets the whole result. Raises InputError,
    IntegrityError.
    """
    chosen, kind = options or EvaluationOptions(), task_of(task)
    with told_plainly(), evaluation_folder(output, overwrite=overwrite) as folder:
        read = read_what_is_scored(task, data, chosen)
        if output is not None:
            kind.check_writable(read.examples)
        files = find_model(model, revision=revision, progress=progress)
        found = evaluate_data(kind, model, files, read, options=chosen, progress=progress)
        if folder is not None:
            write_results(folder, found.results, references=references)
            kind.write(predictions_folder(folder, kind.predictions_readme), read.examples, found.predictions)
    return found.results


def read_what_is_scored(task: str, data: Sequence[str], options: EvaluationOptions) -> TaskData:
    """The examples, checked as far as they can be before anything is computed. Raises InputError.

    A language that a task has no scores for is refused, and a task that is scored by a package that is not installed.
    """
    options.check(task)
    reading = Reading(
        split=options.split,
        usual_split="test",
        languages=options.languages,
        misaligned=options.misaligned,
        unlabelled=options.unlabelled,
        labels=options.labels,
    )
    read = read_task_data(task, data, reading)
    task_of(task).check_scorable(read.examples)
    return read


@dataclass(frozen=True)
class Evaluation:
    """What a model said, and what that is worth."""

    results: TaskResults
    predictions: Mapping[str, Sequence[object]]
    """The prediction for each example, by language: a label, an answer, or a tag for each word."""


def evaluate_data(
    task: AnyTask,
    name: str,
    files: ModelFiles,
    data: TaskData,
    *,
    options: EvaluationOptions,
    progress: Progress = SILENT,
) -> Evaluation:
    """Predictions and scores of the model in `files`, called `name`, in every language.

    Raises InputError, IntegrityError.
    """
    numbers = task.language_numbers(data.examples, Languages.of(files.shape.adapters))
    scorer = _Scorer.of(task, files, options)
    for examples in data.examples.values():
        task.check_known(examples, scorer.coding.labels)
    predictions: dict[str, Sequence[object]] = {}
    with progress.task("evaluating", total=sum(data.counts.values()), unit="examples") as bar:
        for language, examples in data.examples.items():
            predictions[language] = scorer.predictions(examples, numbers[language])
            bar.advance(len(examples), note=f"({language})")
    split: dict[str, Setting] = {"split": options.split} if options.split else {}
    results = TaskResults(
        task=task.name,
        model=name,
        metrics=task.scoring.metrics,
        scores={key: task.score(key, examples, predictions[key]) for key, examples in data.examples.items()},
        counts=data.counts,
        skipped=data.skipped,
        misaligned=data.misaligned,
        settings={
            "data": data.name,
            **split,
            "max_length": scorer.coding.max_length,
            "dtype": "bfloat16" if options.bf16 else "float32",
            **task.settings(scorer.coding),
        },
    )
    return Evaluation(results, predictions)


@dataclass(frozen=True)
class _Scorer:
    """A network and what turns its answers into scores."""

    task: AnyTask
    coding: Coding
    predictor: Trainer

    @classmethod
    def of(cls, task: AnyTask, files: ModelFiles, options: EvaluationOptions) -> _Scorer:
        head = head_of(files, task, name=options.head)
        if head is None:
            raise InputError(
                f"{files.name} holds a {files.class_name}, which has no head for {task.name}: fine-tune it "
                "for that task first"
            )
        options = _as_trained(options, files, task)
        max_length = longest_text(files, options.max_length, task.recipe.max_length)
        questions = question_options(max_length, options)
        languages = Languages.of(files.shape.adapters)
        coding = Coding(files.needed_tokenizer(), head.labels or (), max_length, questions, languages)
        network = load_network(files, task.recipe, head)
        network.requires_grad_(requires_grad=False)  # autocast keeps bfloat16 copies of all weights that are trained
        return cls(task, coding, _predictor(network, options))

    def predictions(self, examples: Sequence[object], language: int | None) -> Sequence[object]:
        """What the network says of each example, in the language of that number if it has any."""
        return self.task.predict(examples, self.coding, lambda rows: self._logits(in_language(rows, language)))

    def _logits(self, rows: Iterable[Row]) -> list[Logits]:
        """Each output of the network for each row, padding cut off if it has one for each token."""
        import numpy as np

        features, has_a_row_per_token = Features(batches_of(rows)), self.task.recipe.has_a_row_per_token
        order = sorted(range(len(features)), key=features.length, reverse=True)  # alike lengths need no padding
        with quiet_transformers():
            outputs = self.predictor.predict(cast("Dataset[Row]", _Ordered(features, order))).predictions
        found = []
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            placed = {
                place: logits[: features.length(place)] if has_a_row_per_token else logits
                for place, logits in zip(order, np.asarray(output), strict=True)
            }
            found.append([placed[place] for place in range(len(order))])
        return found


def _as_trained(options: EvaluationOptions, files: ModelFiles, task: AnyTask) -> EvaluationOptions:
    """`options`; unless they say how long texts are, as long as those that the model was trained on, if it says.

    Raises IntegrityError.
    """
    if options.max_length is not None or files.training.get("task") != task.name:
        return options
    settings = files.training.get("settings")
    told = {name: settings.get(name) for name in LENGTHS} if isinstance(settings, Mapping) else {}
    lengths = {name: value for name, value in told.items() if value is not None and getattr(options, name) is None}
    if odd := [name for name, value in lengths.items() if type(value) is not int or value < 1]:
        raise IntegrityError(f"{files.name}/{FINETUNING} is damaged: {odd[0]} is {lengths[odd[0]]!r:.40}")
    return replace(options, **lengths)


def question_options(max_length: int, options: EvaluationOptions) -> QuestionOptions:
    """How questions are cut into windows; questions are cut shorter if a model takes few tokens."""
    longest_question = min(QuestionOptions.max_question, max_length // 2 - 2)
    room = max_length - longest_question - PAIR_MARKS
    return QuestionOptions(
        max_length=max_length,
        stride=min(QuestionOptions.stride, max(1, room // 2)) if options.stride is None else options.stride,
        max_question=longest_question,
        max_answer=options.max_answer,
        null_threshold=options.null_threshold,
    )


@dataclass(frozen=True)
class _Ordered:
    """Features in another order, without their labels: what is predicted needs none."""

    features: Features
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Row:
        return without_labels(self.features[self.order[index]])


def _predictor(network: PreTrainedModel, options: EvaluationOptions) -> Trainer:
    """A Trainer that trains nothing: it knows devices, launchers and precision."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written there
        per_device_eval_batch_size=options.batch_size,
        bf16=options.bf16,
        use_cpu=options.cpu,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    on_one_device(arguments)
    with quiet_transformers():
        predictor = Trainer(model=network, args=arguments, data_collator=collate)
    predictor.remove_callback(PrinterCallback)
    if predictor.accelerator.is_fsdp2:
        _share_out(predictor, network)
    return predictor


def _share_out(predictor: Trainer, network: PreTrainedModel) -> None:
    """Let each process hold a part of the weights: accelerate does so only with an optimizer, here one at rest."""
    import torch

    idle = torch.optim.SGD(network.parameters(), lr=0.0)
    predictor.model = predictor.model_wrapped = predictor.accelerator.prepare(network, idle)[0]
