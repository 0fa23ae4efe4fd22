"""`to_onnx` and `to_openvino`: a folder with the model as a graph by Transformers' exporters, and how to run it."""

from __future__ import annotations

import io
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.export import Dim

from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError, one_line, told_plainly
from hf_xlmr.exporting.runtime_card import RuntimeReport, Wanted, runtime_card
from hf_xlmr.files.staging import sizes_in, staged_folder
from hf_xlmr.model.families import Task
from hf_xlmr.model.model_shape import ModelShape, shape_of_config
from hf_xlmr.model.opened_folder import CARD, CONFIG, OpenedFolder
from hf_xlmr.placement.placed_loading import load_whole
from hf_xlmr.tokenizer.added_tokens import AddedTokens
from hf_xlmr.tokenizer.dictionary import PAD_INDEX
from hf_xlmr.tokenizer.sentencepiece_model import check_models_of

__all__ = ["RuntimeReport", "plainly", "to_onnx", "to_openvino"]

Tensors: TypeAlias = Mapping[str, torch.Tensor]
LARGEST_DIFFERENCE: Final = 1e-4  # in float32; rounding gives less than 1e-6
SPARE_BYTES: Final = 64 << 20  # graph, tokenizer and card
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "special_tokens_map.json"),
    *("added_tokens.json", "transformers_tokenizer.py"),
)
EXPORTERS: Final = "transformers.exporters"
POOLS: Final[Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "mean": lambda states, mask: (states * mask).sum(1) / mask.sum(1).clamp(min=1),
    "cls": lambda states, mask: states[:, 0],
    "max": lambda states, mask: states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(1),
}
"""One vector of each text's, (texts, tokens, width) and (texts, tokens, 1) in float32; as in `features.pooling`."""
SMALLEST: Final = 1e-12  # what is divided by, at least
ONNX: Final = "ONNX"
OPENVINO: Final = "OpenVINO"
PACKAGES: Final = {ONNX: ("onnx", "onnxscript", "onnxruntime"), OPENVINO: ("openvino",)}
EXACTLY: Final = {"device": "cpu", "config": {"INFERENCE_PRECISION_HINT": "f32"}}  # for OpenVINO, which may round


def to_onnx(
    model_dir: str | Path,
    output: str | Path,
    *,
    dtype: str = "float32",
    pool: str = "none",
    normalize: bool = False,
    encoder_only: bool = False,
    overwrite: bool = False,
) -> RuntimeReport:
    """Make of a Transformers folder the folder `output` with model.onnx, which ONNX Runtime runs.

    The graph takes `input_ids` and `attention_mask` of any number of texts of up to the model's length, and answers as
    the class of the folder does; `encoder_only` leaves the head out. With `pool` (mean, cls or max, as in
    FeatureExtractor) it answers with one vector for each text, `sentence_embedding`, which `normalize` divides by its
    length. `dtype` is float32, float16, or int8 (products with weights alone). The graph is run beside the model before
    `output` appears under its name.
    Raises InputError for what the user can fix, IntegrityError for damage and for a graph that computes otherwise.
    """
    wanted = Wanted(dtype=dtype, pool=pool, normalize=normalize, encoder_only=encoder_only)
    return _made(ONNX, Path(model_dir), Path(output), wanted, overwrite=overwrite)


def to_openvino(
    model_dir: str | Path,
    output: str | Path,
    *,
    dtype: str = "float32",
    pool: str = "none",
    normalize: bool = False,
    encoder_only: bool = False,
    overwrite: bool = False,
) -> RuntimeReport:
    """Make of a Transformers folder the folder `output` with openvino_model.xml, which OpenVINO runs.

    As `to_onnx`, but `dtype` is how the weights are stored: OpenVINO itself chooses what it computes in. Raises
    InputError, IntegrityError.
    """
    wanted = Wanted(dtype=dtype, pool=pool, normalize=normalize, encoder_only=encoder_only)
    return _made(OPENVINO, Path(model_dir), Path(output), wanted, overwrite=overwrite)


def _made(runtime: str, source: Path, target: Path, wanted: Wanted, *, overwrite: bool) -> RuntimeReport:
    with told_plainly():
        shape = shape_of_config(OpenedFolder(source).config, name=str(source / CONFIG))
        if shape.adapters is not None:
            raise InputError(f"{source} is an X-MOD: a graph cannot choose its adapters by the language of a text")
        if source.resolve().is_relative_to(target.resolve()):  # inside it, as onnx/, is where some loaders look
            raise InputError(
                f"{target} is the folder of the model, or holds it; choose another one, such as {source}/onnx"
            )
        _raise_if_missing(runtime, wanted.dtype)
        check_models_of(source)
        AddedTokens.of(source, rows=shape.vocabulary)  # refuses ids beyond the rows
        with staged_folder(target, overwrite=overwrite, mark="export.json") as draft:
            free, needed = shutil.disk_usage(draft).free, shape.nbytes("float32") + SPARE_BYTES
            if free < needed:
                raise InputError(f"the output needs {needed:,} bytes, and {free:,} are free")
            network = loaded(source, shape, wanted)
            with plainly(f"{runtime} graphs cannot be made here"):
                outputs, difference = _written(network, runtime, wanted.dtype, draft, most=shape.longest_text)
            report = RuntimeReport(
                **asdict(wanted),
                output=target,
                source=source,
                class_name=network.config.architectures[0],
                runtime=runtime,
                outputs=outputs,
                max_length=shape.longest_text,
                difference=difference,
                files={},
            )
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, draft / name)
            card = (source / CARD).read_bytes() if (source / CARD).is_file() else None
            (draft / CARD).write_bytes(runtime_card(card, report))
            return replace(report, files=sizes_in(draft))


def _written(network: Any, runtime: str, dtype: str, draft: Path, *, most: int) -> tuple[tuple[str, ...], float]:
    """Write the graph, and return the names of its outputs and their largest difference. Raises IntegrityError."""
    compared = sample_inputs(network, texts=4, tokens=most)
    ours = answers_of(network, compared)
    network = network.half() if runtime == ONNX and dtype == "float16" else network
    traced = sample_inputs(network, texts=3, tokens=min(5, most))  # sizes that all differ, as the dimensions may
    made = _exported(network, runtime, dtype, traced, most=most)
    made.save_pretrained(draft)
    theirs = answers_of(type(made).from_pretrained(draft, **(EXACTLY if runtime == OPENVINO else {})), compared)
    difference = largest_difference(ours, theirs, compared["attention_mask"])
    if dtype == "float32" and difference > LARGEST_DIFFERENCE:
        raise IntegrityError(
            f"the {runtime} graph computes otherwise than Transformers: by {difference:.1e} of the largest value"
        )
    return tuple(theirs), difference


def _exported(network: Any, runtime: str, dtype: str, inputs: Tensors, *, most: int) -> Any:
    """Transformers' ExportedModel of the network, for any number of texts of up to `most` tokens."""
    exporters = import_module(EXPORTERS)
    axes = ("batch", *["choices"] * (inputs["input_ids"].ndim - 2), "sequence")
    sizes = {number: Dim(name, max=most if name == axes[-1] else None) for number, name in enumerate(axes)}
    dynamic = {"dynamic": True, "dynamic_shapes": dict.fromkeys(inputs, sizes)}
    config = exporters.AutoExportConfig.from_dict(
        {"export_format": runtime.lower(), **dynamic, **_options(runtime, dtype, exporters)}
    )
    made = exporters.AutoHfExporter.from_config(config).export(network, dict(inputs), config)
    if runtime == ONNX:
        _tidy(made.program, axes)
    return made


def _options(runtime: str, dtype: str, exporters: Any) -> dict[str, object]:
    if dtype != "int8":
        return {"compress_to_fp16": dtype == "float16"} if runtime == OPENVINO else {}
    if runtime == OPENVINO:
        return {"quantizer": exporters.NNCFOpenVINOQuantizer(exporters.NNCFWeightCompressionConfig())}
    # Not the embeddings, for which ONNX Runtime has one scale; 7 bits, of which no processor's sums overflow
    products = exporters.OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True)
    return {"quantizer": exporters.OnnxRuntimeQuantizer(products)}


def _tidy(model: Any, axes: tuple[str, ...]) -> None:
    """Name the dimensions of an ONNX graph, and take out its traces, in which paths of this machine are."""
    ir, passes = import_module("onnx_ir"), import_module("onnx_ir.passes.common")
    passes.ClearMetadataAndDocStringPass()(model)
    names = dict(zip(map(str, model.graph.inputs[0].shape), axes, strict=True))

    def named(size: Any) -> int | str:
        return size if isinstance(size, int) else re.sub(r"s\d+", lambda each: names.get(each[0], each[0]), str(size))

    for value in (*model.graph.inputs, *(output for node in model.graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(map(named, value.shape))


class PooledNetwork(nn.Module):
    """An encoder, its pooling, and if `normalizes` the division of each vector by its length."""

    def __init__(self, encoder: nn.Module, pool: str, *, normalizes: bool) -> None:
        super().__init__()
        self.encoder, self.config, self.pool, self.normalizes = encoder, encoder.config, pool, normalizes

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The vectors, (texts, width) in float32, of ids and mask, (texts, tokens)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0].float()
        vectors = POOLS[self.pool](states, attention_mask.unsqueeze(-1).float())
        normal = nn.functional.normalize(vectors, dim=-1, eps=SMALLEST) if self.normalizes else vectors
        return {"sentence_embedding": normal}  # the name that optimum gives it


def loaded(folder: Path, shape: ModelShape, wanted: Wanted) -> Any:
    """The network to export, in float32; its configuration names its class. Raises InputError, IntegrityError."""
    pools = wanted.pool != "none"
    if pools or wanted.encoder_only:
        keeps_pooler = shape.has_pooler and shape.task is Task.ENCODER and not pools
        shape = replace(shape, task=Task.ENCODER, has_pooler=keeps_pooler)
    network = load_whole(folder, device="cpu", dtype="float32", shape=shape)
    pooling = {"pool": wanted.pool, "normalize": wanted.normalize} if pools else {}  # which verify-runtime reads
    network.config.update({"architectures": [type(network).__name__], **pooling})
    return PooledNetwork(network, wanted.pool, normalizes=wanted.normalize).eval() if pools else network


def sample_inputs(network: Any, *, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Ids and mask of texts of unequal length, (texts, tokens), or of two choices each, (texts, 2, tokens)."""
    shape = (texts, *[2] * network.config.architectures[0].endswith(Task.MULTIPLE_CHOICE.value), tokens)
    ids = (torch.arange(prod(shape)) * 7919 % network.config.vocab_size).view(shape)
    ids[ids == PAD_INDEX] = 0
    ids[-1, ..., tokens // 2 + 1 :] = PAD_INDEX
    return {"input_ids": ids, "attention_mask": (ids != PAD_INDEX).long()}


def answers_of(network: Callable[..., Any], inputs: Tensors) -> dict[str, torch.Tensor]:
    """The outputs of a network or of an exported one by their names, in float32."""
    with torch.inference_mode():
        return {name: value.float().clone() for name, value in dict(network(**inputs)).items()}


def largest_difference(ours: Tensors, theirs: Tensors, mask: torch.Tensor) -> float:
    """The largest difference on what is not padding, as a share of our largest value. Raises IntegrityError."""
    found = 0.0
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise IntegrityError(f"the graph and the model answer with other outputs: {name} is not the same in both")
        is_of_tokens = ours[name].shape[: mask.ndim] == mask.shape
        want, got = (each[name][mask.bool()] if is_of_tokens else each[name] for each in (ours, theirs))
        if not bool(got.isfinite().all()):
            raise IntegrityError(f"the graph's {name} has numbers that are not finite; choose another dtype")
        found = max(found, float((want - got).abs().max() / want.abs().max().clamp(min=SMALLEST)))
    return found


def _raise_if_missing(runtime: str, dtype: str) -> None:
    """Raise InputError where what makes and runs graphs of that kind is not installed, or too old."""
    if not find_spec(EXPORTERS) or not hasattr(import_module(EXPORTERS), "ExportedModel"):
        raise InputError(f"Transformers {version('transformers')} makes no {runtime} graphs: install 5.23 or newer")
    needed = (*PACKAGES[runtime], *["nncf"] * (runtime == OPENVINO and dtype == "int8"))
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InputError(f"{runtime} graphs need {' and '.join(missing)}: pip install 'hf-xlmr[{runtime.lower()}]'")


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Silence what others' code in the block prints and logs; what it raises becomes an InputError: `what`, and why."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (HfXlmrError, MemoryError):
        raise
    except Exception as error:  # each exporter and runtime has its own errors
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a sentence of others' code
            raise
        raise InputError(f"{what}: {one_line(error)}") from error
    finally:
        logging.disable(before)
