"""The planner's layouts are the best there are, cover the whole model, and say the truth about what fits."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import check_device_map as accelerate_checks
from test_model_shape import EVERY_CLASS, FAMILIES, SIZES, built, config_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_xlmr.errors import InputError
from hf_xlmr.files.memory import CPU, DISK, Device, parse_max_memory
from hf_xlmr.model_shape import ModelShape, Task, shape_of, shape_of_config
from hf_xlmr.placement.planner import DoesNotFit, Placement, activation_bytes, check_device_map, lay_out, plan_placement

PROGRAM = Path(sys.executable).with_name("hf-xlmr")
GIB = 2**30


def small(layers: int, *, kind: str = "xlm-roberta-xl", task: Task = Task.MASKED_LM, **more: Any) -> ModelShape:
    return shape_of_config(config_of(kind, task, **{"num_hidden_layers": layers, **more}))


def used(placement: Placement) -> dict[Device, int]:
    return {share.device: share.weights for share in placement.shares}


@pytest.fixture
def without_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy models are a thousand times smaller than what cuBLAS takes."""
    monkeypatch.setattr("hf_xlmr.placement.planner.GPU_WORKSPACE", 0)


# ---- the best layout -------------------------------------------------------------------------------------------------


def every_layout(shape: ModelShape, devices: list[int]) -> Iterator[list[int]]:
    """Bytes on each device in every layout of blocks that follow each other, devices left out or not."""
    sizes = [block.nbytes("float32") for block in shape.blocks]
    for ends in itertools.combinations_with_replacement(range(len(sizes) + 1), len(devices) - 1):
        cuts = [0, *ends, len(sizes)]
        yield [sum(sizes[first:last]) for first, last in itertools.pairwise(cuts)]


def fullest(loads: list[int], budgets: list[int]) -> list[float]:
    return sorted((load / budget for load, budget in zip(loads, budgets, strict=True)), reverse=True)


def room_left(shape: ModelShape, loads: list[int], budgets: list[int]) -> bool:
    """Whether every device that holds anything also holds its activations; the head computes where it lies."""
    working, scoring = activation_bytes(shape, tokens=8, dtype="float32")
    blocks = shape.blocks
    first, last = blocks[0].nbytes("float32"), blocks[-1].nbytes("float32")
    filled = [index for index, load in enumerate(loads) if load]
    head = filled[0] if shape.is_tied else filled[-1]
    assert first and (last or shape.is_tied)
    return all(loads[index] + max(working, scoring if index == head else 0) <= budgets[index] for index in filled)


@pytest.mark.usefixtures("without_workspace")
@pytest.mark.parametrize("seed", range(40))
def test_no_layout_has_a_smaller_largest_share(seed: int) -> None:
    """Against every layout there is, for equal and unequal devices, tied and untied heads."""
    chance = random.Random(seed)
    shape = small(
        chance.randint(1, 7),
        kind=chance.choice(sorted(FAMILIES)),
        vocab_size=chance.choice([10, 60, 400]),
        tie_word_embeddings=chance.random() < 0.7,
        intermediate_size=chance.choice([8, 24, 100]),
    )
    count = chance.randint(1, 4)
    mean = shape.nbytes("float32") / count
    equal = [int(mean * chance.uniform(1.2, 4))] * count
    budgets = equal if chance.random() < 0.5 else [int(mean * chance.uniform(0.5, 4)) for _ in range(count)]
    possible = [loads for loads in every_layout(shape, [*range(count)]) if room_left(shape, loads, budgets)]
    placement = lay_out(shape, max_memory=dict(enumerate(budgets)), dtype="float32", tokens=8)
    assert placement.fits is bool(possible)
    if possible:
        ours = [used(placement).get(number, 0) for number in range(count)]
        assert fullest(ours, budgets)[0] == min(fullest(loads, budgets)[0] for loads in possible)


def test_xl_on_four_equal_gpus_is_even() -> None:
    """Transformers' own `auto` lays the layers out as 12, 21, 3 and 0."""
    placement = plan_placement(shape_of("xlmr.xl"), max_memory=dict.fromkeys(range(4), 16 * GIB))
    assert [len(share.layers) for share in placement.shares] == [3, 11, 11, 11]
    assert placement.shares[0].modules[:2] == ("roberta.embeddings", "lm_head")


@pytest.mark.usefixtures("without_workspace")
def test_a_device_twice_as_large_gets_twice_the_bytes() -> None:
    placement = plan_placement(small(60), max_memory={0: "4MiB", 1: "8MiB"}, tokens=8)
    first, second = used(placement).values()
    assert second / first == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("tokens", "held"), [(1024, 6_967e6 + 558e6), (8192, 6_967e6 + 4_228e6)])
def test_no_more_is_held_than_is_planned(tokens: int, held: float) -> None:
    """Of PyTorch's own peak with XL in bfloat16 on an H100, which tests/benchmarks/gpu.py measures."""
    placement = plan_placement(shape_of("xlmr.xl"), max_memory={0: 80 * GIB}, dtype="bfloat16", tokens=tokens)
    planned = placement.shares[0].weights + placement.shares[0].activations
    assert held <= planned < 1.03 * held


def test_layers_follow_each_other() -> None:
    placement = plan_placement(shape_of("xlmr.xxl"), max_memory=parse_max_memory("0=24GiB,1=9GiB,cpu=64GiB"))
    assert [layer for share in placement.shares for layer in share.layers] == list(range(48))


# ---- CPU and disk ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_workspace")
def test_cpu_and_disk_get_only_what_the_devices_before_them_cannot_hold() -> None:
    shape = small(40)
    whole, layer = shape.nbytes("float32"), shape.blocks[1].nbytes("float32")
    fits = plan_placement(shape, max_memory={0: 2 * whole, CPU: whole, DISK: None}, tokens=8)
    assert list(used(fits)) == [0]
    spilled = plan_placement(shape, max_memory={0: whole // 2, 1: whole // 4, CPU: whole // 8, DISK: None}, tokens=8)
    assert list(used(spilled)) == [0, 1, CPU, DISK]
    assert all(0 <= share.headroom < layer for share in spilled.shares if share.headroom is not None)


@pytest.mark.usefixtures("without_workspace")
def test_the_first_gpu_keeps_room_for_what_is_brought_to_it() -> None:
    shape = small(40)
    spilled = plan_placement(shape, max_memory={0: shape.nbytes("float32") // 2, CPU: None}, tokens=8)
    assert [share.visitors for share in spilled.shares] == [shape.blocks[1].nbytes("float32"), 0]
    assert spilled.main_device == 0


def test_without_gpus_the_cpu_computes() -> None:
    shape = small(40)
    whole = shape.nbytes("float32")
    assert list(used(plan_placement(shape, max_memory={CPU: 2 * whole}, tokens=8))) == [CPU]
    assert list(used(plan_placement(shape, max_memory={CPU: whole // 2, DISK: None}, tokens=8))) == [CPU, DISK]


def test_a_cpu_too_small_for_the_embeddings_and_a_layer_reads_all_from_disk() -> None:
    shape = small(2, vocab_size=4000)
    embeddings, layer = (block.nbytes("float32") for block in shape.blocks[:2])
    memory = embeddings + layer // 2 + activation_bytes(shape, tokens=1, dtype="float32")[1]
    placement = plan_placement(shape, max_memory={CPU: memory, DISK: None}, tokens=1)
    assert set(placement.device_map.values()) == {DISK}
    assert placement.shares[0].visitors == embeddings


def test_the_disk_alone_does_not_compute() -> None:
    with pytest.raises(InputError, match="does not compute"):
        plan_placement(small(2), max_memory={DISK: None})


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_numbers_and_what_would_fit() -> None:
    with pytest.raises(DoesNotFit, match="does not fit: GPU 0 would need") as caught:
        plan_placement(shape_of("xlmr.xl"), max_memory={0: 12 * GIB}, dtype="float32")
    placement = caught.value.placement
    assert not placement.fits
    assert (placement.shares[0].headroom or 0) < 0
    assert caught.value.exit_code == 2
    assert len(placement.suggestions) == 4
    for option in placement.suggestions:
        assert option in str(caught.value)


def test_what_is_suggested_fits() -> None:
    shape, memory = shape_of("xlmr.xl"), {0: 12 * GIB}
    fits = lay_out(shape, max_memory=memory, dtype="float32")
    assert "bfloat16" in fits.suggestions[0]
    assert plan_placement(shape, max_memory=memory, dtype="bfloat16").fits
    assert "on 2 GPUs" in fits.suggestions[1]
    assert plan_placement(shape, max_memory={0: 12 * GIB, 1: 12 * GIB}, dtype="float32").fits
    size = fits.suggestions[2].partition("cpu=")[2].removesuffix(").")
    assert plan_placement(shape, max_memory={**memory, CPU: size}, dtype="float32").fits
    assert "disk=unlimited" in fits.suggestions[3]
    assert plan_placement(shape, max_memory={**memory, DISK: None}, dtype="float32").fits


def test_a_batch_that_is_too_large_is_told_which_one_fits() -> None:
    memory = {0: 8 * GIB}
    found = lay_out(shape_of("xlmr.large"), max_memory=memory, dtype="float32", tokens=100_000)
    assert found.suggestions[0] == "It fits in bfloat16 with 8192 tokens at a time."
    assert found.suggestions[1] == "It fits with 4096 tokens at a time."
    assert plan_placement(shape_of("xlmr.large"), max_memory=memory, dtype="float32", tokens=4096).fits


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "int4"}, "int4 is none"),
        ({"tokens": 0}, "from 1 to 1,000,000,000,000 tokens"),
        ({"attention": "x"}, "x is none"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        lay_out(small(2), max_memory={0: GIB}, **options)


# ---- room for activations --------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once, beside those it is told to leave out."""

    def __init__(self, left_out: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {each.untyped_storage()._cdata for each in left_out}
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("width", [64, 256, 1024])
@pytest.mark.parametrize("task", [Task.ENCODER, Task.MASKED_LM])
def test_the_room_for_activations_is_enough_and_not_much_more(
    kind: str, attention: str, width: int, task: Task
) -> None:
    """Measured: what PyTorch keeps alive at once in a forward pass of eight texts."""
    sizes = {"hidden_size": 128, "intermediate_size": width, "num_hidden_layers": 2, "max_position_embeddings": 66}
    config = config_of(kind, task, **sizes, **({"vocab_size": 3000} if task is Task.MASKED_LM else {}))
    model = built(config).to_empty(device="cpu").eval()
    for buffer in model.buffers():
        torch.nn.init.zeros_(buffer)
    model.set_attn_implementation(attention)  # type: ignore[operator]
    ids, mask = torch.full((8, 64), 5), torch.ones(8, 64, dtype=torch.long)
    mask[0, 40:] = 0
    counter = Alive([*model.parameters(), *model.buffers(), ids, mask])
    with torch.no_grad(), counter:
        model(input_ids=ids, attention_mask=mask)
    needed = max(activation_bytes(shape_of_config(config), tokens=512, dtype="float32", attention=attention))
    assert counter.peak <= needed <= 1.4 * counter.peak


# ---- the device map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), EVERY_CLASS)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_the_device_map_covers_every_weight_once(kind: str, task: Task, is_tied: bool) -> None:
    config = config_of(kind, task, tie_word_embeddings=is_tied)
    shape, model = shape_of_config(config), built(config)
    budget = shape.nbytes("float32") // 2
    placed = plan_placement(shape, max_memory={0: budget, 1: budget // 2, CPU: None}, tokens=4).device_map
    accelerate_checks(model, placed)
    for name in model.state_dict():
        assert sum(name == key or name.startswith(f"{key}.") for key in placed) == 1, name
    assert set(placed) <= {name for name, _module in model.named_modules()}
    assert check_device_map(placed, shape) == placed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"roberta.encoder.layer.1": None}, r"leaves out roberta\.encoder\.layer\.1\.attention\.self\.query"),
        ({"lm_head": None}, "leaves out lm_head"),
        ({"bert.encoder": 0}, r"has no bert\.encoder"),
        ({"roberta.encoder.layer.11x": 0}, "has no"),
        ({"lm_head": 1}, "the device of the embeddings"),
        ({"lm_head": "tpu"}, "puts lm_head on tpu"),
        ({"lm_head": -1}, "puts lm_head on -1"),
    ],
)
def test_a_map_of_the_users_own_is_checked(change: dict[str, Any], told: str) -> None:
    shape = small(12)
    whole = {module: 0 for block in shape.blocks for module in block.modules} | change
    with pytest.raises(InputError, match=told):
        check_device_map({key: device for key, device in whole.items() if device is not None}, shape)


@pytest.mark.parametrize("device", ["cuda:0", torch.device("cuda", 0), 0, "0"])
def test_devices_of_a_map_may_be_written_in_any_way(device: object) -> None:
    assert check_device_map({"": device}, small(2)) == {"": 0}


def test_a_map_may_name_weights_within_modules() -> None:
    own: Mapping[str, Device] = {"": CPU, "roberta.encoder.layer.0.output.dense.weight": 0}
    assert check_device_map(own, small(2)) == own


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "plan", *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def test_the_command_shows_devices_and_a_sentence(tmp_path: Path) -> None:
    done = run("xlmr.xl", "--max-memory", "0=16GiB,1=16GiB", "--dtype", "bfloat16", "--tokens", "8192", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "layers 0-13, embeddings," in done.stdout
    assert "with 8192 tokens at a time fits" in done.stdout


def test_the_command_ends_with_2_and_the_numbers_where_it_does_not_fit(tmp_path: Path) -> None:
    done = run("xlmr.xxl", "--max-memory", "0=16GiB", "--dtype", "float32", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not fit: GPU 0 would need" in done.stdout
    assert "It fits on" in done.stdout


def test_the_command_gives_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta", **SIZES}))
    done = run(".", "--max-memory", "cpu=1GiB", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert answer["fits"] is True
    assert answer["model"] == "XLMRobertaModel"
    assert set(answer["device_map"].values()) == {"cpu"}


def test_the_command_takes_this_machine_where_no_memory_is_given(tmp_path: Path) -> None:
    assert "CPU" in run("demo", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["demo", "--max-memory", "0=24"], "has no unit"), (["nowhere", "--max-memory", "0=24GiB"], "nowhere")],
)
def test_the_command_tells_what_to_mend(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
