"""Cuts of equal score, decided as the SentencePiece of fairseq's time decided them."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.sentencepiece_model import ModelType, SentencePieceModel

if TYPE_CHECKING:
    import numpy as np

__all__ = ["REPEATS", "TieBreaker", "texts_with_repeats"]

SPACE: Final = "▁"
REPEATS: Final = re.compile(r"(.)\1\1|(.)(.)\2\3\2|(.{3,8}?)\4", flags=re.DOTALL)
"""`aaa`, `ababa`, or three to eight characters twice: only there do pieces have two orders."""
AGREEING: Final = {1: 2, 2: 3, **{length: length for length in range(3, 9)}}
"""The same in other words: how many characters in a row are the one that many places further on."""

MOST_REMEMBERED: Final = 1 << 16  # words whose margin is kept
SINGLE_PRECISION: Final = 2.0**-23
SEAM: Final = "\ud800"  # between texts: SentencePiece never gives half a surrogate pair
SEAM_CODE: Final = 0xD800


class TieBreaker:
    """The best path as SentencePiece up to 0.2.1 found it (unigram_model.cc, Model::EncodeOptimized).

    `aaaaaa` can be cut into the same pieces in several orders, all with the same score. Those versions compared a
    candidate in double precision with a score kept in single precision, and rounding decided; 0.2.2 and later
    compare in single precision and decide otherwise.
    """

    def __init__(self, model: SentencePieceModel) -> None:
        """Take the scores of `model`."""
        self.applies = model.model_type is ModelType.UNIGRAM and not model.byte_fallback
        self.scores = model.reachable_scores()
        self._reach = _reach(self.scores)
        self._margins: dict[str, float] = {}
        self.unk_score = array("f", [model.lowest_score - model.UNK_PENALTY])[0]
        self.spaces_begin_pieces = SPACE in self.scores and not any(SPACE in piece[1:] for piece in self.scores)

    def mended(self, segments: Sequence[str]) -> list[str]:
        """The `segments` of one text as those versions would have cut them; only words with a repeat change.

        A word begins at U+2581: where no piece has that inside, every path meets there, and all that a word takes
        from the text before it is the score so far.
        """
        if not self.spaces_begin_pieces:
            return self.segments("".join(segments))
        kept: list[str] = []
        total, counted = array("f", [0.0]), 0  # single precision: what is stored is rounded
        for word in _words(segments):
            text = "".join(word)
            if len(word) == 1 or not REPEATS.search(text):
                kept += word
                continue
            self._add_scores(total, kept[counted:])
            counted = len(kept)
            kept += self.segments(text, score_before=total[0]) if self._is_close(text, total[0]) else word
        return kept

    def segments(self, text: str, *, score_before: float = 0.0) -> list[str]:
        """The pieces of the normalized `text`, runs of unknown characters joined."""
        starts, known = self._best_path(text, score_before)
        cuts: list[int] = []
        end = len(text)
        while end > 0:
            if not (cuts and not known[end] and not known[cuts[-1]]):
                cuts.append(end)
            end = starts[end]
        cuts.reverse()
        return [text[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]

    def _is_close(self, word: str, score_before: float) -> bool:
        """Whether rounding can decide how `word` is cut after a text of that score."""
        margin = self._margins.get(word)
        if margin is None:
            if len(self._margins) >= MOST_REMEMBERED:
                self._margins.clear()
            margin = self._margins[word] = self._margin(word)
        largest = abs(score_before) + len(word) * abs(self.unk_score)
        return margin <= 2 * len(word) * largest * SINGLE_PRECISION

    def _margin(self, word: str) -> float:
        """By how much the best path through `word` beats any other at each place that it comes by."""
        best, second = [0.0] + [-math.inf] * len(word), [-math.inf] * (len(word) + 1)
        starts = [0] * (len(word) + 1)
        for start in range(len(word)):
            for end, score in self._pieces_at(word, start):
                if best[start] + score > best[end]:
                    best[end], second[end], starts[end] = best[start] + score, best[end], start
                else:
                    second[end] = max(second[end], best[start] + score)
        margin, end = math.inf, len(word)
        while end:
            margin, end = min(margin, best[end] - second[end]), starts[end]
        return margin

    def _pieces_at(self, text: str, start: int) -> Iterator[tuple[int, float]]:
        """End and score of each piece from `start` on, and of the unknown one where its character is no piece."""
        for end in range(start + 1, min(start + self._reach.get(text[start : start + 2], 1), len(text)) + 1):
            score = self.scores.get(text[start:end])
            if score is not None:
                yield end, score
        if text[start] not in self.scores:
            yield start + 1, self.unk_score

    def _add_scores(self, total: array[float], segments: Sequence[str]) -> None:
        """Add what `segments` score to `total`, in SentencePiece's order."""
        for segment in segments:
            score = self.scores.get(segment)
            for each in (score,) if score is not None else (self.unk_score,) * len(segment):
                total[0] += each

    def _best_path(self, text: str, score_before: float) -> tuple[array[int], bytearray]:
        """For each position the start of the best last piece, and whether it is one SentencePiece knows."""
        best = array("f", bytes(4 * (len(text) + 1)))
        best[0] = score_before
        starts, known = array("l", [-1]) * (len(text) + 1), bytearray(len(text) + 1)
        for start in range(len(text)):
            till_here = best[start]
            for end in range(start + 1, min(start + self._reach.get(text[start : start + 2], 1), len(text)) + 1):
                score = self.scores.get(text[start:end])
                if score is not None and (starts[end] < 0 or score + till_here > best[end]):
                    best[end], starts[end], known[end] = score + till_here, start, True
            if text[start] not in self.scores:
                _add_unknown(best, starts, known, start=start, score=self.unk_score + till_here)
        return starts, known


def _reach(pieces: Iterable[str]) -> dict[str, int]:
    """How long a piece can be that begins with these two characters."""
    reach: dict[str, int] = {}
    for piece in pieces:
        if len(piece) > reach.get(piece[:2], 1):
            reach[piece[:2]] = len(piece)
    return reach


def _add_unknown(best: array[float], starts: array[int], known: bytearray, *, start: int, score: float) -> None:
    """Offer an unknown character at `start`; SentencePiece rounds its score before it compares."""
    rounded = array("f", [score])[0]
    if starts[start + 1] < 0 or rounded > best[start + 1]:
        best[start + 1], starts[start + 1], known[start + 1] = rounded, start, False


def _words(segments: Sequence[str]) -> Iterator[Sequence[str]]:
    """The segments word by word."""
    begins = [index for index, segment in enumerate(segments) if index and segment[0] == SPACE]
    for start, stop in pairwise((0, *begins, len(segments))):
        yield segments[start:stop]


def texts_with_repeats(texts: Sequence[str], *, within_words: bool) -> list[int]:
    """The indices of the `texts` that REPEATS is found in, `within_words` where no repeat over U+2581 counts.

    All texts at once, by comparing them with themselves some places further on.
    """
    import numpy as np

    codes = np.frombuffer(SEAM.join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    counts = codes != SEAM_CODE
    if within_words:
        counts &= codes != ord(SPACE)
    found = np.zeros(len(codes), dtype=bool)
    for distance, count in AGREEING.items():
        same = (codes[distance:] == codes[:-distance]) & counts[distance:]
        runs = _runs(same, count)
        found[: len(runs)] |= runs
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    hits: list[int] = np.unique(np.searchsorted(starts, np.flatnonzero(found), side="right") - 1).tolist()
    return hits


def _runs(flags: np.ndarray[Any, np.dtype[np.bool_]], length: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where `length` set flags in a row begin."""
    reached = 1
    while reached < length:
        step = min(reached, length - reached)
        flags = flags[: max(len(flags) - step, 0)] & flags[step:]
        reached += step
    return flags
