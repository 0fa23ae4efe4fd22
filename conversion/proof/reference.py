"""fairseq's encoder written again in plain torch over fairseq's own names: an oracle that shares nothing with the map.

Follows fairseq/models/roberta/model.py and fairseq/modules/transformer_layer.py; one layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import log, sqrt
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.conversion.checkpoint.weights import Weight, read_array, read_rows

if TYPE_CHECKING:
    import torch

__all__ = ["Reference", "Step"]

PAD: Final = 1
EPS: Final = 1e-5
BAND: Final = 8192


@dataclass(frozen=True)
class Step:
    """One value that fairseq defines: `name` says which; `values` is (batch, length, width) or (batch, labels)."""

    name: str
    values: torch.Tensor


class Reference:
    """A forward pass over the weights of a fairseq file, spelled as the file spells them."""

    def __init__(
        self,
        weights: Mapping[str, Weight],
        options: Mapping[str, object],
        *,
        attention_heads: int,
        layers: tuple[int, ...],
        rounded: Callable[[Weight], Weight] = lambda weight: weight,
    ) -> None:
        """Take weights that are read when they are needed; `layers` are the file's numbers of those to run.

        `attention_heads` counts only where the options do not say.
        `rounded` is what the conversion did to the precision, so that only mistakes differ.
        """
        anchor = next(name for name in weights if name.endswith("sentence_encoder.embed_tokens.weight"))
        self.root = anchor.removesuffix("sentence_encoder.embed_tokens.weight")
        self.outer = self.root.removesuffix("encoder.").removesuffix("decoder.")
        self.weights = weights
        self.options = options
        given = options.get("encoder_attention_heads")
        self.heads = given if isinstance(given, int) else attention_heads
        self.layers = layers
        self.rounded = rounded

    def steps(self, ids: torch.Tensor, *, head: str | None, has_lm_head: bool) -> Iterator[Step]:
        """Every hidden state, the features, then the LM head's logits or the named head's; `ids` is (batch, length)."""
        is_pad = ids == PAD
        hidden = self._embedded(ids, is_pad)
        yield Step("embeddings", hidden)
        for number in self.layers:
            hidden = self._layer(f"sentence_encoder.layers.{number}.", hidden, is_pad)
            yield Step(f"layer {number}", hidden)
        if self._has("sentence_encoder.layer_norm.weight"):
            hidden = self._norm("sentence_encoder.layer_norm", hidden)
        yield Step("features", hidden)
        if head is not None:
            yield Step(f"head {head}", self._classified(f"{self.outer}classification_heads.{head}.", hidden))
        elif has_lm_head:
            yield Step("logits", self._logits(hidden))

    def embedding_bands(self) -> Iterator[torch.Tensor]:
        """The whole token embedding, some rows at a time, scaled as fairseq scales it."""
        import numpy as np
        import torch

        table = self.rounded(self.weights[self.root + "sentence_encoder.embed_tokens.weight"])
        scale = sqrt(table.shape[1]) if self.options.get("no_scale_embedding") is False else 1.0
        for first in range(0, table.shape[0], BAND):
            band = read_rows(table, first, min(first + BAND, table.shape[0]))
            yield torch.from_numpy(band.astype(np.float32)) * scale

    # ---- weights by name

    def _has(self, name: str) -> bool:
        return self.root + name in self.weights

    def _tensor(self, name: str) -> torch.Tensor:
        return self._read(self.root + name)

    def _read(self, full_name: str) -> torch.Tensor:
        import numpy as np
        import torch

        return torch.from_numpy(read_array(self.rounded(self.weights[full_name])).astype(np.float32))

    def _looked_up(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows of a table by their numbers; only those rows are read."""
        import numpy as np
        import torch

        wanted, places = torch.unique(rows, return_inverse=True)
        table = self.rounded(self.weights[self.root + name])
        read = np.concatenate([read_rows(table, number, number + 1) for number in wanted.tolist()])
        return torch.from_numpy(read.astype(np.float32))[places]

    def _product_with_matrix(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """`values` times a tall matrix transposed, a band of its rows at a time."""
        import numpy as np
        import torch

        matrix = self.rounded(self.weights[self.root + name])
        height = matrix.shape[0]
        product = torch.empty(*values.shape[:-1], height)
        for first in range(0, height, BAND):
            band = read_rows(matrix, first, min(first + BAND, height))
            product[..., first : first + BAND] = values @ torch.from_numpy(band.astype(np.float32)).T
        return product

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(values, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _norm(self, name: str, values: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import layer_norm

        weight = self._tensor(f"{name}.weight")
        return layer_norm(values, weight.shape, weight, self._tensor(f"{name}.bias"), EPS)

    # ---- the network

    def _embedded(self, ids: torch.Tensor, is_pad: torch.Tensor) -> torch.Tensor:
        hidden = self._looked_up("sentence_encoder.embed_tokens.weight", ids)
        if self.options.get("no_scale_embedding") is False:
            hidden = hidden * sqrt(hidden.shape[-1])
        hidden = hidden + self._positions(is_pad, hidden.shape[-1])
        for name in ("emb_layer_norm", "layernorm_embedding"):
            if self._has(f"sentence_encoder.{name}.weight"):
                hidden = self._norm(f"sentence_encoder.{name}", hidden)
        return hidden * (~is_pad).unsqueeze(-1)

    def _positions(self, is_pad: torch.Tensor, width: int) -> torch.Tensor | float:
        """Positions count what is not padding, from padding_idx + 1 on (fairseq/utils.py: make_positions)."""
        numbers = (~is_pad).long().cumsum(1) * ~is_pad + PAD
        if self._has("sentence_encoder.embed_positions.weight"):
            return self._looked_up("sentence_encoder.embed_positions.weight", numbers)
        if self.options.get("no_token_positional_embeddings") is True:
            return 0.0
        return self._sinusoids(numbers, width)

    @staticmethod
    def _sinusoids(numbers: torch.Tensor, width: int) -> torch.Tensor:
        import torch

        half = width // 2
        angles = numbers.unsqueeze(-1) * torch.exp(torch.arange(half) * -(log(10000) / (half - 1)))
        return torch.cat([angles.sin(), angles.cos(), torch.zeros(*numbers.shape, width % 2)], dim=-1)

    def _layer(self, name: str, hidden: torch.Tensor, is_pad: torch.Tensor) -> torch.Tensor:
        """One layer; with a norm at the encoder's end the layers normalise before their work, otherwise after it."""
        first, second = (f"{name}self_attn_layer_norm", f"{name}final_layer_norm")
        if not self._has(f"{first}.weight"):
            first, second = f"{name}layer_norms.0", f"{name}layer_norms.1"
        if self._has("sentence_encoder.layer_norm.weight"):
            hidden = hidden + self._attention(f"{name}self_attn.", self._norm(first, hidden), is_pad)
            return hidden + self._feed_forward(name, self._norm(second, hidden))
        hidden = self._norm(first, hidden + self._attention(f"{name}self_attn.", hidden, is_pad))
        return self._norm(second, hidden + self._feed_forward(name, hidden))

    def _attention(self, name: str, hidden: torch.Tensor, is_pad: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        batch, length, width = hidden.shape
        query, key, value = (
            linear(hidden, weight, bias).view(batch, length, self.heads, -1).transpose(1, 2)
            for weight, bias in self._projections(name)
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        scores = scores.masked_fill(is_pad[:, None, None, :], float("-inf"))
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width)
        return self._linear(f"{name}out_proj", mixed)

    def _projections(self, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weight and bias of query, key and value, in each of the three ways that fairseq has kept them."""
        if self._has(f"{name}q_proj.weight"):
            return [(self._tensor(f"{name}{x}_proj.weight"), self._tensor(f"{name}{x}_proj.bias")) for x in "qkv"]
        biases = self._tensor(f"{name}in_proj_bias").chunk(3)
        if self._has(f"{name}q_proj_weight"):
            return [(self._tensor(f"{name}{x}_proj_weight"), bias) for x, bias in zip("qkv", biases, strict=True)]
        return list(zip(self._tensor(f"{name}in_proj_weight").chunk(3), biases, strict=True))

    def _feed_forward(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        return self._linear(f"{name}fc2", self._activation()(self._linear(f"{name}fc1", hidden)))

    def _activation(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """fairseq/utils.py: get_activation_fn."""
        import torch
        from torch.nn import functional

        def accurate(x: torch.Tensor) -> torch.Tensor:
            return 0.5 * x * (1 + torch.tanh(sqrt(2 / torch.pi) * (x + 0.044715 * x**3)))

        table: dict[str, Any] = {
            "gelu": functional.gelu,
            "gelu_accurate": accurate,
            "gelu_fast": accurate,
            "relu": functional.relu,
            "tanh": torch.tanh,
            "linear": lambda x: x,
        }
        chosen: Callable[[torch.Tensor], torch.Tensor] = table[str(self.options.get("activation_fn") or "gelu")]
        return chosen

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fairseq/models/roberta/model.py: RobertaLMHead."""
        hidden = self._norm("lm_head.layer_norm", self._activation()(self._linear("lm_head.dense", hidden)))
        matrix = "lm_head.weight" if self._has("lm_head.weight") else "sentence_encoder.embed_tokens.weight"
        return self._product_with_matrix(matrix, hidden).add_(self._tensor("lm_head.bias"))

    def _classified(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        """fairseq/models/roberta/model.py: RobertaClassificationHead, with spectral norm if the file has it."""
        from torch.nn.functional import linear

        pooled = linear(hidden[:, 0], self._read(f"{name}dense.weight"), self._read(f"{name}dense.bias")).tanh()
        if f"{name}out_proj.weight" in self.weights:
            matrix = self._read(f"{name}out_proj.weight")
        else:
            original = self._read(f"{name}out_proj.weight_orig")
            scale = self._read(f"{name}out_proj.weight_u") @ (original @ self._read(f"{name}out_proj.weight_v"))
            matrix = original / scale
        return linear(pooled, matrix, self._read(f"{name}out_proj.bias"))
