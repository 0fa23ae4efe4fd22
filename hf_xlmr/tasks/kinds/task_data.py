"""The examples of a task out of several inputs, by the languages of their scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hf_xlmr.errors import InputError, printable
from hf_xlmr.tasks.example_data import example_data
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tasks.kinds.registry import task_of
from hf_xlmr.tasks.kinds.task import AnyTask


class MissingLanguages(InputError):
    """Languages that were asked for, and that the data lack."""

    def __init__(self, told: str, languages: Sequence[str]) -> None:
        """Carry the languages that are missing."""
        self.languages = tuple(languages)
        super().__init__(printable(told))


@dataclass(frozen=True)
class TaskData:
    """Examples by language (in MLQA by pair), in the order of the inputs."""

    name: str
    counts: dict[str, int]
    """How many examples there are, by language."""
    misaligned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The ids of questions if an answer is not at the character that the data say, left out or not, by language."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many examples were left out, by language: for such answers, or for want of a label, or of words."""
    examples: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """Those by language; empty if nobody keeps them."""


def read_task_data(task: str, sources: Sequence[str], reading: Reading) -> TaskData:
    """The examples of `task` in all `sources`. Raises what `gather` raises."""
    examples: dict[str, list[object]] = defaultdict(list)
    data = gather(task_of(task), sources, reading, lambda key, example: examples[key].append(example))
    return replace(data, examples={key: examples[key] for key in data.counts})


def gather(kind: AnyTask, sources: Sequence[str], reading: Reading, take: Callable[[str, object], None]) -> TaskData:
    """What all `sources` hold, after `take` was called with the key and the example of each that is there.

    Raises InputError for what cannot be read, for no examples, and for a language that was asked for and is not there;
    MisalignedAnswers where those are refused.
    """
    gathered = Gathered(take)
    for source, split in sources_of(kind, sources, reading):
        kind.read(source, replace(reading, split=split), gathered)
    name = ", ".join(sources)
    kept = _keys_of(reading.languages, kind, name, gathered)
    misaligned = {key: tuple(gathered.misaligned[key]) for key in kept if key in gathered.misaligned}
    skipped = {key: gathered.skipped[key] for key in kept if gathered.skipped[key]}
    return TaskData(name, {key: gathered.counts[key] for key in kept}, misaligned, skipped)


def sources_of(kind: AnyTask, sources: Sequence[str], reading: Reading) -> list[tuple[DataSource, str | None]]:
    """What users wrote as `sources`, each with its split, None for what has none."""
    demo = example_data(kind.name, reading.usual_split)
    found = [DataSource.parse(text, demo=demo) for text in sources]
    return [(each, reading.split or (reading.usual_split if each.has_splits else None)) for each in found]


def _keys_of(languages: tuple[str, ...] | None, kind: AnyTask, name: str, gathered: Gathered) -> tuple[str, ...]:
    """The keys of the `languages`, in the order in which they are asked for. Raises InputError."""
    found = gathered.counts
    if not found.total():
        left_out = gathered.skipped.total()
        why = f"; {left_out:,} were left out, {kind.scoring.left_out}" if left_out else ""
        raise InputError(printable(f"{name}: no examples are left{why}"))
    if languages is None:
        return tuple(found)
    asked = tuple(dict.fromkeys(map(kind.key_of, languages)))
    if missing := [each for each in asked if each not in found]:
        has = ", ".join(found)
        raise MissingLanguages(f"{name} holds no examples of {', '.join(map(repr, missing))}; it has {has}", missing)
    return asked
