"""Every known fault that a graph can have, planted in ONNX Runtime and OpenVINO, is named, in all three families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faulty_graphs import (
    GRAPHS,
    OF_THE_FINAL_NORM,
    OF_THE_NETWORK,
    OF_THE_POOLING,
    OF_THE_TOKENIZER,
    Onnx,
    planted,
    retold,
    with_types,
)

from hf_xlmr.conformance import Conformance, compare

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("post-norm", "pre-norm", "pre-norm with embedding norm")
EVERY_RUNTIME = pytest.mark.parametrize("runtime", GRAPHS)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def exported(families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The graph of a family's encoder for a runtime, made once."""
    for package in ("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"):
        pytest.importorskip(package)
    from hf_xlmr.exporting import to_onnx, to_openvino

    made: dict[tuple[str, str], Path] = {}

    def graph(runtime: str, family: str) -> Path:
        if (runtime, family) not in made:
            folder = made[runtime, family] = tmp_path_factory.mktemp("graphs") / "graph"
            (to_onnx if runtime == "ONNX Runtime" else to_openvino)(families[family], folder, encoder_only=True)
        return made[runtime, family]

    return graph


def assert_named(found: Conformance, said: str, *, left: float = 0.1) -> None:
    assert said in found.verdict and not found.agrees and found.faults, (found.verdict, found.tried)
    assert found.left is None or found.left < left


@EVERY_FAMILY
@EVERY_RUNTIME
def test_an_unbroken_graph_agrees(families: dict[str, Path], exported: Exported, runtime: str, family: str) -> None:
    graph = exported(runtime, family)
    found = compare(families[family], graph)
    assert found.agrees and found.compared == ("tokens",) and found.runtime.startswith(runtime)
    assert all(each.largest is not None and each.largest < 1e-5 for each in found.classes), found.classes
    assert next(each for each in found.classes if each.name == "pairs").texts == 3


@pytest.mark.usefixtures("few_probes")
@pytest.mark.parametrize("beside", [b'{"a": 1,}', b"[1]", b'{"normalize": true}', b'{"pool": "cls"}'])
def test_what_lies_beside_the_folder_of_a_graph_says_nothing(
    families: dict[str, Path], exported: Exported, tmp_path: Path, beside: bytes
) -> None:
    shutil.copytree(exported("ONNX Runtime", "post-norm"), tmp_path / "graph")
    (tmp_path / "graph" / "config.json").unlink()
    (tmp_path / "config.json").write_bytes(beside)
    found = compare(families["post-norm"], tmp_path / "graph")
    assert found.agrees and not found.normalized


@pytest.mark.usefixtures("few_probes")
@EVERY_FAMILY
@EVERY_RUNTIME
@pytest.mark.parametrize("name", OF_THE_NETWORK | OF_THE_FINAL_NORM)
def test_a_fault_of_the_network_is_named(
    families: dict[str, Path], exported: Exported, tmp_path: Path, name: str, runtime: str, family: str
) -> None:
    if name in OF_THE_FINAL_NORM and family == "post-norm":
        pytest.skip("this family has no such norm")
    edit, said = (OF_THE_NETWORK | OF_THE_FINAL_NORM)[name]
    graph = planted(GRAPHS[runtime], exported(runtime, family), tmp_path / "faulty", edit)
    # where a sum is near the middle of two integers, each processor's own rounding takes another one
    assert_named(compare(families[family], graph), said, left=0.9 if name == "int8" else 0.1)


@pytest.mark.usefixtures("few_probes")
@EVERY_FAMILY
def test_what_is_as_large_as_saturation_is_not_taken_for_int8(
    families: dict[str, Path], exported: Exported, tmp_path: Path, family: str
) -> None:
    rng = np.random.default_rng(0)

    def bent(graph: Onnx) -> None:
        graph.weights(lambda values: values + rng.normal(0, 0.03 * values.std() + 1e-6, values.shape).astype("f4"))
        graph.model.doc_string = "MatMulInteger"  # by which a graph is known to be quantized

    found = compare(families[family], planted(Onnx, exported("ONNX Runtime", family), tmp_path / "bent", bent))
    assert "unknown" in found.verdict and "int8" not in found.verdict and not found.faults, found.verdict


@pytest.mark.usefixtures("few_probes")
@EVERY_FAMILY
@EVERY_RUNTIME
@pytest.mark.parametrize("name", OF_THE_POOLING)
def test_a_fault_of_the_pooling_is_named(
    families: dict[str, Path], exported: Exported, tmp_path: Path, name: str, runtime: str, family: str
) -> None:
    how, normalize, said = OF_THE_POOLING[name]
    graph = planted(GRAPHS[runtime], exported(runtime, family), tmp_path / "pooled", lambda each: each.pooled(how))
    found = compare(families[family], graph, normalize=normalize)
    assert found.compared == ("vector",)
    if name == "none":
        assert found.agrees
    else:
        assert_named(found, said)


@pytest.mark.usefixtures("few_probes")
@EVERY_FAMILY
@EVERY_RUNTIME
@pytest.mark.parametrize("name", OF_THE_TOKENIZER)
def test_a_fault_of_the_tokenizer_is_named(
    families: dict[str, Path], exported: Exported, tmp_path: Path, name: str, runtime: str, family: str
) -> None:
    edit, said = OF_THE_TOKENIZER[name]
    assert_named(compare(families[family], retold(exported(runtime, family), tmp_path / "graph", edit)), said)


@pytest.mark.usefixtures("few_probes")
@EVERY_FAMILY
@EVERY_RUNTIME
def test_a_fault_of_the_token_types_is_named(
    families: dict[str, Path], exported: Exported, tmp_path: Path, runtime: str, family: str
) -> None:
    """The model gets two types; the graph keeps the one that it has, which is zero, or has the second one."""
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "two-types"
    shutil.copytree(families[family], model, ignore=shutil.ignore_patterns("conversion.json", "options.json"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "type_vocab_size": 2}), encoding="utf-8")
    weights = load_file(model / "model.safetensors")
    (name,) = (each for each in weights if "token_type_embeddings" in each)
    types = np.random.default_rng(0).normal(size=(2, weights[name].shape[1])).astype(np.float32)
    save_file({**weights, name: types}, model / "model.safetensors", metadata={"format": "pt"})
    graph = exported(runtime, family)
    assert_named(compare(model, graph), "leaves out the token type embedding")
    for number, said in ((0, "agrees with fairseq"), (1, "gives every token the second token type")):
        edit = with_types(types[number : number + 1])
        edited = planted(GRAPHS[runtime], graph, tmp_path / str(number), edit)
        assert said in compare(model, edited).verdict


@pytest.mark.usefixtures("few_probes")
def test_a_file_and_optimums_layout_are_found(families: dict[str, Path], exported: Exported, tmp_path: Path) -> None:
    graph = exported("ONNX Runtime", "post-norm")
    shutil.copytree(graph, tmp_path / "optimum", ignore=shutil.ignore_patterns("*.onnx*"))
    shutil.copytree(graph, tmp_path / "optimum" / "onnx", ignore=shutil.ignore_patterns("*.json", "*.md"))
    assert compare(families["post-norm"], tmp_path / "optimum").agrees
    assert compare(families["post-norm"], graph / "model.onnx").agrees
