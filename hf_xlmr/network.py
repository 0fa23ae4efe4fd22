"""A model folder's network in memory: which class, which dtype, which devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_xlmr.encoder import ClassificationHead, Encoder
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.loading import ModelFiles

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
    dtype = _dtype(dtype)
    if device_map is not None:
        raise NotImplementedError
    place = _device(device)
    network = _whole(files, dtype, place)
    heads = {name: head.to(place, network.dtype) for name, head in _heads(files, network).items()}
    encoder = Encoder(network, heads, pad_index=files.dictionary.pad_index)
    return LoadedEncoder(encoder.train(), device=place, is_spread=False)


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


def _heads(files: ModelFiles, network: Any) -> dict[str, ClassificationHead]:
    """The classification heads: those kept beside the folder, and the folder's own."""
    kept = {name: parts for name, parts in files.heads().items() if set(parts) == set(HEAD_PARTS)}
    own = _own_head(network)
    if own is not None:
        kept[files.head_name] = own
    dropout = float(files.options.get("pooler_dropout") or 0.0)
    activation = str(files.options.get("pooler_activation_fn") or "tanh")
    return {
        name: ClassificationHead.of(parts, dropout=dropout, activation_fn=activation) for name, parts in kept.items()
    }


def _own_head(network: Any) -> dict[str, torch.Tensor] | None:
    """The weights of Transformers' head under fairseq's names: a classifier's, or that of multiple choice."""
    classifier: Any = getattr(network, "classifier", None)
    if hasattr(classifier, "out_proj"):
        return {name: weight.detach() for name, weight in classifier.state_dict().items()}
    pooler = getattr(network.base_model, "pooler", None)
    if classifier is None or pooler is None:
        return None
    return {
        **{f"dense.{name}": weight.detach() for name, weight in pooler.dense.state_dict().items()},
        **{f"out_proj.{name}": weight.detach() for name, weight in classifier.state_dict().items()},
    }
