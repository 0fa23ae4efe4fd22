"""Every known fault, planted in a server that runs Transformers, with the words by which it must be named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["FAULTS", "OF_THE_FINAL_NORM", "VECTORS_ONLY"]

Ids = torch.Tensor


def _counted(first: int) -> Callable[[Ids, torch.Tensor], torch.Tensor]:
    return lambda ids, mask: torch.where(mask, mask.cumsum(dim=1) - 1 + first, min(first, 1))


def _on_the_left(ids: Ids, mask: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1])[None].expand_as(ids) + 2


def _over_the_batch(ids: Ids, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, (mask.flatten().cumsum(dim=0).view_as(ids) + 1).clamp_max(65), 1)


class _Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


def _activation(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    def prepare(model: Any) -> None:
        for module in model.modules():
            if hasattr(module, "intermediate_act_fn"):
                module.intermediate_act_fn = _Function(function)

    return prepare


def _eps(value: float) -> Callable[[Any], None]:
    def prepare(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = value

    return prepare


def _in_type(dtype: torch.dtype) -> Callable[[Any], None]:
    def prepare(model: Any) -> None:
        for weight in model.parameters():
            weight.data = weight.data.to(dtype).float()

    return prepare


def _int8(model: Any) -> None:
    """A scale for each row, and inputs as they are."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.data.abs().amax(dim=1, keepdim=True) / 127
            module.weight.data = (module.weight.data / scale).round() * scale


class _Integers(nn.Module):
    """A product of inputs and weights of 8 bits, each two neighbours added in 16 bits if `narrow`."""

    def __init__(self, linear: nn.Linear, *, narrow: bool) -> None:
        super().__init__()
        self.scale = linear.weight.data.abs().max() / 127
        self.integers = (linear.weight.data / self.scale).round().to(torch.int64)
        self.bias, self.narrow = linear.bias, narrow

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        low, high = values.min().clamp(max=0), values.max().clamp(min=0)
        scale = (high - low) / 255
        zero = (-low / scale).round()
        given = ((values / scale).round() + zero).clamp(0, 255).to(torch.int64)
        sums = (given[..., None, :] * self.integers).unflatten(-1, (-1, 2)).sum(dim=-1)
        sums = sums.clamp(-(2**15), 2**15 - 1) if self.narrow else sums
        whole = sums.sum(dim=-1) - zero.to(torch.int64) * self.integers.sum(dim=-1)
        return whole * scale * self.scale + self.bias


def _in_integers(*, narrow: bool) -> Callable[[Any], None]:
    def prepare(model: Any) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, _Integers(child, narrow=narrow))

    return prepare


def _without_last_layer(model: Any) -> None:
    model.encoder.layer = model.encoder.layer[:-1]


def _without_final_norm(model: Any) -> None:
    owner = model if model.config.model_type == "roberta-prelayernorm" else model.encoder
    owner.LayerNorm = nn.Identity()


def _of_all(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return values.mean(dim=0)


GELU = nn.functional.gelu
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "positions from 0": ({"positions": _counted(0)}, "counts positions from 0"),
    "positions from 1": ({"positions": _counted(1)}, "counts positions from 1"),
    "positions over the batch": ({"positions": _over_the_batch}, "counts positions on from one text"),
    "padding on the left counts": ({"positions": _on_the_left, "side": "left"}, "counts padding on the left"),
    "tanh GELU": ({"prepare": _activation(lambda x: GELU(x, approximate="tanh"))}, "the tanh approximation"),
    "sigmoid GELU": ({"prepare": _activation(lambda x: x * torch.sigmoid(1.702 * x))}, "the sigmoid approximation"),
    "eps": ({"prepare": _eps(1e-3)}, "has the eps 0.001"),
    "padding attended to": ({"attends_to_padding": True}, "attends to padding"),
    "texts leak": ({"packs": True}, "lets the texts of a batch attend to each other"),
    "no <s>": ({"frame": lambda row: row[1:]}, "leaves out <s>"),
    "no </s>": ({"frame": lambda row: row[:-1], "keeps_end": False}, "leaves out </s>"),
    "neither": ({"frame": lambda row: row[1:-1], "keeps_end": False}, "leaves out <s> and </s>"),
    "two <s>": ({"frame": lambda row: [0, *row]}, "adds <s> twice"),
    "two </s>": ({"frame": lambda row: [*row, 2]}, "adds </s> twice"),
    "truncation at 32": ({"longest": 32}, "cuts texts off at 32 tokens"),
    "truncation at 47": ({"longest": 47}, "cuts texts off at 47 tokens"),
    "truncation loses </s>": ({"keeps_end": False}, "loses </s>"),
    "lower case": ({"spell": str.lower}, "tokenizes texts in lower case"),
    "ids of pieces shifted": (
        {"frame": lambda row: [row[0], *(max(each - 1, 0) for each in row[1:-1]), row[-1]]},
        "ids of pieces -1",
    ),
    "layer before the last": ({"prepare": _without_last_layer}, "gives the layer 1 before the last"),
    "weights in bfloat16": ({"prepare": _in_type(torch.bfloat16)}, "it rounds its weights to bfloat16"),
    "weights in float16": ({"prepare": _in_type(torch.float16)}, "it rounds its weights to float16"),
    "float16": ({"dtype": torch.float16}, "it computes in float16"),
    "bfloat16": ({"dtype": torch.bfloat16}, "it computes in bfloat16"),
    "int8": ({"prepare": _int8}, "it rounds its weights to int8"),
    "int8 products": (
        {"prepare": _in_integers(narrow=False)},
        "it computes in int8 with one scale for each matrix (",
    ),
    "int8 products in 16 bits": (
        {"prepare": _in_integers(narrow=True)},
        "in int8 with one scale for each matrix and sums that saturate at 16 bits, as processors without VNNI",
    ),
}
"""What `Runtime` is given, and a part of the verdict."""
VECTORS_ONLY: dict[str, tuple[dict[str, Any], str]] = {
    "padding pooled": ({"pool": _of_all}, "pools the vectors of padding"),
    "padding attended to and pooled": ({"pool": _of_all, "attends_to_padding": True}, "attends to padding and pools"),
    "pooled by cls": ({"pool": lambda each, mask: each[mask][0]}, "pools by cls"),
    "pooled by max": ({"pool": lambda each, mask: each[mask].amax(dim=0)}, "pools by max"),
    "pooled by last": ({"pool": lambda each, mask: each[mask][-1]}, "pools by last"),
    "normalized": ({"normalizes": True}, "scales vectors to the length 1"),
}
OF_THE_FINAL_NORM = ({"prepare": _without_final_norm}, "leaves out the norm after the last layer")
