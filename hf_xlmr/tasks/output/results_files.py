"""The files that hold results: for programs, for people, and drawn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_plot import plot_results
from hf_xlmr.tasks.results_table import tables_of

__all__ = ["write_results"]


def write_results(folder: Path, results: TaskResults, *, references: bool = False) -> None:
    """Write `results.json`, `results.md` and, where matplotlib is installed, `results.svg`. Raises InputError."""
    (folder / "results.json").write_text(results.to_json(), encoding="utf-8")
    tables = "\n".join(table.as_markdown() for table in tables_of(results, references=references))
    (folder / "results.md").write_text(tables, encoding="utf-8")
    if find_spec("matplotlib") is not None:
        plot_results(results, folder / "results.svg", references=references)
