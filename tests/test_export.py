"""The way back: what export writes is what fairseq had, and what real fairseq loaded and answered as before."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
import warm_processes
from factory import SYMBOLS, Checkpoint, add_head, weights
from fairseq_recipes.exported import CASES, ENVIRONMENTS, ask, digest, export_all, source_of, wanted
from places import FIXTURES
from safetensors.torch import load_file, save_file
from warm_processes import PROGRAM

from hf_xlmr.conversion import ParityError, ParityReport, convert, export, open_checkpoint, verify
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.conversion.checkpoint.weights import Constant, read_array
from hf_xlmr.conversion.output import torch_writer
from hf_xlmr.conversion.output.safetensors_writer import write_weights
from hf_xlmr.conversion.proof.reference import Reference
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.tokenizer.dictionary import Dictionary

ANSWERS = json.loads((FIXTURES / "exported" / "answers.json").read_text(encoding="utf-8"))
E = "encoder.sentence_encoder."
TOLERANCE = 1e-5


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal, but for the order in which processors add products up."""
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))


MEMORY_LIMIT = 200 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fixture in hf/NAME and, exported, in fairseq/NAME."""
    folder = tmp_path_factory.mktemp("exported")
    export_all(folder)
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a converted folder, to be changed."""
    return lambda name: shutil.copytree(made / "hf" / name, tmp_path / f"{name}.hf")


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def loaded(folder: Path) -> dict[str, Any]:
    """The checkpoint as PyTorch's own safe loader reads it."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        state: dict[str, Any] = torch.load(folder / "model.pt", weights_only=True)
    return state


# ---- fairseq -> Transformers -> fairseq ------------------------------------------------------------------------------


def lost(case: str) -> str | None:
    """The names that the conversion itself leaves behind: each Transformers class has one head."""
    if CASES[case].head is not None:
        return rf"encoder\.lm_head\.(?!weight).*|classification_heads\.(?!{CASES[case].head}\.).*"
    return r"classification_heads\..*"


@pytest.mark.parametrize("name", CASES)
def test_every_weight_comes_back_bit_for_bit(name: str, made: Path) -> None:
    with open_checkpoint(source_of(CASES[name])) as before, open_checkpoint(made / "fairseq" / name) as after:
        kept = [each for each in before.weights if not re.fullmatch(str(lost(name)), each)]
        assert len(kept) > 20
        assert [each for each in kept if not same_bytes(before.weights[each], after.weights[each])] == []
        assert after.weights.keys() <= before.weights.keys()
        assert (after.format, after.era, after.dropped.keys() <= {f"{E}version"}) == ("zip", "args", True)


@pytest.mark.parametrize("name", CASES)
def test_the_small_files_come_back(name: str, made: Path) -> None:
    case, output = CASES[name], made / "fairseq" / name
    with open_checkpoint(source_of(case)) as before:
        parts = {"dict.txt": before.files.dictionary, "sentencepiece.bpe.model": before.files.sentencepiece}
        if case.head is not None:
            parts |= {"input0/dict.txt": before.files.dictionary}
        for path, part in parts.items():
            assert part is not None
            assert (output / path).read_bytes() == part.read()


def test_labels_come_back(made: Path) -> None:
    labels = (FIXTURES / "v0122cls" / "label" / "dict.txt").read_bytes()
    assert (made / "fairseq" / "v0122cls" / "label" / "dict.txt").read_bytes() == labels
    for without in ("v0122cls.lm", "v0122regression", "v0122ranking"):
        assert not (made / "fairseq" / without / "label").exists()


@pytest.mark.parametrize("name", CASES)
def test_these_are_the_bytes_that_fairseq_loaded_and_answered_right(name: str, made: Path) -> None:
    """Where this fails after a change, ask fairseq again: tests/fairseq_recipes/exported.py."""
    known = ANSWERS["exported"][name]
    assert digest(made / "fairseq" / name / "model.pt") == known["sha256"]
    is_post_norm = "pre" not in name
    assert set(known["answers"]) == ({"0.12.2", "0.10.2"} if is_post_norm else {"0.12.2"})
    for answer in known["answers"].values():
        right(answer, head=CASES[name].head)


def right(answer: dict[str, Any], *, head: str | None) -> None:
    assert (answer["ids"], answer["decode"]) == (True, True)
    assert answer["heads"] == ([] if head is None else [head])
    assert max(answer["differences"].values()) < TOLERANCE


def test_arguments_are_those_of_the_training(made: Path) -> None:
    args = loaded(made / "fairseq" / "v0122cls")["args"]
    assert (args.arch, args.task, args.criterion) == ("roberta_base", "sentence_prediction", "sentence_prediction")
    assert (args.classification_head_name, args.num_classes, args.regression_target) == ("xnli_head", 3, False)
    assert (args.encoder_attention_heads, args.max_positions, args.pooler_dropout) == (4, 64, 0.0)
    args = loaded(made / "fairseq" / "v0122prenorm")["args"]
    assert (args.arch, args.encoder_normalize_before, args.layernorm_embedding) == ("roberta_prenorm", True, False)
    args = loaded(made / "fairseq" / "v0122prelayernorm")["args"]
    assert (args.arch, args.encoder_normalize_before, args.layernorm_embedding) == ("roberta_base", True, True)
    assert loaded(made / "fairseq" / "v0122regression")["args"].regression_target is True
    assert loaded(made / "fairseq" / "v0122untied")["args"].untie_weights_roberta is True


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v0122", "v0122prenorm", "v0122cls", "v0122untied", "v090half"])
def test_pytorch_loads_it_safely_and_shares_what_is_tied(name: str, made: Path) -> None:
    state = loaded(made / "fairseq" / name)
    assert list(state) == ["args", "model", "optimizer_history", "extra_state"]
    assert isinstance(state["model"], OrderedDict)
    embedding, head = state["model"][f"{E}embed_tokens.weight"], state["model"]["encoder.lm_head.weight"]
    assert (embedding.data_ptr() == head.data_ptr()) is (name != "v0122untied")
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.half if "half" in name else torch.float}
    mapped = torch.load(made / "fairseq" / name / "model.pt", mmap=True, weights_only=False)
    assert all(torch.equal(mapped["model"][key], tensor) for key, tensor in state["model"].items())


def test_it_is_a_sound_archive_whose_storages_are_aligned(made: Path) -> None:
    path = made / "fairseq" / "v0122" / "model.pt"
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[:3] == ["model/data.pkl", "model/byteorder", "model/data/0"] and names[-1] == "model/version"
        for info in archive.infolist():
            name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name_length + extra_length
            assert (info.compress_type, start % 64) == (zipfile.ZIP_STORED, 0)


@pytest.mark.parametrize("limits", [{"LARGEST": 600}, {"MOST_ENTRIES": 3}, {"LARGEST": 600, "MOST_ENTRIES": 3}])
def test_an_archive_beyond_32_bits(
    limits: dict[str, int], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The format's limits lowered, so that a small file must use the fields for large ones."""
    for name, value in limits.items():
        monkeypatch.setattr(torch_writer, name, value)
    export(made / "hf" / "v0122", tmp_path / "large")
    assert b"PK\x06\x06" in (tmp_path / "large" / "model.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "large" / "model.pt") as archive:
        assert archive.testzip() is None
    given, expected = loaded(tmp_path / "large")["model"], loaded(made / "fairseq" / "v0122")["model"]
    assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())


def test_values_of_every_kind_are_pickled(tmp_path: Path) -> None:
    value = {
        "constants": [None, True, False],
        "numbers": (0, -1, 2**31 - 1, -(2**31), 2**31, -(2**63), 2**90, 10**600, 0.1, -0.0, float("inf")),
        "texts": ["", "я 火", "\ud800"],
        "empty": [(), [], {}, OrderedDict()],
        "spaces": argparse.Namespace(inner=argparse.Namespace(), number=1),
    }
    torch_writer.write_checkpoint(tmp_path / "model.pt", value)
    assert loaded(tmp_path) == value
    with pytest.raises(TypeError, match="a checkpoint does not hold a set"):
        torch_writer.write_checkpoint(tmp_path / "other.pt", {1})
    with pytest.raises(IntegrityError, match="a number of 291 bytes, and PyTorch reads 255"):
        torch_writer.write_checkpoint(tmp_path / "other.pt", [10**700])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tensors_of_every_kind_are_written(dtype: str, tmp_path: Path) -> None:
    shapes = [(), (0,), (3,), (2, 3), (2, 3, 4), (1 << 20,)]
    torch_writer.write_checkpoint(tmp_path / "model.pt", [Constant(dtype, shape, 0.5) for shape in shapes])
    for tensor, shape in zip(torch.load(tmp_path / "model.pt", weights_only=True), shapes, strict=True):
        assert torch.equal(tensor, torch.full(shape, 0.5, dtype=getattr(torch, dtype)))
        assert tensor.is_contiguous() and not tensor.requires_grad


def test_two_runs_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    export(made / "hf" / "v0122cls", tmp_path / "again")
    files = {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert len(files) == 5
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (made / "fairseq" / "v0122cls" / path).read_bytes()


WATCHED = """
import re, sys
from pathlib import Path
from hf_xlmr.conversion import export
export(sys.argv[1], sys.argv[2])
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1], "torch" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_memory_stays_small_and_torch_is_not_imported(made: Path, tmp_path: Path) -> None:
    """300 MB of weights, the largest of them computed: its rows get the token type's."""
    folder, rows, hidden = tmp_path / "large", 135_000, 512
    shutil.copytree(made / "hf" / "v0122cls" / "fairseq", folder / "fairseq")
    shutil.copy(made / "hf" / "v0122cls" / "config.json", folder)
    (folder / "fairseq" / "conversion.json").unlink()
    lines = "".join(f"symbol{number} 1\n" for number in range(rows - 5))
    (folder / "fairseq" / "dict.txt").write_text(lines)
    sizes = {16: hidden, 32: 4 * hidden}
    small = load_file(made / "hf" / "v0122cls" / "model.safetensors")
    shapes = {name: tuple(sizes.get(size, size) for size in tensor.shape) for name, tensor in small.items()}
    shapes["roberta.embeddings.word_embeddings.weight"] = (rows, hidden)
    described = {name: Constant("float32", shape, 0.25) for name, shape in shapes.items()}
    assert sum(each.nbytes for each in described.values()) > 280 << 20
    write_weights(described, folder, max_shard_size=1 << 40)
    change_config(folder, vocab_size=rows, hidden_size=hidden, intermediate_size=4 * hidden)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    peak, has_torch = done.stdout.split()
    assert int(peak) << 10 < MEMORY_LIMIT
    assert has_torch == "False"
    state = torch.load(tmp_path / "out" / "model.pt", mmap=True, weights_only=False)
    assert (state["model"][f"{E}embed_tokens.weight"][-1] == 0.5).all()


# ---- Transformers -> fairseq -> Transformers -------------------------------------------------------------------------


def trained(folder: Path, target: Path, name: str, *, seed: int = 0, **options: Any) -> Any:
    """What Trainer leaves: a model of class `name` from `folder`, all weights moved, saved by save_pretrained."""
    torch.manual_seed(seed)
    network = getattr(transformers, name).from_pretrained(folder, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter) * 0.02
    network.save_pretrained(target, max_shard_size="20KB")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    shutil.copytree(folder / "fairseq", target / "fairseq")
    return network.eval()


FAMILIES = {"v0122": "XLMRoberta", "v0122prenorm": "XLMRobertaXL", "v0122prelayernorm": "RobertaPreLayerNorm"}
HEADS = {"Model": {}, "ForMaskedLM": {}, "ForSequenceClassification": {"num_labels": 4}, "ForMultipleChoice": {}}


@pytest.mark.parametrize("ending", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fine_tuned_folder_computes_the_same(name: str, ending: str, made: Path, tmp_path: Path) -> None:
    """Its token type is not zero, as after training; the reference forward reads fairseq's names alone."""
    network = trained(made / "hf" / name, tmp_path / "hf", FAMILIES[name] + ending, **HEADS[ending])
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    report = export(tmp_path / "hf", tmp_path / "fairseq")
    place = "position" if ending == "ForMaskedLM" else "word"
    assert any(f"was added to the {place} embeddings" in note for note in report.notes)
    head = None if ending in ("Model", "ForMaskedLM") else "sentence_classification_head"
    ids = torch.tensor([[0, 9, 33, 60, 7, 2], [0, 5, 2, 1, 1, 1]])
    given = ids.unsqueeze(1) if "Choice" in ending else ids
    with torch.no_grad(), open_checkpoint(tmp_path / "fairseq") as checkpoint:
        mask = (given != 1).long()
        theirs = network(given, attention_mask=mask, output_hidden_states=True)
        heads = network.config.num_attention_heads
        reference = Reference(checkpoint.raw, checkpoint.options, attention_heads=heads, layers=(0, 1))
        texts = [text[text != 1] for text in ids]
        steps = {s.name: s.values for s in reference.steps(texts, head=head, has_lm_head=ending == "ForMaskedLM")}
    for step, expected in zip(("embeddings", "layer 0", "features"), theirs.hidden_states, strict=True):
        assert_close(steps[step], expected[ids != 1])
    if ending == "ForMaskedLM":
        names = steps["logits"].shape[-1]
        assert_close(steps["logits"], theirs.logits[..., :names][ids != 1])
    elif head is not None:
        assert_close(steps[f"head {head}"], theirs.logits.view(2, -1))


def test_the_token_type_in_the_word_embeddings_is_exact(made: Path, tmp_path: Path) -> None:
    """(word + type) + position in float32, as Transformers adds them, bit for bit."""
    network = trained(made / "hf" / "v0122", tmp_path / "hf", "XLMRobertaModel")
    export(tmp_path / "hf", tmp_path / "fairseq")
    model, tables = loaded(tmp_path / "fairseq")["model"], network.embeddings
    rows = model[f"{E}embed_tokens.weight"].shape[0]
    expected = tables.word_embeddings.weight[:rows] + tables.token_type_embeddings.weight[0]
    assert torch.equal(model[f"{E}embed_tokens.weight"], expected)
    assert torch.equal(model[f"{E}embed_positions.weight"], tables.position_embeddings.weight)


def test_rows_trained_apart_from_unk_are_told(made: Path, tmp_path: Path) -> None:
    trained(made / "hf" / "v0102", tmp_path / "hf", "XLMRobertaForMaskedLM")
    notes = " ".join(export(tmp_path / "hf", tmp_path / "fairseq").notes)
    assert "The last 84 rows of the embeddings are cut off" in notes
    assert "84 of them were trained apart from the row of <unk>" in notes
    assert "apart" not in " ".join(export(made / "hf" / "v0102", tmp_path / "untouched").notes)


def without_token_type(folder: Path) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("token_type_embeddings.weight"):
                tensors[name] = torch.zeros_like(tensors[name])

    change_weights(folder, zero)


@pytest.mark.parametrize("ending", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"])
@pytest.mark.parametrize("name", ["v090", "v0122prenorm", "v0122prelayernorm", "v0122untied"])
def test_transformers_to_fairseq_to_transformers_bit_for_bit(
    name: str, ending: str, made: Path, tmp_path: Path
) -> None:
    family = FAMILIES.get(name, "XLMRoberta")
    network = getattr(transformers, family + ending).from_pretrained(made / "hf" / name)
    network.save_pretrained(tmp_path / "hf")
    shutil.copytree(made / "hf" / name / "fairseq", tmp_path / "hf" / "fairseq")
    without_token_type(tmp_path / "hf")
    export(tmp_path / "hf", tmp_path / "fairseq")
    convert(tmp_path / "fairseq", tmp_path / "back", encoder_only=ending == "Model", verify=False)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("hf", "back"))
    left = {each for each in before if "pooler" in each and ending != "ForMultipleChoice"}
    assert before.keys() - left == after.keys()
    rows = network.config.vocab_size
    for key, tensor in after.items():
        if before[key].shape[:1] == (rows,):  # the rows that convert appends are made anew
            rows_of_fairseq = loaded(tmp_path / "fairseq")["model"][f"{E}embed_tokens.weight"].shape[0]
            assert torch.equal(tensor[:rows_of_fairseq], before[key][:rows_of_fairseq]), key
        else:
            assert torch.equal(tensor, before[key]), key


def test_shards_and_one_file_give_the_same_checkpoint(made: Path, tmp_path: Path) -> None:
    network = transformers.XLMRobertaForMaskedLM.from_pretrained(made / "hf" / "v0122")
    network.save_pretrained(tmp_path / "hf", max_shard_size="10KB")
    shutil.copytree(made / "hf" / "v0122" / "fairseq", tmp_path / "hf" / "fairseq")
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 3
    export(tmp_path / "hf", tmp_path / "fairseq")
    assert digest(tmp_path / "fairseq" / "model.pt") == ANSWERS["exported"]["v0122"]["sha256"]


def test_the_bias_that_an_untied_head_uses_is_taken(model: Callable[[str], Path], tmp_path: Path) -> None:
    """Transformers 5 keeps two biases where nothing is tied, and trains one."""
    folder = model("v0122untied")

    def train(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.decoder.bias"] = tensors["lm_head.decoder.bias"] + 1

    change_weights(folder, train)
    report = export(folder, tmp_path / "out")
    bias = loaded(tmp_path / "out")["model"]["encoder.lm_head.bias"]
    assert torch.equal(bias, load_file(folder / "model.safetensors")["lm_head.decoder.bias"][: len(bias)])
    assert report.dropped["lm_head.decoder.bias"] == "taken for lm_head.bias"


def test_copies_and_buffers_of_older_transformers_are_left_behind(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model("v0122")

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()
        tensors["roberta.embeddings.position_ids"] = torch.arange(66).unsqueeze(0)
        tensors["roberta.pooler.dense.weight"] = torch.zeros(16, 16)
        tensors["roberta.pooler.dense.bias"] = torch.zeros(16)

    change_weights(folder, add)
    report = export(folder, tmp_path / "out")
    assert digest(tmp_path / "out" / "model.pt") == ANSWERS["exported"]["v0122"]["sha256"]
    assert len(report.dropped) == 6
    assert report.dropped["roberta.pooler.dense.bias"] == "a pooler, which fairseq's RoBERTa does not have"


@pytest.mark.parametrize("name", ["v0122", "v0122prenorm"])
def test_the_norms_of_a_folder_that_transformers_5_0_saved_are_exported(
    name: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Transformers 5.0 to 5.7 saves them as `LayerNorm.gamma` and `LayerNorm.beta`."""
    folder = model(name)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for held in [name for name in tensors if "LayerNorm." in name]:
            former = held.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[former] = tensors.pop(held)

    change_weights(folder, rename)
    export(folder, tmp_path / "out")
    assert digest(tmp_path / "out" / "model.pt") == ANSWERS["exported"][name]["sha256"]


# ---- an export is proved against its folder --------------------------------------------------------------------------


def proved(one: Path, other: Path) -> ParityReport:
    """The report of both orders, which must be the same."""
    first, second = verify(one, other), verify(other, one)
    assert first == second
    return first


@pytest.mark.parametrize("ending", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_of_a_fine_tuned_folder_is_proved(name: str, ending: str, made: Path, tmp_path: Path) -> None:
    """fairseq/ lies in it, and tells of the model before."""
    trained(made / "hf" / name, tmp_path / "hf", FAMILIES[name] + ending, **HEADS[ending])
    export(tmp_path / "hf", tmp_path / "out")
    report = verify(tmp_path / "out", tmp_path / "hf")
    last = {"Model": "features", "ForMaskedLM": "logits"}.get(ending, "head sentence_classification_head")
    assert report.steps[-1].name == last and report.largest < 2e-5
    assert report.bytes_compared > 30_000 and report.weights_compared > 30


@pytest.mark.parametrize("name", ["v0122twoheads.sentiment", "v0122cls", "v0122ranking"])
def test_both_orders_prove_the_same(name: str, made: Path) -> None:
    """Of two heads none has a label file: the export has one, with the names of id2label."""
    proved(made / "fairseq" / name, made / "hf" / name)


def test_a_folder_that_others_made_is_proved(foreign: Path, tmp_path: Path) -> None:
    export(foreign, tmp_path / "out")
    assert proved(tmp_path / "out", foreign).tokenizer == ()


def test_a_gamma_of_transformers_5_0_is_proved_too(model: Callable[[str], Path], tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "LayerNorm." in name]:
            former = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[former] = tensors.pop(name)

    folder = model("v0122")
    change_weights(folder, rename)
    change_config(folder, transformers_version="5.0.1")
    export(folder, tmp_path / "out")
    verify(folder, tmp_path / "out")


def flip(path: Path, *, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("side", ["hf", "fairseq"])
def test_a_difference_is_found_and_named(side: str, made: Path, tmp_path: Path) -> None:
    trained(made / "hf" / "v0122", tmp_path / "hf", "XLMRobertaForSequenceClassification", num_labels=4)
    export(tmp_path / "hf", tmp_path / "fairseq")
    if side == "hf":
        flip(max((tmp_path / "hf").glob("*.safetensors")), at=-1)
        with pytest.raises(ParityError, match=r"differs from the folder's"):
            verify(tmp_path / "fairseq", tmp_path / "hf")
        return
    (tmp_path / "other").mkdir()
    trained(made / "hf" / "v0122", tmp_path / "other" / "hf", "XLMRobertaForSequenceClassification", seed=1)
    export(tmp_path / "other" / "hf", tmp_path / "other" / "fairseq")
    with pytest.raises(ParityError) as caught:
        verify(tmp_path / "other" / "fairseq", tmp_path / "hf")
    assert caught.value.where == "label/dict.txt"
    shutil.copytree(tmp_path / "fairseq" / "label", tmp_path / "other" / "fairseq" / "label", dirs_exist_ok=True)
    with pytest.raises(ParityError, match=r": encoder\."):
        verify(tmp_path / "other" / "fairseq", tmp_path / "hf")


@pytest.mark.parametrize(("name", "change"), [("dict.txt", "swapped"), ("label/dict.txt", "swapped")])
def test_another_order_of_names_is_no_export(name: str, change: str, made: Path, tmp_path: Path) -> None:
    names = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    trained(made / "hf" / "v0122", tmp_path / "hf", "XLMRobertaForSequenceClassification", **names)
    export(tmp_path / "hf", tmp_path / "out")
    first, second, *rest = (tmp_path / "out" / name).read_text().splitlines(keepends=True)
    (tmp_path / "out" / name).write_text("".join([second, first, *rest]))
    with pytest.raises(ParityError) as caught:
        verify(tmp_path / "hf", tmp_path / "out")
    assert caught.value.where == name


def test_two_folders_of_one_kind_are_no_pair(made: Path) -> None:
    with pytest.raises(InputError, match=r"neither .* is a Transformers folder: one of them must have a config\.json"):
        verify(made / "fairseq" / "v0122", made / "fairseq" / "v0122")


# ---- dictionary and labels -------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(model: Callable[[str], Path]) -> Path:
    """A folder as others publish XLM-R: no fairseq/, the SentencePiece model beside the weights."""
    folder = model("v090")
    shutil.rmtree(folder / "fairseq")
    assert (folder / "sentencepiece.bpe.model").is_file()
    return folder


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_the_dictionary_of_a_foreign_folder_comes_from_sentencepiece(
    has_tokenizer: bool, foreign: Path, tmp_path: Path
) -> None:
    if not has_tokenizer:
        (foreign / "tokenizer.json").unlink()
    export(foreign, tmp_path / "out")
    given, expected = (
        Dictionary.parse((folder / "dict.txt").read_bytes(), name="dict.txt").symbols
        for folder in (tmp_path / "out", FIXTURES / "v090")
    )
    assert given == expected
    model = loaded(tmp_path / "out")["model"]
    with open_checkpoint(FIXTURES / "v090") as before:
        for name, weight in before.weights.items():
            spelled = name.replace("layernorm_embedding", "emb_layer_norm")
            assert np.array_equal(read_array(weight), model[spelled].numpy())


def test_rows_without_a_name_get_one_and_mask_keeps_its_id(foreign: Path, tmp_path: Path) -> None:
    network = transformers.XLMRobertaForMaskedLM.from_pretrained(foreign)
    before = network.config.vocab_size
    network.resize_token_embeddings(before + 6, mean_resizing=False)
    network.save_pretrained(foreign)
    report = export(foreign, tmp_path / "out")
    dictionary = Dictionary.parse((tmp_path / "out" / "dict.txt").read_bytes(), name="dict.txt")
    assert (len(dictionary), dictionary.mask_index) == (before + 6, before - 1)
    assert dictionary.symbols[-1] == "madeupword0005"
    assert "6 rows at the end of the embeddings have no name" in " ".join(report.notes)


def test_a_dictionary_of_2019_gets_the_flags_that_later_releases_want(tmp_path: Path) -> None:
    """CamemBERT's: `<unk>`, `<s>` and `</s>` come a second time."""
    symbols = ("<unk>", "<s>", "</s>", *SYMBOLS)
    Checkpoint(model=weights(rows=5 + len(symbols)), symbols=symbols).write(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "hf", verify=False)
    export(tmp_path / "hf", tmp_path / "new")
    data = (tmp_path / "new" / "dict.txt").read_bytes()
    assert data.startswith(b"<unk> 1 #fairseq:overwrite\n<s> 1 #fairseq:overwrite\n</s> 1 #fairseq:overwrite\n, 1\n")
    before = Dictionary.parse((tmp_path / "old" / "dict.txt").read_bytes(), expected_rows=5 + len(symbols), name="old")
    assert Dictionary.parse(data, name="new").symbols == before.symbols


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "a", "b"], r"config.json: id2label calls class 1 'a', which is also the name of class 0"),
        (["a", "b\nc", "d"], r"config.json: id2label calls class 1 'b\\nc', which fairseq's label dictionary cannot"),
        (["<s>", "b", "c"], r"config.json: id2label calls class 0 '<s>', which fairseq's label dictionary uses as"),
    ],
)
def test_labels_that_a_dictionary_cannot_hold_are_named_in_the_configuration(
    made: Path, tmp_path: Path, names: list[str], told: str
) -> None:
    trained(made / "hf" / "v0122", tmp_path / "hf", "XLMRobertaForSequenceClassification", num_labels=3)
    change_config(tmp_path / "hf", id2label=dict(enumerate(names)))
    with pytest.raises(InputError, match=told):
        export(tmp_path / "hf", tmp_path / "out")


def test_new_labels_are_written_in_their_order(made: Path, tmp_path: Path) -> None:
    names = {0: "yes", 1: "no", 2: "very much so"}
    trained(
        made / "hf" / "v0122",
        tmp_path / "hf",
        "XLMRobertaForSequenceClassification",
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    report = export(tmp_path / "hf", tmp_path / "out")
    assert (tmp_path / "out" / "label" / "dict.txt").read_text() == "yes 3\nno 2\nvery much so 1\n"
    assert report.task == "sentence_prediction"
    assert any("Some labels hold white space" in note for note in report.notes)
    assert loaded(tmp_path / "out")["args"].classification_head_name == "sentence_classification_head"


def test_one_output_is_a_regression_as_transformers_takes_it(made: Path, tmp_path: Path) -> None:
    trained(made / "hf" / "v0122", tmp_path / "hf", "XLMRobertaForSequenceClassification", num_labels=1)
    export(tmp_path / "hf", tmp_path / "out")
    args = loaded(tmp_path / "out")["args"]
    assert (args.regression_target, args.num_classes) == (True, 1)
    assert not (tmp_path / "out" / "label").exists()


# ---- refusals --------------------------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """A change to a converted v0122, and what export then says."""

    change: Callable[[Path], object]
    error: type[Exception]
    message: str


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **fields)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, change)


def put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return tensors(lambda found: found.__setitem__(name, tensor))


def other_types(folder: Path) -> None:
    put("roberta.embeddings.token_type_embeddings.weight", torch.eye(2, 16))(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def other_dictionary(folder: Path) -> None:
    lines = (folder / "fairseq" / "dict.txt").read_bytes().splitlines(keepends=True)
    (folder / "fairseq" / "dict.txt").write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))


def cut_short(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 20_000)


REFUSALS = {
    "no config": Refusal(lambda folder: (folder / "config.json").unlink(), InputError, "it has no config.json"),
    "broken config": Refusal(lambda folder: (folder / "config.json").write_text("{"), IntegrityError, "is damaged"),
    "no weights": Refusal(lambda folder: (folder / "model.safetensors").unlink(), InputError, "holds no weights"),
    "pickled weights": Refusal(
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        InputError,
        "pickled weights",
    ),
    "a pointer": Refusal(
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        InputError,
        "Git LFS pointer",
    ),
    "cut short": Refusal(cut_short, IntegrityError, "truncated"),
    "another family": Refusal(config(model_type="bert"), InputError, "model_type bert; hf-xlmr exports xlm-roberta"),
    "roberta": Refusal(config(model_type="roberta"), InputError, "others have another vocabulary"),
    "another head": Refusal(
        config(architectures=["XLMRobertaForTokenClassification"]), InputError, "whose head fairseq does not have"
    ),
    "no class": Refusal(config(architectures=None), InputError, "names the class None"),
    "activation": Refusal(config(hidden_act="silu"), InputError, "no activation silu"),
    "activation of the head": Refusal(config(hidden_act="relu"), InputError, "Transformers' always uses exact GELU"),
    "eps": Refusal(config(layer_norm_eps=1e-12), InputError, "always have an eps of 1e-05, not 1e-12"),
    "padding": Refusal(config(pad_token_id=0), InputError, "its <pad> is always 1, not 0"),
    "positions": Refusal(config(position_embedding_type="relative_key"), InputError, "no relative_key positions"),
    "decoder": Refusal(config(is_decoder=True), InputError, "not a decoder"),
    "quantized": Refusal(config(quantization_config={"bits": 4}), InputError, "the weights are quantized"),
    "heads": Refusal(config(num_attention_heads=3), InputError, "3 attention heads do not divide the width 16"),
    "several": Refusal(config(layer_norm_eps=0.1, pad_token_id=0), InputError, "eps of 1e-05.*; its <pad>"),
    "too many layers": Refusal(config(num_hidden_layers=10**12), IntegrityError, "num_hidden_layers is 1000000000000"),
    "too many rows": Refusal(config(vocab_size=10**9), InputError, "do not belong together"),
    "nonsense": Refusal(config(hidden_size="wide"), IntegrityError, "hidden_size is 'wide'"),
    "missing": Refusal(
        tensors(lambda found: found.pop("lm_head.dense.bias")), WeightsMismatch, "missing: lm_head.dense.bias"
    ),
    "unexpected": Refusal(put("qa_outputs.bias", torch.ones(2)), WeightsMismatch, "unexpected: qa_outputs.bias"),
    "wrong shape": Refusal(config(max_position_embeddings=70), WeightsMismatch, "wrong shape: .*position_embeddings"),
    "fewer rows": Refusal(config(vocab_size=100), InputError, "do not belong together"),
    "integers": Refusal(put("lm_head.bias", torch.ones(219, dtype=torch.int8)), InputError, "kept as int8"),
    "not tied": Refusal(
        put("lm_head.decoder.weight", torch.ones(219, 16)), InputError, "lm_head.decoder.weight differs from"
    ),
    "token types": Refusal(other_types, InputError, "its tokenizer gives token types, and they differ"),
    "no dictionary": Refusal(
        lambda folder: shutil.rmtree(folder / "fairseq"),
        InputError,
        r"copy fairseq/, or that file, from the folder that",
    ),
    "no vocabulary": Refusal(
        lambda folder: (folder / "tokenizer.json").write_text('{"model": "x"}'),
        IntegrityError,
        r"tokenizer\.json is damaged: it lists no vocabulary",
    ),
    "another dictionary": Refusal(other_dictionary, InputError, r"the dictionary is not that of .*\(2 ids differ\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_exported_is_refused_in_a_sentence(
    name: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, refusal = model("v0122"), REFUSALS[name]
    refusal.change(folder)
    with pytest.raises(refusal.error, match=refusal.message):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SHARD_REFUSALS = {
    "gone": (lambda folder, index: next(folder.glob("model-*")).unlink(), InputError, "is incomplete"),
    "elsewhere": (lambda folder, index: index["weight_map"].update(x="../x"), IntegrityError, "not in the folder"),
    "no map": (lambda folder, index: index.pop("weight_map"), IntegrityError, "has no weight_map"),
    "not in it": (
        lambda folder, index: index["weight_map"].update(x=sorted(index["weight_map"].values())[0]),
        WeightsMismatch,
        "missing: x",
    ),
}


@pytest.mark.parametrize("name", SHARD_REFUSALS)
def test_shards_that_do_not_fit_are_refused(name: str, made: Path, tmp_path: Path) -> None:
    change, error, message = SHARD_REFUSALS[name]
    transformers.XLMRobertaModel.from_pretrained(made / "hf" / "v090").save_pretrained(tmp_path, max_shard_size="10KB")
    shutil.copytree(made / "hf" / "v090" / "fairseq", tmp_path / "fairseq")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(tmp_path, index)
    path.write_text(json.dumps(index))
    with pytest.raises(error, match=message):
        export(tmp_path, tmp_path / "out")


HEADERS = {
    "longer than the file": (b"\xff" * 8, "its header would be"),
    "not JSON": (b"\x02\0\0\0\0\0\0\0{]", "is damaged"),
    "not an object": (b"\x02\0\0\0\0\0\0\0[]", "holds no object"),
    "no place": ({"a": {"dtype": "F32", "shape": [1]}}, "does not say where a is"),
    "backwards": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "does not say where a is"),
    "beyond the end": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "by its header"),
    "another size": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 0]}}, "not those of its shape"),
    "negative": ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}, "does not say where a is"),
    "an unknown type": ({"a": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}, "holds a as F8_E4M3"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_safetensors_are_refused(name: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    header, message = HEADERS[name]
    if isinstance(header, dict):
        text = json.dumps(header).encode()
        header = len(text).to_bytes(8, "little") + text
    folder = model("v0122")
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises((IntegrityError, InputError), match=message):
        export(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"])
@pytest.mark.parametrize("value", [10**400, -(10**400), "0.1"], ids=["large", "negative", "text"])
def test_a_dropout_that_no_number_is_for_is_damage(
    model: Callable[[str], Path], tmp_path: Path, name: str, value: object
) -> None:
    folder = model("v0122")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(IntegrityError, match=f"config.json is damaged: {name} is"):
        export(folder, tmp_path / "out")


def test_the_folder_itself_is_never_replaced(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model("v0122")
    (folder / "model.pt").write_bytes(b"a checkpoint that lies here too")
    for output in (folder, folder.parent):
        with pytest.raises(InputError):
            export(folder, output, overwrite=True)
    assert (folder / "config.json").is_file()


def test_only_an_export_is_replaced(made: Path, tmp_path: Path) -> None:
    export(made / "hf" / "v0122", tmp_path / "out")
    with pytest.raises(InputError, match="overwrite=True"):
        export(made / "hf" / "v0122", tmp_path / "out")
    export(made / "hf" / "v090", tmp_path / "out", overwrite=True)
    assert digest(tmp_path / "out" / "model.pt") == ANSWERS["exported"]["v090"]["sha256"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"no model\.pt"):
        export(made / "hf" / "v0122", tmp_path / "home", overwrite=True)


# ---- the program -----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return warm_processes.run([PROGRAM, "export", *arguments], env={**os.environ, "COLUMNS": "200"})


def test_the_program_tells_what_it_did(made: Path, tmp_path: Path) -> None:
    done = run(made / "hf" / "v0122cls", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "roberta_base for sentence_prediction" in done.stdout and "fairseq 0.10.2, fairseq 0.12.2" in done.stdout
    done = run(made / "hf" / "v0122cls", tmp_path / "out", "--overwrite", "--json")
    told = json.loads(done.stdout)
    assert told["class_name"] == "XLMRobertaForSequenceClassification"
    assert told["files"]["model.pt"] == (tmp_path / "out" / "model.pt").stat().st_size
    assert told["mapped"]["classifier.dense.weight"] == "classification_heads.xnli_head.dense.weight"
    done = run(made / "hf" / "v0122cls", tmp_path / "out", "--overwrite", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_program_refuses_with_exit_code_2(made: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "nothing", tmp_path / "out")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    done = run(made / "hf" / "v0122", made / "fairseq" / "v0122")
    assert done.returncode == 2 and "--overwrite" in done.stderr


# ---- real fairseq ----------------------------------------------------------------------------------------------------


def golden_of(network: Any, name: str, folder: Path) -> None:
    """Answers of Transformers in the form of the fixtures' golden files, for the texts of fixture `name`."""
    known = np.load(FIXTURES / name / "golden.npz")
    arrays = {"batch.ids": known["batch.ids"]}
    is_classifier = "Classification" in type(network).__name__
    with torch.no_grad():
        for key in [each for each in known.files if re.fullmatch(r"ids\.\d+", each)]:
            ids = torch.from_numpy(known[key].astype(np.int64)).unsqueeze(0)
            given = network(ids, output_hidden_states=True)
            number = key.removeprefix("ids.")
            arrays[key] = known[key]
            arrays[f"hiddens.{number}"] = torch.stack(given.hidden_states).numpy()
            arrays[f"last.{number}"] = given.hidden_states[-1].numpy()
            output = "head.sentence_classification_head" if is_classifier else "logits"
            rows = known[f"logits.{number}"].shape[-1]
            arrays[f"{output}.{number}"] = given.logits[..., : None if is_classifier else rows].numpy()
        ids = torch.from_numpy(known["batch.ids"].astype(np.int64))
        last = network(ids, attention_mask=(ids != 1).long(), output_hidden_states=True).hidden_states[-1]
        arrays["batch.last"] = (last * (ids != 1).unsqueeze(-1)).numpy()
    folder.mkdir()
    np.savez(folder / "golden.npz", **arrays)
    shutil.copy(FIXTURES / name / "golden.json", folder)


@pytest.fixture(scope="module")
def fine_tuned(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Questions about folders that fairseq never made: trained on, with token types, or with rows without a name."""
    folder, questions = tmp_path_factory.mktemp("tuned"), {}
    for name in ("XLMRobertaForMaskedLM", "XLMRobertaForSequenceClassification"):
        network = trained(made / "hf" / "v0122", folder / f"{name}.hf", name)
        golden_of(network, "v0122", folder / f"{name}.golden")
        export(folder / f"{name}.hf", folder / name)
        head = "sentence_classification_head" if "Classification" in name else None
        questions[name] = {"folder": str(folder / name), "golden": str(folder / f"{name}.golden"), "head": head}
    network = transformers.XLMRobertaForMaskedLM.from_pretrained(made / "hf" / "v090")
    network.resize_token_embeddings(network.config.vocab_size + 6, mean_resizing=False)
    network.save_pretrained(folder / "resized.hf")
    shutil.copy(made / "hf" / "v090" / "sentencepiece.bpe.model", folder / "resized.hf")
    export(folder / "resized.hf", folder / "resized")
    questions["resized"] = {"folder": str(folder / "resized"), "golden": str(FIXTURES / "v090"), "head": None}
    return questions


@pytest.mark.oracle
@pytest.mark.parametrize("release", ENVIRONMENTS)
def test_real_fairseq_answers_as_before(release: str, fine_tuned: dict[str, Any], tmp_path: Path) -> None:
    if ENVIRONMENTS[release] not in os.environ:
        pytest.skip(f"{ENVIRONMENTS[release]} does not name the folder of a fairseq {release} environment")
    reports = export_all(tmp_path)
    questions = wanted(reports, release) | fine_tuned
    told = ask(release, questions, tmp_path)
    assert told["fairseq"] == release
    assert told["answers"].keys() == questions.keys()
    for name, answer in told["answers"].items():
        right(answer, head=questions[name]["head"])


def test_a_checkpoint_with_a_head_of_its_own_name_keeps_it(tmp_path: Path) -> None:
    made_model = weights()
    add_head(made_model, "topics", labels=3)
    Checkpoint(model=made_model).write(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "hf", head="topics", verify=False)
    export(tmp_path / "hf", tmp_path / "new")
    assert loaded(tmp_path / "new")["args"].classification_head_name == "topics"
    assert (tmp_path / "new" / "label" / "dict.txt").read_text() == "LABEL_0 3\nLABEL_1 2\nLABEL_2 1\n"
