"""Features computed by the actors of Ray Data are FeatureExtractor's own, row by row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import PATIENCE
from places import CHECKOUT

from hf_xlmr import XLMR, FeatureExtractor

EXAMPLE = CHECKOUT / "notebooks" / "ray_features.py"
TOLERANCE = 1e-5
PHRASES = ("Hello world! ", "", "Ça va? ", "夜里有火车。", "नमस्ते ")
ROWS = [{"id": f"row-{number:03}", "text": PHRASES[number % 5] * (number % 7)} for number in range(60)]

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install hf-xlmr[ray])")


@dataclass(frozen=True)
class Run:
    """The example, run once on a Ray of its own."""

    done: subprocess.CompletedProcess[str]
    cache: Path
    output: Path


def run_example(folder: Path, texts: Path, *options: str) -> Run:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["HF_XLMR_CACHE"] = str(folder / "cache")
    environment["HOME"] = str(folder)  # newer releases of Ray put a token there
    command = [sys.executable, EXAMPLE, texts, folder / "features", *options]
    with TemporaryDirectory(prefix="ray") as short:  # of sockets, whose paths may have some 100 characters
        environment["RAY_TMPDIR"] = short
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=environment,
            timeout=PATIENCE,
        )
    return Run(done, folder / "cache", folder / "features")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ray")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return run_example(folder, texts, "--actors", "2", "--batch-size", "8")


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureExtractor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_XLMR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield FeatureExtractor(XLMR.from_pretrained("demo").eval())


def test_every_row_has_the_features_of_its_text(run: Run, extractor: FeatureExtractor) -> None:
    assert run.done.returncode == 0, run.done.stderr
    found = pq.read_table(run.output).sort_by("id")
    assert found.select(["id", "text"]).to_pylist() == ROWS
    expected = extractor([row["text"] for row in ROWS])
    np.testing.assert_allclose(np.array(found["features"].to_pylist()), expected, rtol=0, atol=TOLERANCE)


def test_the_features_are_float32_of_a_fixed_length(run: Run, extractor: FeatureExtractor) -> None:
    """Plain Parquet, that is read without Ray."""
    assert pq.read_schema(next(run.output.glob("*.parquet"))).field("features").type == pa.list_(
        pa.float32(), extractor.width
    )


def test_the_work_is_handed_out_in_batches(run: Run) -> None:
    assert len([*run.output.glob("*.parquet")]) > 1


def test_nothing_is_left_running(run: Run) -> None:
    """No process of Ray: each of them inherits the cache's folder in its environment. Workers may take a moment."""
    inherited = [each for each in psutil.process_iter() if cache_of(each) == str(run.cache)]
    _, alive = psutil.wait_procs(inherited, timeout=PATIENCE)
    assert not alive


def cache_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HF_XLMR_CACHE")
    except psutil.Error:
        return None


def test_a_folder_that_exists_is_refused(run: Run) -> None:
    """Two runs would be mixed there: Ray adds files to what a folder has."""
    before = sorted(run.output.iterdir())
    again = run_example(run.output.parent, run.output.parent / "texts.jsonl")
    assert again.done.returncode == 2
    assert "exists" in again.done.stderr
    assert sorted(run.output.iterdir()) == before
