"""A model over several GPUs answers bit for bit as on one device, and nothing moves that need not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from places import FIXTURES
from virtual_gpus import VirtualGPUs

from hf_xlmr import XLMR, FeatureExtractor, collate_tokens
from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError
from hf_xlmr.features.packed.linear_kernels import PlainLinear
from hf_xlmr.model_shape import ModelShape, shape_of, shape_of_config
from hf_xlmr.pipeline import TASK
from hf_xlmr.placement.placed_loading import load_placed

SOURCES: dict[str, tuple[str | Path, dict[str, Any]]] = {
    "XLMRobertaForMaskedLM": ("demo", {}),
    "XLMRobertaXLForMaskedLM": (FIXTURES / "v0122prenorm", {}),
    "RobertaPreLayerNormForMaskedLM": (FIXTURES / "v0122prelayernorm", {}),
    "XLMRobertaForSequenceClassification": (FIXTURES / "v0122cls", {}),
    "XLMRobertaForMaskedLM with two heads": (FIXTURES / "v0122twoheads", {"head": "none"}),
    "XLMRobertaForMultipleChoice": (FIXTURES / "v0122ranking", {}),
}
TEXTS = ["The train leaves.", "a", "And now something that is longer than the others."]
EVERY_MODEL = pytest.mark.parametrize("name", SOURCES)
EVERY_COUNT = pytest.mark.parametrize("count", [2, 3])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {
        name: convert(source, home / name.replace(" ", "-"), verify=False, **options).output
        for name, (source, options) in SOURCES.items()
    }


@pytest.fixture(scope="module")
def whole(folders: dict[str, Path]) -> dict[str, XLMR]:
    """Each model on the CPU."""
    return {name: XLMR.from_pretrained(folder).eval() for name, folder in folders.items()}


def spread(shape: ModelShape, count: int) -> dict[str, Any]:
    """The blocks in their order over all devices, in runs."""
    number = len(shape.blocks)
    return {
        module: min(place * count // number, count - 1)
        for place, block in enumerate(shape.blocks)
        for module in block.modules
    }


def apart(shape: ModelShape, count: int) -> dict[str, Any]:
    """The first block alone on the last device, and each other one on another device than the one before."""
    return {
        module: (place - 1) % count if place else count - 1
        for place, block in enumerate(shape.blocks)
        for module in block.modules
    }


LAYOUTS = pytest.mark.parametrize("layout", [spread, apart])


Over = Callable[[str, int, Any], tuple[VirtualGPUs, XLMR]]


@pytest.fixture(scope="module")
def over(folders: dict[str, Path]) -> Over:
    """Each model over so many virtual GPUs in a layout, loaded once, and the GPUs."""

    @cache
    def loaded(name: str, count: int, layout: Any) -> tuple[VirtualGPUs, XLMR]:
        with VirtualGPUs(count) as gpus:
            places = layout(shape_of(folders[name]), count)
            return gpus, XLMR.from_pretrained(folders[name], device_map=places).eval()

    return loaded


def batch_of(xlmr: XLMR) -> torch.Tensor:
    return collate_tokens(xlmr.encode_batch(TEXTS), 1)


def same(found: Any, expected: Any) -> bool:
    """Bit for bit, whatever holds the tensors."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found.cpu(), expected)
    return len(found) == len(expected) and all(map(same, found, expected))


# ---- every call of XLMR ----------------------------------------------------------------------------------------------


@EVERY_MODEL
@EVERY_COUNT
@LAYOUTS
def test_every_call_answers_as_on_one_device(
    over: Over, whole: dict[str, XLMR], name: str, count: int, layout: Any
) -> None:
    one, batch = whole[name], batch_of(whole[name])
    gpus, xlmr = over(name, count, layout)
    with gpus:
        assert {weight.device.type for weight in xlmr.model.parameters()} == {"cuda"}
        assert xlmr.extract_features(batch).device == xlmr.device
        for tokens in (batch, xlmr.encode(TEXTS[2])):
            assert same(xlmr.extract_features(tokens), one.extract_features(tokens))
            assert same(
                xlmr.extract_features(tokens, return_all_hiddens=True),
                one.extract_features(tokens, return_all_hiddens=True),
            )
            assert same(xlmr.extract_features(tokens, layers=[0, -1]), one.extract_features(tokens, layers=[0, -1]))
        words = [each.extract_features_aligned_to_words(TEXTS[0]).vectors for each in (xlmr, one)]
        assert same(*words)
        for head in one.model.classification_heads:
            assert xlmr.predict(head, batch).device == xlmr.device
            assert same(xlmr.predict(head, batch), one.predict(head, batch))
        if one.model.has_lm_head:
            assert xlmr.fill_mask("The train <mask> at night", topk=3) == one.fill_mask(
                "The train <mask> at night", topk=3
            )
            assert same(xlmr.model(batch.to(xlmr.device))[0], one.model(batch)[0])


@pytest.mark.parametrize("name", list(SOURCES)[:3])
@LAYOUTS
def test_a_head_that_is_registered_later_answers_as_on_one_device(
    folders: dict[str, Path], whole: dict[str, XLMR], name: str, layout: Any
) -> None:
    one = XLMR.from_pretrained(folders[name]).eval()
    one.register_classification_head("fresh", num_classes=3)
    with VirtualGPUs(3):
        xlmr = XLMR.from_pretrained(folders[name], device_map=layout(shape_of(folders[name]), 3)).eval()
        xlmr.register_classification_head("fresh", num_classes=3)
        state = one.model.classification_heads["fresh"].state_dict()
        xlmr.model.classification_heads["fresh"].load_state_dict(state)
        assert same(xlmr.predict("fresh", batch_of(one)), one.predict("fresh", batch_of(one)))


@EVERY_MODEL
@LAYOUTS
def test_gradients_cross_devices(over: Over, folders: dict[str, Path], name: str, layout: Any) -> None:
    one = XLMR.from_pretrained(folders[name]).eval()
    one.extract_features(batch_of(one)).square().sum().backward()
    expected = {key: weight.grad for key, weight in one.model.base.named_parameters()}
    gpus, xlmr = over(name, 2, layout)
    with gpus:
        xlmr.extract_features(batch_of(one)).square().sum().backward()
        found = {key: weight.grad for key, weight in xlmr.model.base.named_parameters()}
        xlmr.zero_grad()
    assert {key: each is None for key, each in found.items()} == {key: each is None for key, each in expected.items()}
    assert all(torch.equal(found[key], each) for key, each in expected.items() if each is not None)


# ---- what moves ------------------------------------------------------------------------------------------------------


@EVERY_MODEL
@EVERY_COUNT
@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_batch_crosses_each_border_once(
    over: Over, folders: dict[str, Path], whole: dict[str, XLMR], name: str, count: int, no_gradients: Any
) -> None:
    """The vectors go from device to device, the mask to each device, tokens in and features out: each once a batch."""
    shape, batch = shape_of(folders[name]), batch_of(whole[name])
    places = spread(shape, count)
    used = list(dict.fromkeys(place for key, place in places.items() if key.startswith(shape.base)))
    end = [place for key, place in places.items() if key.startswith(f"{shape.base}encoder.")][-1]
    end = places.get(f"{shape.base}LayerNorm", end)  # the final norm of a family
    with_layers = {place for key, place in places.items() if ".layer." in key}
    gpus, xlmr = over(name, count, spread)
    with gpus:
        for _again in range(2):
            gpus.moves.clear()
            with no_gradients():
                xlmr.extract_features(batch)
            expected = {("cpu", "cuda:0"): 1, (f"cuda:{end}", "cuda:0"): 1}
            for before, after in pairwise(used):
                pair = (f"cuda:{before}", f"cuda:{after}")
                expected[pair] = expected.get(pair, 0) + 1
            for place in with_layers - {0}:
                pair = ("cuda:0", f"cuda:{place}")
                expected[pair] = expected.get(pair, 0) + 1
            assert dict(gpus.moves) == expected


@pytest.mark.parametrize("name", list(SOURCES)[:3])
@EVERY_COUNT
def test_packed_batches_cross_each_border_once(over: Over, folders: dict[str, Path], name: str, count: int) -> None:
    shape = shape_of(folders[name])
    gpus, xlmr = over(name, count, spread)
    with gpus:
        places = spread(shape, count)
        extractor = FeatureExtractor(xlmr, kernel="plain")
        gpus.moves.clear()
        extractor(TEXTS)
        used = list(dict.fromkeys(place for key, place in places.items() if key.startswith(shape.base)))
        borders = {(f"cuda:{one}", f"cuda:{other}"): 1 for one, other in pairwise(used)}
        assert dict(gpus.moves) == {("cpu", "cuda:0"): 1, (f"cuda:{used[-1]}", "cpu"): 1, **borders}


def attention_of_unequal_lengths(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, _ends: object, *longest: int
) -> torch.Tensor:
    """What torch.nn.attention.varlen.varlen_attn computes, text by text; all are (tokens, heads, width of a head)."""
    assert ends.device == query.device and ends.dtype == torch.int32 and int(ends[-1]) == len(query)
    assert int(ends.diff().max()) == longest[0] == longest[1]
    found = torch.empty_like(query)
    for start, end in pairwise(ends.clone().tolist()):
        parts = (each[start:end].transpose(0, 1) for each in (query, key, value))
        if end > start:
            found[start:end] = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1)
    return found


@pytest.mark.parametrize("has_kernel", [False, True])
@pytest.mark.parametrize("name", list(SOURCES)[:3])
def test_a_batch_takes_one_pinned_block_and_one_copy_and_the_host_waits_only_at_the_end(
    over: Over, whole: dict[str, XLMR], name: str, has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its boundaries, which every layer's attention reads, cross once to each device."""
    texts = [text * repeats for repeats in range(1, 30) for text in TEXTS]
    options: dict[str, Any] = {"kernel": "plain", "tokens_per_batch": 300}
    expected = FeatureExtractor(whole[name], **options)(texts)
    monkeypatch.setattr("hf_xlmr.features.packed.packed_network._has_kernel", lambda *_joined: has_kernel)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attention_of_unequal_lengths)
    gpus, xlmr = over(name, 2, spread)
    with gpus:
        extractor = FeatureExtractor(xlmr, **options)
        (window,) = extractor.texts.windows(enumerate(texts))
        gpus.moves.clear()
        pinned, waits = gpus.pinned, gpus.waits
        computation = extractor._computed(window)
        batches = len(computation.batches)
        if not has_kernel:
            between = {("cuda:0", "cuda:1"): batches}
            assert dict(gpus.moves) == {("cpu", "cuda:0"): batches, **between, ("cuda:1", "cpu"): batches}
        assert gpus.moves["cpu", "cuda:0"] == batches > 10
        assert (gpus.pinned, gpus.waits) == (pinned + batches + 1, waits), "one block is the results' of the window"
        found = extractor._features(computation).layers[extractor.layers[0]]
        assert gpus.waits == waits + 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_small_projections_are_joined_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones keep to the memory of the model itself."""
    with VirtualGPUs(1):
        weights = [torch.randn(4, 3, device="cuda:0") for _ in range(3)]
        biases = [torch.randn(4, device="cuda:0") for _ in range(3)]
        values = torch.randn(5, 3, device="cuda:0")
        joined = PlainLinear(weights, biases)
        monkeypatch.setattr("hf_xlmr.features.packed.linear_kernels.JOINED_BYTES", 3 * 4 * 3 * 4 - 1)
        apart = PlainLinear(weights, biases)
        assert torch.allclose(joined(values), apart(values))
    assert (len(joined._parts), len(apart._parts)) == (1, 3)


# ---- the packed network ----------------------------------------------------------------------------------------------


@EVERY_MODEL
@EVERY_COUNT
@LAYOUTS
@pytest.mark.parametrize("options", [{"layers": (0, 1, -1)}, {"pool": "none"}, {"pool": "max"}], ids=str)
def test_features_of_many_texts_are_those_of_one_device(
    over: Over, whole: dict[str, XLMR], name: str, count: int, layout: Any, options: dict[str, Any]
) -> None:
    expected = FeatureExtractor(whole[name], kernel="plain", **options)(TEXTS)
    gpus, xlmr = over(name, count, layout)
    with gpus:
        found = FeatureExtractor(xlmr, kernel="plain", **options)(TEXTS)
    arrays = [list(each.values()) if isinstance(each, Mapping) else list(each) for each in (found, expected)]
    for one, other in zip(*arrays, strict=True):
        assert np.abs(one - other).max() <= 1e-5  # short texts attend by another kernel on a CPU than on a GPU


# ---- plans -----------------------------------------------------------------------------------------------------------


@EVERY_MODEL
@pytest.mark.parametrize("beside", [{}, {"cpu": None}, {"cpu": None, "disk": None}], ids=["gpus", "cpu", "disk"])
def test_a_plan_over_gpus_and_what_is_beside_them_answers_as_one_device(
    folders: dict[str, Path], whole: dict[str, XLMR], name: str, beside: dict[str, None], tmp_path: Path
) -> None:
    one, shape = whole[name], shape_of(folders[name])
    share = max(block.nbytes("float32") for block in shape.blocks) if beside else shape.nbytes("float32")
    room = share + (34 << 20) + (1 << 20)
    with VirtualGPUs(2, memory=room):
        memory: dict[str | int, str | int | None] = {0: room, 1: room, **beside}
        if "disk" in beside:
            memory["cpu"] = 1 << 16
        xlmr = XLMR.from_pretrained(folders[name], device_map="auto", max_memory=memory, tokens=64).eval()
        assert same(
            xlmr.extract_features(batch_of(one), return_all_hiddens=True),
            one.extract_features(batch_of(one), return_all_hiddens=True),
        )


@pytest.mark.parametrize("name", list(SOURCES)[:4])
@pytest.mark.parametrize("aside", ["cpu", "disk"])
def test_layers_aside_come_to_the_gpu_when_they_are_computed(
    folders: dict[str, Path], whole: dict[str, XLMR], name: str, aside: str
) -> None:
    one, shape = whole[name], shape_of(folders[name])
    places = {**spread(shape, 2), **{f"{shape.base}encoder.layer.{number}": aside for number in (0, 1)}}
    offloaded = sum(f"{shape.base}encoder.layer.{number}." in each.name for each in shape.tensors for number in (0, 1))
    with VirtualGPUs(2) as gpus:
        xlmr = XLMR.from_pretrained(folders[name], device_map=places).eval()
        gpus.moves.clear()
        assert same(xlmr.extract_features(batch_of(one)), one.extract_features(batch_of(one)))
        assert gpus.moves["cpu", "cuda:0"] == offloaded + 1
        for refused in (xlmr.requires_grad_, xlmr.state_dict, lambda: xlmr.load_state_dict({}), xlmr.model.half):
            with pytest.raises(InputError):
                refused()
        with pytest.raises(InputError, match="offloaded"):
            FeatureExtractor(xlmr)


@EVERY_MODEL
def test_a_spread_model_is_not_moved_or_cast(over: Over, name: str) -> None:
    gpus, xlmr = over(name, 2, spread)
    with gpus:
        for refused in (xlmr.cpu, xlmr.half, lambda: xlmr.to("cuda:1"), xlmr.bfloat16):
            with pytest.raises(InputError, match="spread over several devices"):
                refused()


def test_a_gpu_that_is_not_there_is_refused(folders: dict[str, Path]) -> None:
    folder = folders["XLMRobertaForMaskedLM"]
    with VirtualGPUs(2), pytest.raises(InputError, match="device_map"):
        XLMR.from_pretrained(folder, device_map={"": 2})


def test_a_model_on_the_second_gpu_answers_there(folders: dict[str, Path], whole: dict[str, XLMR]) -> None:
    one = whole["XLMRobertaForMaskedLM"]
    with VirtualGPUs(2):
        xlmr = XLMR.from_pretrained(folders["XLMRobertaForMaskedLM"], device="cuda:1").eval()
        features = xlmr.extract_features(batch_of(one))
        assert str(features.device) == "cuda:1"
        assert same(features, one.extract_features(batch_of(one)))
        assert same(xlmr.cpu().extract_features(batch_of(one)), one.extract_features(batch_of(one)))


# ---- Transformers' own doors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOURCES)[:3])
def test_the_pipeline_answers_as_on_one_device(folders: dict[str, Path], name: str) -> None:
    from transformers import AutoModel, AutoTokenizer, pipeline

    folder = folders[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {"layers": [0, 1, -1], "pool": "none"}
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    expected = pipeline(TASK, model=model, tokenizer=tokenizer)(TEXTS, **options)
    with VirtualGPUs(3):
        shape = shape_of(folder)
        found = pipeline(TASK, model=_encoder_over(folder, shape), tokenizer=tokenizer)(TEXTS, batch_size=2, **options)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.allclose(each, whole, atol=1e-5) for each, whole in zip(one, other, strict=True))


def _encoder_over(folder: Path, shape: ModelShape) -> Any:
    """The bare encoder over three devices."""
    config = json.loads((folder / "config.json").read_text())
    bare = shape_of_config({**config, "architectures": [shape.class_name.partition("For")[0] + "Model"]})
    places = {module: place % 3 for place, block in enumerate(bare.blocks) for module in block.modules}
    return load_placed(folder, places, dtype="float32", shape=bare)


# ---- the instrument itself -------------------------------------------------------------------------------------------


@EVERY_MODEL
def test_without_accelerates_hooks_the_devices_do_not_meet(
    folders: dict[str, Path], whole: dict[str, XLMR], name: str
) -> None:
    with VirtualGPUs(2):
        xlmr = XLMR.from_pretrained(folders[name], device_map=spread(shape_of(folders[name]), 2)).eval()
        remove_hook_from_submodules(xlmr.model)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            xlmr.extract_features(batch_of(whole[name]))


def test_virtual_devices_behave_as_cudas_do() -> None:
    with VirtualGPUs(2) as gpus:
        here, there = torch.ones(2, 3, device="cuda:0"), torch.ones(2, 3).to(1)
        assert (here.device, there.device) == (torch.device("cuda", 0), torch.device("cuda", 1))
        for refused in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here @ torch.ones(3, 2),
            lambda: torch.nn.functional.linear(here, there),
            lambda: torch.nn.functional.layer_norm(here, (3,), there[0], there[1]),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            here.numpy()
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            here.to("cuda:2")
        assert (here * torch.tensor(2.0)).device == here.device  # a number may come from the CPU
        assert there[0].device == there.view(3, 2).device == there.detach().device == there.new_zeros(1).device
        assert torch.nn.Parameter(there).device == torch.zeros_like(there).device == torch.device("cuda", 1)
        assert here.to("cuda:0") is here
        assert here.tolist() == [[1.0] * 3] * 2
        assert dict(gpus.moves) == {("cpu", "cuda:1"): 1, ("cuda:0", "cpu"): 1}, "tolist reads from the device"
        module = torch.nn.Linear(3, 2).to("cuda:1")
        assert {each.device for each in module.parameters()} == {torch.device("cuda", 1)}
        assert module(there).device == torch.device("cuda", 1)
        torch.zeros(2, 3).copy_(here)
        assert gpus.moves["cuda:0", "cpu"] == 2
    assert str(torch.ones(1).device) == "cpu"


# ---- the virtual devices themselves ----------------------------------------------------------------------------------

THERE, BACK = ("cpu", "cuda:1"), ("cuda:1", "cpu")
WAYS: dict[str, tuple[Any, tuple[str, str] | None]] = {
    "to": (lambda cpu, gpu: cpu.to("cuda:1"), THERE),
    "cuda": (lambda cpu, gpu: cpu.cuda(1), THERE),
    "cpu": (lambda cpu, gpu: gpu.cpu(), BACK),
    "copy_": (lambda cpu, gpu: gpu.copy_(cpu), THERE),
    "tolist": (lambda cpu, gpu: gpu.tolist(), BACK),
    "tensor": (lambda cpu, gpu: torch.tensor(cpu, device="cuda:1"), THERE),
    "as_tensor": (lambda cpu, gpu: torch.as_tensor(gpu, device="cpu"), BACK),
    "asarray": (lambda cpu, gpu: torch.asarray(cpu, device="cuda:1"), THERE),
    "an index": (lambda cpu, gpu: gpu[torch.tensor([0])], THERE),
    "what is set": (lambda cpu, gpu: gpu.__setitem__(slice(None), cpu), THERE),
    "nothing: as_tensor": (lambda cpu, gpu: torch.as_tensor(gpu, device="cuda:1"), None),
    "nothing: tolist": (lambda cpu, gpu: cpu.tolist(), None),
    "nothing: an index": (lambda cpu, gpu: gpu[gpu.long() * 0], None),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_between_devices_is_counted(way: str) -> None:
    run, expected = WAYS[way]
    with VirtualGPUs(2) as gpus:
        cpu, gpu = torch.ones(3), torch.ones(3, device="cuda:1")
        found = run(cpu, gpu)
        assert dict(gpus.moves) == ({expected: 1} if expected else {})
        if isinstance(found, torch.Tensor) and expected:
            assert str(found.device) == (expected[1] if way != "an index" else "cuda:1")


def test_a_needless_move_that_is_planted_is_counted(folders: dict[str, Path]) -> None:
    """What counts moves through the model sees one more."""
    with VirtualGPUs(1) as gpus:
        xlmr = XLMR.from_pretrained(folders["XLMRobertaForMaskedLM"], device_map={"": 0}).eval()
        batch = batch_of(xlmr).to("cuda:0")
        gpus.moves.clear()
        xlmr.extract_features(batch)
        usual = gpus.moves.total()
        for module in xlmr.model.base.modules():
            if isinstance(module, torch.nn.Embedding):
                module.register_forward_pre_hook(lambda _module, args: (args[0].tolist(), None)[1])
                break
        gpus.moves.clear()
        xlmr.extract_features(batch)
        assert gpus.moves.total() == usual + 1
