"""Products of 8-bit integers on a CPU: weights by output channel, inputs by token, both scaled, summed exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import torch

from hf_xlmr.errors import InputError
from hf_xlmr.features.packed.linear_kernels import ACTIVATIONS, Linear, PlainLinear

__all__ = ["CalibratedLinear", "InputRange", "Int8Linear", "raise_if_no_int8"]

BAND: Final = 2048  # rows of a product
CACHED: Final = 1 << 17  # values that a thread quantizes or scales while they are in its cache
FULL: Final = 127  # the largest weight where sums of two products fit the processor's registers
HALVED: Final = 64  # the largest weight where they must fit 16 bits: 2 * 255 * 64 is less than 2**15
LEVELS: Final = 255  # of an input
ROUNDING: Final = 1.5 * 2**23  # a number plus this is rounded to an integer, which its low bits hold
SYMMETRIC: Final = 128  # the level that means 0, unless nearly all inputs are positive
SHARE: Final = 0.5  # of the difference between channels that goes from the inputs to the weights (SmoothQuant's alpha)
SMALLEST: Final = 1e-12
PROBE: Final = (32, 256, 256)  # rows, out, in of the product by which a processor is tried


@dataclass(frozen=True)
class InputRange:
    """The lowest and the largest value of each input channel of a product, (in,), on a sample."""

    lowest: torch.Tensor
    largest: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> InputRange:
        """The range of `values`, (tokens, in)."""
        return cls(values.amin(0), values.amax(0))


class CalibratedLinear:
    """A product in float32 until it has computed a sample, and then in int8 if that is near enough."""

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str = "none"
    ) -> None:
        """Multiply with `weights`, (out, in) each, side by side."""
        self._linear: Linear = PlainLinear(weights, biases, activation=activation)
        self._in_int8: Callable[..., Int8Linear] | None = partial(Int8Linear, weights, biases, activation=activation)
        self._sample: tuple[torch.Tensor, ...] = ()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of the product, (tokens, out)."""
        found = self._linear(values)
        if self._in_int8 is not None:
            self._sample = (values, found)
        return found

    def plus(self, values: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product and `residual` together, without an activation."""
        return self._linear.plus(values, residual) if self._in_int8 is None else self(values) + residual

    def quantize(self, *, largest_error: float) -> bool:
        """Compute in int8 from now on, unless the sample's outputs would change by more than `largest_error`.

        Return whether it does. The error is relative; what the sample gave is let go.
        """
        assert self._in_int8 is not None
        values, exact = self._sample
        linear = self._in_int8(inputs=InputRange.of(values))
        is_near = float((linear(values) - exact).norm()) <= largest_error * float(exact.norm())
        self._linear = linear if is_near else self._linear
        self._in_int8, self._sample = None, ()
        return is_near


class Int8Linear:
    """oneDNN's product of 8-bit integers: a scale for each output channel, and one for each token as it comes.

    Channels whose inputs are large on a sample are divided by a factor, and their weights multiplied by it, so that
    no channel takes the levels of all others (SmoothQuant, arXiv 2211.10438, equation 4 with alpha 0.5).
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        *,
        activation: str = "none",
        inputs: InputRange,
    ) -> None:
        """Quantize `weights`, (out, in) each, side by side, for inputs in the range of the sample."""
        joined = torch.cat([each.float() for each in weights])
        self._bias = torch.cat([each.float() for each in biases])
        self._activation = ACTIVATIONS[activation]
        factors = _factors(joined, inputs)
        self._inverse = 1 / factors
        self._zero = _zero_point(inputs.lowest * self._inverse, inputs.largest * self._inverse)
        quantized, self._scales = _quantized(joined.mul_(factors))
        self._weight = _packed(quantized, rows=BAND)
        self._zeros = torch.zeros(len(joined), dtype=torch.int32)
        self._rounding = torch.full((joined.shape[1],), ROUNDING + self._zero)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of the product, (tokens, out)."""
        return self._by_band(values, lambda part, _rows: self._activation(part))

    def plus(self, values: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product and `residual` together, without an activation."""
        return self._by_band(values, lambda part, rows: part.add_(residual[rows]))

    def _by_band(self, values: torch.Tensor, then: Callable[[torch.Tensor, slice], object]) -> torch.Tensor:
        is_one_band = len(values) <= BAND  # its sums become the result: another block of that size costs page faults
        found = values.new_empty(0 if is_one_band else len(values), len(self._bias))
        for start in range(0, len(values), BAND):
            integers, scales = self._integers(values[start : start + BAND])
            sums = _product(integers, self._zero, self._weight, self._scales, self._zeros)
            found = sums if is_one_band else found
            for part in _cached(sums):
                rows = slice(start + part.start, start + part.stop)
                torch.addcmul(self._bias, sums[part], scales[part], out=found[rows])
                then(found[rows], rows)
        return found

    def _integers(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The levels of `values`, (tokens, in), and what a level of each token stands for, (tokens, 1)."""
        integers, scales = torch.empty(values.shape, dtype=torch.uint8), values.new_empty(len(values), 1)
        for rows in _cached(values):
            part = values[rows] * self._inverse
            above, below = part.amax(1, keepdim=True), part.amin(1, keepdim=True)
            largest = torch.maximum(above / (LEVELS - self._zero), below / -self._zero)
            scales[rows] = largest.clamp_(min=SMALLEST)
            torch.addcmul(self._rounding, part, scales[rows].reciprocal(), out=part)
            integers[rows] = part.view(torch.int32)  # six times as fast as a conversion of float32
        return integers, scales


def _cached(values: torch.Tensor) -> Iterator[slice]:
    """Rows of `values` that fit the caches of all threads, one after another."""
    rows, width = values.shape
    step = max(1, CACHED * torch.get_num_threads() // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _packed(weight: torch.Tensor, *, rows: int) -> torch.Tensor:
    """`weight`, (out, in) in int8, in the order in which oneDNN multiplies so many rows."""
    operations: Any = torch.ops.onednn
    packed: torch.Tensor = operations.qlinear_prepack(weight, [rows, weight.shape[1]])
    return packed


def _product(
    integers: torch.Tensor, zero: int, weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    operations: Any = torch.ops.onednn
    product: torch.Tensor = operations.qlinear_pointwise(
        integers, 1.0, zero, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def _factors(weight: torch.Tensor, inputs: InputRange) -> torch.Tensor:
    """What each input channel is divided by, (in,); 1 where a channel or its weights are 0."""
    largest = torch.maximum(inputs.largest, -inputs.lowest)
    factors = largest.pow(SHARE) / weight.abs().amax(0).pow(1 - SHARE)
    return torch.where(torch.isfinite(factors) & (factors > 0), factors, 1)


def _zero_point(lowest: torch.Tensor, largest: torch.Tensor) -> int:
    """The level that means 0: the middle, or a low one for inputs that are nearly all positive, such as GELU's."""
    below, above = -float(lowest.min()), float(largest.max())
    if not 0 < below < above / 2:
        return SYMMETRIC
    return max(1, round(LEVELS * below / (below + above)))


def _quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` in int8, and the scale of each output channel."""
    scales = weight.abs().amax(1).clamp_(min=SMALLEST) / _largest_weight()
    return (weight / scales[:, None]).round_().to(torch.int8), scales


# ---- what the processor can do ---------------------------------------------------------------------------------------


def raise_if_no_int8(device: torch.device) -> None:
    """Raise InputError unless the device is a CPU on which PyTorch multiplies 8-bit integers."""
    if device.type != "cpu":
        raise InputError(f"int8 is for CPUs, and the model is on {device}: use bfloat16 there")
    if _largest_weight() == 0:
        raise InputError("this build of PyTorch cannot multiply 8-bit integers here: use float32 or bfloat16")


@cache
def _largest_weight() -> int:
    """The largest weight whose products are summed exactly; 0 if there are no such products.

    Processors without VNNI add two products in 16 bits, which saturate
    (https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html).
    """
    return next((largest for largest in (FULL, HALVED) if _is_exact(largest)), 0)


def _is_exact(weight: int) -> bool:
    rows, out, into = PROBE
    try:
        with torch.inference_mode():
            packed = _packed(torch.full((out, into), weight, dtype=torch.int8), rows=rows)
            integers = torch.full((rows, into), LEVELS, dtype=torch.uint8)
            sums = _product(integers, 0, packed, torch.ones(out), torch.zeros(out, dtype=torch.int32))
    except (AttributeError, RuntimeError):
        return False
    return bool((sums == LEVELS * weight * into).all())
