"""What a user gave as data, what of it is wanted, and the examples that were found there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hf_xlmr.data.text_files import is_hub_name
from hf_xlmr.files.own_names import DEMO, own_name
from hf_xlmr.tasks.mlqa import Misalignment
from hf_xlmr.tasks.xnli import WithoutLabel

LANGUAGE: Final = r"[a-z]{2,3}(?:-[a-z]{2,3})?"
NAMED: Final = re.compile(rf"(?P<language>{LANGUAGE})=(?P<source>.+)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class DataSource:
    """What a user wrote as data: `FILE`, `de=FILE`, `en-de=FILE`, `owner/name` or `owner/name@config`."""

    source: str
    language: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str, *, demo: str) -> DataSource:
        """The parts of `text`: the file of that whole name if there is one, and the file `demo` for that word."""
        if own_name(text) == DEMO:
            return cls(demo)
        language = None
        if not Path(text).exists() and (named := NAMED.fullmatch(text)):
            language, text = named["language"].lower(), named["source"]
        name, _, config = text.rpartition("@")
        if is_hub_name(name) and config and not Path(text).exists():
            return cls(name, language, config)
        return cls(text, language)

    @property
    def has_splits(self) -> bool:
        """Whether it is a data set whose splits are side by side."""
        path = Path(self.source)
        return (path / "dataset_dict.json").is_file() or (not path.exists() and is_hub_name(self.source))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What of the inputs is wanted."""

    split: str | None = None
    """The split of data sets; None for the `usual_split` if there are several."""
    usual_split: str = "train"
    languages: tuple[str, ...] | None = None
    """The languages, or the pairs of context and question in MLQA; None for all there are."""
    misaligned: Misalignment = "refuse"
    """What is done with questions if an answer is not at the character that the data say."""
    unlabelled: WithoutLabel = "skip"
    """What is done with pairs of sentences on whose label the annotators did not agree."""
    labels: tuple[str, ...] | None = None
    """All tags of entities, or the labels of XNLI, in the order of their numbers; None if the data have their names."""


@dataclass
class Gathered:
    """How many examples there are, and what was wrong with others, by the key of their scores."""

    take: Callable[[str, object], None]
    """What is done with each example and its key."""
    counts: Counter[str] = field(default_factory=Counter)
    misaligned: dict[str, list[str]] = field(default_factory=dict)
    """The ids of questions if an answer is not at the character that the data say."""
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, key: str, example: object) -> None:
        """Add an example in the order in which it was read."""
        self.counts[key] += 1
        self.take(key, example)
