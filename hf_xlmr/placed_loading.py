"""A model folder onto the devices of a plan: each weight goes from its file to its device, one at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch, told_plainly
from hf_xlmr.memory import CPU, DISK, Device
from hf_xlmr.model_shape import DTYPE_BYTES, ModelShape, Task, shape_of
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.sharding import check_device_map, place_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["load_placed", "read_weights"]

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
NO_SHARED_BASE: Final = ("lm_head.", "classifier.", "qa_outputs.")


@dataclass(frozen=True)
class _Source:
    """Where a weight lies: a safetensors file, and its name there."""

    file: Path
    name: str


def load_placed(
    folder: str | Path,
    device_map: Mapping[str, Any],
    *,
    dtype: str,
    shape: ModelShape | None = None,
    main_device: Device | None = None,
    attention: str = "sdpa",
    offload_folder: str | Path | None = None,
    progress: Progress = SILENT,
) -> PreTrainedModel:
    """The Transformers model in `folder`, in evaluation mode, with each module where `device_map` puts it.

    Beside what stays on the CPU, host memory holds one weight at a time, whatever the size of the shards: a weight is
    mapped from its file, cast to `dtype`, moved, and let go. What is on the CPU in the stored dtype stays mapped, what
    is on `disk` is not read until its turn comes in a forward pass; neither may be overwritten while the model is used.
    `shape` is another class than the folder's own, such as its bare encoder; `main_device` computes what lies on CPU
    or disk (the first GPU of the map, unless given). `offload_folder` is where
    copies of what stays on disk go, in `dtype`, for folders that are slow to read; without it their own files are read.
    Raises InputError, IntegrityError, WeightsMismatch.
    """
    if dtype not in DTYPE_BYTES:
        raise InputError(f"{dtype:.40} is none of the dtypes {', '.join(DTYPE_BYTES)}")
    with told_plainly():
        folder = Path(folder)
        wanted = shape or shape_of(folder)
        stored = _stored(folder)
        if wanted.task is Task.ENCODER and not _sources(wanted, stored).keys() & _pooler(wanted):
            wanted = wanted.without_pooler()
        sources = _sources(wanted, stored)
        places = check_device_map(_without_absent(device_map, wanted), wanted)
        _raise_if_wrong(wanted, sources)
        if offload_folder is not None:
            sources |= _copied_to(Path(offload_folder), sources, places, dtype)
        model = _empty(folder, wanted, dtype, attention)
        _fill(model, wanted, sources, places, dtype, progress)
        return _dispatched(model, wanted, sources, places, dtype, main_device)


def read_weights(folder: str | Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Some weights of the model in `folder`, as they are stored. Raises InputError, IntegrityError."""
    with told_plainly():
        shape = shape_of(folder)
        sources = _sources(shape, _stored(Path(folder)))
        wanted = list(names)
        if missing := [name for name in wanted if name not in sources]:
            raise WeightsMismatch(missing=missing)
        return {name: _read(sources[name]).clone() for name in wanted}


# ---- what the folder holds -------------------------------------------------------------------------------------------


def _stored(folder: Path) -> dict[str, Path]:
    """The file of each weight. Raises InputError, IntegrityError."""
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_names_in(folder / SINGLE), folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise InputError(f"{folder} holds no weights: there is neither {SINGLE} nor {INDEX}")
    try:
        files = {
            str(name): Path(file) for name, file in json.loads((folder / INDEX).read_bytes())["weight_map"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder / INDEX} is damaged: it has no weight_map") from error
    if odd := [file for file in files.values() if file.name != str(file)]:
        raise IntegrityError(f"{folder / INDEX} names {str(odd[0])!r:.80}, which is not in the folder")
    if absent := [file for file in dict.fromkeys(files.values()) if not (folder / file).is_file()]:
        raise InputError(f"{folder} is incomplete: {absent[0]} is missing")
    return {name: folder / file for name, file in files.items()}


def _names_in(file: Path) -> list[str]:
    with _opened(file) as weights:
        return list(weights.keys())


def _opened(file: Path, device: str = CPU) -> Any:
    """The file's weights, mapped. Raises IntegrityError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt", device=device)
    except SafetensorError as error:
        raise IntegrityError(f"{file} is damaged: {error}") from error


def _sources(shape: ModelShape, stored: Mapping[str, Path]) -> dict[str, _Source]:
    """Where each weight of the class lies, whether its file holds the bare encoder or a model with a head."""
    found: dict[str, _Source] = {}
    base = shape.base_of_heads
    for tensor in shape.tensors:
        bare = tensor.name.removeprefix(base)
        also = () if tensor.name.startswith(NO_SHARED_BASE) else (bare, base + bare)
        for name in (tensor.name, *also):
            if name in stored and not tensor.is_buffer:
                found.setdefault(tensor.name, _Source(stored[name], name))
    return found


def _pooler(shape: ModelShape) -> set[str]:
    return {tensor.name for tensor in shape.tensors if tensor.name.startswith(f"{shape.base}pooler.")}


def _without_absent(device_map: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
    """The map without a pooler that the model does not have: a plan from the config alone cannot know."""
    pooler = f"{shape.base}pooler"
    return {key: device for key, device in device_map.items() if shape.has_pooler or key != pooler}


def _raise_if_wrong(shape: ModelShape, sources: Mapping[str, _Source]) -> None:
    """Raises WeightsMismatch with every weight that is missing or of another shape, IntegrityError."""
    expected = {tensor.name: tensor.sizes for tensor in shape.tensors if not tensor.is_buffer}
    wrong: list[str] = []
    for file in dict.fromkeys(source.file for source in sources.values()):
        with _opened(file) as weights:
            held = set(weights.keys())
            for name, source in sources.items():
                if source.file != file:
                    continue
                if source.name not in held:
                    raise IntegrityError(f"{file} is damaged: it does not hold {source.name}, which its index names")
                sizes = tuple(weights.get_slice(source.name).get_shape())
                if sizes != expected[name]:
                    wrong.append(f"{name} {list(sizes)}, expected {list(expected[name])}")
    missing = [name for name in expected if name not in sources]
    if missing or wrong:
        raise WeightsMismatch(missing=missing, wrong_shape=wrong)


def _copied_to(
    folder: Path, sources: Mapping[str, _Source], places: Mapping[str, Device], dtype: str
) -> dict[str, _Source]:
    """A file for each weight that stays on disk, in the dtype that is computed in.

    They lie in a subfolder of `folder` that is this model's alone, and one that is there is used again.
    """
    import torch
    from safetensors.torch import save_file

    own = folder / _digest(sources, dtype)
    own.mkdir(parents=True, exist_ok=True)
    copies = {name: _Source(own / f"{name}.safetensors", name) for name in sources if place_of(places, name) == DISK}
    for name, copy in copies.items():
        if copy.file.is_file():
            continue
        part = own / f"{name}.{os.getpid()}.{threading.get_ident()}.part"
        try:
            save_file({name: _read(sources[name]).to(getattr(torch, dtype)).contiguous()}, part)
            part.replace(copy.file)
        finally:
            part.unlink(missing_ok=True)
    return copies


def _digest(sources: Mapping[str, _Source], dtype: str) -> str:
    """A name for these files as they are now, in this dtype."""
    files = sorted({source.file.resolve() for source in sources.values()})
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([dtype, stats]).encode()).hexdigest()[:32]


# ---- the model -------------------------------------------------------------------------------------------------------


def _empty(folder: Path, shape: ModelShape, dtype: str, attention: str) -> PreTrainedModel:
    """The class without weights; its buffers, which no file holds, are made."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, attn_implementation=attention)
    config.dtype = getattr(torch, dtype)
    options = {} if shape.has_pooler or shape.task is not Task.ENCODER else {"add_pooling_layer": False}
    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, shape.class_name)(config, **options)
    empty: PreTrainedModel = model.to(getattr(torch, dtype)).eval()
    return empty


def _fill(
    model: PreTrainedModel,
    shape: ModelShape,
    sources: Mapping[str, _Source],
    places: Mapping[str, Device],
    dtype: str,
    progress: Progress,
) -> None:
    """Put every weight that does not stay on disk where it belongs."""
    import torch
    from accelerate.utils import set_module_tensor_to_device

    sizes = {tensor.name: tensor.nbytes(dtype) for tensor in shape.tensors}
    placed = [name for name in sources if place_of(places, name) != DISK]
    with progress.task("loading", total=sum(sizes[name] for name in placed)) as task:
        for name in placed:
            tensor = _read(sources[name]).to(getattr(torch, dtype))
            set_module_tensor_to_device(model, name, place_of(places, name), value=tensor, dtype=tensor.dtype)
            task.advance(sizes[name])
    if not any(place_of(places, name) == DISK for name in shape.tied_tensors):
        model.tie_weights()  # accelerate caches tied weights by address, which from disk is new each time


def _read(source: _Source) -> torch.Tensor:
    """A weight as it is mapped: the file is opened anew, so that what was read before can leave memory."""
    with _opened(source.file) as weights:
        tensor: torch.Tensor = weights.get_tensor(source.name)
    return tensor


def _dispatched(
    model: PreTrainedModel,
    shape: ModelShape,
    sources: Mapping[str, _Source],
    places: Mapping[str, Device],
    dtype: str,
    main_device: Device | None,
) -> PreTrainedModel:
    """The model with accelerate's hooks, which bring inputs and offloaded weights to where they are computed."""
    from accelerate import dispatch_model

    first_gpu = next((device for device in places.values() if isinstance(device, int)), CPU)
    log = logging.getLogger("accelerate.big_modeling")
    level = log.level
    log.setLevel(logging.ERROR)  # that weights were offloaded is what was asked for
    try:
        dispatch_model(
            model,
            device_map=dict(places),
            main_device=first_gpu if main_device is None else main_device,
            offload_index=_offload_index(shape, sources, places, dtype),
            offload_buffers=True,
        )
    finally:
        log.setLevel(level)
    return model


def _offload_index(
    shape: ModelShape, sources: Mapping[str, _Source], places: Mapping[str, Device], dtype: str
) -> dict[str, dict[str, str]] | None:
    """Where accelerate finds what stays on disk, under all names of a tied weight; None where nothing does."""
    known = {**sources, **{name: sources[shape.tied_to(name)] for name in shape.tied_tensors}}
    return {
        name: {"safetensors_file": str(source.file), "weight_name": source.name, "dtype": dtype}
        for name, source in known.items()
        if place_of(places, name) == DISK
    } or None
