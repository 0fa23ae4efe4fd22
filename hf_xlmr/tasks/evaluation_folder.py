"""What an evaluation writes: its scores for programs, for people, and drawn, and predictions for official scripts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from hf_xlmr.features.processes import is_first_of_all
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_plot import plot_results
from hf_xlmr.tasks.results_table import tables_of

PREDICTIONS: Final = "predictions"
README: Final = "README.md"


def evaluation_folder(output: str | Path | None, *, overwrite: bool) -> AbstractContextManager[Path | None]:
    """A folder to fill, which takes the name `output` when the block ends well; None for none, or another process.

    `overwrite` replaces what an evaluation wrote, and never a model with its scores. Raises InputError.
    """
    if output is None or not is_first_of_all():
        return nullcontext()
    from hf_xlmr.files.staging import staged_folder

    return staged_folder(Path(output), overwrite=overwrite, mark=f"{PREDICTIONS}/{README}")


def predictions_folder(folder: Path, readme: str) -> Path:
    """The new folder for what was predicted; `readme` says how it is read."""
    (folder / PREDICTIONS).mkdir()
    (folder / PREDICTIONS / README).write_text(readme, encoding="utf-8")
    return folder / PREDICTIONS


def write_results(folder: Path, results: TaskResults, *, references: bool = False) -> None:
    """Write `results.json`, `results.md` and, if matplotlib is installed, `results.svg`. Raises InputError."""
    replace_content(folder / "results.json", results.to_json().encode())
    tables = "\n".join(table.as_markdown() for table in tables_of(results, references=references))
    replace_content(folder / "results.md", tables.encode())
    if find_spec("matplotlib") is not None:
        plot_results(results, folder / "results.svg", references=references)
