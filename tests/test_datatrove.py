"""Documents of datatrove get FeatureExtractor's own vectors, in every task and in their order."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import extractions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import PATIENCE
from places import CHECKOUT, FIXTURES

from hf_xlmr import FeatureExtractor
from hf_xlmr.conversion import convert
from hf_xlmr.features.chunks import BadText

pytestmark = pytest.mark.skipif(find_spec("datatrove") is None, reason="pip install hf-xlmr[datatrove]")
if find_spec("datatrove"):
    from datatrove.data import Document

    from hf_xlmr.features.datatrove import XLMRFeatures

model = extractions.model
EXAMPLE = CHECKOUT / "notebooks" / "datatrove_features.py"
TEXTS = ["Hello world!", "", "Ça va? " * 300, "夜里有火车。", "नमस्ते"] * 3


@pytest.fixture(scope="module")
def expected(model: Path) -> np.ndarray:
    return FeatureExtractor.from_pretrained(model, device="cpu")(TEXTS)


def documents() -> Iterator[Document]:
    return (Document(text, f"row-{number}", metadata={"kept": number}) for number, text in enumerate(TEXTS))


def test_each_document_gets_its_vector(model: Path, expected: np.ndarray) -> None:
    step = XLMRFeatures(model, device="cpu")
    found = list(step.run(documents()))
    assert [each.id for each in found] == [f"row-{number}" for number in range(15)]
    assert [each.metadata["kept"] for each in found] == list(range(15))
    np.testing.assert_array_equal(np.stack([each.metadata["features"] for each in found]), expected)
    assert step.stats["truncated"].total == 3 and step.stats["doc_len"].total == sum(map(len, TEXTS))


def test_documents_of_an_xmod_name_their_languages(tmp_path: Path) -> None:
    folder, names = tmp_path / "xmod", ["sw_KE", "en_XX", "vi_VN"]
    convert(FIXTURES / "xmod" / "base", folder, verify=False)
    spoken = [Document(text, text, metadata={"spoken": name}) for text, name in zip("abc", names, strict=True)]
    found = list(XLMRFeatures(folder, device="cpu", language_column="spoken").run(spoken))
    expected = FeatureExtractor.from_pretrained(folder, device="cpu")(list("abc"), names)
    np.testing.assert_array_equal(np.stack([each.metadata["features"] for each in found]), expected)
    with pytest.raises(BadText, match=r"text c: its metadata have no 'spoken'"):
        list(XLMRFeatures(folder, device="cpu", language_column="spoken").run([spoken[0], Document("a", "c")]))


def test_the_options_are_those_of_the_extractor(model: Path) -> None:
    step = XLMRFeatures(model, device="cpu", layers=(0, -1), pool="none", key="xlmr", as_lists=True)
    found = next(iter(step.run(documents()))).metadata
    extractor = FeatureExtractor.from_pretrained(model, device="cpu", layers=(0, -1), pool="none")
    last = extractor.layers[-1]
    assert found.keys() == {"kept", "xlmr_0", f"xlmr_{last}", "xlmr_spans"}
    json.dumps(found)
    np.testing.assert_allclose(found[f"xlmr_{last}"], extractor(TEXTS[:1])[last][0], atol=1e-5)
    assert [TEXTS[0][a:b] for a, b in found["xlmr_spans"]][1:-1] and len(found["xlmr_spans"]) == len(found["xlmr_0"])


def test_a_document_that_is_too_long_is_named(model: Path) -> None:
    with pytest.raises(BadText, match=r"^text row-2: \d+ tokens, and at most 20 are allowed"):
        list(XLMRFeatures(model, device="cpu", on_long="error", max_length=20).run(documents()))


def test_documents_are_taken_as_they_are_needed(model: Path) -> None:
    def endless() -> Iterator[Document]:
        while True:
            yield Document("The train leaves.", "1")

    found = XLMRFeatures(model, device="cpu").run(endless())
    assert next(iter(found)).metadata["features"].shape == next(iter(found)).metadata["features"].shape
    found.close()


def test_a_step_that_is_sent_to_a_task_takes_no_model_along(model: Path) -> None:
    step = XLMRFeatures(model, device="cpu")
    before = len(pickle.dumps(step))
    list(step.run(documents()))
    assert len(pickle.dumps(step)) < 2 * before + 2000
    assert not list(XLMRFeatures("no such model").run(iter(())))  # which is not loaded without documents


def test_the_example_gives_the_same_in_two_tasks(model: Path, expected: np.ndarray, tmp_path: Path) -> None:
    ids = [f"row-{number:02}" for number in range(15)]
    (tmp_path / "texts").mkdir()
    for part in (slice(0, 8), slice(8, 15)):
        rows = {"text": [text or " " for text in TEXTS[part]], "id": ids[part]}
        pq.write_table(pa.table(rows), tmp_path / "texts" / f"{part.start}.parquet")
    command = [sys.executable, EXAMPLE, tmp_path / "texts", tmp_path / "out", "--model", model, "--tasks", "2"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(files) == 2
    table = pa.concat_tables(map(pq.read_table, files)).sort_by("id")
    assert table.schema.field("features").type == pa.list_(pa.float32())
    texts = dict(zip(ids, expected, strict=True))
    for row in table.to_pylist():
        np.testing.assert_allclose(row["features"], texts[row["id"]], rtol=0, atol=1e-5)
