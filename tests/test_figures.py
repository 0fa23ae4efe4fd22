"""The figure of the benchmark's results shows what was measured, and says what was not."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from places import TESTS

PLOT = TESTS / "benchmarks" / "plot_extract.py"
ROWS = [
    {"texts": "short", "case": "hf_xlmr float32", "seconds": 5.12, "range": "5.00-5.50"},
    {"texts": "short", "case": "ONNX Runtime float32", "seconds": 10.24, "range": "10.00-10.50"},
    {"texts": "short", "case": "hf_xlmr bfloat16", "seconds": 2.0, "range": "1.90-2.10"},
    {"texts": "short", "case": "rate float32", "seconds": 4.0, "range": "4.00-4.00"},
    {"texts": "long", "case": "hf_xlmr float32", "seconds": 8.0, "range": "8.00-8.00"},
]

pytestmark = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="matplotlib is not installed (pip install hf-xlmr[benchmarks])"
)


def drawn(rows: list[dict[str, Any]], output: Path, *, elsewhere: bool = False) -> bytes:
    """The figure, drawn in this process or in one of its own."""
    results = output.with_suffix(".json")
    results.write_text(json.dumps(rows), encoding="utf-8")
    words = [str(PLOT), str(results), str(output)]
    if elsewhere:
        subprocess.run([sys.executable, *words], check=True, cwd=output.parent)
    else:
        with patch("sys.argv", words), patch("sys.path", [*sys.path]):
            runpy.run_path(words[0], run_name="__main__")
    return output.read_bytes()


def words_of(svg: bytes) -> list[str]:
    """Every label: letters are outlines, and what they say stands beside them."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_every_peer_has_its_texts_per_second(tmp_path: Path) -> None:
    words = words_of(drawn(ROWS, tmp_path / "figure.svg"))
    assert {"hf_xlmr", "ONNX Runtime", "float32", "bfloat16"} <= {*words}
    assert {"100.0", "50.0", "256.0", "12.5", "matrix products alone: 128.0"} <= {*words}
    assert words.count("not measured") == 4  # ONNX Runtime in three panels of four, hf_xlmr in one
    assert "sentence-transformers" not in words


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = drawn(ROWS, tmp_path / "a.svg"), drawn(ROWS, tmp_path / "b.svg", elsewhere=True)
    assert first == second
    slower = [{**row, "seconds": row["seconds"] * 2, "range": "1.00-9.00"} for row in ROWS]
    assert drawn(slower, tmp_path / "c.svg") != first


def test_one_peer_alone_is_drawn_too(tmp_path: Path) -> None:
    assert drawn(ROWS[:1], tmp_path / "figure.png").startswith(b"\x89PNG")
