"""Graphs of ONNX and OpenVINO compute what Transformers and the extractor do, and cards say how to run them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
import torch
import transformers
from places import FIXTURES

from hf_xlmr import FeatureExtractor
from hf_xlmr.conformance import compare
from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.exporting import RuntimeReport, runtime_folder, to_onnx, to_openvino
from hf_xlmr.exporting.runtime_card import Wanted
from hf_xlmr.exporting.runtime_folder import answers_of, largest_difference, loaded
from hf_xlmr.model.model_shape import shape_of_folder

TEXTS = ["Hello world!", "", "Cafe\u0301 et nai\u0308ve", "The train leaves in the evening. " * 60, "你好，世界"]
TOLERANCE = 1e-5
MAKERS = {"onnx": to_onnx, "openvino": to_openvino}
EVERY_RUNTIME = pytest.mark.parametrize("runtime", MAKERS)
Run = Callable[[Path, Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def run_onnx(folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "model.onnx")
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, dict(inputs)), strict=True))


def run_openvino(folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    core = pytest.importorskip("openvino").Core()
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(folder / "openvino_model.xml", "CPU", exactly)(dict(inputs))
    return {output.any_name: value for output, value in found.items()}


RUNS: Mapping[str, Run] = {"onnx": run_onnx, "openvino": run_openvino}


@pytest.fixture(scope="module", autouse=True)
def _has_exporters() -> None:
    exporters = pytest.importorskip("transformers.exporters")
    if not hasattr(exporters, "ExportedModel"):
        pytest.skip("this Transformers has no exports that load again")
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def model(families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, of which a graph is made in half the time of the model's."""
    return Path(shutil.copytree(families["post-norm"], tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def graphs(model: Path) -> Callable[[str], RuntimeReport]:
    """What is made of the model with its head, once for a runtime, where sentence-transformers and optimum look."""
    return cache(lambda runtime: MAKERS[runtime](model, model / runtime))


def agrees(got: np.ndarray, want: np.ndarray, *, share: float = TOLERANCE) -> bool:
    return got.shape == want.shape and float(np.abs(got - want).max()) <= share * float(np.abs(want).max())


# ---- the answers -----------------------------------------------------------------------------------------------------

HEADS = {
    "XLMRobertaXLForMaskedLM": "v0122prenorm",
    "RobertaPreLayerNormForMaskedLM": "v0122prelayernorm",
    "XLMRobertaForSequenceClassification": "v0122cls",
    "XLMRobertaForMultipleChoice": "v0122ranking",
}


@EVERY_RUNTIME
@pytest.mark.parametrize("name", HEADS)
def test_every_family_and_head_answers_as_in_transformers(name: str, runtime: str, tmp_path: Path) -> None:
    convert(FIXTURES / HEADS[name], tmp_path / "model", verify=False)
    report = MAKERS[runtime](tmp_path / "model", tmp_path / "graph")
    assert report.class_name == name and report.difference < TOLERANCE and report.outputs == ("logits",)
    model = getattr(transformers, name).from_pretrained(tmp_path / "model").eval()
    sizes = [(1, 2, 3), (3, 4, 9)] if "Choice" in name else [(1, 1), (1, 3), (7, 5), (2, report.max_length)]
    for size in sizes:
        assert_same(RUNS[runtime], tmp_path / "graph", model, size)


def assert_same(run: Run, graph: Path, model: Any, size: tuple[int, ...]) -> None:
    """Of random texts of unequal length, on all that is not padding."""
    ids = torch.from_numpy(np.random.default_rng(5).integers(4, model.config.vocab_size, size))
    ids[..., 0] = 0
    ids[-1, ..., size[-1] // 2 + 1 :] = 1
    mask = (ids != 1).long()
    with torch.inference_mode():
        want = model(input_ids=ids, attention_mask=mask)[0].numpy()
    got = run(graph, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})["logits"]
    kept = mask.bool().numpy() if want.shape[:-1] == size else ...
    assert agrees(got[kept], want[kept]), (size, np.abs(got - want)[kept].max())


def padded(folder: Path, tensors: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, return_tensors=tensors
    )


def extracted(folder: Path, pool: str, *, normalize: bool) -> np.ndarray:
    vectors: np.ndarray = FeatureExtractor.from_pretrained(folder, pool=pool)(TEXTS)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


@EVERY_RUNTIME
def test_pooled_it_answers_as_extract_writes(runtime: str, model: Path, tmp_path: Path) -> None:
    MAKERS[runtime](model, tmp_path / "graph", pool="cls", normalize=True)
    (got,) = RUNS[runtime](tmp_path / "graph", padded(tmp_path / "graph", "np")).values()
    assert agrees(got, extracted(model, "cls", normalize=True))
    found = compare(model, tmp_path / "graph")
    assert found.agrees and (found.pool, found.normalized) == ("cls", True), "the graph says how it pools"
    assert "pools by cls, not by max" in compare(model, tmp_path / "graph", pool="max").verdict


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pool", ["mean", "cls", "max"])
def test_so_does_what_is_exported_by_every_way_of_pooling(pool: str, normalize: bool, model: Path) -> None:
    wanted = Wanted(dtype="float32", pool=pool, normalize=normalize, encoder_only=False)
    (got,) = answers_of(loaded(model, shape_of_folder(model), wanted), padded(model, "pt")).values()
    assert agrees(got.numpy(), extracted(model, pool, normalize=normalize))


@EVERY_RUNTIME
@pytest.mark.parametrize(("dtype", "share", "size"), [("float16", 5e-3, 0.6), ("int8", 8e-2, 0.7)])
def test_in_low_precision_it_is_smaller_and_near(
    dtype: str, share: float, size: float, runtime: str, model: Path, tmp_path: Path
) -> None:
    if (runtime, dtype) == ("openvino", "int8"):
        pytest.importorskip("nncf")
    report = MAKERS[runtime](model, tmp_path / "graph", dtype=dtype, encoder_only=True)
    weights = sum(bytes_ for name, bytes_ in report.files.items() if name.endswith((".data", ".bin")))
    assert 1e-5 < report.difference < share and weights < size * (model / "model.safetensors").stat().st_size
    assert report.outputs == ("last_hidden_state",) and report.class_name == "XLMRobertaModel"
    found = compare(model, tmp_path / "graph")
    assert {"float16": "to float16", "int8": "int8"}[dtype] in found.verdict.replace("computes in", "to"), found.verdict


# ---- the folder ------------------------------------------------------------------------------------------------------


@EVERY_RUNTIME
def test_the_folder_is_whole_and_its_card_runs(
    runtime: str,
    model: Path,
    graphs: Callable[[str], RuntimeReport],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = graphs(runtime)
    assert capsys.readouterr() == ("", ""), "the library prints nothing"
    files = {path.name: path.read_bytes() for path in report.output.iterdir()}
    assert {name: len(content) for name, content in files.items()} == report.files
    assert files["tokenizer.json"] == (model / "tokenizer.json").read_bytes()
    assert json.loads(files["config.json"])["architectures"] == ["XLMRobertaForMaskedLM"]
    here = str(Path(torch.__file__).parents[2]).encode()
    assert not [name for name, content in files.items() if here in content or b"hf_xlmr/" in content], "traces"
    monkeypatch.chdir(report.output)
    (code,) = re.findall(r"^```python\n(.*?)^```", files["README.md"].decode().split("## Use")[0], flags=re.S | re.M)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert re.search(r"\{'logits': \(2, \d+, 219\)\}", capsys.readouterr().out)
    with pytest.raises(InputError, match="exists; choose another folder"):
        MAKERS[runtime](model, report.output)


def test_the_dimensions_of_an_onnx_graph_have_names(graphs: Callable[[str], RuntimeReport]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(graphs("onnx").output / "model.onnx")
    assert {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "logits": ["batch", "sequence", 219],
    }


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--normalize"], "--normalize is for pooled vectors: give --pool mean"),
        (["--dtype", "bfloat16"], "'bfloat16' is not one of float32, float16, int8"),
        (["--pool", "none", "--normalize"], "--normalize is for pooled vectors"),
    ],
)
@pytest.mark.parametrize("command", ["to-onnx", "to-openvino"])
def test_what_cannot_be_meant_is_one_sentence(
    command: str, options: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    done = in_process.run(command, model, tmp_path / "graph", *options)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "graph").exists()


def test_what_is_not_a_model_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a Transformers folder: it has no config\.json"):
        to_onnx(tmp_path, tmp_path / "graph")
    with pytest.raises(InputError, match=r"none is not a Transformers folder: it is not there"):
        to_onnx(tmp_path / "none", tmp_path / "graph")


@EVERY_RUNTIME
def test_adapters_by_language_are_refused(runtime: str, tmp_path: Path) -> None:
    convert(FIXTURES / "xmod" / "base", tmp_path / "xmod", verify=False)
    with pytest.raises(InputError, match="is an X-MOD"):
        MAKERS[runtime](tmp_path / "xmod", tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def test_the_folder_of_the_model_is_not_replaced(model: Path) -> None:
    for place in (model, model.parent):
        with pytest.raises(InputError, match="is the folder of the model, or holds it; choose another one"):
            to_onnx(model, place, overwrite=True)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("onnxscript", r"need onnxscript: pip install 'hf-xlmr\[onnx\]'"),
        ("transformers.exporters", "install 5.23 or"),
    ],
)
def test_what_is_not_installed_is_named(
    hidden: str, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runtime_folder.find_spec
    monkeypatch.setattr(runtime_folder, "find_spec", lambda name: None if name == hidden else found(name))
    with pytest.raises(InputError, match=message):
        to_onnx(model, tmp_path / "graph")


def test_a_graph_that_computes_otherwise_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one with other embeddings."""
    exported = runtime_folder._exported

    def otherwise(network: Any, *arguments: Any, **options: Any) -> Any:
        network.roberta.embeddings.word_embeddings.weight.data *= -3
        return exported(network, *arguments, **options)

    monkeypatch.setattr(runtime_folder, "_exported", otherwise)
    with pytest.raises(IntegrityError, match="the OpenVINO graph computes otherwise than Transformers"):
        to_openvino(model, tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize("error", [RuntimeError("no kernel\nfor this"), ImportError("too old"), KeyError("Gelu")])
def test_what_the_exporters_raise_is_one_sentence(
    error: Exception, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: Any, **_options: Any) -> Any:
        raise error

    monkeypatch.setattr(runtime_folder, "_exported", fails)
    with pytest.raises(InputError, match=r"cannot be made here: (no kernel for this|too old|'Gelu')") as told:
        to_onnx(model, tmp_path / "graph")
    assert told.value.__cause__ is error and not (tmp_path / "graph").exists()


def test_numbers_that_are_not_finite_are_damage() -> None:
    ours = {"logits": torch.ones(2, 3)}
    with pytest.raises(IntegrityError, match="logits has numbers that are not finite; choose another dtype"):
        largest_difference(ours, {"logits": torch.full((2, 3), torch.inf)}, torch.ones(2, 4))
    with pytest.raises(IntegrityError, match="other outputs: start is not the same in both"):
        largest_difference(ours, {**ours, "start": torch.ones(1)}, torch.ones(2, 4))


# ---- others ----------------------------------------------------------------------------------------------------------


def test_ctranslate2_takes_the_folder_and_computes_the_same(model: Path, tmp_path: Path) -> None:
    """Its converter asks config.json for position_embedding_type, which Transformers does not write any more."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(tmp_path / "ct2"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    encoder = ctranslate2.Encoder(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    ours = FeatureExtractor.from_pretrained(model)(TEXTS)
    for text, vector in zip(TEXTS, ours, strict=True):
        ids = tokenizer(text, truncation=True).input_ids
        got = np.array(encoder.forward_batch([ids]).last_hidden_state)[0]
        assert agrees(got.mean(axis=0), vector)
