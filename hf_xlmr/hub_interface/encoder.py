"""fairseq's RobertaModel, call for call, computed by Transformers' network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from hf_xlmr.errors import InputAttributeError, InputError, InputKeyError, InputRuntimeError, InputTypeError
from hf_xlmr.hub_interface.languages import Languages, adapters_of_network, let_adapters_autocast
from hf_xlmr.hub_interface.module_view import Options, View, view_of
from hf_xlmr.model.model_shape import POSITION_OFFSET

OFFLOADED = (
    "the model is offloaded: its weights are on the CPU or the disk, where no state_dict holds or fills them and "
    "nothing trains them; load it again on one device (device=) for that, or take model.classification_heads alone"
)

Extra: TypeAlias = dict[str, list[torch.Tensor] | None]
"""What comes with features or logits: under `inner_states` the hidden states, if they were wanted."""
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # fairseq.utils.get_activation_fn
    "gelu": functional.gelu,
    "gelu_accurate": partial(functional.gelu, approximate="tanh"),
    "gelu_fast": partial(functional.gelu, approximate="tanh"),
    "linear": lambda values: values,
    "relu": functional.relu,
    "tanh": torch.tanh,
}


class UnknownHead(InputKeyError):
    """A classification head that the model does not have."""

    def __init__(self, name: str, known: Sequence[str], *, left: str = "") -> None:
        """Carry the name, and those of the heads that there are; `left` says why it was left behind, if it was."""
        self.name, self.known = name, tuple(known)
        there = f"its heads are {', '.join(known)}" if known else "it has none"
        super().__init__(
            f"the model has no classification head {name!r}: {left or there}; register_classification_head makes a new "
            "one"
        )


class HeadOptions(NamedTuple):
    """What the heads of a model have in common: fairseq's pooler_dropout and pooler_activation_fn."""

    dropout: float = 0.0
    activation_fn: str = "tanh"


class ClassificationHead(nn.Module):
    """fairseq.models.roberta.model.RobertaClassificationHead: the first token through a hidden layer to the classes.

    One that reads every token is that of the public tasks sequence_tagging and span_prediction, which fairseq lacks.
    """

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        *,
        inner_dim: int | None = None,
        dropout: float = 0.0,
        activation_fn: str = "tanh",
        reads_every_token: bool = False,
    ) -> None:
        """A head with random weights; `inner_dim` None makes the hidden layer as wide as the features."""
        super().__init__()
        self.reads_every_token = reads_every_token
        self.dense = nn.Linear(hidden_size, inner_dim or hidden_size)
        self.activation_fn = ACTIVATIONS[activation_fn]
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(inner_dim or hidden_size, num_classes)

    @classmethod
    def of(
        cls, weights: Mapping[str, torch.Tensor], options: HeadOptions, *, reads_every_token: bool = False
    ) -> ClassificationHead:
        """A head of these weights, `dense.weight`, `dense.bias`, `out_proj.weight`, `out_proj.bias`.

        Parameters among them are shared, so that both their modules train and are cast together.
        """
        inner_dim, hidden_size = weights["dense.weight"].shape
        with torch.device("meta"):
            classes = len(weights["out_proj.weight"])
            head = cls(
                hidden_size, classes, inner_dim=inner_dim, reads_every_token=reads_every_token, **options._asdict()
            )
        head.load_state_dict(dict(weights), assign=True)
        return head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of features (batch, length, width), or (batch, length, classes) of every token."""
        read = self.dropout(features if self.reads_every_token else features[:, 0, :])
        logits: torch.Tensor = self.out_proj(self.dropout(self.activation_fn(self.dense(read))))
        return logits


def own_head_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Transformers' layers of a network's own head by fairseq's names: a classifier's, or those of multiple choice."""
    classifier: Any = getattr(network, "classifier", None)
    pooler = getattr(network.base_model, "pooler", None)
    if hasattr(classifier, "out_proj"):
        return {"dense": classifier.dense, "out_proj": classifier.out_proj}
    return {} if classifier is None or pooler is None else {"dense": pooler.dense, "out_proj": classifier}


def _match_heads(model: Encoder, state: dict[str, torch.Tensor], prefix: str, *_about: object) -> None:
    """What fairseq does before it loads a state: heads of the state are registered, and those it lacks stay.

    As fairseq.models.roberta.model.RobertaModel.upgrade_state_dict_named with load_checkpoint_heads, as its hub loads.
    """
    start = f"{prefix}classification_heads."
    names = {name.removeprefix(start).partition(".")[0] for name in state if name.startswith(start)}
    for name in sorted(names - set(model.classification_heads)):
        dense, out_proj = (state.get(f"{start}{name}.{layer}.weight") for layer in ("dense", "out_proj"))
        if dense is not None and out_proj is not None:
            model.register_classification_head(name, len(out_proj), len(dense))
    for name, weight in model.classification_heads.state_dict().items():
        state.setdefault(start + name, weight)


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
        own_head: str | None = None,
        is_spread: bool = False,
    ) -> None:
        """Wrap a Transformers `network` of one of XLM-R's families, and the classification heads by name.

        The network may have more rows than the `embedding_rows` of fairseq's, which has no logits for them. Heads that
        are registered later get the `head_options`. `own_head` is the one of them that is the network's own. A network
        that `is_spread` over devices is not moved or cast.
        """
        super().__init__()
        self.network: Any = network
        self.pad_index = pad_index
        self.embedding_rows = embedding_rows
        self.head_options = head_options or HeadOptions()
        self.args = Options.of(network.config, max_positions=self.max_positions())
        self.classification_heads = nn.ModuleDict(dict(heads))
        self.own_head = own_head
        self.is_spread = is_spread
        self.is_offloaded = any(weight.is_meta for weight in network.parameters())
        let_adapters_autocast(network)
        self.base.embeddings.register_forward_hook(self._zero_padding, with_kwargs=True)
        self.register_state_dict_pre_hook(self._raise_if_offloaded)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._raise_if_offloaded)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_match_heads)  # type: ignore[no-untyped-call]
        if self.is_offloaded:
            network.register_load_state_dict_pre_hook(self._raise_if_offloaded)  # type: ignore[no-untyped-call]

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
    def languages(self) -> Languages | None:
        """The languages of an X-MOD; None for a model without adapters."""
        return Languages.of(adapters_of_network(self.network))

    @property
    def encoder(self) -> View:
        """Fairseq's names for the network's parts: `encoder.sentence_encoder.layers[0].fc1`, `encoder.lm_head`."""
        return view_of(self)

    decoder = encoder  # its name up to fairseq 0.9

    @property
    def has_lm_head(self) -> bool:
        """Whether the network predicts tokens."""
        return hasattr(self.network, "lm_head")

    @property
    def hidden_size(self) -> int:
        """The width of the features."""
        return int(self.network.config.hidden_size)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Encoder:
        """What `.to()`, `.half()` and `.cuda()` call. Raises InputError for a model that is spread over devices."""
        if self.is_spread:
            raise InputError(
                "the model is spread over several devices, or offloaded: it cannot be moved or cast as a whole; load "
                "it again with the dtype= and the device_map= that are wanted"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Encoder:
        """Train all parameters, or leave them as they are. Raises InputError for an offloaded model to be trained."""
        if requires_grad:
            self._raise_if_offloaded()
        super().requires_grad_(requires_grad)
        return self

    def _raise_if_offloaded(self, *_about: object) -> None:
        if self.is_offloaded:
            raise InputError(OFFLOADED)

    def max_positions(self) -> int:
        """The most tokens a text may have, `<s>` and `</s>` included."""
        return int(self.network.config.max_position_embeddings) - POSITION_OFFSET

    def forward(
        self,
        src_tokens: torch.Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        lang_id: Sequence[str] | None = None,
        masked_tokens: torch.Tensor | None = None,
        **_unused: object,
    ) -> tuple[torch.Tensor, Extra]:
        """Features (batch, length, width), logits over the vocabulary, or a head's logits; and the hidden states.

        The hidden states are under `inner_states`, (length, batch, width) each, as fairseq lays them out. What else is
        given by name, such as `src_lengths` in fairseq's batches, is ignored, as there. `lang_id` is the language of
        each row of an X-MOD. Raises UnknownHead, UnknownLanguage, AttributeError without an LM head.
        """
        wanted = range(len(self.layers) + 1) if return_all_hiddens else ()
        features, hidden = self.features(src_tokens, layers=wanted, lang_id=lang_id)
        extra = {"inner_states": [hidden[number].transpose(0, 1) for number in wanted] if return_all_hiddens else None}
        if classification_head_name is not None:
            return self.classified(classification_head_name, features), extra
        return (features if features_only else self.logits(features, masked_tokens)), extra

    def extract_features(self, *args: object, **options: object) -> tuple[torch.Tensor, Extra]:
        """What calling the model gives, as in fairseq: logits, unless `features_only`."""
        found: tuple[torch.Tensor, Extra] = self(*args, **options)
        return found

    def get_normalized_probs(
        self, net_output: Sequence[torch.Tensor], log_probs: bool, sample: object = None
    ) -> torch.Tensor:
        """Probabilities in float32, or their logarithms, of what the model gave; `sample` is ignored, as in fairseq."""
        logits = net_output[0].float()
        return functional.log_softmax(logits, dim=-1) if log_probs else functional.softmax(logits, dim=-1)

    def get_targets(self, sample: Mapping[str, object], net_output: object) -> object:
        """The `target` of a batch of fairseq's."""
        return sample["target"]

    @property
    def supported_targets(self) -> set[str]:
        """What fairseq's criteria may ask of the model."""
        return {"self"}

    def features(
        self, tokens: torch.Tensor, *, layers: Collection[int] = (), lang_id: Sequence[str] | None = None
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The features of `tokens`, (batch, length), and the hidden states of `layers` by number.

        Number 0 is the embeddings, n is what layer n gives; in a model that normalises before its layers the last one
        is thus before the final norm. Each stays on the device of its layer. Raises what `language_numbers` raises.
        """
        numbers = self.language_numbers(lang_id, rows=len(tokens))
        languages = {} if numbers is None else {"lang_ids": torch.tensor(numbers, device=tokens.device)}
        with self._captured(layers) as hidden:
            output = self.base(tokens, attention_mask=(tokens != self.pad_index).long(), **languages)
        return output.last_hidden_state, hidden

    def language_numbers(self, lang_id: Sequence[str] | None, *, rows: int) -> list[int] | None:
        """The number of each row's language; None for a model without languages.

        Raises InputError, of the kind that fairseq raises: TypeError for languages of a model that has none.
        """
        if (languages := self.languages) is not None:
            return languages.numbers(lang_id, rows=rows)
        if lang_id is not None:
            raise InputTypeError(f"lang_id={lang_id!r:.40}: not an X-MOD, this model has no languages: leave it out")
        return None

    def logits(self, features: torch.Tensor, masked_tokens: torch.Tensor | None = None) -> torch.Tensor:
        """The LM head's logits over the vocabulary, only at `masked_tokens` if given. Raises an AttributeError."""
        if not self.has_lm_head:
            raise InputAttributeError("the model holds no LM head: it predicts no tokens (convert with head='none')")
        chosen = features if masked_tokens is None else features[masked_tokens, :]
        logits: torch.Tensor = self.network.lm_head(chosen)
        return logits[..., : self.embedding_rows]

    def classified(self, head: str, features: torch.Tensor) -> torch.Tensor:
        """The output of the head `head` for features, computed on its device. Raises UnknownHead."""
        if head not in self.classification_heads:
            raise UnknownHead(head, list(self.classification_heads))
        network: Any = self.classification_heads[head]
        logits: torch.Tensor = network(features.to(network.dense.weight.device))
        return logits

    def register_classification_head(
        self, name: str, num_classes: int | None = None, inner_dim: int | None = None, **_unused: object
    ) -> None:
        """Put a fresh head under `name`; as in fairseq it replaces another with a warning, and is in training mode.

        It gets the dtype and the device of the last layer. In place of the network's own head it becomes that, so that
        `network.save_pretrained` writes it. Other arguments by name are ignored, as there. Raises InputError, of
        fairseq's kind: TypeError without `num_classes`, KeyError for a name that no module can have; and where
        Transformers' class cannot hold a head of that size as its own.
        """
        if num_classes is None:
            raise InputTypeError("a classification head needs num_classes=, the number of its outputs")
        self._raise_if_no_head(name, {"num_classes": num_classes, "inner_dim": inner_dim or self.hidden_size})
        if name == self.own_head:
            self._raise_if_network_cannot_hold(num_classes, inner_dim or self.hidden_size)
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
        if name == self.own_head:
            self._put_into_network(head)

    def _raise_if_network_cannot_hold(self, num_classes: int, inner_dim: int) -> None:
        """Raise InputError if the network's own head cannot be replaced by one of these sizes."""
        layers = own_head_layers(self.network)
        reasons = {
            "the model is spread over devices or offloaded": self.is_spread or self.is_offloaded,
            f"its hidden layer has the width {self.hidden_size} in Transformers": inner_dim != self.hidden_size,
            "multiple choice has one output": self.network.classifier is layers["out_proj"] and num_classes != 1,
        }
        if told := [reason for reason, holds in reasons.items() if holds]:
            raise InputError(
                f"the head {self.own_head!r} is a part of {type(self.network).__name__} and cannot be replaced by this "
                f"one ({'; '.join(told)}): register it under another name"
            )

    def _put_into_network(self, head: ClassificationHead) -> None:
        """Share the weights of `head` with the network, in place of its own head's weights."""
        for name, layer in own_head_layers(self.network).items():
            fresh = {"dense": head.dense, "out_proj": head.out_proj}[name]
            layer.weight, layer.bias = fresh.weight, fresh.bias
            layer.out_features = fresh.out_features
        classes = head.out_proj.out_features
        if hasattr(self.network, "num_labels") and classes != self.network.config.num_labels:
            self.network.config.num_labels = self.network.num_labels = classes  # which also names them again
            self.network.config.problem_type = None

    def _raise_if_no_head(self, name: object, sizes: Mapping[str, object]) -> None:
        """Raise InputError, of the kind that fairseq raises, for what is not a name or no size of a head."""
        if not isinstance(name, str):
            raise InputTypeError(f"the name of a classification head is a str, not {type(name).__name__}")
        is_taken = hasattr(self.classification_heads, name) and name not in self.classification_heads
        if not name or "." in name or is_taken:
            raise InputKeyError(f"a classification head cannot be called {name!r}: PyTorch has no module of that name")
        for argument, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool):
                raise InputTypeError(f"{argument}={size!r}: give a whole number")
            if size < 0:
                raise InputRuntimeError(f"{argument}={size}: give a number that is not below 0")

    def _end(self) -> torch.Tensor:
        """A weight with the dtype and the device that features have."""
        parameters: dict[str, torch.Tensor] = dict(self.base.named_parameters())
        end = [each for name, each in parameters.items() if name.endswith("LayerNorm.weight")][-1]
        return end if end.device.type != "meta" else torch.empty(0, dtype=end.dtype)

    def _zero_padding(
        self, _module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object], output: torch.Tensor
    ) -> torch.Tensor:
        """Zero the embeddings of padding, as fairseq's TransformerSentenceEncoder does; Transformers leaves them."""
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if not isinstance(tokens, torch.Tensor):  # the caller gave embeddings of his own
            return output
        zeroed: torch.Tensor = output * (tokens != self.pad_index).unsqueeze(-1).to(output)
        return zeroed

    @contextmanager
    def _captured(self, wanted: Collection[int]) -> Iterator[dict[int, torch.Tensor]]:
        """A dictionary that fills with what the wanted layers give in this thread while the network runs."""
        hidden: dict[int, torch.Tensor] = {}
        thread = threading.get_ident()
        places = [self.base.embeddings, *self.layers]

        def keep(number: int, _module: object, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            if threading.get_ident() == thread:
                hidden[number] = output[0] if isinstance(output, tuple) else output

        handles = [places[number].register_forward_hook(partial(keep, number)) for number in sorted(set(wanted))]
        try:
            yield hidden
        finally:
            for handle in handles:
                handle.remove()
