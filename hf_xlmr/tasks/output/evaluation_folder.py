"""The folder of an evaluation: its scores, and what was predicted, for other people's scripts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_xlmr.features.processes import is_first_of_all
from hf_xlmr.tasks.output.results_files import write_results
from hf_xlmr.tasks.results import TaskResults

__all__ = ["EvaluationFolder", "evaluation_folder"]

PREDICTIONS: Final = "predictions"
README: Final = "README.md"


@dataclass(frozen=True)
class EvaluationFolder:
    """A folder that is being filled."""

    path: Path
    references: bool

    def add_results(self, results: TaskResults) -> None:
        """Write the scores."""
        write_results(self.path, results, references=self.references)

    def predictions(self, readme: str) -> Path:
        """The folder for what was predicted; `readme` says how it is read."""
        folder = self.path / PREDICTIONS
        folder.mkdir()
        (folder / README).write_text(readme, encoding="utf-8")
        return folder


@contextmanager
def evaluation_folder(
    output: str | Path | None, *, overwrite: bool, references: bool
) -> Iterator[EvaluationFolder | None]:
    """A folder to fill, which takes the name `output` when the block ends well; None for none, or another process.

    `overwrite` replaces what an evaluation wrote, and never a model with its scores. Raises InputError.
    """
    if output is None or not is_first_of_all():
        yield None
        return
    from hf_xlmr.files.staging import staged_folder

    with staged_folder(Path(output), overwrite=overwrite, mark=f"{PREDICTIONS}/{README}") as draft:
        yield EvaluationFolder(draft, references)
