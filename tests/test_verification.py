"""The proof can fail: every planted mistake is caught, and named where it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from factory import Checkpoint
from places import FIXTURES
from safetensors import safe_open

from hf_xlmr import XLMR
from hf_xlmr.conversion import ParityError, convert, open_checkpoint, verify
from hf_xlmr.conversion.checkpoint.weights import JoinedRows, Stored, Weight
from hf_xlmr.conversion.mapping.architecture import Wanted
from hf_xlmr.conversion.mapping.preparation import Prepared, prepare
from hf_xlmr.conversion.output.safetensors_writer import write_weights
from hf_xlmr.conversion.proof import layerwise, reference
from hf_xlmr.conversion.proof.parity import FileHashes, verify_folder
from hf_xlmr.conversion.tokenizer_json.vocabulary import build_vocabulary, write_tokenizer
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.model.provenance import Standing, standing_of
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel

CLASSIFIER = FIXTURES / "v0122cls"
Weights = dict[str, Weight]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(CLASSIFIER, tmp_path_factory.mktemp("converted") / "model", verify=False).output


def copy_of(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


# ---- mistakes of the converter: the plan itself is wrong, so that every byte agrees with it --------------------------


def swap(one: str, other: str) -> Callable[[Prepared], Weights]:
    def change(prepared: Prepared) -> Weights:
        weights = dict(prepared.plan.weights)
        pairs = [(name, name.replace(one, other)) for name in weights if one in name]
        return weights | {name: weights[twin] for name, twin in pairs} | {twin: weights[name] for name, twin in pairs}

    return change


def shift_rows(prepared: Prepared) -> Weights:
    name = "roberta.embeddings.word_embeddings.weight"
    source = prepared.checkpoint.weights["encoder.sentence_encoder.embed_tokens.weight"]
    assert isinstance(source, Stored)
    height = source.shape[0]
    shifted = [source.rows(1, height), source.rows(0, 1)]
    rest = prepared.plan.weights[name].shape[0] - height
    return {**prepared.plan.weights, name: JoinedRows.of([*shifted, *[source.rows(3, 4)] * rest])}


def use_decoy(prepared: Prepared) -> Weights:
    """Take the stale copy that fairseq 0.12.2 keeps for the weight that was trained."""
    decoy = prepared.checkpoint.raw["encoder.sentence_encoder.layers.1.fc1_weight"]
    return {**prepared.plan.weights, "roberta.encoder.layer.1.intermediate.dense.weight": decoy}


def stale_head(prepared: Prepared) -> Weights:
    """Take the masked LM's dense layer, which has the same shape, for the head's."""
    other = prepared.checkpoint.weights["encoder.lm_head.dense.weight"]
    return {**prepared.plan.weights, "classifier.dense.weight": other}


MISTAKES: dict[str, tuple[Callable[[Prepared], Weights], str]] = {
    "query and key swapped": (swap("layer.1.attention.self.query", "layer.1.attention.self.key"), "features"),
    "rows shifted by one": (shift_rows, "embeddings"),
    "a decoy used for the real weight": (use_decoy, "features"),
    "the norms in the wrong order": (swap("layer.0.attention.output.LayerNorm", "layer.0.output.LayerNorm"), "layer 0"),
    "a stale head": (stale_head, "head xnli_head"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_map_is_caught_where_it_begins(mistake: str, folder: Path, tmp_path: Path) -> None:
    change, where = MISTAKES[mistake]
    wrong_folder = copy_of(folder, tmp_path / "model")
    with open_checkpoint(CLASSIFIER) as checkpoint:
        prepared = prepare(checkpoint, Wanted())
        wrong = replace(prepared, plan=replace(prepared.plan, weights=change(prepared)))
        write_weights(wrong.plan.weights, wrong_folder, max_shard_size=10**9)
        with pytest.raises(ParityError) as caught:
            verify_folder(wrong, wrong_folder)
    assert caught.value.where == where


def shift_bias(prepared: Prepared) -> Weights:
    bias = prepared.plan.weights["lm_head.bias"]
    assert isinstance(bias, Stored)
    parts = (bias.rows(1, bias.shape[0]), bias.rows(0, 1))
    return {**prepared.plan.weights, "lm_head.bias": JoinedRows(bias.dtype, bias.shape, parts)}


MISTAKES_OF_THE_HEAD = {"none": None, "shifted": shift_bias, "swapped": swap("layer_norm.weight", "layer_norm.bias")}


@pytest.mark.parametrize("bands", [(7, 5), (1 << 14, 1 << 14)], ids=["in bands", "whole"])
@pytest.mark.parametrize("mistake", MISTAKES_OF_THE_HEAD)
def test_a_mistake_in_the_logits_is_caught_in_any_bands(
    mistake: str, bands: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "BAND", bands[0])
    monkeypatch.setattr(reference, "BAND", bands[1])
    folder = convert("demo", tmp_path / "model", verify=False).output
    change = MISTAKES_OF_THE_HEAD[mistake]
    with open_checkpoint("demo") as checkpoint:
        prepared = prepare(checkpoint, Wanted())
        if change is None:
            assert verify_folder(prepared, folder).steps[-1].name == "logits"
            return
        wrong = replace(prepared, plan=replace(prepared.plan, weights=change(prepared)))
        write_weights(wrong.plan.weights, folder, max_shard_size=10**9)
        with pytest.raises(ParityError) as caught:
            verify_folder(wrong, folder)
    assert caught.value.where == "logits"


def test_logits_that_transformers_changes_at_the_end_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the product is compared, though it is put off."""
    from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLMHead

    monkeypatch.setattr(layerwise, "BAND", 7)
    forward = XLMRobertaLMHead.forward
    monkeypatch.setattr(XLMRobertaLMHead, "forward", lambda self, values: forward(self, values) * 2)
    with pytest.raises(ParityError) as caught:
        convert("demo", tmp_path / "model")
    assert caught.value.where == "logits"


def test_hashes_are_those_of_the_files_and_end_with_their_block(folder: Path) -> None:
    weights = folder / "model.safetensors"
    with open_checkpoint(CLASSIFIER) as checkpoint:
        with FileHashes(checkpoint, folder) as hashes:
            assert hashes.output == {weights.name: sha256(weights.read_bytes()).hexdigest()}
            assert hashes.source == {"model.pt": sha256((CLASSIFIER / "model.pt").read_bytes()).hexdigest()}
        assert not any(thread.name.startswith("hashes") for thread in threading.enumerate())


# ---- damage of the folder --------------------------------------------------------------------------------------------


def test_a_sound_folder_is_verified(folder: Path) -> None:
    report = verify(CLASSIFIER, folder)
    assert report.largest < 1e-5
    assert [step.name for step in report.steps] == ["embeddings", "layer 0", "features", "head xnli_head"]


@pytest.mark.parametrize("bit", [0, 13, 31])
def test_one_flipped_bit_names_its_weight(bit: int, folder: Path, tmp_path: Path) -> None:
    wrong = copy_of(folder, tmp_path / "model")
    name = "roberta.encoder.layer.1.output.dense.weight"
    flip(wrong / "model.safetensors", name, bit)
    with pytest.raises(ParityError) as caught:
        verify(CLASSIFIER, wrong)
    assert caught.value.where == name


def flip(path: Path, name: str, bit: int) -> None:
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + length])[name]["data_offsets"][0] + 8 + length
    data[start + 40 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_norm_eps", 1e-12),
        ("num_attention_heads", 2),
        ("hidden_act", "relu"),
        ("id2label", {}),
        ("pad_token_id", 0),
    ],
)
def test_a_wrong_field_of_the_configuration_is_named(key: str, value: Any, folder: Path, tmp_path: Path) -> None:
    wrong = copy_of(folder, tmp_path / "model")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ParityError) as caught:
        verify(CLASSIFIER, wrong)
    assert caught.value.where == f"config.json: {key}"


def test_a_dictionary_out_of_order_is_caught_by_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    wrong = copy_of(folder, tmp_path / "model")
    lines = (CLASSIFIER / "dict.txt").read_text(encoding="utf-8").splitlines()
    rolled = "\n".join([*lines[1:], lines[0]]) + "\n"
    model = SentencePieceModel.parse((CLASSIFIER / "sentencepiece.bpe.model").read_bytes(), name="spm")
    dictionary = Dictionary.parse(rolled.encode(), name="dict.txt")
    write_tokenizer(build_vocabulary(dictionary, model, rows=len(lines) + 5), wrong, model_max_length=62)
    with pytest.raises(ParityError) as caught:
        verify(CLASSIFIER, wrong)
    assert caught.value.where.startswith("tokenizer: ")


def test_another_checkpoint_is_not_the_source(folder: Path) -> None:
    with pytest.raises(IntegrityError):
        verify(FIXTURES / "v0122regression", folder)


def test_a_missing_weight_is_named(folder: Path, tmp_path: Path) -> None:
    wrong = copy_of(folder, tmp_path / "model")
    with open_checkpoint(CLASSIFIER) as checkpoint:
        weights = dict(prepare(checkpoint, Wanted()).plan.weights)
        name = weights.popitem()[0]
        write_weights(weights, wrong, max_shard_size=10**9)
    with pytest.raises(ParityError, match=re.escape(name)):
        verify(CLASSIFIER, wrong)


def test_a_folder_that_does_not_tell_is_taken_for_one_that_was_exported(folder: Path, tmp_path: Path) -> None:
    wrong = copy_of(folder, tmp_path / "model")
    (wrong / "fairseq" / "conversion.json").unlink()
    with pytest.raises(ParityError, match=r"has no fairseq/conversion\.json, so an export of it was compared with v01"):
        verify(CLASSIFIER, wrong)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_are_verified_against_the_exact_cast(dtype: str, tmp_path: Path) -> None:
    report = convert(FIXTURES / "v0122prenorm", tmp_path / "model", dtype=dtype)
    assert verify(FIXTURES / "v0122prenorm", tmp_path / "model").largest < 2e-5
    with safe_open(report.output / "model.safetensors", "pt") as file:
        assert str(file.get_tensor("lm_head.bias").dtype) == f"torch.{dtype}"


def test_the_conversion_remembers_what_was_asked(tmp_path: Path) -> None:
    convert(FIXTURES / "v0122twoheads", tmp_path / "model", head="none", dtype="float16", verify=False)
    assert verify(FIXTURES / "v0122twoheads", tmp_path / "model").steps[-1].name == "logits"


def test_the_page_shows_what_was_found_and_loads_nothing(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    report = verify(CLASSIFIER, folder, report=page)
    text = page.read_text(encoding="utf-8")
    assert all(step.name in text for step in report.steps)
    assert all(digest in text for digest in report.output_sha256.values())
    assert "0.12.2" in text, "the decoys are told with their reason"
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert text.count("<td") == text.count("<td data-column=") > 20, "on a telephone each cell stands on a line"


def test_the_page_says_what_was_compared_when_and_by_what(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for epoch in ("1700000000", "1700000000", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        page = folder.parent / "dated.html"
        verify(CLASSIFIER, folder, report=page)
        pages.append(page.read_text(encoding="utf-8"))
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", pages[0]))
    assert facts["checkpoint"] == CLASSIFIER.name and facts["folder"] == folder.name
    assert facts["verified"] == "2023-11-14 22:13 UTC"
    assert f"hf-xlmr {version('hf-xlmr')}, torch {version('torch')}, transformers " in facts["by"]
    assert str(folder.parent) not in pages[0], "it may be published"
    assert pages[0] == pages[1] != pages[2]


def test_a_page_that_finds_no_room_is_told_with_its_place(folder: Path) -> None:
    with pytest.raises(InputError, match=r"No space left on device \(/dev/full\)"):
        verify(CLASSIFIER, folder, report="/dev/full")


class Counted:
    """Progress that keeps, of each task, its unit, its total and how far it came."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[Any]] = {}

    def task(self, label: str, *, total: int | None = None, unit: str = "bytes") -> AbstractContextManager[Counted]:
        self.tasks[label] = self.now = [unit, total, 0]
        return nullcontext(self)

    def advance(self, amount: int, *, note: str = "") -> None:
        self.now[2] += amount


@pytest.mark.parametrize(("source", "steps"), [("v0122cls", 9), ("v0122", 9), ("v0122ranking", 9)])
def test_the_proof_counts_steps_and_comes_to_its_total(source: str, steps: int, tmp_path: Path) -> None:
    progress = Counted()
    report = convert(FIXTURES / source, tmp_path / "model", progress=progress)
    assert report.parity is not None
    assert progress.tasks["comparing outputs"] == ["steps", steps, steps]
    assert progress.tasks["comparing bytes"] == [
        "bytes",
        report.parity["bytes_compared"],
        report.parity["bytes_compared"],
    ]


def test_names_from_the_file_are_escaped_in_the_page(tmp_path: Path) -> None:
    import torch

    checkpoint = Checkpoint()
    checkpoint.model["encoder._ema.<script>alert(1)</script>"] = torch.zeros(1)
    source = checkpoint.write(tmp_path / "source")
    convert(source, tmp_path / "model")
    verify(source, tmp_path / "model", report=tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


# ---- what behaviour alone would not show -----------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def swap_pieces(tokenizer: Any) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[20], vocabulary[21] = vocabulary[21], vocabulary[20]


DAMAGE: dict[str, tuple[str, Callable[[Any], object]]] = {
    "tokenizer: model": ("tokenizer.json", swap_pieces),
    "tokenizer: post_processor": ("tokenizer.json", lambda content: content.update(post_processor=None)),
    "tokenizer: decoder": ("tokenizer.json", lambda content: content.update(decoder=None)),
    "tokenizer: mask_token": ("tokenizer_config.json", lambda content: content.update(mask_token="<unk>")),
    "tokenizer: model_max_length": ("tokenizer_config.json", lambda content: content.update(model_max_length=8)),
    "config.json: auto_map": ("config.json", lambda content: content.update(auto_map={})),
}


@pytest.mark.parametrize("where", DAMAGE)
def test_an_edited_file_is_named_with_the_part_that_differs(where: str, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    name, change = DAMAGE[where]
    edit(copy / name, change)
    with pytest.raises(ParityError) as caught:
        verify(CLASSIFIER, copy)
    assert caught.value.where == where


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "added_tokens.json", "special_tokens_map.json", "model.safetensors.index.json"]
)
def test_a_file_that_transformers_would_also_read_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    (copy / name).write_text("{}")
    with pytest.raises(ParityError, match=re.escape(name)):
        verify(CLASSIFIER, copy)


@pytest.mark.parametrize("name", ["dict.txt", "sentencepiece.bpe.model", "label/dict.txt"])
def test_a_changed_companion_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    path = copy / "fairseq" / name
    path.write_bytes(path.read_bytes() + b"x 1\n")
    with pytest.raises(ParityError, match=re.escape(name)):
        verify(CLASSIFIER, copy)


def test_a_relabelled_dtype_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(ParityError, match="I32"):
        verify(CLASSIFIER, copy)


def test_a_value_that_is_no_number_is_named_where_it_begins(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.model["encoder.sentence_encoder.embed_tokens.weight"][:, 0] = float("nan")
    with pytest.raises(ParityError) as caught:
        convert(checkpoint.write(tmp_path / "source"), tmp_path / "model", encoder_only=True)
    assert caught.value.where == "embeddings"


def test_rows_that_no_probe_reads_are_compared_too(tmp_path: Path) -> None:
    """Only the bytes and this comparison see all rows of an encoder without a head."""

    def swapped(prepared: Prepared) -> Weights:
        (name,) = (name for name in prepared.plan.weights if name.endswith("word_embeddings.weight"))
        table = prepared.plan.weights[name]
        assert isinstance(table, Stored)
        order = [*range(20), 21, 20, *range(22, table.shape[0])]
        parts = tuple(table.rows(row, row + 1) for row in order)
        return {**prepared.plan.weights, name: JoinedRows(table.dtype, table.shape, parts)}

    with open_checkpoint("demo") as checkpoint:
        prepared = prepare(checkpoint, Wanted(encoder_only=True))
        mistaken = replace(prepared, plan=replace(prepared.plan, weights=swapped(prepared)))
        folder = convert("demo", tmp_path / "model", encoder_only=True, verify=False).output
        write_weights(mistaken.plan.weights, folder, max_shard_size=1 << 30)
        with pytest.raises(ParityError) as caught:
            verify_folder(mistaken, folder)
    assert caught.value.where == "embeddings"


@pytest.mark.parametrize("name", ["config.json", "fairseq/conversion.json", "model.safetensors"])
def test_deep_or_longer_files_are_damage_in_a_sentence(name: str, folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    path = copy / name
    path.write_bytes(path.read_bytes() + b"abc" if name.endswith("safetensors") else b"[" * 100_000)
    with pytest.raises(IntegrityError) as caught:
        verify(CLASSIFIER, copy)
    assert len(str(caught.value).splitlines()) == 1


# ---- a proof that is noted -------------------------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("v0122cls", {"languages": ["de", "no"], "licence": "apache-2.0"}),
        ("v0122prenorm", {"languages": ["de"]}),
        ("v090", {}),
    ],
)
def test_a_recorded_proof_is_as_if_the_conversion_had_verified(
    source: str, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = convert(FIXTURES / source, tmp_path / "whole", **options).output
    folder = convert(FIXTURES / source, tmp_path / "later", verify=False, **options).output
    before = bytes_of(folder)
    verify(FIXTURES / source, folder)
    assert bytes_of(folder) == before != bytes_of(whole)
    assert standing_of(OpenedFolder(folder)) is Standing.unverified
    for _ in range(2):
        verify(FIXTURES / source, folder, record=True)
        assert bytes_of(folder) == bytes_of(whole)
    assert standing_of(OpenedFolder(folder)) is Standing.verified


def test_a_card_that_was_edited_stays_and_that_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = copy_of(folder, tmp_path / "mine")
    card = (mine / "README.md").read_bytes() + b"\nMine.\n"
    (mine / "README.md").write_bytes(card)
    verify(CLASSIFIER, mine, record=True)
    assert (mine / "README.md").read_bytes() == card and standing_of(OpenedFolder(mine)) is Standing.verified
    assert "was edited since the conversion, and is left as it is" in caplog.text
    (mine / "README.md").unlink()
    verify(CLASSIFIER, mine, record=True)
    assert not (mine / "README.md").exists()


def test_what_is_not_proved_is_not_recorded(folder: Path, tmp_path: Path) -> None:
    mine = copy_of(folder, tmp_path / "mine")
    weights = mine / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    before = bytes_of(mine)
    with pytest.raises(IntegrityError):
        verify(CLASSIFIER, mine, record=True)
    assert bytes_of(mine) == before


def test_a_path_that_safetensors_cannot_open_is_refused_before_the_work(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"m\xff")
    with pytest.raises(InputError, match="cannot open a path that is not UTF-8: rename it"):
        convert("demo", odd)
    assert list(tmp_path.iterdir()) == []
    convert("demo", tmp_path / "model", verify=False).output.rename(odd)
    for reads in (lambda: verify("demo", odd), lambda: XLMR.from_pretrained(odd)):
        with pytest.raises(InputError, match="cannot open a path that is not UTF-8: rename it"):
            reads()


@pytest.mark.parametrize("content", ["a 1\na 1\n", "b\n", "\u00e9 1\n\ud800"])
def test_labels_that_nobody_reads_are_left_out_if_they_cannot_be_read(content: str, tmp_path: Path) -> None:
    """fairseq reads no labels for a masked LM, whatever lies there; a folder with them could not be loaded."""
    source = shutil.copytree(FIXTURES / "v0122", tmp_path / "source")
    (source / "label").mkdir()
    (source / "label" / "dict.txt").write_bytes(content.encode("utf-8", "surrogatepass"))
    report = convert(source, tmp_path / "out")
    assert not (tmp_path / "out" / "fairseq" / "label").exists()
    (note,) = [note for note in report.notes if "labels" in note]
    assert "label/dict.txt" in note and str(tmp_path) not in note
    verify(source, tmp_path / "out")
    XLMR.from_pretrained(tmp_path / "out")
