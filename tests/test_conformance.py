"""verify-runtime: unbroken runtimes agree in all families, and a fault that is not known is reported as unknown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_runtimes import Runtime, served, without_tokens
from places import FIXTURES
from planted_faults import FAULTS

from hf_xlmr.conformance import Conformance, compare
from hf_xlmr.conversion import convert, to_sentence_transformers

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("post-norm", "pre-norm", "pre-norm with embedding norm")


@pytest.fixture(scope="module")
def model(families: dict[str, Path]) -> Path:
    return families["post-norm"]


# ---- unbroken runtimes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unbroken_server_agrees(families: dict[str, Path], family: str) -> None:
    with served(Runtime(families[family])) as address:
        found = compare(families[family], address)
    assert found.agrees and found.faults == () and found.compared == ("tokens", "vector")
    assert all(each.largest is not None and each.largest < 1e-5 for each in found.classes), found.classes
    assert {"beyond the limit", "batches", "scripts", "emphatic repeats"} <= {each.name for each in found.classes}


def test_transformers_own_folder_agrees_with_pairs_and_logits(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "fairseq")
    found = compare(model, tmp_path / "copy")
    assert found.agrees and found.compared == ("logits", "tokens")
    assert next(each for each in found.classes if each.name == "pairs").texts == 3


@pytest.mark.parametrize("given", ["v0122", "v0122cls"])
def test_of_another_head_the_encoder_is_compared(tmp_path: Path, given: str) -> None:
    """Here the encoders differ as well, which is what is found."""
    for name in ("v0122", "v0122cls"):
        convert(FIXTURES / name, tmp_path / name, verify=False)
    shutil.rmtree(tmp_path / given / "fairseq")
    (other,) = {"v0122", "v0122cls"} - {given}
    found = compare(tmp_path / other, tmp_path / given)
    assert found.compared == ("tokens",) and not found.agrees and found.classes[0].largest is not None
    assert [note for note in found.notes if note.startswith("the heads are not compared: it gives logits of the width")]


def test_sentence_transformers_and_its_pooling(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    to_sentence_transformers(model, tmp_path / "st", pool="mean")
    assert compare(model, tmp_path / "st").agrees
    assert "it pools by mean, not by cls" in compare(model, tmp_path / "st", pool="cls").verdict


def test_openai_gives_vectors_of_the_length_1(model: Path) -> None:
    with served(Runtime(model)) as address:
        found = compare(model, f"{address}/v1/embeddings")
        assert found.agrees and found.normalized and found.compared == ("vector",)
        assert "does not scale" not in found.verdict
        assert "it scales vectors to the length 1" in compare(model, f"{address}/v1", normalize=False).verdict


# ---- faults ----------------------------------------------------------------------------------------------------------


def planted(folder: Path, given: dict[str, Any], **options: Any) -> Conformance:
    with served(Runtime(folder, **given), odd=without_tokens) as address:
        return compare(folder, address, **options)


def test_three_faults_at_once_are_named(model: Path) -> None:
    given = {**FAULTS["tanh GELU"][0], "normalizes": True, "keeps_end": False}
    with served(Runtime(model, **given)) as address:
        found = compare(model, address)
    assert len(found.faults) == 3
    for said in ("length 1", "the tanh approximation of GELU", "loses </s>"):
        assert any(said in each for each in found.faults), found.faults


def test_what_is_no_known_fault_is_not_named(model: Path) -> None:
    def prepare(network: Any) -> None:
        network.encoder.layer[0].attention.self.query.weight.data *= 1.1

    found = planted(model, {"prepare": prepare})
    assert found.verdict.startswith("differs, and the cause is unknown") and found.faults == ()


@pytest.mark.parametrize("given", [{"pool": lambda each, mask: each[mask][0]}, {"spell": str.lower}])
def test_beside_an_unknown_fault_one_that_is_known_is_named_alone(model: Path, given: dict[str, Any]) -> None:
    def prepare(network: Any) -> None:
        network.encoder.layer[0].attention.self.query.weight.data *= 1.02

    found = planted(model, {"prepare": prepare, **given})
    assert len(found.faults) == 1 and "; " in found.verdict and "what is left" in found.verdict


def test_another_tokenizer_is_named_by_its_ids(model: Path) -> None:
    given = {"frame": lambda row: [row[0], *(each ^ 1 if each > 9 else each for each in row[1:-1]), row[-1]]}
    with served(Runtime(model, **given)) as address:
        assert "has another tokenizer" in compare(model, address).verdict
    assert planted(model, {"spell": lambda text: text.replace("!", "")}).faults == (
        "probably has another tokenizer: all texts of usual words agree",
    )


def test_dropout_and_another_order_are_found(model: Path) -> None:
    def shuffled(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.send(handler.runtime.vectors(body["inputs"])[::-1])
        return handler.path == "/embed" or without_tokens(handler, body)

    assert "other answers when the same text comes again" in planted(model, {"trains": True}).verdict
    with served(Runtime(model), odd=shuffled) as address:
        assert "returns the answers of a batch in another order" in compare(model, address).verdict


def test_one_piece_with_another_vector_is_no_tokenizer(model: Path) -> None:
    def prepare(network: Any) -> None:
        network.embeddings.word_embeddings.weight.data[208] *= -3  # <mask>

    with served(Runtime(model, prepare=prepare)) as address:
        found = compare(model, address)
    assert found.verdict.startswith("differs, and the cause is unknown") and found.faults == ()
    assert "probably has another tokenizer" in planted(model, {"prepare": prepare}).verdict


@pytest.mark.parametrize(
    ("longest", "said"),
    [
        (None, "gives texts of a batch the same answer"),
        (45, "gives texts of a batch the same answer (and something else, too: single texts differ)"),
    ],
)
def test_one_answer_for_a_batch_is_no_order(model: Path, longest: int | None, said: str) -> None:
    def repeated(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.send(handler.runtime.vectors(body["inputs"])[:1] * len(body["inputs"]))
        return handler.path == "/embed" or without_tokens(handler, body)

    with served(Runtime(model, longest=longest), odd=repeated) as address:
        assert compare(model, address).faults == (said,)


@pytest.mark.parametrize(("fault", "size", "said"), [({}, 1e-3, "comes again (by"), ("no <s>", 1e-5, "leaves out <s>")])
def test_answers_that_move_a_little_are_no_training(model: Path, fault: Any, size: float, said: str) -> None:
    drawn = torch.Generator().manual_seed(0)

    def moving(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            made = torch.tensor(handler.runtime.vectors(body["inputs"]))
            handler.send((made * (1 + size * torch.randn(made.shape, generator=drawn))).tolist())
        return handler.path == "/embed" or without_tokens(handler, body)

    with served(Runtime(model, **(FAULTS[fault][0] if fault else {})), odd=moving) as address:
        verdict = compare(model, address).verdict
    assert said in verdict and "training" not in verdict


def test_token_types_are_named_if_a_model_has_them(model: Path, tmp_path: Path) -> None:
    from transformers import XLMRobertaForMaskedLM

    folder = tmp_path / "two-types"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("conversion.json", "options.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "type_vocab_size": 2}), encoding="utf-8")
    network = XLMRobertaForMaskedLM.from_pretrained(folder, ignore_mismatched_sizes=True)
    torch.manual_seed(0)
    network.roberta.embeddings.token_type_embeddings.weight.data.normal_()
    network.save_pretrained(folder)

    def without_types(network: Any) -> None:
        network.embeddings.token_type_embeddings.weight.data.zero_()

    second = planted(folder, {"types": lambda ids: torch.ones_like(ids)})
    assert "gives every token the second token type" in second.verdict
    assert "leaves out the token type embedding" in planted(folder, {"prepare": without_types}).verdict


def test_ctranslate2_agrees(model: Path, tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    ctranslate2.converters.TransformersConverter(str(model)).convert(str(tmp_path / "ct2"))
    found = compare(model, tmp_path / "ct2")
    assert found.agrees and found.runtime.startswith("CTranslate2") and "has no tokenizer" in found.notes[0]
