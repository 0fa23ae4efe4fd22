"""A model folder onto one device, or the devices of a plan: each weight goes from its file to its device by itself."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch, told_plainly
from hf_xlmr.files.memory import CPU, DISK, Device
from hf_xlmr.model.families import Task
from hf_xlmr.model.model_shape import DTYPE_BYTES, ModelShape, shape_of_folder
from hf_xlmr.model.plain_config import config_damage_told, plain_config, raise_if_adapter, raise_if_without_pooler
from hf_xlmr.model.safetensors_files import file_header, shards_of
from hf_xlmr.model.stored_weights import OffloadedWeights, StoredWeight, opened, present_name
from hf_xlmr.placement.planner import check_device_map, place_of
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
NO_SHARED_BASE: Final = ("lm_head.", "classifier.", "qa_outputs.")
STORED_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LEFT_IN_THE_FILE: Final = {  # names that a class may do without, and why
    r"(\w+\.)?embeddings\.(position_ids|token_type_ids)": "buffers that Transformers saved until 4.31 and makes again",
    r"(\w+\.)?pooler\.dense\.(weight|bias)": "Transformers gives every encoder a pooler; XLM-R was trained without",
}
HEAD_OF_AN_ENCODER: Final = r"(lm_head|classifier|qa_outputs)\.[\w.]+"  # left out if the bare encoder is wanted
BLOCK_OF_ROWS: Final = 1 << 12  # in which tied weights are compared


def load_placed(
    folder: str | Path,
    device_map: Mapping[str, object],
    *,
    dtype: str,
    shape: ModelShape | None = None,
    main_device: Device | None = None,
    attention: str = "sdpa",
    offload_folder: str | Path | None = None,
    progress: Progress = SILENT,
) -> PreTrainedModel:
    """The Transformers model in `folder`, in evaluation mode, with each module where `device_map` puts it.

    Besides what stays on the CPU, host memory holds one weight at a time, whatever the size of the shards: a weight is
    mapped from its file, cast to `dtype`, moved, and let go. What is on the CPU in the stored dtype stays mapped where
    its file aligns it as memory does (convert's do); what is on `disk` is not read until its turn comes in a forward
    pass. Neither file may be overwritten while the model is used. `shape` is another class than the folder's own, such
    as its bare encoder; `main_device` computes what is on CPU or disk (the first GPU of the map, unless given).
    `offload_folder` is where copies of what stays on disk go, in `dtype`, for folders that are slow to read; without it
    their own files are read.
    Raises InputError, IntegrityError, WeightsMismatch.
    """
    with told_plainly():
        folder, wanted = _wanted(folder, shape, dtype)
        places = check_device_map(without_absent(device_map, wanted), wanted)
        sources = checked_sources(folder, wanted)
        if offload_folder is not None:
            sources |= _copied_to(Path(offload_folder), sources, places, dtype)
        model = _empty(folder, wanted, dtype, attention)
        loading = _Loading(wanted, sources, places, dtype)
        loading.fill(model, progress)
        loading.dispatch(model, main_device)
    return model


def load_whole(
    folder: str | Path,
    *,
    device: torch.device | str,
    dtype: str,
    shape: ModelShape | None = None,
    attention: str = "sdpa",
    progress: Progress = SILENT,
) -> PreTrainedModel:
    """The Transformers model in `folder` on one device, in evaluation mode and in its own memory.

    Besides it, host memory holds one weight at a time, and the files may be overwritten afterwards. `shape` is another
    class than the folder's own. Raises InputError, IntegrityError, WeightsMismatch.
    """
    with told_plainly():
        folder, wanted = _wanted(folder, shape, dtype)
        sources = checked_sources(folder, wanted)
        model = _empty(folder, wanted, dtype, attention)
        _Loading(wanted, sources, {"": device}, dtype).fill(model, progress, is_own=True)
        whole: PreTrainedModel = model.to(device)  # type: ignore[arg-type]  # the buffers
    return whole


def _wanted(folder: str | Path, shape: ModelShape | None, dtype: str) -> tuple[Path, ModelShape]:
    """The path of the folder, and the shape of what is loaded from it. Raises InputError, IntegrityError."""
    if dtype not in DTYPE_BYTES:
        raise InputError(f"{dtype:.40} is none of the dtypes {', '.join(DTYPE_BYTES)}")
    return Path(folder), shape_held(folder, shape or shape_of_folder(folder))


def shape_held(folder: str | Path, shape: ModelShape) -> ModelShape:
    """`shape`, for a bare encoder without the pooler that its files lack. Raises InputError, IntegrityError."""
    held = _sources(shape, files_of_weights(Path(folder)))
    has_pooler = any(name.startswith(f"{shape.base}pooler.") for name in held)
    return shape if shape.task is not Task.ENCODER or has_pooler else shape.without_pooler()


def stored_dtype(folder: str | Path, shape: ModelShape) -> str:
    """What the word embeddings are stored in, for a config that does not say. Raises InputError, IntegrityError."""
    with told_plainly():
        sources = _sources(shape, files_of_weights(Path(folder)))
        name = f"{shape.base}embeddings.word_embeddings.weight"
        if name not in sources:
            raise WeightsMismatch(missing=[name])
        return str(sources[name].mapped().dtype).removeprefix("torch.")


def read_weights(folder: str | Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Some weights of the model in `folder`, as they are stored. Raises InputError, IntegrityError."""
    with told_plainly():
        shape = shape_of_folder(folder)
        sources = _sources(shape, files_of_weights(Path(folder)))
        wanted = list(names)
        if missing := [name for name in wanted if name not in sources]:
            raise WeightsMismatch(missing=missing)
        return {name: sources[name].mapped().clone() for name in wanted}


# ---- what the folder holds -------------------------------------------------------------------------------------------


def files_of_weights(folder: Path) -> dict[str, Path]:
    """The file of each weight. Raises InputError, IntegrityError."""
    if (folder / SINGLE).is_file():
        return dict.fromkeys(file_header(folder / SINGLE), folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise InputError(
            f"{folder} holds no weights: there is neither {SINGLE} nor {INDEX} (a pytorch_model.bin is not read, since "
            "it is a pickle: load it with Transformers and save it again, which writes safetensors)"
        )
    files = {name: Path(file) for name, file in shards_of(folder / INDEX).items()}
    if absent := [file for file in dict.fromkeys(files.values()) if not (folder / file).is_file()]:
        raise InputError(f"{folder} is incomplete: {absent[0]} is missing")
    held = {name: folder / file for file in dict.fromkeys(files.values()) for name in file_header(folder / file)}
    if lost := [name for name in files if name not in held]:
        file = folder / files[lost[0]]
        raise IntegrityError(f"{file} is damaged: it does not hold {lost[0]:.80}, which its index names")
    return held


def _sources(shape: ModelShape, stored: Mapping[str, Path]) -> dict[str, StoredWeight]:
    """Where each weight of the class is, whether its file holds the bare encoder or a model with a head."""
    found: dict[str, StoredWeight] = {}
    base = shape.base_of_heads
    names = {present_name(name): name for name in stored} | {name: name for name in stored}
    for tensor in shape.tensors:
        bare = tensor.name.removeprefix(base)
        also = () if tensor.name.startswith(NO_SHARED_BASE) else (bare, base + bare)
        for name in (tensor.name, *also):
            if name in names and not tensor.is_buffer:
                found.setdefault(tensor.name, StoredWeight(stored[names[name]], names[name]))
    return found


def without_absent(device_map: Mapping[str, object], shape: ModelShape) -> dict[str, object]:
    """The map without a pooler that the model does not have: a plan from the config alone cannot know."""
    pooler = f"{shape.base}pooler"
    return {key: device for key, device in device_map.items() if shape.has_pooler or key != pooler}


def checked_sources(folder: Path, shape: ModelShape) -> dict[str, StoredWeight]:
    """Where each weight of the class is, once all that the files hold adds up.

    Raises WeightsMismatch with every weight that is missing, unknown or of another shape, InputError, IntegrityError.
    """
    stored = files_of_weights(folder)
    sources = _sources(shape, stored)
    missing = [tensor.name for tensor in shape.tensors if not tensor.is_buffer and tensor.name not in sources]
    unexpected = _unknown(shape, stored.keys() - {source.name for source in sources.values()})
    wrong = _of_other_sizes(shape, sources)
    if missing or unexpected or wrong:
        raise WeightsMismatch(missing=missing, unexpected=unexpected, wrong_shape=wrong)
    _raise_if_tied_apart(shape, sources, stored)
    return sources


def check_weights(folder: Path, shape: ModelShape | None = None) -> None:
    """Hold the weights of a folder against its configuration, or `shape`. Raises as `checked_sources`."""
    checked_sources(folder, shape_held(folder, shape or shape_of_folder(folder)))


def check_network(folder: Path, shape: ModelShape, *, config: Mapping[str, object]) -> None:
    """Build the class without weights or memory, as loading begins. Raises InputError, IntegrityError."""
    _built(folder, shape, shape.dtype, "sdpa", has_buffers=False, read=config)


def is_left_in_the_file(name: str) -> bool:
    """Whether a weight of this name is one that a class may do without."""
    return any(re.fullmatch(pattern, name) for pattern in LEFT_IN_THE_FILE)


def _unknown(shape: ModelShape, left: Collection[str]) -> list[str]:
    """The names among those `left` over that nothing explains."""
    is_encoder = shape.task is Task.ENCODER
    return sorted(
        name
        for name in left
        if name not in shape.tied_tensors
        and not is_left_in_the_file(name)
        and not (is_encoder and re.fullmatch(HEAD_OF_AN_ENCODER, name))
    )


def _of_other_sizes(shape: ModelShape, sources: Mapping[str, StoredWeight]) -> list[str]:
    """Each weight whose sizes are not those of the class. Raises InputError for numbers that are not floats."""
    expected = {tensor.name: tensor.sizes for tensor in shape.tensors}
    wrong: list[str] = []
    for file in dict.fromkeys(source.file for source in sources.values()):
        header = file_header(file)
        for name, source in sources.items():
            if source.file != file:
                continue
            held = header[source.name]
            if held.dtype not in STORED_DTYPES:
                raise InputError(
                    f"{file} holds {source.name} as {held.dtype}: quantized weights are not read, give a model in "
                    f"{', '.join(STORED_DTYPES.values())}"
                )
            if held.shape != expected[name]:
                wrong.append(f"{name} {list(held.shape)}, expected {list(expected[name])}")
    return wrong


def _raise_if_tied_apart(shape: ModelShape, sources: Mapping[str, StoredWeight], stored: Mapping[str, Path]) -> None:
    """Raise InputError for a second copy of a tied weight that has other values: Transformers would use those."""
    for name in shape.tied_tensors:
        if name in stored and not _are_equal(StoredWeight(stored[name], name), sources[shape.tied_to(name)]):
            raise InputError(
                f"config.json ties {name} to {shape.tied_to(name)} (tie_word_embeddings), but {stored[name]} holds "
                "other values for it: say false there, or leave it out of the file"
            )


def _are_equal(one: StoredWeight, other: StoredWeight) -> bool:
    """Whether two weights have the same values, some rows at a time."""
    with opened(one.file) as first, opened(other.file) as second:
        ours, theirs = first.get_slice(one.name), second.get_slice(other.name)
        rows = range(0, ours.get_shape()[0] if ours.get_shape() else 0, BLOCK_OF_ROWS)
        return ours.get_shape() == theirs.get_shape() and all(
            bool((ours[start : start + BLOCK_OF_ROWS] == theirs[start : start + BLOCK_OF_ROWS]).all()) for start in rows
        )


def _copied_to(
    folder: Path, sources: Mapping[str, StoredWeight], places: Mapping[str, Device], dtype: str
) -> dict[str, StoredWeight]:
    """A file for each weight that stays on disk, in the dtype that is computed in.

    They are in a subfolder of `folder` for this model only; if it exists, it is used again.
    """
    own = folder / _digest(sources, dtype)
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"offload_folder: {folder} cannot be written to ({error.strerror})") from error
    copies = {
        name: StoredWeight(own / f"{name}.safetensors", name) for name in sources if place_of(places, name) == DISK
    }
    for name, copy in copies.items():
        if not copy.file.is_file():
            _write_copy(sources[name], copy, dtype)
    return copies


def _write_copy(source: StoredWeight, copy: StoredWeight, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    part = copy.file.with_name(f"{copy.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        save_file({copy.name: source.on_cpu(getattr(torch, dtype))}, part)
        part.replace(copy.file)
    finally:
        part.unlink(missing_ok=True)


def _digest(sources: Mapping[str, StoredWeight], dtype: str) -> str:
    """A name for these files as they are now, in this dtype."""
    files = sorted({source.file.resolve() for source in sources.values()})
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([dtype, stats]).encode()).hexdigest()[:32]


# ---- the model -------------------------------------------------------------------------------------------------------


def _empty(folder: Path, shape: ModelShape, dtype: str, attention: str) -> PreTrainedModel:
    """The class without weights; its buffers, which no file holds, are made. Raises InputError, IntegrityError."""
    import torch

    raise_if_adapter(folder)
    model = _built(folder, shape, dtype, attention, has_buffers=True)
    raise_if_without_pooler(model)
    empty: PreTrainedModel = model.to(getattr(torch, dtype)).eval()
    return empty


def _built(
    folder: Path,
    shape: ModelShape,
    dtype: str,
    attention: str,
    *,
    has_buffers: bool,
    read: Mapping[str, object] | None = None,
) -> PreTrainedModel:
    """The class of a folder, with nothing in memory but its buffers. Raises InputError, IntegrityError."""
    import torch
    import transformers
    from accelerate import init_empty_weights
    from transformers.activations import ACT2FN

    options = {} if shape.has_pooler or shape.task is not Task.ENCODER else {"add_pooling_layer": False}
    with config_damage_told(folder / "config.json"):
        config: Any = plain_config(folder, attention=attention, read=read)
        if config.hidden_act not in ACT2FN:
            raise InputError(
                f"{folder}/config.json: hidden_act is {config.hidden_act!r:.40}, which Transformers does not have"
            )
        config.dtype = getattr(torch, dtype)
        with init_empty_weights(include_buffers=not has_buffers):
            model: PreTrainedModel = getattr(transformers, shape.class_name)(config, **options)
    return model


@dataclass(frozen=True)
class _Loading:
    """Which weights are loaded, from where, onto which devices, and in which dtype."""

    shape: ModelShape
    sources: Mapping[str, StoredWeight]
    places: Mapping[str, Device | torch.device]
    dtype: str

    def fill(self, model: PreTrainedModel, progress: Progress, *, is_own: bool = False) -> None:
        """Put every weight that does not stay on disk where it belongs; with `is_own` none stays mapped."""
        import torch
        from accelerate.utils import set_module_tensor_to_device

        sizes = {tensor.name: tensor.nbytes(self.dtype) for tensor in self.shape.tensors}
        placed = {name: place for name in self.sources if (place := place_of(self.places, name)) != DISK}
        with progress.task("loading weights", total=sum(sizes[name] for name in placed)) as task:
            for name, place in placed.items():
                tensor = weight_on(place, self.sources[name], getattr(torch, self.dtype), is_own=is_own)
                set_module_tensor_to_device(model, name, place, value=tensor, dtype=tensor.dtype)
                task.advance(sizes[name])
        if not any(place_of(self.places, name) == DISK for name in self.shape.tied_tensors):
            model.tie_weights()  # accelerate caches tied weights by address, which from disk is new each time

    def dispatch(self, model: PreTrainedModel, main_device: Device | None) -> None:
        """Give the model accelerate's hooks, which bring inputs and offloaded weights to where they are computed."""
        from accelerate import dispatch_model

        first_gpu = next((device for device in self.places.values() if isinstance(device, int)), CPU)
        main = first_gpu if main_device is None else main_device
        log = logging.getLogger("accelerate.big_modeling")
        level = log.level
        log.setLevel(logging.ERROR)  # that weights were offloaded is what was asked for
        try:
            dispatch_model(
                model,
                device_map=dict(self.places),
                main_device=main,
                state_dict=self._offloaded(model, main),
                offload_index={},  # what is on disk is in the mapping too
                offload_buffers=True,
                force_hooks=DISK in self.places.values(),  # accelerate up to 1.14 refuses to put all of a model there
            )
        finally:
            log.setLevel(level)
        _move_masks_once(model)

    def _offloaded(self, model: PreTrainedModel, main_device: Device) -> OffloadedWeights:
        """What accelerate's hooks fetch, under all names of tied weights: what is on disk, and on the CPU for a GPU."""
        import torch

        is_for_cpu = str(main_device) == CPU
        known = {**self.sources, **{name: self.sources[self.shape.tied_to(name)] for name in self.shape.tied_tensors}}
        on_disk = {name: source for name, source in known.items() if place_of(self.places, name) == DISK}
        kept = {
            name: tensor
            for name, tensor in ({} if is_for_cpu else model.state_dict()).items()
            if not tensor.is_meta and place_of(self.places, name) == CPU
        }
        return OffloadedWeights(kept, on_disk, dtype=getattr(torch, self.dtype), is_for_cpu=is_for_cpu)


def weight_on(
    place: Device | torch.device, source: StoredWeight, dtype: torch.dtype, *, is_own: bool = False
) -> torch.Tensor:
    """A weight on its device; on the way to another one than the CPU it needs no further memory."""
    if str(place) == CPU:
        return source.on_cpu(dtype, is_own=is_own)
    return source.mapped().to(place, dtype)


def _move_masks_once(model: PreTrainedModel) -> None:
    """Give each layer what all layers take, the attention mask, as a copy on its device that is made once a batch.

    accelerate's hooks move all that a layer is given, and each layer is given the mask where the embeddings are.
    """
    network: torch.nn.Module = model.base_model
    moved = _Moved()

    def bring(
        layer: torch.nn.Module, args: tuple[object, ...], options: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        device = next(layer.parameters()).device
        if device.type in ("cpu", "meta"):  # computed where accelerate brings its weights
            return None
        states, *others = args
        there = {name: moved.to(device, value) for name, value in options.items()}
        return (states, *(moved.to(device, each) for each in others)), there

    for layer in network.get_submodule("encoder.layer").children():
        layer.register_forward_pre_hook(bring, with_kwargs=True)
    network.register_forward_hook(lambda *_about: moved.forget())


class _Moved(threading.local):
    """The tensor that this thread moved last, and its copies by device."""

    source: object = None

    def __init__(self) -> None:
        self.copies: dict[torch.device, torch.Tensor] = {}

    def to(self, device: torch.device, value: object) -> object:
        """A tensor on `device`; another value as it is."""
        import torch

        if not isinstance(value, torch.Tensor) or value.device == device:
            return value
        if self.source is not value:
            self.source, self.copies = value, {}
        if device not in self.copies:
            self.copies[device] = value.to(device, non_blocking=True)
        return self.copies[device]

    def forget(self) -> None:
        self.source, self.copies = None, {}
