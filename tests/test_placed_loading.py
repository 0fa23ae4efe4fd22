"""Offloaded models answer bit for bit as whole ones, and loading holds one weight at a time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import TESTS
from test_model_shape import FAMILIES, config_of

from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.memory import CPU, DISK
from hf_xlmr.model_shape import ModelShape, Task, shape_of, shape_of_config
from hf_xlmr.placed_loading import load_placed
from hf_xlmr.sharding import plan_placement

BENCHMARK = TESTS / "benchmarks" / "loading.py"
SMALLER = {"num_hidden_layers": 4, "hidden_size": 16}
TASKS = (Task.ENCODER, Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION)


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


def answer(model: Any) -> torch.Tensor:
    ids = torch.tensor([[0, 8, 9, 10, 11, 2], [0, 12, 13, 2, 1, 1]])
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


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_tied_and_untied_heads_are_loaded(tmp_path: Path, is_tied: bool) -> None:
    folder = saved(tmp_path / "model", tie_word_embeddings=is_tied)
    for device in (CPU, DISK):
        assert torch.equal(answer(load_placed(folder, {"": device}, dtype="float32")), whole(folder, "float32"))


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


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    sorted(folder.glob("*.safetensors"))[-1].unlink()
    with pytest.raises(InputError, match="is incomplete"):
        load_placed(folder, {"": CPU}, dtype="float32")


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


def test_a_truncated_shard_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="is damaged"):
        load_placed(folder, {"": CPU}, dtype="float32")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("num_hidden_layers", 5, r"missing: .*layer\.4"), ("intermediate_size", 25, "wrong shape")],
)
def test_weights_that_are_not_the_configs_are_told(tmp_path: Path, field: str, value: int, told: str) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(WeightsMismatch, match=told):
        load_placed(folder, {"": CPU}, dtype="float32")


def test_a_map_that_leaves_something_out_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves out"):
        load_placed(saved(tmp_path / "model"), {"roberta": CPU}, dtype="float32")


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark measures for a model of 145 MB in float32, kept as 72 MB of bfloat16 in shards of 20."""
    command = [sys.executable, BENCHMARK, "--size", "tiny", "--shard", "20MB", "--compute", "float32"]
    work = ["--work", str(tmp_path_factory.mktemp("loading")), "--ways", "hf_xlmr cpu", "hf_xlmr disk", "hf_xlmr mixed"]
    done = subprocess.run([*command, *work], capture_output=True, text=True, check=True)
    first, *others = done.stdout.splitlines()
    found = {row["way"]: row for row in map(json.loads, others)}
    return {**found, "whole": float(first.split()[0]), "shard": float(first.split()[-2])}


def test_loading_onto_the_disk_reads_nothing(rows: dict[str, Any]) -> None:
    assert rows["hf_xlmr disk"]["loading MB"] < rows["shard"]


def test_loading_onto_the_cpu_holds_no_second_copy(rows: dict[str, Any]) -> None:
    assert rows["hf_xlmr cpu"]["loading MB"] < rows["whole"] + 2 * rows["shard"]


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
    assert torch.allclose(answer(model).cpu(), whole(folder, "float32"), atol=1e-4)
