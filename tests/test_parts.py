"""Checkpoints written in parts become the very bytes that the whole becomes, and parts that do not fit stop."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import HIDDEN, OPTIONS, ROWS, Checkpoint, E, add_head, fused, of_2019, weights
from places import FIXTURES

from hf_xlmr.conversion import convert, open_checkpoint
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError, WeightsMismatch

Model = OrderedDict[str, torch.Tensor]

# What fairseq/model_parallel splits over the ranks, told by the end of the name; everything else is whole on each.
ON_ROWS = (
    *("embed_tokens.weight", "lm_head.weight", "lm_head.dense.weight", "lm_head.dense.bias"),
    *(f"self_attn.{name}_proj.{part}" for name in "qkv" for part in ("weight", "bias")),
    *("fc1.weight", "fc1.bias"),
)
ON_COLUMNS = ("self_attn.out_proj.weight", "fc2.weight")
HEAD_DENSE = ("dense.weight", "dense.bias")


def split(model: Model, ranks: int) -> list[Model]:
    """The state dicts that Megatron's ranks would save of `model`."""
    parts: list[Model] = [OrderedDict() for _ in range(ranks)]
    for name, tensor in model.items():
        axis = None
        if name.endswith(ON_ROWS) or (name.startswith("classification_heads.") and name.endswith(HEAD_DENSE)):
            axis = 0
        elif name.endswith(ON_COLUMNS):
            axis = 1
        pieces = [tensor] * ranks if axis is None else tensor.chunk(ranks, dim=axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    return parts


def write_parts(folder: Path, parts: list[Model], *, mark: str = "-model_part-", **about: Any) -> Path:
    for rank, part in enumerate(parts):
        Checkpoint(model=part, **about).write(folder, name=f"model{mark}{rank}.pt")
    return folder


def even_rows(multiple: int) -> int:
    """The vocabulary as model-parallel RoBERTa pads it in memory."""
    return -(-ROWS // multiple) * multiple


def converted(source: Path, output: Path, **options: Any) -> bytes:
    return (convert(source, output, verify=False, **options).output / "model.safetensors").read_bytes()


# ---- Megatron's partitions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["-model_part-", "_part"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("norms", ["post", "pre", "both"])
def test_partitions_are_the_whole(norms: str, ranks: int, mark: str, tmp_path: Path) -> None:
    """Split on all of fairseq's axes, with a vocabulary padded to a multiple of 8 x ranks, as it always is there."""
    model = weights(norms=norms, rows=even_rows(8 * ranks))
    whole = Checkpoint(model=model).write(tmp_path / "whole")
    parts = write_parts(tmp_path / "parts", split(model, ranks), mark=mark)
    assert converted(parts, tmp_path / "a") == converted(whole, tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_the_padded_rows_are_kept(tmp_path: Path) -> None:
    rows = even_rows(16)
    assert rows > ROWS
    parts = write_parts(tmp_path / "parts", split(weights(rows=rows), 2))
    with open_checkpoint(parts) as checkpoint:
        assert checkpoint.weights[f"{E}embed_tokens.weight"].shape == (rows, HIDDEN)


def test_partitions_are_verified_against_the_reference(tmp_path: Path) -> None:
    model = weights(norms="pre", rows=even_rows(16))
    report = convert(write_parts(tmp_path / "parts", split(model, 2)), tmp_path / "out")
    assert report.parity is not None and report.class_name == "XLMRobertaXLForMaskedLM"
    assert sorted(report.parity["source_sha256"]) == ["model-model_part-0.pt", "model-model_part-1.pt"]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_classification_head_is_split_too(ranks: int, tmp_path: Path) -> None:
    model = weights(rows=even_rows(8 * ranks))
    add_head(model, "topic")
    whole = Checkpoint(model=model).write(tmp_path / "whole")
    parts = write_parts(tmp_path / "parts", split(model, ranks))
    assert converted(parts, tmp_path / "a") == converted(whole, tmp_path / "b")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_head_of_its_own_and_another_container(is_zip: bool, tmp_path: Path) -> None:
    model = weights(rows=even_rows(16))
    model["encoder.lm_head.weight"] = torch.randn(even_rows(16), HIDDEN)
    untied = {**OPTIONS, "untie_weights_roberta": True}
    whole = Checkpoint(model=model, options=untied).write(tmp_path / "whole", is_zip=is_zip)
    for rank, part in enumerate(split(model, 2)):
        Checkpoint(model=part, options=untied).write(tmp_path / "parts", name=f"model_part{rank}.pt", is_zip=is_zip)
    assert converted(tmp_path / "parts", tmp_path / "a") == converted(whole, tmp_path / "b")


@pytest.mark.parametrize("spelled", [of_2019, fused], ids=["of 2019", "fused projections"])
def test_old_spellings_are_split_as_the_new_ones(spelled: Callable[[Model], Model], tmp_path: Path) -> None:
    model = weights(rows=even_rows(16))
    whole = Checkpoint(model=model).write(tmp_path / "whole")
    parts = write_parts(tmp_path / "parts", [spelled(part) for part in split(model, 2)])
    assert converted(parts, tmp_path / "a") == converted(whole, tmp_path / "b")


@pytest.mark.parametrize(
    "name",
    [
        f"{E}embed_positions.weight",
        f"{E}layernorm_embedding.weight",
        f"{E}layers.0.self_attn.out_proj.bias",
        f"{E}layers.1.fc2.bias",
        f"{E}layers.1.final_layer_norm.bias",
        "encoder.lm_head.bias",
        "encoder.lm_head.layer_norm.weight",
    ],
)
def test_what_is_whole_on_each_rank_must_be_equal(name: str, tmp_path: Path) -> None:
    parts = split(weights(rows=even_rows(16)), 2)
    parts[1][name].view(-1)[-1] += 1e-3
    with pytest.raises(IntegrityError, match=rf"{name} differs between the parts"):
        converted(write_parts(tmp_path / "parts", parts), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_bit_too_many_is_seen(tmp_path: Path) -> None:
    """-0.0 equals 0.0 as a number; as bits, which is what is promised, it does not."""
    parts = split(weights(rows=even_rows(16)), 2)
    for part, zero in zip(parts, (0.0, -0.0), strict=True):
        part[f"{E}layers.0.fc2.bias"][3] = zero
    with pytest.raises(IntegrityError, match="differs between the parts"):
        converted(write_parts(tmp_path / "parts", parts), tmp_path / "out")


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_first_or_a_middle_rank_is_missed_by_its_name(ranks: int, tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", split(weights(rows=even_rows(8 * ranks)), ranks))
    (folder / f"model-model_part-{ranks - 2}.pt").unlink()
    with pytest.raises(InputError, match=rf"not model-model_part-{ranks - 2}\.pt"):
        converted(folder, tmp_path / "out")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("norms", ["post", "pre"])
def test_the_last_rank_is_missed_by_the_shapes(norms: str, ranks: int, tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", split(weights(norms=norms, rows=even_rows(8 * ranks)), ranks))
    (folder / f"model-model_part-{ranks - 1}.pt").unlink()
    with pytest.raises(IntegrityError, match="parts of the checkpoint are missing or too many"):
        converted(folder, tmp_path / "out")


def test_a_rank_twice_is_too_many(tmp_path: Path) -> None:
    parts = split(weights(rows=even_rows(16)), 2)
    with pytest.raises(IntegrityError, match="parts of the checkpoint are missing or too many"):
        converted(write_parts(tmp_path / "parts", [*parts, parts[1]]), tmp_path / "out")


def test_ranks_with_different_names_do_not_add_up(tmp_path: Path) -> None:
    parts = split(weights(rows=even_rows(16)), 2)
    gone, alien = f"{E}layers.1.fc2.bias", "classification_heads.x.dense.bias"
    del parts[1][gone]
    parts[1][alien] = torch.zeros(HIDDEN)
    with pytest.raises(WeightsMismatch) as caught:
        converted(write_parts(tmp_path / "parts", parts), tmp_path / "out")
    assert caught.value.missing == (f"{alien} (not in every part)", f"{gone} (not in every part)")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{E}layers.0.self_attn.q_proj.weight", lambda tensor: tensor[:, :-2]),
        (f"{E}layers.0.self_attn.q_proj.weight", lambda tensor: tensor.half()),
        (f"{E}embed_tokens.weight", lambda tensor: tensor.half()),
        (f"{E}layers.1.fc2.weight", lambda tensor: tensor[:-1]),
        (f"{E}layers.1.fc2.weight", lambda tensor: tensor.half()),
        (f"{E}layers.1.fc2.weight", lambda tensor: tensor.flatten()),
        (f"{E}layers.1.self_attn.out_proj.weight", lambda tensor: tensor[0, 0]),
        (f"{E}layers.0.fc1.bias", lambda tensor: tensor[0]),
    ],
)
def test_parts_that_cannot_lie_side_by_side_are_damage(name: str, change: Any, tmp_path: Path) -> None:
    parts = split(weights(rows=even_rows(16)), 2)
    parts[1][name] = change(parts[1][name]).clone()
    with pytest.raises(IntegrityError, match=name):
        converted(write_parts(tmp_path / "parts", parts), tmp_path / "out")


# ---- FSDP's shards ---------------------------------------------------------------------------------------------------

States = list[dict[str, Any]]
NAMES_OF_FSDP = ("model-shard0.pt", "model-shard1.pt")


def fsdp_states() -> States:
    return [torch.load(FIXTURES / "fsdp" / name, weights_only=False) for name in NAMES_OF_FSDP]


def write_states(folder: Path, states: States, names: tuple[str, ...] = NAMES_OF_FSDP) -> Path:
    folder.mkdir()
    for name, state in zip(names, states, strict=True):
        torch.save(state, folder / name)
    for name in ("dict.txt", "sentencepiece.bpe.model"):
        (folder / name).write_bytes((FIXTURES / "fsdp" / name).read_bytes())
    return folder


def consolidated(states: States) -> Model:
    """The plain weights, by what fairscale's documentation says: join the ranks, cut the padding, split by numels."""
    model: Model = OrderedDict()
    modules = zip(*(state["fsdp_metadata"]["param_metadata"] for state in states), strict=True)
    for ranks in modules:
        prefix = f"{ranks[0]['fsdp_path']}." if ranks[0]["fsdp_path"] else ""
        for key, about in ranks[0]["params"].items():
            runs = [
                state["model"][prefix + key][: state["model"][prefix + key].numel() - rank["params"][key]["padding"]]
                for state, rank in zip(states, ranks, strict=True)
            ]
            pieces = torch.cat(runs).split(about["numels"])
            for name, piece, shape in zip(about["names"], pieces, about["shapes"], strict=True):
                model[prefix + name] = piece.view(shape)
        for holder, borrower in ranks[0]["shared_param_info"]:
            model[prefix + borrower] = model[prefix + holder]
    for name in states[0]["fsdp_metadata"]["buffer_names"]:
        model[name] = states[0]["model"][name]
    return model


def plain(state: dict[str, Any], model: Model) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "fsdp_metadata"} | {"model": model}


def reshared(states: States, ranks: int) -> States:
    """The same model as `ranks` ranks would hold it: torch.chunk, padded to the length of the first."""
    made = [copy.deepcopy(states[0]) for _ in range(ranks)]
    for index, module in enumerate(states[0]["fsdp_metadata"]["param_metadata"]):
        prefix = f"{module['fsdp_path']}." if module["fsdp_path"] else ""
        for key in module["params"]:
            paddings = [state["fsdp_metadata"]["param_metadata"][index]["params"][key]["padding"] for state in states]
            whole = torch.cat([s["model"][prefix + key] for s in states])[: -sum(paddings) or None]
            chunks = list(whole.chunk(ranks))
            chunks += [whole.new_empty(0)] * (ranks - len(chunks))
            for state, chunk in zip(made, chunks, strict=True):
                padding = chunks[0].numel() - chunk.numel()
                state["model"][prefix + key] = torch.nn.functional.pad(chunk, (0, padding))
                state["fsdp_metadata"]["param_metadata"][index]["params"][key]["padding"] = padding
    return made


def test_shards_are_the_whole(tmp_path: Path) -> None:
    states = fsdp_states()
    whole = write_states(tmp_path / "whole", [plain(states[0], consolidated(states))], ("model.pt",))
    assert converted(FIXTURES / "fsdp", tmp_path / "a") == converted(whole, tmp_path / "b")


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_any_number_of_shards_is_the_whole(ranks: int, tmp_path: Path) -> None:
    """Parameters then cross two seams and more, and several ranks are padded."""
    states = fsdp_states()
    shards = write_states(
        tmp_path / "shards", reshared(states, ranks), tuple(f"model-shard{rank}.pt" for rank in range(ranks))
    )
    assert converted(shards, tmp_path / "a") == converted(FIXTURES / "fsdp", tmp_path / "b")


def test_the_older_key_of_the_metadata_is_known(tmp_path: Path) -> None:
    states = fsdp_states()
    for state in states:
        state["shard_metadata"] = state.pop("fsdp_metadata")
    shards = write_states(tmp_path / "shards", states)
    assert converted(shards, tmp_path / "a") == converted(FIXTURES / "fsdp", tmp_path / "b")


def params(state: dict[str, Any], module: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = state["fsdp_metadata"]["param_metadata"][module]["params"]["flat_param_0"]
    return found


def without_metadata(states: States) -> None:
    for state in states:
        del state["fsdp_metadata"]


def without_a_flat_parameter(states: States) -> None:
    del states[1]["model"][f"{E}layers.1.flat_param_0"]


def without_padding(states: States) -> None:
    del params(states[1])["padding"]


def without_names(states: States) -> None:
    del params(states[0], 1)["names"]


def without_a_module(states: States) -> None:
    states[1]["fsdp_metadata"]["param_metadata"].pop()


def with_modules_in_another_order(states: States) -> None:
    states[1]["fsdp_metadata"]["param_metadata"].reverse()


def with_a_name_too_few(states: States) -> None:
    params(states[0], 1)["names"].pop()


def with_a_shape_too_few(states: States) -> None:
    params(states[0], 1)["shapes"].pop()


def with_a_wrong_shape(states: States) -> None:
    params(states[0], 2)["shapes"][0] = (48, 15)


def with_wrong_numels(states: States) -> None:
    numels = params(states[0], 1)["numels"]
    numels[0], numels[1] = numels[1], numels[0]


def with_too_much_padding(states: States) -> None:
    params(states[1])["padding"] = 2


def with_too_little_padding(states: States) -> None:
    params(states[1])["padding"] = 0


def with_negative_padding(states: States) -> None:
    """The sum is right, but it would read beyond the first rank's storage."""
    params(states[0])["padding"], params(states[1])["padding"] = -1, 2


def with_padding_on_the_wrong_rank(states: States) -> None:
    """The sum is right, but every value from there on would be shifted by one."""
    params(states[0])["padding"], params(states[1])["padding"] = 1, 0


def with_padding_in_words(states: States) -> None:
    params(states[1])["padding"] = "one"


def with_a_lender_of_no_name(states: States) -> None:
    module = states[0]["fsdp_metadata"]["param_metadata"][0]
    module["shared_param_info"] = [("encoder.nothing", "encoder.lm_head.weight")]


def with_a_buffer_of_no_name(states: States) -> None:
    states[0]["fsdp_metadata"]["buffer_names"].append("encoder.nothing")


def with_a_matrix_for_a_flat_parameter(states: States) -> None:
    states[0]["model"]["flat_param_0"] = states[0]["model"]["flat_param_0"][None]


def with_ranks_of_two_dtypes(states: States) -> None:
    states[1]["model"]["flat_param_0"] = states[1]["model"]["flat_param_0"].half()


def with_a_shorter_rank(states: States) -> None:
    states[0]["model"]["flat_param_0"] = states[0]["model"]["flat_param_0"][:-10].clone()


@pytest.mark.parametrize(
    "damage",
    [
        without_metadata,
        without_a_flat_parameter,
        without_padding,
        without_names,
        without_a_module,
        with_modules_in_another_order,
        with_a_name_too_few,
        with_a_shape_too_few,
        with_a_wrong_shape,
        with_wrong_numels,
        with_too_much_padding,
        with_too_little_padding,
        with_negative_padding,
        with_padding_on_the_wrong_rank,
        with_padding_in_words,
        with_a_lender_of_no_name,
        with_a_buffer_of_no_name,
        with_a_matrix_for_a_flat_parameter,
        with_ranks_of_two_dtypes,
        with_a_shorter_rank,
    ],
)
def test_shards_that_do_not_fit_their_metadata_are_damage(damage: Callable[[States], None], tmp_path: Path) -> None:
    states = fsdp_states()
    damage(states)
    with pytest.raises(IntegrityError, match="shards and their metadata do not fit together"):
        converted(write_states(tmp_path / "shards", states), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kept", "message"), [(0, "holds 2473 values, its parts 4945"), (1, "not model-shard0.pt")])
def test_a_missing_shard_is_told(kept: int, message: str, tmp_path: Path) -> None:
    folder = write_states(tmp_path / "shards", fsdp_states()[kept : kept + 1], NAMES_OF_FSDP[kept : kept + 1])
    with pytest.raises(HfXlmrError, match=message):
        converted(folder, tmp_path / "out")
