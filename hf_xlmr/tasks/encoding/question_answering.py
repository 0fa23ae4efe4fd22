"""Questions about long texts: windows over them, where the answer is in each, and the best answers of all."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Final

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.encoding.encoding import PAIR_MARKS, Row
from hf_xlmr.tasks.mlqa import Answer, QuestionExample
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import numpy as np

CONTEXTS_KEPT: Final = 64  # questions about one text follow each other
NOTHING_FOUND: Final = "empty"  # the official scripts' answer where no token of the context is among the best
TIE_BREAK: Final = 0.01  # of the size of a window, as BERT's and XTREME's scripts weigh it


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """How long texts are cut, and which answers count; what XTREME's script for MLQA has. Raises InputError."""

    max_length: int = 384
    """The tokens of a window with its question."""
    stride: int = 128
    """The distance between the first tokens of two windows."""
    max_question: int = 64
    """Tokens of a question; what is longer is cut off."""
    max_answer: int = 30
    """Tokens of an answer."""
    n_best: int = 20
    """How many first and last tokens of a window, its question and marks included, are tried with each other."""
    null_threshold: float | None = None
    """Give no answer if its score exceeds the best answer's by more than this; None always gives one, as in MLQA."""

    def __post_init__(self) -> None:
        """Check that a window has room for text after the longest question, and that windows leave no gap."""
        if self.null_threshold is not None and not math.isfinite(self.null_threshold):
            raise InputError(f"null_threshold={self.null_threshold}: it must be a finite number")
        room = self.max_length - self.max_question - PAIR_MARKS
        if min(self.stride, self.max_question, self.max_answer, self.n_best) < 1 or room < 1:
            raise InputError(
                f"windows of {self.max_length} tokens with questions of up to {self.max_question} leave {room} for the "
                f"text, and stride={self.stride}: all of these must be 1 or more"
            )
        if self.stride > room:
            raise InputError(
                f"stride={self.stride}: a window of {self.max_length} tokens has room for {room} tokens of the text "
                "after a long question; with a longer stride some of the text would be in no window"
            )


@dataclass(frozen=True)
class Window:
    """A part of a context, together with the question."""

    example: int
    """Its number among the examples."""
    ids: list[int] = field(repr=False)
    first_token: int
    """The number of its first token among those of the context."""
    offset: int
    """Where the context's tokens begin among `ids`."""
    spans: Sequence[tuple[int, int]] = field(repr=False)
    """Where each of its tokens of the context comes from: first character, and end."""
    home: range = range(0)
    """The tokens of the window (not of the context) that have more context in it than in any other."""


def windows_of(
    examples: Iterable[QuestionExample], tokenizer: ExactTokenizer, options: QuestionOptions
) -> Iterator[Window]:
    """The windows of each example, from the first token of its context to the last."""

    @lru_cache(maxsize=CONTEXTS_KEPT)
    def encoded(context: str) -> tuple[list[int], list[tuple[int, int]]]:
        return tokenizer.ids(context), tokenizer.spans(context)

    for index, example in enumerate(examples):
        question = tokenizer.ids(example.question)[: options.max_question]
        ids, spans = encoded(example.context)
        bounds = _bounds(len(ids), options.max_length - len(question) - PAIR_MARKS, options.stride)
        for number, (first, last) in enumerate(bounds):
            yield Window(
                example=index,
                ids=tokenizer.framed([question, ids[first:last]]),
                first_token=first,
                offset=len(question) + PAIR_MARKS - 1,
                spans=spans[first:last],
                home=_home(bounds, number),
            )


def _bounds(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """First token and end of each window; the last one reaches the end of the text."""
    bounds = [(0, min(room, tokens))]
    while bounds[-1][1] < tokens:
        first = bounds[-1][0] + stride
        bounds.append((first, min(first + room, tokens)))
    return bounds


def _home(bounds: Sequence[tuple[int, int]], number: int) -> range:
    """Which tokens of a window are further from its edges than from those of any other window."""
    first, last = bounds[number]
    others = [each for index, each in enumerate(bounds) if index != number and each[0] < last and first < each[1]]
    if not others:
        return range(last - first)
    ours = [
        place
        for place in range(first, last)
        if all(_context(place, (first, last)) > _context(place, each) for each in others if each[0] < first)
        and all(_context(place, (first, last)) >= _context(place, each) for each in others if each[0] > first)
    ]
    return range(ours[0] - first, ours[-1] + 1 - first) if ours else range(0)


def _context(place: int, bounds: tuple[int, int]) -> float:
    first, last = bounds
    if not first <= place < last:
        return -math.inf
    return min(place - first, last - 1 - place) + TIE_BREAK * (last - first)


def encode_questions(
    examples: Sequence[QuestionExample], tokenizer: ExactTokenizer, options: QuestionOptions
) -> Iterator[Row]:
    """The windows of each example with the first and last token of its first answer, `<s>` in windows without it."""
    for window in windows_of(examples, tokenizer, options):
        start, end = _target(window, examples[window.example])
        yield {**row_of(window), "start_positions": start, "end_positions": end}


def row_of(window: Window) -> Row:
    """What the network takes of a window."""
    return {"input_ids": window.ids}


def _visible(answer: Answer) -> tuple[int, int]:
    """Its first character and its end, without white space and invisible characters: no token need hold those."""
    shown = [
        place
        for place, each in enumerate(answer.text, answer.start)
        if not (each.isspace() or unicodedata.category(each) in ("Cc", "Cf"))
    ]
    return (shown[0], shown[-1] + 1) if shown else (answer.start, answer.start)


def _target(window: Window, example: QuestionExample) -> tuple[int, int]:
    """First and last token of the answer among the window's ids; both 0 if it is not whole in the window."""
    if not example.answers or not window.spans:
        return 0, 0
    first, last = _visible(example.answers[0])
    if first == last or first < window.spans[0][0] or window.spans[-1][1] < last:
        return 0, 0
    start = next((place for place, span in enumerate(window.spans) if span[1] > first), None)
    end = next((place for place in reversed(range(len(window.spans))) if window.spans[place][0] < last), None)
    if start is None or end is None or end < start:
        return 0, 0
    return window.offset + start, window.offset + end


@dataclass(frozen=True)
class Candidate:
    """A possible answer."""

    text: str
    start: int
    """The character of the context with which it begins; 0, like `end`, for one that is not from there."""
    end: int
    score: float
    """The sum of the two logits."""


def best_answers(
    examples: Sequence[QuestionExample],
    windows: Sequence[Window],
    starts: Sequence[np.ndarray],
    ends: Sequence[np.ndarray],
    options: QuestionOptions,
) -> list[list[Candidate]]:
    """The best answers to each question, the best one first, as the scripts of XTREME and Transformers find them.

    The `n_best` tokens of a window by each logit, also those of the question, are tried with each other (the first of
    equal ones); an answer that is not in the context, or too long, is dropped. An answer counts in the window that
    shows most context around its first token, and once for the same characters. With `null_threshold`, no answer is a
    candidate too, with the lowest score that any window gives `<s>`, and comes first if that score exceeds the best by
    more than the threshold. If there is no candidate, the answer is `empty`, with the score 0, as in those scripts.
    The windows of an example follow each other.
    """
    found = {}
    rows = zip(windows, starts, ends, strict=True)
    for index, of_example in groupby(rows, key=lambda row: row[0].example):  # ranked at once: all would fill memory
        proposed, null = list[Candidate](), math.inf
        for window, start, end in of_example:
            proposed += _proposed(examples[index].context, window, start, end, options)
            null = min(null, float(start[0]) + float(end[0]))
        found[index] = _ranked(proposed, null, options)
    return [found[index] for index in range(len(examples))]


def _proposed(
    context: str, window: Window, start: np.ndarray, end: np.ndarray, options: QuestionOptions
) -> Iterator[Candidate]:
    """The answers that a window proposes, without white space around them, in the order of their tokens' logits."""
    lasts = [place - window.offset for place in _highest(end, options.n_best)]
    for place in _highest(start, options.n_best):
        first = place - window.offset
        if first not in window.home:
            continue
        for last in lasts:
            if first <= last < min(first + options.max_answer, len(window.spans)):
                text = context[window.spans[first][0] : window.spans[last][1]]
                begin = window.spans[first][0] + len(text) - len(text.lstrip())
                score = float(start[place]) + float(end[last + window.offset])
                yield Candidate(text.strip(), begin, begin + len(text.strip()), score)


def _highest(logits: np.ndarray, count: int) -> list[int]:
    """The places of the highest values, the highest first, and the first of equal ones."""
    places: list[int] = (-logits).argsort(kind="stable")[:count].tolist()
    return places


def _ranked(proposed: Sequence[Candidate], null: float, options: QuestionOptions) -> list[Candidate]:
    """The highest score first, and the same characters once."""
    found: dict[tuple[int, int], Candidate] = {}
    for each in sorted(proposed, key=lambda each: -each.score):
        if each.text:
            found.setdefault((each.start, each.end), each)
    ranked = list(found.values())[: options.n_best] or [Candidate(NOTHING_FOUND, 0, 0, 0.0)]
    if options.null_threshold is not None:
        nothing = Candidate("", 0, 0, null)
        is_better = null - ranked[0].score > options.null_threshold
        ranked = [nothing, *ranked] if is_better else [*ranked, nothing]
    return ranked
