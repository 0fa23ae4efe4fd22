"""Packs texts into batches: sorted by length and laid end to end, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hf_xlmr.model.model_shape import POSITION_OFFSET

__all__ = ["PackedBatch", "Part", "Run", "pack"]


class Run(NamedTuple):
    """`texts` texts of `length` tokens each, the first of which begins at token `start` of the batch."""

    start: int
    texts: int
    length: int

    @property
    def end(self) -> int:
        """The token after the last."""
        return self.start + self.texts * self.length


class Part(NamedTuple):
    """The tokens from `start` to before `end`, whose texts are in the language of this number."""

    language: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Texts laid end to end, those of a language together, the longest first; texts of one length are a run."""

    texts: np.ndarray
    """The numbers of the texts, in the order in which they are packed."""
    lengths: np.ndarray
    """The number of tokens of each of these texts."""
    languages: np.ndarray
    """The number of the language of each of these texts."""

    @property
    def tokens(self) -> int:
        """The number of tokens of all texts."""
        return int(self.boundaries[-1])

    @cached_property
    def boundaries(self) -> np.ndarray:
        """The first token of each text in the batch, and the end of the last text."""
        return np.concatenate(([0], np.cumsum(self.lengths)))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The texts of each length."""
        changes = np.flatnonzero(np.diff(self.lengths)) + 1
        firsts = np.concatenate(([0], changes))
        counts = np.diff(firsts, append=len(self.lengths))
        columns = (self.boundaries[firsts], counts, self.lengths[firsts])
        return tuple(Run(*each) for each in zip(*(column.tolist() for column in columns), strict=True))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The tokens of each language."""
        firsts = np.concatenate(([0], np.flatnonzero(np.diff(self.languages)) + 1, [len(self.languages)]))
        ends = self.boundaries[firsts].tolist()
        return tuple(map(Part, self.languages[firsts[:-1]].tolist(), ends[:-1], ends[1:]))

    @property
    def positions(self) -> np.ndarray:
        """The position of each token in its own text, from 2 on, as fairseq and Transformers count."""
        return self._counted_from(np.full(len(self.texts), POSITION_OFFSET))

    def of(self, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The batch's tokens out of `values`, those of all texts that were packed, which begin at `starts`."""
        found: np.ndarray = values[self._counted_from(starts[self.texts])]
        return found

    def _counted_from(self, starts: np.ndarray) -> np.ndarray:
        """For each token the start of its text and the number of tokens before it in the text."""
        counted: np.ndarray = np.arange(self.tokens) + np.repeat(starts - self.boundaries[:-1], self.lengths)
        return counted


def pack(lengths: np.ndarray, *, tokens_per_batch: int, languages: np.ndarray | None = None) -> Iterator[PackedBatch]:
    """Batches of at most `tokens_per_batch` tokens, or of one text that is longer, for texts of these lengths.

    The longest text comes first, so that a device with too little memory fails at once, and with it all texts of its
    language, by the numbers in `languages`. The same lengths and languages give the same batches.
    """
    languages = np.zeros(len(lengths), np.int64) if languages is None else languages
    order = np.argsort(-lengths, kind="stable")
    _, firsts, language_of = np.unique(languages[order], return_index=True, return_inverse=True)
    order = order[np.argsort(firsts[language_of], kind="stable")]
    in_order = lengths[order]
    ends = np.cumsum(in_order)
    start = tokens = 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, tokens + tokens_per_batch, side="right")))
        yield PackedBatch(order[start:stop], in_order[start:stop], languages[order[start:stop]])
        start, tokens = stop, int(ends[stop - 1])
