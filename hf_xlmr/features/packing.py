"""Packs texts into batches: sorted by length and laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import NamedTuple

from hf_xlmr.model.model_shape import POSITION_OFFSET

__all__ = ["PackedBatch", "Run", "pack"]


class Run(NamedTuple):
    """`texts` texts of `length` tokens each, the first of which begins at token `start` of the batch."""

    start: int
    texts: int
    length: int

    @property
    def end(self) -> int:
        """The token after the last."""
        return self.start + self.texts * self.length


@dataclass(frozen=True)
class PackedBatch:
    """Texts laid end to end, the longest first; texts of one length are a run."""

    texts: tuple[int, ...]
    """The numbers of the texts, in the order in which they are packed."""
    runs: tuple[Run, ...]

    @property
    def tokens(self) -> int:
        """The number of tokens of all texts."""
        return self.runs[-1].end

    @cached_property
    def boundaries(self) -> list[int]:
        """The first token of each text in the batch, and the end of the last text."""
        starts = [run.start + number * run.length for run in self.runs for number in range(run.texts)]
        return [*starts, self.tokens]

    def ids(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """The tokens of the batch, out of all the texts that were packed."""
        return [token for number in self.texts for token in texts[number]]

    def positions(self) -> list[int]:
        """The position of each token in its own text, from 2 on, as fairseq and Transformers count."""
        return [
            position
            for run in self.runs
            for position in (*range(POSITION_OFFSET, POSITION_OFFSET + run.length),) * run.texts
        ]


def pack(lengths: Sequence[int], *, tokens_per_batch: int) -> Iterator[PackedBatch]:
    """Batches of at most `tokens_per_batch` tokens, or of one text that is longer, for texts of these lengths.

    The longest texts come first, so that a device with too little memory fails at once. The same lengths give the same
    batches.
    """
    in_order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    texts: list[int] = []
    tokens = 0
    for number in in_order:
        if texts and tokens + lengths[number] > tokens_per_batch:
            yield _batch(texts, lengths)
            texts, tokens = [], 0
        texts.append(number)
        tokens += lengths[number]
    if texts:
        yield _batch(texts, lengths)


def _batch(texts: Sequence[int], lengths: Sequence[int]) -> PackedBatch:
    groups = [(length, len(list(group))) for length, group in groupby(texts, key=lambda number: lengths[number])]
    starts = accumulate((length * count for length, count in groups), initial=0)
    runs = tuple(Run(start, count, length) for start, (length, count) in zip(starts, groups, strict=False))
    return PackedBatch(tuple(texts), runs)
