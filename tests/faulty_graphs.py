"""Faults planted in folders of ONNX and OpenVINO: in the nodes and tables of a graph, after it, and in its tokenizer.

Nothing here knows how hf_xlmr.conformance computes its hypotheses, and nothing is exported again: a graph is read,
edited through the library of its format, and written.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "GRAPHS",
    "OF_THE_FINAL_NORM",
    "OF_THE_NETWORK",
    "OF_THE_POOLING",
    "OF_THE_TOKENIZER",
    "Onnx",
    "planted",
    "retold",
    "with_types",
]

Table = Callable[[np.ndarray], np.ndarray]


class Onnx:
    """A graph of ONNX Runtime; each method plants a fault, or what faults are made of."""

    file = "model.onnx"

    def __init__(self, folder: Path) -> None:
        import onnx

        self.onnx, self.model = onnx, onnx.load(folder / self.file)

    def save(self, folder: Path) -> None:
        self.onnx.save(self.model, folder / self.file)

    def nodes(self, kind: str) -> list[Any]:
        return [node for node in self.model.graph.node if node.op_type == kind]

    def constant(self, value: np.ndarray, name: str) -> str:
        self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def added(self, kind: str, given: list[str], made: str, *, first: bool = False, **options: Any) -> str:
        node = self.onnx.helper.make_node(kind, given, [made], **options)
        self.model.graph.node.insert(0 if first else len(self.model.graph.node), node)
        return made

    def table(self, rows: int, change: Table) -> None:
        """Change the one table of an embedding that has so many rows."""
        held = {each.name: each for each in self.model.graph.initializer if len(each.dims) == 2}
        for node in self.nodes("Gather"):
            if node.input[0] in held and held[node.input[0]].dims[0] == rows:
                values = self.onnx.numpy_helper.to_array(held[node.input[0]])
                node.input[0] = self.constant(change(values), "changed")

    def weights(self, change: Table) -> None:
        for held in self.model.graph.initializer:
            if held.data_type == self.onnx.TensorProto.FLOAT and held.dims:
                changed = self.onnx.numpy_helper.from_array(change(self.onnx.numpy_helper.to_array(held)), held.name)
                held.CopyFrom(changed)

    def tanh(self) -> None:
        for node in self.nodes("Gelu"):
            del node.attribute[:]
            node.attribute.append(self.onnx.helper.make_attribute("approximate", "tanh"))

    def eps(self) -> None:
        for node in self.nodes("LayerNormalization"):
            next(each for each in node.attribute if each.name == "epsilon").f = 1e-3

    def no_last_norm(self) -> None:
        last = self.nodes("LayerNormalization")[-1]
        output = self.model.graph.output[0].name
        assert last.output[0] == output
        last.output[0] = "unused"
        self.added("Identity", [last.input[0]], output)

    def two_last_norms(self) -> None:
        last = self.nodes("LayerNormalization")[-1]
        output, last.output[0] = last.output[0], "once"
        again = self.onnx.NodeProto.FromString(last.SerializeToString())
        again.name, again.input[0], again.output[0] = "again", "once", output
        self.model.graph.node.append(again)

    def input_becomes(self, name: str, kind: str, value: np.ndarray) -> None:
        """What reads an input reads `kind` of it and `value`."""
        for node in self.model.graph.node:
            for place, given in enumerate(node.input):
                if given == name:
                    node.input[place] = f"{name}_changed"
        self.added(kind, [name, self.constant(value, f"{name}_value")], f"{name}_changed", first=True)

    def packed(self) -> None:
        for name in ("input_ids", "attention_mask"):
            self.input_becomes(name, "Reshape", np.array([1, -1]))
        hidden = self.model.graph.output[0].name
        node = next(node for node in self.model.graph.node if hidden in node.output)
        node.output[0] = "flat"
        self.added("Shape", ["input_ids"], "texts_and_tokens")
        self.added("Concat", ["texts_and_tokens", self.constant(np.array([-1]), "rest")], "unpacked", axis=0)
        self.added("Reshape", ["flat", "unpacked"], hidden)

    def attended(self) -> None:
        self.input_becomes("attention_mask", "Max", np.array(1))

    def pooled(self, how: str) -> None:
        """Only a vector of each text is left."""
        hidden = self.model.graph.output[0].name
        one, first = self.constant(np.array([1]), "axis"), self.constant(np.array(0), "first")
        self.added("Unsqueeze", ["attention_mask", self.constant(np.array([2]), "last")], "mask")
        self.added("Cast", ["mask"], "kept", to=self.onnx.TensorProto.FLOAT)
        self.added("Cast", ["mask"], "is_kept", to=self.onnx.TensorProto.BOOL)
        self.added("Where", ["is_kept", hidden, self.constant(np.float32([-1e30]), "low")], "filled")
        self.added("Mul", [hidden, "kept"], "own")
        self.added("ReduceSum", ["own", one], "sum", keepdims=0)
        self.added("ReduceSum", ["kept", one], "count", keepdims=0)
        self.added("Div", ["sum", "count"], "mean")
        ways: Mapping[str, tuple[str, list[str], dict[str, Any]]] = {
            "mean": ("Identity", ["mean"], {}),
            "mean of all": ("ReduceMean", [hidden, one], {"keepdims": 0}),
            "cls": ("Gather", [hidden, first], {"axis": 1}),
            "max": ("ReduceMax", ["filled", one], {"keepdims": 0}),
            "normalized": ("LpNormalization", ["mean"], {"axis": -1, "p": 2}),
        }
        kind, given, options = ways[how]
        self.added(kind, given, "sentence_embedding", **options)
        output = self.onnx.helper.make_tensor_value_info("sentence_embedding", self.onnx.TensorProto.FLOAT, None)
        self.model.graph.output[0].CopyFrom(output)

    def int8(self) -> None:
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            quantize_dynamic(self.model, f"{folder}/{self.file}", op_types_to_quantize=["MatMul"])
            self.model = self.onnx.load(f"{folder}/{self.file}")


class OpenVino:
    """A graph of OpenVINO, with the same faults."""

    file = "openvino_model.xml"

    def __init__(self, folder: Path) -> None:
        import openvino
        from openvino import opset15

        self.openvino, self.ops = openvino, opset15
        self.model = openvino.Core().read_model(folder / self.file)

    def save(self, folder: Path) -> None:
        self.model.validate_nodes_and_infer_types()
        self.openvino.save_model(self.model, folder / self.file, compress_to_fp16=False)

    def nodes(self, kind: str) -> list[Any]:
        return [node for node in self.model.get_ordered_ops() if node.get_type_name() == kind]

    def floats(self) -> list[Any]:
        is_float = self.openvino.Type.f32
        return [
            each for each in self.nodes("Constant") if each.get_output_element_type(0) == is_float and each.data.ndim
        ]

    def table(self, rows: int, change: Table) -> None:
        names = {each.get_friendly_name() for each in self.floats()}
        for node in self.nodes("Gather"):
            held = node.input_value(0).get_node()
            if held.get_friendly_name() in names and held.data.shape[0] == rows:
                node.input(0).replace_source_output(self.ops.constant(change(held.data)).output(0))

    def weights(self, change: Table) -> None:
        for held in self.floats():
            held.output(0).replace(self.ops.constant(change(held.data)).output(0))

    def tanh(self) -> None:
        for node in self.nodes("Gelu"):
            node.output(0).replace(self.ops.gelu(node.input_value(0), "TANH").output(0))

    def norm(self, values: Any, axes: Any, eps: float) -> Any:
        return self.ops.mvn(values, axes, normalize_variance=True, eps=eps, eps_mode="INSIDE_SQRT")

    def eps(self) -> None:
        for node in self.nodes("MVN"):
            made = self.norm(node.input_value(0), node.input_value(1), 1e-3)
            node.output(0).replace(made.output(0))

    @property
    def result(self) -> Any:
        return self.nodes("Result")[0]

    def no_last_norm(self) -> None:
        self.result.input(0).replace_source_output(self.nodes("MVN")[-1].input_value(0))

    def two_last_norms(self) -> None:
        once, norm = self.result.input_value(0), self.nodes("MVN")[-1]
        product = next(iter(norm.output(0).get_target_inputs())).get_node()
        weight, bias = product.input_value(1), once.get_node().input_value(1)
        again = self.norm(once, norm.input_value(1), norm.get_attributes()["eps"])
        made = self.ops.add(self.ops.multiply(again, weight), bias)
        self.result.input(0).replace_source_output(made.output(0))

    def input_becomes(self, name: str, change: Callable[[Any], Any]) -> None:
        given = self.model.input(name)
        readers = list(given.get_target_inputs())
        made = change(given.get_node()).output(0)
        for each in readers:
            each.replace_source_output(made)

    def packed(self) -> None:
        ids = self.model.input("input_ids")
        for name in ("input_ids", "attention_mask"):
            self.input_becomes(name, lambda node: self.ops.reshape(node, np.array([1, -1]), special_zero=False))
        shape = self.ops.concat([self.ops.shape_of(ids), self.ops.constant(np.array([-1]))], 0)
        made = self.ops.reshape(self.result.input_value(0), shape, special_zero=False)
        self._answers(made, "last_hidden_state")

    def attended(self) -> None:
        self.input_becomes("attention_mask", lambda node: self.ops.maximum(node, self.ops.constant(np.array(1))))

    def _answers(self, made: Any, name: str) -> None:
        made.output(0).get_tensor().set_names({name})
        self.model = self.openvino.Model([self.ops.result(made)], self.model.get_parameters(), "faulty")

    def pooled(self, how: str) -> None:
        ops, hidden = self.ops, self.result.input_value(0)
        mask = ops.convert(ops.unsqueeze(self.model.input("attention_mask"), np.array([2])), "f32")
        mean = ops.divide(
            ops.reduce_sum(ops.multiply(hidden, mask), np.array([1])), ops.reduce_sum(mask, np.array([1]))
        )
        low = ops.multiply(ops.subtract(mask, np.float32(1)), np.float32(1e30))
        ways: Mapping[str, Callable[[], Any]] = {
            "mean": lambda: mean,
            "mean of all": lambda: ops.reduce_mean(hidden, np.array([1])),
            "cls": lambda: ops.gather(hidden, np.array(0), np.array(1)),
            "max": lambda: ops.reduce_max(ops.add(hidden, low), np.array([1])),
            "normalized": lambda: ops.normalize_l2(mean, np.array([1]), 1e-12, "max"),
        }
        self._answers(ways[how](), "sentence_embedding")

    def int8(self) -> None:
        import nncf

        self.model = nncf.compress_weights(self.model)


GRAPHS: Mapping[str, type[Onnx] | type[OpenVino]] = {"ONNX Runtime": Onnx, "OpenVINO": OpenVino}
Graph = Onnx | OpenVino


def _rounded(dtype: torch.dtype) -> Table:
    return lambda values: torch.from_numpy(np.array(values)).to(dtype).float().numpy()


def _from(first: int) -> Callable[[Graph], None]:
    """The table of positions as a runtime reads it that counts from `first`: 66 rows, of which two come before 2."""
    return lambda graph: graph.table(66, lambda rows: np.concatenate([rows[:2], rows[first : first + 64]]))


def with_types(row: np.ndarray) -> Callable[[Any], None]:
    """What gives every token this vector of its type, (1, width)."""
    return lambda graph: graph.table(1, lambda _: row)


OF_THE_NETWORK: Mapping[str, tuple[Callable[[Any], None], str]] = {
    "positions from 0": (_from(0), "counts positions from 0"),
    "positions from 1": (_from(1), "counts positions from 1"),
    "tanh GELU": (lambda graph: graph.tanh(), "computes the tanh approximation of GELU"),
    "eps": (lambda graph: graph.eps(), "has the eps 0.001"),
    "padding attended to": (lambda graph: graph.attended(), "attends to padding"),
    "texts leak": (lambda graph: graph.packed(), "lets the texts of a batch attend to each other, with positions that"),
    "weights in float16": (lambda graph: graph.weights(_rounded(torch.float16)), "rounds its weights to float16"),
    "weights in bfloat16": (lambda graph: graph.weights(_rounded(torch.bfloat16)), "rounds its weights to bfloat16"),
    "int8": (lambda graph: graph.int8(), "int8"),
}
"""What changes a graph that gives vectors of tokens, and a part of the verdict."""
OF_THE_FINAL_NORM: Mapping[str, tuple[Callable[[Any], None], str]] = {
    "no final norm": (lambda graph: graph.no_last_norm(), "leaves out the norm after the last layer"),
    "two final norms": (lambda graph: graph.two_last_norms(), "applies the norm after the last layer twice"),
}
OF_THE_POOLING: Mapping[str, tuple[str, bool, str]] = {
    "none": ("mean", False, "agrees with fairseq"),
    "padding pooled": ("mean of all", False, "pools the vectors of padding"),
    "pooled by cls": ("cls", False, "pools by cls"),
    "pooled by max": ("max", False, "pools by max"),
    "normalized": ("normalized", False, "scales vectors to the length 1"),
    "not normalized": ("mean", True, "does not scale vectors to the length 1"),
}
"""How the graph pools, whether it should normalize, and a part of the verdict."""


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def _framed(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any, Any], None]:
    def edit(tokenizer: Any, _config: Any) -> None:
        for name in ("single", "pair"):
            tokenizer["post_processor"][name] = change(tokenizer["post_processor"][name])

    return edit


def _cut_off(tokenizer: Any, config: Any) -> None:
    config["model_max_length"] = 32


def _in_lower_case(tokenizer: Any, _config: Any) -> None:
    tokenizer["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})


def _with_other_ids(tokenizer: Any, _config: Any) -> None:
    """The pieces after the first ones in another order."""
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = [*vocab[:10], *vocab[10:200][::-1], *vocab[200:]]


OF_THE_TOKENIZER: Mapping[str, tuple[Callable[[Any, Any], None], str]] = {
    "no <s>": (_framed(lambda parts: parts[1:]), "leaves out <s>"),
    "no </s>": (_framed(lambda parts: parts[:-1]), "leaves out </s>"),
    "neither": (_framed(lambda parts: parts[1:-1]), "leaves out <s> and </s>"),
    "two <s>": (_framed(lambda parts: [parts[0], *parts]), "adds <s> twice"),
    "two </s>": (_framed(lambda parts: [*parts, parts[-1]]), "adds </s> twice"),
    "truncation at 32": (_cut_off, "cuts texts off at 32 tokens"),
    "lower case": (_in_lower_case, "tokenizes texts in lower case"),
    "another tokenizer": (_with_other_ids, "has another tokenizer"),
}
"""What changes tokenizer.json and tokenizer_config.json of an exported folder, and a part of the verdict."""


def planted(kind: type[Onnx] | type[OpenVino], folder: Path, output: Path, edit: Callable[[Any], None]) -> Path:
    """A copy of an exported folder whose graph `edit` changes."""
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.onnx*", "*.xml", "*.bin"))
    graph = kind(folder)
    edit(graph)
    graph.save(output)
    return output


def retold(folder: Path, output: Path, edit: Callable[[Any, Any], None]) -> Path:
    """A copy of an exported folder whose tokenizer `edit` changes."""
    shutil.copytree(folder, output)
    paths = [output / "tokenizer.json", output / "tokenizer_config.json"]
    held = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    edit(*held)
    for path, content in zip(paths, held, strict=True):
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return output
