"""The pipeline gives every row as the model gives it alone, and survives being saved without hf_xlmr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import FIXTURES
from warm_processes import run

import hf_xlmr.pipeline  # noqa: F401  # which registers the pipeline
from hf_xlmr import XLMR
from hf_xlmr.conversion import convert

TEXTS = ["Hello world!", "the train at night", "नमस्ते दुनिया", "a"]


@pytest.fixture(scope="module", params=["v0122", "v0122prenorm", "v0122prelayernorm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(FIXTURES / request.param, tmp_path_factory.mktemp("converted") / "model", verify=False).output


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return transformers.pipeline("xlmr-feature-extraction", model=str(folder))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_have_no_padding_and_equal_fairseqs(batch_size: int, pipe: Any, folder: Path) -> None:
    xlmr = XLMR.from_pretrained(folder).eval()
    rows = pipe(TEXTS, batch_size=batch_size)
    for text, row in zip(TEXTS, rows, strict=True):
        torch.testing.assert_close(row, xlmr.extract_features(xlmr.encode(text))[0], rtol=0, atol=1e-5)


def test_layers_by_index(pipe: Any, folder: Path) -> None:
    xlmr = XLMR.from_pretrained(folder).eval()
    hidden = xlmr.extract_features(xlmr.encode(TEXTS[1]), return_all_hiddens=True)
    first, second, last = pipe(TEXTS[1], layers=[0, 1, -1])
    torch.testing.assert_close(first, hidden[0][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(second, hidden[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(last, pipe(TEXTS[1]))
    with pytest.raises(ValueError, match="no layer 9"):
        pipe(TEXTS[1], layers=9)


def test_pooling_is_over_real_tokens(pipe: Any) -> None:
    rows = pipe(TEXTS)
    for pool, expected in {
        "mean": [row.mean(dim=0) for row in rows],
        "max": [row.amax(dim=0) for row in rows],
        "cls": [row[0] for row in rows],
    }.items():
        for ours, theirs in zip(pipe(TEXTS, batch_size=4, pool=pool), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="'sum'"):
        pipe(TEXTS, pool="sum")


def test_pairs_and_lists(pipe: Any, folder: Path) -> None:
    xlmr = XLMR.from_pretrained(folder).eval()
    pair = pipe([("Hello", "world")], return_tensors=False)[0]
    expected = xlmr.extract_features(xlmr.encode("Hello", "world"))[0]
    torch.testing.assert_close(torch.tensor(pair), expected, rtol=0, atol=1e-5)


def test_pairs_are_read_by_name(pipe: Any) -> None:
    expected = pipe([("a", "b and c")])[0]
    assert torch.equal(pipe({"text_pair": "b and c", "text": "a"}), expected)
    assert torch.equal(pipe({"text": "a", "text_pair": None}), pipe("a"))
    for given in ({"foo": "a"}, {"text": "a", "foo": "b"}, {"text_pair": "a"}, {}, [("a", "b", "c")], [3]):
        with pytest.raises(ValueError, match=r"text_pair|a pair of texts"):
            pipe(given)


@pytest.mark.parametrize(
    "options",
    [{"layers": []}, {"layers": "-1"}, {"layers": [0.5]}, {"layers": True}, {"max_length": 0}, {"max_length": -3}],
    ids=str,
)
def test_options_that_cannot_be_meant_are_told(options: dict[str, Any], pipe: Any) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}=.*give"):
        pipe("a", truncation=True, **options)


def test_the_mean_is_computed_in_float32(folder: Path) -> None:
    half = transformers.pipeline("xlmr-feature-extraction", model=str(folder), dtype=torch.float16)
    rows = half(TEXTS[1])
    assert rows.dtype == torch.float16
    assert torch.equal(half(TEXTS[1], pool="mean"), rows.float().mean(dim=0))


def test_truncation_is_asked_for(pipe: Any) -> None:
    long = "a b c d " * 40
    with pytest.raises(ValueError, match="truncation=True"):
        pipe(long)
    assert len(pipe(long, truncation=True)) == pipe.longest
    assert len(pipe(long, truncation=True, max_length=7)) == 7
    with pytest.raises(TypeError, match="truncate"):
        pipe(long, truncate=True)


RELOAD = """
import sys
sys.modules["hf_xlmr"] = None
import transformers
pipe = transformers.pipeline("xlmr-feature-extraction", model=sys.argv[1], trust_remote_code=True)
if sys.argv[2:]:
    pipe.save_pretrained(sys.argv[2])
print(type(pipe).__name__, tuple(pipe("Hello world!", pool="mean").shape))
"""


def test_a_saved_pipeline_reloads_without_hf_xlmr(pipe: Any, tmp_path: Path) -> None:
    """And what was reloaded can be saved and reloaded again."""
    pipe.save_pretrained(tmp_path / "saved")
    for folders in (["saved", "again"], ["again"]):
        done = run([sys.executable, "-c", RELOAD, *[str(tmp_path / folder) for folder in folders]], cwd=tmp_path)
        width = pipe.model.config.hidden_size
        assert done.stdout.strip() == f"XLMRFeatureExtractionPipeline ({width},)", done.stderr


KNOWN = """
from transformers.pipelines import PIPELINE_REGISTRY
from hf_xlmr.pipeline import XLMRFeatureExtractionPipeline as Pipeline
assert PIPELINE_REGISTRY.supported_tasks["xlmr-feature-extraction"]["impl"] is Pipeline
"""


def test_it_is_known_where_hf_xlmr_is_imported_first() -> None:
    """By itself, and when it is asked for once more."""
    names = "from hf_xlmr.pipeline import register; import transformers"
    subprocess.run([sys.executable, "-c", f"{names}\n{KNOWN}\nregister()\n{KNOWN}"], check=True)


def test_it_is_known_where_transformers_is_imported_first() -> None:
    run([sys.executable, "-c", f"import transformers, hf_xlmr.pipeline\n{KNOWN}"], check=True)


def test_importing_hf_xlmr_changes_nothing_and_its_pipeline_is_known_after_those_of_transformers() -> None:
    program = (
        "import sys\n"
        "from transformers.pipelines import PIPELINE_REGISTRY, pipeline\n"
        "before = list(sys.meta_path), sorted(PIPELINE_REGISTRY.supported_tasks)\n"
        "import hf_xlmr, hf_xlmr.conversion\n"
        "assert (list(sys.meta_path), sorted(PIPELINE_REGISTRY.supported_tasks)) == before\n"
        f"import hf_xlmr.pipeline\n{KNOWN}"
    )
    run([sys.executable, "-c", program], check=True)
