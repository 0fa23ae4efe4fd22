"""Lower precisions that runtimes compute in, and how a float32 network becomes one of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch import nn

__all__ = ["PRECISIONS", "SATURATING"]

NARROW: Final = torch.iinfo(torch.int16)
AT_ONCE: Final = 1 << 22  # sums of pairs


def _rounded(weight: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype).float()


def _in_int8(weight: torch.Tensor, *, by_row: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as 8-bit integers, kept as float32, and their scale: one, or one for each row."""
    largest = weight.abs().amax(dim=1, keepdim=True) if by_row else weight.abs().amax()
    scale = largest.clamp_min(1e-12) / 127
    return torch.round(weight / scale).clamp(-127, 127), scale


class _Int8Linear(nn.Module):
    """A linear layer whose weights and inputs are rounded to 8-bit integers."""

    def __init__(self, linear: nn.Linear, *, by_row: bool, saturates: bool) -> None:
        super().__init__()
        integers, self.scale = _in_int8(linear.weight.data, by_row=by_row)
        self.weight = nn.Parameter(integers * self.scale, requires_grad=False)
        self.bias = linear.bias
        self.pairs = _SaturatingPairs(integers) if saturates else None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not values.numel():  # X-MOD calls the adapters of every language, also where no text has it
            return nn.functional.linear(values, self.weight, self.bias)
        low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
        scale = (high - low).clamp_min(1e-12) / 255
        integers = torch.round(values / scale)
        made = nn.functional.linear(integers * scale, self.weight, self.bias)
        if self.pairs is None:
            return made
        levels = (integers - torch.round(low / scale)).clamp(0, 255)
        return made + self.pairs.change(levels) * (scale * self.scale.view(-1))


class _SaturatingPairs:
    """What saturation changes, where a processor adds each two products in 16 bits (vpmaddubsw, before VNNI).

    The two are of the columns 2k and 2k + 1. Only pairs of weights are held whose sum can leave 16 bits.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        """Find the pairs of `weight`, 8-bit integers kept as float32, (out, in)."""
        self._out = len(weight)
        even, odd = weight[:, 0::2], nn.functional.pad(weight[:, 1::2], (0, weight.shape[1] % 2))
        most = torch.maximum(even.clamp_min(0) + odd.clamp_min(0), -even.clamp_max(0) - odd.clamp_max(0)) * 255
        self._rows, self._pairs = torch.nonzero(most > NARROW.max, as_tuple=True)
        self._even, self._odd = (each[self._rows, self._pairs][:, None] for each in (even, odd))

    def change(self, levels: torch.Tensor) -> torch.Tensor:
        """What is added to each sum, (..., out), for inputs of 0 to 255, (..., in)."""
        columns = nn.functional.pad(levels, (0, levels.shape[-1] % 2)).flatten(0, -2).T.contiguous()
        found = columns.new_zeros(self._out, columns.shape[1])
        step = max(1, AT_ONCE // max(1, columns.shape[1]))
        for start in range(0, len(self._rows), step):
            some = slice(start, start + step)
            first = 2 * self._pairs[some]
            sums = columns[first].mul_(self._even[some]).add_(columns[first + 1].mul_(self._odd[some]))
            found.index_add_(0, self._rows[some], sums.clamp(NARROW.min, NARROW.max).sub_(sums))
        return found.T.view(*levels.shape[:-1], self._out)


def _with_int8(model: nn.Module, *, by_row: bool, saturates: bool = False) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _Int8Linear(child, by_row=by_row, saturates=saturates))
    return model


def _with_int8_weights(model: nn.Module) -> nn.Module:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings:  # which a head can share
            integers, scale = _in_int8(module.weight.data, by_row=True)
            module.weight.data = integers * scale
    return model


def _with_weights(model: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    for weight in model.parameters():
        weight.data = change(weight.data)
    return model


SATURATING: Final[Mapping[str, Callable[[nn.Module], nn.Module]]] = {
    "computes in int8 with sums that saturate at 16 bits": partial(_with_int8, by_row=True, saturates=True),
    "computes in int8 with one scale for each matrix and sums that saturate at 16 bits": partial(
        _with_int8, by_row=False, saturates=True
    ),
}
"""Those that are not rounding alone."""
PRECISIONS: Final[Mapping[str, Callable[[nn.Module], nn.Module]]] = {
    "rounds its weights to float16": partial(_with_weights, change=partial(_rounded, dtype=torch.float16)),
    "rounds its weights to bfloat16": partial(_with_weights, change=partial(_rounded, dtype=torch.bfloat16)),
    "rounds its weights to int8": _with_int8_weights,
    "computes in float16": lambda model: model.to(torch.float16),
    "computes in bfloat16": lambda model: model.to(torch.bfloat16),
    "computes in int8": partial(_with_int8, by_row=True),
    "computes in int8 with one scale for each matrix": partial(_with_int8, by_row=False),
    **SATURATING,
}
"""By what such a runtime does."""
