"""A Transformers folder, opened but not loaded: its configuration, and its weights where they lie in their files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from hf_xlmr.conversion.containers import ITEM_SIZES, StorageRecord
from hf_xlmr.conversion.slices import FileSlice
from hf_xlmr.conversion.weights import Stored, Weight
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.stored_weights import LFS_POINTER, POINTER_TOLD, present_name

__all__ = ["ModelFolder", "open_model_folder", "read_json"]

CONFIG: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLED: Final = "pytorch_model"  # how the weights were called before safetensors
METADATA: Final = "__metadata__"
LARGEST_HEADER: Final = 100_000_000  # bytes; the format's own limit
MOST_DIMENSIONS: Final = 16
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
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]


def open_model_folder(path: Path) -> ModelFolder:
    """Open the Transformers folder at `path`, not reading its weights. Raises InputError, IntegrityError, OSError."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder; give the folder that save_pretrained or hf-xlmr convert wrote")
    config = read_json(path / CONFIG)
    if config is None:
        raise InputError(f"{path} is not a Transformers folder: it has no {CONFIG}")
    weights = _weights(path)
    present = {name: present_name(name) for name in weights}
    named = {name if present[name] in weights else present[name]: weight for name, weight in weights.items()}
    return ModelFolder(path=path, config=config, weights=named)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. Raises IntegrityError, OSError."""
    if not path.is_file():
        return None
    return _parsed(path.read_bytes(), str(path))


def _parsed(data: bytes, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{name} is damaged: it holds no object")
    return content


def _weights(path: Path) -> dict[str, Weight]:
    """Every tensor of the folder's safetensors files."""
    if (path / SINGLE).is_file():
        return dict(_tensors(path / SINGLE))
    index = read_json(path / INDEX)
    if index is None:
        if any(path.glob(f"{PICKLED}*")):
            raise InputError(f"{path} holds pickled weights; save the model again as safetensors (save_pretrained)")
        raise InputError(f"{path} holds no weights: there is neither {SINGLE} nor {INDEX}")
    return _indexed(path, index)


def _indexed(path: Path, index: Mapping[str, Any]) -> dict[str, Weight]:
    """The tensors of the shards that an index lists. Raises WeightsMismatch where one is not where it says."""
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise IntegrityError(f"{path / INDEX} is damaged: it has no weight_map")
    weights: dict[str, Weight] = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file:
            raise IntegrityError(f"{path / INDEX} names {file!r:.80}, which is not in the folder")
        if not (path / file).is_file():
            raise InputError(f"{path} is incomplete: {file} is missing")
        found = dict(_tensors(path / file))
        missing = [name for name, place in listed.items() if place == file and name not in found]
        twice = [name for name in found if name in weights]
        if missing or twice:
            raise WeightsMismatch(missing=missing, unexpected=[f"{name} (a second one)" for name in twice])
        weights |= found
    return weights


# ---- safetensors: a little-endian 64-bit length, a JSON header, then the tensors' bytes ------------------------------


def _tensors(path: Path) -> Iterator[tuple[str, Weight]]:
    file = FileSlice.whole(path)
    head = file.read(0, 8)
    if head == LFS_POINTER:
        raise InputError(POINTER_TOLD.format(path))
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(LARGEST_HEADER, file.length - 8):
        raise IntegrityError(f"{path} is truncated or damaged: its header would be {length} bytes long")
    header, start = _parsed(file.read(8, length), str(path)), 8 + length
    for name, entry in header.items():
        if name != METADATA:
            yield name, _tensor(name, entry, FileSlice(path, start, file.length - start, str(path)))


def _tensor(name: str, entry: Any, data: FileSlice) -> Weight:
    """One tensor of the header. Raises IntegrityError, InputError where its type is no plain number."""
    try:
        shape, (first, last), code = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
        numbers = (*shape[:MOST_DIMENSIONS], first, last)
        is_sane = len(shape) <= MOST_DIMENSIONS and all(type(each) is int and each >= 0 for each in numbers)
    except (KeyError, TypeError, ValueError):
        is_sane = False
    if not is_sane or first > last or not isinstance(code, str):
        raise IntegrityError(f"{data.name} is damaged: its header does not tell where {name:.80} lies")
    if code not in DTYPES:
        raise InputError(f"{data.name} holds {name:.80} as {code:.20}, which fairseq cannot compute with")
    dtype = DTYPES[code]
    if last > data.length:
        raise IntegrityError(f"{data.name} is truncated: {name:.80} reaches beyond its end")
    if prod(shape) * ITEM_SIZES[dtype] != last - first:
        raise IntegrityError(f"{data.name} is damaged: {name:.80} has {last - first} bytes, not those of its shape")
    where = FileSlice(data.path, data.offset + first, last - first, data.name)
    stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Stored(record=StorageRecord(name, where, None), dtype=dtype, shape=shape, stride=stride)
