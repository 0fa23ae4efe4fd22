"""`evaluate`: what a fine-tuned model scores in each language, whether fairseq or we trained it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_xlmr.errors import InputError
from hf_xlmr.loading import ModelFiles, find_model
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tasks.encoding import PAIR_MARKS, Features, TaggedSpan, collate, encode_pairs, encode_words
from hf_xlmr.tasks.metrics import accuracy, mlqa_rules, score_answers, score_entities
from hf_xlmr.tasks.mlqa import Misalignment
from hf_xlmr.tasks.ner import NerExample
from hf_xlmr.tasks.question_answering import QuestionOptions, best_answers, row_of, windows_of
from hf_xlmr.tasks.recipes import Recipe, recipe_of
from hf_xlmr.tasks.results import TASK_METRICS, Setting, TaskResults, languages_of_pair
from hf_xlmr.tasks.task_data import Reading, TaskData, read_task_data
from hf_xlmr.tasks.task_models import exact_tokenizer, head_of, load_network, longest_text, quiet_transformers
from hf_xlmr.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "EvaluationOptions",
    "check_tags",
    "evaluate",
    "evaluate_data",
    "on_one_device",
    "question_options",
    "read_what_is_scored",
    "scores_of",
]

Logits: TypeAlias = "list[np.ndarray[Any, Any]]"


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What matters for scores, beside the model and the data."""

    split: str | None = None
    """Of data sets, such as test."""
    languages: tuple[str, ...] | None = None
    """The languages that are wanted (pairs such as en-de in MLQA); None for all there are."""
    misaligned: Misalignment = "keep"
    """What is done with questions whose answers stand elsewhere than they say; scores know no positions."""
    head: str | None = None
    """Of a checkpoint of fairseq's with several classification heads."""
    batch_size: int = 32
    """Texts, or windows of them, that are computed together on a device."""
    max_length: int | None = None
    """Of a text in tokens; None for what the task's recipe has."""
    stride: int | None = None
    """A window of a long text begins every so many tokens; None for 128, less where a window holds little."""
    max_answer: int = QuestionOptions.max_answer
    null_threshold: float | None = None
    """Of questions that may have no answer, as in SQuAD 2.0: see QuestionOptions."""
    bf16: bool = False
    cpu: bool = False
    """Even where there is a GPU."""


def evaluate(
    task: str,
    model: str,
    data: Sequence[str],
    *,
    options: EvaluationOptions | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> TaskResults:
    """The scores of `model` in every language of `data`.

    `model` is what `find_model` takes: a fine-tuned folder, a checkpoint that fairseq fine-tuned for XNLI, or the id of
    a repository on the Hub. `data` are inputs as `DataSource` reads them. Several processes under a launcher share the
    work, and each gets the whole result. Raises InputError, IntegrityError.
    """
    chosen, recipe = options or EvaluationOptions(), recipe_of(task)
    read = read_what_is_scored(task, data, chosen)
    files = find_model(model, revision=revision, progress=progress)
    return evaluate_data(recipe, model, files, read, options=chosen, progress=progress)


def read_what_is_scored(task: str, data: Sequence[str], options: EvaluationOptions) -> TaskData:
    """The examples, before anything is computed: all that can be told of them then. Raises InputError.

    A language that a task has no scores for is refused, and a task that is scored by a package that is not installed.
    """
    if task == "ner" and find_spec("seqeval") is None:
        raise InputError("scores of entities need seqeval: pip install 'hf-xlmr[train]'")
    reading = Reading(
        split=options.split, usual_split="test", languages=options.languages, misaligned=options.misaligned
    )
    read = read_task_data(task, data, reading)
    if task == "mlqa":
        for pair in read.examples:
            mlqa_rules(languages_of_pair(pair)[0])
    return read


def check_tags(data: TaskData, labels: Sequence[str] | None) -> None:
    """Raise InputError for the first word with a tag that is none of the `labels`, which could never be found."""
    known = set(labels or ())
    for example in (each for several in data.examples.values() for each in several):
        if isinstance(example, NerExample) and (unknown := [tag for tag in example.tags if tag not in known]):
            raise InputError(
                f"{example.place}: the label {unknown[0]!r} is unknown to the model; it has {', '.join(labels or ())}"
            )


def evaluate_data(
    recipe: Recipe,
    name: str,
    files: ModelFiles,
    data: TaskData,
    *,
    options: EvaluationOptions,
    progress: Progress = SILENT,
) -> TaskResults:
    """The scores of the model in `files`, called `name`, in every language. Raises InputError, IntegrityError."""
    scorer = _Scorer.of(recipe, files, options)
    check_tags(data, scorer.labels)
    scores = {}
    with progress.task("evaluating", total=data.count, unit="examples") as bar:
        for language, examples in data.examples.items():
            scores[language] = scorer.scores(language, examples)
            bar.advance(len(examples), note=f"({language})")
    settings: dict[str, Setting] = {"data": data.name}
    if options.split:
        settings["split"] = options.split
    settings |= {"max_length": scorer.max_length, "dtype": "bfloat16" if options.bf16 else "float32"}
    if recipe.task == "mlqa":
        settings |= {"stride": scorer.questions.stride, "max_answer": options.max_answer}
    return TaskResults(
        task=recipe.task,
        model=name,
        metrics=TASK_METRICS[recipe.task],
        scores=scores,
        counts={language: len(examples) for language, examples in data.examples.items()},
        skipped=data.skipped,
        settings=settings,
    )


# ---- a language ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scorer:
    """A network and what turns its answers into scores."""

    recipe: Recipe
    tokenizer: ExactTokenizer
    labels: tuple[str, ...] | None
    predictor: Any
    max_length: int
    questions: QuestionOptions

    @classmethod
    def of(cls, recipe: Recipe, files: ModelFiles, options: EvaluationOptions) -> _Scorer:
        """Load the network. Raises InputError where it has no head for the task."""
        head = head_of(files, recipe, name=options.head)
        if head is None:
            raise InputError(
                f"{files.folder} holds a {files.class_name}, which has no head for {recipe.task}: hf-xlmr finetune "
                f"{recipe.task} trains one"
            )
        max_length = longest_text(files, options.max_length, recipe.max_length)
        questions = question_options(max_length, options) if recipe.task == "mlqa" else QuestionOptions()
        predictor = _predictor(load_network(files, recipe, head), options)
        return cls(recipe, exact_tokenizer(files), head.labels, predictor, max_length, questions)

    def scores(self, language: str, examples: Sequence[Any]) -> dict[str, float]:
        """By metric, in percent."""
        return scores_of(self.recipe.task, language, examples, self.predictions(examples))

    def predictions(self, examples: Sequence[Any]) -> list[Any]:
        """What the network says of each example: a label, an answer, or a tag for each word."""
        return list(getattr(self, f"_{self.recipe.task}")(examples))

    def _xnli(self, examples: Sequence[Any]) -> Iterable[str]:
        labels = self.labels or ()
        rows = encode_pairs(examples, self.tokenizer, labels=labels, max_length=self.max_length)
        (logits,) = self._logits(rows)
        return [labels[int(each.argmax())] for each in logits]

    def _ner(self, examples: Sequence[Any]) -> Iterable[list[str]]:
        labels = self.labels or ()
        spans: list[TaggedSpan] = []

        def rows() -> Iterable[Any]:
            for span, row in encode_words(examples, self.tokenizer, labels=labels, max_length=self.max_length):
                spans.append(span)
                yield row

        (logits,) = self._logits(rows())
        tags: list[list[str]] = [[] for _ in examples]
        for span, each in zip(spans, logits, strict=True):
            tags[span.sentence] += [labels[int(each[place].argmax())] for place in span.places]
        return tags

    def _mlqa(self, examples: Sequence[Any]) -> Iterable[str]:
        windows = list(windows_of(examples, self.tokenizer, self.questions))
        starts, ends = self._logits(map(row_of, windows))
        ranked = best_answers(examples, windows, starts, ends, self.questions)
        return [each[0].text for each in ranked]

    def _logits(self, rows: Iterable[Any]) -> list[Logits]:
        """Each output of the network for each row, padding cut off where it has one for each token."""
        import numpy as np

        features = Features(rows)
        order = sorted(range(len(features)), key=features.length, reverse=True)  # alike lengths need no padding
        with quiet_transformers():
            outputs = self.predictor.predict(_Ordered(features, order)).predictions
        found = []
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            placed: list[Any] = [None] * len(order)
            for place, logits in zip(order, np.asarray(output), strict=True):
                placed[place] = logits[: features.length(place)] if self.recipe.task != "xnli" else logits
            found.append(placed)
        return found


def question_options(max_length: int, options: EvaluationOptions) -> QuestionOptions:
    """How questions are cut into windows; questions are cut shorter where a model takes few tokens."""
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

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.features[self.order[index]]["input_ids"]}


def on_one_device(arguments: Any) -> None:
    """Let a process use one GPU at most: Trainer would wrap in DataParallel, and multiply the batch by all it sees."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def _predictor(network: Any, options: EvaluationOptions) -> Any:
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
    return predictor


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores_of(task: str, language: str, examples: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """The metrics of the task for what was predicted of each example, in percent. Raises InputError."""
    if task == "xnli":
        return {"accuracy": accuracy(predictions, [each.label for each in examples])}
    if task == "ner":
        entities = score_entities(predictions, [each.tags for each in examples])
        return {"f1": entities.f1, "precision": entities.precision, "recall": entities.recall}
    return _answer_scores(language, examples, predictions)


def _answer_scores(language: str, examples: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
    """By MLQA's rules for the language of the context; no answer is right where there is none, as in SQuAD 2.0."""
    rules = mlqa_rules(languages_of_pair(language)[0])
    answered = [number for number, each in enumerate(examples) if each.answers]
    n_right_silent = sum(not predictions[number] for number, each in enumerate(examples) if not each.answers)
    n_silent = len(examples) - len(answered)
    if not answered:
        share = 100.0 * n_right_silent / n_silent
        return {"f1": share, "exact_match": share}
    numbered = {str(number): predictions[number] for number in answered}  # the ids of two files may be the same
    expected = ((str(number), [answer.text for answer in examples[number].answers]) for number in answered)
    scored = score_answers(numbered, expected, rules=rules)
    if not n_silent:
        return {"f1": scored.f1, "exact_match": scored.exact_match}
    return {
        metric: (value * len(answered) + 100.0 * n_right_silent) / len(examples)
        for metric, value in (("f1", scored.f1), ("exact_match", scored.exact_match))
    }
