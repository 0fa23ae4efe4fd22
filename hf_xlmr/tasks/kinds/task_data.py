"""The examples of a task out of several inputs, by the languages of their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hf_xlmr.errors import InputError, printable
from hf_xlmr.tasks.example_data import example_data
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tasks.kinds.registry import task_of
from hf_xlmr.tasks.kinds.task import AnyTask

__all__ = ["MissingLanguages", "TaskData", "read_task_data"]


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
    examples: Mapping[str, Sequence[object]]
    counts: dict[str, int]
    """How many examples there are, by language."""
    misaligned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The ids of questions if an answer is not at the character that the data say, left out or not, by language."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many examples were left out, by language: for such answers, or for want of a label, or of words."""


def read_task_data(task: str, sources: Sequence[str], reading: Reading) -> TaskData:
    """The examples of `task` in all `sources`.

    Raises InputError for what cannot be read, for no examples, and for a language that was asked for and is not there;
    MisalignedAnswers where those are refused.
    """
    kind, gathered = task_of(task), Gathered()
    for text in sources:
        source = DataSource.parse(text, demo=example_data(task, reading.usual_split))
        split = reading.split or (reading.usual_split if source.has_splits else None)
        kind.read(source, replace(reading, split=split), gathered)
    name = ", ".join(sources)
    kept = _examples_of(reading.languages, kind, name, gathered)
    misaligned = {key: tuple(gathered.misaligned[key]) for key in kept if key in gathered.misaligned}
    skipped = {key: gathered.skipped[key] for key in kept if gathered.skipped[key]}
    return TaskData(name, kept, {key: len(each) for key, each in kept.items()}, misaligned, skipped)


def _examples_of(
    languages: tuple[str, ...] | None, kind: AnyTask, name: str, gathered: Gathered
) -> dict[str, list[object]]:
    """The examples of the `languages`, in the order in which they are asked for. Raises InputError."""
    found = gathered.examples
    if not any(found.values()):
        left_out = gathered.skipped.total()
        why = f"; {left_out:,} were left out, {kind.scoring.left_out}" if left_out else ""
        raise InputError(printable(f"{name}: no examples are left{why}"))
    if languages is None:
        return found
    asked = tuple(dict.fromkeys(map(kind.key_of, languages)))
    if missing := [each for each in asked if each not in found]:
        has = ", ".join(found)
        raise MissingLanguages(f"{name} holds no examples of {', '.join(map(repr, missing))}; it has {has}", missing)
    return {language: found[language] for language in asked}
