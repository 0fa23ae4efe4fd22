"""Every spelling that fairseq's history gave to XLM-R's weights, brought to the newest by tables.

The newest scheme is that of fairseq's main branch; who renamed what, and when, is next to each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hf_xlmr.conversion.checkpoint.templates import fill, match
from hf_xlmr.conversion.checkpoint.weights import Stored, Weight
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch

__all__ = ["DROPPED", "REFUSED", "RESPELLED", "Canonical", "canonical", "drop_reason", "is_beside"]

E: Final = "encoder.sentence_encoder."
LAYER: Final = E + "layers.{layer}."


class Row(NamedTuple):
    """One line of a table: names that match `template`, and what becomes of them."""

    template: str
    then: str


RESPELLED: Final = (
    Row("decoder.sentence_encoder.{any}", E + "{any}"),  # until 0.9.0
    Row("decoder.lm_head.{any}", "encoder.lm_head.{any}"),  # until 0.9.0
    Row(E + "emb_layer_norm.{part}", E + "layernorm_embedding.{part}"),  # until 2021-02-16
    Row(LAYER + "layer_norms.0.{part}", LAYER + "self_attn_layer_norm.{part}"),  # before 0.6
    Row(LAYER + "layer_norms.1.{part}", LAYER + "final_layer_norm.{part}"),  # before 0.6
    Row(LAYER + "self_attn.q_proj_weight", LAYER + "self_attn.q_proj.weight"),  # on 2019-10-25 alone
    Row(LAYER + "self_attn.k_proj_weight", LAYER + "self_attn.k_proj.weight"),
    Row(LAYER + "self_attn.v_proj_weight", LAYER + "self_attn.v_proj.weight"),
)

DROPPED: Final = (
    Row(E + "version", "fairseq's format stamp, not a weight"),
    Row(E + "embed_positions._float_tensor", "a buffer that only marks the device"),
    Row(E + "embed_positions.weights", "the table of sinusoids, which fairseq computes again"),
    Row("_float_tensor", "a buffer of the hub interface that only marks the device"),
    Row(LAYER + "{module}_{part}", "an untrained copy that fairseq 0.12.2 keeps next to the weights it uses"),
    Row("encoder.regression_head.{any}", "data2vec's training target, unused by the encoder"),
    Row("encoder._ema", "data2vec's moving average, unused by the encoder"),
    Row("encoder._ema.{any}", "data2vec's moving average, unused by the encoder"),
    Row("q_linear.{part}", "XLM-Align's projection of queries, which only its training loss uses"),
    Row("k_linear.{part}", "XLM-Align's projection of keys, which only its training loss uses"),
    Row("model_slow.{any}", "InfoXLM's slow copy, which only its training loss uses"),
    Row("queue", "InfoXLM's queue of negatives, which only its training loss uses"),
    Row("queue_ptr", "InfoXLM's place in its queue, which only its training loss uses"),
    Row("enqueue_cnt", "InfoXLM's count of its queue, which only its training loss uses"),
    Row("proj_matrix_fast", "InfoXLM's projection, which only its training loss uses"),
    Row("proj_matrix_slow", "InfoXLM's projection of the slow copy, which only its training loss uses"),
    Row("ke_heads.{any}", "KEPLER's head for relations of a knowledge base, which only its training loss uses"),
)

REFUSED: Final = (
    Row(E + "quant_noise.{any}", "quantization noise adds a linear layer to the embeddings"),
    Row(E + "compress_k.{any}", "Linformer's compressed attention"),
    Row(E + "shared_compress_layer.{any}", "Linformer's compressed attention"),
    Row(LAYER + "self_attn.compress_k.{any}", "Linformer's compressed attention"),
    Row(LAYER + "self_attn.shared_compress_layer.{any}", "Linformer's compressed attention"),
    Row(LAYER + "self_attn.bias_k", "an extra key in each attention (--add-bias-kv)"),
    Row(LAYER + "self_attn.bias_v", "an extra value in each attention (--add-bias-kv)"),
    Row(E + "segment_embeddings.{any}", "segment embeddings: a BERT or XLM model of fairseq's, not RoBERTa"),
    Row("encoder.masked_lm_pooler.{any}", "a BERT or XLM model of fairseq's, not RoBERTa"),
    Row("encoder.lm_head_transform_weight.{any}", "a BERT or XLM model of fairseq's, not RoBERTa"),
    Row("encoder.layers.{any}", "an encoder-decoder or translation model, not RoBERTa"),
    Row("decoder.{any}", "an encoder-decoder or translation model, not RoBERTa"),
)

FUSED: Final = {  # until 2019-10-25: three projections in one, in the order query, key, value
    LAYER + "self_attn.in_proj_weight": LAYER + "self_attn.{projection}.weight",
    LAYER + "self_attn.in_proj_bias": LAYER + "self_attn.{projection}.bias",
}
PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj")

ANCHORS: Final = tuple(f"{side}.sentence_encoder.embed_tokens.weight" for side in ("encoder", "decoder"))
TRAINED_COPY: Final = "model_fast"  # InfoXLM trains this copy; the other one, an average of it, only feeds its loss
AVERAGED_COPY: Final = "model_slow"
OF_THE_MODEL: Final = ("encoder.", "decoder.", "classification_heads.")  # all that fairseq's RobertaModel has


@dataclass(frozen=True)
class Canonical:
    """Weights under the newest names; `dropped` and `refused` hold what has no place, with the reason.

    `beside` names the weights outside of fairseq's model that no known project writes.
    """

    weights: dict[str, Weight]
    dropped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    has_old_embedding_norm: bool = False


def canonical(stored: Mapping[str, Weight]) -> Canonical:
    """Bring `stored` to the newest names.

    Raises WeightsMismatch if two spellings give one name, InputError if several models are in it.
    """
    prefix = _outer_prefix(stored)
    inner = {name.removeprefix(prefix): weight for name, weight in stored.items() if name.startswith(prefix)}
    outer = [name for name in stored if not name.startswith(prefix)]
    known = {name: reason for name in outer if (reason := _outer_reason(name, prefix))}
    weights, dropped, refused = _sorted_out(inner)
    beside = [name for name in weights if is_beside(name)]
    respelled = _respelled({name: weight for name, weight in weights.items() if name not in set(beside)})
    split, stale = _split_fused(respelled)
    return Canonical(
        weights=split,
        dropped=known | dropped | stale,
        refused=refused,
        beside=(*(name for name in outer if name not in known), *(prefix + name for name in beside)),
        has_old_embedding_norm=any(".emb_layer_norm." in name for name in inner),
    )


def is_beside(name: str) -> bool:
    """Whether a name, without what a wrapper puts before it, is none of fairseq's RobertaModel."""
    return not name.startswith(OF_THE_MODEL)


def _outer_prefix(names: Iterable[str]) -> str:
    """What a wrapper put before every name: nothing, `model.`, `module.`, ... Raises InputError."""
    found = {name.removesuffix(anchor) for name in names for anchor in ANCHORS if name.endswith(anchor)}
    trained = {prefix for prefix in found if TRAINED_COPY in prefix.split(".")}
    shortest = min(trained or found, default="", key=len)
    if AVERAGED_COPY in shortest.split("."):
        raise InputError(
            f"the checkpoint holds InfoXLM's average alone ({shortest.rstrip('.'):.200}), which its loss uses, "
            f"and no embeddings under {TRAINED_COPY}, the model that was trained; if the average is meant, save its "
            f"weights without {AVERAGED_COPY} in their names"
        )
    if any(not prefix.startswith(shortest) for prefix in trained or found):
        copies = ", ".join(sorted(prefix.rstrip(".") for prefix in trained or found))
        raise InputError(
            f"the checkpoint holds several models ({copies:.200}), and nothing says which is meant; save the weights "
            "of one of them alone"
        )
    return shortest


def _outer_reason(name: str, prefix: str) -> str | None:
    """Why a name outside of the wrapped model is left behind, None if it is not known."""
    wrapper = re.sub(rf"(^|\.){TRAINED_COPY}\..*", r"\1", prefix)
    return _reason(DROPPED, name) or _reason(DROPPED, name.removeprefix(wrapper))


def drop_reason(name: str) -> str | None:
    """Why something under this name is left behind, None if it is not."""
    return _reason(DROPPED, _spelling(name))


def _reason(table: tuple[Row, ...], name: str) -> str | None:
    return next((row.then for row in table if match(row.template, name) is not None), None)


def _sorted_out(weights: Mapping[str, Weight]) -> tuple[dict[str, Weight], dict[str, str], dict[str, str]]:
    """The weights that stay, those dropped and those refused, by the tables."""
    kept: dict[str, Weight] = {}
    dropped: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name, weight in weights.items():
        spelled = _spelling(name)
        if reason := _reason(DROPPED, spelled):
            dropped[name] = reason
        elif reason := _reason(REFUSED, spelled):
            refused[name] = reason
        else:
            kept[name] = weight
    return kept, dropped, refused


def _spelling(name: str) -> str:
    """The newest spelling of one name."""
    for row in RESPELLED:
        slots = match(row.template, name)
        name = name if slots is None else fill(row.then, slots)
    return name


def _respelled(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    respelled: dict[str, Weight] = {}
    twice: list[str] = []
    for name, weight in weights.items():
        twice += [f"{name} (a second {_spelling(name)})"] if _spelling(name) in respelled else []
        respelled[_spelling(name)] = weight
    if twice:
        raise WeightsMismatch(unexpected=twice)
    return respelled


def _split_fused(weights: Mapping[str, Weight]) -> tuple[dict[str, Weight], dict[str, str]]:
    """Fused projections as three; a fused tensor next to separate ones is stale and dropped (fairseq 0.12.2)."""
    split: dict[str, Weight] = {}
    stale: dict[str, str] = {}
    for name, weight in weights.items():
        target = _fused_target(name)
        if target is None:
            split[name] = weight
        elif target.format(projection="q_proj") in weights:
            stale[name] = "a fused copy next to the separate projections"
        else:
            thirds = _thirds(name, weight)
            split |= {target.format(projection=each): third for each, third in zip(PROJECTIONS, thirds, strict=True)}
    return split, stale


def _fused_target(name: str) -> str | None:
    for template, target in FUSED.items():
        slots = match(template, name)
        if slots is not None:
            return fill(target, {**slots, "projection": "{projection}"})
    return None


def _thirds(name: str, weight: Weight) -> tuple[Weight, ...]:
    if not isinstance(weight, Stored) or not weight.shape or weight.shape[0] % 3:
        raise IntegrityError(f"{name} cannot be split in three, its shape is {weight.shape}")
    size = weight.shape[0] // 3
    return tuple(weight.rows(index * size, (index + 1) * size) for index in range(3))
