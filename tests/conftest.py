"""Tests meet the installed package, as the checkout is taken off the import path; modules can share a cache."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from places import FIXTURES, RUNS_RANKERS

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != CHECKOUT]
os.fsync = lambda _descriptor: None  # no test cuts the power, and waiting for the disk takes longer than most tests


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversions and kernels of all tests of this run: a source is converted once, by the first worker to ask."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def cache_folder(shared_cache: Path) -> Iterator[Path]:
    """The cache as the module's tests find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_XLMR_CACHE", str(shared_cache))
        yield shared_cache


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models of the three families, which fairseq trained, as they are converted."""
    from hf_xlmr.conversion import convert

    fixtures = {"post-norm": "v0122", "pre-norm": "v0122prenorm", "pre-norm with embedding norm": "v0122prelayernorm"}
    made = {family: tmp_path_factory.mktemp("models") / fixture for family, fixture in fixtures.items()}
    for folder in made.values():
        convert(FIXTURES / folder.name, folder, verify=False)
    return made


@pytest.fixture
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three probes of each class and all batches, in which every planted fault shows: a third less to compute."""
    from hf_xlmr.conformance import comparison

    usual = comparison.probes_of

    def few(ids: Any) -> list[Any]:
        kept = []
        for kind, each in groupby(usual(ids), key=lambda probe: probe.kind):
            some = list(each)
            kept += some if kind == "batches" else some[:: max(1, len(some) // 3)]
        return kept

    monkeypatch.setattr(comparison, "probes_of", few)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch in one thread, which is faster for small networks beside other processes."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


MANY = 100  # modules: whenever so many more were imported, what they hold is frozen
frozen = 0


def pytest_runtest_setup() -> None:
    """Spare the collector PyTorch's and Transformers' own objects, through which each training looks four times."""
    global frozen
    if len(sys.modules) >= frozen + MANY:
        gc.collect()
        gc.freeze()
        frozen = len(sys.modules)


# What other versions of Python, PyTorch, Transformers, accelerate, SentencePiece and pyarrow could break.
CORE = {
    *(
        "test_architecture",
        "test_bulk_extraction",
        "test_command_line",
        "test_containers",
        "test_dialects",
        "test_dictionary",
    ),
    *(
        "test_fairseq_answers",
        "test_int8",
        "test_languages",
        "test_layerwise",
        "test_loading",
        "test_model_shape",
        "test_pickles",
        "test_pipeline",
    ),
    *(
        "test_placed_loading",
        "test_stored_weights",
        "test_text_files",
        "test_tokenization",
        "test_transformers_tokenizer",
    ),
    *("test_vocabulary", "test_weight_map", "test_writer", "test_xmod"),
}
SLOW = {  # modules and tests of `make slow`: notebooks, Ray, kill loops, several processes, and what unfolds
    *("test_notebooks", "test_ray", "test_packaging", "test_full_disks", "test_large_vocabulary", "test_exporting"),
    *("test_planted_faults", "test_planted_graphs", "test_conformance"),
    *("test_every_block_for_the_demo_runs", "test_so_do_those_of_the_guides_in_the_same_folder"),
    *("test_killed_at_any_moment_it_goes_on_to_the_same_bytes", "test_an_interrupt_ends_it_at_once"),
    *("test_loading_onto_the_disk_reads_nothing", "test_loading_onto_the_cpu_holds_no_second_copy"),
    "test_answers_are_the_same_wherever_the_weights_are",
    *("test_every_family_learns_every_task", "test_kills_leave_all_or_nothing"),
    *("test_two_processes_make_the_same_bytes_as_one", "test_two_processes_train_as_one"),
    *("test_small_files_that_unfold_take_little_memory", "test_large_texts_of_a_small_file_take_little_memory"),
    *("test_a_file_that_cannot_grow_loses_nothing", "test_the_command_saves_what_it_finds"),
    *("test_a_death_is_found_and_the_rest_is_tried", "test_a_small_archive_of_gigabytes"),
}
RANKERS = ("ranking", "MultipleChoice")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spare each worker the import of modules that hold no test of the tier that is asked for."""
    tier, name = config.option.markexpr, collection_path.stem
    if collection_path.suffix != ".py" or tier not in ("core", "slow", "not slow"):
        return None
    if tier == "slow" and name not in SLOW:
        source = collection_path.read_text(encoding="utf-8")
        has_tests = any(f"def {test}(" in source for test in SLOW)
    else:
        has_tests = {"core": name in CORE, "slow": True, "not slow": name not in SLOW}[tier]
    return None if has_tests else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the core and the slow tests, and allow that rankers are refused if Transformers cannot run them."""
    from hf_xlmr.errors import InputError  # of the installed package, now that the checkout is off the path

    refused = pytest.mark.xfail(raises=InputError, reason="this Transformers builds multiple choice without its pooler")
    for item in items:
        if SLOW & {item.path.stem, item.name.split("[")[0]}:
            item.add_marker(pytest.mark.slow)
        elif item.path.stem in CORE:
            item.add_marker(pytest.mark.core)
        if not RUNS_RANKERS and any(word in item.name for word in RANKERS):
            item.add_marker(refused)
