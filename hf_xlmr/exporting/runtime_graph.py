"""Graphs of other runtimes, by the exporters of Transformers: the options of each, and how each computes exactly."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["MANIFEST", "ONNX", "OPENVINO", "Runtime", "Wanted", "exported", "raise_if_missing", "silent"]

CHOICES: Final = {"dtype": ("float32", "float16", "int8"), "pool": ("mean", "cls", "max", "none")}
MANIFEST: Final = "export.json"  # of Transformers' ExportedModel
EXPORTERS: Final = "transformers.exporters"
OLDEST: Final = "5.23"  # of Transformers, whose exports load again
SYMBOL: Final = re.compile(r"s\d+")


@dataclass(frozen=True)
class Runtime:
    """A runtime, and what Transformers needs to make graphs for it and to run them."""

    name: str
    packages: tuple[str, ...]
    exporter: str
    config: str
    graph: str
    """The file of the graph."""
    options: Callable[[str, Any], dict[str, object]]
    """Returns the fields of the exporter's configuration for a dtype; the second argument holds its classes."""
    run_with: Mapping[str, object] = field(default_factory=dict)
    """Options of ExportedModel with which it computes in float32."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a graph is to compute. Raises InputError for what cannot be meant."""

    dtype: str
    pool: str
    normalize: bool
    encoder_only: bool

    def __post_init__(self) -> None:
        """Refuse values that are not among `CHOICES`."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r:.40} is not one of {', '.join(known)}")
        if self.normalize and self.pool == "none":
            raise InputError("normalize=True is for pooled vectors: give pool='mean' or another with it")


def exported(
    network: nn.Module, runtime: Runtime, dtype: str, inputs: Mapping[str, Tensor], axes: tuple[str, ...], *, most: int
) -> Any:
    """Transformers' ExportedModel of the network, for any number of texts of up to `most` tokens. Raises InputError."""
    from torch.export import Dim

    exporters = import_module(EXPORTERS)
    sizes = {number: Dim(name, max=most if name == axes[-1] else None) for number, name in enumerate(axes)}
    fields = runtime.options(dtype, exporters)
    config = getattr(exporters, runtime.config)(dynamic=True, dynamic_shapes=dict.fromkeys(inputs, sizes), **fields)
    try:
        made = getattr(exporters, runtime.exporter)().export(network, dict(inputs), config)
    except ImportError as error:  # which says what is too old
        raise InputError(f"{runtime.name} graphs cannot be made here: {' '.join(str(error).split())}") from error
    if runtime is ONNX:
        _tidy(made.program, axes)
    return made


def raise_if_missing(runtime: Runtime, dtype: str) -> None:
    """Raise InputError where what makes and runs graphs of that kind is not installed, or too old."""
    import transformers

    if find_spec(EXPORTERS) is None or not hasattr(import_module(EXPORTERS), "ExportedModel"):
        raise InputError(
            f"Transformers {transformers.__version__} makes no {runtime.name} graphs: install {OLDEST} or newer"
        )
    needed = (*runtime.packages, *(["nncf"] if runtime is OPENVINO and dtype == "int8" else []))
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InputError(
            f"{runtime.name} graphs need {' and '.join(missing)}: pip install 'hf-xlmr[{runtime.name.lower()}]'"
        )


@contextmanager
def silent() -> Iterator[None]:
    """Silence inside the block what the exporters print and log of their own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnx_options(dtype: str, exporters: Any) -> dict[str, object]:
    if dtype != "int8":
        return {}
    # Not the embeddings, for which ONNX Runtime has one scale; 7 bits, of which no processor's sums overflow
    products = exporters.OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True)
    return {"quantizer": exporters.OnnxRuntimeQuantizer(products)}


def _openvino_options(dtype: str, exporters: Any) -> dict[str, object]:
    if dtype != "int8":
        return {"compress_to_fp16": dtype == "float16"}
    return {"quantizer": exporters.NNCFOpenVINOQuantizer(exporters.NNCFWeightCompressionConfig())}


def _tidy(model: Any, axes: tuple[str, ...]) -> None:
    """Name the dimensions of an ONNX graph, and take out its traces, in which paths of this machine are."""
    ir, passes = import_module("onnx_ir"), import_module("onnx_ir.passes.common")
    passes.ClearMetadataAndDocStringPass()(model)
    names = dict(zip(map(str, model.graph.inputs[0].shape), axes, strict=True))
    for value in (*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_named(size, names) for size in value.shape])


def _named(size: Any, names: Mapping[str, str]) -> int | str:
    return size if isinstance(size, int) else SYMBOL.sub(lambda found: names.get(found[0], found[0]), str(size))


ONNX: Final = Runtime(
    *("ONNX", ("onnx", "onnxscript", "onnxruntime"), "OnnxExporter", "OnnxConfig", "model.onnx"), _onnx_options
)
OPENVINO: Final = Runtime(
    *("OpenVINO", ("openvino",), "OpenVINOExporter", "OpenVINOConfig", "openvino_model.xml"),
    _openvino_options,
    {"device": "cpu", "config": {"INFERENCE_PRECISION_HINT": "f32"}},
)
