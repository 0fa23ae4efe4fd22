"""A Transformers folder, opened but not loaded: its configuration, and its weights where they are in their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.containers import StorageRecord
from hf_xlmr.conversion.checkpoint.weights import Stored, Weight
from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.errors import InputError, WeightsMismatch
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.model.safetensors_files import file_header, shards_of
from hf_xlmr.model.stored_weights import present_name

__all__ = ["ModelFolder", "open_model_folder", "read_json"]

CONFIG: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLED: Final = "pytorch_model"  # how the weights were called before safetensors
DTYPES: Final = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class ModelFolder:
    """An opened folder; `weights` are under Transformers' names and give their bytes when asked."""

    path: Path
    config: JsonObject
    weights: Mapping[str, Weight]


def open_model_folder(path: Path) -> ModelFolder:
    """Open the Transformers folder at `path`, not reading its weights. Raises InputError, IntegrityError, OSError."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; give the folder that save_pretrained or `convert` wrote")
    config = read_json(path / CONFIG)
    if config is None:
        raise InputError(f"{path} is not a Transformers folder: it has no {CONFIG}")
    weights = _weights(path)
    present = {name: present_name(name) for name in weights}
    named = {name if present[name] in weights else present[name]: weight for name, weight in weights.items()}
    return ModelFolder(path=path, config=config, weights=named)


def read_json(path: Path, *, has_paths: bool = False) -> JsonObject | None:
    """The JSON object in a file, None if there is no file. Raises IntegrityError, OSError."""
    if not path.is_file():
        return None
    return json_object(path, has_paths=has_paths)


def _weights(path: Path) -> dict[str, Weight]:
    """Every tensor of the folder's safetensors files."""
    if (path / SINGLE).is_file():
        return dict(_tensors(path / SINGLE))
    index = shards_of(path / INDEX) if (path / INDEX).is_file() else None
    if index is None:
        if any(path.glob(f"{PICKLED}*")):
            raise InputError(f"{path} holds pickled weights; save the model again as safetensors (save_pretrained)")
        raise InputError(f"{path} holds no weights: there is neither {SINGLE} nor {INDEX}")
    return _indexed(path, index)


def _indexed(path: Path, listed: Mapping[str, str]) -> dict[str, Weight]:
    """The tensors of the shards that an index lists. Raises WeightsMismatch if one is not where it says."""
    weights: dict[str, Weight] = {}
    for file in sorted(set(listed.values())):
        if not (path / file).is_file():
            raise InputError(f"{path} is incomplete: {file} is missing")
        found = dict(_tensors(path / file))
        missing = [name for name, place in listed.items() if place == file and name not in found]
        twice = [name for name in found if name in weights]
        if missing or twice:
            raise WeightsMismatch(missing=missing, unexpected=[f"{name} (a second one)" for name in twice])
        weights |= found
    return weights


def _tensors(path: Path) -> Iterator[tuple[str, Weight]]:
    """The tensors of a safetensors file. Raises IntegrityError, InputError if a type is not a plain number."""
    for name, entry in file_header(path).items():
        if entry.dtype not in DTYPES:
            raise InputError(f"{path} holds {name:.80} as {entry.dtype:.20}, which fairseq cannot compute with")
        where = FileSlice(path, entry.start, entry.nbytes, str(path))
        stride = tuple(prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
        record = StorageRecord(name, where, None)
        yield name, Stored(record=record, dtype=DTYPES[entry.dtype], shape=entry.shape, stride=stride)
