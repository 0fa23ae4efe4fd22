"""What the tests of extract share: the demo's folder, a file of texts, and options that give the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_xlmr import XLMR
from hf_xlmr.features.bulk_extraction import ExtractionOptions

__all__ = ["OPTIONS", "model", "texts_of", "write"]

OPTIONS = ExtractionOptions(dtype="float32", rows_per_shard=10, device="cpu")


@pytest.fixture(scope="module")
def model(cache_folder: Path) -> Path:
    """The folder that the demo was converted to."""
    return XLMR.from_pretrained("demo").files.folder


def texts_of(count: int) -> list[str]:
    """So many texts, all different."""
    return [f"The train {number} leaves. Дети играют." for number in range(count)]


def write(path: Path, texts: list[str]) -> Path:
    """A file of these texts, one in each line."""
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path
