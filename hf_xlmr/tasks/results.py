"""The scores of a task by language, as they are kept: in the papers' order, checked, to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Final

from hf_xlmr.data.text_rows import JSON_TYPES
from hf_xlmr.errors import InputError, printable, told_plainly
from hf_xlmr.tasks.kinds.mlqa import key_of_pair, languages_of_pair
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Setting

__all__ = ["Setting", "TaskResults", "key_of_pair", "languages_of_pair", "paper_order"]

HIGHEST: Final = 100.0


def paper_order(task: str, keys: Mapping[str, object]) -> tuple[str, ...]:
    """The languages or pairs in `keys` as the papers order them, those that the papers lack last, alphabetically.

    Entities have two orders: CoNLL's four languages if there are no others, else that of XTREME.
    """
    orders = TASKS[task].scoring.orders
    languages = {key: TASKS[task].languages_of(key) for key in keys}
    found = {each for several in languages.values() for each in several}
    order = next((each for each in orders if found <= set(each)), orders[-1])
    place = {language: number for number, language in enumerate(order)}
    return tuple(sorted(keys, key=lambda key: [(place.get(each, len(order)), each) for each in languages[key]]))


@dataclass(frozen=True)
class TaskResults:
    """What a model scored in a task. Raises InputError for scores that do not add up."""

    task: str
    """`xnli`, `mlqa` or `ner`."""
    model: str
    """What was evaluated, as the user named it."""
    metrics: tuple[str, ...]
    """`("accuracy",)`, `("f1", "exact_match")` or `("f1", "precision", "recall")`: the first is the headline."""
    scores: Mapping[str, Mapping[str, float]]
    """The scores in percent, by language and metric; MLQA's by pair: `en-de` is English contexts, German questions."""
    counts: Mapping[str, int]
    """How many examples were scored, by language."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many were left out because of their answers or labels, by language; empty if there were none."""
    misaligned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The ids of questions whose answers are not where they should be, left out or not, by language."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """What matters for repeating it."""

    def __post_init__(self) -> None:
        """Check that every language has every metric, and put the languages in the papers' order."""
        if why := _why_not(self):
            raise InputError(printable(f"these are not results of a task: {why}"))
        order = paper_order(self.task, self.scores)
        for name, values in (("scores", self.scores), ("counts", self.counts)):
            object.__setattr__(self, name, {key: values[key] for key in order})

    @property
    def languages(self) -> tuple[str, ...]:
        """The keys of the scores, in the papers' order."""
        return tuple(self.scores)

    @property
    def average(self) -> Mapping[str, float]:
        """The mean over the languages, each of which counts alike, by metric."""
        return {
            metric: math.fsum(scores[metric] for scores in self.scores.values()) / len(self.scores)
            for metric in self.metrics
        }

    def to_json(self) -> str:
        """All fields, and the average for those who read it elsewhere."""
        return json.dumps({**asdict(self), "average": self.average}, ensure_ascii=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str = "the text") -> TaskResults:
        """The results that `to_json` wrote; `name` says in messages where they came from. Raises InputError."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(printable(f"{name} holds no results of a task: this is not JSON: {error}")) from error
        if why := _why_not_fields(values):
            raise InputError(printable(f"{name} holds no results of a task: {why}"))
        given = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        given["metrics"] = tuple(values["metrics"])
        told = values.get(OPTIONAL, {}).items()
        given[OPTIONAL] = {key: tuple(ids) if isinstance(ids, list) else ids for key, ids in told}
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(printable(f"{name} is damaged: {error}")) from error

    @classmethod
    def read(cls, path: str | Path) -> TaskResults:
        """The results in a file of JSON. Raises InputError."""
        with told_plainly():
            content = Path(path).read_bytes()
        try:
            return cls.from_json(content.decode(), name=str(path))
        except UnicodeDecodeError as error:
            raise InputError(printable(f"{path} holds no results of a task: this is not UTF-8")) from error


KINDS: Final[Mapping[str, type]] = {
    "task": str,
    "model": str,
    "metrics": list,
    "scores": dict,
    "counts": dict,
    "skipped": dict,
    "settings": dict,
    "misaligned": dict,
}
OPTIONAL: Final = "misaligned"


def _why_not_fields(values: object) -> str | None:
    if not isinstance(values, dict):
        return f"an object is expected, not {JSON_TYPES[type(values)]}"
    for name, kind in KINDS.items():
        if name not in values and name != OPTIONAL:
            return f"there is no {name!r}"
        if name in values and not isinstance(values[name], kind):
            return f"{name!r} is {JSON_TYPES[type(values[name])]}, not {JSON_TYPES[kind]}"
    return None


def _why_not(results: TaskResults) -> str | None:
    if results.task not in TASKS:
        return f"the task {results.task!r} is unknown; there are {', '.join(TASKS)}"
    task = TASKS[results.task]
    if results.metrics != task.scoring.metrics:
        return f"{results.task} has the metrics {', '.join(task.scoring.metrics)}, not {results.metrics!r}"
    if not results.scores:
        return "no language has scores"
    if results.counts.keys() != results.scores.keys():
        return f"scores are of {', '.join(results.scores)}, counts of {', '.join(results.counts) or 'nothing'}"
    if len(set(map(task.languages_of, results.scores))) < len(results.scores):
        return f"two of the pairs {', '.join(results.scores)} are the same"
    faults = (_why_not_scores(key, scores, results.metrics) for key, scores in results.scores.items())
    return next((why for why in faults if why), None) or _why_not_values(results)


def _why_not_scores(key: str, scores: object, metrics: tuple[str, ...]) -> str | None:
    if not isinstance(scores, Mapping) or scores.keys() != set(metrics):
        return f"{key!r} has {scores!r} where {' and '.join(metrics)} are expected"
    for metric, value in scores.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value <= HIGHEST:
            return f"the {metric} of {key!r} is {value!r}, which is not a percentage"
    return None


def _why_not_values(results: TaskResults) -> str | None:
    for what, counts in (("scored", results.counts), ("skipped", results.skipped)):
        for key, count in counts.items():
            if type(count) is not int or count < 0:
                return f"the number of examples of {key!r} that were {what} is {count!r}"
    for key, ids in results.misaligned.items():
        if not isinstance(ids, tuple) or not all(isinstance(each, str) for each in ids):
            return f"the ids of misaligned answers of {key!r} are {ids!r}"
    settings: Mapping[str, object] = results.settings
    for name, value in settings.items():
        if not isinstance(value, Setting):
            return f"the setting {name!r} is {JSON_TYPES.get(type(value), type(value).__name__)}"
    return None
