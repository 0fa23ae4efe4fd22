"""Offloaded models answer bit for bit as whole ones, and loading holds one weight at a time."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import TESTS
from safetensors.torch import load_file, save_file
from test_model_shape import FAMILIES, config_of

from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.files.memory import CPU, DISK
from hf_xlmr.model_shape import ModelShape, Task, shape_of, shape_of_config
from hf_xlmr.placement.placed_loading import INDEX, check_weights, load_placed, load_whole
from hf_xlmr.placement.planner import plan_placement

BENCHMARK = TESTS / "benchmarks" / "loading.py"

SMALLER = {"num_hidden_layers": 4, "hidden_size": 16}
Load = Callable[[Path], Any]
TASKS = (Task.ENCODER, Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION)


EVERY_ROUTE = pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_whole(folder, device=CPU, dtype="float32"),
        lambda folder: load_placed(folder, {"": DISK}, dtype="float32"),
    ],
    ids=["whole", "placed"],
)


def saved(folder: Path, kind: str = "xlm-roberta-xl", task: Task = Task.MASKED_LM, **more: Any) -> Path:
    """A folder of several shards with random weights."""
    fields = {
        name: value for name, value in config_of(kind, task, **SMALLER, **more).items() if name != "architectures"
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{FAMILIES[kind]}Config")(**fields)
    model = getattr(transformers, FAMILIES[kind] + task.value)(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def answer(model: Any, device: str | int = "cpu") -> torch.Tensor:
    ids = torch.tensor([[0, 8, 9, 10, 11, 2], [0, 12, 13, 2, 1, 1]], device=device)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=(ids != 1).long())
    found: torch.Tensor = output[0]
    return found


def whole(folder: Path, dtype: str) -> torch.Tensor:
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=dtype)
    return answer(model.eval())


def scattered(shape: ModelShape, seed: int) -> dict[str, int | str]:
    """Every block on CPU or disk, by chance."""
    chance = random.Random(seed)
    places: dict[str, int | str] = {}
    for block in shape.blocks:
        places |= dict.fromkeys(block.modules, chance.choice([CPU, DISK]))
    return places


# ---- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloaded_models_answer_as_whole_ones(tmp_path: Path, kind: str, task: Task, dtype: str) -> None:
    folder = saved(tmp_path / "model", kind, task)
    expected = whole(folder, dtype)
    for device_map in ({"": CPU}, {"": DISK}, scattered(shape_of(folder), 1), scattered(shape_of(folder), 2)):
        assert torch.equal(answer(load_placed(folder, device_map, dtype=dtype)), expected), device_map


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_a_model_on_one_device_answers_as_transformers_own(tmp_path: Path, kind: str, task: Task, dtype: str) -> None:
    folder = saved(tmp_path / "model", kind, task)
    model = load_whole(folder, device=CPU, dtype=dtype)
    assert torch.equal(answer(model), whole(folder, dtype))
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_tied_and_untied_heads_are_loaded(tmp_path: Path, is_tied: bool) -> None:
    folder = saved(tmp_path / "model", tie_word_embeddings=is_tied)
    for device in (CPU, DISK):
        assert torch.equal(answer(load_placed(folder, {"": device}, dtype="float32")), whole(folder, "float32"))
    assert torch.equal(answer(load_whole(folder, device=CPU, dtype="float32")), whole(folder, "float32"))


def test_a_model_on_one_device_trains_and_leaves_its_files_alone(tmp_path: Path) -> None:
    """Its weights are its own: neither does training reach the files, nor what becomes of them the model."""
    folder = saved(tmp_path / "model")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = load_whole(folder, device=CPU, dtype="float32")
    first = answer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[0, 8, 2]])).logits.logsumexp(-1).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    optimizer.step()
    trained = answer(model)
    assert not torch.equal(trained, first)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(answer(model), trained)
    assert torch.equal(answer(model.to(torch.float64).to(torch.float32)), trained)


@pytest.mark.parametrize("kind", FAMILIES)
def test_plain_transformers_takes_the_planners_map(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path / "model", kind)
    shape = shape_of(folder)
    placement = plan_placement(shape, max_memory={CPU: shape.nbytes("float32") * 4 // 5, DISK: None}, tokens=1)
    assert set(placement.device_map.values()) == {CPU, DISK}
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, device_map=placement.device_map)
    assert torch.equal(answer(model.eval()), whole(folder, "float32"))


def test_an_offloaded_model_answers_twice_alike(tmp_path: Path) -> None:
    model = load_placed(saved(tmp_path / "model"), {"": DISK}, dtype="float32")
    assert torch.equal(answer(model), answer(model))


def test_the_bare_encoder_is_loaded_out_of_a_model_with_a_head(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    shape = shape_of_config({**config, "architectures": ["XLMRobertaXLModel"]})
    model = load_placed(folder, {"": DISK}, dtype="float32", shape=shape)
    expected = transformers.XLMRobertaXLModel.from_pretrained(folder, add_pooling_layer=False).eval()
    assert torch.equal(answer(model), answer(expected))
    assert model.pooler is None


def test_the_model_is_ready_for_use(tmp_path: Path) -> None:
    model = load_placed(saved(tmp_path / "model"), {"": CPU}, dtype="bfloat16")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "sdpa"
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight


# ---- refusals --------------------------------------------------------------------------------------------------------


@EVERY_ROUTE
def test_a_missing_shard_is_told(tmp_path: Path, load: Load) -> None:
    folder = saved(tmp_path / "model")
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(InputError, match="is incomplete"):
        load(folder)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("xlm-roberta", Task.MASKED_LM)))
    with pytest.raises(InputError, match="holds no weights"):
        load_placed(tmp_path, {"": CPU}, dtype="float32")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {"a": "../b"}}'])
def test_a_damaged_index_is_told(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(IntegrityError):
        load_placed(folder, {"": CPU}, dtype="float32")


@EVERY_ROUTE
@pytest.mark.parametrize("length", [0, 20, -1])
def test_a_truncated_shard_is_told(tmp_path: Path, length: int, load: Load) -> None:
    folder = saved(tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(IntegrityError, match="is truncated or damaged"):
        load(folder)


@EVERY_ROUTE
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_hidden_layers", 5, r"missing: .*layer\.4"),
        ("num_hidden_layers", 3, r"unexpected: roberta\.encoder\.layer\.3\.LayerNorm\.bias, "),
        ("intermediate_size", 25, "wrong shape"),
        ("architectures", ["XLMRobertaXLForSequenceClassification"], r"missing: classifier.*; unexpected: lm_head"),
    ],
)
def test_weights_that_are_not_the_configs_are_told(
    tmp_path: Path, field: str, value: object, told: str, load: Load
) -> None:
    folder = saved(tmp_path / "model")
    configure(folder, field, value)
    with pytest.raises(WeightsMismatch, match=told):
        load(folder)


@EVERY_ROUTE
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("hidden_act", "swoosh", "hidden_act is 'swoosh'"),
        ("hidden_act", 3, "hidden_act"),
        ("layer_norm_eps", "small", "layer_norm_eps"),
        ("id2label", "names", "config.json is damaged"),
        ("num_attention_heads", 3, "multiple of the number of attention heads"),
        ("hidden_dropout_prob", 7, "dropout"),
        ("vocab_size", "many", "vocab_size is 'many'"),
    ],
)
def test_a_config_that_cannot_be_used_is_told(tmp_path: Path, field: str, value: object, told: str, load: Load) -> None:
    folder = saved(tmp_path / "model")
    configure(folder, field, value)
    with pytest.raises((InputError, IntegrityError), match=told):
        load(folder)


def configure(folder: Path, field: str, value: object) -> None:
    """Write one field of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))


EMBEDDING = "roberta.embeddings.word_embeddings.weight"


def stored_with(folder: Path, **weights: torch.Tensor) -> Path:
    """The folder with all weights in one file, and some put in or replaced; a double underscore is a dot."""
    held = {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
    held |= {name.replace("__", "."): weight.clone() for name, weight in weights.items()}
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@EVERY_ROUTE
@pytest.mark.parametrize("name", ["roberta.embeddings.position_ids", "roberta.pooler.dense.weight"])
def test_what_the_class_does_without_may_lie_in_the_file(tmp_path: Path, name: str, load: Load) -> None:
    folder = saved(tmp_path / "model")
    expected = whole(folder, "float32")
    stored_with(folder, **{name.replace(".", "__"): torch.zeros(3)})
    assert torch.equal(answer(load(folder)), expected)


@EVERY_ROUTE
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_names_under_which_a_release_of_transformers_saves_are_read(
    tmp_path: Path, kind: str, task: Task, load: Load
) -> None:
    """Transformers 5.0 to 5.7 writes `LayerNorm.gamma` and `.beta`, which each release reads."""
    folder = saved(tmp_path / "model", kind, task)
    expected, changed = whole(folder, "float32"), 0
    for file in folder.glob("*.safetensors"):
        held = load_file(file)
        renamed = {of_transformers_5_0(name): weight for name, weight in held.items()}
        changed += len(renamed.keys() - held.keys())
        save_file(renamed, file, metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {of_transformers_5_0(name): file for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    assert changed > 4
    assert torch.equal(whole(folder, "float32"), expected)
    assert torch.equal(answer(load(folder)), expected)
    check_weights(folder)


def of_transformers_5_0(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@EVERY_ROUTE
def test_a_norm_under_both_names_is_refused(tmp_path: Path, load: Load) -> None:
    folder = saved(tmp_path / "model")
    file = next(file for file in folder.glob("*.safetensors") if any("LayerNorm" in name for name in load_file(file)))
    held = load_file(file)
    name = next(name for name in held if name.endswith("LayerNorm.weight"))
    twice = of_transformers_5_0(name)
    save_file(held | {twice: held[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match=re.escape(twice)):
        load(folder)


@EVERY_ROUTE
@pytest.mark.parametrize("name", ["roberta.encoder.layer.0.adapter.weight", "embeddings.word_embeddings.weight"])
def test_what_the_class_does_not_know_is_refused_by_name(tmp_path: Path, name: str, load: Load) -> None:
    folder = stored_with(saved(tmp_path / "model"), **{name.replace(".", "__"): torch.zeros(3)})
    with pytest.raises(WeightsMismatch) as refused:
        load(folder)
    assert refused.value.unexpected == (name,)


@EVERY_ROUTE
def test_a_tied_weight_may_be_stored_twice_but_not_with_other_values(tmp_path: Path, load: Load) -> None:
    folder = saved(tmp_path / "model")
    expected = whole(folder, "float32")
    weights = {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
    stored_with(folder, lm_head__decoder__weight=weights[EMBEDDING], lm_head__decoder__bias=weights["lm_head.bias"])
    assert torch.equal(answer(load(folder)), expected)
    other = weights[EMBEDDING].clone()
    other[-1, -1] += 1
    save_file(weights | {"lm_head.decoder.weight": other}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"ties lm_head\.decoder\.weight"):
        load(folder)


@EVERY_ROUTE
def test_quantized_weights_are_refused(tmp_path: Path, load: Load) -> None:
    folder = stored_with(saved(tmp_path / "model"), lm_head__bias=torch.zeros(50, dtype=torch.int8))
    with pytest.raises(InputError, match=r"lm_head\.bias as I8: quantized"):
        load(folder)


@EVERY_ROUTE
def test_a_shard_that_is_another_is_told(tmp_path: Path, load: Load) -> None:
    folder = saved(tmp_path / "model")
    first, second, *_others = sorted(folder.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(IntegrityError, match=f"{second.name} is damaged: it does not hold"):
        load(folder)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("xlm-roberta", Task.MASKED_LM)))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not read.*save it again"):
        load_whole(tmp_path, device=CPU, dtype="float32")


def test_a_map_that_leaves_something_out_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves out"):
        load_placed(saved(tmp_path / "model"), {"roberta": CPU}, dtype="float32")


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark measures for a model of 145 MB in float32, kept as 72 MB of bfloat16 in shards of 20."""
    command = [sys.executable, BENCHMARK, "--size", "tiny", "--shard", "20MB", "--compute", "float32"]
    work = [
        "--work",
        str(tmp_path_factory.mktemp("loading")),
        "--ways",
        "hf_xlmr cpu",
        "hf_xlmr disk",
        "hf_xlmr mixed",
        "hf_xlmr whole",
    ]
    done = subprocess.run([*command, *work], capture_output=True, text=True, check=True)
    first, *others = done.stdout.splitlines()
    found = {row["way"]: row for row in map(json.loads, others)}
    return {**found, "whole": float(first.split()[0]), "shard": float(first.split()[-2])}


def test_loading_onto_the_disk_reads_nothing(rows: dict[str, Any]) -> None:
    assert rows["hf_xlmr disk"]["loading MB"] < rows["shard"]


@pytest.mark.parametrize("way", ["cpu", "whole"])
def test_loading_onto_the_cpu_holds_no_second_copy(way: str, rows: dict[str, Any]) -> None:
    assert rows[f"hf_xlmr {way}"]["loading MB"] < rows["whole"] + 2 * rows["shard"]


def test_answers_are_the_same_wherever_the_weights_are(rows: dict[str, Any]) -> None:
    assert len({row["answer"] for row in rows.values() if isinstance(row, dict)}) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_model_over_gpus_answers_as_a_whole_one(tmp_path: Path) -> None:
    """With several GPUs, as the planner lays them out; answers are within what a GPU's matrix products differ by."""
    folder = saved(tmp_path / "model")
    shape = shape_of(folder)
    memory = dict.fromkeys(range(torch.cuda.device_count()), "1GiB")
    placement = plan_placement(shape, max_memory=memory, dtype="float32")
    model = load_placed(folder, placement.device_map, dtype="float32", main_device=placement.main_device)
    assert torch.allclose(answer(model, placement.main_device).cpu(), whole(folder, "float32"), atol=1e-4)
