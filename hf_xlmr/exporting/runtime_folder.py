"""`to_onnx` and `to_openvino`: a folder with the model as a graph, its tokenizer, and how to run it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.exporting.runtime_card import RuntimeReport, runtime_card
from hf_xlmr.exporting.runtime_graph import (
    MANIFEST,
    ONNX,
    OPENVINO,
    Runtime,
    Wanted,
    exported,
    raise_if_missing,
    silent,
)
from hf_xlmr.files.staging import sizes_in, staged_folder
from hf_xlmr.model.model_shape import shape_of_config
from hf_xlmr.model.opened_folder import CARD, CONFIG, OpenedFolder
from hf_xlmr.tokenizer.added_tokens import AddedTokens
from hf_xlmr.tokenizer.sentencepiece_model import check_models_of

__all__ = ["RuntimeReport", "to_onnx", "to_openvino"]

LARGEST_DIFFERENCE: Final = 1e-4  # in float32; rounding gives less than 1e-6
SPARE_BYTES: Final = 64 << 20  # graph, tokenizer and card
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "special_tokens_map.json"),
    *("added_tokens.json", "transformers_tokenizer.py"),
)


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

    As `to_onnx`, but `dtype` is how the weights are stored: OpenVINO itself chooses what it computes in.
    Raises InputError for what the user can fix, IntegrityError for damage and for a graph that computes otherwise.
    """
    wanted = Wanted(dtype=dtype, pool=pool, normalize=normalize, encoder_only=encoder_only)
    return _made(OPENVINO, Path(model_dir), Path(output), wanted, overwrite=overwrite)


def _made(runtime: Runtime, source: Path, target: Path, wanted: Wanted, *, overwrite: bool) -> RuntimeReport:
    from hf_xlmr.exporting.exported_network import loaded

    with told_plainly():
        shape = shape_of_config(OpenedFolder(source).config, name=str(source / CONFIG))
        if shape.adapters is not None:
            raise InputError(f"{source} is an X-MOD: a graph cannot choose its adapters by the language of a text")
        _raise_if_replaced(source, target)
        raise_if_missing(runtime, wanted.dtype)
        check_models_of(source)
        AddedTokens.of(source, rows=shape.vocabulary)  # refuses ids beyond the rows
        with staged_folder(target, overwrite=overwrite, mark=MANIFEST) as draft:
            _raise_if_no_room(shape.nbytes("float32"), draft)
            network = loaded(source, shape, wanted)
            outputs, difference = _written(network, runtime, wanted.dtype, draft, most=shape.longest_text)
            report = RuntimeReport(
                output=target,
                source=source,
                class_name=network.config.architectures[0],
                runtime=runtime.name,
                graph=runtime.graph,
                dtype=wanted.dtype,
                pool=wanted.pool,
                is_normalized=wanted.normalize,
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


def _raise_if_no_room(weights: int, draft: Path) -> None:
    free, needed = shutil.disk_usage(draft).free, weights + SPARE_BYTES
    if free < needed:
        raise InputError(f"the output needs {needed:,} bytes, and {free:,} are free")


def _raise_if_replaced(source: Path, target: Path) -> None:
    """Refuse an output that is the model's folder or holds it; inside it, as onnx/, is where some loaders look."""
    one, other = source.resolve(), target.resolve()
    if one == other or other in one.parents:
        raise InputError(f"{target} is the folder of the model, or holds it; choose another one, such as {source}/onnx")


def _written(network: Any, runtime: Runtime, dtype: str, draft: Path, *, most: int) -> tuple[tuple[str, ...], float]:
    """Write the graph and hold what it answers against the network. Raises InputError, IntegrityError.

    Returns the names of its outputs, and the largest difference.
    """
    from hf_xlmr.exporting.exported_network import answers_of, axes_of, largest_difference, sample_inputs

    compared = sample_inputs(network, texts=4, tokens=most)
    ours = answers_of(network, compared)
    if runtime is ONNX and dtype == "float16":
        network = network.half()
    traced = sample_inputs(network, texts=3, tokens=min(5, most))  # sizes that all differ, as the dimensions may
    with silent():
        made = exported(network, runtime, dtype, traced, axes_of(network), most=most)
        made.save_pretrained(draft)
        theirs = answers_of(type(made).from_pretrained(draft, **runtime.run_with), compared)
    difference = largest_difference(ours, theirs, compared["attention_mask"])
    if dtype == "float32" and difference > LARGEST_DIFFERENCE:
        raise IntegrityError(
            f"the {runtime.name} graph computes otherwise than Transformers: its answers differ by {difference:.1e} of "
            "the largest value (other releases of the packages may not)"
        )
    return tuple(theirs), difference
