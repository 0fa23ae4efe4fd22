"""Features in int8 are near those in float32, and how near is measured on texts before any is written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm_processes
from extractions import OPTIONS, model, texts_of, write
from places import FIXTURES

from hf_xlmr import XLMR, FeatureExtractor
from hf_xlmr.errors import InputError
from hf_xlmr.features.bulk_extraction import extract
from hf_xlmr.features.packed import int8_network
from hf_xlmr.features.packed.int8_linear import InputRange, Int8Linear, raise_if_no_int8
from hf_xlmr.features.packed.int8_quality import TooFarFromFloat32
from hf_xlmr.model.model_shape import shape_of_config
from hf_xlmr.placement.planner import lay_out

__all__ = ["model"]

pytestmark = pytest.mark.usefixtures("cache_folder")
NAMES = {
    "demo": "demo",
    **{name: FIXTURES / name for name in ("v0122prenorm", "v0122prelayernorm", "v0122cls", "v091")},
}
NAMES = {name: path for name, path in NAMES.items() if path == "demo" or Path(path).is_dir()}
TEXTS = ["The train leaves in the evening.", "", "नमस्ते दुनिया", "a", "Ein ziemlich langer Satz. " * 12]
INT8 = replace(OPTIONS, dtype="int8")


def product_error(weight: torch.Tensor, inputs: torch.Tensor, **options: Any) -> float:
    """By how much the 8-bit product of `inputs` differs from the exact one, relative to it."""
    bias = torch.linspace(-1, 1, len(weight))
    with torch.inference_mode():
        found = Int8Linear([weight], [bias], inputs=InputRange.of(options.pop("sample", inputs)), **options)(inputs)
    exact = torch.nn.functional.linear(inputs.double(), weight.double(), bias.double())
    if options:
        exact = torch.nn.functional.gelu(exact)
    return float((found - exact).norm() / exact.norm())


# ---- products


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 7, 513])
def test_a_product_is_near_the_exact_one(rows: int) -> None:
    assert product_error(numbers(96, 64) / 8, numbers(rows, 64, seed=1)) < 0.02


SATURATING = """
import torch
from hf_xlmr.features.packed.int8_linear import Int8Linear, InputRange
inputs, weight = torch.full((4, 256), 3.0), torch.full((32, 256), 0.7)
linear = Int8Linear([weight], [torch.zeros(32)], inputs=InputRange(torch.full((256,), -3.0), torch.full((256,), 3.0)))
with torch.inference_mode():
    print(float((linear(inputs) / (256 * 3 * 0.7) - 1).abs().max()) < 1e-5)
"""


@pytest.mark.parametrize("limit", ["AVX2", "ALL"])
def test_sums_of_the_largest_numbers_do_not_saturate(limit: str, cache_folder: Path) -> None:
    """Processors without VNNI add two products in 16 bits, which the largest weights and inputs overflow."""
    environment = {"ONEDNN_MAX_CPU_ISA": limit, "HF_XLMR_CACHE": str(cache_folder)}
    assert warm_processes.run([sys.executable, "-c", SATURATING], env=environment, check=True).stdout == "True\n"


def test_a_channel_that_is_much_larger_than_the_others_does_not_take_their_levels() -> None:
    inputs, weight = numbers(64, 64), numbers(96, 64, seed=1) / 8
    inputs[:, 5] *= 300
    weight[:, 5] /= 300
    known = product_error(weight, inputs)
    assert known < 0.02
    assert product_error(weight, inputs, sample=torch.ones(64, 64)) > 2 * known  # so the sample is what helps


def test_inputs_that_are_nearly_all_above_zero_use_nearly_all_levels_for_that() -> None:
    weight, above = numbers(96, 64) / 8, torch.nn.functional.gelu(numbers(64, 64, seed=1) * 3)
    mirrored = torch.cat([above, -above])  # which has no such middle
    assert product_error(weight, above) < product_error(weight, above, sample=mirrored)


def test_channels_of_zeros_and_weights_of_zeros_are_zeros() -> None:
    inputs, weight = numbers(8, 64), numbers(16, 64, seed=1)
    inputs[:, :32], weight[:, 16:48], inputs[3] = 0, 0, 0
    assert product_error(weight, inputs) < 0.02


def test_the_activation_and_the_residual_are_added_in_each_band() -> None:
    weight, inputs, residual = numbers(64, 64) / 8, numbers(1100, 64, seed=1), numbers(1100, 64, seed=2)
    assert product_error(weight, inputs, activation="gelu") < 0.03
    with torch.inference_mode():
        linear = Int8Linear([weight], [torch.zeros(64)], inputs=InputRange.of(inputs))
        torch.testing.assert_close(linear.plus(inputs, residual), linear(inputs) + residual, rtol=0, atol=1e-6)


def test_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match=r"int8 is for CPUs, and the model is on cuda: use bfloat16"):
        raise_if_no_int8(torch.device("cuda"))


# ---- features


@pytest.mark.parametrize("pool", ["mean", "cls", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_vectors_point_where_float32_points(name: str, pool: str) -> None:
    xlmr = XLMR.from_pretrained(NAMES[name]).eval()
    exact = FeatureExtractor(xlmr, pool=pool, layers=(1, -1))(TEXTS)
    extractor = FeatureExtractor(xlmr, pool=pool, layers=(1, -1), dtype="int8", sample=TEXTS)
    near = extractor(TEXTS)
    cosines = np.concatenate(
        [
            (one * other).sum(-1).ravel() / (np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)).ravel()
            for layer in exact
            for one, other in zip(exact[layer], near[layer], strict=True)
        ]
    )
    assert cosines.min() >= 0.99 and cosines.mean() >= 0.999
    assert (extractor.dtype, extractor.kernel) == (torch.int8, "int8")
    assert extractor.int8 is not None and extractor.int8.lowest >= 0.99
    if pool != "none":  # the sample is what was computed: the report says the same
        np.testing.assert_allclose(extractor.int8.mean, cosines.mean(), rtol=0, atol=1e-3)


def test_reading_from_files_gives_the_same_bits_as_a_loaded_network() -> None:
    xlmr = XLMR.from_pretrained("demo").eval()
    loaded, read = FeatureExtractor(xlmr, dtype="int8"), FeatureExtractor.from_pretrained("demo", dtype="int8")
    np.testing.assert_array_equal(loaded(TEXTS), read(TEXTS))
    assert loaded.int8 == read.int8


def test_a_product_that_int8_would_change_too_much_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_network, "LARGEST_ERROR", 0.0)
    extractor = FeatureExtractor.from_pretrained("demo", dtype="int8")
    assert extractor.int8 is not None
    assert extractor.int8.float32_products[:5] == ("1.attention", "1.attention output", "1.up", "1.down", "2.attention")
    exact = FeatureExtractor.from_pretrained("demo")(TEXTS)
    np.testing.assert_allclose(extractor(TEXTS), exact, rtol=0, atol=1e-5)


def test_vectors_that_are_too_far_from_float32_are_refused_with_the_numbers() -> None:
    with pytest.raises(TooFarFromFloat32, match=r"the lowest cosine to float32 is 0\.\d+ on 16 vectors") as caught:
        FeatureExtractor.from_pretrained("demo", dtype="int8", least_cosine=1.0)
    assert caught.value.least_cosine == 1.0 and caught.value.quality.worst_layer in range(1, 5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"least_cosine": float("nan")}, r"least_cosine=nan: give a number from -1 to 1"),
        ({"least_cosine": "0.9"}, r"least_cosine='0.9': give a number"),
        ({"sample": "one text"}, r"give a list of texts, not one text"),
        ({"sample": []}, r"sample: give at least one text"),
        ({"kernel": "plain"}, r"kernel='plain': products in int8 have a kernel of their own"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        FeatureExtractor.from_pretrained("demo", dtype="int8", **options)


def test_weights_that_are_no_numbers_are_refused() -> None:
    xlmr = XLMR.from_pretrained("demo").eval()
    with torch.no_grad():
        xlmr.model.base.encoder.layer[0].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(TooFarFromFloat32, match=r"the lowest cosine to float32 is nan"):
        FeatureExtractor(xlmr, dtype="int8", least_cosine=-1)


def test_the_embeddings_alone_are_exact() -> None:
    extractor = FeatureExtractor.from_pretrained("demo", dtype="int8", layers=(0,))
    assert extractor.int8 is not None and extractor.int8.lowest > 1 - 1e-6


# ---- extract


def test_extract_reports_how_near_the_first_texts_are(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", texts_of(70))
    report = extract(model, source, tmp_path / "out", options=INT8)
    assert (report.dtype, report.kernel, report.texts) == ("int8", "int8", 70)
    assert report.int8 is not None and report.int8.vectors == 64 and report.int8.lowest > 0.99


def test_an_extraction_in_int8_goes_on_in_int8_alone(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", texts_of(25))
    extract(model, source, tmp_path / "whole", options=INT8)
    extract(model, source, tmp_path / "out", options=INT8)
    names = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    (tmp_path / "out" / names[-1]).unlink()
    with pytest.raises(InputError, match=r"begun in int8"):
        extract(model, source, tmp_path / "out", options=OPTIONS, resume=True)
    extract(model, source, tmp_path / "out", options=INT8, resume=True)
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_extraction_that_is_too_far_leaves_nothing(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", texts_of(5))
    with pytest.raises(TooFarFromFloat32):
        extract(model, source, tmp_path / "out", options=replace(INT8, least_cosine=1.0))
    assert not (tmp_path / "out").exists()


# ---- plans


def test_a_plan_in_int8_is_of_the_encoder_on_the_cpu_with_a_byte_for_each_weight_of_a_layer(model: Path) -> None:
    shape = shape_of_config(json.loads((model / "config.json").read_bytes()))
    products = [tensor for tensor in shape.tensors if ".layer." in tensor.name and len(tensor.sizes) == 2]
    placement = lay_out(shape, max_memory={0: 1 << 40, "cpu": None}, dtype="int8")
    assert {share.device for share in placement.shares} == {"cpu"}
    in_float32 = lay_out(shape, max_memory={"cpu": None}, dtype="float32").weights
    scales = 4 * sum(sum(tensor.sizes) for tensor in products)
    saved = 3 * sum(tensor.numbers for tensor in products) - scales
    head = in_float32 - placement.weights - saved
    assert 0 < head < shape.hidden**2 * 8 + shape.vocabulary * 8  # the language-model head is not computed
    too_small = lay_out(shape, max_memory={"cpu": 1 << 16, "disk": None}, dtype="int8")
    assert not too_small.fits and too_small.suggestions and "disk" not in " ".join(too_small.suggestions)
    with pytest.raises(InputError, match="max_memory has none"):
        lay_out(shape, max_memory={0: 1 << 40}, dtype="int8")
