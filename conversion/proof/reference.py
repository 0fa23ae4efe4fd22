"""fairseq's encoder written again in plain torch over fairseq's own names: an oracle that shares nothing with the map.

Follows fairseq/models/roberta/model.py and fairseq/modules/transformer_layer.py; one layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import TYPE_CHECKING, Final

from hf_xlmr.conversion.checkpoint.weights import Weight, read_array, read_rows

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Reference", "Step"]

PAD: Final = 1
EPS: Final = 1e-5
BAND: Final = 2048  # rows of a tall matrix that are in memory at a time


@dataclass(frozen=True)
class Step:
    """What fairseq defines under a `name`: `values` is (tokens of all texts, width), or (texts, labels) of a head.

    Logits, which are large, come in bands of columns, of which `first` is the first.
    """

    name: str
    values: torch.Tensor
    first: int = 0


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
        anchors = sorted((name for name in weights if name.endswith("sentence_encoder.embed_tokens.weight")), key=len)
        anchor = next((name for name in anchors if "model_fast" in name.split(".")), anchors[0])  # of InfoXLM's copies
        self.root = anchor.removesuffix("sentence_encoder.embed_tokens.weight")
        self.outer = self.root.removesuffix("encoder.").removesuffix("decoder.")
        self.weights = weights
        self.options = options
        given = options.get("encoder_attention_heads")
        self.heads = given if isinstance(given, int) else attention_heads
        self.layers = layers
        self.rounded = rounded

    def steps(
        self,
        texts: Sequence[torch.Tensor],
        *,
        head: str | None,
        has_lm_head: bool,
        through_head: int | None = None,
        languages: Sequence[str] | None = None,
    ) -> Iterator[Step]:
        """Every hidden state, the features, then the LM head's logits or the named head's.

        `texts` are the ids of each, without padding; the first `through_head` of them go through the head, all for
        None. fairseq pads texts to one length, which changes nothing: attention leaves padding out. `languages` name
        the adapters of each text in an X-MOD.
        """
        import torch

        lengths = [len(text) for text in texts]
        hidden = self._embedded(texts)
        yield Step("embeddings", hidden)
        for number in self.layers:
            hidden = self._layer(f"sentence_encoder.layers.{number}.", hidden, lengths, languages)
            yield Step(f"layer {number}", hidden)
        if self._has("sentence_encoder.layer_norm.weight"):
            hidden = self._norm("sentence_encoder.layer_norm", hidden)
        yield Step("features", hidden)
        chosen = torch.split(hidden, lengths)[:through_head]
        if head is not None:
            firsts = torch.stack([text[0] for text in chosen])
            yield Step(f"head {head}", self._classified(f"{self.outer}classification_heads.{head}.", firsts))
        elif has_lm_head:
            yield from self._logits(hidden[: sum(map(len, chosen))])

    def embedding_bands(self) -> Iterator[torch.Tensor]:
        """The whole token embedding, some rows at a time, scaled as fairseq scales it; as it is stored if it is not."""
        import torch

        table = self.rounded(self.weights[self.root + "sentence_encoder.embed_tokens.weight"])
        scale = sqrt(table.shape[1]) if self.options.get("no_scale_embedding") is False else 1.0
        for first in range(0, table.shape[0], BAND):
            band = read_rows(table, first, min(first + BAND, table.shape[0]))
            yield torch.from_numpy(band) if scale == 1.0 else _float32(band) * scale

    # ---- weights by name

    def _has(self, name: str) -> bool:
        return self.root + name in self.weights

    def _tensor(self, name: str) -> torch.Tensor:
        return self._read(self.root + name)

    def _read(self, full_name: str) -> torch.Tensor:
        return _float32(read_array(self.rounded(self.weights[full_name])))

    def _looked_up(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows of a table by their numbers; only those rows are read."""
        import numpy as np
        import torch

        wanted, places = torch.unique(rows, return_inverse=True)
        table = self.rounded(self.weights[self.root + name])
        read = np.concatenate([read_rows(table, number, number + 1) for number in wanted.tolist()])
        return _float32(read)[places]

    def _linear(self, name: str, values: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(values, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _norm(self, name: str, values: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import layer_norm

        weight = self._tensor(f"{name}.weight")
        return layer_norm(values, weight.shape, weight, self._tensor(f"{name}.bias"), EPS)

    # ---- the network

    def _embedded(self, texts: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        hidden = self._looked_up("sentence_encoder.embed_tokens.weight", torch.cat(tuple(texts)))
        if self.options.get("no_scale_embedding") is False:
            hidden = hidden * sqrt(hidden.shape[-1])
        hidden = hidden + self._positions(texts, hidden.shape[-1])
        for name in ("emb_layer_norm", "layernorm_embedding"):
            if self._has(f"sentence_encoder.{name}.weight"):
                hidden = self._norm(f"sentence_encoder.{name}", hidden)
        return hidden

    def _positions(self, texts: Sequence[torch.Tensor], width: int) -> torch.Tensor | float:
        """Positions count what is not padding, from padding_idx + 1 on (fairseq/utils.py: make_positions)."""
        import torch

        numbers = torch.cat([torch.arange(len(text)) + PAD + 1 for text in texts])
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

    def _layer(
        self, name: str, hidden: torch.Tensor, lengths: list[int], languages: Sequence[str] | None
    ) -> torch.Tensor:
        """One layer; with a norm at the encoder's end the layers normalise before their work, otherwise after it."""
        first, second = (f"{name}self_attn_layer_norm", f"{name}final_layer_norm")
        if not self._has(f"{first}.weight"):
            first, second = f"{name}layer_norms.0", f"{name}layer_norms.1"
        if self._has("sentence_encoder.layer_norm.weight"):
            hidden = hidden + self._attention(f"{name}self_attn.", self._norm(first, hidden), lengths)
            hidden = hidden + self._feed_forward(name, self._norm(second, hidden))
            return hidden if languages is None else self._adapted(name, second, hidden, lengths, languages)
        hidden = self._norm(first, hidden + self._attention(f"{name}self_attn.", hidden, lengths))
        hidden = hidden + self._feed_forward(name, hidden)
        return self._norm(
            second, hidden if languages is None else self._adapted(name, second, hidden, lengths, languages)
        )

    def _adapted(
        self, name: str, norm: str, hidden: torch.Tensor, lengths: list[int], languages: Sequence[str]
    ) -> torch.Tensor:
        """fairseq/models/xmod/transformer_layer_xmod.py: lang_adapter; `norm` is that of the feed-forward."""
        import torch

        residual, own = hidden, f"{name}adapter_layer_norm"
        if self._has(f"{own}.weight"):
            hidden = self._norm(own, hidden)
        elif self.options.get("adapter_reuse_layer_norm"):
            hidden = self._norm(norm, hidden)
        if self.options.get("ln_before_adapter"):
            residual = hidden
        split, adapted = torch.split(hidden, lengths), [hidden] * len(lengths)
        for language in dict.fromkeys(languages):
            own_texts = [number for number, spoken in enumerate(languages) if spoken == language]
            joined = self._feed_forward(
                f"{name}adapter_modules.{language}.", torch.cat([split[number] for number in own_texts])
            )
            for number, text in zip(own_texts, torch.split(joined, [lengths[n] for n in own_texts]), strict=True):
                adapted[number] = text
        return torch.cat(adapted) + residual

    def _attention(self, name: str, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """The attention of each text to its own tokens."""
        import torch
        from torch.nn.functional import linear

        queries, keys, values = (
            torch.split(linear(hidden, weight, bias).view(len(hidden), self.heads, -1).transpose(0, 1), lengths, dim=1)
            for weight, bias in self._projections(name)
        )
        mixed = []
        for query, key, value in zip(queries, keys, values, strict=True):
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            mixed.append((scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1))
        return self._linear(f"{name}out_proj", torch.cat(mixed))

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

        table: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "gelu": functional.gelu,
            "gelu_accurate": accurate,
            "gelu_fast": accurate,
            "relu": functional.relu,
            "tanh": torch.tanh,
            "linear": lambda x: x,
        }
        return table[str(self.options.get("activation_fn") or "gelu")]

    def _logits(self, hidden: torch.Tensor) -> Iterator[Step]:
        """fairseq/models/roberta/model.py: RobertaLMHead."""
        from torch.nn.functional import linear

        hidden = self._norm("lm_head.layer_norm", self._activation()(self._linear("lm_head.dense", hidden)))
        tied = "lm_head.weight" if self._has("lm_head.weight") else "sentence_encoder.embed_tokens.weight"
        matrix, bias = self.rounded(self.weights[self.root + tied]), self._tensor("lm_head.bias")
        for first in range(0, matrix.shape[0], BAND):
            last = min(first + BAND, matrix.shape[0])
            yield Step("logits", linear(hidden, _float32(read_rows(matrix, first, last)), bias[first:last]), first)

    def _classified(self, name: str, firsts: torch.Tensor) -> torch.Tensor:
        """fairseq/models/roberta/model.py: RobertaClassificationHead, with spectral norm if the file has it."""
        from torch.nn.functional import linear

        pooled = linear(firsts, self._read(f"{name}dense.weight"), self._read(f"{name}dense.bias")).tanh()
        if f"{name}out_proj.weight" in self.weights:
            matrix = self._read(f"{name}out_proj.weight")
        else:
            original = self._read(f"{name}out_proj.weight_orig")
            scale = self._read(f"{name}out_proj.weight_u") @ (original @ self._read(f"{name}out_proj.weight_v"))
            matrix = original / scale
        return linear(pooled, matrix, self._read(f"{name}out_proj.bias"))


def _float32(values: np.ndarray) -> torch.Tensor:
    """The values in float32, as they are if they are in it already; PyTorch converts on all cores."""
    import torch

    return torch.from_numpy(values).float()
