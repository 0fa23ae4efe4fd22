"""What runtimes give of their hidden states, how far two answers are apart, and what is asked for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from hf_xlmr.conformance.own_network import TOKENS, VECTOR, Answer
from hf_xlmr.conformance.setting import Setting, Text

__all__ = ["POOLS", "Batch", "Distance", "Given", "Refused", "Target", "distance", "finished"]

POOLS: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {
    "mean": lambda rows: rows.mean(axis=0),
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(axis=0),
    "last": lambda rows: rows[-1],
    "sum": lambda rows: rows.sum(axis=0),
    "mean without special tokens": lambda rows: rows[1:-1].mean(axis=0) if len(rows) > 2 else rows.mean(axis=0),
    "mean without <s>": lambda rows: rows[1:].mean(axis=0) if len(rows) > 1 else rows[0],
}
"""Ways to make one vector of the rows of a text's tokens (tokens, width)."""


def finished(answer: Answer, tokens: int, setting: Setting) -> Answer:
    """An answer of a network whose text has so many `tokens`, with the pooled vector and without padding."""
    hidden = answer[TOKENS]
    own = hidden[:tokens]
    rows = hidden if setting.pools_padding else own
    vector = POOLS[setting.pool](rows.astype(np.float64))
    if setting.normalized:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return {**answer, TOKENS: own, VECTOR: vector.astype(np.float32)}


@dataclass(frozen=True)
class Distance:
    """How far an answer is from the right one."""

    largest: float
    """The largest difference, as a share of the largest value of the right answer; infinite for another shape."""
    cosine: float
    """The lowest of the rows."""


SAME: Final = Distance(0.0, 1.0)
APART: Final = Distance(float("inf"), -1.0)


def distance(given: np.ndarray, right: np.ndarray) -> Distance:
    """Compare one kind of answer; another shape or a value that is not finite is infinitely far."""
    if given.shape != right.shape or not np.isfinite(given).all():
        return APART
    if not right.size:
        return SAME
    one, other = (np.atleast_2d(each).astype(np.float64) for each in (given, right))
    largest = float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-12))
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    cosines = np.where(norms > 0, (one * other).sum(axis=-1) / np.maximum(norms, 1e-30), 1.0)
    return Distance(largest, float(min(cosines.min(), 1.0)))


@dataclass(frozen=True)
class Given:
    """What a runtime gave for a text."""

    answer: Answer
    ids: tuple[int, ...] | None = None
    """The ids that it used, None if it does not show them."""


@dataclass(frozen=True)
class Refused:
    """That a runtime gave nothing for a text, and why."""

    reason: str


class Target(Protocol):
    """A runtime that can be asked."""

    runtime: str
    """Its name and version."""
    takes_pairs: bool
    is_normalized: bool
    """Whether its vectors should have the length 1."""
    pool: str
    """How it should pool, if it says so; else empty."""
    shows_used_ids: bool
    """Whether the ids that it shows are those that it computed with, after truncation."""
    precision: str
    """The lower precision that it says it computes in, such as int8; empty if it says nothing."""
    notes: list[str]

    def ask(self, texts: Sequence[Text]) -> list[Given | Refused]:
        """What it gives for texts at once. Raises InputError if it cannot be asked."""

    def close(self) -> None:
        """Let go of it."""


@dataclass
class Batch:
    """A padded batch, as tokenizers of Transformers give it."""

    inputs: dict[str, np.ndarray]
    is_text: np.ndarray = field(init=False)
    """(texts, tokens), False for padding."""

    def __post_init__(self) -> None:
        mask = self.inputs.get("attention_mask")
        self.is_text = np.ones_like(self.inputs["input_ids"], dtype=bool) if mask is None else mask.astype(bool)

    def ids(self, number: int) -> tuple[int, ...]:
        """The ids of a text without padding."""
        return tuple(int(each) for each in self.inputs["input_ids"][number][self.is_text[number]])
