"""A Transformers folder as sentence-transformers has it: the same files, and how tokens become one vector."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.model_folder import INDEX, SINGLE, open_model_folder, read_json
from hf_xlmr.conversion.output.sentence_transformers_card import sentence_transformers_card
from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.files.fsync import copy_contents
from hf_xlmr.files.staging import sizes_in, staged_folder
from hf_xlmr.model.families import Task
from hf_xlmr.model.model_shape import ModelShape, shape_of_config
from hf_xlmr.placement.placed_loading import checked_sources, shape_held
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tokenizer.added_tokens import AddedTokens
from hf_xlmr.tokenizer.sentencepiece_model import check_models_of

__all__ = ["POOLS", "SentenceTransformersReport", "to_sentence_transformers"]

MODULES: Final = "modules.json"
SETTINGS: Final = "config_sentence_transformers.json"
ENCODER: Final = "sentence_bert_config.json"
POOLING: Final = "1_Pooling"
CARD: Final = "README.md"
SPARE_BYTES: Final = 64 << 20  # tokenizer, dictionary and records
POOLS: Final[Mapping[str, str]] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
}
"""Ways of pooling, each with what sentence-transformers calls it."""
# The names of sentence-transformers 5, which 6 still reads
CLASSES: Final = (("", "sentence_transformers.models.Transformer"), (POOLING, "sentence_transformers.models.Pooling"))
# A pooler would be random, and what is stored in half precision would be computed in it
MODEL_ARGUMENTS: Final = {"add_pooling_layer": False, "dtype": "float32"}
REFUSED_BY_ONNX: Final = "add_pooling_layer"  # optimum-onnx 0.1 raises a TypeError
TAKEN: Final = (Task.ENCODER, Task.MASKED_LM)
TOKENIZERS: Final = ("tokenizer.json", "sentencepiece.bpe.model")
SMALL_FILES: Final = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *TOKENIZERS,
)
KEPT: Final = "fairseq"
SHOWN: Final = 8


@dataclass(frozen=True)
class SentenceTransformersReport:
    """What was made."""

    output: Path
    source: Path
    class_name: str
    pool: str
    width: int
    """The numbers of a vector."""
    max_length: int
    """Tokens of a text, `<s>` and `</s>` included; longer ones are cut off."""
    files: Mapping[str, int]
    """Names and bytes of what was written."""


def to_sentence_transformers(
    model_dir: str | Path,
    output: str | Path,
    *,
    pool: str = "mean",
    onnx_backend: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> SentenceTransformersReport:
    """Make of a Transformers folder the folder `output`, which `SentenceTransformer(output)` loads.

    It gives the vectors that FeatureExtractor does with the same `pool`, a key of POOLS (of an X-MOD, in its default
    language). `model_dir` holds an encoder or a masked LM of XLM-R's families, and stays as it is. With `onnx_backend`
    the folder also loads with backend="onnx", which refuses to leave out a pooler; PyTorch then adds a random one,
    which no vector rests on. `output` appears under its name only when it is whole.
    Raises InputError for what the user can fix, IntegrityError for damage.
    """
    source, target = Path(model_dir), Path(output)
    if pool not in POOLS:
        raise InputError(f"pool={pool!r:.40} is none of {', '.join(POOLS)}")
    with told_plainly():
        shape = _shape_of(source)
        weights = _weight_files(source)
        _raise_if_inside(source, target)
        with staged_folder(target, overwrite=overwrite, mark=MODULES) as draft:
            _raise_if_no_room(weights, draft)
            _copy(source, weights, draft, progress)
            _write_settings(draft, shape, pool, onnx_backend=onnx_backend)
            card = (source / CARD).read_bytes() if (source / CARD).is_file() else None
            (draft / CARD).write_bytes(
                sentence_transformers_card(
                    card,
                    pool=pool,
                    width=shape.hidden,
                    longest=shape.longest_text,
                    language=shape.adapters.default if shape.adapters else None,
                )
            )
            return SentenceTransformersReport(
                output=target,
                source=source,
                class_name=shape.class_name,
                pool=pool,
                width=shape.hidden,
                max_length=shape.longest_text,
                files=sizes_in(draft),
            )


# ---- refusals --------------------------------------------------------------------------------------------------------


def _shape_of(source: Path) -> ModelShape:
    """The sizes of the model in a folder. Raises InputError if its vectors are not what pooling wants."""
    folder = open_model_folder(source)
    if (source / MODULES).exists():
        raise InputError(f"{source} holds {MODULES}: it is a folder of sentence-transformers already")
    shape = shape_of_config(folder.config)
    if shape.task not in TAKEN:
        raise InputError(
            f"{source}: sentence-transformers would drop the head of {shape.class_name} without a word; give an "
            "encoder or a masked LM. From a fairseq checkpoint, convert makes one with encoder_only=True or "
            "head='none'; from this folder, AutoModel.from_pretrained and save_pretrained do"
        )
    if not any((source / name).is_file() for name in TOKENIZERS):
        raise InputError(
            f"{source} has neither {' nor '.join(TOKENIZERS)}: copy the tokenizer's files from the folder that the "
            "model was trained from"
        )
    if shape.adapters is not None and shape.adapters.default is None:
        raise InputError(
            f"{source} holds an X-MOD without a default_language, and sentence-transformers names no language: set one "
            f"in config.json ({', '.join(shape.adapters.languages[:SHOWN])}, ...)"
        )
    check_models_of(source)
    AddedTokens.of(source, rows=shape.vocabulary)  # refuses ids beyond the rows
    checked_sources(source, shape_held(source, shape))  # what is missing would be random, without a word
    return shape


def _raise_if_inside(source: Path, target: Path) -> None:
    """Refuse an output that is the model's folder, is in it or holds it: one would become part of the other."""
    one, other = source.resolve(), target.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise InputError(f"one of {target} and {source} is inside the other; choose another folder for the output")


def _raise_if_no_room(weights: list[Path], draft: Path) -> None:
    free, needed = shutil.disk_usage(draft).free, sum(path.stat().st_size for path in weights) + SPARE_BYTES
    if free < needed:
        raise InputError(f"the output needs {needed:,} bytes, and {free:,} are free")


# ---- the model's own files -------------------------------------------------------------------------------------------


def _weight_files(source: Path) -> list[Path]:
    """The files that hold the weights, the index of shards among them."""
    if (source / SINGLE).is_file():
        return [source / SINGLE]
    index = read_json(source / INDEX) or {}
    return [source / INDEX, *(source / name for name in sorted(set(index["weight_map"].values())))]


def _copy(source: Path, weights: list[Path], draft: Path, progress: Progress) -> None:
    """Copy what is the model's, links followed (the Hub's cache is made of them), and what fairseq needs again."""
    with progress.task("writing weights", total=sum(path.stat().st_size for path in weights)) as task:
        for path in weights:
            shutil.copyfile(path, draft / path.name)
            task.advance(path.stat().st_size)
    for name in SMALL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, draft / name)
    if (source / KEPT).is_dir():
        copy_contents(source / KEPT, draft / KEPT)


# ---- what sentence-transformers reads --------------------------------------------------------------------------------


def _write_settings(draft: Path, shape: ModelShape, pool: str, *, onnx_backend: bool) -> None:
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": name} for number, (path, name) in enumerate(CLASSES)
    ]
    _write_json(draft / MODULES, modules)
    _write_json(draft / SETTINGS, {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    encoder = {"max_seq_length": shape.longest_text, "do_lower_case": False}
    arguments = {
        name: value for name, value in MODEL_ARGUMENTS.items() if not (onnx_backend and name == REFUSED_BY_ONNX)
    }
    _write_json(draft / ENCODER, {**encoder, "model_args": arguments})
    (draft / POOLING).mkdir()
    modes = {name: way == pool for way, name in POOLS.items()}
    _write_json(draft / POOLING / "config.json", {"word_embedding_dimension": shape.hidden, **modes})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
