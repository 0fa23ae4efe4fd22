"""Every notebook runs as it is, offline and on one thread, and is kept without what it printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from patience import PATIENCE
from places import CHECKOUT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
EVERY_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
PICTURES = {"01_tour": 2, "02_convert_your_own": 2, "03_features_at_scale": 3, "04_fine_tune": 2}


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [*PICTURES]


@EVERY_NOTEBOOK
def test_outputs_are_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.source
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@EVERY_NOTEBOOK
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder: what it writes lies there, nothing warns, and every cell that shows something shows it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[path.stem]
    if path.stem == "04_fine_tune":
        check_fine_tuning(tmp_path)


def check_fine_tuning(folder: Path) -> None:
    """English is learnt, the translations too once they are trained on."""
    from hf_xlmr.tasks.results import TaskResults

    zero_shot, all_languages = (
        TaskResults.read(folder / name / "xnli.json") for name in ("zero-shot", "translate-train-all")
    )
    assert zero_shot.languages == all_languages.languages == ("en", "fr", "es", "de", "ru", "ar", "zh")
    assert zero_shot.scores["en"]["accuracy"] > 80
    assert all_languages.average["accuracy"] > max(80, zero_shot.average["accuracy"])
