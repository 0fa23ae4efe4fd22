"""XLMR answers as fairseq's hub interface did, from fairseq's files and from converted folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import CHECKOUT, FIXTURES, SHARED_CHECKPOINTS, needs_shared
from warm_processes import run

from hf_xlmr import XLMR, collate_tokens
from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.own_names import RELEASE_NAMES
from hf_xlmr.hub_interface.xlmr import TokensTooLong, UnknownHead

TOLERANCE = 1e-5
NAMES = {path.name: path for path in sorted(FIXTURES.iterdir()) if (path / "golden.npz").is_file()}
NAMES |= {f"shared-{path.name}": path for path in SHARED_CHECKPOINTS}


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def loaded() -> dict[str, XLMR]:
    return {}


def model_of(name: str, loaded: dict[str, XLMR]) -> XLMR:
    """The model of a sample, loaded from fairseq's own folder, each once."""
    if name not in loaded:
        loaded[name] = XLMR.from_pretrained("demo" if name == "demo" else NAMES[name]).eval()
    return loaded[name]


@cache
def golden_of(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(NAMES[name] / "golden.npz") as arrays:
        return json.loads((NAMES[name] / "golden.json").read_text(encoding="utf-8")), dict(arrays)


def texts_of(golden: dict[str, Any]) -> list[list[str]]:
    return [*([text] for text in golden["texts"]), *golden["pairs"]]


# ---- fairseq's own answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_texts_are_fairseqs(name: str, loaded: dict[str, XLMR]) -> None:
    xlmr = model_of(name, loaded)
    golden, arrays = golden_of(name)
    for index, texts in enumerate(texts_of(golden)):
        tokens = xlmr.encode(*texts)
        assert tokens.dtype == torch.int64 and tokens.tolist() == arrays[f"ids.{index}"].tolist()
        assert xlmr.decode(tokens) == golden["decode"][index]


@pytest.mark.parametrize("name", NAMES)
def test_every_hidden_state_is_fairseqs(name: str, loaded: dict[str, XLMR]) -> None:
    assert_answers(model_of(name, loaded), name)


def assert_answers(xlmr: XLMR, name: str) -> None:
    """Hidden states, features and head logits, at every position; logits of the LM head too."""
    golden, arrays = golden_of(name)
    for index in range(len(texts_of(golden))):
        tokens = torch.from_numpy(arrays[f"ids.{index}"])
        with torch.no_grad():
            hidden = xlmr.extract_features(tokens, return_all_hiddens=True)
            features = xlmr.extract_features(tokens)
        for ours, theirs in zip(hidden, arrays[f"hiddens.{index}"], strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(features.numpy(), arrays[f"last.{index}"], rtol=0, atol=TOLERANCE)
        if xlmr.model.has_lm_head and f"logits.{index}" in arrays:
            expected = arrays[f"logits.{index}"]
            with torch.no_grad():
                found = xlmr.model(tokens.reshape(1, -1))[0].numpy()
            np.testing.assert_allclose(
                found.reshape(expected.shape), expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max())
            )
        for key in arrays:
            if key.startswith("head.") and key.endswith(f".{index}"):
                head = key.removeprefix("head.").removesuffix(f".{index}")
                logits = xlmr.predict(head, tokens, return_logits=True).detach().numpy()
                np.testing.assert_allclose(logits, arrays[key], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_is_fairseqs(name: str, loaded: dict[str, XLMR]) -> None:
    """Even at padding, where fairseq's values mean nothing; our own samples keep zeros there."""
    _golden, arrays = golden_of(name)
    with torch.no_grad():
        features = model_of(name, loaded).extract_features(torch.from_numpy(arrays["batch.ids"])).numpy()
    compared = (arrays["batch.ids"] != 1) | name.startswith("shared-")
    np.testing.assert_allclose(features[compared], arrays["batch.last"][compared], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_filled_as_by_fairseq(name: str, loaded: dict[str, XLMR]) -> None:
    golden, _arrays = golden_of(name)
    expected = golden.get("fill_mask")
    if not isinstance(expected, list):
        pytest.skip("fairseq itself fills no mask with this sample")
    text = golden.get("fill_mask_text", "The train <mask> at night")
    found = model_of(name, loaded).fill_mask(text, topk=5)
    assert [(filled, token) for filled, _score, token in found] == [(each[0], each[2]) for each in expected]
    fairseqs = [float(each[1]) for each in expected]
    assert [score for _filled, score, _token in found] == pytest.approx(fairseqs, abs=TOLERANCE)


@needs_shared
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shared-")])
def test_a_converted_folder_answers_as_the_fairseq_folder(name: str, tmp_path: Path, loaded: dict[str, XLMR]) -> None:
    folder = convert(NAMES[name], tmp_path / "model", verify=False).output
    xlmr = XLMR.from_pretrained(folder).eval()
    assert_answers(xlmr, name)
    golden, arrays = golden_of(name)
    assert [xlmr.encode(*texts).tolist() for texts in texts_of(golden)] == [
        arrays[f"ids.{index}"].tolist() for index in range(len(texts_of(golden)))
    ]


def test_the_recorded_example_of_the_last_pre_norm_layer(loaded: dict[str, XLMR]) -> None:
    """fairseq's last hidden state is before the final norm in pre-norm models, and the features in the others."""
    tokens = torch.tensor([0, 5, 6, 2])
    for name, is_equal in {"v0122": True, "v0122prenorm": False, "v0122prelayernorm": False}.items():
        xlmr = model_of(name, loaded)
        last, features = xlmr.extract_features(tokens, return_all_hiddens=True)[-1], xlmr.extract_features(tokens)
        assert torch.equal(last, features) is is_equal


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v0122", "v0122prenorm", "v0122prelayernorm"])
def test_rows_do_not_depend_on_their_batch(name: str, loaded: dict[str, XLMR]) -> None:
    xlmr = model_of(name, loaded)
    texts = ["a", "the train at night", "नमस्ते दुनिया, and more of it", ""]
    rows = [xlmr.encode(text) for text in texts]
    together = xlmr.extract_features(collate_tokens(rows), return_all_hiddens=True)
    for number, row in enumerate(rows):
        for whole, alone in zip(together, xlmr.extract_features(row, return_all_hiddens=True), strict=True):
            torch.testing.assert_close(whole[number, : len(row)], alone[0], rtol=0, atol=TOLERANCE)


def test_batches_of_texts_are_encoded_as_each_alone(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("demo", loaded)
    texts = ["Hello world!", "", "a </s> b", "x\u0085y"]
    assert [row.tolist() for row in xlmr.encode_batch(texts)] == [xlmr.encode(text).tolist() for text in texts]
    pairs = xlmr.encode_batch(texts, texts[::-1], no_separator=True)
    assert [row.tolist() for row in pairs] == [
        xlmr.encode(*pair, no_separator=True).tolist() for pair in zip(texts, texts[::-1], strict=True)
    ]


def test_collating_pads_as_fairseq_does() -> None:
    rows = [torch.tensor([0, 5, 2]), torch.tensor([0, 2])]
    assert collate_tokens(rows).tolist() == [[0, 5, 2], [0, 2, 1]]
    assert collate_tokens(rows, 1, left_pad=True).tolist() == [[0, 5, 2], [1, 0, 2]]
    assert collate_tokens(rows, 1, 2, move_eos_to_beginning=True).tolist() == [[2, 0, 5], [2, 0, 1]]
    assert collate_tokens(rows, 1, pad_to_multiple=4, pad_to_bsz=3).tolist() == [[0, 5, 2, 1], [0, 2, 1, 1], [1] * 4]
    assert collate_tokens(rows, 1, pad_to_length=5).shape == (2, 5)
    with pytest.raises(InputError):
        collate_tokens([])


# ---- layers, gradients, modes ----------------------------------------------------------------------------------------


def test_layers_are_picked_by_index(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("demo", loaded)
    tokens = xlmr.encode("Hello")
    every = xlmr.extract_features(tokens, return_all_hiddens=True)
    first, last = xlmr.extract_features(tokens, layers=[0, -1])
    assert torch.equal(first, every[0]) and torch.equal(last, every[-1])
    with pytest.raises(InputError, match="no layer 99"):
        xlmr.extract_features(tokens, layers=[99])


def test_threads_see_only_their_own_hidden_states(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("demo", loaded)
    rows = [torch.tensor([0, *range(4, 8 + 3 * number), 2]) for number in range(4)]
    expected = [xlmr.extract_features(row, return_all_hiddens=True) for row in rows]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: xlmr.extract_features(row, return_all_hiddens=True), rows * 10))
    for ours, theirs in zip(found, expected * 10, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_fresh_model_trains_and_gradients_flow() -> None:
    xlmr = XLMR.from_pretrained("demo")
    tokens = xlmr.encode("Hello world!")
    assert xlmr.training and xlmr.model.network.training
    assert not torch.equal(xlmr.extract_features(tokens), xlmr.extract_features(tokens)), "dropout, as in fairseq"
    xlmr.eval()
    assert torch.equal(xlmr.extract_features(tokens), xlmr.extract_features(tokens))
    xlmr.extract_features(tokens).sum().backward()
    weights = xlmr.model.network.base_model.embeddings.word_embeddings.weight
    assert weights.grad is not None and bool(weights.grad[tokens].any())


def test_casting_and_moving(loaded: dict[str, XLMR]) -> None:
    xlmr = XLMR.from_pretrained("demo", dtype="bfloat16").eval()
    assert xlmr.extract_features(xlmr.encode("Hello")).dtype == torch.bfloat16
    again = XLMR.from_pretrained("demo").eval().half().to("cpu")
    assert again.extract_features(again.encode("Hello")).dtype == torch.float16 and again.device.type == "cpu"
    exact = model_of("demo", loaded).extract_features(xlmr.encode("Hello"))
    torch.testing.assert_close(xlmr.extract_features(xlmr.encode("Hello")).float(), exact, rtol=0.1, atol=0.1)


def test_filling_leaves_the_mode_as_it_was() -> None:
    xlmr = XLMR.from_pretrained("demo")
    xlmr.model.network.base_model.embeddings.eval()
    modes = [module.training for module in xlmr.modules()]
    assert xlmr.fill_mask("Hello <mask>!", topk=2) == xlmr.fill_mask("Hello <mask>!", topk=2)
    assert [module.training for module in xlmr.modules()] == modes


# ---- heads -----------------------------------------------------------------------------------------------------------


def test_predictions_are_log_probabilities(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("v0122cls", loaded)
    (head,) = xlmr.model.classification_heads
    tokens = collate_tokens([xlmr.encode("a", "b"), xlmr.encode("longer text")])
    predicted = xlmr.predict(head, tokens)
    assert predicted.shape == (2, 3)
    torch.testing.assert_close(predicted.exp().sum(dim=-1), torch.ones(2))


def test_labels_are_named_as_fairseqs_users_do_it(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("v0122cls", loaded)
    labels = xlmr.task.label_dictionary
    assert labels is not None
    names = [labels.string([number + labels.nspecial]) for number in range(3)]
    assert names == [
        line.split()[0] for line in (NAMES["v0122cls"] / "label" / "dict.txt").read_text().splitlines()[:3]
    ]


def test_a_registered_head_is_fresh_and_replaces_with_a_warning() -> None:
    xlmr = XLMR.from_pretrained("demo").eval()
    xlmr.register_classification_head("nli", num_classes=3)
    assert xlmr.predict("nli", xlmr.encode("a")).shape == (1, 3)
    assert xlmr.model.classification_heads["nli"].training, "as in fairseq"
    with pytest.warns(UserWarning, match="'nli' with 3 classes"):
        xlmr.register_classification_head("nli", num_classes=2, embedding_size=7, inner_dim=5)
    assert xlmr.model.classification_heads["nli"].dense.out_features == 5
    with pytest.raises(TypeError, match="num_classes"):
        xlmr.register_classification_head("other")


def test_a_registered_head_has_the_options_of_the_checkpoints(tmp_path: Path) -> None:
    folder = convert(NAMES["v0122cls"], tmp_path / "model", verify=False).output
    (folder / "fairseq" / "options.json").write_text('{"pooler_activation_fn": "relu", "pooler_dropout": 0.3}')
    xlmr = XLMR.from_pretrained(folder)
    xlmr.register_classification_head("nli", num_classes=3)
    for head in xlmr.model.classification_heads.values():
        assert head.dropout.p == 0.3 and head.activation_fn is torch.nn.functional.relu


@pytest.mark.parametrize("name", ["v0122cls", "v0122ranking"])
def test_the_own_head_of_a_folder_predicts_offloaded(name: str, tmp_path: Path) -> None:
    folder = convert(NAMES[name], tmp_path / "model", verify=False).output
    whole = XLMR.from_pretrained(folder).eval()
    spread = XLMR.from_pretrained(folder, device_map={"": "disk"}).eval()
    (head,) = whole.model.classification_heads
    tokens = torch.tensor([0, 5, 6, 2])
    assert torch.equal(spread.predict(head, tokens), whole.predict(head, tokens))


@pytest.mark.parametrize("name", ["v0122cls", "v0122ranking"])
def test_the_own_head_of_a_folder_is_saved_as_it_was_trained(name: str, tmp_path: Path) -> None:
    folder = convert(NAMES[name], tmp_path / "model", verify=False).output
    xlmr = XLMR.from_pretrained(folder).eval()
    (head,) = xlmr.model.classification_heads
    tokens = torch.tensor([0, 5, 6, 2])
    before = xlmr.predict(head, tokens, return_logits=True)
    with torch.no_grad():
        xlmr.model.classification_heads[head].out_proj.bias.add_(1)
        xlmr.model.classification_heads[head].dense.weight.mul_(2)
    trained = xlmr.predict(head, tokens, return_logits=True)
    assert not torch.equal(trained, before)
    xlmr.model.network.save_pretrained(folder)
    assert torch.equal(XLMR.from_pretrained(folder).eval().predict(head, tokens, return_logits=True), trained)
    ours = {id(weight) for weight in xlmr.half().model.classification_heads.parameters()}
    assert ours <= {id(weight) for weight in xlmr.model.network.parameters()}


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("v0122cls", 3), ("v0122cls", 5), ("v0122ranking", 1)])
def test_a_head_in_place_of_the_folders_own_is_saved_with_the_network(name: str, classes: int, tmp_path: Path) -> None:
    xlmr = XLMR.from_pretrained(convert(NAMES[name], tmp_path / "model", verify=False).output, dtype="bfloat16").eval()
    (head,) = xlmr.model.classification_heads
    with pytest.warns(UserWarning, match="replaced by a fresh one"):
        xlmr.register_classification_head(head, num_classes=classes)
    with torch.no_grad():
        xlmr.model.classification_heads[head].out_proj.bias.add_(1)
    tokens = torch.tensor([0, 5, 6, 2])
    expected = xlmr.eval().predict(head, tokens, return_logits=True)
    xlmr.model.network.save_pretrained(tmp_path / "saved")
    shutil.copytree(tmp_path / "model" / "fairseq", tmp_path / "saved" / "fairseq")
    saved = XLMR.from_pretrained(tmp_path / "saved", dtype="auto").eval()
    assert torch.equal(saved.predict(head, tokens, return_logits=True), expected)
    assert expected.shape == (1, classes)
    assert name == "v0122ranking" or len(saved.files.config["id2label"]) == classes


def test_a_head_that_the_network_cannot_hold_as_its_own_is_refused(tmp_path: Path) -> None:
    folder = convert(NAMES["v0122cls"], tmp_path / "model", verify=False).output
    ranking = XLMR.from_pretrained(convert(NAMES["v0122ranking"], tmp_path / "ranking", verify=False).output)
    for xlmr, sizes, told in (
        (XLMR.from_pretrained(folder), {"num_classes": 3, "inner_dim": 5}, "the width"),
        (XLMR.from_pretrained(folder, device_map={"": "disk"}), {"num_classes": 3}, "offloaded"),
        (ranking, {"num_classes": 2}, "one output"),
    ):
        (head,) = xlmr.model.classification_heads
        before = xlmr.model.classification_heads[head]
        with pytest.raises(InputError, match=f"{told}.*another name"):
            xlmr.register_classification_head(head, **sizes)
        assert xlmr.model.classification_heads[head] is before


def test_loading_a_state_registers_its_heads_as_in_fairseq(tmp_path: Path) -> None:
    trained = XLMR.from_pretrained("demo").eval()
    trained.register_classification_head("nli", num_classes=3, inner_dim=5)
    trained.register_classification_head("other", num_classes=2)
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = XLMR.from_pretrained("demo", dtype="bfloat16")
    fresh.register_classification_head("mine", num_classes=2)
    mine = fresh.model.classification_heads["mine"].out_proj.weight.clone()
    fresh.load_state_dict(state)
    tokens = trained.encode("Hello")
    assert fresh.eval().predict("nli", tokens).dtype == torch.bfloat16, "heads are made as the model is"
    assert torch.equal(fresh.model.classification_heads["mine"].out_proj.weight, mine), "what a state lacks stays"
    again = XLMR.from_pretrained("demo")
    again.model.load_state_dict(trained.model.state_dict())
    assert torch.equal(again.eval().predict("nli", tokens), trained.eval().predict("nli", tokens))
    with pytest.raises(RuntimeError, match=r"classification_heads\.half\.dense\.weight"):
        again.load_state_dict({**state, "model.classification_heads.half.dense.weight": torch.zeros(2, 2)})


def test_mistakes_tell_what_to_do(loaded: dict[str, XLMR]) -> None:
    """Their kinds are those of real fairseq's, asked in test_hub_likeness."""
    xlmr = model_of("demo", loaded)
    longest = xlmr.max_positions
    xlmr.extract_features(torch.full((longest,), 5))
    with pytest.raises(TokensTooLong, match=f"tokens exceeds maximum length: {longest + 1} > {longest}") as too_long:
        xlmr.extract_features(torch.full((longest + 1,), 5))
    assert too_long.value.longest == longest
    with pytest.raises(UnknownHead, match="register_classification_head makes a new one"):
        xlmr.predict("mnli", torch.tensor([0, 2]))
    for text in ("no mask", "<mask> and <mask>"):
        with pytest.raises(InputError, match="Please add one <mask>"):
            xlmr.fill_mask(text)
    with pytest.raises(InputError, match="topk=1000000000: give a number from 1 to"):
        xlmr.fill_mask("<mask>", topk=10**9)
    with pytest.raises(InputError, match="rows"):
        xlmr.extract_features(torch.tensor([0, 10**6, 2]))
    with pytest.raises(InputError, match=r"int64 or int32, not torch\.float32; encode gives them"):
        xlmr.extract_features(torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bpe": "gpt2"}, "SentencePiece"),
        ({"dtype": "float33"}, "float33"),
        ({"dtype": torch.int8}, "int8"),
        ({"device": "cuda:7"}, "cuda:7"),
        ({"device": "nonsense"}, "nonsense"),
        ({"dtype": torch.float8_e4m3fn}, "dtype=torch.float8_e4m3fn: give float32"),
        ({"dtype": None}, "dtype=None: give float32"),
        ({"device": "meta"}, "device: meta holds no weights"),
        ({"device": 10**30}, "device: 1000.* cannot be used here"),
        ({"device": ["cpu"]}, "device=.*give a device such as cpu"),
        ({"device_map": ["cpu"]}, "device_map=.*give auto, or a dictionary"),
        ({"device_map": {0: "cpu"}}, "device_map=.*give auto, or a dictionary"),
        ({"device_map": "auto", "max_memory": "1GB"}, "max_memory='1GB': give a dictionary of devices and sizes"),
        ({"device_map": "auto", "max_memory": {}}, "max_memory={}: give a dictionary of devices and sizes"),
        ({"device_map": "auto", "max_memory": {"cpu": 0.5}}, "max_memory=.*0.5"),
        ({"device_map": "auto", "tokens": "a"}, "tokens='a': give the most tokens"),
        ({"device_map": "auto", "tokens": 0}, "tokens=0: give the most tokens"),
        ({"device_map": {"": "disk"}, "offload_folder": 5}, "offload_folder=5: give the path"),
        ({"device_map": {"": "disk"}, "offload_folder": "/dev/null/x"}, "offload_folder: /dev/null/x cannot be"),
        ({"checkpoint_file": "a.pt:b.pt"}, "an ensemble"),
        ({"checkpoint_file": "other.pt"}, "checkpoint_file='other.pt' picks a file in a folder"),
        ({"checkpoint_file": 5}, "checkpoint_file=5"),
        ({"data_name_or_path": None}, "data_name_or_path=None"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        XLMR.from_pretrained("demo", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    for options in ({"device": "cuda"}, {"device": 0}, {"device_map": {"": 0}}):
        with pytest.raises(InputError, match="cannot be used here"):
            XLMR.from_pretrained("demo", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, 5, "", "a\0b", []])
def test_what_is_no_model_at_all_is_told(model: Any) -> None:
    with pytest.raises(InputError, match=r"model_name_or_path=.*give a path or a name"):
        XLMR.from_pretrained(model)


@pytest.mark.parametrize("layers", [0, "a", [True], [0.5], {"a": 1}])
def test_layers_that_are_no_numbers_are_told(layers: Any, loaded: dict[str, XLMR]) -> None:
    with pytest.raises(InputError, match=r"layers=.*give a list of numbers"):
        model_of("demo", loaded).extract_features(torch.tensor([0, 2]), layers=layers)


SILENT = """
import sys
from hf_xlmr import XLMR
for options in ({}, {"dtype": "bfloat16"}, {"device_map": {"": "disk"}}, {"device_map": "auto"}):
    for model in sys.argv[1:]:
        XLMR.from_pretrained(model, **options)
"""


def test_loading_prints_nothing(tmp_path: Path) -> None:
    """Converting included, and Transformers' bars and reports too; but a warning if bfloat16 has to be emulated."""
    folder = convert(NAMES["v0122cls"], tmp_path / "model", verify=False).output
    environment = {**os.environ, "HF_XLMR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SILENT, "demo", NAMES["v0122prenorm"], folder]
    done = run(command, env=environment, cwd=tmp_path, check=True)
    printed = [line for line in done.stderr.splitlines() if "has no instructions for bfloat16" not in line]
    assert (done.stdout, printed) == ("", [])


def test_a_folder_of_another_model_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="'bert'"):
        XLMR.from_pretrained(tmp_path)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = convert("demo", tmp_path / "model", verify=False).output
    weights = load_file(folder / "model.safetensors")
    del weights["roberta.encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"layer\.0\.output\.dense\.weight"):
        XLMR.from_pretrained(folder)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_vectors_of_words_add_up_to_those_of_tokens(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("demo", loaded)
    sentence = "Hello,  the ﬁne １２３ 你好 train!"
    aligned = xlmr.extract_features_aligned_to_words(sentence)
    assert aligned.words == ("<s>", "Hello", ",", "the", "ﬁne", "１２３", "你好", "train", "!", "</s>")
    features = xlmr.extract_features(xlmr.encode(sentence))[0]
    torch.testing.assert_close(aligned.vectors.sum(dim=0), features.sum(dim=0), rtol=0, atol=1e-4)
    every = xlmr.extract_features_aligned_to_words(sentence, return_all_hiddens=True)
    assert every.vectors.shape == (len(xlmr.model.layers) + 1, len(aligned.words), features.shape[-1])
    torch.testing.assert_close(every.vectors[-1], aligned.vectors)


def test_a_word_is_the_sum_of_its_pieces(loaded: dict[str, XLMR]) -> None:
    xlmr = model_of("demo", loaded)
    tokens = xlmr.encode("Hello world")
    features = xlmr.extract_features(tokens)[0]
    starts = [
        index for index, piece in enumerate(xlmr.tokenizer.pieces("Hello world"), start=1) if piece[0] == "\u2581"
    ]
    aligned = xlmr.extract_features_aligned_to_words("Hello world", words=["Hello", "world"]).vectors
    torch.testing.assert_close(aligned[1], features[1 : starts[1]].sum(dim=0))
    torch.testing.assert_close(aligned[2], features[starts[1] : -1].sum(dim=0))


def test_marks_and_joiners_belong_to_their_words(loaded: dict[str, XLMR]) -> None:
    for sentence, words in {
        "नमस्ते दुनिया!": ("नमस्ते", "दुनिया", "!"),
        "cafe\u0301 bar": ("cafe\u0301", "bar"),
        "\ufeffHello": ("Hello",),
        "มี a": ("มี", "a"),
    }.items():
        assert model_of("demo", loaded).extract_features_aligned_to_words(sentence).words == ("<s>", *words, "</s>")


def test_words_that_are_not_the_sentences_are_refused(loaded: dict[str, XLMR]) -> None:
    for words in (["Hello"], ["Hello", "there"], ["Hello", "world", "!"], [""]):
        with pytest.raises(InputError, match="words"):
            model_of("demo", loaded).extract_features_aligned_to_words("Hello world", words=words)


# ---- where models come from ------------------------------------------------------------------------------------------


def test_the_arguments_of_fairseqs_from_pretrained(tmp_path: Path, loaded: dict[str, XLMR]) -> None:
    """With the checkpoint under another name, and the dictionary in a folder of its own."""
    home, data = tmp_path / "run", tmp_path / "run" / "data-bin"
    data.mkdir(parents=True)
    shutil.copy(NAMES["v0122"] / "model.pt", home / "checkpoint_7.pt")
    shutil.copy(NAMES["v0122"] / "model.pt", home / "checkpoint_8.pt")
    shutil.copy(NAMES["v0122"] / "sentencepiece.bpe.model", home)
    shutil.copy(NAMES["v0122"] / "dict.txt", data)
    for where in ("./data-bin", str(data)):
        xlmr = XLMR.from_pretrained(
            str(home), checkpoint_file="checkpoint_7.pt", data_name_or_path=where, bpe="sentencepiece"
        )
        assert_answers(xlmr.eval(), "v0122")


def test_fairseqs_default_checkpoint_file_says_nothing_of_what_is_no_fairseq_folder(tmp_path: Path) -> None:
    folder = convert(NAMES["v0122"], tmp_path / "model", verify=False).output
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.add(NAMES["v0122"], "v0122")
    for model in ("demo", folder, tmp_path / "archive.tar", NAMES["v0122"] / "model.pt", NAMES["fsdp"]):
        XLMR.from_pretrained(model, "model.pt", ".", "sentencepiece")
    home = shutil.copytree(NAMES["v0122"], tmp_path / "run")
    (home / "model.pt").rename(home / "checkpoint_best.pt")
    with pytest.raises(InputError, match=r"run holds no model\.pt \(checkpoint_file=\); it has checkpoint_best\.pt"):
        XLMR.from_pretrained(home, "model.pt")
    with pytest.raises(InputError, match=r"unpack it and name the folder"):
        XLMR.from_pretrained(tmp_path / "archive.tar", "checkpoint_best.pt")


def test_a_converted_folder_is_told_another_dictionary(tmp_path: Path) -> None:
    """It has its own; fairseq would have read the one in data_name_or_path."""
    folder, data = convert(NAMES["v0122"], tmp_path / "model", verify=False).output, tmp_path / "data"
    (data / "input0").mkdir(parents=True)
    lines = (NAMES["v0122"] / "dict.txt").read_text(encoding="utf-8").splitlines()
    (data / "input0" / "dict.txt").write_text("\n".join(lines), encoding="utf-8")
    for same in (data, folder, "../data", "./"):
        XLMR.from_pretrained(folder, data_name_or_path=same)
    (data / "dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]), encoding="utf-8")
    for other, told in (
        (data, "another dictionary"),
        ("./nowhere", "is not a folder"),
        (tmp_path, r"holds no dict\.txt"),
    ):
        with pytest.raises(InputError, match=f"data_name_or_path: .*{told}"):
            XLMR.from_pretrained(folder, data_name_or_path=other)


def test_a_source_is_converted_once_and_found_by_content(tmp_path: Path) -> None:
    first = XLMR.from_pretrained(NAMES["v0122"]).files.folder
    before = first.stat().st_mtime_ns
    copy = shutil.copytree(NAMES["v0122"], tmp_path / "copy")
    assert XLMR.from_pretrained(copy).files.folder == first
    assert first.stat().st_mtime_ns == before
    dictionary = (copy / "dict.txt").read_text(encoding="utf-8").split("\n")
    dictionary[10], dictionary[11] = dictionary[11], dictionary[10]
    (copy / "dict.txt").write_text("\n".join(dictionary), encoding="utf-8")
    other = XLMR.from_pretrained(copy)
    assert other.dictionary.symbols[14] == dictionary[10].rsplit(" ", 1)[0]
    assert other.files.folder != first


def test_a_damaged_entry_of_the_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path))
    expected = XLMR.from_pretrained(NAMES["v0122cls"]).eval()
    (entry,) = (tmp_path / "models").iterdir()
    tokens = torch.tensor([0, 5, 6, 2])
    (head,) = expected.model.classification_heads
    for name in ("model/model.safetensors", "model/config.json", "heads.safetensors", "sizes.json"):
        (entry / "cut").write_bytes((entry / name).read_bytes()[:20])
        (entry / "cut").rename(entry / name)  # a model in memory may still have the whole file mapped
        again = XLMR.from_pretrained(NAMES["v0122cls"]).eval()
        assert torch.equal(again.predict(head, tokens), expected.predict(head, tokens)), name
        assert len((entry / name).read_bytes()) > 20, name


def test_a_cache_that_cannot_be_made_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file"):
        XLMR.from_pretrained(NAMES["v0122"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc, which even root cannot write to")
def test_a_cache_that_cannot_be_written_to_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", "/proc/hf_xlmr")
    with pytest.raises(InputError, match=r"the cache /proc/hf_xlmr.* cannot be written to .*: set HF_XLMR_CACHE"):
        XLMR.from_pretrained(NAMES["v0122"])


def test_a_folder_that_is_there_can_be_a_cache_for_all_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user may fill it for others: its files have the permissions that any new file has."""
    (tmp_path / "cache").mkdir(mode=0o755)
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    XLMR.from_pretrained(NAMES["v0122cls"])
    (tmp_path / "any").write_text("")
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {path.stat().st_mode for path in files} == {(tmp_path / "any").stat().st_mode}


TWO_AT_ONCE = "import sys; from hf_xlmr import XLMR; print(XLMR.from_pretrained(sys.argv[1]).files.folder)"


def test_two_processes_at_once_share_a_conversion(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_XLMR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO_AT_ONCE, NAMES["v0122"]]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _number: run(command, env=environment), range(2)))
    assert [done.returncode for done in results] == [0, 0], results
    assert results[0].stdout == results[1].stdout
    entries = list((tmp_path / "cache" / "models").iterdir())
    assert len(entries) == 1
    assert sorted(path.name for path in entries[0].iterdir()) == ["heads.safetensors", "lock", "model", "sizes.json"]


HUB = """
import sys, torch
xlmr = torch.hub.load(sys.argv[1], "demo", source="local").eval()
sys.path.insert(0, sys.argv[1])
import hubconf
print(len(xlmr.extract_features(xlmr.encode("Hello world!"))), [name for name in dir(hubconf) if "." in name])
"""


def test_torch_hub_finds_the_names(tmp_path: Path) -> None:
    """From a checkout, whose folder torch.hub puts before the installed package."""
    done = run([sys.executable, "-c", HUB, CHECKOUT], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"1 {sorted(RELEASE_NAMES)}"


def test_importing_is_quick() -> None:
    """With the package come few modules of its own and of Python's, and none of any other."""
    code = "import sys; before = set(sys.modules); import hf_xlmr; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = done.stdout.split()
    own = [name for name in imported if name.split(".")[0] == "hf_xlmr"]
    others = {name.split(".")[0] for name in imported} - {"hf_xlmr"}
    assert 0 < len(own) < 10 and len(imported) < 100 and others <= sys.stdlib_module_names, imported


# ---- many devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v0122", "v0122prenorm", "v0122prelayernorm", "v0122cls"])
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("kind", ["disk", "auto", "mixed"])
def test_offloaded_models_answer_bit_for_bit(
    kind: str, offload: bool, name: str, tmp_path: Path, loaded: dict[str, XLMR]
) -> None:
    whole = model_of(name, loaded)
    base = f"{whole.model.network.base_model_prefix}."
    modules = [key for key, _module in whole.model.network.named_children() if f"{key}." != base]
    modules += [f"{base}{key}" for key, _module in whole.model.base.named_children()]
    options: dict[str, Any] = {
        "disk": {"device_map": {"": "disk"}},
        "auto": {"device_map": "auto", "max_memory": {"cpu": "400KB", "disk": "unlimited"}, "tokens": 16},
        "mixed": {"device_map": {key: ("cpu", "disk")[number % 2] for number, key in enumerate(modules)}},
    }[kind]
    options["device_map"] = tied(options["device_map"], base)
    spread = XLMR.from_pretrained(
        NAMES[name], **options, offload_folder=tmp_path / "offload" if offload else None
    ).eval()
    tokens = collate_tokens([whole.encode("Hello world!"), whole.encode("")])
    for ours, theirs in zip(
        spread.extract_features(tokens, return_all_hiddens=True),
        whole.extract_features(tokens, return_all_hiddens=True),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    assert spread.fill_mask("Hello <mask>!") == whole.fill_mask("Hello <mask>!")
    for head in whole.model.classification_heads:
        assert torch.equal(spread.predict(head, tokens), whole.predict(head, tokens))


def test_models_share_an_offload_folder(tmp_path: Path, loaded: dict[str, XLMR]) -> None:
    options: dict[str, Any] = {"device_map": {"": "disk"}, "offload_folder": tmp_path}
    names = ("v0122", "v0122untied")
    spread = {name: XLMR.from_pretrained(NAMES[name], **options).eval() for name in names}
    XLMR.from_pretrained(NAMES["v0122"], **options, dtype="bfloat16")
    tokens = torch.tensor([0, 5, 6, 2])
    for name in names:
        assert torch.equal(spread[name].extract_features(tokens), model_of(name, loaded).extract_features(tokens))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    XLMR.from_pretrained(NAMES["v0122"], **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(list(tmp_path.iterdir())) == 3


def tied(device_map: Any, base: str) -> Any:
    """The map with the LM head where the embeddings are, to which it is tied."""
    if isinstance(device_map, dict) and "lm_head" in device_map:
        return {**device_map, "lm_head": device_map[f"{base}embeddings"]}
    return device_map


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": {"": "disk"}},
        {"device_map": "auto", "max_memory": {"cpu": "1300KB", "disk": "unlimited"}, "tokens": 16},
    ],
    ids=["disk", "auto"],
)
def test_what_is_offloaded_cannot_be_trained_and_says_so(options: dict[str, Any]) -> None:
    """Its gradients would be lost without a word; a head of one's own on top of it trains."""
    spread = XLMR.from_pretrained("demo", **options)
    tokens = spread.encode("Hello")
    with pytest.raises(RuntimeError, match="does not require grad"):
        spread.extract_features(tokens).sum().backward()
    state = XLMR.from_pretrained("demo").state_dict()
    inner = {name.removeprefix("model."): weight for name, weight in state.items()}
    network = {name.removeprefix("network."): weight for name, weight in inner.items()}
    for holder, held in ((spread, state), (spread.model, inner)):
        for refused in (holder.state_dict, holder.requires_grad_, partial(holder.load_state_dict, held)):
            with pytest.raises(InputError, match="offloaded"):
                refused()
    with pytest.raises(InputError, match="offloaded"):
        spread.model.network.load_state_dict(network)
    spread.register_classification_head("nli", num_classes=3)
    spread.predict("nli", tokens).sum().backward()
    assert all(weight.grad is not None for weight in spread.model.classification_heads.parameters())
    assert not any(weight.requires_grad for weight in spread.model.network.parameters())


@pytest.mark.parametrize(
    "options", [{"device_map": {"": "cpu"}}, {"device_map": "auto", "max_memory": {"cpu": "8GiB"}}], ids=["map", "auto"]
)
def test_a_map_of_one_device_gives_a_model_like_any_other(options: dict[str, Any]) -> None:
    xlmr = XLMR.from_pretrained("demo", **options)
    xlmr.extract_features(xlmr.encode("Hello")).sum().backward()
    assert set(xlmr.half().state_dict()) == set(XLMR.from_pretrained("demo").state_dict())


def test_a_spread_model_is_not_moved_or_cast() -> None:
    spread = XLMR.from_pretrained("demo", device_map={"": "disk"})
    model = spread.model
    for change in (spread.half, spread.cpu, lambda: spread.to("cpu"), model.half, lambda: model.to("cpu")):
        with pytest.raises(InputError, match="load it again"):
            change()
    spread.eval().register_classification_head("nli", num_classes=3)
    assert spread.predict("nli", spread.encode("a")).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device_map": "auto", "max_memory": {"cpu": "10KB"}}, "does not fit"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "much"),
        ({"device_map": "balanced"}, "balanced"),
        ({"device_map": {"roberta.embeddings": "cpu"}}, "lm_head"),
        ({"device_map": {"": "cpu", "roberta.nothing": "disk"}}, "roberta.nothing"),
        ({"device_map": "auto", "device": "cpu"}, "device="),
        ({"max_memory": {"cpu": "1GiB"}}, "max_memory="),
    ],
)
def test_maps_that_do_not_work_are_told_in_a_sentence(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        XLMR.from_pretrained("demo", **options)
