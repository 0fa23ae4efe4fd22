"""fairseq's RobertaModel, call for call, computed by Transformers' network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ClassificationHead", "Encoder", "HeadOptions"]

POSITION_OFFSET = 2  # fairseq counts positions from padding_idx + 1, and padding_idx is 1

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # fairseq.utils.get_activation_fn
    "gelu": functional.gelu,
    "gelu_accurate": partial(functional.gelu, approximate="tanh"),
    "gelu_fast": partial(functional.gelu, approximate="tanh"),
    "linear": lambda values: values,
    "relu": functional.relu,
    "tanh": torch.tanh,
}


class HeadOptions(NamedTuple):
    """What the heads of a model have in common: fairseq's pooler_dropout and pooler_activation_fn."""

    dropout: float = 0.0
    activation_fn: str = "tanh"


class ClassificationHead(nn.Module):
    """fairseq.models.roberta.model.RobertaClassificationHead: the first token through a hidden layer to the classes."""

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        *,
        inner_dim: int | None = None,
        dropout: float = 0.0,
        activation_fn: str = "tanh",
    ) -> None:
        """A head with random weights; `inner_dim` None makes the hidden layer as wide as the features."""
        super().__init__()
        self.dense = nn.Linear(hidden_size, inner_dim or hidden_size)
        self.activation_fn = ACTIVATIONS[activation_fn]
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(inner_dim or hidden_size, num_classes)

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], options: HeadOptions) -> ClassificationHead:
        """A head of these weights, `dense.weight`, `dense.bias`, `out_proj.weight`, `out_proj.bias`.

        Parameters among them are shared, so that both their modules train and are cast together.
        """
        inner_dim, hidden_size = weights["dense.weight"].shape
        with torch.device("meta"):
            classes = len(weights["out_proj.weight"])
            head = cls(hidden_size, classes, inner_dim=inner_dim, **options._asdict())
        head.load_state_dict(dict(weights), assign=True)
        return head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of features (batch, length, width)."""
        first = self.dropout(features[:, 0, :])
        logits: torch.Tensor = self.out_proj(self.dropout(self.activation_fn(self.dense(first))))
        return logits


class Encoder(nn.Module):
    """Transformers' network with the calls, the values and the layouts of fairseq.models.roberta.model.RobertaModel.

    Values at padding are fairseq's too: its embeddings are zero there, and no token attends to them.
    """

    def __init__(
        self,
        network: nn.Module,
        heads: Mapping[str, ClassificationHead],
        *,
        pad_index: int,
        embedding_rows: int,
        head_options: HeadOptions | None = None,
    ) -> None:
        """Wrap a Transformers `network` of one of the three families, and the classification heads by name.

        The network may have more rows than the `embedding_rows` of fairseq's, which has no logits for them. Heads that
        are registered later get the `head_options`.
        """
        super().__init__()
        self.network: Any = network
        self.pad_index = pad_index
        self.embedding_rows = embedding_rows
        self.head_options = head_options or HeadOptions()
        self.classification_heads = nn.ModuleDict(dict(heads))
        self.base.embeddings.register_forward_hook(self._zero_padding, with_kwargs=True)

    @property
    def base(self) -> Any:
        """Transformers' encoder without any head."""
        return self.network.base_model

    @property
    def layers(self) -> nn.ModuleList:
        """Transformers' layers, in order."""
        found: nn.ModuleList = self.base.encoder.layer
        return found

    @property
    def has_lm_head(self) -> bool:
        """Whether the network predicts tokens."""
        return hasattr(self.network, "lm_head")

    @property
    def hidden_size(self) -> int:
        """The width of the features."""
        return int(self.network.config.hidden_size)

    def max_positions(self) -> int:
        """The most tokens a text may have, `<s>` and `</s>` included."""
        return int(self.network.config.max_position_embeddings) - POSITION_OFFSET

    def forward(
        self,
        src_tokens: torch.Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        masked_tokens: torch.Tensor | None = None,
        **_unused: object,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor] | None]]:
        """Features (batch, length, width), logits over the vocabulary, or a head's logits; and the hidden states.

        The hidden states are under `inner_states`, (length, batch, width) each, as fairseq lays them out.
        """
        wanted = range(len(self.layers) + 1) if return_all_hiddens else ()
        features, hidden = self.features(src_tokens, layers=wanted)
        extra = {"inner_states": [hidden[number].transpose(0, 1) for number in wanted] if return_all_hiddens else None}
        if classification_head_name is not None:
            return self.classified(classification_head_name, features), extra
        return (features if features_only else self.logits(features, masked_tokens)), extra

    def features(
        self, tokens: torch.Tensor, *, layers: Collection[int] = ()
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The features of `tokens`, (batch, length), and the hidden states of `layers` by number.

        Number 0 is the embeddings, n is what layer n gives; in a model that normalises before its layers the last one
        is thus before the final norm. Each stays on the device of its layer.
        """
        with self._captured(layers) as hidden:
            output = self.base(tokens, attention_mask=(tokens != self.pad_index).long())
        return output.last_hidden_state, hidden

    def logits(self, features: torch.Tensor, masked_tokens: torch.Tensor | None = None) -> torch.Tensor:
        """The LM head's logits over the vocabulary, at `masked_tokens` alone where that is given."""
        chosen = features if masked_tokens is None else features[masked_tokens, :]
        logits: torch.Tensor = self.network.lm_head(chosen)
        return logits[..., : self.embedding_rows]

    def classified(self, head: str, features: torch.Tensor) -> torch.Tensor:
        """The logits (batch, classes) of a classification head, computed where it lies."""
        network: Any = self.classification_heads[head]
        logits: torch.Tensor = network(features.to(network.dense.weight.device))
        return logits

    def register_classification_head(
        self, name: str, num_classes: int | None = None, inner_dim: int | None = None, **_unused: object
    ) -> None:
        """Put a fresh head under `name`; as in fairseq it replaces another with a warning, and is in training mode.

        It gets the dtype and the device of the last layer. Raises TypeError without `num_classes`.
        """
        if num_classes is None:
            raise TypeError("a classification head needs num_classes=, the number of its outputs")
        if name in self.classification_heads:
            old: Any = self.classification_heads[name]
            warnings.warn(
                f"the head {name!r} with {old.out_proj.out_features} classes (hidden layer: {old.dense.out_features}) "
                f"is replaced by a fresh one with {num_classes} (hidden layer: {inner_dim or self.hidden_size})",
                stacklevel=3,
            )
        options = self.head_options._asdict()
        head = ClassificationHead(self.hidden_size, num_classes, inner_dim=inner_dim, **options)
        self.classification_heads[name] = head.to(self._end())

    def _end(self) -> torch.Tensor:
        """A weight with the dtype and the device that features have."""
        parameters: dict[str, torch.Tensor] = dict(self.base.named_parameters())
        end = [each for name, each in parameters.items() if name.endswith("LayerNorm.weight")][-1]
        return end if end.device.type != "meta" else torch.empty(0, dtype=end.dtype)

    def _zero_padding(self, _module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """Zero the embeddings of padding, as fairseq's TransformerSentenceEncoder does; Transformers leaves them."""
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if tokens is None:  # the caller gave embeddings of his own
            return output
        zeroed: torch.Tensor = output * (tokens != self.pad_index).unsqueeze(-1).to(output)
        return zeroed

    @contextmanager
    def _captured(self, wanted: Collection[int]) -> Iterator[dict[int, torch.Tensor]]:
        """A dictionary that fills with what the wanted layers give in this thread while the network runs."""
        hidden: dict[int, torch.Tensor] = {}
        thread = threading.get_ident()
        places = [self.base.embeddings, *self.layers]

        def keeper(number: int) -> Callable[..., None]:
            def keep(_module: nn.Module, _args: Any, output: Any) -> None:
                if threading.get_ident() == thread:
                    hidden[number] = output[0] if isinstance(output, tuple) else output

            return keep

        handles = [places[number].register_forward_hook(keeper(number)) for number in sorted(set(wanted))]
        try:
            yield hidden
        finally:
            for handle in handles:
                handle.remove()
