"""The tasks by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Final

from hf_xlmr.errors import InputError

if TYPE_CHECKING:
    from hf_xlmr.tasks.evaluation import EvaluationOptions
    from hf_xlmr.tasks.kinds.task import AnyTask
    from hf_xlmr.tasks.training import FinetuningOptions

HOMES: Final = {
    "xnli": "hf_xlmr.tasks.kinds.xnli",
    "mlqa": "hf_xlmr.tasks.kinds.mlqa",
    "ner": "hf_xlmr.tasks.kinds.ner",
}
"""The module of each task, whose `TASK` is an object of its class. The program names the tasks and imports none."""


class _Tasks(Mapping[str, "AnyTask"]):
    def __getitem__(self, name: str) -> AnyTask:
        task: AnyTask = import_module(HOMES[name]).TASK
        return task

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


TASKS: Final = _Tasks()


def task_of(name: str) -> AnyTask:
    """The task called `name`. Raises InputError."""
    if name not in TASKS:
        raise InputError(f"the task {name!r:.40} is unknown; there are {', '.join(TASKS)}")
    return TASKS[name]


def check_options_of_task(options: FinetuningOptions | EvaluationOptions, task: str) -> None:
    """Raise InputError for the first of the `options` that was given and only other tasks have."""
    for each in fields(options):
        with_it = [name for name, other in TASKS.items() if each.name in other.options]
        if with_it and task not in with_it and getattr(options, each.name) != each.default:
            raise InputError(
                f"{each.name}= is an option of {' and '.join(with_it)} and means nothing in {task}: leave it out"
            )
