"""The map: one row per kind of weight, fairseq's newest name and Transformers', read in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

from hf_xlmr.conversion.checkpoint.templates import fill, slots_of
from hf_xlmr.model.adapters import ADAPTER_LINEARS, ADAPTER_NORM
from hf_xlmr.model.families import LAYER_LINEARS, Family, Task

__all__ = ["Placement", "Row", "norms_of", "placements", "rows_of"]


class Row(NamedTuple):
    """A fairseq name and its Transformers name; `dims` is the shape of the weight, and a bias has the first of them."""

    fairseq: str
    transformers: str
    dims: tuple[str, ...]


E: Final = "encoder.sentence_encoder."
FL: Final = E + "layers.{layer}."
TL: Final = "{base}encoder.layer.{layer}."

ENCODER: Final = (
    Row(E + "embed_tokens.weight", "{base}embeddings.word_embeddings.weight", ("vocabulary", "hidden")),
    Row(E + "embed_positions.weight", "{base}embeddings.position_embeddings.weight", ("positions", "hidden")),
    *(Row(f"{FL}{ours}.{{part}}", f"{TL}{theirs}.{{part}}", dims) for ours, theirs, dims in LAYER_LINEARS),
)

ADAPTERS: Final = tuple(
    Row(
        f"{FL}adapter_modules.{{language}}.{ours}.{{part}}",
        f"{TL}output.adapter_modules.{{language}}.{theirs}.{{part}}",
        dims,
    )
    for ours, theirs, dims in ADAPTER_LINEARS
)
NORM_OF_ADAPTERS: Final = (Row(f"{FL}{ADAPTER_NORM[0]}.{{part}}", f"{TL}{ADAPTER_NORM[1]}.{{part}}", ("hidden",)),)

LM_HEAD: Final = (
    Row("encoder.lm_head.dense.{part}", "lm_head.dense.{part}", ("hidden", "hidden")),
    Row("encoder.lm_head.layer_norm.{part}", "lm_head.layer_norm.{part}", ("hidden",)),
    Row("encoder.lm_head.bias", "lm_head.bias", ("vocabulary",)),
)

UNTIED: Final = (Row("encoder.lm_head.weight", "lm_head.decoder.weight", ("vocabulary", "hidden")),)

CLASSIFIER: Final = (
    Row("classification_heads.{head}.dense.{part}", "classifier.dense.{part}", ("hidden", "hidden")),
    Row("classification_heads.{head}.out_proj.{part}", "classifier.out_proj.{part}", ("labels", "hidden")),
)

CHOICE: Final = (
    Row("classification_heads.{head}.dense.{part}", "{base}pooler.dense.{part}", ("hidden", "hidden")),
    Row("classification_heads.{head}.out_proj.{part}", "classifier.{part}", ("labels", "hidden")),
)

TOKEN_TYPES: Final = "{base}embeddings.token_type_embeddings.weight"  # fairseq has none: zeros say the same
DECODER_BIAS: Final = "lm_head.decoder.bias"  # the same as lm_head.bias, kept apart by Transformers if nothing is tied

HEAD_ROWS: Final = {
    Task.ENCODER: (),
    Task.MASKED_LM: LM_HEAD,
    Task.SEQUENCE_CLASSIFICATION: CLASSIFIER,
    Task.MULTIPLE_CHOICE: CHOICE,
}


class Placement(NamedTuple):
    """One weight: its name on both sides and the shape it must have."""

    fairseq: str
    transformers: str
    shape: tuple[int, ...]


def rows_of(family: Family, task: Task, *, is_tied: bool, has_adapter_norm: bool = False) -> tuple[Row, ...]:
    """The rows that make up a class of the family, in the order of the files.

    `has_adapter_norm` says whether the language adapters have a layer norm of their own.
    """
    untied = UNTIED if task is Task.MASKED_LM and not is_tied else ()
    adapters = ADAPTERS if family.has_adapters else ()
    norm = NORM_OF_ADAPTERS if has_adapter_norm else ()
    return (*ENCODER, *norms_of(family), *adapters, *norm, *HEAD_ROWS[task], *untied)


def norms_of(family: Family) -> tuple[Row, ...]:
    """The rows of the layer norms, which differ between the families."""
    outer = {"layernorm_embedding": family.embedding_norm, "layer_norm": family.final_norm}
    names = [(E + ours, "{base}" + theirs) for ours, theirs in outer.items() if theirs is not None]
    names += [(FL + ours, TL + theirs) for ours, theirs in family.layer_norms.items()]
    return tuple(Row(f"{ours}.{{part}}", f"{theirs}.{{part}}", ("hidden",)) for ours, theirs in names)


def placements(
    rows: Iterable[Row],
    *,
    layers: Sequence[int],
    slots: Mapping[str, str],
    dims: Mapping[str, int],
    languages: Sequence[str] = (),
) -> Iterator[Placement]:
    """Each weight of the rows; `layers` are fairseq's numbers of the layers that become 0, 1, ...

    `slots` gives `base` and, where a row has it, `head`; `dims` the number that each dimension's name stands for;
    `languages` are those of the adapters.
    """
    for row in rows:
        parts = ("weight", "bias") if "part" in slots_of(row.fairseq) else ("",)
        depth = list(enumerate(layers)) if "layer" in slots_of(row.fairseq) else [(0, 0)]
        spoken = languages if "language" in slots_of(row.fairseq) else ("",)
        for (number, old_number), language, part in product(depth, spoken, parts):
            named = row.dims[:1] if part == "bias" else row.dims
            filled = {**slots, "part": part, "language": language}
            yield Placement(
                fairseq=fill(row.fairseq, {**filled, "layer": str(old_number)}),
                transformers=fill(row.transformers, {**filled, "layer": str(number)}),
                shape=tuple(dims[name] for name in named),
            )
