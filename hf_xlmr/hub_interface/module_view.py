"""fairseq's names for the parts of Transformers' network: the same modules and weights, and no copies."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, overload

import torch
from torch import nn

from hf_xlmr.errors import InputAttributeError, InputIndexError, InputKeyError, InputNotImplementedError, InputTypeError
from hf_xlmr.model.families import LAYER_LINEARS, family_of

if TYPE_CHECKING:
    from hf_xlmr.hub_interface.encoder import Encoder

OPTIONS = {
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}


class Options(Namespace):
    """The options of fairseq's training, as far as the model's folder keeps them."""

    def __getattr__(self, name: str) -> NoReturn:
        known = ", ".join(sorted(vars(self)))
        raise InputAttributeError(f"the model's folder does not keep fairseq's option {name!r}; it keeps: {known}")

    @classmethod
    def of(cls, config: object, *, max_positions: int) -> Options:
        """What the config of a Transformers network says."""
        return cls(max_positions=max_positions, **{ours: getattr(config, theirs) for ours, theirs in OPTIONS.items()})


class View:
    """A module of fairseq's, made of Transformers' own: what is trained, cast or moved here is so in the network.

    It can be asked for its parts and its parameters under fairseq's names, switched between training and evaluation,
    and some can be called; it is not an nn.Module, so that no weight of the model is listed twice. A module of your own
    that holds one thus has none of its parameters: give it `xlmr.model`, or what the view shows. It is not copied or
    pickled, since a copy would compute with the model's own weights. As in the network, a weight that is left on the
    disk is on the device "meta", and embeddings have the rows that the conversion appended.
    """

    _kind: str
    _parts: Mapping[str, object]
    _root: tuple[nn.Module, ...]
    _call: Callable[..., object] | None
    _instead: str

    def __init__(
        self,
        kind: str,
        parts: Mapping[str, object],
        *,
        root: Sequence[nn.Module] = (),
        call: Callable[..., object] | None = None,
        instead: str,
    ) -> None:
        """Show `parts` as fairseq's `kind`; `root` are the modules that it stands for, `instead` where they are."""
        vars(self).update(parts, _kind=kind, _parts=parts, _root=tuple(root), _call=call, _instead=instead)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputAttributeError(
            f"the view of fairseq's {self._kind} has no {name!r}, only {', '.join(self._parts)}; the modules of "
            f"Transformers that it shows are {self._instead}"
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise InputAttributeError(f"{name!r} cannot be set on a view of fairseq's {self._kind}: change {self._instead}")

    def __reduce__(self) -> NoReturn:
        """What copy and pickle ask for. Raises InputTypeError."""
        raise InputTypeError(
            f"a view of fairseq's {self._kind} is not copied or pickled, since it would continue computing with the "
            f"model's weights: copy the model (copy.deepcopy(xlmr.model).encoder), or the modules {self._instead}"
        )

    def __repr__(self) -> str:
        return f"{self._kind}({', '.join(self._parts)})"

    def __call__(self, *args: object, **options: object) -> Any:
        """What fairseq's module gives. Raises InputTypeError if it cannot be called by itself."""
        if self._call is None:
            raise InputTypeError(f"fairseq's {self._kind} cannot be called here; call {self._instead}")
        return self._call(*args, **options)

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return any(module.training for module in self._root)

    def train(self, mode: bool = True) -> View:
        """Switch dropout on, or off."""
        for module in self._root:
            module.train(mode)
        return self

    def eval(self) -> View:
        """Switch dropout off."""
        return self.train(mode=False)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters under fairseq's names, each once."""
        seen = set[int]()
        for name, parameter in _parameters(self._parts, f"{prefix}." if prefix else ""):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters, each once."""
        return (parameter for _name, parameter in self.named_parameters())

    def requires_grad_(self, requires_grad: bool = True) -> View:
        """Train the parameters, or leave them as they are."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self


class Layers(Sequence[View]):
    """fairseq's layers, each a View."""

    def __init__(self, layers: nn.ModuleList, names: Mapping[str, str], *, heads: int) -> None:
        """Show Transformers' `layers`, whose parts are called by `names`, with `heads` attention heads."""
        self._layers, self._names, self._heads = layers, names, heads

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, index: int) -> View: ...
    @overload
    def __getitem__(self, index: slice) -> list[View]: ...
    def __getitem__(self, index: int | slice) -> View | list[View]:
        numbers = range(len(self))[index] if isinstance(index, slice) else index
        return self._view(numbers) if isinstance(numbers, int) else [self._view(number) for number in numbers]

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputAttributeError(
            f"the view of fairseq's layers has no {name!r}; the ModuleList of Transformers is xlmr.model.layers"
        )

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters under fairseq's names."""
        for number, layer in enumerate(self):
            yield from layer.named_parameters(f"{prefix}.{number}" if prefix else str(number))

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters."""
        return (parameter for _name, parameter in self.named_parameters())

    def _view(self, number: int) -> View:
        if not -len(self) <= number < len(self):
            raise InputIndexError(f"there is no layer {number}: the model has {len(self)}")
        number %= len(self)
        layer, where = self._layers[number], f"in xlmr.model.layers[{number}]"
        parts: dict[str, Any] = {name: layer.get_submodule(path) for name, path in self._names.items()}
        inner = {name.removeprefix("self_attn."): parts.pop(name) for name in list(parts) if "." in name}
        width = inner["q_proj"].out_features
        inner |= {"embed_dim": width, "num_heads": self._heads, "head_dim": width // self._heads}
        attention = View("MultiheadAttention", inner, root=[layer.get_submodule("attention")], instead=where)
        parts |= _adapters(layer, where)
        return View("TransformerEncoderLayer", {"self_attn": attention, **parts}, root=[layer], instead=where)


class Adapters(Mapping[str, View]):
    """fairseq's adapters of a layer by language, each a View."""

    def __init__(self, adapters: nn.ModuleDict, *, instead: str) -> None:
        """Show Transformers' `adapters`, which are `instead`."""
        self._adapters, self._instead = adapters, instead

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __getitem__(self, language: str) -> View:
        if language not in self._adapters:
            raise InputKeyError(f"there is no adapter for {language!r:.40}: the model has {', '.join(self)}")
        adapter: Any = self._adapters[language]
        parts = {"fc1": adapter.dense1, "fc2": adapter.dense2}
        return View("Adapter", parts, root=[adapter], call=adapter, instead=self._instead)

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters under fairseq's names."""
        for language, adapter in self.items():
            yield from adapter.named_parameters(f"{prefix}.{language}" if prefix else language)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters."""
        return (parameter for _name, parameter in self.named_parameters())


def _adapters(layer: nn.Module, where: str) -> dict[str, object]:
    """What a layer of an X-MOD has besides; `where` it is."""
    output: Any = layer.get_submodule("output")
    if not hasattr(output, "adapter_modules"):
        return {}
    norm = {} if output.adapter_layer_norm is None else {"adapter_layer_norm": output.adapter_layer_norm}
    return {"adapter_modules": Adapters(output.adapter_modules, instead=where), **norm}


def _parameters(parts: Mapping[str, object], prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, part in parts.items():
        if isinstance(part, nn.Parameter):
            yield f"{prefix}{name}", part
        elif isinstance(part, (nn.Module, View, Layers, Adapters)):
            yield from part.named_parameters(f"{prefix}{name}")


def view_of(model: Encoder) -> View:
    """The parts of an Encoder as fairseq's RobertaEncoder; without an LM head there is no `lm_head` in it."""
    parts = {"sentence_encoder": _sentence_encoder(model), "args": model.args, "max_positions": model.max_positions}
    root = [model.base]
    if model.has_lm_head:
        parts["lm_head"] = _lm_head(model)
        root.append(model.network.lm_head)

    def extract_features(
        src_tokens: torch.Tensor,
        return_all_hiddens: bool = False,
        lang_id: Sequence[str] | None = None,
        **unused: object,
    ) -> object:
        _raise_if_embedded(unused.get("token_embeddings"))
        return model(src_tokens, features_only=True, return_all_hiddens=return_all_hiddens, lang_id=lang_id)

    def output_layer(
        features: torch.Tensor, masked_tokens: torch.Tensor | None = None, **_unused: object
    ) -> torch.Tensor:
        return model.logits(features, masked_tokens)

    def forward(
        src_tokens: torch.Tensor,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        masked_tokens: torch.Tensor | None = None,
        lang_id: Sequence[str] | None = None,
        **_unused: object,
    ) -> object:
        return model(src_tokens, features_only, return_all_hiddens, lang_id=lang_id, masked_tokens=masked_tokens)

    parts |= {"extract_features": extract_features, "output_layer": output_layer, "forward": forward}
    return View("RobertaEncoder", parts, root=root, call=forward, instead="in xlmr.model.network")


def _lm_head(model: Encoder) -> View:
    head = model.network.lm_head
    parts = {
        "weight": head.decoder.weight,
        "bias": head.decoder.bias,
        "dense": head.dense,
        "layer_norm": head.layer_norm,
    }
    return View("RobertaLMHead", parts, root=[head], call=model.logits, instead="in xlmr.model.network.lm_head")


def _sentence_encoder(model: Encoder) -> View:
    base, config = model.base, model.network.config
    family = family_of(config.to_dict())
    assert family is not None
    names = {ours: theirs for ours, theirs, _ in LAYER_LINEARS} | family.layer_norms
    norms = [path and base.get_submodule(path) for path in (family.embedding_norm, family.final_norm)]
    words = base.embeddings.word_embeddings
    forward = _forward_of(model, words)
    parts = {
        "embed_tokens": words,
        "embed_positions": _positions(base.embeddings.position_embeddings, model.pad_index),
        "layernorm_embedding": norms[0],
        "emb_layer_norm": norms[0],  # its name up to fairseq 0.10
        "layers": Layers(model.layers, names, heads=config.num_attention_heads),
        "layer_norm": norms[1],
        "num_layers": len(model.layers),
        "padding_idx": model.pad_index,
        "embed_scale": 1.0,
        "max_source_positions": model.max_positions(),
        "max_positions": model.max_positions,
        "forward": forward,
    }
    return View("TransformerEncoder", parts, root=[base], call=forward, instead="in xlmr.model.base")


def _forward_of(model: Encoder, words: nn.Module) -> Callable[..., dict[str, Sequence[torch.Tensor | None]]]:
    """What fairseq's TransformerEncoder gives; `words` are the embeddings."""

    def forward(
        src_tokens: torch.Tensor,
        src_lengths: torch.Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: torch.Tensor | None = None,
        lang_id: Sequence[str] | None = None,
    ) -> dict[str, Sequence[torch.Tensor | None]]:
        _raise_if_embedded(token_embeddings)
        features, extra = model(src_tokens, features_only=True, return_all_hiddens=return_all_hiddens, lang_id=lang_id)
        is_padding = src_tokens.eq(model.pad_index)
        states = extra["inner_states"] or []
        return {
            "encoder_out": [features.transpose(0, 1)],
            "encoder_padding_mask": [is_padding],
            "encoder_embedding": [words(src_tokens)],
            "encoder_states": states,
            "fc_results": [None] * (len(states) - 1),
            "src_tokens": [],
            "src_lengths": [(~is_padding).sum(dim=1, dtype=torch.int32).reshape(-1, 1)],
        }

    return forward


def _positions(embedding: nn.Embedding, pad_index: int) -> View:
    """fairseq.modules.LearnedPositionalEmbedding: it takes tokens, Transformers' takes positions."""

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        counted = tokens.ne(pad_index).int()
        positions = (torch.cumsum(counted, dim=1) * counted).long() + pad_index
        vectors: torch.Tensor = embedding(positions)  # the module itself, which may read its weight from the disk
        return vectors

    parts = {
        "weight": embedding.weight,
        "num_embeddings": embedding.num_embeddings,
        "embedding_dim": embedding.embedding_dim,
        "padding_idx": pad_index,
        "max_positions": embedding.num_embeddings - pad_index - 1,
        "forward": forward,
    }
    where = "xlmr.model.base.embeddings.position_embeddings"
    return View("LearnedPositionalEmbedding", parts, root=[embedding], call=forward, instead=where)


def _raise_if_embedded(token_embeddings: object) -> None:
    if token_embeddings is not None:
        raise InputNotImplementedError(
            "token_embeddings= cannot be given here: call xlmr.model.network with inputs_embeds= and position_ids="
        )
