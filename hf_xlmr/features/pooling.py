"""Pools the vectors of a text's tokens to one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import torch

from hf_xlmr.features.packing import PackedBatch

__all__ = ["Pooling", "pooled_batch", "pooled_part", "pooled_parts"]


class Pooling(Enum):
    """The ways to pool the vectors of a text's tokens, `<s>` and `</s>` included."""

    mean = "mean"
    """The average of the vectors, summed in float32."""
    cls = "cls"
    """The vector of `<s>`, which classifiers read."""
    max = "max"
    """The largest value of each component."""
    none = "none"
    """Every token's vector, without pooling."""


REDUCTIONS: Final[Mapping[Pooling, Callable[[torch.Tensor], torch.Tensor]]] = {  # over the last dimension but one
    Pooling.mean: lambda values: values.mean(dim=-2, dtype=torch.float32),
    Pooling.cls: lambda values: values[..., 0, :],
    Pooling.max: lambda values: values.amax(dim=-2),
}


def pooled_batch(values: torch.Tensor, batch: PackedBatch, pooling: Pooling) -> torch.Tensor:
    """One vector for each text of a batch, (texts, width) in float32, of `values` (tokens, width)."""
    reduce = REDUCTIONS[pooling]
    runs = [values[run.start : run.end].view(run.texts, run.length, -1) for run in batch.runs]
    return torch.cat([reduce(run).float() for run in runs])


def pooled_part(values: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """The share of one piece's tokens, (tokens, width), in the text's vector: (width,) in float32."""
    if pooling is Pooling.mean:
        return values.sum(dim=-2, dtype=torch.float32)
    return REDUCTIONS[pooling](values).float()


def pooled_parts(parts: torch.Tensor, pooling: Pooling, *, tokens: int) -> torch.Tensor:
    """One vector, (width,), of all pieces of a text in their order, (pieces, width), which have `tokens` tokens."""
    if pooling is Pooling.mean:
        return parts.sum(dim=0) / tokens
    return REDUCTIONS[pooling](parts)
