"""Examples of a task out of several inputs, each with the language that its scores are told by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from hf_xlmr.errors import InputError, printable
from hf_xlmr.tasks.example_data import example_data
from hf_xlmr.tasks.mlqa import Misaligned, Misalignment, QuestionExample, QuestionInput, open_questions
from hf_xlmr.tasks.ner import NerExample, open_ner
from hf_xlmr.tasks.results import key_of_pair
from hf_xlmr.tasks.xnli import XnliExample, open_xnli
from hf_xlmr.text_files import is_hub_name

__all__ = ["DataSource", "Example", "MissingLanguages", "Reading", "TaskData", "language_of", "read_task_data"]

Example: TypeAlias = XnliExample | QuestionExample | NerExample

DEMO: Final = "demo"
LANGUAGE: Final = r"[a-z]{2,3}(?:-[a-z]{2,3})?"
TOLD: Final = re.compile(rf"(?P<language>{LANGUAGE})=(?P<source>.+)", re.DOTALL)


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
        if text == DEMO and not Path(text).exists():
            return cls(example_data(task, part))
        language = None
        if not Path(text).exists() and (told := TOLD.fullmatch(text)):
            language, text = told["language"], told["source"]
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


@dataclass(frozen=True)
class TaskData:
    """Examples by language (in MLQA by pair), in the order of the inputs."""

    name: str
    examples: dict[str, list[Example]]
    misaligned: tuple[Misaligned, ...] = ()
    """The answers that do not stand where they should."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many examples were left out for them, by language."""

    @property
    def count(self) -> int:
        """How many examples there are."""
        return sum(map(len, self.examples.values()))


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
    found: dict[str, list[Example]] = {}
    misaligned: list[Misaligned] = []
    skipped: Counter[str] = Counter()
    for text in sources:
        source = DataSource.parse(text, task=task, part=reading.usual_split)
        for part in _parts(task, source, reading):
            _add(found, part)
            if isinstance(part, QuestionInput) and reading.misaligned != "refuse":
                misaligned += part.misaligned
                if reading.misaligned == "skip" and part.misaligned:
                    skipped[_pair(part)] += len({each.id for each in part.misaligned})
    name = ", ".join(sources)
    kept = _wanted(name, found, reading.languages)
    return TaskData(name, kept, tuple(misaligned), {key: skipped[key] for key in kept if skipped[key]})


def _parts(task: str, source: DataSource, reading: Reading) -> Iterable[Iterable[Example]]:
    """The inputs of one source: for MLQA one for each pair of languages, since all pairs share their ids."""
    split = reading.split or (reading.usual_split if _has_splits(source.source) else None)
    if task == "xnli":
        return (open_xnli(source.source, language=source.language, split=split, config=source.config),)
    if task == "ner":
        return (open_ner(source.source, language=source.language, split=split, config=source.config),)
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


def _has_splits(source: str) -> bool:
    """Whether it is a data set whose splits lie side by side."""
    path = Path(source)
    return (path / "dataset_dict.json").is_file() or (not path.exists() and is_hub_name(source))


def _add(found: dict[str, list[Example]], part: Iterable[Example]) -> None:
    for example in part:
        found.setdefault(language_of(example), []).append(example)


def _pair(part: QuestionInput) -> str:
    _, context, question = part.parts[0]
    return key_of_pair(context, question)


def _wanted(name: str, found: dict[str, list[Example]], languages: tuple[str, ...] | None) -> dict[str, list[Example]]:
    """The examples of the `languages`, in the order in which they are asked for. Raises InputError."""
    if not any(found.values()):
        raise InputError(printable(f"{name}: no examples are left"))
    if languages is None:
        return found
    if missing := [each for each in languages if each not in found]:
        has = ", ".join(found)
        raise MissingLanguages(f"{name} holds no examples of {', '.join(map(repr, missing))}; it has {has}", missing)
    return {language: found[language] for language in languages}
