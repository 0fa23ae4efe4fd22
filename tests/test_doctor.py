"""Each fault is planted in a converted folder and named; safe faults are fixed, and plain Transformers agrees."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
import warm_processes
from safetensors.torch import load_file, save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from warm_processes import PROGRAM

import hf_xlmr
from hf_xlmr.conversion import convert
from hf_xlmr.doctor.examination import CHECKS, examine
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_edits import with_fields
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.pipeline import TASK
from hf_xlmr.tokenizer.tokenizer_agreement import disagreement_of

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("converted") / "model", verify=False).output


@pytest.fixture
def folder(healthy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(healthy, tmp_path / "model")


def test_what_convert_writes_is_healthy(healthy: Path, tmp_path: Path) -> None:
    assert examine(healthy).is_healthy
    encoder = convert("demo", tmp_path / "encoder", encoder_only=True, dtype="float16", verify=False).output
    assert examine(encoder).is_healthy


def test_what_a_fault_is_called_decides_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its severity, and what is not looked at beside it, are fields of its check."""
    changed("config.json", vocab_size=5, dtype="float16", layer_norm_eps=1e-12)(folder)
    changed("tokenizer_config.json", model_max_length=10**30)(folder)
    before = examine(folder).findings
    assert {each.name for each in before if not each.is_mild} == {"vocab_size", "layer_norm_eps"}
    renamed = tuple(check._replace(name=f"fault {number}") for number, check in enumerate(CHECKS))
    monkeypatch.setattr("hf_xlmr.doctor.examination.CHECKS", renamed)
    after = examine(folder).findings
    assert [replace(each, name="") for each in after] == [replace(each, name="") for each in before]


# ---- how each fault comes about --------------------------------------------------------------------------------------


def changed(name: str, **fields: object) -> Callable[[Path], None]:
    """Set fields of a JSON file; None takes a field out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content = {key: value for key, value in {**content, **fields}.items() if value is not None}
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    return change


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def renamed_bias(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.decoder.bias"] = weights.pop("lm_head.bias")


def second_bias(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.decoder.bias"] = weights["lm_head.bias"] + 1


def of_another_model(folder: Path) -> None:
    path = folder / "sentencepiece.bpe.model"
    message = ModelProto.FromString(path.read_bytes())
    message.pieces[40].piece, message.pieces[41].piece = message.pieces[41].piece, message.pieces[40].piece
    path.write_bytes(message.SerializeToString())


def as_roberta(folder: Path) -> None:
    """As folders came out of the old conversion script for RoBERTa."""
    changed("config.json", model_type="roberta", architectures=["RobertaForMaskedLM"])(folder)


def moved_mask(folder: Path) -> None:
    """`<mask>` and the piece before it have changed places."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    pieces = content["model"]["vocab"]
    pieces[-1], pieces[-2] = pieces[-2], pieces[-1]
    mask = next(token for token in content["added_tokens"] if token["content"] == "<mask>")
    mask["id"] -= 1
    path.write_text(json.dumps(content), encoding="utf-8")


def moved_mask_of_unknown_origin(folder: Path) -> None:
    """The same, where tokenizer_config.json alone tells where it was."""
    moved_mask(folder)
    shutil.rmtree(folder / "fairseq")
    changed("tokenizer_config.json", added_tokens_decoder={"2401": {"content": "<mask>"}})(folder)


def without_mask(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<mask>"]
    content["model"]["vocab"][-1][0] = "unlike any other"
    path.write_text(json.dumps(content), encoding="utf-8")


def more_names(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = len(content["model"]["vocab"])
    content["added_tokens"].append({**content["added_tokens"][0], "id": rows, "content": "<new>"})
    path.write_text(json.dumps(content), encoding="utf-8")


def as_saved_in_2021_with_another_dtype(folder: Path) -> None:
    """Position ids were saved until Transformers 4.31, and the head's matrix a second time."""

    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["roberta.embeddings.position_ids"] = torch.arange(514)[None]
        weights["lm_head.decoder.weight"] = weights["roberta.embeddings.word_embeddings.weight"].clone()

    with_weights(add)(folder)
    changed("config.json", dtype="float16")(folder)


def without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "fairseq")
    for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"):
        (folder / name).unlink()


def with_sentencepiece_of_fewer_pieces(folder: Path) -> None:
    """As people upload who keep the slow tokenizer's file alone, here that of another model."""
    shutil.rmtree(folder / "fairseq")
    (folder / "tokenizer.json").unlink()
    path = folder / "sentencepiece.bpe.model"
    model = ModelProto.FromString(path.read_bytes())
    del model.pieces[-12:]
    path.write_bytes(model.SerializeToString())


def with_a_piece_of_two_halves(folder: Path) -> None:
    path = folder / "fairseq" / "sentencepiece.bpe.model"
    model = ModelProto.FromString(path.read_bytes())
    model.pieces[-1].piece = "a\0b"
    path.write_bytes(model.SerializeToString())


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_bare_encoder(folder: Path) -> None:
    """As AutoModel.from_pretrained(..., add_pooling_layer=False).save_pretrained() leaves it."""
    transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    (folder / "README.md").write_text("# A model\n", encoding="utf-8")


def as_one_large_file(folder: Path) -> None:
    """All in one file of 12 GB, most of it a hole, as save_pretrained without a size writes XXL."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    large = {"dtype": "F32", "shape": [3 * GIGABYTE], "data_offsets": [end, end + 12 * GIGABYTE]}
    text = json.dumps({**header, "roberta.embeddings.position_ids": large}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data[8 + length :])
        file.truncate(8 + len(text) + end + 12 * GIGABYTE)


def in_tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    return rewrite


def swapped_pieces(content: dict[str, Any]) -> None:
    """Names of two ids that no text of the comparison holds."""
    pieces = content["model"]["vocab"]
    pieces[20], pieces[21] = pieces[21], pieces[20]


def renamed_piece(content: dict[str, Any]) -> None:
    content["model"]["vocab"][20][0] = "unlike any other"


def swapped_beside_sentencepiece(folder: Path) -> None:
    shutil.rmtree(folder / "fairseq")
    in_tokenizer(swapped_pieces)(folder)


def lower_cased(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, content["normalizer"]]}


def without_frame(content: dict[str, Any]) -> None:
    content["post_processor"] = None


def without_model(content: dict[str, Any]) -> None:
    content["decoder"] = {"type": "Unheard"}


def as_classifier_of_others(folder: Path) -> None:
    """The label dictionary of a training that came before."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, id2label={0: "a", 1: "b"})
    model.save_pretrained(folder)
    (folder / "fairseq" / "label").mkdir()
    (folder / "fairseq" / "label" / "dict.txt").write_text("yes 1\nno 1\n", encoding="utf-8")


def as_classifier_named(*names: str) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(names))
        model.save_pretrained(folder)
        changed("config.json", id2label=dict(enumerate(names)), label2id=None)(folder)

    return rewrite


def trained_since(folder: Path) -> None:
    record = json.loads((folder / "fairseq" / "conversion.json").read_text(encoding="utf-8"))
    record["parity"] = {"output_sha256": {"model.safetensors": "0" * 64}}
    (folder / "fairseq" / "conversion.json").write_text(json.dumps(record), encoding="utf-8")


class Fault(NamedTuple):
    """How it comes about, the check that must name it, and what must be told."""

    plant: Callable[[Path], object]
    name: str
    told: str


FAULTS = {
    "roberta": Fault(as_roberta, "model type", "RoBERTa"),
    "eps": Fault(changed("config.json", layer_norm_eps=1e-12), "layer_norm_eps", "1e-12, BERT's"),
    "no eps": Fault(changed("config.json", layer_norm_eps=None), "layer_norm_eps", "lacks the field"),
    "padding": Fault(changed("config.json", pad_token_id=0), "pad_token_id", "pad_token_id 0"),
    "another end": Fault(
        changed("config.json", eos_token_id=5),
        "bos_token_id, eos_token_id",
        "eos_token_id 5; texts begin and end with 0, 2",
    ),
    "another SentencePiece model": Fault(of_another_model, "SentencePiece model", "programs that read it"),
    "no padding": Fault(changed("config.json", pad_token_id=None), "missing pad_token_id", "from the field"),
    "positions": Fault(changed("config.json", max_position_embeddings=512), "positions", "514 rows"),
    "no positions": Fault(changed("config.json", max_position_embeddings=None), "positions", "514 rows"),
    "vocabulary": Fault(changed("config.json", vocab_size=250002), "vocab_size", "2402 rows"),
    "dtype": Fault(changed("config.json", dtype="float16"), "dtype", "the weights are float32"),
    "torch_dtype": Fault(changed("config.json", dtype=None, torch_dtype="float16"), "dtype", "says float16"),
    "no length": Fault(changed("tokenizer_config.json", model_max_length=None), "model_max_length", "unset"),
    "huge length": Fault(
        changed("tokenizer_config.json", model_max_length=1000000000000000019884624838656),
        "model_max_length",
        "is 1e+30",
    ),
    "514": Fault(changed("tokenizer_config.json", model_max_length=514), "model_max_length", "is 514"),
    "endless length": Fault(
        changed("tokenizer_config.json", model_max_length=10**400), "model_max_length", "more than any number"
    ),
    "half a token": Fault(changed("tokenizer_config.json", model_max_length=0.5), "model_max_length", "is 0.5"),
    "length in words": Fault(changed("tokenizer_config.json", model_max_length="512"), "model_max_length", "is '512'"),
    "old buffers and dtype": Fault(as_saved_in_2021_with_another_dtype, "dtype", "the weights are float32"),
    "no tokenizer": Fault(without_tokenizer, "tokenizer", "there is no tokenizer"),
    "lost tokenizer": Fault(lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer", "json is missing"),
    "another SentencePiece": Fault(with_sentencepiece_of_fewer_pieces, "tokenizer size", "gives 2390 ids"),
    "damaged SentencePiece": Fault(with_a_piece_of_two_halves, "sentencepiece", "a piece holds U+0000"),
    "no settings": Fault(
        lambda folder: (folder / "tokenizer_config.json").unlink(), "tokenizer_config.json", "config.json is missing"
    ),
    "more names": Fault(more_names, "tokenizer size", "gives 2403 ids"),
    "mask": Fault(moved_mask, "<mask>", "has the id 2400 in the tokenizer, but 2401 in fairseq/dict.txt"),
    "mask elsewhere": Fault(moved_mask_of_unknown_origin, "<mask>", "2401 in tokenizer_config.json"),
    "no mask": Fault(without_mask, "<mask>", "has no <mask>"),
    "swapped pieces": Fault(in_tokenizer(swapped_pieces), "vocabulary", "in the dictionary (2 ids differ)"),
    "swapped pieces of others": Fault(swapped_beside_sentencepiece, "vocabulary", "(2 ids differ)"),
    "a renamed piece": Fault(in_tokenizer(renamed_piece), "vocabulary", "20 is 'unlike any other' there"),
    "pickle": Fault(as_pickle, "pickle", "only in a pickle"),
    "pooler": Fault(as_bare_encoder, "pooler", "random numbers"),
    "renamed bias": Fault(with_weights(renamed_bias), "tied bias", "have lm_head.decoder.bias, not lm_head.bias"),
    "no bias": Fault(with_weights(lambda weights: weights.pop("lm_head.bias")), "tied bias", "lack lm_head.bias"),
    "two biases": Fault(with_weights(second_bias), "tied bias", "different values"),
    "adapter": Fault(
        lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter", "for adapter_model.safetensors"
    ),
    "modules": Fault(
        lambda folder: (folder / "modules.json").write_text('[{"path": "1_Pooling", "type": "a.Pooling"}]'),
        "modules",
        "names 1_Pooling/config.json, which is missing",
    ),
    "one class": Fault(changed("config.json", architectures="XLMRobertaForMaskedLM"), "architectures", "not a list"),
    "a number of classes": Fault(changed("config.json", architectures=5), "architectures", "is 5"),
    "numbers for classes": Fault(changed("config.json", architectures=[5]), "architectures", "is [5]"),
    "kernel": Fault(changed("config.json", attn_implementation="somebody/attention"), "code of others", "attn_impl"),
    "kernel by part": Fault(changed("config.json", attn_implementation={"": "a/b"}), "code of others", "attn_impl"),
    "code": Fault(changed("config.json", auto_map={"AutoModel": "a/b--c.D"}), "code of others", "auto_map"),
    "tokenizer's code": Fault(
        changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["a/b--c.D", None]}),
        "code of others",
        "auto_map in tokenizer_config.json",
    ),
    "pipelines": Fault(changed("config.json", custom_pipelines={"x": {"impl": "c.P"}}), "code of others", "custom_pip"),
    "other weights": Fault(changed("config.json", transformers_weights="a.bin"), "code of others", "another file"),
    "whole adapter": Fault(
        lambda folder: [(folder / f"adapter_{name}").write_text("{}") for name in ("config.json", "model.safetensors")],
        "adapter beside a model",
        "next to a whole model",
    ),
    "heads that do not divide the width": Fault(
        changed("config.json", num_attention_heads=7), "configuration", "multiple of the number of attention heads"
    ),
    "unheard of": Fault(changed("config.json", hidden_act="evil"), "configuration", "which Transformers does not have"),
    "negative eps": Fault(changed("config.json", layer_norm_eps=-1e-05), "configuration", "not a number of 0 or more"),
    "no token types": Fault(changed("config.json", type_vocab_size=0), "configuration", "config.json is damaged: type"),
    "a decoder": Fault(changed("config.json", is_decoder=True), "configuration", "is_decoder is True"),
    "chunks": Fault(changed("config.json", chunk_size_feed_forward=3), "configuration", "chunk_size_feed_forward is 3"),
    "endless labels": Fault(changed("config.json", num_labels=10**12), "configuration", "from 1 to 1,000,000"),
    "another activation": Fault(changed("config.json", hidden_act="relu"), "training", "and 'gelu' by fairseq/conv"),
    "another eps": Fault(changed("config.json", layer_norm_eps=1e-3), "training", "layer_norm_eps is 0.001, and 1e-05"),
    "other heads": Fault(changed("config.json", num_attention_heads=2), "training", "num_attention_heads is 2, and 4"),
    "width of an odd type": Fault(changed("config.json", hidden_size="64"), "configuration", "hidden_size"),
    "RoBERTa's tokenizer": Fault(
        changed("tokenizer_config.json", tokenizer_class="RobertaTokenizer"), "tokenizer ids", "AutoTokenizer (Roberta"
    ),
    "BERT's tokenizer": Fault(
        changed("tokenizer_config.json", tokenizer_class="BertTokenizerFast"), "tokenizer ids", "fairseq's rule [0, 15"
    ),
    "T5's tokenizer": Fault(changed("tokenizer_config.json", tokenizer_class="T5Tokenizer"), "tokenizer ids", "T5Tok"),
    "the stock tokenizer": Fault(  # which drops what tokenizer.json says of decomposed letters
        changed("tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer"), "tokenizer ids", "XLMRobertaTokenizer"
    ),
    "words for texts": Fault(
        changed("tokenizer_config.json", tokenizer_class="LayoutXLMTokenizer"),
        "tokenizer ids",
        "cannot use the tokenizer",
    ),
    "a class of the configuration": Fault(
        lambda folder: [
            changed("tokenizer_config.json", tokenizer_class=None)(folder),
            changed("config.json", tokenizer_class="RobertaTokenizer")(folder),
        ],
        "tokenizer ids",
        "RobertaTokenizer",
    ),
    "lower case": Fault(in_tokenizer(lower_cased), "tokenizer ids", "for 'The train leaves at night.'"),
    "another frame": Fault(in_tokenizer(without_frame), "tokenizer ids", "[15, 46"),
    "another padding": Fault(changed("tokenizer_config.json", pad_token="</s>"), "tokenizer ids", "the id 2 for <pad>"),
    "a tokenizer that does not load": Fault(in_tokenizer(without_model), "tokenizer ids", "cannot use the tokenizer"),
    "classes": Fault(as_classifier_of_others, "labels", "but id2label of config.json a, b"),
    "one name for two classes": Fault(
        as_classifier_named("a", "a", "b"),
        "labels",
        "config.json: id2label calls class 1 'a', which is also the name of class 0",
    ),
    "a class of two lines": Fault(as_classifier_named("a", "b\nc"), "labels", "class 1 'b\\nc', which fairseq's label"),
    "a class called as a symbol": Fault(as_classifier_named("<s>", "b"), "labels", "class 0 '<s>', which fairseq's"),
    "trained since": Fault(trained_since, "record", "model.safetensors: push will refuse"),
    "one file": Fault(as_one_large_file, "shard size", "model.safetensors has 12 GB"),
    "lost weight": Fault(
        with_weights(lambda weights: weights.pop("roberta.encoder.layer.1.output.dense.bias")),
        "weights",
        "missing: roberta.encoder.layer.1.output.dense.bias",
    ),
}


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_fix_and_nothing_is_touched(fault: str, folder: Path) -> None:
    plant, name, told = FAULTS[fault]
    plant(folder)
    before = state_of(folder)
    (finding,) = examine(folder).findings
    assert finding.name == name and told in finding.told and finding.mend
    assert state_of(folder) == before


def test_every_check_has_a_fault_here() -> None:
    of_xmod = {"default_language", "languages"}  # tests/test_xmod.py
    assert {check.name for check in CHECKS} == {fault.name for fault in FAULTS.values()} | of_xmod


NOT_SAFE = ("lower case", "another frame", "another padding", "a tokenizer that does not load")
"""Of a check with a fix, what that fix does not help."""
SAFE = [
    fault
    for fault, (_, name, _) in FAULTS.items()
    if fault not in NOT_SAFE and any(check.name == name and check.edits is not None for check in CHECKS)
]


@pytest.mark.parametrize("fault", NOT_SAFE)
def test_a_fix_that_would_not_help_is_not_offered(fault: str, folder: Path) -> None:
    FAULTS[fault].plant(folder)
    before = state_of(folder)
    (finding,) = examine(folder, fix=True).findings
    assert not finding.is_safe and state_of(folder) == before


def test_added_tokens_are_noted_and_are_no_fault(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer.add_tokens(["<ent>", "Hauptbahnhof"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    diagnosis = examine(folder)
    _activation, note = diagnosis.notes
    assert diagnosis.is_healthy and "2 tokens were added" in note and "<ent>, Hauptbahnhof" in note
    assert doctor(folder).stdout.count("Hauptbahnhof") == 1


def test_a_tokenizer_of_unknown_origin_is_held_to_its_own_file(folder: Path) -> None:
    shutil.rmtree(folder / "fairseq")
    (folder / "sentencepiece.bpe.model").unlink()
    assert examine(folder).is_healthy
    FAULTS["RoBERTa's tokenizer"].plant(folder)
    (finding,) = examine(folder).findings
    assert finding.name == "tokenizer ids" and "and tokenizer.json [0, 15, 46" in finding.told and finding.is_safe
    assert examine(folder, fix=True).is_healthy


@pytest.mark.parametrize("fault", SAFE)
def test_fix_mends_what_is_safe_and_transformers_gives_the_old_answers(
    fault: str, folder: Path, answers: torch.Tensor
) -> None:
    plant, name, _ = FAULTS[fault]
    plant(folder)
    weights = (folder / "model.safetensors").read_bytes()
    diagnosis = examine(folder, fix=True)
    assert [finding.name for finding in diagnosis.mended] == [name] and diagnosis.is_healthy
    assert examine(folder).is_healthy
    assert (folder / "model.safetensors").read_bytes() == weights
    assert torch.equal(answers_of(folder), answers)


def test_several_faults_are_mended_at_once(folder: Path, answers: torch.Tensor) -> None:
    for fault in ("roberta", "eps", "padding", "positions", "vocabulary", "dtype", "no length"):
        FAULTS[fault].plant(folder)
    assert len(examine(folder, fix=True).mended) == 7
    assert torch.equal(answers_of(folder), answers)


def test_what_is_not_safe_is_left_and_told(folder: Path) -> None:
    FAULTS["eps"].plant(folder)
    FAULTS["mask"].plant(folder)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    diagnosis = examine(folder, fix=True)
    assert [finding.name for finding in diagnosis.mended] == ["layer_norm_eps"]
    assert [(finding.name, finding.is_safe) for finding in diagnosis.findings] == [("<mask>", False)]
    assert (folder / "tokenizer.json").read_bytes() == tokenizer


@pytest.fixture(scope="module")
def answers(healthy: Path) -> torch.Tensor:
    return answers_of(healthy)


def answers_of(folder: Path) -> torch.Tensor:
    """What plain Transformers says to two texts, the second longer than the model takes."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    batch = tokenizer(["The train <mask> at night.", "a " * 600], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits


# ---- models of other origin, and of other habits ---------------------------------------------------------------------


@pytest.fixture
def foreign(folder: Path, tmp_path: Path) -> Path:
    """A model that Transformers trained with its own defaults, eps 1e-12 among them, and our tokenizer."""
    config = transformers.XLMRobertaConfig(
        **{**SMALL, "vocab_size": 2402, "max_position_embeddings": 514, "pad_token_id": 0}
    )
    torch.manual_seed(0)
    transformers.XLMRobertaForMaskedLM(config).save_pretrained(tmp_path / "foreign")
    for name in ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"):
        shutil.copy(folder / name, tmp_path / "foreign")
    return tmp_path / "foreign"


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def test_a_model_that_fairseq_never_saw_keeps_its_answers(foreign: Path) -> None:
    before = answers_of(foreign)
    diagnosis = examine(foreign, fix=True)
    assert not diagnosis.mended
    assert {finding.name: finding.is_safe for finding in diagnosis.findings} == {
        "layer_norm_eps": False,
        "pad_token_id": False,
    }
    assert all(finding.mend.startswith("if fairseq trained it, ") for finding in diagnosis.findings)
    assert torch.equal(answers_of(foreign), before)


def test_what_is_known_to_be_fairseqs_is_mended_without_its_files(folder: Path, answers: torch.Tensor) -> None:
    shutil.rmtree(folder / "fairseq")
    FAULTS["eps"].plant(folder)
    FAULTS["padding"].plant(folder)
    assert not examine(folder, fix=True).mended
    assert len(examine(folder, fix=True, from_fairseq=True).mended) == 2
    assert torch.equal(answers_of(folder), answers)


def test_a_table_filled_up_for_speed_is_no_fault(folder: Path) -> None:
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(2402, pad_to_multiple_of=64)
    model.save_pretrained(folder)
    assert examine(folder).is_healthy


def test_a_model_that_fairseq_gave_no_mask_needs_none(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(Path(hf_xlmr.__file__).with_name("demo"), tmp_path / "checkpoint")
    state = torch.load(checkpoint / "model.pt", weights_only=False)
    state["model"] = {
        name: weight[:-1].clone() if weight.shape[:1] == (2402,) else weight for name, weight in state["model"].items()
    }
    torch.save(state, checkpoint / "model.pt")
    folder = convert(checkpoint, tmp_path / "model", verify=False).output
    assert "<mask>" not in transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    assert examine(folder).is_healthy


def test_quantized_weights_are_not_called_by_a_dtype_that_transformers_cannot_cast_to(folder: Path) -> None:
    def quantize(weights: dict[str, torch.Tensor]) -> None:
        weights.update({name: weight.to(torch.float8_e4m3fn) for name, weight in weights.items()})

    with_weights(quantize)(folder)
    config = (folder / "config.json").read_bytes()
    (finding,) = examine(folder, fix=True).findings
    assert finding.name == "weights" and "quantized" in finding.told
    assert (folder / "config.json").read_bytes() == config


@pytest.mark.parametrize(("link", "told"), [(Path.symlink_to, "is a link"), (Path.hardlink_to, "hard link")])
def test_files_that_others_may_use_are_not_replaced(
    link: Callable[[Path, Path], None], told: str, folder: Path, tmp_path: Path
) -> None:
    FAULTS["eps"].plant(folder)
    FAULTS["no length"].plant(folder)
    shared = (folder / "config.json").rename(tmp_path / "blob")
    link(folder / "config.json", shared)
    before = state_of(tmp_path)
    with pytest.raises(InputError, match=told):
        examine(folder, fix=True)
    assert state_of(tmp_path) == before


# ---- what a fix must hold --------------------------------------------------------------------------------------------


def test_the_files_stay_beside_the_new_ones(folder: Path) -> None:
    names = ("config.json", "tokenizer_config.json")
    FAULTS["eps"].plant(folder)
    FAULTS["no length"].plant(folder)
    before = [(folder / name).read_bytes() for name in names]
    diagnosis = examine(folder, fix=True)
    assert diagnosis.kept == tuple(folder / f"{name}.before-fix" for name in names)
    assert [path.read_bytes() for path in diagnosis.kept] == before
    FAULTS["padding"].plant(folder)
    second = (folder / "config.json").read_bytes()
    assert examine(folder, fix=True).kept == (folder / "config.json.before-fix.2",)
    assert (folder / "config.json.before-fix").read_bytes() == before[0]
    assert (folder / "config.json.before-fix.2").read_bytes() == second


def test_permissions_owner_and_attributes_stay(folder: Path) -> None:
    FAULTS["eps"].plant(folder)
    path = folder / "config.json"
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    path.chmod(0o640)
    before = path.stat()
    (kept,) = examine(folder, fix=True).kept
    for after in (path.stat(), kept.stat()):
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_table_of_another_model_in_the_file_is_not_taken_for_its_own(folder: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["ema.embeddings.word_embeddings.weight"] = torch.zeros(7, 64)
        weights["ema.embeddings.position_embeddings.weight"] = torch.zeros(9, 64)
        weights["another.pooler.dense.weight"] = torch.zeros(64, 64, dtype=torch.float16)

    with_weights(add)(folder)
    FAULTS["vocabulary"].plant(folder)
    diagnosis = examine(folder, fix=True)
    assert [finding.name for finding in diagnosis.mended] == ["vocab_size"]
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 2402
    (finding,) = diagnosis.findings
    assert finding.name == "weights" and "unexpected: ema.embeddings.position" in finding.told


@pytest.mark.parametrize("fault", ["one class", "a number of classes", "numbers for classes"])
@pytest.mark.parametrize("other", ["roberta", "eps"])
def test_a_configuration_of_odd_types_is_left_as_it_is(fault: str, other: str, folder: Path) -> None:
    FAULTS[other].plant(folder)
    FAULTS[fault].plant(folder)
    FAULTS["no length"].plant(folder)
    config = (folder / "config.json").read_bytes()
    diagnosis = examine(folder, fix=True)
    assert [finding.name for finding in diagnosis.mended] == ["model_max_length"]
    assert {finding.name: finding.is_safe for finding in diagnosis.findings}["architectures"] is False
    assert (folder / "config.json").read_bytes() == config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            changed("config.json", hidden_size=32),
            r"other sizes.*word_embeddings.weight \[2402, 64\], expected \[2402, 32",
        ),
        (changed("config.json", hidden_dropout_prob="some"), "hidden_dropout_prob"),
    ],
)
def test_a_fix_that_does_not_hold_changes_nothing(change: Callable[[Path], None], told: str, folder: Path) -> None:
    FAULTS["eps"].plant(folder)
    change(folder)
    before = state_of(folder)
    with pytest.raises(IntegrityError, match=told) as caught:
        examine(folder, fix=True)
    assert "was not changed" in str(caught.value) and "/tmp/tmp" not in str(caught.value)
    assert state_of(folder) == before


def test_what_hf_xlmr_saves_of_its_own_code_is_no_fault(folder: Path) -> None:
    transformers.pipeline(TASK, model=str(folder)).save_pretrained(folder)
    assert "code of others" not in [finding.name for finding in examine(folder).findings]
    hf_xlmr.XLMRTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert "code of others" not in [finding.name for finding in examine(folder).findings]


# ---- what loading refuses is never healthy ---------------------------------------------------------------------------

BROKEN: list[dict[str, object]] = [
    *({"num_attention_heads": value} for value in (7, 0, 2.5, "4", 2**40)),
    *({"hidden_act": value} for value in ("evil", ["gelu"], 3)),
    *({"layer_norm_eps": value} for value in (-1e-5, "x", True)),
    *({"hidden_dropout_prob": value} for value in (7, "a")),
    *({name: 0} for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "type_vocab_size", "vocab_size")),
    *({name: 2**31} for name in ("max_position_embeddings", "type_vocab_size", "vocab_size")),
    *({"num_labels": value} for value in (0, True, 20_000_000, 10**12)),
    *({"pad_token_id": value} for value in (0, -5, 2402)),
    *({"architectures": [value]} for value in ("Nope", "BertModel", "XLMRobertaForSequenceClassification")),
    *({"dtype": value} for value in ("int8", 3)),
    {"is_decoder": True},
    {"add_cross_attention": True},
    {"chunk_size_feed_forward": 3},
    {"return_dict": False},
    {"quantization_config": {"quant_method": "x"}},
    {"id2label": 3},
    {"classifier_dropout": "x"},
    {"tie_word_embeddings": "x"},
    {"num_hidden_layers": 10**9},
    {"use_cache": 3},
]


@pytest.mark.parametrize("beside", [{}, {"layer_norm_eps": 1e-12}, {"torch_dtype": "float16", "dtype": "float16"}])
@pytest.mark.parametrize("fields", BROKEN, ids=str)
def test_what_is_not_loaded_has_a_severe_fault(
    fields: dict[str, object], beside: dict[str, object], folder: Path
) -> None:
    changed("config.json", **{**beside, **fields})(folder)
    with suppress(InputError, IntegrityError):
        hf_xlmr.XLMR.from_pretrained(folder)
        return  # this Transformers takes it
    findings = examine(folder).findings
    assert any(not finding.is_mild for finding in findings)
    assert not any("tokenizer_class" in finding.mend for finding in findings)


def test_a_fix_of_one_field_is_not_made_where_another_keeps_the_model_from_loading(folder: Path) -> None:
    FAULTS["eps"].plant(folder)
    changed("config.json", num_attention_heads=7)(folder)
    before = state_of(folder)
    with pytest.raises(IntegrityError, match=r"was not changed.*number of attention heads"):
        examine(folder, fix=True)
    assert state_of(folder) == before


def test_options_tell_of_the_network_where_a_record_does_not(folder: Path) -> None:
    record = json.loads((folder / "fairseq" / "conversion.json").read_text(encoding="utf-8"))
    del record["config"]
    (folder / "fairseq" / "conversion.json").write_text(json.dumps(record), encoding="utf-8")
    assert examine(folder).is_healthy
    changed("config.json", hidden_act="relu", num_attention_heads=2)(folder)
    (finding,) = examine(folder).findings
    assert "hidden_act is 'relu', and 'gelu' by fairseq/options.json; num_attention_heads is 2, and 4" in finding.told


# ---- tokenizers that would take all memory ---------------------------------------------------------------------------


REPEATED = {"type": "Replace", "pattern": {"Regex": "(a|.)"}, "content": "a" * 20}
TWICE = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
OF_MANY_IDS = {"<s>": {"id": "<s>", "ids": [0] * 1000, "tokens": ["<s>"] * 1000}}
FRAME = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 1100
TEXT, SECOND = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


def normalized(*steps: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update(normalizer={"type": "Sequence", "normalizers": list(steps)})


def rules_many_times(content: dict[str, Any]) -> None:
    rules = next(step for step in content["normalizer"]["normalizers"] if step["type"] == "Precompiled")
    normalized(*[rules] * 12)(content)


def long_token(content: dict[str, Any]) -> None:
    normalized(*[REPEATED] * 4)(content)
    content["added_tokens"].append({**content["added_tokens"][0], "content": "x" * 1000, "normalized": True})


def framed(single: list[dict[str, Any]], times: int = 1) -> Callable[[dict[str, Any]], object]:
    frame = {"type": "TemplateProcessing", "single": single, "pair": [TEXT, SECOND], "special_tokens": OF_MANY_IDS}
    return lambda content: content.update(post_processor={"type": "Sequence", "processors": [frame] * times})


def in_another_file(folder: Path) -> None:
    shutil.copy(folder / "tokenizer.json", folder / "kept.json")
    in_tokenizer(normalized(*[REPEATED] * 12))(folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.4.0.0.json")
    (folder / "kept.json").rename(folder / "tokenizer.json")
    changed("tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])(folder)


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (in_tokenizer(normalized(*[REPEATED] * 12)), "the normalizer may make a text"),
        (in_tokenizer(lambda content: content.update(normalizer={"normalizers": [REPEATED] * 12})), "the normalizer"),
        (in_tokenizer(normalized(*[REPEATED] * 3)), "208,000 characters of 'The train leaves at night.'"),
        (in_tokenizer(normalized(*[{"type": "ByteLevel"}] * 40)), "the normalizer may make"),
        (in_tokenizer(normalized(*[{"type": "Prepend", "prepend": "x" * 20_000}] * 90)), "the normalizer may make"),
        (in_tokenizer(normalized(*[{"type": "NFC"}] * 101)), "the normalizer may make"),
        (in_tokenizer(rules_many_times), "the normalizer may make"),
        (in_tokenizer(long_token), "a token of 1,000 bytes was added"),
        (
            in_tokenizer(
                lambda content: content.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [TWICE] * 40})
            ),
            "the pre_tokenizer may make",
        ),
        (in_tokenizer(framed([TEXT] * 4, 12)), "the post_processor may make"),
        (in_tokenizer(framed([*FRAME, TEXT])), "the post_processor may make"),
        (in_another_file, "tokenizer.4.0.0.json: the normalizer may make"),
        (
            changed("tokenizer_config.json", tokenizer_class="T5Tokenizer", extra_ids=10**9),
            "extra_ids is 1000000000, which",
        ),
    ],
)
def test_a_tokenizer_that_would_take_all_memory_is_told_before_it_runs(plant: Any, told: str, folder: Path) -> None:
    plant(folder)
    try:
        wrong = disagreement_of(folder, ModelFiles(folder).tokenizer)
    except IntegrityError as error:  # where tokens are added, whatever needs the folder's tokenizer meets it
        wrong = str(error)
    assert wrong is not None and re.search(told, wrong)


# ---- what is no patient ----------------------------------------------------------------------------------------------


def in_encoding(name: str, encoding: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text(encoding="utf-8"), encoding=encoding)

    return write


def as_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (folder / "model.safetensors").write_text(pointer, encoding="utf-8")


@pytest.mark.parametrize("decoder", [[1, 2], {"²": {"content": "<mask>"}}, {"7": "<mask>"}, "<mask>"])
def test_odd_lists_of_added_tokens_are_told(decoder: object, folder: Path) -> None:
    shutil.rmtree(folder / "fairseq")
    changed("tokenizer_config.json", added_tokens_decoder=decoder)(folder)
    (finding,) = examine(folder).findings
    assert finding.name == "tokenizer ids" and "cannot use the tokenizer" in finding.told


def test_a_matrix_without_rows_is_told(folder: Path) -> None:
    def shrink(weights: dict[str, torch.Tensor]) -> None:
        weights["roberta.embeddings.word_embeddings.weight"] = torch.tensor(1.0)

    with_weights(shrink)(folder)
    (finding,) = examine(folder).findings
    assert finding.name == "weights" and "word_embeddings.weight [], expected [2402, 64]" in finding.told


@pytest.mark.parametrize(
    ("plant", "error", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), InputError, "has no config.json"),
        (changed("config.json", model_type="bert"), InputError, "not XLM-R"),
        (lambda folder: (folder / "config.json").write_text("{"), IntegrityError, "damaged"),
        (in_encoding("config.json", "utf-8-sig"), IntegrityError, "not plain UTF-8"),
        (in_encoding("tokenizer_config.json", "utf-16"), IntegrityError, "not plain UTF-8"),
        (as_pointer, InputError, "git lfs pull"),
        (lambda folder: os.truncate(folder / "model.safetensors", 99_999), IntegrityError, "damaged"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": 3}'), IntegrityError, "no vocabulary"),
        (in_tokenizer(lambda content: content.update(model="x")), IntegrityError, "json is damaged: it lists no voc"),
        (in_tokenizer(lambda content: content.update(added_tokens=["x"])), IntegrityError, "it lists no vocabulary"),
    ],
)
def test_other_models_and_damage_are_told(plant: Any, error: type[Exception], told: str, folder: Path) -> None:
    plant(folder)
    with pytest.raises(error, match=told):
        examine(folder)


def test_a_real_roberta_is_left_alone(folder: Path) -> None:
    as_roberta(folder)
    shutil.rmtree(folder / "fairseq")
    (folder / "sentencepiece.bpe.model").unlink()
    changed("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": []})(folder)
    with pytest.raises(InputError, match="not XLM-R"):
        examine(folder, fix=True)


# ---- the program -----------------------------------------------------------------------------------------------------


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    return warm_processes.run([PROGRAM, "doctor", *map(str, arguments)], env={**os.environ, "COLUMNS": "200"})


def test_the_program_tells_mends_and_ends_with_2_while_something_is_left(folder: Path) -> None:
    FAULTS["eps"].plant(folder)
    sick = doctor(folder)
    assert (sick.returncode, sick.stderr) == (2, "")
    assert "1 to fix" in sick.stdout and "layer_norm_eps" in sick.stdout and "--fix does it" in sick.stdout
    mended = doctor(folder, "--fix")
    assert mended.returncode == 0 and "healthy" in mended.stdout and "fixed now" in mended.stdout
    told = json.loads(doctor(folder, "--json").stdout)
    (note,) = told.pop("notes")
    assert note.startswith("hidden_act is gelu, which Transformers computes exactly and some servers by tanh")
    assert told == {"folder": str(folder), "findings": [], "mended": [], "kept": [], "is_healthy": True}
    changed("config.json", hidden_act="gelu_pytorch_tanh")(folder)
    assert json.loads(doctor(folder, "--json").stdout)["notes"] == []


# ---- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ('{"b": 1,\n "a" :  2 }\n', {"a": 3}, '{"b": 1,\n "a" :  3 }\n'),
        ('{\n\t"a": {"b": [1, "}"]},\n\t"c": 1e-12\n}', {"c": 1e-5}, '{\n\t"a": {"b": [1, "}"]},\n\t"c": 1e-05\n}'),
        ('{\n  "a": 1\n}\n', {"b": "é", "c": None}, '{\n  "a": 1,\n  "b": "é",\n  "c": null\n}\n'),
        ("{}", {"a": 1}, '{"a": 1}'),
        ("\ufeff{}"[1:] + "\n", {"a": {"b": 1}}, '{"a": {"b": 1}}\n'),
        ('{"a": 1, "a": 2}', {"a": 3}, '{"a": 1, "a": 3}'),
        ('{"\\u0061": 1, "x": "a\\"b"}', {"a": 3}, '{"\\u0061": 3, "x": "a\\"b"}'),
    ],
)
def test_fields_are_set_and_every_other_byte_stays(text: str, fields: dict[str, object], expected: str) -> None:
    assert with_fields(text, fields) == expected
    assert {**json.loads(text), **fields} == json.loads(expected)


def test_a_text_that_is_no_object_is_refused() -> None:
    for text in ("[]", "{", ""):
        with pytest.raises(ValueError):
            with_fields(text, {"a": 1})
