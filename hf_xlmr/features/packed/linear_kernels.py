"""Kernels that multiply with a layer's weights, PyTorch's own or oneDNN's, and the measurement of the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, Protocol

import torch
from torch.nn import functional

__all__ = ["KERNELS", "PLAIN", "Linear", "fastest_kernel", "offered_kernels"]

PLAIN: Final = "plain"
ONEDNN: Final = "onednn"
SEPARATE: Final = "onednn-separate"
TRIALS: Final = 7
JOINED_BYTES: Final = 1 << 24  # base's and large's; for more, the copy would take memory that a plan has not promised
WORTH_A_COPY: Final = 0.97  # a kernel that copies the weights must take less than this share of the time


class Linear(Protocol):
    """A matrix product with its bias, an activation or a residual on top."""

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of the product, (tokens, out)."""

    def plus(self, values: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product and `residual` together, without an activation."""


def _gelu(values: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    operations: Any = torch.ops.aten  # the function of torch.nn.functional has no out=
    changed: torch.Tensor = operations.gelu.out(values, approximate=approximate, out=values)
    return changed


def _unchanged(values: torch.Tensor) -> torch.Tensor:
    return values


ACTIVATIONS: Final[
    Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
] = {  # transformers.activations.ACT2FN, in place
    "gelu": _gelu,
    "gelu_new": partial(_gelu, approximate="tanh"),
    "gelu_fast": partial(_gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(_gelu, approximate="tanh"),
    "none": _unchanged,
    "relu": torch.relu_,
    "tanh": torch.tanh_,
}
FUSED: Final = {  # ACTIVATIONS that oneDNN computes on its way, by its name and algorithm
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_fast": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "none": ("none", ""),
    "relu": ("relu", ""),
    "tanh": ("tanh", ""),
}


class PlainLinear:
    """PyTorch's own product with the weights in their own memory, one after another if there are several.

    On a GPU, several that are small are joined to one, since starting a product takes longer than computing it.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str = "none"
    ) -> None:
        """Multiply with `weights`, (out, in) each, side by side."""
        if len(weights) > 1 and weights[0].is_cuda and sum(each.nbytes for each in weights) <= JOINED_BYTES:
            weights, biases = [torch.cat(tuple(weights))], [torch.cat(tuple(biases))]
        self._parts = list(zip(weights, biases, strict=True))
        self._activation = ACTIVATIONS[activation]

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of the product, (tokens, out)."""
        return self._activation(self._product(values))

    def plus(self, values: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product and `residual` together, without an activation."""
        return self._product(values).add_(residual)

    def _product(self, values: torch.Tensor) -> torch.Tensor:
        parts = [functional.linear(values, weight, bias) for weight, bias in self._parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class OneDnnLinear:
    """oneDNN's product with a re-ordered copy of the weights, side by side in one matrix; activation and sum fused.

    `torch.compile` with freezing makes the same calls on a CPU (torch/_inductor/fx_passes/mkldnn_fusion.py).
    These names are private; PyTorch has no public ones that keep the weights in oneDNN's order.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str = "none"
    ) -> None:
        """Copy `weights`, (out, in) each."""
        joined = weights[0] if len(weights) == 1 else torch.cat(tuple(weights))
        self._operations: Any = torch.ops.mkldnn
        self._weight = self._operations._reorder_linear_weight(joined.detach(), None)
        self._bias = biases[0].detach() if len(biases) == 1 else torch.cat(tuple(biases)).detach()
        self._activation, self._algorithm = FUSED[activation]

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of the product, (tokens, out)."""
        product: torch.Tensor = self._operations._linear_pointwise(
            values, self._weight, self._bias, self._activation, [], self._algorithm
        )
        return product

    def plus(self, values: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product and `residual` together, without an activation."""
        total: torch.Tensor = self._operations._linear_pointwise.binary(
            values, residual, self._weight, self._bias, "add"
        )
        return total


class SeparateLinear(OneDnnLinear):
    """oneDNN's product, then PyTorch's activation in place: on AVX2 oneDNN's own GELU takes four times as long."""

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str = "none"
    ) -> None:
        """Copy `weights`, (out, in) each."""
        super().__init__(weights, biases)
        self._after = ACTIVATIONS[activation]

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The activation of the product, (tokens, out)."""
        return self._after(super().__call__(values))


KERNELS: Final[Mapping[str, Callable[..., Linear]]] = {
    PLAIN: PlainLinear,
    ONEDNN: OneDnnLinear,
    SEPARATE: SeparateLinear,
}


def fastest_kernel(
    hidden: int, intermediate: int, *, tokens: int, dtype: torch.dtype, device: torch.device, activation: str
) -> str:
    """The name of the kernel that does a layer's four products on `tokens` tokens fastest, by a short measurement."""
    offered = offered_kernels(dtype, device)
    if offered == (PLAIN,):
        return PLAIN
    with torch.inference_mode():
        inputs = [torch.ones(tokens, size, dtype=dtype) for size in (hidden, intermediate)]
        seconds = _seconds(
            {name: _layer(KERNELS[name], hidden, intermediate, dtype, activation) for name in offered}, inputs
        )
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < WORTH_A_COPY * seconds[PLAIN] else PLAIN


def offered_kernels(dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """The names of the KERNELS that `device` can run in `dtype`."""
    return tuple(KERNELS) if device.type == "cpu" and _onednn_runs(dtype) else (PLAIN,)


@lru_cache
def _onednn_runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN can compute a small product: some builds of PyTorch lack it, some processors the instructions."""
    values, weight, bias = (torch.zeros(shape, dtype=dtype) for shape in ((2, 16), (16, 16), (16,)))
    try:
        with torch.inference_mode():
            linear = OneDnnLinear([weight], [bias], activation="gelu")
            linear(values), linear.plus(values, values)
    except (AttributeError, RuntimeError):
        return False
    return True


def _layer(
    make: Callable[..., Linear], hidden: int, intermediate: int, dtype: torch.dtype, activation: str
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A function that computes the four products of a layer with arbitrary weights."""

    def weights(out: int, into: int, count: int = 1) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        matrices = [torch.full((out, into), 0.01, dtype=dtype) for _ in range(count)]
        return matrices, [torch.zeros(out, dtype=dtype) for _ in range(count)]

    attention, output = make(*weights(hidden, hidden, 3)), make(*weights(hidden, hidden))
    up, down = make(*weights(intermediate, hidden), activation=activation), make(*weights(hidden, intermediate))

    def run(narrow: torch.Tensor, wide: torch.Tensor) -> None:
        attention(narrow), output.plus(narrow, narrow), up(narrow), down.plus(wide, narrow)

    return run


def _seconds(
    layers: Mapping[str, Callable[[torch.Tensor, torch.Tensor], None]], inputs: Sequence[torch.Tensor]
) -> dict[str, float]:
    """The shortest time of each layer over some trials, in turns: other work on the machine only makes them longer."""
    took: dict[str, list[float]] = {name: [] for name in layers}
    for run in layers.values():
        run(*inputs)
    for _ in range(TRIALS):
        for name, run in layers.items():
            start = time.perf_counter()
            run(*inputs)
            took[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in took.items()}
