"""From hidden states to what a runtime gives of them, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from hf_xlmr.conformance.own_network import TOKENS, VECTOR, Answer
from hf_xlmr.conformance.setting import Setting

__all__ = ["POOLS", "Distance", "distance", "finished"]

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
