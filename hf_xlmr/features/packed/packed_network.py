"""Runs the encoder over texts laid end to end: linear layers see one long matrix, attention each text by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch.nn import functional

from hf_xlmr.features.background import prefetched
from hf_xlmr.features.packed.encoder_weights import EncoderWeights
from hf_xlmr.features.packed.linear_kernels import KERNELS, PLAIN, Linear
from hf_xlmr.features.packing import PackedBatch, Part, Run
from hf_xlmr.model.adapters import ADAPTER_LINEARS, ADAPTER_NORM, Adapters

__all__ = ["Layer", "PackedInputs", "PackedNetwork"]

LAYERS_AHEAD: Final = 2  # read before their turn
ROUNDED_TO: Final = 32  # tokens: a kernel is compiled for each length of matrix, so there should be few lengths
PARTS: Final = ("weight", "bias")
MODULES: Final = "output.adapter_modules"
PADDING: Final = 1  # the id and the position of the tokens that are added for it
HALVES: Final = (torch.bfloat16, torch.float16)
# Up to these lengths two batched products and a softmax are faster on a CPU than the fused kernel, which works through
# each text and head by itself. In bfloat16 they would be too, but oneDNN keeps code for each shape that it meets, which
# takes a gigabyte over many texts (tests/benchmarks/RESULTS.md). Scores beyond MOST_SCORES are not written out.
SHORT: Final = {torch.float32: 96}
MOST_SCORES: Final = 1 << 24


class PackedInputs:
    """What the network reads of a batch, in one block of int32 that is copied to the device once, without waiting."""

    def __init__(self, batch: PackedBatch, ids: np.ndarray, device: torch.device) -> None:
        """Copy the batch, whose tokens are `ids`, with padding at the end up to a multiple of ROUNDED_TO."""
        self.batch = batch
        rows = _rounded(batch.tokens)
        self.longest = max(int(batch.lengths.max()), rows - batch.tokens)
        """The most tokens of a text, or of the padding, which is one more text."""
        size = 2 * rows + len(batch.boundaries) + 1
        host = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        places = (0, rows, 2 * rows, size)
        parts = ((ids, PADDING), (batch.positions, PADDING), (batch.boundaries, rows))
        for (start, end), (values, rest) in zip(pairwise(places), parts, strict=True):
            part = host.numpy()[start:end]
            part[: len(values)], part[len(values) :] = values, rest
        self.ids, self.positions, ends = host.to(device, non_blocking=True).tensor_split(places[1:3])
        self._boundaries = {ends.device: ends}

    def boundaries(self, device: torch.device) -> torch.Tensor:
        """The first token of each text and of the padding, and the end, on `device`: copied once to each."""
        if device not in self._boundaries:
            first = next(iter(self._boundaries.values()))
            self._boundaries[device] = first.to(device, non_blocking=True)
        return self._boundaries[device]


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUNDED_TO) * ROUNDED_TO


class ComingLayers:
    """The layers of an encoder whose weights are in files: a thread reads the next ones while the last one computes."""

    def __init__(self, weights: EncoderWeights, dtype: torch.dtype, kernel: str, most: int) -> None:
        """Make up to `most` layers."""
        self._weights, self._dtype, self._kernel, self._most = weights, dtype, kernel, most
        self._ready: list[Layer] = []
        self._coming: Iterator[Layer] | None = None
        self._lock = Lock()

    def __getitem__(self, index: int) -> Layer:
        """Layer `index`, from 0, as soon as it and those before it are read. Raises IntegrityError."""
        with self._lock:
            while len(self._ready) <= index:
                self._coming = self._coming or prefetched(self.made(len(self._ready) + 1), depth=LAYERS_AHEAD)
                try:
                    self._ready.append(next(self._coming))
                except BaseException:
                    self._coming = None  # it has ended: the next call reads on
                    raise
            return self._ready[index]

    def __reduce__(self) -> tuple[type[list[Layer]], tuple[list[Layer]]]:
        """A copy in another process has all layers."""
        self[self._most - 1]
        return list, (self._ready,)

    def made(self, first: int) -> Iterator[Layer]:
        """Make the layers from `first` on, one at a time."""
        return _made(self._weights, self._dtype, self._kernel, range(first, self._most + 1))


def _made(weights: EncoderWeights, dtype: torch.dtype, kernel: str, numbers: range) -> Iterator[Layer]:
    """Layers by number; the thread that iterates over them holds no network, so that one that is deleted ends it."""

    def make(name: str, matrices: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str) -> Linear:
        del name  # all products of a layer have one kernel
        return KERNELS[kernel](matrices, biases, activation=activation)

    for number in numbers:
        with torch.inference_mode():
            layer = Layer(weights, number, dtype, make, of_adapters=kernel)
        yield layer


class PackedNetwork:
    """An encoder of one of the families, computed without padding and without gradients."""

    def __init__(
        self,
        weights: EncoderWeights,
        *,
        dtype: torch.dtype,
        kernel: str = PLAIN,
        most: int | None = None,
        layers: list[Layer] | None = None,
    ) -> None:
        """Compute with `weights` in `dtype` up to layer `most`, with the kernel of that name, or with ready `layers`.

        The plain kernel shares weights that are in memory; others hold re-ordered copies of the layers' weights. What
        is still in files is read by a thread while the first layers compute.
        """
        self.width, self.layer_count = weights.hidden, weights.layers
        """The number of layers does not count the embeddings."""
        self.dtype, self.kernel = dtype, kernel
        with torch.inference_mode():
            self._embeddings = _Embeddings(weights, dtype)
            self._final_norm = _Norm.of(weights, weights.family.final_norm, dtype)
        coming = ComingLayers(weights, dtype, kernel, weights.layers if most is None else most)
        if layers is None:
            layers = list(coming.made(1)) if weights.is_in_memory else None
        self._layers: list[Layer] | ComingLayers = coming if layers is None else layers

    @torch.inference_mode()
    def hidden_states(self, inputs: PackedInputs, *, layers: Collection[int]) -> dict[int, torch.Tensor]:
        """The hidden states of `layers`, (tokens, width) each, on the device where they were computed.

        Layer 0 is the embeddings, n the output of layer n, and the last one the features: in a model that normalises
        before its layers, after the final norm.
        """
        values = self.embedded(inputs)
        found = {}
        for number in range(max(layers) + 1):
            if number:
                values = self._layers[number - 1](values, inputs)
            if number in layers:
                found[number] = self.finished(values, number)[: inputs.batch.tokens]
        return found

    def embedded(self, inputs: PackedInputs) -> torch.Tensor:
        """What the first layer takes, (tokens, width), padding included."""
        return self._embeddings(inputs.ids, inputs.positions)

    def finished(self, values: torch.Tensor, number: int) -> torch.Tensor:
        """The hidden states after layer `number`, of which `values` came: for the last one, after the final norm."""
        return self._final_norm(values) if number == self.layer_count and self._final_norm is not None else values


class _Norm:
    """A layer norm."""

    def __init__(self, weights: EncoderWeights, name: str, dtype: torch.dtype) -> None:
        self._shape, self._epsilon = (weights.hidden,), weights.epsilon
        self._weight, self._bias = (weights.weight(f"{name}.{part}").to(dtype) for part in PARTS)

    @classmethod
    def of(cls, weights: EncoderWeights, name: str | None, dtype: torch.dtype) -> _Norm | None:
        return None if name is None else cls(weights, name, dtype)

    @property
    def device(self) -> torch.device:
        return self._weight.device

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.device, non_blocking=True)  # the final norm may be on another device
        return functional.layer_norm(values, self._shape, self._weight, self._bias, self._epsilon)


class _Embeddings:
    """The sum of the embeddings of tokens, positions and the one token type."""

    def __init__(self, weights: EncoderWeights, dtype: torch.dtype) -> None:
        self._words, self._positions, types = (
            weights.table(f"embeddings.{name}_embeddings.weight") for name in ("word", "position", "token_type")
        )
        self._type = types[0].to(weights.dtype)
        self._added_in, self._dtype = weights.dtype, dtype
        self._norm = _Norm.of(weights, weights.family.embedding_norm, dtype)

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        device = self._words.device
        words = functional.embedding(ids.to(device, non_blocking=True), self._words).to(self._added_in)
        places = functional.embedding(positions.to(device, non_blocking=True), self._positions).to(self._added_in)
        values = (words + self._type + places).to(self._dtype)
        return values if self._norm is None else self._norm(values)


class LayerAdapters:
    """The language adapters of a layer; the weights of a language are read when the first text in it comes."""

    def __init__(
        self,
        weights: EncoderWeights,
        adapters: Adapters,
        prefix: str,
        dtype: torch.dtype,
        kernel: str,
        *,
        feed_forward_norm: _Norm,
    ) -> None:
        self._names = [f"{prefix}{MODULES}.{language}." for language in adapters.languages]
        self._dtype, self._kernel, self._activation = dtype, kernel, weights.activation
        self._norm = feed_forward_norm if adapters.reuses_norm else None
        if adapters.has_own_norm:
            self._norm = _Norm(weights, f"{prefix}{ADAPTER_NORM[1]}", dtype)
        self._adds_to_normalized = adapters.adds_to_normalized
        self._weight, self._ready = weights.weight, dict[int, tuple[Linear, Linear]]()
        if weights.is_in_memory:  # and not the network, which its owner may delete
            self._weight = self._all_weights().__getitem__

    def __call__(self, values: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        """`values`, (tokens, width), with what the adapter of each part's language adds to them."""
        normalized = values if self._norm is None else self._norm(values)
        residual = normalized if self._adds_to_normalized else values
        if len(parts) == 1:
            up, down = self._of(parts[0].language)
            return down.plus(up(normalized), residual)
        found, rows = torch.empty_like(values), len(values)
        for language, start, end in parts:
            up, down = self._of(language)
            size = _rounded(end - start)
            first = min(start, rows - size)  # tokens of other parts, whose results are dropped
            each = slice(first, first + size)
            found[start:end] = down.plus(up(normalized[each]), residual[each])[start - first : end - first]
        found[parts[-1].end :] = 0  # padding
        return found

    def _of(self, language: int) -> tuple[Linear, Linear]:
        if language not in self._ready:
            up, down = (
                KERNELS[self._kernel](
                    *([self._weight(f"{self._names[language]}{module}.{part}").to(self._dtype)] for part in PARTS),
                    activation=activation,
                )
                for (_, module, _), activation in zip(ADAPTER_LINEARS, (self._activation, "none"), strict=True)
            )
            self._ready[language] = up, down
        return self._ready[language]

    def _all_weights(self) -> dict[str, torch.Tensor]:
        names = [f"{name}{module}.{part}" for name in self._names for _, module, _ in ADAPTER_LINEARS for part in PARTS]
        return {name: self._weight(name) for name in names}

    def __getstate__(self) -> dict[str, object]:
        """A copy in another process has all weights."""
        return {**vars(self), "_weight": self._all_weights().__getitem__, "_ready": {}}


class LinearMaker(Protocol):
    """Makes a product of a layer."""

    def __call__(
        self, name: str, matrices: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], *, activation: str
    ) -> Linear:
        """The product called `name` with `matrices`, (out, in) each, side by side."""


class Layer:
    """One layer of the encoder, on the device where its weights are."""

    def __init__(
        self, weights: EncoderWeights, number: int, dtype: torch.dtype, make: LinearMaker, *, of_adapters: str = PLAIN
    ) -> None:
        """Take the weights of layer `number`, from 1, for products that `make` makes.

        Those of language adapters have the kernel `of_adapters`, and are made when a text is in their language.
        """
        prefix = f"encoder.layer.{number - 1}."

        def linear(name: str, *modules: str, activation: str = "none") -> Linear:
            matrices, biases = (
                [weights.weight(f"{prefix}{module}.{part}").to(dtype) for module in modules] for part in PARTS
            )
            return make(name, matrices, biases, activation=activation)

        family = weights.family
        self._norms_first = family.norms_first
        self._heads = weights.heads
        self._attention_norm = _Norm(weights, prefix + family.attention_norm, dtype)
        self._feed_forward_norm = _Norm(weights, prefix + family.feed_forward_norm, dtype)
        self._device = self._feed_forward_norm.device
        self._query_key_value = linear("attention", *(f"attention.self.{each}" for each in ("query", "key", "value")))
        self._attention_output = linear("attention output", "attention.output.dense")
        self._up = linear("up", "intermediate.dense", activation=weights.activation)
        self._down = linear("down", "output.dense")
        self._adapters = None
        if weights.adapters is not None:
            self._adapters = LayerAdapters(
                weights, weights.adapters, prefix, dtype, of_adapters, feed_forward_norm=self._feed_forward_norm
            )

    def __call__(self, values: torch.Tensor, inputs: PackedInputs) -> torch.Tensor:
        """The hidden states after the layer, of those before it: (tokens, width)."""
        values = values.to(self._device, non_blocking=True)
        if self._norms_first:
            attended = self._attended(self._attention_norm(values), inputs)
            values = self._attention_output.plus(attended, values)
            return self._adapted(self._down.plus(self._up(self._feed_forward_norm(values)), values), inputs)
        values = self._attention_norm(self._attention_output.plus(self._attended(values, inputs), values))
        return self._feed_forward_norm(self._adapted(self._down.plus(self._up(values), values), inputs))

    def _adapted(self, values: torch.Tensor, inputs: PackedInputs) -> torch.Tensor:
        return values if self._adapters is None else self._adapters(values, inputs.batch.parts)

    def _attended(self, values: torch.Tensor, inputs: PackedInputs) -> torch.Tensor:
        """The attention of each token over the tokens of its text, all heads side by side: (tokens, width)."""
        joined = self._query_key_value(values)
        attend = _by_kernel if _has_kernel(joined, self._heads) else _by_run
        return attend(joined, inputs, self._heads)


def _has_kernel(joined: torch.Tensor, heads: int) -> bool:
    """Whether FlashAttention accepts these: half precision on Ampere or newer, heads of at most 256 numbers."""
    width = joined.shape[-1] // 3 // heads
    fits = joined.is_cuda and joined.dtype in HALVES and width % 8 == 0 and width <= 256
    return fits and torch.cuda.get_device_capability(joined.device) >= (8, 0)


def _by_run(joined: torch.Tensor, inputs: PackedInputs, heads: int) -> torch.Tensor:
    """Attention of texts of one length at a time; `joined` is queries, keys and values, (tokens, 3 times width)."""
    width = joined.shape[-1] // 3
    found = joined.new_empty(len(joined), width)
    found[inputs.batch.tokens :] = 0
    for run in inputs.batch.runs:
        parts = joined[run.start : run.end].view(run.texts, run.length, 3, heads, width // heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = _chosen(run, query)(query, key, value)
        found[run.start : run.end].view(run.texts, run.length, heads, -1).copy_(attended.transpose(1, 2))
    return found


def _chosen(run: Run, query: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The attention function for all texts of a run."""
    is_short = query.device.type == "cpu" and run.length <= SHORT.get(query.dtype, 0)
    scores = query.shape[1] * run.texts * run.length**2
    return _by_products if is_short and scores <= MOST_SCORES else functional.scaled_dot_product_attention


def _by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention with its scores written out; all are (texts, heads, length, width of a head)."""
    texts, heads, length, width = query.shape
    queries, keys, values = (each.reshape(texts * heads, length, width) for each in (query, key, value))
    nothing = queries.new_zeros(()).expand(texts * heads, length, length)
    scores = torch.baddbmm(nothing, queries, keys.transpose(1, 2), beta=0, alpha=width**-0.5)
    return torch.bmm(scores.softmax(dim=-1), values).view(query.shape)


def _by_kernel(joined: torch.Tensor, inputs: PackedInputs, heads: int) -> torch.Tensor:
    """Attention of all texts in one call of FlashAttention's kernel for texts of unequal lengths."""
    from torch.nn.attention.varlen import varlen_attn

    width = joined.shape[-1] // 3
    query, key, value = joined.view(len(joined), 3, heads, width // heads).unbind(1)
    ends, longest = inputs.boundaries(joined.device), inputs.longest
    attended: Any = varlen_attn(query, key, value, ends, ends, longest, longest)
    found: torch.Tensor = attended.reshape(len(joined), width)
    return found
