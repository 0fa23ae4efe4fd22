"""Questions of MLQA and SQuAD, and where in their contexts the answers are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal, TypeVar

from hf_xlmr.data.columns import JSON_LINES, PARQUET, Row, Source, find_sources
from hf_xlmr.data.text_rows import JSON_TYPES, BadRow, checked_text, why_no_column
from hf_xlmr.errors import InputError, printable, told_plainly

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
COLUMNS: Final = ("id", *TEXTS, "answers", "is_impossible")

# What publishers call a file or config, and in it the languages of context and question: groups, or known beforehand.
LANGUAGES_TOLD: Final[tuple[tuple[re.Pattern[str], tuple[str, str]], ...]] = (
    (re.compile(r"(?:dev|test)-context-(\w+)-question-(\w+)\.json"), (r"\1", r"\2")),
    (re.compile(r"mlqa\.(\w+)\.(\w+)"), (r"\1", r"\2")),
    (re.compile(r"(\w+)_squad-translate-train-(?:train|dev)-v1\.1\.json"), (r"\1", r"\1")),
    (re.compile(r"mlqa-translate-train\.(\w+)"), (r"\1", r"\1")),
    (re.compile(r"(?:train|dev)-v[12]\.\d\.json"), ("en", "en")),
    (re.compile(r"xquad\.(\w+)(?:\.json)?"), (r"\1", r"\1")),
    (re.compile(r"tydiqa\.goldp\.(\w+)\.(?:train|dev)\.json"), (r"\1", r"\1")),  # XTREME's names of TyDiQA
    (re.compile(r"squad\.translate\.train\.en-(\w+)\.json"), (r"\1", r"\1")),  # XTREME's
)
TYDIQA: Final[Mapping[str, str]] = {
    "arabic": "ar",
    "bengali": "bn",
    "english": "en",
    "finnish": "fi",
    "indonesian": "id",
    "korean": "ko",
    "russian": "ru",
    "swahili": "sw",
    "telugu": "te",
}
"""The languages in the names of TyDiQA's files, and in the ids of those that hold them all."""
TYDIQA_FILE: Final = re.compile(rf"tydiqa-goldp-(?:dev-({'|'.join(TYDIQA)})|v\d\.\d-(?:train|dev))\.json")
WITHOUT_ANSWERS: Final = (
    "no question has an answer: where answers were taken out, as XTREME's scripts do for test data, nothing can be "
    "trained on or scored; the published data have them"
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
    """The name of the place in messages, such as `dev-v1.1.json, question '17'`."""
    id: str
    context_language: str
    """Also that of the answers."""
    question_language: str
    context: str
    question: str
    answers: tuple[Answer, ...]
    """All that are right; none if the context does not answer the question."""
    is_impossible: bool = False
    """Whether the data say, as SQuAD 2.0's do, that the context does not answer it."""


@dataclass(frozen=True, slots=True)
class Misaligned:
    """A right answer that is not at its place in the context."""

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
            f"{len(ids):,} questions have answers that are not"
            if len(ids) > 1
            else "1 question has an answer that is not"
        )
        super().__init__(
            printable(
                f"{name}: {many} in the context at answer_start ({told_ids(ids)}); leave them out with "
                "misaligned='skip'"
            )
        )


@dataclass(frozen=True)
class QuestionInput:
    """The questions of an input in their order; each iteration reads the input again."""

    name: str
    parts: tuple[tuple[Source, str, str], ...]
    """Each with the languages of its contexts and of its questions."""
    misalignment: Misalignment = "refuse"

    @cached_property
    def misaligned(self) -> tuple[Misaligned, ...]:
        """Every answer that is not at its place, whatever is done about it. Reads the whole input."""
        return tuple(bad for example in self._all() for bad in _misaligned(example))

    def __iter__(self) -> Iterator[QuestionExample]:
        """Every question; those with misaligned answers only if they are kept.

        Raises BadRow, InputError, and MisalignedAnswers before the first question if such are refused.
        """
        if self.misalignment == "refuse" and self.misaligned:
            raise MisalignedAnswers(self.name, self.misaligned)
        for example in self._all():
            if self.misalignment != "skip" or not any(_misaligned(example)):
                yield example

    def _all(self) -> Iterator[QuestionExample]:
        ids: set[str] = set()
        has_answers = False
        with told_plainly():
            for source, context_language, question_language in self.parts:
                for example in _examples(source, context_language, question_language):
                    if example.id in ids:
                        raise BadRow(example.place, "another question has the same id")
                    ids.add(example.id)
                    has_answers |= example.is_impossible or any(each.text.strip() for each in example.answers)
                    yield example
        if not ids:
            raise InputError(printable(f"{self.name} holds no questions"))
        if not has_answers:
            raise InputError(printable(f"{self.name}: {WITHOUT_ANSWERS}"))


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

    JSON has paragraphs with questions, as SQuAD, MLQA, XQuAD and TyDiQA do, or rows as data sets have them, in a list
    `data` or one on each line. Names of MLQA (`test-context-de-question-en.json`), SQuAD (`train-v1.1.json`), XQuAD,
    TyDiQA and XTREME name the languages: the two options pick some, or say them if no name does. Files of
    several pairs have questions of the same ids: open one pair at a time. `misaligned` says what is done with questions
    of which an answer is not at its `answer_start`: `refuse` the input, `skip` them, or `keep` them, as is
    right for scores, which know no positions. Data without any answers are refused.

    Raises InputError, for questions when they are reached.
    """
    if misaligned not in MISALIGNMENTS:
        raise InputError(f"misaligned is one of {', '.join(MISALIGNMENTS)}, not {misaligned!r}")
    with told_plainly():
        sources = find_sources(source, split=split, config=config, revision=revision)
    for each in sources:
        if not each.is_arrow and each.kind not in JSON_LINES:
            kinds = ", ".join(JSON_LINES)
            raise InputError(
                f"{each.path} is of no known kind; questions are read from {kinds} (also with .gz, .zst) and {PARQUET}"
            )
    wanted = tuple(each and each.lower() for each in (context_language, question_language))
    with told_plainly():
        told = [(each, *pair) for each in sources for pair in _pairs(each, wanted)]
    parts = tuple(part for part in told if all(want in (None, has) for want, has in zip(wanted, part[1:], strict=True)))
    if not parts:
        pairs = ", ".join(f"{context} by {question}" for _, context, question in told)
        asked = " by ".join(each or "any" for each in wanted)
        raise InputError(f"{source} has no contexts and questions in {asked}; it has {pairs}")
    return QuestionInput(str(source), parts, misaligned)


def _pairs(source: Source, wanted: Sequence[str | None]) -> list[tuple[str, str]]:
    tydiqa = TYDIQA_FILE.fullmatch(source.base_name)
    if tydiqa is None:
        return [_languages(source, wanted)]
    names = [tydiqa[1]] if tydiqa[1] else dict.fromkeys(_language_of_id(row) for row in _rows(source))
    return [(TYDIQA[name], TYDIQA[name]) for name in names]


def _language_of_id(row: Row) -> str:
    """The name that an id of TyDiQA begins with. Raises BadRow."""
    name, dash, _ = _field(row, "id", str).partition("-")
    if not dash or name not in TYDIQA:
        raise BadRow(row.place, f"the ids of TyDiQA begin with a language, such as arabic-; this one is {name!r:.80}")
    return name


def _languages(source: Source, wanted: Sequence[str | None]) -> tuple[str, str]:
    """The languages of contexts and questions, in small letters: by the file's name, else those that are wanted."""
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
    tydiqa = TYDIQA_FILE.fullmatch(source.base_name)
    is_mixed = tydiqa is not None and tydiqa[1] is None
    for row in _rows(source):
        if is_mixed and TYDIQA[_language_of_id(row)] != context_language:
            continue
        id_ = checked_text(row.place, _field(row, "id", str), what="the id")
        place = f"{source.name}, question {id_!r}"
        context, question = (checked_text(place, _field(row, name, str), what=f"the {name}") for name in TEXTS)
        answers = tuple(_answers(place, row))
        is_impossible = row.values.get("is_impossible") is True
        yield QuestionExample(
            place, id_, context_language, question_language, context, question, answers, is_impossible
        )


def _rows(source: Source) -> Iterator[Row]:
    if source.is_arrow:
        return source.table(COLUMNS)
    document = _document(source) if source.kind == ".json" else None
    if document is None:
        return source.objects()
    is_row = "context" in document and "data" not in document
    return iter([Row(source.name, document)]) if is_row else _nested(Row(source.name, document))


def _nested(document: Row) -> Iterator[Row]:
    """The questions in paragraphs of articles, as in SQuAD's JSON, or in a list without articles."""
    for article in _listed(document, "data"):
        if "context" in article.values and "paragraphs" not in article.values:
            yield article
            continue
        for paragraph in _listed(article, "paragraphs"):
            context = {"context": _field(paragraph, "context", str)}
            for question in _listed(paragraph, "qas"):
                yield Row(question.place, {**question.values, **context})


def _document(source: Source) -> dict[str, object] | None:
    """What a file of JSON holds; None if it is JSON Lines: an object, and more after it."""
    if _begins_as_lines(source):
        return None
    text = "\n".join(line for _, line in source.lines())
    if not text.strip():
        raise InputError(printable(f"{source.name} is empty"))
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise BadRow(f"{source.name}, line {error.lineno}", f"this is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(source.name, f"this is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BadRow(source.name, f"SQuAD's JSON is an object, not {JSON_TYPES[type(document)]}")
    return document


def _begins_as_lines(source: Source) -> bool:
    """Whether the first line is an object and others follow it: such a file is not held in memory."""
    first, second = islice(chain((line for _, line in source.lines() if line.strip()), ("", "")), 2)
    with suppress(ValueError, RecursionError):
        return bool(second) and isinstance(json.loads(first), dict)
    return False


def _listed(row: Row, name: str) -> Iterator[Row]:
    """The objects in the list `name` of an object; their numbers name their places."""
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
    """The answers of a question: a list of objects in JSON, an object of two lists in data sets."""
    answers = row.values.get("answers")
    if isinstance(answers, dict):
        columns = Row(place, answers)
        texts, starts = _field(columns, "text", list), _field(columns, "answer_start", list)
        if len(texts) != len(starts):
            raise BadRow(place, f"{len(texts)} answers have {len(starts)} starts")
        told = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        row = Row(place, {**row.values, "answers": told})
    for each in _listed(Row(place, row.values), "answers"):
        text = checked_text(each.place, _field(each, "text", str), what="the answer")
        yield Answer(text, _field(each, "answer_start", int))
