"""Examples of a task out of several inputs, each with the language that its scores are told by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from hf_xlmr.data.text_files import is_hub_name
from hf_xlmr.errors import InputError, printable
from hf_xlmr.files.own_names import DEMO, own_name
from hf_xlmr.tasks.example_data import example_data
from hf_xlmr.tasks.mlqa import Misalignment, QuestionExample, QuestionInput, open_questions
from hf_xlmr.tasks.ner import NerExample, check_tags, open_ner
from hf_xlmr.tasks.results import LEFT_OUT, key_of_pair, languages_of_pair
from hf_xlmr.tasks.xnli import Unlabelled, WithoutLabel, XnliExample, XnliInput, check_order, open_xnli

__all__ = [
    "DataSource",
    "Example",
    "MissingLanguages",
    "Reading",
    "TaskData",
    "check_labels",
    "language_of",
    "read_task_data",
]

Example: TypeAlias = XnliExample | QuestionExample | NerExample

LANGUAGE: Final = r"[a-z]{2,3}(?:-[a-z]{2,3})?"
TOLD: Final = re.compile(rf"(?P<language>{LANGUAGE})=(?P<source>.+)", re.DOTALL | re.IGNORECASE)


class MissingLanguages(InputError):
    """Languages that were asked for, and that the data lack."""

    def __init__(self, told: str, languages: Sequence[str]) -> None:
        """Carry the languages that are missing."""
        self.languages = tuple(languages)
        super().__init__(printable(told))


@dataclass(frozen=True)
class DataSource:
    """What a user wrote as data: `FILE`, `de=FILE`, `en-de=FILE`, `owner/name` or `owner/name@config`."""

    source: str
    language: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str, *, task: str, part: str) -> DataSource:
        """The parts of `text`; what exists under the whole of it is a file, and `demo` what comes with the package."""
        if own_name(text) == DEMO:
            return cls(example_data(task, part))
        language = None
        if not Path(text).exists() and (told := TOLD.fullmatch(text)):
            language, text = told["language"].lower(), told["source"]
        name, _, config = text.rpartition("@")
        if is_hub_name(name) and config and not Path(text).exists():
            return cls(name, language, config)
        return cls(text, language)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What of the inputs is wanted."""

    split: str | None = None
    """Of data sets; None for the `usual_split` where there are several."""
    usual_split: str = "train"
    languages: tuple[str, ...] | None = None
    """The languages, or the pairs of context and question in MLQA; None for all there are."""
    misaligned: Misalignment = "refuse"
    """What is done with questions of which an answer does not stand where it should."""
    unlabelled: WithoutLabel = "skip"
    """What is done with pairs of sentences on whose label the annotators did not agree."""
    labels: tuple[str, ...] | None = None
    """All tags of entities, or the labels of XNLI, in the order of their numbers; None where the data tell them."""


@dataclass(frozen=True)
class TaskData:
    """Examples by language (in MLQA by pair), in the order of the inputs."""

    name: str
    examples: dict[str, list[Example]]
    counts: dict[str, int]
    """How many examples there are, by language."""
    misaligned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The ids of questions of which an answer does not stand where it should, left out or not, by language."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many examples were left out, by language: for such answers, or for want of a label, or of words."""

    @property
    def count(self) -> int:
        """How many examples there are."""
        return sum(self.counts.values())

    def without_examples(self) -> TaskData:
        """What is told of them alone."""
        return replace(self, examples={})


def language_of(example: Example) -> str:
    """What its scores are told by: the language, or `en-de` for an English context and a German question."""
    if not isinstance(example, QuestionExample):
        return example.language
    return key_of_pair(example.context_language, example.question_language)


def read_task_data(task: str, sources: Sequence[str], reading: Reading) -> TaskData:
    """The examples of `task` in all `sources`.

    Raises InputError for what cannot be read, for no examples, and for a language that was asked for and is not there;
    MisalignedAnswers where those are refused.
    """
    gathered = _Gathered()
    for text in sources:
        source = DataSource.parse(text, task=task, part=reading.usual_split)
        split = reading.split or (reading.usual_split if _has_splits(source.source) else None)
        for part in PARTS[task](source, split, reading):
            gathered.add(part, reading)
    name = ", ".join(sources)
    kept = _examples_of(reading.languages, task, name, gathered)
    misaligned = {key: tuple(gathered.misaligned[key]) for key in kept if key in gathered.misaligned}
    skipped = {key: gathered.skipped[key] for key in kept if gathered.skipped[key]}
    return TaskData(name, kept, {key: len(each) for key, each in kept.items()}, misaligned, skipped)


# ---- the inputs of a source ------------------------------------------------------------------------------------------

Part: TypeAlias = Iterable[Example]


def _xnli_parts(source: DataSource, split: str | None, reading: Reading) -> Iterable[Part]:
    opened = open_xnli(
        source.source,
        language=source.language,
        unlabelled=reading.unlabelled,
        labels=reading.labels,
        split=split,
        config=source.config,
    )
    return (opened,)


def _ner_parts(source: DataSource, split: str | None, reading: Reading) -> Iterable[Part]:
    opened = open_ner(source.source, language=source.language, labels=reading.labels, split=split, config=source.config)
    return (opened,)


def _mlqa_parts(source: DataSource, split: str | None, reading: Reading) -> Iterable[Part]:
    """One input for each pair of languages, since all pairs share their ids."""
    context, _, question = (source.language or "").partition("-")
    opened = open_questions(
        source.source,
        context_language=context or None,
        question_language=question or context or None,
        misaligned=reading.misaligned,
        split=split,
        config=source.config,
    )
    pairs = dict.fromkeys(part[1:] for part in opened.parts)
    return [
        QuestionInput(opened.name, tuple(part for part in opened.parts if part[1:] == pair), opened.misalignment)
        for pair in pairs
    ]


PARTS: Final[Mapping[str, Callable[[DataSource, str | None, Reading], Iterable[Part]]]] = MappingProxyType(
    {"xnli": _xnli_parts, "mlqa": _mlqa_parts, "ner": _ner_parts}
)


def check_labels(task: str, labels: Sequence[str] | None) -> None:
    """Raise InputError for `labels` that the task cannot have."""
    if labels is not None and task in CHECKS:
        CHECKS[task](labels)


CHECKS: Final[Mapping[str, Callable[[Sequence[str]], None]]] = {"xnli": check_order, "ner": check_tags}


def _has_splits(source: str) -> bool:
    """Whether it is a data set whose splits lie side by side."""
    path = Path(source)
    return (path / "dataset_dict.json").is_file() or (not path.exists() and is_hub_name(source))


# ---- what they hold --------------------------------------------------------------------------------------------------


@dataclass
class _Gathered:
    """Examples, and what was found amiss among them, by language."""

    found: dict[str, list[Example]] = field(default_factory=dict)
    misaligned: dict[str, list[str]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, part: Part, reading: Reading) -> None:
        """Read an input to its end. Raises InputError."""
        for example in part.rows() if isinstance(part, XnliInput) else part:
            if isinstance(example, Unlabelled) or (isinstance(example, NerExample) and not example.tokens):
                self.skipped[example.language] += 1
            else:
                self.found.setdefault(language_of(example), []).append(example)
        if isinstance(part, QuestionInput) and reading.misaligned != "refuse" and part.misaligned:
            ids = dict.fromkeys(each.id for each in part.misaligned)
            self.misaligned.setdefault(_pair(part), []).extend(ids)
            if reading.misaligned == "skip":
                self.skipped[_pair(part)] += len(ids)


def _pair(part: QuestionInput) -> str:
    _, context, question = part.parts[0]
    return key_of_pair(context, question)


def _examples_of(
    languages: tuple[str, ...] | None, task: str, name: str, gathered: _Gathered
) -> dict[str, list[Example]]:
    """The examples of the `languages`, in the order in which they are asked for. Raises InputError."""
    found = gathered.found
    if not any(found.values()):
        left_out = gathered.skipped.total()
        why = f"; {left_out:,} were left out, {LEFT_OUT[task]}" if left_out else ""
        raise InputError(printable(f"{name}: no examples are left{why}"))
    if languages is None:
        return found
    asked = tuple(dict.fromkeys(_key(task, each) for each in languages))
    if missing := [each for each in asked if each not in found]:
        has = ", ".join(found)
        raise MissingLanguages(f"{name} holds no examples of {', '.join(map(repr, missing))}; it has {has}", missing)
    return {language: found[language] for language in asked}


def _key(task: str, language: str) -> str:
    """By what examples in `language` are found: in small letters, and `en-en` is `en`."""
    small = language.lower()
    return key_of_pair(*languages_of_pair(small)) if task == "mlqa" else small
