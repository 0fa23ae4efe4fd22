"""A model folder's network in memory: which class, which dtype, which devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_xlmr.dictionary import PAD_INDEX
from hf_xlmr.encoder import ClassificationHead, Encoder, HeadOptions
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.loading import ModelFiles
from hf_xlmr.memory import CPU, DISK, Device, available_memory, parse_size
from hf_xlmr.model_shape import shape_of
from hf_xlmr.placed_loading import load_placed, read_weights
from hf_xlmr.sharding import DEFAULT_TOKENS, check_device_map, plan_placement

__all__ = ["LoadedEncoder", "load_encoder"]

HEAD_PARTS = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder, where its inputs go, and whether it lies on more than that device."""

    encoder: Encoder
    device: torch.device
    is_spread: bool


def load_encoder(
    files: ModelFiles,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | int | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    max_memory: Mapping[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
    tokens: int | None = None,
) -> LoadedEncoder:
    """Load the network of a model folder, whole on `device` or by `device_map`. Raises InputError, IntegrityError."""
    wanted = _dtype(dtype)
    if device_map is None:
        _raise_if_given(max_memory=max_memory, offload_folder=offload_folder, tokens=tokens)
        place = _device(device)
        network, is_spread = _whole(files, wanted, place), False
    else:
        _raise_if_given(device=device)
        plan = _plan(files, wanted, device_map, max_memory, tokens)
        place, is_spread = _device(plan.main_device), len(set(plan.device_map.values())) > 1
        is_spread = is_spread or DISK in plan.device_map.values()
        network = load_placed(
            files.folder,
            plan.device_map,
            dtype=plan.dtype,
            main_device=plan.main_device,
            offload_folder=offload_folder,
        )
    options = _head_options(files)
    encoder = Encoder(
        network,
        {name: ClassificationHead.of(parts, options) for name, parts in _heads(files, network, place).items()},
        pad_index=PAD_INDEX,
        embedding_rows=files.embedding_rows,
        head_options=options,
    )
    return LoadedEncoder(encoder.train(), device=place, is_spread=is_spread)


class _Plan(NamedTuple):
    """Which module goes where, in which dtype, and which device computes what lies on CPU or disk."""

    device_map: Mapping[str, Any]
    dtype: str
    main_device: Device


def _plan(
    files: ModelFiles,
    dtype: torch.dtype | str,
    device_map: str | Mapping[str, str | int],
    max_memory: Mapping[str | int, str | int] | None,
    tokens: int | None,
) -> _Plan:
    """The planner's layout for "auto", or the user's own. Raises DoesNotFit, InputError."""
    shape = shape_of(files.folder)
    named = shape.dtype if dtype == "auto" else str(dtype).removeprefix("torch.")
    if isinstance(device_map, str):
        if device_map != "auto":
            raise InputError(f"device_map={device_map!r}: give auto, or a dictionary of modules and devices")
        budgets = available_memory() if max_memory is None else _budgets(max_memory)
        placement = plan_placement(shape, max_memory=budgets, dtype=named, tokens=tokens or DEFAULT_TOKENS)
        return _Plan(placement.device_map, named, placement.main_device)
    _raise_if_given(max_memory=max_memory, tokens=tokens)
    places = check_device_map(device_map, shape)
    first_gpu = next((device for device in places.values() if isinstance(device, int)), CPU)
    return _Plan(device_map, named, first_gpu)


def _budgets(max_memory: Mapping[str | int, str | int]) -> dict[Device, int | None]:
    """Sizes such as "24GiB" as bytes. Raises InputError."""
    unlimited = ("unlimited", None)
    return {device: None if size in unlimited else parse_size(size) for device, size in max_memory.items()}


def _raise_if_given(**options: object) -> None:
    """Raise InputError for options that say something about another way of loading."""
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            f"{', '.join(given)}: device= is for one device; device_map='auto' lays the model out over several, within "
            "max_memory= and with room for tokens=; a dictionary as device_map says all by itself"
        )


def _dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """A dtype, or "auto" for the stored one. Raises InputError."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype={dtype!r}: give float32, bfloat16, float16 or auto (as stored)")
    return found


def _device(device: torch.device | str | int | None) -> torch.device:
    """A device that is there. Raises InputError."""
    try:
        place = torch.device("cpu" if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={device!r} cannot be used here: {reason}") from error
    return place


def _whole(files: ModelFiles, dtype: torch.dtype | str, device: torch.device) -> Any:
    """The network on one device; its weights are read straight to it. Raises IntegrityError."""
    import transformers

    loader = getattr(transformers, files.class_name, None)
    if loader is None:
        raise InputError(f"{files.folder}/config.json names {files.class_name}, which Transformers does not have")
    options: dict[str, Any] = {"add_pooling_layer": False} if files.class_name.endswith("Model") else {}
    network, info = loader.from_pretrained(
        files.folder, dtype=dtype, device_map={"": device}, output_loading_info=True, **options
    )
    faults = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, info[kind])))}"
        for kind in ("missing_keys", "mismatched_keys")
        if info[kind]
    ]
    if faults:
        raise IntegrityError(f"{files.folder} lacks weights of its {files.class_name} ({'; '.join(faults)})")
    return network


def _head_options(files: ModelFiles) -> HeadOptions:
    return HeadOptions(
        dropout=float(files.options.get("pooler_dropout") or 0.0),
        activation_fn=str(files.options.get("pooler_activation_fn") or "tanh"),
    )


def _heads(files: ModelFiles, network: Any, place: torch.device) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of the classification heads: those kept beside the folder, and the folder's own."""
    kept = {
        name: {part: weight.to(place, network.dtype) for part, weight in parts.items()}
        for name, parts in files.heads().items()
        if set(parts) == set(HEAD_PARTS)
    }
    own = _own_head(network)
    if not own:
        return kept
    if len({weight.device for weight in own.values()}) > 1 or any(weight.is_meta for weight in own.values()):
        names = {id(weight): name for name, weight in network.named_parameters()}
        stored = read_weights(files.folder, [names[id(weight)] for weight in own.values()])
        own = {part: stored[names[id(weight)]].to(place, network.dtype) for part, weight in own.items()}
    return {**kept, files.head_name: own}


def _own_head(network: Any) -> dict[str, torch.Tensor]:
    """The parameters of Transformers' head under fairseq's names: a classifier's, or that of multiple choice."""
    classifier: Any = getattr(network, "classifier", None)
    if hasattr(classifier, "out_proj"):
        return dict(classifier.named_parameters())
    pooler = getattr(network.base_model, "pooler", None)
    if classifier is None or pooler is None:
        return {}
    return {
        **{f"dense.{name}": weight for name, weight in pooler.dense.named_parameters()},
        **{f"out_proj.{name}": weight for name, weight in classifier.named_parameters()},
    }
