"""Each spelling of fairseq's history gives the same network, and what has no place is named with its reason."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from factory import Checkpoint, E, add_head, fused, half_fused, of_2019, weights

from hf_xlmr.conversion import convert, inspect, open_checkpoint
from hf_xlmr.conversion.checkpoint.weights import read_array
from hf_xlmr.errors import InputError, UnsupportedCheckpoint, WeightsMismatch

Model = OrderedDict[str, torch.Tensor]


def opened(model: Model, folder: Path) -> dict[str, torch.Tensor]:
    """The weights under the newest names."""
    with open_checkpoint(Checkpoint(model=model).write(folder)) as checkpoint:
        return {name: torch.from_numpy(read_array(weight).copy()) for name, weight in checkpoint.weights.items()}


def prefixed(prefix: str) -> Callable[[Model], Model]:
    return lambda model: OrderedDict((prefix + name, tensor) for name, tensor in model.items())


def very_old_norms(model: Model) -> Model:
    return OrderedDict(
        (name.replace("self_attn_layer_norm", "layer_norms.0").replace("final_layer_norm", "layer_norms.1"), tensor)
        for name, tensor in model.items()
    )


DIALECTS: dict[str, Callable[[Model], Model]] = {
    "newest": lambda model: model,
    "0.9.0": of_2019,
    "before October 2019": lambda model: of_2019(fused(model)),
    "25 October 2019": lambda model: of_2019(half_fused(model)),
    "0.10": lambda model: OrderedDict(
        (k.replace("layernorm_embedding", "emb_layer_norm"), v) for k, v in model.items()
    ),
    "before 0.6": very_old_norms,
    "hub state_dict": lambda model: OrderedDict(prefixed("model.")(model), _float_tensor=torch.zeros(1)),
    "DataParallel": prefixed("module."),
    "InfoXLM": lambda model: OrderedDict(
        {**prefixed("model_fast.")(model), **prefixed("model_slow.")(weights(seed=9)), "queue": torch.zeros(2, 2)}
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_spelling_gives_the_same_weights(dialect: str, tmp_path: Path) -> None:
    expected = opened(weights(), tmp_path / "newest")
    found = opened(DIALECTS[dialect](weights()), tmp_path / "old")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def decoys(model: Model, value: float) -> Model:
    """The eight parameters per layer that fairseq 0.12.2 registers and never trains."""
    shapes = {"in_proj": (48, 16), "out_proj": (16, 16), "fc1": (24, 16), "fc2": (16, 24)}
    for number in range(2):
        for module, shape in shapes.items():
            model[f"{E}layers.{number}.{module}_weight"] = torch.full(shape, value)
            model[f"{E}layers.{number}.{module}_bias"] = torch.full(shape[:1], value)
    return model


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_the_decoys_of_0_12_2_are_left_behind(value: float, tmp_path: Path) -> None:
    with open_checkpoint(Checkpoint(model=decoys(weights(), value)).write(tmp_path / "model")) as checkpoint:
        assert len([name for name, reason in checkpoint.dropped.items() if "0.12.2" in reason]) == 16
        assert checkpoint.weights.keys() == opened(weights(), tmp_path / "plain").keys()


def test_a_fused_copy_beside_separate_projections_is_stale(tmp_path: Path) -> None:
    model = weights()
    model[f"{E}layers.0.self_attn.in_proj_weight"] = torch.zeros(48, 16)
    with open_checkpoint(Checkpoint(model=model).write(tmp_path / "model")) as checkpoint:
        assert "next to the separate projections" in checkpoint.dropped[f"{E}layers.0.self_attn.in_proj_weight"]


def test_two_spellings_of_one_weight_are_refused(tmp_path: Path) -> None:
    model = weights()
    model[f"{E}emb_layer_norm.weight"] = torch.zeros(16)
    with pytest.raises(WeightsMismatch, match="a second encoder"):
        opened(model, tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{E}quant_noise.weight", "quantization noise"),
        (f"{E}layers.0.self_attn.compress_k.weight", "Linformer"),
        (f"{E}layers.0.self_attn.bias_k", "add-bias-kv"),
        (f"{E}segment_embeddings.weight", "BERT or XLM"),
        ("decoder.layers.0.fc1.weight", "encoder-decoder"),
    ],
)
def test_what_transformers_lacks_is_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    model = weights()
    model[name] = torch.zeros(16)
    with pytest.raises(UnsupportedCheckpoint, match=reason):
        convert(Checkpoint(model=model).write(tmp_path / "model"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_moving_average_is_an_option(tmp_path: Path) -> None:
    average = weights(seed=5)
    checkpoint = Checkpoint(more={"extra_state": {"ema": average}})
    folder = checkpoint.write(tmp_path / "model")
    with open_checkpoint(folder, ema=True) as opened_average:
        read = read_array(opened_average.weights[f"{E}embed_tokens.weight"])
        assert torch.equal(torch.from_numpy(read.copy()), average[f"{E}embed_tokens.weight"])
    with open_checkpoint(folder) as plain:
        assert plain.has_ema
    without = Checkpoint().write(tmp_path / "without")
    with pytest.raises(InputError, match="no moving average"), open_checkpoint(without, ema=True):
        pass


def test_heads_are_listed_in_the_files_order(tmp_path: Path) -> None:
    model = weights()
    add_head(model, "b")
    add_head(model, "a")
    with open_checkpoint(Checkpoint(model=model).write(tmp_path / "model")) as checkpoint:
        assert checkpoint.heads == ("b", "a")


# ---- weights beside the model ----------------------------------------------------------------------------------------

KNOWN_BESIDE = {
    "q_linear.weight": "XLM-Align",
    "k_linear.bias": "XLM-Align",
    "ke_heads.wikiData.relation_emb.weight": "KEPLER",
    "ke_heads.wikiData.gamma": "KEPLER",
}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_only_the_training_of_a_known_project_used_is_left_behind_by_name(prefix: str, tmp_path: Path) -> None:
    model = weights()
    model.update({name: torch.ones(3) for name in KNOWN_BESIDE})
    report = convert(Checkpoint(model=prefixed(prefix)(model)).write(tmp_path / "m"), tmp_path / "out", verify=False)
    assert report.class_name == "XLMRobertaForMaskedLM"
    assert all(project in report.dropped[name] for name, project in KNOWN_BESIDE.items())


INFOXLM_BESIDE = {
    "queue": torch.ones(4, 16),
    "enqueue_cnt": torch.ones(1, dtype=torch.long),
    "queue_ptr": torch.ones(1, dtype=torch.long),
    "proj_matrix_fast": torch.ones(1, 16, 16),
    "proj_matrix_slow": torch.ones(1, 16, 16),
}


def infoxlm(*, outer: str = "", inner: str = "", copies: Sequence[str] = ("model_slow", "model_fast")) -> Model:
    """InfoXLM's training file: two copies that differ, a queue and projections, in the order of its code."""
    seeds = {"model_slow": 9, "model_fast": 0}
    both = {
        name: each for copy in copies for name, each in prefixed(f"{copy}.{inner}")(weights(seed=seeds[copy])).items()
    }
    return prefixed(outer)(OrderedDict({**INFOXLM_BESIDE, **both}))


@pytest.mark.parametrize("copies", [("model_slow", "model_fast"), ("model_fast", "model_slow"), ("model_fast",)])
@pytest.mark.parametrize("inner", ["", "module.", "module.model."])
@pytest.mark.parametrize("outer", ["", "module.", "model.module."])
def test_of_infoxlm_the_trained_copy_is_read_wherever_it_is(
    outer: str, inner: str, copies: Sequence[str], tmp_path: Path
) -> None:
    """A wrapper around both copies, or around each; nothing of the slow copy or of the queue stays without a reason."""
    folder = Checkpoint(model=infoxlm(outer=outer, inner=inner, copies=copies)).write(tmp_path / "m")
    with open_checkpoint(folder) as checkpoint:
        assert not checkpoint.beside
        left = [name for name, reason in checkpoint.dropped.items() if "InfoXLM" in reason]
        assert len(left) == len(INFOXLM_BESIDE) + len(weights()) * (len(copies) - 1)
        found = {name: read_array(weight) for name, weight in checkpoint.weights.items()}
    assert all(torch.equal(torch.from_numpy(found[name].copy()), weights()[name]) for name in found)
    assert found.keys() == weights().keys() - {f"{E}version"}


@pytest.mark.parametrize(("outer", "inner"), [("", ""), ("module.", "model.")])
def test_infoxlm_is_proved_against_its_trained_copy(outer: str, inner: str, tmp_path: Path) -> None:
    """Its code writes the slow copy first."""
    folder = Checkpoint(model=infoxlm(outer=outer, inner=inner)).write(tmp_path / "m")
    assert convert(folder, tmp_path / "out").parity is not None


def test_a_copy_next_to_the_model_is_not_taken_for_it(tmp_path: Path) -> None:
    model = OrderedDict({**prefixed("momentum.")(weights(seed=9)), **weights()})
    folder = Checkpoint(model=model).write(tmp_path / "m")
    with pytest.raises(UnsupportedCheckpoint, match=r"weights outside the encoder.*momentum\.encoder"):
        convert(folder, tmp_path / "out")
    assert convert(folder, tmp_path / "out", encoder_only=True).parity is not None


@pytest.mark.parametrize("damage", ["no trained copy", "no trained embeddings"])
def test_infoxlms_average_is_not_taken_for_the_model(damage: str, tmp_path: Path) -> None:
    model = infoxlm(copies=("model_slow",)) if damage == "no trained copy" else infoxlm()
    model.pop(f"model_fast.{E}embed_tokens.weight", None)
    folder = Checkpoint(model=model).write(tmp_path / "m")
    with pytest.raises(InputError, match=r"InfoXLM's average alone \(model_slow\).* no embeddings under model_fast"):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("stray", ["projection.weight", "tagging_heads.ner.dense.weight", "qa_outputs.bias", "scale"])
def test_a_weight_beside_the_model_that_nobody_knows_is_refused_by_name(
    stray: str, prefix: str, tmp_path: Path
) -> None:
    folder = Checkpoint(model=OrderedDict({**prefixed(prefix)(weights()), stray: torch.ones(2)})).write(tmp_path / "m")
    with pytest.raises(UnsupportedCheckpoint, match=rf"\({stray}\)\. encoder_only=True leaves them behind") as caught:
        convert(folder, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert stray in inspect(folder).reasons[0]
    for wish in ({"encoder_only": True}, {"head": "none"}):
        report = convert(folder, tmp_path / "out", overwrite=True, verify=False, **wish)
        assert "outside of fairseq's model" in report.dropped[stray]


def test_what_lies_beside_the_model_need_not_be_a_tensor(tmp_path: Path) -> None:
    folder = Checkpoint(model=OrderedDict({**weights(), "languages": ["de", "fr"], "step": 5})).write(tmp_path / "m")
    with pytest.raises(UnsupportedCheckpoint, match="languages, step"):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize("stray", ["encoder.projection.weight", f"{E}adapter.weight", f"{E}layers.0.gate"])
def test_an_unknown_weight_inside_the_encoder_stays_an_error(stray: str, tmp_path: Path) -> None:
    """It can change what the encoder computes."""
    folder = Checkpoint(model=OrderedDict({**weights(), stray: torch.ones(2)})).write(tmp_path / "m")
    for encoder_only in (False, True):
        with pytest.raises(WeightsMismatch, match=stray):
            convert(folder, tmp_path / "out", encoder_only=encoder_only)


@pytest.mark.parametrize(
    "names", [("student", "teacher"), ("encoder_k", "encoder_q"), ("my_model_fast", "my_model_slow")]
)
def test_of_several_models_none_is_chosen_by_chance(names: tuple[str, str], tmp_path: Path) -> None:
    both = {**prefixed(f"{names[0]}.")(weights()), **prefixed(f"{names[1]}.")(weights(seed=9))}
    folder = Checkpoint(model=OrderedDict(both)).write(tmp_path / "m")
    with pytest.raises(InputError, match=rf"several models \({names[0]}, {names[1]}\)"), open_checkpoint(folder):
        pass
