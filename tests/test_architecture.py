"""Tensors decide what the network is, options what tensors cannot tell; every reason against it comes at once."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factory import HEADS, HIDDEN, OPTIONS, POSITIONS, ROWS, Checkpoint, E, add_head, of_2019, weights
from packaging.version import Version
from places import FIXTURES
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_xlmr.conversion import ConversionReport, convert, inspect
from hf_xlmr.conversion.mapping import plan
from hf_xlmr.conversion.proof import reference
from hf_xlmr.errors import InputError, IntegrityError, UnsupportedCheckpoint, WeightsMismatch


def converted(checkpoint: Checkpoint, folder: Path, **options: Any) -> ConversionReport:
    return convert(checkpoint.write(folder / "model"), folder / "out", **options)


def config_of(report: ConversionReport) -> dict[str, Any]:
    return json.loads((report.output / "config.json").read_text())


@pytest.mark.parametrize(
    ("norms", "expected"), [("post", "XLMRoberta"), ("pre", "XLMRobertaXL"), ("both", "RobertaPreLayerNorm")]
)
def test_the_norms_choose_the_family(norms: str, expected: str, tmp_path: Path) -> None:
    report = converted(Checkpoint(model=weights(norms=norms)), tmp_path)
    assert report.class_name == f"{expected}ForMaskedLM"


def test_every_field_that_transformers_gets_wrong_is_written(tmp_path: Path) -> None:
    config = config_of(converted(Checkpoint(options={**OPTIONS, "dropout": 0.2, "attention_dropout": 0.3}), tmp_path))
    assert config["layer_norm_eps"] == 1e-5
    assert config["type_vocab_size"] == 1
    assert config["max_position_embeddings"] == POSITIONS
    assert (config["hidden_dropout_prob"], config["attention_probs_dropout_prob"]) == (0.2, 0.3)
    assert config["classifier_dropout"] == 0.0
    assert (config["vocab_size"], config["hidden_size"], config["num_attention_heads"]) == (ROWS, HIDDEN, HEADS)
    assert (config["bos_token_id"], config["pad_token_id"], config["eos_token_id"]) == (0, 1, 2)


def test_the_layout_is_that_of_transformers_5(tmp_path: Path) -> None:
    """Where no release is named, those from 5.0 to 5.22 warn that the tokenizer is a Mistral's with a wrong regex."""
    version = str(config_of(converted(Checkpoint(), tmp_path))["transformers_version"])
    assert Version(version) >= Version("5.0.0")


def test_an_old_file_is_post_norm_whatever_its_options_say(tmp_path: Path) -> None:
    """Until February 2021 the option meant nothing (fairseq 0.10.2, transformer_sentence_encoder.py)."""
    options = {**OPTIONS, "encoder_normalize_before": True}
    assert converted(Checkpoint(model=of_2019(weights()), options=options), tmp_path).class_name.startswith(
        "XLMRobertaFor"
    )


def test_pre_norm_without_a_last_norm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="model_parallel_roberta_v1"):
        converted(Checkpoint(options={**OPTIONS, "encoder_normalize_before": True}), tmp_path)


def test_no_norm_at_either_end_is_refused(tmp_path: Path) -> None:
    model = OrderedDict((k, v) for k, v in weights().items() if "layernorm_embedding" not in k)
    with pytest.raises(UnsupportedCheckpoint, match="neither a layer norm"):
        converted(Checkpoint(model=model), tmp_path)


def test_without_options_the_heads_are_asked_for(tmp_path: Path) -> None:
    checkpoint = Checkpoint(options={})
    with pytest.raises(UnsupportedCheckpoint, match="attention_heads=N"):
        converted(checkpoint, tmp_path)
    assert config_of(converted(checkpoint, tmp_path, attention_heads=2))["num_attention_heads"] == 2


def test_heads_must_divide_the_width(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="5 attention heads do not divide the width 16"):
        converted(Checkpoint(options={**OPTIONS, "encoder_attention_heads": 5}), tmp_path)


OF_ANOTHER = {
    "encoder_embed_dim": "the width 1024, the weights 16",
    "encoder_layers": "the number of layers 1024, the weights 2",
    "encoder_ffn_embed_dim": "the feed-forward width 1024, the weights 24",
}


@pytest.mark.parametrize("option", OF_ANOTHER)
def test_options_of_another_network_lend_nothing(option: str, tmp_path: Path) -> None:
    """Neither the number of heads nor anything else: not the activation, and not the dropout."""
    others = {"encoder_attention_heads": 8, "activation_fn": "relu", "dropout": 0.3, "no_scale_embedding": False}
    folder = Checkpoint(options={**OPTIONS, **others, option: 1024}).write(tmp_path / "model")
    with pytest.raises(UnsupportedCheckpoint, match=f"{OF_ANOTHER[option]}.*attention_heads=N"):
        convert(folder, tmp_path / "out")
    report = convert(folder, tmp_path / "out", attention_heads=2)
    config = config_of(report)
    assert (config["num_attention_heads"], config["hidden_act"], config["hidden_dropout_prob"]) == (2, "gelu", 0.1)
    assert any(OF_ANOTHER[option] in note for note in report.notes)
    assert json.loads((report.output / "fairseq" / "options.json").read_text()) == {}
    embedding = AutoModelForMaskedLM.from_pretrained(report.output).get_input_embeddings().weight
    assert torch.equal(embedding, weights()[f"{E}embed_tokens.weight"])


def test_an_arch_of_another_size_lends_no_heads(tmp_path: Path) -> None:
    """As where a configuration has lost its sizes: its name says large, and the weights are another network's."""
    kept = {key: OPTIONS[key] for key in ("task", "criterion", "activation_fn")}
    inspected = inspect(Checkpoint(options={**kept, "arch": "roberta_large"}).write(tmp_path / "model"))
    assert "attention_heads=N" in inspected.reasons[0]


def test_pruned_blocks_and_layers_are_no_contradiction(tmp_path: Path) -> None:
    pruned = {
        "encoder_ffn_embed_dim": 48,
        "ffn_blocks_to_remove": 1,
        "encoder_layers_to_keep": "1",
        "encoder_layers": 1,
    }
    inspected = inspect(Checkpoint(options={**OPTIONS, **pruned}).write(tmp_path / "model"))
    assert (inspected.class_name, inspected.attention_heads) == ("XLMRobertaForMaskedLM", HEADS)


def test_an_option_that_json_cannot_hold_is_kept_as_text(tmp_path: Path) -> None:
    """JSON has neither infinities nor NaN, and the file must stay readable for others."""
    odd = {"tokens_per_sample": float("inf"), "quant_noise_pq": {"a": [float("nan"), 0.5]}}
    source = Checkpoint(options={**OPTIONS, **odd}).write(tmp_path / "source")
    convert(source, tmp_path / "out", verify=False)
    kept = json.loads((tmp_path / "out" / "fairseq" / "options.json").read_text(), parse_constant=pytest.fail)
    assert kept["tokens_per_sample"] == "inf" and kept["quant_noise_pq"] == {"a": ["nan", 0.5]}
    assert inspect(source).options == kept


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_dropout_that_is_no_share_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the option dropout is not between 0 and 1"):
        converted(Checkpoint(options={**OPTIONS, "dropout": value}), tmp_path)


def test_the_heads_are_those_of_the_options(tmp_path: Path) -> None:
    """Another number of heads would be another network, which nothing else could tell."""
    with pytest.raises(InputError, match="the options say 4 attention heads, not 2"):
        converted(Checkpoint(), tmp_path, attention_heads=2)


@pytest.mark.parametrize(("arch", "expected"), [("roberta_base", 12), ("roberta_large", 16), ("my_own", None)])
def test_an_arch_tells_the_heads_that_options_omit(arch: str, expected: int | None, tmp_path: Path) -> None:
    """fairseq/models/roberta/model.py fills in what an arch leaves open."""
    options = {key: value for key, value in OPTIONS.items() if key != "encoder_attention_heads"}
    reasons = inspect(Checkpoint(options={**options, "arch": arch}).write(tmp_path / "model"))
    told = reasons.attention_heads or "".join(reasons.reasons)
    assert str(expected or "attention_heads=N") in str(told)


def test_all_reasons_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    model = weights()
    model[f"{E}quant_noise.weight"] = torch.zeros(HIDDEN, HIDDEN)
    options = {**OPTIONS, "activation_fn": "swish", "encoder_attention_heads": 3}
    with pytest.raises(UnsupportedCheckpoint) as caught:
        converted(Checkpoint(model=model, options=options), tmp_path)
    assert len(caught.value.reasons) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "theirs"), [("gelu_accurate", "gelu_pytorch_tanh"), ("relu", "relu"), ("tanh", "tanh")]
)
def test_another_activation_spares_the_encoder(name: str, theirs: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(options={**OPTIONS, "activation_fn": name})
    with pytest.raises(UnsupportedCheckpoint, match="encoder_only=True converts the rest"):
        converted(checkpoint, tmp_path)
    report = converted(checkpoint, tmp_path, encoder_only=True)
    assert (report.class_name, config_of(report)["hidden_act"]) == ("XLMRobertaModel", theirs)


def test_untied_weights_are_kept_apart(tmp_path: Path) -> None:
    model = weights()
    model["encoder.lm_head.weight"] = torch.randn(ROWS, HIDDEN)
    report = converted(Checkpoint(model=model, options={**OPTIONS, "untie_weights_roberta": True}), tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(report.output)
    assert torch.equal(loaded.lm_head.decoder.weight, model["encoder.lm_head.weight"])
    assert torch.equal(loaded.lm_head.decoder.bias, model["encoder.lm_head.bias"])
    assert torch.equal(loaded.get_input_embeddings().weight, model[f"{E}embed_tokens.weight"])


def test_ties_are_found_by_value(tmp_path: Path) -> None:
    """A GPU checkpoint holds the tied matrix twice, in two storages."""
    model = weights()
    model["encoder.lm_head.weight"] = model[f"{E}embed_tokens.weight"].clone()
    report = converted(Checkpoint(model=model), tmp_path)
    assert config_of(report)["tie_word_embeddings"] is True
    assert "ties it" in report.dropped["encoder.lm_head.weight"]


def test_a_matrix_that_should_be_tied_and_is_not_is_refused(tmp_path: Path) -> None:
    model = weights()
    model["encoder.lm_head.weight"] = torch.randn(ROWS, HIDDEN)
    with pytest.raises(UnsupportedCheckpoint, match="differs from the embeddings"):
        converted(Checkpoint(model=model), tmp_path)


def test_scaled_embeddings_give_fairseqs_values(tmp_path: Path) -> None:
    report = converted(Checkpoint(options={**OPTIONS, "no_scale_embedding": False}), tmp_path)
    loaded = AutoModelForMaskedLM.from_pretrained(report.output)
    embedding = weights()[f"{E}embed_tokens.weight"]
    assert torch.equal(loaded.get_input_embeddings().weight, embedding * 4)
    assert torch.equal(loaded.lm_head.decoder.weight, embedding)


def test_sinusoidal_positions_are_written_out(tmp_path: Path) -> None:
    model = weights()
    del model[f"{E}embed_positions.weight"]
    options = {**OPTIONS, "encoder_learned_pos": False, "max_positions": 20}
    report = converted(Checkpoint(model=model, options=options), tmp_path)
    assert config_of(report)["max_position_embeddings"] == 22
    table = AutoModelForMaskedLM.from_pretrained(report.output).roberta.embeddings.position_embeddings.weight
    angles = 5 * np.exp(np.arange(8) * -(np.log(10000) / 7))
    np.testing.assert_allclose(table[5].detach(), np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)


def write_float(folder: Path, model: dict[str, torch.Tensor], options: dict[str, Any]) -> Path:
    """The same checkpoint with its weights in single precision."""
    Checkpoint(model={name: weight.float() for name, weight in model.items()}, options=options).write(folder / "float")
    return folder / "float"


@pytest.mark.parametrize(("dtype", "rounded"), [("auto", True), ("float32", False), ("bfloat16", True)])
def test_computed_numbers_that_are_rounded_are_told(dtype: str, rounded: bool, tmp_path: Path) -> None:
    model = {name: weight.half() for name, weight in weights().items()}
    del model[f"{E}embed_positions.weight"]
    options = {**OPTIONS, "encoder_learned_pos": False, "max_positions": 20}
    Checkpoint(model=model, options=options).write(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", dtype=dtype)
    told = [note for note in report.notes if "position_embeddings.weight in float32 as it runs" in note]
    assert len(told) == rounded
    exact = convert(write_float(tmp_path, model, options), tmp_path / "exact", dtype=dtype)
    table = "roberta.embeddings.position_embeddings.weight"
    same = [load_file(each.output / "model.safetensors")[table] for each in (report, exact)]
    assert dtype == "auto" or torch.equal(*same), "rounded once"


def test_no_positions_at_all(tmp_path: Path) -> None:
    model = weights()
    del model[f"{E}embed_positions.weight"]
    report = converted(Checkpoint(model=model, options={**OPTIONS, "no_token_positional_embeddings": True}), tmp_path)
    assert not AutoModelForMaskedLM.from_pretrained(report.output).roberta.embeddings.position_embeddings.weight.any()


def test_layers_to_keep_prunes_as_fairseq_does_on_load(tmp_path: Path) -> None:
    report = converted(Checkpoint(options={**OPTIONS, "encoder_layers_to_keep": "1"}), tmp_path)
    assert config_of(report)["num_hidden_layers"] == 1
    loaded = AutoModelForMaskedLM.from_pretrained(report.output)
    assert torch.equal(loaded.roberta.encoder.layer[0].intermediate.dense.weight, weights()[f"{E}layers.1.fc1.weight"])


def test_missing_left_over_and_misshapen_weights_are_all_listed(tmp_path: Path) -> None:
    model = weights()
    del model[f"{E}layers.0.fc2.bias"]
    model[f"{E}layers.0.extra"] = torch.zeros(2)
    model[f"{E}layers.1.final_layer_norm.weight"] = torch.ones(3)
    with pytest.raises(WeightsMismatch) as caught:
        converted(Checkpoint(model=model), tmp_path)
    error = caught.value
    assert error.missing == (f"{E}layers.0.fc2.bias",)
    assert error.unexpected == (f"{E}layers.0.extra",)
    assert error.wrong_shape == (f"{E}layers.1.final_layer_norm.weight [3], expected [16]",)
    assert error.exit_code == 1


def test_pruned_heads_and_uneven_widths_are_refused(tmp_path: Path) -> None:
    model = weights()
    model[f"{E}layers.0.self_attn.q_proj.weight"] = torch.zeros(8, HIDDEN)
    model[f"{E}layers.1.fc1.weight"] = torch.zeros(20, HIDDEN)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        converted(Checkpoint(model=model), tmp_path)
    assert len(caught.value.reasons) == 2


# ---- heads -----------------------------------------------------------------------------------------------------------


def with_heads(*names: str, **options: Any) -> Checkpoint:
    model = weights()
    for name in names:
        add_head(model, name)
    return Checkpoint(model=model, options={**OPTIONS, **options})


def test_one_head_makes_a_classifier(tmp_path: Path) -> None:
    report = converted(with_heads("mnli"), tmp_path)
    assert report.class_name == "XLMRobertaForSequenceClassification"
    assert any("LABEL_0" in note for note in report.notes)
    assert AutoModelForSequenceClassification.from_pretrained(report.output).config.num_labels == 3


def test_several_heads_must_be_chosen_from(tmp_path: Path) -> None:
    checkpoint = with_heads("a", "b")
    with pytest.raises(InputError, match="several heads"):
        converted(checkpoint, tmp_path)
    with pytest.raises(InputError, match="no head c; it has a, b"):
        converted(checkpoint, tmp_path, head="c")
    assert (
        "another classification head"
        in converted(checkpoint, tmp_path, head="b").dropped["classification_heads.a.dense.bias"]
    )


def test_the_head_that_was_trained_is_the_default(tmp_path: Path) -> None:
    report = converted(with_heads("a", "b", task="sentence_prediction", classification_head_name="b"), tmp_path)
    assert "classification_heads.b.dense.weight" in report.mapped


def test_head_none_gives_the_masked_lm(tmp_path: Path) -> None:
    assert converted(with_heads("a"), tmp_path, head="none").class_name == "XLMRobertaForMaskedLM"


def test_encoder_only_and_a_head_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exclude"):
        converted(with_heads("a"), tmp_path, head="a", encoder_only=True)


def test_labels_are_the_first_lines_of_their_dictionary(tmp_path: Path) -> None:
    checkpoint = with_heads("mnli")
    folder = checkpoint.write(tmp_path / "model")
    (folder / "label").mkdir()
    (folder / "label" / "dict.txt").write_text("no 5\nyes 4\nmaybe 3\nmadeupword0000 0\n")
    convert(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes", "2": "maybe"}
    (folder / "label" / "dict.txt").write_text("no 5\n")
    with pytest.raises(InputError, match="names 1 labels, but the head has 3"):
        convert(folder, tmp_path / "other")


@pytest.mark.parametrize("options", [{"pooler_activation_fn": "relu"}, {}])
def test_a_head_that_transformers_lacks_is_refused_with_a_hint(options: dict[str, Any], tmp_path: Path) -> None:
    model = weights()
    add_head(model, "odd", inner=HIDDEN if options else 7)
    with pytest.raises(UnsupportedCheckpoint, match="head='none' converts the rest"):
        converted(Checkpoint(model=model, options={**OPTIONS, **options}), tmp_path)


def test_spectral_norm_is_folded_into_the_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(HIDDEN, 3)).eval()
    model = weights()
    add_head(model, "x")
    del model["classification_heads.x.out_proj.weight"]
    for part in ("weight_orig", "weight_u", "weight_v"):
        model[f"classification_heads.x.out_proj.{part}"] = layer.state_dict()[part]
    report = converted(Checkpoint(model=model), tmp_path, head="x")
    loaded = AutoModelForSequenceClassification.from_pretrained(report.output)
    layer(torch.zeros(1, HIDDEN))  # computes the effective matrix
    torch.testing.assert_close(loaded.classifier.out_proj.weight.data, layer.weight.data, rtol=1e-5, atol=1e-6)


def test_a_file_without_lm_head_gives_its_encoder(tmp_path: Path) -> None:
    model = OrderedDict((k, v) for k, v in weights().items() if "lm_head" not in k)
    assert converted(Checkpoint(model=model), tmp_path).class_name == "XLMRobertaModel"
    with pytest.raises(InputError, match="encoder_only=True"):
        convert(tmp_path / "model", tmp_path / "other", head="none")


def test_inspect_tells_the_reasons_without_failing(tmp_path: Path) -> None:
    folder = Checkpoint(options={**OPTIONS, "activation_fn": "swish"}).write(tmp_path / "model")
    inspection = inspect(folder)
    assert (inspection.class_name, inspection.reasons) == (None, ("the activation swish",))


# ---- files that are odd in one place  ---------


def without(name: str) -> Any:
    return lambda model: model.pop(name)


def with_tensor(name: str, tensor: torch.Tensor) -> Any:
    return lambda model: model.update({name: tensor})


HEAD = "classification_heads.x."
ODD_FILES: dict[str, tuple[Any, dict[str, Any], type[Exception]]] = {
    "a head without its bias": (without(f"{HEAD}out_proj.bias"), {}, WeightsMismatch),
    "a head whose bias is a number": (with_tensor(f"{HEAD}out_proj.bias", torch.tensor(1.0)), {}, WeightsMismatch),
    "a head whose matrix is a number": (
        with_tensor(f"{HEAD}dense.weight", torch.tensor(1.0)),
        {},
        UnsupportedCheckpoint,
    ),
    "a layer that is a number": (with_tensor(f"{E}layers.1.fc1.weight", torch.tensor(1.0)), {}, WeightsMismatch),
    "a layer with a name": (with_tensor(f"{E}layers.foo.weight", torch.zeros(1)), {}, WeightsMismatch),
    "a layer of many digits": (with_tensor(f"{E}layers.{'9' * 5000}.fc1.weight", torch.zeros(1)), {}, WeightsMismatch),
    "two positions": (with_tensor(f"{E}embed_positions.weight", torch.zeros(2, HIDDEN)), {}, WeightsMismatch),
    "no positions": (without(f"{E}embed_positions.weight"), {}, WeightsMismatch),
    "dropout that is not a number": (lambda model: None, {"dropout": float("nan")}, InputError),
    "heads beyond numbers": (lambda model: None, {"encoder_attention_heads": 10**400}, UnsupportedCheckpoint),
}


@pytest.mark.parametrize("odd", ODD_FILES)
def test_one_odd_place_is_told_in_a_sentence(odd: str, tmp_path: Path) -> None:
    change, options, error = ODD_FILES[odd]
    model = weights()
    add_head(model, "x")
    change(model)
    with pytest.raises(error):
        converted(Checkpoint(model=model, options={**OPTIONS, **options}), tmp_path, head="x")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_every_missing_weight_is_listed(tmp_path: Path) -> None:
    model = weights()
    lost = (f"{E}layernorm_embedding.bias", f"{E}layers.0.fc1.weight", f"{E}layers.1.fc2.bias")
    for name in lost:
        del model[name]
    with pytest.raises(WeightsMismatch) as caught:
        converted(Checkpoint(model=model), tmp_path)
    assert set(caught.value.missing) == set(lost)


def test_refusals_leave_no_parents_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        convert(tmp_path / "nothing", tmp_path / "a" / "b" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tied_matrix_with_a_flipped_byte_is_damage_and_not_an_untied_one(tmp_path: Path) -> None:
    model = weights()
    model["encoder.lm_head.weight"] = model[f"{E}embed_tokens.weight"].clone()
    folder = Checkpoint(model=model).write(tmp_path / "model")
    data = bytearray((folder / "model.pt").read_bytes())
    matrix = model["encoder.lm_head.weight"].numpy().tobytes()
    data[data.rindex(matrix) + 50] ^= 4
    (folder / "model.pt").write_bytes(data)
    with pytest.raises(IntegrityError, match="checksum"):
        convert(folder, tmp_path / "out")


def test_a_huge_tensor_of_a_small_storage_is_refused_at_once(tmp_path: Path) -> None:
    model = weights()
    for name in (f"{E}embed_tokens.weight", "encoder.lm_head.weight"):
        model[name] = torch.as_strided(torch.zeros(64), (10**12, HIDDEN), (0, 1))
    with pytest.raises(IntegrityError, match="beyond reason"):
        converted(Checkpoint(model=model), tmp_path)


def test_what_data2vec_adds_is_left_behind_and_its_head_refused(tmp_path: Path) -> None:
    model: Any = weights()
    model["encoder._ema"] = {"kept": torch.zeros(1)}
    model["encoder.regression_head.0.weight"] = torch.zeros(1)
    with pytest.raises(UnsupportedCheckpoint, match=r"data2vec.*encoder_only=True"):
        converted(Checkpoint(model=model), tmp_path)
    assert "encoder._ema" in converted(Checkpoint(model=model), tmp_path, encoder_only=True).dropped


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scaled_embeddings_are_proved_with_appended_rows_too(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a root that no precision holds: the widths of these fixtures are squares."""
    for module in (plan, reference):
        monkeypatch.setattr(module, "sqrt", lambda _width: 12**0.5)
    source = shutil.copytree(FIXTURES / "v0122", tmp_path / "source")
    content = torch.load(source / "model.pt", weights_only=False)
    content["cfg"]["model"].no_scale_embedding = False
    torch.save(content, source / "model.pt")
    report = convert(source, tmp_path / "out", dtype=dtype)
    assert any("not in the dictionary" in note for note in report.notes)
    assert any("word_embeddings.weight in float32 as it runs" in note for note in report.notes) == (dtype != "float32")
