"""Cuts of nearly equal score, decided as the SentencePiece of fairseq's time decided them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Final

from hf_xlmr.sentencepiece_model import ModelType, PieceType, SentencePieceModel

__all__ = ["CALM_MARGIN", "ROUNDING", "TieBreaker"]

MOST_REMEMBERED: Final = 1 << 16  # words and parts of words whose margin is kept
LONGEST_REMEMBERED: Final = 128  # in characters
ENOUGH: Final = 1.0  # of a margin: no more is looked for
ROUNDING: Final = 2.0**-22  # two paths, half of 2**-23 for each addition in single precision, and twice that for safety
UNKNOWN: Final = 0  # as the length of a piece
CALM_MARGIN: Final = 2.0**-7  # for each character: more than rounding loses in a text of a thousand pieces


class TieBreaker:
    """The best path as SentencePiece up to 0.2.1 found it (unigram_model.cc, Model::EncodeOptimized).

    `aaaaaa` can be cut into the same pieces in several orders, all with the same score; and `kochilun` ends in chi,
    lun or ch, ilun, whose scores differ by less than rounding does late in a text. Those versions compared a
    candidate in double precision with a score kept in single precision; 0.2.2 and later compare in single precision
    and decide otherwise. They all agree where the best path leads by more than rounding can change: by its margin.
    """

    def __init__(self, model: SentencePieceModel) -> None:
        """Take the pieces and scores of `model`."""
        self.applies = model.model_type is ModelType.UNIGRAM and not model.byte_fallback
        self.scores = model.reachable_scores()
        self.unk_score = array("f", [model.lowest_score - model.UNK_PENALTY])[0]
        self.are_single = PieceType.USER_DEFINED not in model.types  # whether all scores are in single precision
        self.knows_by_character = all(character in self.scores for character in set().union(*self.scores))
        self._longest = max(map(len, self.scores), default=1)
        self.largest_score = max(map(abs, (self.unk_score, *self.scores.values())))
        self.scores_fall = max(self.scores.values(), default=0.0) <= 0.0
        self._margins: dict[str, float] = {}

    @cached_property
    def _inside(self) -> set[str]:
        return {piece[start : start + 2] for piece in self.scores for start in range(len(piece) - 1)}

    @cached_property
    def _starts(self) -> dict[str, tuple[int, float]]:
        return _starts(self.scores)

    def too_long(self, length: int) -> bool:
        """Whether the score of a text of that many pieces, unknown ones counted by character, may be too large."""
        return not self.scores_fall or length * self.largest_score * ROUNDING > CALM_MARGIN

    def mended(self, segments: Sequence[str]) -> list[str]:
        """The `segments` of one text as those versions would have cut them.

        Only parts are cut anew where rounding can decide. All that these take from the text before is its score.
        """
        kept: list[str] = []
        total, counted = array("f", [0.0]), 0  # single precision: what is stored is rounded
        most = sum(map(len, segments)) * self.largest_score
        for part in self._parts(segments):
            if self._may_be_close(part, most):
                self._add_scores(total, kept[counted:])
                counted = len(kept)
                kept += self.segments("".join(part), score_before=total[0])
            else:
                kept += part
        return kept

    def _parts(self, segments: Sequence[str]) -> Iterator[Sequence[str]]:
        """The segments, parted where no piece crosses the seam: every path meets there."""
        neighbours = enumerate(pairwise(segments), start=1)
        seams = [place for place, (left, right) in neighbours if left[-1] + right[0] not in self._inside]
        for start, stop in pairwise((0, *seams, len(segments))):
            yield segments[start:stop]

    def segments(self, text: str, *, score_before: float = 0.0) -> list[str]:
        """The pieces of the normalized `text`, runs of unknown characters joined."""
        lengths = self._best_path(text, score_before)
        cuts: list[int] = []
        end, after_unknown = len(text), False
        while end > 0:
            is_unknown = lengths[end] == UNKNOWN
            if not (is_unknown and after_unknown):
                cuts.append(end)
            end, after_unknown = end - (lengths[end] or 1), is_unknown
        cuts.reverse()
        return [text[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]

    def _may_be_close(self, part: Sequence[str], score_before: float) -> bool:
        """Whether rounding can decide how `part` is cut after a text of that score, or of a smaller one."""
        if len(part) == 1 and self.knows_by_character and part[0] not in self.scores:
            return False  # unknown characters: no piece has any of them
        size = sum(map(len, part))
        return self.is_close(part, size * (abs(score_before) + size * self.largest_score) * ROUNDING)

    def is_close(self, part: Sequence[str], doubt: float) -> bool:
        """Whether the best path through `part`, where all paths of the text enter and leave, leads by so little."""
        if len(part) == 1 and part[0] in self.scores and self.scores_fall and not self._may_be_cut(part[0], doubt):
            return False
        return doubt >= ENOUGH or sum(map(len, part)) > LONGEST_REMEMBERED or self._margin(part) <= doubt

    def _may_be_cut(self, piece: str, margin: float) -> bool:
        """Whether pieces that `piece` can be cut into may score nearly as much: a quick look at the first two."""
        scores, starts = self.scores, self._starts
        least = scores[piece] - margin
        for end in range(1, len(piece)):
            first = scores.get(piece[:end], self.unk_score if end == 1 else -math.inf)
            if first > least:
                following = piece[end : end + 2]
                if first + (starts[following][1] if following in starts else scores.get(following[0], 0.0)) >= least:
                    return True
        return False

    def _margin(self, part: Sequence[str]) -> float:
        text = "".join(part)
        margin = self._margins.get(text)
        if margin is None:
            if len(self._margins) >= MOST_REMEMBERED:
                self._margins.clear()
            margin = self._margins[text] = self._computed_margin(part, ENOUGH)
        return margin

    def _computed_margin(self, segments: Sequence[str], enough: float) -> float:
        """By how much the best path beats any other at each place that it comes by, up to `enough`."""
        text, scores, starts_of = "".join(segments), self.scores, self._starts
        size = len(text)
        least = self._score(segments) - enough  # what cannot reach that is left out
        best, second = [0.0] + [-math.inf] * size, [-math.inf] * (size + 1)
        starts = [0] * (size + 1)
        for start in range(size):
            here = best[start]
            reach, ceiling = starts_of.get(text[start : start + 2]) or self._start(text[start])
            if here + ceiling < least:
                continue
            for end in range(start + 1, min(start + reach, size) + 1):
                score = scores.get(text[start:end])
                if score is None:
                    if end > start + 1:
                        continue
                    score = self.unk_score
                if here + score > best[end]:
                    best[end], second[end], starts[end] = here + score, best[end], start
                elif here + score > second[end]:
                    second[end] = here + score
        margin, end = enough, size
        while end:
            margin, end = min(margin, best[end] - second[end]), starts[end]
        return margin

    def _pieces_at(self, window: str) -> tuple[bool, list[tuple[int, float]]]:
        """Whether the first character is unknown; length and score of each piece that begins there."""
        reach, _ceiling = self._starts.get(window[:2]) or self._start(window[0])
        found: list[tuple[int, float]] = []
        for length in range(1, min(reach, len(window)) + 1):
            score = self.scores.get(window[:length])
            if score is not None:
                found.append((length, score))
        return window[0] not in self.scores, found

    def _start(self, character: str) -> tuple[int, float]:
        """What _starts says of a place where only that character can be a piece."""
        return 1, self.scores.get(character, self.unk_score)

    def _score(self, segments: Sequence[str]) -> float:
        return sum(self.scores.get(segment) or self.unk_score * len(segment) for segment in segments)

    def _add_scores(self, total: array[float], segments: Sequence[str]) -> None:
        """Add what `segments` score to `total`, in SentencePiece's order."""
        for segment in segments:
            score = self.scores.get(segment)
            for each in (score,) if score is not None else (self.unk_score,) * len(segment):
                total[0] += each

    def _best_path(self, text: str, score_before: float) -> array[int]:
        """For each place the length of the best last piece, UNKNOWN for an unknown character."""
        best = array("f", [-math.inf]) * (len(text) + 1)
        best[0] = score_before
        lengths = array("H", [UNKNOWN]) * (len(text) + 1)
        seen: dict[str, tuple[bool, list[tuple[int, float]]]] = {}  # repeats look the same again and again
        cycles = _Cycles(text, best, lengths, reach=self._longest, largest_score=self.largest_score)
        start = 0
        while start < len(text):
            window = text[start : start + self._longest]
            if window not in seen:
                seen[window] = self._pieces_at(window)
            elif self.are_single:
                start = cycles.after(window, start)
            is_unknown, pieces = seen[window]
            till_here = best[start]
            for length, score in pieces:
                if score + till_here > best[start + length]:
                    best[start + length] = score + till_here
                    lengths[start + length] = length
            if is_unknown:
                self._add_unknown(best, lengths, start)
            start += 1
        return lengths

    def _add_unknown(self, best: array[float], lengths: array[int], start: int) -> None:
        """Offer an unknown character at `start`; SentencePiece rounds its score before it compares."""
        rounded = array("f", [self.unk_score + best[start]])[0]
        if rounded > best[start + 1]:
            best[start + 1], lengths[start + 1] = rounded, UNKNOWN


class _Cycles:
    """Repeats in a text that the search for its best path goes through in the same way again.

    Between two powers of two all scores in single precision are multiples of one unit, so rounding does the same to
    two paths which differ by an even number of units. Where the text repeats and so does what the search knows ahead,
    but for such a difference, it goes on as before until the repeat ends or the next power of two comes.
    """

    def __init__(self, text: str, best: array[float], lengths: array[int], *, reach: int, largest_score: float) -> None:
        """Watch a search that fills `best` and `lengths`, from each place as far as `reach`."""
        self.text, self.best, self.lengths = text, best, lengths
        self.reach, self.largest_score = reach, largest_score
        self._window, self._first, self._ahead = "", 0, [0.0]
        self._patience = 1  # for so many places the first one stays, as in Brent's search for cycles
        self._floor = 0.0  # the power of two that ends what holds for the first one
        self._is_asleep = True  # until the score falls below that

    def after(self, window: str, start: int) -> int:
        """Where to go on instead of at `start`, where `window` is seen: there, or later if all till then is filled."""
        here = self.best[start]
        if here <= self._floor or (not self._is_asleep and start - self._first > self._patience):
            self._remember(window, start)
        elif not self._is_asleep and self.best[start + 1] - here == self._ahead[1] and window == self._window:
            ahead = [score - here for score in self.best[start : start + len(self._ahead)]]
            if ahead == self._ahead and self._is_same_way(start):
                return start + self._skipped(start)
        return start

    def _remember(self, window: str, start: int) -> None:
        here = self.best[start]
        floor = -(2.0 ** math.frexp(here)[1])
        self._patience = (2 * self._patience if floor == self._floor else 0) or 4 * self.reach
        self._window, self._first, self._floor = window, start, floor
        self._ahead = [score - here for score in self.best[start : start + self.reach + 1]]
        self._lengths = self.lengths[start + 1 : start + len(self._ahead)]
        self._is_asleep = len(self._ahead) <= self.reach  # near the end
        if max(self._ahead) + here > floor / 2:
            self._patience = 0  # the power of two before lies ahead

    def _is_same_way(self, second: int) -> bool:
        return self.lengths[second + 1 : second + len(self._ahead)] == self._lengths

    def _skipped(self, second: int) -> int:
        """How many places after `second` go like those after the first: whole repeats of what lies between."""
        best, first, ahead = self.best, self._first, self._ahead
        period, drop = second - first, best[second] - best[first]
        if drop >= 0.0 or drop % (self._floor * 2.0**-23):  # an even number of units
            return 0
        lowest = min(score for score in (*best[first:second], *best[second : second + len(ahead)]) if score > -math.inf)
        room = lowest - self.largest_score - self._floor
        repeats = min((self._agreement(first, second) - self.reach) // period, int(room / -drop))
        self._is_asleep = True
        if repeats <= 0:
            return 0
        skipped = repeats * period
        stop = second + len(ahead)
        self.lengths[second + skipped + 1 : stop + skipped] = self.lengths[second + 1 : stop]
        self.lengths[second + 1 : second + skipped + 1] = self.lengths[first + 1 : second + 1] * repeats
        here = best[second] + repeats * drop
        best[second + skipped : stop + skipped] = array("f", [here + score for score in ahead])
        return skipped

    def _agreement(self, first: int, second: int) -> int:
        """For how many characters the text goes on from `second` as from `first`."""
        least, most = 0, len(self.text) - second
        while least < most:
            middle = (least + most + 1) // 2
            if self.text.startswith(self.text[first + least : first + middle], second + least):
                least = middle
            else:
                most = middle - 1
        return least


def _starts(scores: Mapping[str, float]) -> dict[str, tuple[int, float]]:
    """By two first characters: how long a piece can be at a place where they stand, and how high it can score."""
    starts: dict[str, tuple[int, float]] = {}
    for piece, score in scores.items():
        first_two = piece[:2]
        known = starts.get(first_two)
        if known is None:
            starts[first_two] = (len(piece), max(score, scores.get(piece[0], score)))
        elif len(piece) > known[0] or score > known[1]:
            starts[first_two] = (max(len(piece), known[0]), max(score, known[1]))
    return starts
