"""Questions of MLQA and SQuAD, and where in their contexts the answers stand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeVar

from hf_xlmr.errors import InputError, printable, told_plainly
from hf_xlmr.tasks.rows import PARQUET, Row, Source, find_sources
from hf_xlmr.text_rows import JSON_TYPES, BadRow, checked_text, why_no_column

__all__ = [
    "Answer",
    "Misaligned",
    "MisalignedAnswers",
    "QuestionExample",
    "QuestionInput",
    "open_questions",
    "told_ids",
]

T = TypeVar("T")
Misalignment = Literal["refuse", "skip", "keep"]
MISALIGNMENTS: Final = ("refuse", "skip", "keep")
IDS_TOLD: Final = 5  # of many, in a message
TEXTS: Final = ("context", "question")
COLUMNS: Final = ("id", *TEXTS, "answers")

# What publishers call a file or config, and in it the languages of context and question: groups, or known beforehand.
LANGUAGES_TOLD: Final[tuple[tuple[re.Pattern[str], tuple[str, str]], ...]] = (
    (re.compile(r"(?:dev|test)-context-(\w+)-question-(\w+)\.json"), (r"\1", r"\2")),
    (re.compile(r"mlqa\.(\w+)\.(\w+)"), (r"\1", r"\2")),
    (re.compile(r"(\w+)_squad-translate-train-(?:train|dev)-v1\.1\.json"), (r"\1", r"\1")),
    (re.compile(r"mlqa-translate-train\.(\w+)"), (r"\1", r"\1")),
    (re.compile(r"(?:train|dev)-v[12]\.\d\.json"), ("en", "en")),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A right answer."""

    text: str
    start: int
    """The character of the context, from 0, with which it should begin."""


@dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question about a text."""

    place: str
    """For messages, such as `dev-v1.1.json, question '17'`."""
    id: str
    context_language: str
    """Also that of the answers."""
    question_language: str
    context: str
    question: str
    answers: tuple[Answer, ...]
    """All that are right; none where the context does not answer the question."""


@dataclass(frozen=True, slots=True)
class Misaligned:
    """A right answer that does not stand in the context where it should."""

    place: str
    id: str
    answer: Answer


def told_ids(ids: Sequence[str]) -> str:
    """The first of them, for a sentence."""
    return ", ".join(map(repr, ids[:IDS_TOLD])) + (", ..." if len(ids) > IDS_TOLD else "")


class MisalignedAnswers(InputError):
    """Answers that are not where they should be; `found` holds every one."""

    def __init__(self, name: str, found: Sequence[Misaligned]) -> None:
        """Carry all that were found in the input `name`."""
        self.found = tuple(found)
        ids = list(dict.fromkeys(each.id for each in found))
        many = (
            f"{len(ids):,} questions have answers that do not"
            if len(ids) > 1
            else "1 question has an answer that does not"
        )
        super().__init__(
            printable(
                f"{name}: {many} stand in the context at answer_start ({told_ids(ids)}); leave them out with "
                "misaligned='skip' (--on-misaligned skip)"
            )
        )


@dataclass(frozen=True)
class QuestionInput:
    """The questions of an input in their order; each iteration reads anew."""

    name: str
    parts: tuple[tuple[Source, str, str], ...]
    """Each with the languages of its contexts and of its questions."""
    misalignment: Misalignment = "refuse"

    @cached_property
    def misaligned(self) -> tuple[Misaligned, ...]:
        """Every answer that does not stand where it should, whatever is done about it. Reads the whole input."""
        return tuple(bad for example in self._all() for bad in _misaligned(example))

    def __iter__(self) -> Iterator[QuestionExample]:
        """Every question; those with misaligned answers only if they are kept.

        Raises BadRow, InputError, and MisalignedAnswers before the first question where such are refused.
        """
        if self.misalignment == "refuse" and self.misaligned:
            raise MisalignedAnswers(self.name, self.misaligned)
        for example in self._all():
            if self.misalignment != "skip" or not any(_misaligned(example)):
                yield example

    def _all(self) -> Iterator[QuestionExample]:
        ids: set[str] = set()
        with told_plainly():
            for source, context_language, question_language in self.parts:
                for example in _examples(source, context_language, question_language):
                    if example.id in ids:
                        raise BadRow(example.place, "another question has the same id")
                    ids.add(example.id)
                    yield example
        if not ids:
            raise InputError(printable(f"{self.name} holds no questions"))


def open_questions(
    source: str | Path,
    *,
    context_language: str | None = None,
    question_language: str | None = None,
    misaligned: Misalignment = "refuse",
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> QuestionInput:
    """The questions of a file in SQuAD's JSON, of a pattern of such files, or of a data set like `rajpurkar/squad`.

    Names of MLQA (`test-context-de-question-en.json`) and SQuAD (`train-v1.1.json`) tell the languages: the two options
    pick of them, and say them where no name does. Files of several pairs have questions of the same ids: open one pair
    at a time. `misaligned` says what is done with questions of which an answer does not stand at its `answer_start`:
    `refuse` the input, `skip` them, or `keep` them, as is right for scores, which know no positions.

    Raises InputError, for questions when they are reached.
    """
    if misaligned not in MISALIGNMENTS:
        raise InputError(f"misaligned is one of {', '.join(MISALIGNMENTS)}, not {misaligned!r}")
    with told_plainly():
        sources = find_sources(source, split=split, config=config, revision=revision)
    for each in sources:
        if not each.is_arrow and each.kind != ".json":
            raise InputError(
                f"{each.path} is of no known kind; questions are read from .json (also with .gz) and {PARQUET}"
            )
    wanted = tuple(each and each.lower() for each in (context_language, question_language))
    told = [(each, *_languages(each, wanted)) for each in sources]
    parts = tuple(part for part in told if all(want in (None, has) for want, has in zip(wanted, part[1:], strict=True)))
    if not parts:
        pairs = ", ".join(f"{context} by {question}" for _, context, question in told)
        asked = " by ".join(each or "any" for each in wanted)
        raise InputError(f"{source} has no contexts and questions in {asked}; it has {pairs}")
    return QuestionInput(str(source), parts, misaligned)


def _languages(source: Source, wanted: Sequence[str | None]) -> tuple[str, str]:
    """Those of contexts and of questions, in small letters: as the name tells, else as they are wanted."""
    for pattern, (context, question) in LANGUAGES_TOLD:
        if found := pattern.fullmatch(source.base_name):
            return found.expand(context).lower(), found.expand(question).lower()
    if not all(wanted):
        raise InputError(
            f"the name {source.name} does not say its languages: give those of contexts and of questions (en-de=FILE)"
        )
    return str(wanted[0]), str(wanted[1])


def _misaligned(example: QuestionExample) -> Iterator[Misaligned]:
    for answer in example.answers:
        if not answer.text.strip() or answer.start < 0 or not example.context.startswith(answer.text, answer.start):
            yield Misaligned(example.place, example.id, answer)


# ---- rows to examples ------------------------------------------------------------------------------------------------


def _examples(source: Source, context_language: str, question_language: str) -> Iterator[QuestionExample]:
    for row in source.table(COLUMNS) if source.is_arrow else _nested(source):
        id_ = checked_text(row.place, _field(row, "id", str), what="the id")
        place = f"{source.name}, question {id_!r}"
        context, question = (checked_text(place, _field(row, name, str), what=f"the {name}") for name in TEXTS)
        answers = tuple(_answers(place, row))
        yield QuestionExample(place, id_, context_language, question_language, context, question, answers)


def _nested(source: Source) -> Iterator[Row]:
    """Every question with its context, as SQuAD's JSON has them: in paragraphs of articles."""
    for article in _listed(Row(source.name, _document(source)), "data"):
        for paragraph in _listed(article, "paragraphs"):
            context = {"context": _field(paragraph, "context", str)}
            for question in _listed(paragraph, "qas"):
                yield Row(question.place, {**question.values, **context})


def _document(source: Source) -> dict[str, object]:
    import json

    text = "\n".join(line for _, line in source.lines())
    if not text.strip():
        raise InputError(printable(f"{source.name} is empty"))
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"{source.name}, line {error.lineno}", f"this is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(source.name, f"this is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRow(source.name, f"SQuAD's JSON is an object, not {JSON_TYPES[type(document)]}")
    return document


def _listed(row: Row, name: str) -> Iterator[Row]:
    """The objects in the list `name` of an object, their places told by their numbers."""
    for number, each in enumerate(_field(row, name, list)):
        place = f"{row.place}, {name}[{number}]"
        if not isinstance(each, dict):
            raise BadRow(place, f"an object is expected, not {JSON_TYPES[type(each)]}")
        yield Row(place, each)


def _field(row: Row, name: str, kind: type[T]) -> T:
    if name not in row.values:
        raise BadRow(row.place, why_no_column(name, row.values))
    value = row.values[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        told = JSON_TYPES.get(type(value), type(value).__name__)
        wanted = "a whole number" if kind is int else JSON_TYPES[kind]
        raise BadRow(row.place, f"{name!r} is {value if isinstance(value, float) else told}, not {wanted}")
    return value


def _answers(place: str, row: Row) -> Iterator[Answer]:
    """Those of a question: a list of objects in JSON, an object of two lists in data sets."""
    answers = row.values.get("answers")
    if isinstance(answers, dict):
        columns = Row(place, answers)
        texts, starts = _field(columns, "text", list), _field(columns, "answer_start", list)
        if len(texts) != len(starts):
            raise BadRow(place, f"{len(texts)} answers have {len(starts)} starts")
        answers = _zipped(texts, starts)
    for each in _listed(
        Row(place, {**row.values, "answers": answers} if answers is not None else row.values), "answers"
    ):
        text = checked_text(each.place, _field(each, "text", str), what="the answer")
        yield Answer(text, _field(each, "answer_start", int))


def _zipped(texts: Iterable[object], starts: Iterable[object]) -> list[Mapping[str, object]]:
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
