"""What was published of XLM-R's scores, to be shown beside measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["PUBLISHED", "Published"]

XNLI_COLUMNS: Final = ["en", "fr", "es", "de", "el", "bg", "ru", "tr", "ar", "vi", "th", "zh", "hi", "sw", "ur"]
MLQA_COLUMNS: Final = ["en", "es", "de", "ar", "hi", "vi", "zh"]
SOURCES: Final = {
    "2020": "Conneau et al. 2020, arXiv:1911.02116",
    "2021": "Goyal et al. 2021, arXiv:2105.00572",
}


@dataclass(frozen=True)
class Published:
    """A model's scores in percent, as their source prints them."""

    model: str
    trained_on: str
    scores: Mapping[str, tuple[float, ...]]
    """By language, in the order of the cells of a table: accuracy, or F1 and exact match; empty where unknown."""
    average: tuple[float, ...]
    source: str

    @property
    def label(self) -> str:
        """The model and how it was trained, on one line."""
        return f"{self.model} ({self.trained_on})"


def _xnli(model: str, average: float, scores: str, source: str) -> Published:
    values = {language: (float(each),) for language, each in zip(XNLI_COLUMNS, scores.split(), strict=True)}
    return Published(model, "translate-train-all", values, (average,), SOURCES[source])


def _mlqa(model: str, average: tuple[float, float], scores: str, source: str) -> Published:
    pairs = (tuple(map(float, each.split("/"))) for each in scores.split())
    return Published(model, "trained on SQuAD", dict(zip(MLQA_COLUMNS, pairs, strict=bool(scores))), average, source)


PUBLISHED: Final[Mapping[str, tuple[Published, ...]]] = {
    "xnli": (
        _xnli(
            "XLM-R large", 83.6, "89.1 85.1 86.6 85.7 85.3 85.9 83.5 83.2 83.1 83.7 81.5 83.7 81.6 78.0 78.1", "2020"
        ),
        _xnli("XLM-R XL", 85.4, "91.1 87.2 88.1 87.0 87.4 87.8 85.3 85.2 85.3 86.2 83.8 85.3 83.1 79.8 78.2", "2021"),
        _xnli("XLM-R XXL", 86.0, "91.5 87.6 88.7 87.8 87.4 88.2 85.6 85.1 85.8 86.3 83.9 85.6 84.6 81.7 80.6", "2021"),
    ),
    "mlqa": (
        _mlqa(
            "XLM-R large",
            (70.7, 52.7),
            "80.6/67.8 74.1/56.0 68.5/53.6 63.1/43.5 69.2/51.6 71.3/50.9 68.0/45.4",
            SOURCES["2020"],
        ),
        # their columns as printed do not fit the languages above them, so the averages alone are given
        _mlqa("XLM-R XL", (73.4, 55.3), "", SOURCES["2021"]),
        _mlqa("XLM-R XXL", (74.8, 56.6), "", SOURCES["2021"]),
    ),
    "ner": (),
}
"""By task. The averages of MLQA are over contexts and questions of the same language."""
