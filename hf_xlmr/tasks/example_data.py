"""Small data of the three tasks in several languages, which come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.kinds.registry import TASKS

__all__ = ["EXAMPLE_FILES", "example_data", "example_folder"]

PARTS: Final = ("train", "test")
EXAMPLE_FILES: Final = {
    (name, part): file for name, task in TASKS.items() for part, file in zip(PARTS, task.example_files, strict=True)
}
"""The files by task and part. Those of XNLI and names hold all languages; questions to train on are English."""


def example_folder() -> Path:
    """Where the files are; its README.md says what they are."""
    return Path(str(files("hf_xlmr.tasks") / "examples"))


def example_data(task: str, part: str) -> str:
    """The file of a task (`xnli`, `mlqa`, `ner`) and part (`train`, `test`), or the pattern of its files.

    Raises InputError for others.
    """
    if (task, part) not in EXAMPLE_FILES:
        known = ", ".join(" ".join(each) for each in EXAMPLE_FILES)
        raise InputError(f"there is no example data for {task} {part}; there is {known}")
    return str(example_folder() / EXAMPLE_FILES[task, part])
