"""Rewrite a checkpoint that fairseq's trainer saved into a rarer kind (Python >= 3.7, inside a fairseq environment)."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

DECOYS = tuple(f".{name}_{part}" for name in ("in_proj", "out_proj", "fc1", "fc2") for part in ("weight", "bias"))


def read(path: str) -> dict[str, Any]:
    """What torch.save wrote, on the CPU."""
    return torch.load(path, map_location="cpu")


def half(path: str) -> dict[str, Any]:
    """As fairseq 0.9.0 saves after training in half precision: the state dict as it is, a tied tensor still shared."""
    checkpoint = read(path)
    converted: dict[int, torch.Tensor] = {}
    weights = OrderedDict()
    for name, tensor in checkpoint["model"].items():
        weights[name] = converted.setdefault(tensor.data_ptr(), tensor.half())
    checkpoint["model"] = weights
    return {key: value for key, value in checkpoint.items() if key != "last_optimizer_state"}


def adapters(path: str) -> dict[str, Any]:
    """With adapters of an X-MOD that differ: a training without languages only trains the English ones."""
    torch.manual_seed(22)
    checkpoint = read(path)
    for name, weight in checkpoint["model"].items():
        if ".adapter_modules." in name:
            weight.add_(torch.randn(weight.shape) * 0.1)
    return checkpoint


def twoheads(path: str) -> dict[str, Any]:
    """With two classification heads of different sizes, registered through the hub interface and never trained."""
    from fairseq.checkpoint_utils import load_model_ensemble_and_task
    from fairseq.models.roberta import RobertaHubInterface

    torch.manual_seed(21)
    models, config, task = load_model_ensemble_and_task([path])
    hub = RobertaHubInterface(config, task, models[0])
    hub.register_classification_head("sentiment", num_classes=2)
    hub.register_classification_head("topic", num_classes=5)
    return {**read(path), "model": hub.model.state_dict()}


def omegaconf(path: str) -> dict[str, Any]:
    """As git main saved between October 2020 and March 2021: the options are a pickled DictConfig; no decoys yet."""
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    checkpoint = read(path)
    weights = OrderedDict((name, tensor) for name, tensor in checkpoint["model"].items() if not name.endswith(DECOYS))
    config = convert_namespace_to_omegaconf(checkpoint["cfg"]["model"])
    return {**checkpoint, "cfg": config, "args": None, "model": weights}


def main() -> None:
    """Read one checkpoint, write another."""
    kinds = {kind.__name__: kind for kind in (half, adapters, twoheads, omegaconf)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(kinds))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()

    torch.save(kinds[options.kind](str(options.checkpoint)), str(options.output))


if __name__ == "__main__":
    main()
