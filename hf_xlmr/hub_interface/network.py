"""A model folder's network in memory: which class, which dtype, which devices."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, NamedTuple

import torch

from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.files.memory import CPU, DISK, Device, available_memory, in_order, parse_size
from hf_xlmr.hub_interface.encoder import ACTIVATIONS, ClassificationHead, Encoder, HeadOptions, own_head_layers
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.head_kinds import HeadKind, kind_of_head
from hf_xlmr.model.model_shape import DTYPE_BYTES, HEAD_PARTS
from hf_xlmr.model.precision import warn_of_emulation
from hf_xlmr.placement.placed_loading import (
    check_network,
    load_placed,
    load_whole,
    read_weights,
    shape_held,
    stored_dtype,
    without_absent,
)
from hf_xlmr.placement.planner import DEFAULT_TOKENS, check_device_map, plan_placement
from hf_xlmr.tokenizer.dictionary import PAD_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

AUTO = "auto"
MOST_TOKENS = 1 << 31  # of a batch
BUDGETS = "give a dictionary of devices and sizes, such as {0: '24GiB', 'cpu': '64GiB', 'disk': 'unlimited'}"


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Where a network goes, and in which dtype: the options of `XLMR.from_pretrained`. Raises InputError."""

    dtype: torch.dtype | str = torch.float32
    device: torch.device | str | int | None = None
    device_map: str | Mapping[str, str | int] | None = None
    max_memory: Mapping[str | int, str | int | None] | None = None
    offload_folder: str | Path | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Tell of every option that cannot be meant before anything is read, downloaded or converted."""
        _raise_if_no_dtype(self.dtype)
        if not _is_device_map(self.device_map):
            raise InputError(f"device_map={self.device_map!r:.80}: give auto, or a dictionary of modules and devices")
        if not isinstance(self.offload_folder, (str, Path, NoneType)):
            raise InputError(f"offload_folder={self.offload_folder!r:.80}: give the path of a folder")
        if self.tokens is not None and (type(self.tokens) is not int or not 0 < self.tokens <= MOST_TOKENS):
            raise InputError(f"tokens={self.tokens!r:.80}: give the most tokens of a batch, such as 8192")
        if self.device_map is None:
            _raise_if_given(max_memory=self.max_memory, offload_folder=self.offload_folder, tokens=self.tokens)
            _device(self.device)
        else:
            _raise_if_given(device=self.device)
        if self.device_map != AUTO:
            _raise_if_given(max_memory=self.max_memory, tokens=self.tokens)
        _budgets(self.max_memory)


def load_encoder(files: ModelFiles, placing: Placing) -> tuple[Encoder, torch.device]:
    """The network of a model folder, whole or spread over devices, and the device of its inputs.

    Raises InputError, IntegrityError.

    What is on the CPU or the disk until its turn comes cannot be trained: it asks for no gradients, and `state_dict`
    and `load_state_dict` refuse.
    """
    with told_plainly(), files.named():
        plan = plan_loading(files, placing)
        warn_of_emulation(getattr(torch, plan.dtype), plan.main)
        network = _network(files, plan, placing.offload_folder)
        if any(weight.is_meta for weight in network.parameters()):
            network.requires_grad_(requires_grad=False)
        options = _head_options(files)
        encoder = Encoder(
            network,
            _classification_heads(files, network, plan.main, options),
            pad_index=PAD_INDEX,
            embedding_rows=files.rows,
            head_options=options,
            own_head=files.head_name if own_head_layers(network) else None,
            is_spread=plan.is_spread,
        )
    return encoder.train(), plan.main


def check_loading(files: ModelFiles) -> None:
    """Do all of `load_encoder` but read the weights. Raises InputError, IntegrityError."""
    _head_options(files)
    check_network(files.folder, shape_held(files.folder, files.shape), config=files.config)


def _network(files: ModelFiles, plan: LoadingPlan, offload_folder: str | Path | None) -> PreTrainedModel:
    if not plan.is_spread:
        return load_whole(files.folder, device=plan.main, dtype=plan.dtype, shape=files.shape)
    return load_placed(
        files.folder,
        plan.device_map,
        dtype=plan.dtype,
        shape=files.shape,
        main_device=plan.main_device,
        offload_folder=offload_folder,
    )


# ---- the plan --------------------------------------------------------------------------------------------------------


class LoadingPlan(NamedTuple):
    """Which module goes where, in which dtype, and which device computes what is on CPU or disk."""

    device_map: Mapping[str, Device | torch.device]
    dtype: str
    main_device: Device

    @property
    def main(self) -> torch.device:
        """Where inputs go. Raises InputError."""
        return _device(self.main_device)

    @property
    def is_spread(self) -> bool:
        """Whether there is more than one device, or a disk."""
        return len(set(self.device_map.values())) > 1 or DISK in self.device_map.values()


def plan_loading(files: ModelFiles, placing: Placing) -> LoadingPlan:
    """One device, the planner's layout for "auto", or the user's own. Raises DoesNotFit, InputError."""
    dtype = _named_dtype(files, placing.dtype)
    if placing.device_map is None:
        place = _device(placing.device)
        return LoadingPlan({"": place}, dtype, str(place))
    shape = shape_held(files.folder, files.shape)
    if isinstance(placing.device_map, Mapping):
        places = check_device_map(without_absent(placing.device_map, shape), shape)
        main = next((device for device in places.values() if isinstance(device, int)), CPU)
    else:
        budgets = available_memory() if placing.max_memory is None else _budgets(placing.max_memory)
        placement = plan_placement(shape, max_memory=budgets, dtype=dtype, tokens=placing.tokens or DEFAULT_TOKENS)
        places, main = placement.device_map, placement.main_device
    for device in places.values():
        if isinstance(device, int):
            _device(device, option="device_map")
    return LoadingPlan(places, dtype, main)


def _named_dtype(files: ModelFiles, dtype: torch.dtype | str) -> str:
    """The dtype to compute in; "auto" is what config.json says, or what the weights are stored in."""
    if dtype == AUTO:
        told = files.config.get("dtype") or files.config.get("torch_dtype")
        return files.shape.dtype if told else stored_dtype(files.folder, files.shape)
    return str(getattr(torch, dtype) if isinstance(dtype, str) else dtype).removeprefix("torch.")


# ---- the options -----------------------------------------------------------------------------------------------------


def _is_device_map(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(module, str) for module in value)
    return value is None or (isinstance(value, str) and value == AUTO)


def _raise_if_no_dtype(dtype: object) -> None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    is_known = isinstance(found, torch.dtype) and str(found).removeprefix("torch.") in DTYPE_BYTES
    if not is_known and not (isinstance(dtype, str) and dtype == AUTO):
        raise InputError(f"dtype={dtype!r:.80}: give {', '.join(DTYPE_BYTES)} or auto (as stored)")


def _budgets(max_memory: object) -> dict[Device, int | None]:
    """Sizes such as "24GiB" as bytes, "unlimited" as None. Raises InputError."""
    if max_memory is None:
        return {}
    if not isinstance(max_memory, Mapping) or not max_memory:
        raise InputError(f"max_memory={max_memory!r:.80}: {BUDGETS}")
    try:
        sizes = {
            device: None if size in ("unlimited", None) else parse_size(size) for device, size in max_memory.items()
        }
        return in_order(sizes)
    except InputError as error:
        raise InputError(f"max_memory={dict(max_memory)!r:.80}: {error} ({BUDGETS})") from error


def _raise_if_given(**options: object) -> None:
    """Raise InputError for options that say something about another way of loading."""
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{', '.join(given)}: device= is for one device; device_map='auto' lays the model out over several, within "
            "max_memory= and with room for tokens=; a dictionary as device_map says all by itself"
        )


def _device(device: object, *, option: str = "device") -> torch.device:
    if type(device) not in (torch.device, str, int, NoneType):
        raise InputError(f"{option}={device!r:.80}: give a device such as cpu, cuda or cuda:1")
    try:
        place: torch.device = torch.device("cpu" if device is None else device)  # type: ignore[call-overload]
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"{option}: {device!r:.80} cannot be used here ({reason})") from error
    if place.type == "meta":
        raise InputError(f"{option}: meta holds no weights, give a device such as cpu, cuda or cuda:1")
    return torch.device("cpu") if place.type == "cpu" else place  # cpu:0, which weights are never on


# ---- the heads -------------------------------------------------------------------------------------------------------


def _head_options(files: ModelFiles) -> HeadOptions:
    dropout = files.options.get("pooler_dropout") or 0.0
    activation = files.options.get("pooler_activation_fn") or "tanh"
    if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise IntegrityError(f"{files.folder}/fairseq/options.json is damaged: pooler_dropout is {dropout!r:.40}")
    if activation not in list(ACTIVATIONS):
        raise IntegrityError(
            f"{files.folder}/fairseq/options.json: pooler_activation_fn is {activation!r:.40}, which is none of "
            f"fairseq's {', '.join(ACTIVATIONS)}"
        )
    return HeadOptions(dropout=float(dropout), activation_fn=activation)


def _classification_heads(
    files: ModelFiles, network: PreTrainedModel, place: torch.device, options: HeadOptions
) -> dict[str, ClassificationHead]:
    """The heads by name, each reading what fairseq's code for its task reads."""
    found = _heads(files, network, place)
    heads = frozenset(found)
    readings = {name: kind_of_head(name, files.options, heads=heads) for name in found}
    for name, reading in readings.items():
        if reading.kind is HeadKind.UNCLEAR:
            logger.warning("the head %s reads the first token, as fairseq's class does (%s)", name, reading.reason)
    own = files.head_name if own_head_layers(network) else None
    return {
        name: ClassificationHead.of(
            parts, options, reads_every_token=name != own and readings[name].kind is HeadKind.TOKEN
        )
        for name, parts in found.items()
    }


def _heads(files: ModelFiles, network: PreTrainedModel, place: torch.device) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of the classification heads: those kept next to the folder, and the folder's own."""
    kept = {
        name: {part: weight.to(place, network.dtype) for part, weight in parts.items()}
        for name, parts in files.heads().items()
        if set(parts) == set(HEAD_PARTS)
    }
    layers = own_head_layers(network).items()
    own: dict[str, torch.Tensor] = {
        f"{layer}.{name}": weight for layer, module in layers for name, weight in module.named_parameters()
    }
    if not own:
        return kept
    if len({weight.device for weight in own.values()}) > 1 or any(weight.is_meta for weight in own.values()):
        names = {id(weight): name for name, weight in network.named_parameters()}
        stored = read_weights(files.folder, [names[id(weight)] for weight in own.values()])
        own = {part: stored[names[id(weight)]].to(place, network.dtype) for part, weight in own.items()}
    return {**kept, files.head_name: own}
