"""Tests meet the installed package, as the checkout is taken off the import path; a module can have its own cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != CHECKOUT]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of conversions and kernels that is the module's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("HF_XLMR_CACHE", str(folder))
        yield folder


# What other versions of Python, PyTorch, Transformers, accelerate, SentencePiece and pyarrow could break.
CORE = {
    *("test_architecture", "test_bulk_extraction", "test_containers", "test_dialects", "test_dictionary"),
    *("test_fairseq_answers", "test_layerwise", "test_loading", "test_model_shape", "test_pickles", "test_pipeline"),
    *(
        "test_placed_loading",
        "test_stored_weights",
        "test_text_files",
        "test_tokenization",
        "test_transformers_tokenizer",
    ),
    *("test_vocabulary", "test_weight_map", "test_writer"),
}
POOLED_SINCE = (5, 14)  # before, Transformers builds XLMRobertaForMultipleChoice without the pooler that it runs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the core, and skip the rankers that an old Transformers cannot run."""
    cannot_rank = tuple(map(int, version("transformers").split(".")[:2])) < POOLED_SINCE
    for item in items:
        if item.path.stem in CORE:
            item.add_marker(pytest.mark.core)
        if cannot_rank and ("ranking" in item.name or "MultipleChoice" in item.name or "MULTIPLE_CHOICE" in item.name):
            item.add_marker(pytest.mark.skip(reason="this Transformers builds multiple choice without its pooler"))
