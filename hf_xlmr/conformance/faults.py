"""The known faults of runtimes: what each changes in the setting, so that its answers can be computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hf_xlmr.conformance.setting import FRAMINGS, SPELLINGS, Setting
from hf_xlmr.conformance.targets import POOLS

if TYPE_CHECKING:
    from hf_xlmr.conformance.own_network import OwnNetwork

__all__ = ["Fault", "known_faults", "truncations"]


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    kind: str
    """What is wrong: faults of a kind exclude each other."""
    name: str
    """A sentence about the runtime, without its subject."""
    changes: Mapping[str, object] = field(hash=False)
    """The fields of `Setting` that it changes."""


ACTIVATIONS: Final = {
    "gelu": "the exact GELU",
    "gelu_new": "the tanh approximation of GELU",
    "quick_gelu": "the sigmoid approximation of GELU",
    "relu": "ReLU",
    "silu": "SiLU",
}
EPSILONS: Final = (1e-12, 1e-6, 1e-5, 1e-3)
LIMITS: Final = (32, 64, 128, 256, 384, 500)
_POSITIONS: Final = (
    ("counts positions from 0, not from 2", {"first_position": 0}),
    ("counts positions from 1, not from 2", {"first_position": 1}),
    ("counts positions from 3, not from 2", {"first_position": 3}),
    ("counts positions on from one text of a batch to the next", {"positions": "over the batch"}),
    ("counts padding on the left as positions", {"positions": "after padding"}),
)
_PADDING: Final = (
    ("attends to padding", {"batching": "attended"}),
    ("attends to padding, which has positions of its own", {"batching": "attended and counted"}),
    ("pools the vectors of padding, too", {"batching": "padded", "pools_padding": True}),
    ("attends to padding and pools its vectors", {"batching": "attended", "pools_padding": True}),
    (
        "attends to padding, which has positions of its own, and pools its vectors",
        {"batching": "attended and counted", "pools_padding": True},
    ),
)
_PACKING: Final = (
    ("lets the texts of a batch attend to each other", {"batching": "packed"}),
    (
        "lets the texts of a batch attend to each other, with positions that go on",
        {"batching": "packed", "positions": "over the batch"},
    ),
)
_NORMS: Final = (
    ("leaves out the norm after the last layer", {"final_norm": "never"}),
    ("applies the norm after the last layer twice", {"final_norm": "twice"}),
)
_TOKEN_TYPES: Final = (
    ("leaves out the token type embedding", {"token_types": "none"}),
    ("gives every token the second token type", {"token_types": "second"}),
    ("gives the second text of a pair the second token type", {"token_types": "pairs"}),
)
FRAMES: Final = {
    "no <s>": "leaves out <s>",
    "no </s>": "leaves out </s>",
    "neither": "leaves out <s> and </s>",
    "two <s>": "adds <s> twice",
    "two </s>": "adds </s> twice",
    "two of each": "adds <s> and </s> twice",
}


def known_faults(own: OwnNetwork, right: Setting) -> list[Fault]:
    """Every fault that this model could show, compared with answers by `right`."""
    return [
        *(Fault("positions", name, changes) for name, changes in _POSITIONS),
        *_of_activation(own),
        *_of_norms(own),
        *(Fault("padding", name, changes) for name, changes in _PADDING),
        *(Fault("packing", name, changes) for name, changes in _PACKING),
        *(Fault("special tokens", FRAMES[each], {"framing": each}) for each in FRAMINGS if each != "one"),
        *(
            Fault("pooling", f"pools by {each}, not by {right.pool}", {"pool": each})
            for each in POOLS
            if each != right.pool
        ),
        Fault(
            "normalization",
            "does not scale vectors to the length 1" if right.normalized else "scales vectors to the length 1",
            {"normalized": not right.normalized},
        ),
        *_of_token_types(own),
        *(
            Fault("layers", f"gives the layer {count} before the last", {"skipped_layers": count})
            for count in (1, 2)
            if count < len(own.base.encoder.layer)
        ),
        *_of_the_tokenizer(),
    ]


def truncations(limits: Iterable[int], limit: int) -> Iterator[Fault]:
    """Faults by which a text is cut off at another length."""
    for longest in limits:
        name = f"cuts texts off at {longest} tokens, not at {limit}"
        yield Fault("truncation", name, {"longest": longest})
        yield Fault("truncation", f"{name}, and loses </s>", {"longest": longest, "truncated": "with </s>"})
    yield Fault("truncation", "loses </s> of texts that it cuts off", {"truncated": "with </s>"})
    yield Fault("truncation", "cuts texts off at the front", {"truncated": "at the front"})


def _of_activation(own: OwnNetwork) -> Iterator[Fault]:
    usual = str(own.base.config.hidden_act)
    for name, told in ACTIVATIONS.items():
        if name != usual:
            yield Fault("activation", f"computes {told}, not {ACTIVATIONS.get(usual, usual)}", {"activation": name})


def _of_norms(own: OwnNetwork) -> Iterator[Fault]:
    for eps in EPSILONS:
        if abs(eps - own.eps) > own.eps / 100:
            yield Fault("eps", f"has the eps {eps:g} in its layer norms, not {own.eps:g}", {"eps": eps})
    if own.family.final_norm is not None:
        yield from (Fault("final norm", name, changes) for name, changes in _NORMS)
    if own.family.embedding_norm is not None:
        yield Fault("embedding norm", "leaves out the norm of the embeddings", {"embedding_norm": "never"})


def _of_token_types(own: OwnNetwork) -> Iterator[Fault]:
    table = own.base.embeddings.token_type_embeddings.weight
    for name, changes in _TOKEN_TYPES:
        is_none = changes["token_types"] == "none"
        if bool(table[0].any()) if is_none else len(table) > 1 and bool((table[0] != table[1]).any()):
            yield Fault("token types", name, changes)


def _of_the_tokenizer() -> Iterator[Fault]:
    for spelling in SPELLINGS:
        if spelling != "as it is":
            yield Fault("spelling", f"tokenizes texts {spelling}", {"spelling": spelling})
    for shift in (-1, 1):
        yield Fault("ids", f"has the ids of pieces {shift:+d} beside fairseq's", {"shift": shift})
