"""Features of many texts are those of each text alone, whatever lies beside it in a batch."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch
import warm_processes
from patience import until
from places import FIXTURES, SHARED, SHARED_CHECKPOINTS, TESTS, needs_shared

from hf_xlmr import XLMR, FeatureExtractor
from hf_xlmr.errors import HfXlmrError, InputError
from hf_xlmr.features.background import handed_over, prefetched
from hf_xlmr.features.chunks import OnLong, TextTooLong, WindowMaker
from hf_xlmr.features.packed.kernel_choice import remembered_kernel
from hf_xlmr.features.packed.linear_kernels import KERNELS, PLAIN, fastest_kernel, offered_kernels
from hf_xlmr.features.packing import pack
from hf_xlmr.features.pooling import Pooling, pooled_batch
from hf_xlmr.model import precision
from hf_xlmr.model.precision import device_name, is_native, native_dtype
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

TOLERANCE = 1e-5
NAMES = {path.name: path for path in sorted(FIXTURES.iterdir()) if (path / "golden.npz").is_file()}
NAMES |= {f"shared-{path.name}": path for path in SHARED_CHECKPOINTS}
TEXTS = [
    "Hello world!",
    "",
    "Bonjour le monde, ça va?",
    "你好，世界",
    "a",
    "Ein ziemlich langer Satz, der noch viele weitere Wörter hat.",
    "नमस्ते दुनिया",
    "Hello world!",
    "<mask> is no mask here </s>",
]
LONG = "The train leaves in the evening, and nobody knows why. " * 40
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("cache_folder")


@cache
def model_of(name: str) -> XLMR:
    return XLMR.from_pretrained("demo" if name == "demo" else NAMES[name]).eval()


@pytest.fixture(scope="module")
def demo(cache_folder: Path) -> XLMR:
    return model_of("demo")


def one_by_one(xlmr: XLMR, texts: list[str], *, most: int | None = None) -> list[np.ndarray]:
    """What extract_features gives for each text alone, cut off at `most` tokens."""
    found = []
    for text in texts:
        tokens = xlmr.encode(text)
        if len(tokens) > (most or xlmr.max_positions):
            tokens = torch.cat((tokens[: (most or xlmr.max_positions) - 1], tokens[-1:]))
        with torch.no_grad():
            found.append(xlmr.extract_features(tokens)[0].numpy())
    return found


# ---- the same as fairseq, and as extract_features


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_features_of_every_layer_are_those_that_fairseq_gave(name: str, kernel: str) -> None:
    """For the texts whose answers a real fairseq recorded; its last layer is before the final norm, ours after it."""
    golden = json.loads((NAMES[name] / "golden.json").read_text(encoding="utf-8"))
    arrays = np.load(NAMES[name] / "golden.npz")
    xlmr, texts = model_of(name), golden["texts"]
    layers = list(range(len(xlmr.model.layers) + 1))
    extractor = FeatureExtractor(xlmr, layers=layers, pool="none", tokens_per_batch=50, kernel=kernel)
    found = extractor(texts)
    for index in range(len(texts)):
        expected = [*arrays[f"hiddens.{index}"][:-1, 0], arrays[f"last.{index}"][0]]
        for layer in layers:
            np.testing.assert_allclose(found[layer][index], expected[layer], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_text_has_the_same_features_whatever_is_beside_it(demo: XLMR, kernel: str, tokens_per_batch: int) -> None:
    extractor = FeatureExtractor(demo, pool="none", kernel=kernel, tokens_per_batch=tokens_per_batch)
    for found, expected in zip(extractor(TEXTS), one_by_one(demo, TEXTS), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("pool", "reduce"),
    [("mean", lambda rows: rows.mean(axis=0)), ("cls", lambda rows: rows[0]), ("max", lambda rows: rows.max(axis=0))],
)
def test_pooling_is_over_all_tokens_of_a_text_and_no_others(demo: XLMR, pool: str, reduce: Any) -> None:
    found = FeatureExtractor(demo, pool=pool)(TEXTS)
    assert found.shape == (len(TEXTS), 64) and found.dtype == np.float32
    expected = np.stack([reduce(rows) for rows in one_by_one(demo, TEXTS)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_several_layers_come_by_number_and_one_as_it_is(demo: XLMR) -> None:
    last = len(demo.model.layers)
    several = FeatureExtractor(demo, layers=[0, -1])(TEXTS)
    assert list(several) == [0, last]
    np.testing.assert_array_equal(several[last], FeatureExtractor(demo, layers=-1)(TEXTS))


@pytest.mark.parametrize("name", ["demo", "v0122prenorm", "v0122prelayernorm"])
def test_bfloat16_points_where_float32_does(name: str) -> None:
    xlmr = model_of(name)
    for kernel in offered_kernels(torch.bfloat16, CPU):
        extractor = FeatureExtractor(xlmr, dtype="bfloat16", emulate_dtype=True, kernel=kernel)
        assert (extractor.dtype, extractor.kernel) == (torch.bfloat16, kernel)
        low = extractor(TEXTS)
        full = FeatureExtractor(xlmr, dtype="float32")(TEXTS)
        cosines = (low * full).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
        assert cosines.mean() >= 0.999


def test_the_dtype_is_the_models_unless_asked_for(demo: XLMR) -> None:
    assert FeatureExtractor(demo).dtype == torch.float32
    assert FeatureExtractor(demo, dtype="auto").dtype == native_dtype(torch.device("cpu"))
    with pytest.raises(InputError, match=r"dtype=float8: give one of auto, float32, bfloat16, float16"):
        FeatureExtractor(demo, dtype="float8")


def test_the_model_may_be_let_go_and_is_left_as_it_was() -> None:
    xlmr = XLMR.from_pretrained("demo").eval()
    before = {name: weight.clone() for name, weight in xlmr.state_dict().items()}
    expected = one_by_one(xlmr, TEXTS)
    extractor = FeatureExtractor(xlmr, pool="none")
    extractor(TEXTS)
    assert all(torch.equal(weight, before[name]) for name, weight in xlmr.state_dict().items())
    del xlmr
    np.testing.assert_allclose(extractor(TEXTS)[0], expected[0], rtol=0, atol=TOLERANCE)


# ---- processors without the half types


@pytest.fixture
def avx2_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as hf_xlmr sees; oneDNN itself reads the variable when it is loaded."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
@pytest.mark.usefixtures("avx2_only")
def test_what_a_processor_has_no_instructions_for_is_computed_in_float32(
    stored: str, dtype: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    xlmr = XLMR.from_pretrained("demo", dtype=stored).eval()
    caplog.clear()
    extractor = FeatureExtractor(xlmr, dtype=dtype)
    assert extractor.dtype == torch.float32
    wanted = dtype or stored
    told = [f"no instructions for {wanted},"] if wanted != "float32" else []
    assert len(caplog.records) == len(told) and all(each in caplog.text for each in told)
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    caplog.clear()
    exact = FeatureExtractor(xlmr, dtype="float32")
    np.testing.assert_array_equal(extractor(TEXTS), exact(TEXTS))
    insisted = FeatureExtractor(xlmr, dtype=dtype, emulate_dtype=True)
    assert insisted.dtype == getattr(torch, wanted) and not caplog.records


@pytest.mark.usefixtures("avx2_only")
def test_a_model_that_such_a_processor_emulates_is_loaded_as_asked_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert XLMR.from_pretrained("demo", dtype="bfloat16").model.network.dtype == torch.bfloat16
    assert ["no instructions for bfloat16: it takes" in record.getMessage() for record in caplog.records] == [True]
    XLMR.from_pretrained("demo")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("flags", "limit", "natives"),
    [
        (["avx2", "fma3"], "", []),
        (["avx2", "avx_ne_convert"], "", []),
        (["avx512_f", "avx512_bf16"], "", ["bfloat16"]),
        (["amx_bf16", "avx512_fp16"], "", ["bfloat16", "float16"]),
        (["neon", "bf16", "fp16_arith"], "", ["bfloat16", "float16"]),
        (["amx_bf16", "avx512_fp16"], "AVX512_CORE_AMX", ["bfloat16", "float16"]),
        (["amx_bf16", "avx512_fp16"], "avx512_core_bf16", ["bfloat16"]),
        (["amx_bf16", "avx512_fp16"], "AVX512_CORE", []),
        (["amx_bf16", "avx512_fp16"], "AVX2", []),
        (["amx_bf16", "avx512_fp16"], "no name of oneDNN's", ["bfloat16", "float16"]),
    ],
)
def test_processors_have_what_they_name_unless_onednn_is_limited(
    flags: list[str], limit: str, natives: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(flags, True))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    unlimited = device_name(CPU)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.setenv(name, limit)
        found = [name for name in ("bfloat16", "float16") if is_native(getattr(torch, name), CPU)]
        assert found == natives
        assert native_dtype(CPU) == (torch.bfloat16 if "bfloat16" in natives else torch.float32)
        assert (device_name(CPU) == unlimited) is not limit, "sums are rounded otherwise"
        monkeypatch.setenv(name, "")
    assert is_native(torch.float32, CPU) and is_native(torch.float64, CPU)


@pytest.mark.parametrize(
    ("facts", "natives"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 amx_fp16\n", ["bfloat16", "float16"]),
        ("Features\t: fp asimd bf16 i8mm\n", ["bfloat16"]),
        ("flags\t\t: fpu avx2\n", []),
        (None, []),
    ],
)
def test_what_processors_have_is_known_where_pytorch_is_too_old_to_tell(
    facts: str | None, natives: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(precision, "CPU_FACTS", tmp_path / "cpuinfo")
    if facts is not None:
        (tmp_path / "cpuinfo").write_text(facts)
    assert [name for name in ("bfloat16", "float16") if is_native(getattr(torch, name), CPU)] == natives
    assert device_name(CPU)


KERNELS_OF_AVX2 = """
import sys, torch
from hf_xlmr import XLMR, FeatureExtractor
from hf_xlmr.errors import InputError
from hf_xlmr.features.packed.linear_kernels import offered_kernels

xlmr = XLMR.from_pretrained("demo").eval()
for dtype in ("float32", "bfloat16", "float16"):
    print(dtype, *offered_kernels(getattr(torch, dtype), torch.device("cpu")))
    try:
        extractor = FeatureExtractor(xlmr, dtype=dtype, emulate_dtype=True, kernel="onednn")
        print(extractor.kernel, extractor(["Hello world!"]).shape)
    except InputError as error:
        print(error)
"""


def test_a_kernel_that_the_processor_cannot_run_is_neither_offered_nor_taken(cache_folder: Path) -> None:
    """oneDNN itself, limited to AVX2, raises a bare RuntimeError for weights in half precision."""
    environment = {"HF_XLMR_CACHE": str(cache_folder), "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = warm_processes.run([sys.executable, "-c", KERNELS_OF_AVX2], env=environment, check=True)
    assert done.stdout.splitlines() == [
        "float32 plain onednn onednn-separate",
        "onednn (1, 64)",
        "bfloat16 plain",
        "kernel='onednn': the processor cannot run it in bfloat16; give one of plain",
        "float16 plain",
        "kernel='onednn': the processor cannot run it in float16; give one of plain",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1), ("float16", 0.02)])
def test_a_gpu_gives_what_the_cpu_gives(demo: XLMR, dtype: str, tolerance: float) -> None:
    """Within what a GPU's matrix products differ by; the half types go through the kernel of unequal lengths."""
    on_gpu = FeatureExtractor(XLMR.from_pretrained("demo", device="cuda").eval(), dtype=dtype, pool="none")
    expected = FeatureExtractor(demo, pool="none")(TEXTS * 20)
    for found, each in zip(on_gpu(TEXTS * 20), expected, strict=True):
        np.testing.assert_allclose(found, each, rtol=0, atol=tolerance)


# ---- texts that are too long


def test_a_long_text_is_cut_off_and_keeps_its_end_token(demo: XLMR) -> None:
    for most in (None, 20):
        extractor = FeatureExtractor(demo, pool="none", max_length=most)
        expected = one_by_one(demo, [LONG], most=most)[0]
        (window,) = extractor.windows([LONG, "short"])
        assert window.truncated == 1 and len(window.spans[0]) == len(expected) == (most or demo.max_positions)
        np.testing.assert_allclose(window.layers[len(demo.model.layers)][0], expected, rtol=0, atol=TOLERANCE)


def test_a_split_text_is_pooled_over_all_its_tokens(demo: XLMR) -> None:
    """Each piece stands between `<s>` and `</s>`, of which the text keeps the first and the last."""
    ids = demo.encode(LONG).tolist()
    rows = []
    for start in range(1, len(ids) - 1, 98):
        piece = ids[start : min(start + 98, len(ids) - 1)]
        with torch.no_grad():
            rows.append(demo.extract_features(torch.tensor([0, *piece, 2]))[0].numpy())
    kept = np.concatenate([rows[0][:-1], *(each[1:-1] for each in rows[1:-1]), rows[-1][1:]])
    assert len(kept) == len(ids)
    for pool, expected in (("none", kept), ("mean", kept.mean(0)), ("max", kept.max(0)), ("cls", kept[0])):
        extractor = FeatureExtractor(demo, pool=pool, max_length=100, on_long="split", tokens_per_batch=128)
        found = extractor(["a", LONG, TEXTS[5]])
        np.testing.assert_allclose(found[1], expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(found[2], FeatureExtractor(demo, pool=pool)([TEXTS[5]])[0], rtol=0, atol=TOLERANCE)


def test_a_long_text_is_an_error_on_demand_and_is_named(demo: XLMR) -> None:
    extractor = FeatureExtractor(demo, on_long="error", max_length=12)
    with pytest.raises(TextTooLong, match=r"text 300 has \d+ tokens, and at most 12 are allowed") as caught:
        extractor(["a"] * 300 + [LONG])
    assert caught.value.index == 300 and caught.value.most == 12


def test_tokens_tell_where_in_their_text_they_are(demo: XLMR) -> None:
    (window,) = FeatureExtractor(demo, pool="none").windows(["Hello world!"])
    spans = window.spans[0].tolist()
    assert spans[0] == spans[-1] == [0, 0] and len(spans) == len(demo.encode("Hello world!"))
    assert "".join("Hello world!"[start:end] for start, end in spans) == "Hello world!"


# ---- ways to call it


def test_a_stream_without_an_end_is_read_only_as_far_as_needed(demo: XLMR) -> None:
    read = count()
    extractor = FeatureExtractor(demo)
    first = list(islice(extractor.stream(f"text {number}" for number in read), 3))
    np.testing.assert_allclose(first, extractor(["text 0", "text 1", "text 2"]), rtol=0, atol=TOLERANCE)
    assert next(read) < 50_000
    until(
        lambda: all(thread.name != "prefetch" for thread in threading.enumerate()),
        otherwise="the thread that reads ahead goes on for ever",
    )


def test_windows_do_not_change_what_comes_out(demo: XLMR, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TEXTS * 100
    expected = FeatureExtractor(demo)(texts)
    monkeypatch.setattr("hf_xlmr.features.chunks.TEXTS_PER_WINDOW", 7)
    extractor = FeatureExtractor(demo)
    assert len(list(extractor.windows(texts))) == -(-len(texts) // 7)
    np.testing.assert_allclose(extractor(texts), expected, rtol=0, atol=TOLERANCE)


def test_the_first_windows_are_small_so_that_the_computation_begins_soon(demo: XLMR) -> None:
    read = count()
    windows = FeatureExtractor(demo).texts.windows((number, "a" * (number % 7)) for number in read)
    assert [(next(windows).texts, next(read)) for _ in range(4)] == [
        (1024, 1024),
        (2048, 3073),
        (4096, 7170),
        (4096, 11267),
    ]


@pytest.mark.parametrize("on_long", ["truncate", "split"])
def test_windows_hold_the_same_tokens_however_texts_are_read(demo: XLMR, on_long: str) -> None:
    """A portion of texts that are tokenized together may end within a window, and a window within a portion."""
    chance = random.Random(3)
    texts = [" ".join(["word"] * round(chance.lognormvariate(2, 1.5))) for _ in range(3000)]
    maker = replace(FeatureExtractor(demo, on_long=on_long, max_length=40).texts, most_tokens=3000, with_spans=True)
    windows = list(maker.windows(enumerate(texts)))
    assert [row for window in windows for row in window.rows] == list(range(len(texts)))
    ids = demo.tokenizer.encode_batch(texts)
    for window in windows:
        parts = [each.tolist() for each in np.split(window.ids, window.starts[1:])]
        for number, first in enumerate(window.firsts.tolist()):
            own, pieces = ids[window.rows[number]], window.pieces.get(number, range(first, first + 1))
            inner = [token for each in pieces for token in parts[each][1:-1]]
            assert inner == (own[1:-1] if on_long == "split" else own[1:-1][:38])
            assert all((parts[each][0], parts[each][-1]) == (0, 2) and len(parts[each]) <= 40 for each in pieces)
            assert len(window.spans[number]) == len(inner) + 2
        kept = sum(len(each) for each in window.spans)
        assert kept <= 3000 or window.texts == 1


def test_windows_of_few_tokens_lose_no_text(demo: XLMR, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TEXTS * 10
    expected = FeatureExtractor(demo)(texts)
    monkeypatch.setattr("hf_xlmr.features.extraction.TOKENS_PER_WINDOW", 50)
    extractor = FeatureExtractor(demo)
    windows = list(extractor.windows(texts))
    assert [row for window in windows for row in window.rows] == list(range(len(texts)))
    assert all(window.tokens <= 50 or window.texts == 1 for window in windows) and len(windows) > 20
    assert sum(window.texts for window in windows) == len(texts)
    np.testing.assert_allclose(extractor(texts), expected, rtol=0, atol=TOLERANCE)


def test_padding_in_a_text_is_nothing(demo: XLMR, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token attends to it, and it has no vector; positions go on without it."""
    tokens = demo.encode("Hello world!").tolist()
    maker = WindowMaker(demo.tokenizer, max_length=512, on_long=OnLong.truncate, most_tokens=1000, with_spans=True)
    rows = [[*tokens[:3], 1, *tokens[3:]], tokens]
    ids, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
    spans = [[(place, place + 1) for place in range(len(row))] for row in rows]
    monkeypatch.setattr(ExactTokenizer, "flat_ids", lambda *_texts, threads: (ids, lengths))
    monkeypatch.setattr(ExactTokenizer, "spans", lambda _self, text: spans[int(text)][1:-1])
    (window,) = maker.windows([("a", "0"), ("b", "1")])
    assert window.ids.tolist() == [*tokens, *tokens] and window.lengths.tolist() == [len(tokens)] * 2
    assert window.spans[0][1:-1] == [each for each in spans[0][1:-1] if each[0] != 3]
    assert window.spans[1][1:-1] == spans[1][1:-1]


def test_means_of_long_texts_are_summed_in_float32() -> None:
    batch = next(pack(np.array([5000]), tokens_per_batch=5000))
    values = torch.full((5000, 1), 1.001, dtype=torch.bfloat16)
    assert pooled_batch(values, batch, Pooling.mean).item() == pytest.approx(values[0].item(), abs=1e-4)


def test_no_texts_have_no_features(demo: XLMR) -> None:
    assert FeatureExtractor(demo)([]).shape == (0, 64)
    assert FeatureExtractor(demo, pool="none")([]) == []


def test_a_dataset_maps_it_over_its_rows(demo: XLMR) -> None:
    from datasets import Dataset

    dataset = Dataset.from_dict({"sentence": TEXTS, "label": list(range(len(TEXTS)))})
    extractor = FeatureExtractor(demo, layers=[1, -1], column="sentence")
    mapped = dataset.map(extractor, batched=True, batch_size=4).with_format("numpy")
    assert mapped.column_names == ["sentence", "label", "features_1", f"features_{len(demo.model.layers)}"]
    np.testing.assert_allclose(mapped["features_1"][:], extractor(TEXTS)[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "sum"}, r"pool='sum': give one of mean, cls, max, none"),
        ({"on_long": "cut"}, r"on_long='cut': give one of truncate, split, error"),
        ({"layers": 99}, r"layers=99: the hidden states are numbered 0 \(embeddings\) to \d+ \(features\)"),
        ({"layers": []}, r"layers=\[\]: "),
        ({"layers": [0, 0]}, r"the same layer is named twice"),
        ({"layers": "0"}, r"layers=0: the hidden states are numbered"),
        ({"layers": True}, r"layers=True: the hidden states are numbered"),
        ({"max_length": "10"}, r"max_length=10: give a number"),
        ({"max_length": 2}, r"max_length=2: give a number from 3 to 512"),
        ({"max_length": 513}, r"max_length=513: give a number from 3 to 512"),
        ({"tokens_per_batch": 0}, r"tokens_per_batch=0: give a number of tokens from 1 to 1,048,576"),
        ({"kernel": "magic"}, r"kernel='magic': give one of plain, onednn"),
    ],
)
def test_wrong_options_are_told_with_what_is_right(demo: XLMR, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FeatureExtractor(demo, **options)


def test_wrong_texts_are_told_with_their_number(demo: XLMR) -> None:
    extractor = FeatureExtractor(demo)
    for one in ("one text", b"one text"):
        with pytest.raises(InputError, match="give a list of texts, not one text"):
            extractor(one)
    with pytest.raises(InputError, match="give a list of texts, not one text"):
        next(extractor.stream("one text"))
    with pytest.raises(InputError, match="a set has no order"):
        extractor({"a", "b"})
    for table in (pandas.DataFrame({"text": ["a"]}), pyarrow.table({"text": ["a"]}), None, 3):
        with pytest.raises(InputError, match="give a sequence of texts, or a dictionary of columns"):
            extractor(table)
    for column in (pandas.Series(["a", "b"]), pyarrow.array(["a", "b"]), np.array(["a", "b"]), ("a", "b")):
        np.testing.assert_array_equal(extractor(column), extractor(["a", "b"]))
    with pytest.raises(InputError, match=r"text 400 cannot be encoded: .*not a str but NoneType"):
        extractor(["a"] * 400 + [None])
    with pytest.raises(InputError, match=r"no column 'text' .* it has words"):
        extractor({"words": ["a"]})


def test_an_offloaded_model_is_refused(tmp_path: Path, demo: XLMR) -> None:
    names = [name for name, _ in demo.model.network.named_children()]
    spread = XLMR.from_pretrained("demo", device_map=dict.fromkeys(names, "disk")).eval()
    with pytest.raises(InputError, match="the model is offloaded"):
        FeatureExtractor(spread)


# ---- its parts


def test_batches_hold_every_text_once_within_their_budget() -> None:
    lengths = [5, 3, 700, 5, 1, 30, 30, 30, 2] * 3
    batches = list(pack(np.array(lengths), tokens_per_batch=64))
    assert sorted(number for batch in batches for number in batch.texts) == list(range(len(lengths)))
    for batch in batches:
        assert batch.tokens == sum(lengths[number] for number in batch.texts)
        assert batch.tokens <= 64 or len(batch.texts) == 1
        own = [lengths[number] for number in batch.texts]
        assert np.diff(batch.boundaries).tolist() == own == [run.length for run in batch.runs for _ in range(run.texts)]
        assert batch.positions.tolist() == [place for length in own for place in range(2, 2 + length)]


def test_a_kernel_that_is_not_faster_is_not_chosen() -> None:
    sizes = {"tokens": 64, "dtype": torch.float32, "activation": "gelu"}
    assert fastest_kernel(64, 256, device=torch.device("cpu"), **sizes) in KERNELS
    assert fastest_kernel(64, 256, device=torch.device("meta"), **sizes) == PLAIN


def test_a_kernel_is_measured_once_on_a_machine(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    """Otherwise a run that goes on after a break might round otherwise than before it."""
    asked = {"tokens": 2048, "dtype": torch.float32, "device": torch.device("cpu"), "activation": "gelu"}
    answers = iter(["onednn", "plain"])
    monkeypatch.setattr("hf_xlmr.features.packed.kernel_choice.fastest_kernel", lambda *_sizes, **_more: next(answers))
    assert remembered_kernel(1024, 4096, **asked) == remembered_kernel(1024, 4096, **asked) == "onednn"
    assert remembered_kernel(1024, 8192, **asked) == "plain"
    assert remembered_kernel(64, 256, **asked) == PLAIN  # too small to matter
    monkeypatch.setattr("hf_xlmr.features.packed.kernel_choice.offered_kernels", lambda *_given: (PLAIN,))
    monkeypatch.setattr("hf_xlmr.features.packed.kernel_choice.fastest_kernel", lambda *_sizes, **_more: PLAIN)
    assert remembered_kernel(1024, 4096, **asked) == PLAIN  # the cache is of a machine that runs others
    monkeypatch.setenv("HF_XLMR_CACHE", "/proc/nowhere")
    monkeypatch.setattr("hf_xlmr.features.packed.kernel_choice.fastest_kernel", lambda *_sizes, **_more: "onednn")
    assert remembered_kernel(1024, 4096, **asked) == "onednn"


def test_what_is_prefetched_comes_in_order_and_its_error_last() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    seen = []
    with pytest.raises(ValueError, match="the sixth"):
        for item in prefetched(items(), depth=2):
            seen.append(item)
    assert seen == list(range(5))


def test_what_is_handed_over_is_taken_in_order_and_errors_meet() -> None:
    taken: list[int] = []
    with handed_over(taken.extend, depth=1) as hand_over:
        for number in range(5):
            hand_over(number)
    assert taken == list(range(5))

    def fail(items: Iterator[int]) -> None:
        next(items)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), handed_over(fail, depth=1) as hand_over:
        for number in range(100):
            hand_over(number)

    published: list[list[int]] = []
    with (
        pytest.raises(ValueError, match="a bad row"),
        handed_over(lambda items: published.append(list(items)), depth=3) as hand_over,
    ):
        hand_over(1)
        raise ValueError("a bad row")
    assert published == []  # what was begun is not taken for the whole


# ---- straight from the files

STORED = {**{name: NAMES[name] for name in NAMES if not name.startswith("shared-")}, "demo": "demo"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STORED)
def test_weights_from_files_give_the_bits_of_a_loaded_network(name: str, dtype: str) -> None:
    xlmr = XLMR.from_pretrained(STORED[name], dtype=dtype).eval()
    options: dict[str, Any] = {"layers": (0, 1, -1), "pool": "none", "kernel": "plain", "emulate_dtype": True}
    expected = FeatureExtractor(xlmr, **options)(TEXTS)
    found = FeatureExtractor.from_pretrained(STORED[name], dtype=dtype, **options)(TEXTS)
    for layer in expected:
        for one, other in zip(found[layer], expected[layer], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("parts", ["sharded", "in float16", "the bare encoder"])
def test_weights_are_found_however_a_folder_holds_them(demo: XLMR, parts: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM

    loads = AutoModel if parts == "the bare encoder" else AutoModelForMaskedLM
    dtype = torch.float16 if parts == "in float16" else torch.float32
    network = loads.from_pretrained(demo.files.folder, dtype=dtype)
    network.save_pretrained(tmp_path, max_shard_size="500KB" if parts == "sharded" else "5GB")
    shutil.copytree(demo.files.folder / "fairseq", tmp_path / "fairseq")
    expected = FeatureExtractor(XLMR.from_pretrained(tmp_path).eval(), kernel="plain")(TEXTS)
    np.testing.assert_array_equal(FeatureExtractor.from_pretrained(tmp_path, kernel="plain")(TEXTS), expected)


ALONE = """
import sys
from hf_xlmr import FeatureExtractor
print(FeatureExtractor.from_pretrained("demo")(["Hello world!"]).shape, "transformers" in sys.modules)
"""


def test_weights_from_files_need_nothing_of_transformers(cache_folder: Path) -> None:
    environment = {**os.environ, "HF_XLMR_CACHE": str(cache_folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 64) False\n"


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("hidden_act", "silu", r"hidden_act is 'silu': features are computed with gelu"),
        ("num_attention_heads", 3, r"hidden_size is 64, which is not a multiple of num_attention_heads \(3\)"),
        ("layer_norm_eps", "small", r"layer_norm_eps is 'small', which is not a number"),
        ("num_hidden_layers", 5, r"encoder\.layer\.4"),
        ("intermediate_size", 8, r"intermediate\.dense\.weight \[\d+, 64\], expected \[8, 64\]"),
    ],
)
def test_a_configuration_that_is_not_of_the_weights_is_refused(
    demo: XLMR, field: str, value: object, told: str, tmp_path: Path
) -> None:
    shutil.copytree(demo.files.folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), field: value}))
    with pytest.raises(HfXlmrError, match=told):
        FeatureExtractor.from_pretrained(tmp_path / "model")


def test_damage_in_a_layer_is_an_error_of_the_first_batch(demo: XLMR, tmp_path: Path) -> None:
    """The layers are read by a thread while the first ones compute; its errors reach the caller."""
    shutil.copytree(demo.files.folder, tmp_path / "model")
    extractor = FeatureExtractor.from_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(InputError, match=r"model\.safetensors"):
            extractor(TEXTS)
    (tmp_path / "elsewhere").rename(weights)
    np.testing.assert_array_equal(extractor(TEXTS), FeatureExtractor.from_pretrained(tmp_path / "model")(TEXTS))


def test_an_extractor_holds_no_loaded_network_and_no_thread(demo: XLMR) -> None:
    xlmr = XLMR.from_pretrained(demo.files.folder).eval()
    network = weakref.ref(xlmr.model.base)
    extractor = FeatureExtractor(xlmr, kernel="plain")
    del xlmr
    gc.collect()
    assert network() is None and extractor(["a"]).shape == (1, 64)
    part = FeatureExtractor.from_pretrained(demo.files.folder, layers=1)
    part(["a"])
    held = weakref.ref(part.network)
    del part
    gc.collect()
    assert held() is None
    until(lambda: all(thread.name != "prefetch" for thread in threading.enumerate()), otherwise="a thread still reads")


@pytest.mark.parametrize("read", [True, False])
def test_a_copy_of_an_extractor_computes_the_same(demo: XLMR, read: bool) -> None:
    """`datasets` makes one for a fingerprint, and for each of its processes."""
    extractor = FeatureExtractor.from_pretrained(demo.files.folder, kernel="plain")
    if read:
        extractor(["a"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(extractor))(TEXTS), extractor(TEXTS))


@pytest.mark.parametrize("dtype", ["auto", "float64", "float16"])
def test_from_pretrained_takes_the_dtypes_of_the_device(demo: XLMR, dtype: str) -> None:
    wanted = native_dtype(CPU) if dtype == "auto" else getattr(torch, dtype)
    found = FeatureExtractor.from_pretrained(
        demo.files.folder, dtype=dtype, device_map="auto", max_memory={"cpu": "1GB"}
    )
    assert found.dtype == (wanted if is_native(wanted, CPU) else torch.float32)


def test_two_threads_may_use_one_extractor(demo: XLMR) -> None:
    expected = FeatureExtractor(demo, kernel="plain")(TEXTS)
    extractor = FeatureExtractor.from_pretrained(demo.files.folder, kernel="plain")
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(extractor(TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(each, expected) for each in found)


@needs_shared
def test_the_benchmark_of_the_host_path_runs_over_the_extractor() -> None:
    """Its network replaces a real one, and must have what the extractor asks for."""
    script = [sys.executable, str(TESTS / "benchmarks" / "host_path.py"), str(SHARED / "data" / "xlmr-vocabulary")]
    done = subprocess.run([*script, "--count", "40", "--rounds", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| 2 threads, wall, µs |" in done.stdout
