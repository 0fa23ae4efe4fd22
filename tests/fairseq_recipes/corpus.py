"""Read the corpus and the NLI rows beside this file (Python >= 3.8, no packages)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LANGUAGES = 15  # translations follow each other in the corpus, one line for each language


@dataclass(frozen=True)
class Sentence:
    """One line of the corpus; sentences of one group are translations of each other."""

    language: str
    text: str
    group: int


@dataclass(frozen=True)
class Inference:
    """One row of the NLI table."""

    premise: str
    hypothesis: str
    label: str


def read_corpus(path: Path) -> list[Sentence]:
    """Every sentence, in the order of the file."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [Sentence(language, text, index // LANGUAGES) for index, (language, text) in enumerate(rows)]


def choose(sentences: list[Sentence], *, languages: str, groups: int | None) -> list[Sentence]:
    """The sentences in some languages (comma separated, empty for all) of the first groups (None for all)."""
    wanted = set(filter(None, languages.split(","))) or {sentence.language for sentence in sentences}
    return [
        sentence
        for sentence in sentences
        if sentence.language in wanted and (groups is None or sentence.group < groups)
    ]


def read_nli(path: Path) -> list[Inference]:
    """Every row of the NLI table: three rows for each premise, one for each label."""
    return [Inference(*line.split("\t")) for line in path.read_text(encoding="utf-8").split("\n") if line]
