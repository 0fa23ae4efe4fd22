"""What is compared: a folder that a runtime loads, or the address of a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hf_xlmr.conformance.own_network import Answer
from hf_xlmr.conformance.setting import Text

__all__ = ["Batch", "Given", "Refused", "Target"]


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
