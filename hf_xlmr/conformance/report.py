"""How a runtime compares with fairseq's answers, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Conformance", "ProbeClass"]


@dataclass(frozen=True)
class ProbeClass:
    """The probes of a class, and how far the runtime is from the right answers."""

    name: str
    texts: int
    different: int
    """Texts beyond the tolerance."""
    as_tokenizer_json: int
    """Texts whose answer is right for the ids of the folder's tokenizer.json, which are not fairseq's."""
    refused: int
    largest: float | None
    """The largest difference, as a share of the largest value; None if it is not finite, or shapes differ."""
    cosine: float | None
    """The lowest cosine of a vector."""


@dataclass(frozen=True)
class Conformance:
    """How a runtime compares with fairseq's answers."""

    model: Path
    target: str
    """The folder or address, without credentials."""
    runtime: str
    compared: tuple[str, ...]
    """What the runtime gives: tokens, vector, logits."""
    pool: str
    normalized: bool
    """Whether vectors should have the length 1."""
    tolerance: float
    agrees: bool
    verdict: str
    """One sentence."""
    faults: tuple[str, ...]
    """What the runtime does otherwise, if that is known."""
    left: float | None
    """The part of the difference that these faults do not explain; None without any, or for rounding by its size."""
    classes: tuple[ProbeClass, ...]
    tried: Mapping[str, float]
    """The hypotheses that fit best, each with the part of the difference that it leaves."""
    notes: tuple[str, ...]
