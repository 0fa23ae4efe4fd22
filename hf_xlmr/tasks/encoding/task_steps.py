"""What each task does with its examples: numbers for the network, predictions from its answers, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.encoding.encoding import Row, TaggedSpan, encode_pairs, encode_words
from hf_xlmr.tasks.encoding.question_answering import (
    QuestionOptions,
    best_answers,
    encode_questions,
    row_of,
    windows_of,
)
from hf_xlmr.tasks.encoding.task_data import TaskData
from hf_xlmr.tasks.metrics import accuracy, mlqa_rules, score_answers, score_entities, unanswered_rules
from hf_xlmr.tasks.output.prediction_files import check_ids, check_names, write_answers, write_columns, write_labels
from hf_xlmr.tasks.results import Setting, languages_of_pair
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["STEPS", "Coding", "Logits", "TaskSteps"]

Logits: TypeAlias = "list[np.ndarray[Any, Any]]"
Examples: TypeAlias = Sequence[Any]
Network: TypeAlias = "Callable[[Iterable[Row]], list[Logits]]"
"""Each output of a network for each row, padding cut off where it has one for each token."""


@dataclass(frozen=True)
class Coding:
    """How texts become numbers for one network, and its answers predictions."""

    tokenizer: ExactTokenizer
    labels: tuple[str, ...]
    """By number; empty where the task has none."""
    max_length: int
    questions: QuestionOptions


@dataclass(frozen=True)
class TaskSteps:
    """The functions of a task."""

    check: Callable[[TaskData], None]
    """Raises InputError for what can never be scored, before anything is computed."""
    check_labels: Callable[[Examples, Sequence[str]], None]
    """Raises InputError for an example whose labels a model does not have."""
    labels: Callable[[Examples], tuple[str, ...] | None]
    """Those of a new head, out of the examples; None where the recipe tells them, or there are none."""
    encode: Callable[[Examples, Coding], Iterable[Row]]
    """What is trained on."""
    predict: Callable[[Examples, Coding, Network], list[Any]]
    """What a network says of each example: a label, an answer, or a tag for each word."""
    score: Callable[[str, Examples, Sequence[Any]], dict[str, float]]
    """The metrics of predictions in a language, in percent. Raises InputError."""
    settings: Callable[[Coding], Mapping[str, Setting]]
    """What matters for repeating the scores, beside what all tasks have."""
    check_writable: Callable[[TaskData], None]
    """Raises InputError for examples whose predictions cannot be told apart in a file."""
    write: Callable[[Path, Mapping[str, Examples], Mapping[str, Sequence[Any]]], None]
    """Predictions into a folder, as the official scripts read them."""
    has_a_row_per_token: bool = True
    """Whether the network answers for each token, and not for a text."""


def _nothing(*_: object) -> None:
    """Where there is nothing to check, or to tell."""


def _no_settings(_: Coding) -> Mapping[str, Setting]:
    return {}


# ---- xnli ------------------------------------------------------------------------------------------------------------


def _encoded_pairs(examples: Examples, coding: Coding) -> Iterable[Row]:
    return encode_pairs(examples, coding.tokenizer, labels=coding.labels, max_length=coding.max_length)


def _predicted_labels(examples: Examples, coding: Coding, network: Network) -> list[str]:
    (logits,) = network(_encoded_pairs(examples, coding))
    return [coding.labels[int(each.argmax())] for each in logits]


def _label_scores(_: str, examples: Examples, predictions: Sequence[str]) -> dict[str, float]:
    return {"accuracy": accuracy(predictions, [each.label for each in examples])}


# ---- ner -------------------------------------------------------------------------------------------------------------


def _check_seqeval(_: TaskData) -> None:
    if find_spec("seqeval") is None:
        raise InputError("scores of entities need seqeval: pip install 'hf-xlmr[train]'")


def _check_tags(examples: Examples, labels: Sequence[str]) -> None:
    """Raise InputError for the first word with a tag that is none of the `labels`, which could never be found."""
    known = set(labels)
    for example in examples:
        if unknown := [tag for tag in example.tags if tag not in known]:
            raise InputError(
                f"{example.place}: the label {unknown[0]!r} is unknown to the model; it has {', '.join(labels)}"
            )


def _tags(examples: Examples) -> tuple[str, ...]:
    """All tags of the data, `O` first and the parts of a type together."""
    tags = {tag for each in examples for tag in each.tags}
    return tuple(sorted(tags | {"O"}, key=lambda tag: (tag != "O", tag.partition("-")[2], tag)))


def _encoded_words(examples: Examples, coding: Coding) -> Iterable[Row]:
    pairs = encode_words(examples, coding.tokenizer, labels=coding.labels, max_length=coding.max_length)
    return (row for _, row in pairs)


def _predicted_tags(examples: Examples, coding: Coding, network: Network) -> list[list[str]]:
    spans: list[TaggedSpan] = []

    def rows() -> Iterable[Row]:
        for span, row in encode_words(examples, coding.tokenizer, labels=coding.labels, max_length=coding.max_length):
            spans.append(span)
            yield row

    (logits,) = network(rows())
    tags: list[list[str]] = [[] for _ in examples]
    for span, each in zip(spans, logits, strict=True):
        tags[span.sentence] += [coding.labels[int(each[place].argmax())] for place in span.places]
    return tags


def _entity_scores(_: str, examples: Examples, predictions: Sequence[list[str]]) -> dict[str, float]:
    entities = score_entities(predictions, [each.tags for each in examples])
    return {"f1": entities.f1, "precision": entities.precision, "recall": entities.recall}


# ---- mlqa ------------------------------------------------------------------------------------------------------------


def _check_rules(data: TaskData) -> None:
    for pair in data.examples:
        mlqa_rules(languages_of_pair(pair)[0])


def _encoded_questions(examples: Examples, coding: Coding) -> Iterable[Row]:
    return encode_questions(examples, coding.tokenizer, coding.questions)


def _predicted_answers(examples: Examples, coding: Coding, network: Network) -> list[str]:
    windows = list(windows_of(examples, coding.tokenizer, coding.questions))
    starts, ends = network(map(row_of, windows))
    return [each[0].text for each in best_answers(examples, windows, starts, ends, coding.questions)]


def _answer_scores(language: str, examples: Examples, predictions: Sequence[str]) -> dict[str, float]:
    """By MLQA's rules for the language of the context, or by SQuAD 2.0's where some questions have no answer."""
    rules_of = mlqa_rules if all(each.answers for each in examples) else unanswered_rules
    numbered = {str(number): each for number, each in enumerate(predictions)}  # the ids of two files may be the same
    expected = ((str(number), [answer.text for answer in each.answers]) for number, each in enumerate(examples))
    scored = score_answers(numbered, expected, rules=rules_of(languages_of_pair(language)[0]))
    return {"f1": scored.f1, "exact_match": scored.exact_match}


def _window_settings(coding: Coding) -> Mapping[str, Setting]:
    told: dict[str, Setting] = {"stride": coding.questions.stride, "max_answer": coding.questions.max_answer}
    if coding.questions.null_threshold is not None:
        told["null_threshold"] = coding.questions.null_threshold
    return told


# ---- all -------------------------------------------------------------------------------------------------------------

STEPS: Final[Mapping[str, TaskSteps]] = MappingProxyType(
    {
        "xnli": TaskSteps(
            check=_nothing,
            check_labels=_nothing,
            labels=_nothing,
            encode=_encoded_pairs,
            predict=_predicted_labels,
            score=_label_scores,
            settings=_no_settings,
            check_writable=_nothing,
            write=write_labels,
            has_a_row_per_token=False,
        ),
        "mlqa": TaskSteps(
            check=_check_rules,
            check_labels=_nothing,
            labels=_nothing,
            encode=_encoded_questions,
            predict=_predicted_answers,
            score=_answer_scores,
            settings=_window_settings,
            check_writable=check_ids,
            write=write_answers,
        ),
        "ner": TaskSteps(
            check=_check_seqeval,
            check_labels=_check_tags,
            labels=_tags,
            encode=_encoded_words,
            predict=_predicted_tags,
            score=_entity_scores,
            settings=_no_settings,
            check_writable=check_names,
            write=write_columns,
        ),
    }
)
