"""Every checkpoint that real fairseq trained, converted, gives fairseq's own answers in plain Transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import FIXTURES, RUNS_RANKERS, SHARED_CHECKPOINTS, TESTS
from warm_processes import run

from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError

SAMPLES = {path.name: path for path in sorted(FIXTURES.iterdir()) if (path / "golden.npz").is_file()}
SAMPLES |= {f"shared-{path.name}": path for path in SHARED_CHECKPOINTS}
if not RUNS_RANKERS:
    del SAMPLES["v0122ranking"]
CHOSEN_HEAD = {"v0122twoheads": "none"}
HEADS = {"v0122cls", "v0122regression", "v0122ranking", "shared-v12cls"}
HIDDEN_TOLERANCE = 1e-5
LOGIT_TOLERANCE = 1e-5  # of the largest logit, at least 1
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # Transformers reads these as symbols, fairseq as plain text


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of every sample's conversion; those without heads are proved where test_hub_interface loads them."""
    folder = tmp_path_factory.mktemp("converted")
    return {
        name: convert(
            "demo" if name == "demo" else path, folder / name, head=CHOSEN_HEAD.get(name), verify=name in HEADS
        )
        for name, path in SAMPLES.items()
    }


@pytest.fixture(scope="module")
def answers(converted: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, np.ndarray]:
    """What plain Transformers, in a process without hf_xlmr, makes of them."""
    folder = tmp_path_factory.mktemp("answers")
    wanted = {
        name: {
            "folder": str(report.output),
            "class": report.class_name,
            "inputs": str(SAMPLES[name] / "golden.npz"),
            "texts": texts_of(SAMPLES[name]),
        }
        for name, report in converted.items()
    }
    (folder / "wanted.json").write_text(json.dumps(wanted))
    code, results = (TESTS / "plain_transformers.py").read_text(encoding="utf-8"), folder / "results.npz"
    done = run([sys.executable, "-c", code, folder / "wanted.json", results], cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(results) as arrays:
        return dict(arrays)


@cache
def golden_of(name: str) -> Mapping[str, np.ndarray]:
    with np.load(SAMPLES[name] / "golden.npz") as arrays:
        return dict(arrays)


def texts_of(sample: Path) -> list[list[str]]:
    golden = json.loads((sample / "golden.json").read_text(encoding="utf-8"))
    return [*([text] for text in golden["texts"]), *(list(pair) for pair in golden["pairs"])]


@pytest.mark.parametrize("name", SAMPLES)
def test_no_weight_is_missing_left_over_or_random(name: str, answers: Mapping[str, np.ndarray]) -> None:
    assert json.loads(str(answers[f"{name}/loading"])) == []
    missing = json.loads(str(answers[f"{name}/auto_missing"]))
    assert all("pooler" in key for key in missing), "AutoModel may only lack the pooler that fairseq never had"


@pytest.mark.parametrize("name", SAMPLES)
def test_hidden_states_are_fairseqs(name: str, answers: Mapping[str, np.ndarray]) -> None:
    golden = golden_of(name)
    for index in range(len(texts_of(SAMPLES[name]))):
        layers = golden[f"hiddens.{index}"]
        for depth, expected in enumerate(layers[:-1]):
            np.testing.assert_allclose(
                answers[f"{name}/hidden.{index}.{depth}"], expected, rtol=0, atol=HIDDEN_TOLERANCE
            )
        last = answers[f"{name}/hidden.{index}.{len(layers) - 1}"]
        np.testing.assert_allclose(last, golden[f"last.{index}"], rtol=0, atol=HIDDEN_TOLERANCE)


@pytest.mark.parametrize("name", SAMPLES)
def test_logits_and_heads_are_fairseqs(name: str, converted: dict[str, Any], answers: Mapping[str, np.ndarray]) -> None:
    golden = golden_of(name)
    for index in range(len(texts_of(SAMPLES[name]))):
        keys = [f"logits.{index}"]
        if not converted[name].class_name.endswith("MaskedLM"):
            keys = [key for key in golden if key.startswith("head.") and key.endswith(f".{index}")]
        (key,) = keys
        expected, given = golden[key], answers[f"{name}/output.{index}"]
        given = given[..., : expected.shape[-1]]  # rows for pieces that the dictionary lacks come after fairseq's own
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(given, expected, rtol=0, atol=LOGIT_TOLERANCE * scale)


@pytest.mark.parametrize("name", SAMPLES)
def test_ids_are_fairseqs(name: str, answers: Mapping[str, np.ndarray]) -> None:
    golden = golden_of(name)
    rows = dictionary_size(SAMPLES[name])
    for index, texts in enumerate(texts_of(SAMPLES[name])):
        if any(symbol in text for symbol in SPECIAL for text in texts) or (len(texts) == 2 and not texts[1]):
            continue  # Transformers takes an empty second text for none
        given = answers[f"{name}/ids.{index}"]
        known = np.where(given < rows, given, 3)  # the rows added for missing pieces are copies of that of <unk>
        assert known.tolist() == golden[f"ids.{index}"].tolist(), texts


def dictionary_size(sample: Path) -> int:
    golden = json.loads((sample / "golden.json").read_text(encoding="utf-8"))
    if "dictionary_size" in golden:
        return int(golden["dictionary_size"])
    from hf_xlmr.tokenizer.dictionary import Dictionary

    return len(Dictionary.parse((sample / "dict.txt").read_bytes(), name="dict.txt").with_mask())


def test_labels_come_from_the_label_dictionary(converted: dict[str, Any]) -> None:
    config = json.loads((converted["v0122cls"].output / "config.json").read_text())
    lines = (SAMPLES["v0122cls"] / "label" / "dict.txt").read_text().splitlines()
    assert list(config["id2label"].values()) == [line.split()[0] for line in lines[:3]]


def test_regression_and_ranking_are_told_apart(converted: dict[str, Any], tmp_path: Path) -> None:
    regression = json.loads((converted["v0122regression"].output / "config.json").read_text())
    assert (regression["problem_type"], len(regression["id2label"])) == ("regression", 1)
    ranking = convert(FIXTURES / "v0122ranking", tmp_path / "ranking", verify=False)
    assert ranking.class_name == "XLMRobertaForMultipleChoice"
    assert any("install transformers 5.14 or newer" in note for note in ranking.notes)


def test_a_ranker_is_proved_or_says_which_transformers_runs_it(tmp_path: Path) -> None:
    with nullcontext() if RUNS_RANKERS else pytest.raises(InputError, match=r"install transformers 5\.14 or newer"):
        assert convert(FIXTURES / "v0122ranking", tmp_path / "ranking").parity is not None


def test_every_era_is_there() -> None:
    """A clone without ../shared still tests each container, each way to keep options, and each family."""
    assert {"v090", "v090half", "v0102", "v0122", "omegaconf", "fsdp", "v0122prenorm", "v0122prelayernorm"} <= set(
        SAMPLES
    )
