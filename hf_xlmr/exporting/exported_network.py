"""The network that is exported: a folder's own class, its bare encoder, or the encoder with the pooling after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from hf_xlmr.errors import IntegrityError
from hf_xlmr.exporting.runtime_graph import Wanted
from hf_xlmr.model.families import Task
from hf_xlmr.model.model_shape import ModelShape
from hf_xlmr.placement.placed_loading import load_whole
from hf_xlmr.tokenizer.dictionary import PAD_INDEX

__all__ = ["answers_of", "axes_of", "largest_difference", "loaded", "sample_inputs"]

POOLS: Final[Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "mean": lambda states, mask: (states * mask).sum(1) / mask.sum(1).clamp(min=1),
    "cls": lambda states, mask: states[:, 0],
    "max": lambda states, mask: states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(1),
}
"""One vector of each text's, (texts, tokens, width) and (texts, tokens, 1) in float32; as in `features.pooling`."""
SMALLEST: Final = 1e-12  # what is divided by, at least


class PooledNetwork(nn.Module):
    """An encoder, its pooling, and if `normalizes` the division of each vector by its length."""

    def __init__(self, encoder: nn.Module, pool: str, *, normalizes: bool) -> None:
        super().__init__()
        self.encoder, self.config, self.pool, self.normalizes = encoder, encoder.config, pool, normalizes

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The vectors, (texts, width) in float32, of ids and mask, (texts, tokens)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0].float()
        vectors = POOLS[self.pool](states, attention_mask.unsqueeze(-1).float())
        normal = nn.functional.normalize(vectors, dim=-1, eps=SMALLEST) if self.normalizes else vectors
        return {"sentence_embedding": normal}  # the name that optimum gives it


def loaded(folder: Path, shape: ModelShape, wanted: Wanted) -> Any:
    """The network to export, in float32; its configuration names its class. Raises InputError, IntegrityError."""
    is_pooled = wanted.pool != "none"
    if is_pooled or wanted.encoder_only:
        keeps_pooler = shape.has_pooler and shape.task is Task.ENCODER and not is_pooled
        shape = replace(shape, task=Task.ENCODER, has_pooler=keeps_pooler)
    network = load_whole(folder, device="cpu", dtype="float32", shape=shape)
    network.config.architectures = [type(network).__name__]
    return PooledNetwork(network, wanted.pool, normalizes=wanted.normalize).eval() if is_pooled else network


def axes_of(network: Any) -> tuple[str, ...]:
    """What the dimensions of ids and mask are."""
    has_choices = network.config.architectures[0].endswith(Task.MULTIPLE_CHOICE.value)
    return ("batch", "choices", "sequence") if has_choices else ("batch", "sequence")


def sample_inputs(network: Any, *, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Ids and mask of texts of unequal length, in the dimensions of `axes_of`; there are two choices."""
    sizes = {"batch": texts, "choices": 2, "sequence": tokens}
    shape = [sizes[name] for name in axes_of(network)]
    ids = (torch.arange(prod(shape)) * 7919 % network.config.vocab_size).view(shape)
    ids[ids == PAD_INDEX] = 0
    ids[-1, ..., tokens // 2 + 1 :] = PAD_INDEX
    return {"input_ids": ids, "attention_mask": (ids != PAD_INDEX).long()}


def answers_of(network: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs of a network or of an exported one by their names, in float32."""
    with torch.inference_mode():
        return {name: value.float().clone() for name, value in dict(network(**inputs)).items()}


def largest_difference(
    ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], mask: torch.Tensor
) -> float:
    """The largest difference on what is not padding, as a share of our largest value. Raises IntegrityError."""
    found = 0.0
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise IntegrityError(f"the graph and the model answer with other outputs: {name} is not the same in both")
        is_of_tokens = ours[name].shape[: mask.ndim] == mask.shape
        want, got = (each[name][mask.bool()] if is_of_tokens else each[name] for each in (ours, theirs))
        if not bool(got.isfinite().all()):
            raise IntegrityError(f"the graph's {name} has numbers that are not finite; choose another dtype")
        found = max(found, float((want - got).abs().max() / want.abs().max().clamp(min=SMALLEST)))
    return found
