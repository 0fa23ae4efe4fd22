"""Published scores of XLM-R, which are shown beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["CONNEAU_2020", "GOYAL_2021", "Published"]

CONNEAU_2020: Final = "Conneau et al. 2020, arXiv:1911.02116"
GOYAL_2021: Final = "Goyal et al. 2021, arXiv:2105.00572"


@dataclass(frozen=True)
class Published:
    """A model's scores in percent, as their source prints them."""

    model: str
    trained_on: str
    scores: Mapping[str, tuple[float, ...]]
    """By language, in the order of the cells of a table: accuracy, or F1 and exact match; empty if unknown."""
    average: tuple[float, ...]
    source: str

    @property
    def label(self) -> str:
        """The model and how it was trained, on one line."""
        return f"{self.model} ({self.trained_on})"
