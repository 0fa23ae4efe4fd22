"""The map: one row per family of weights, fairseq's newest name beside Transformers', read in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from hf_xlmr.conversion.checkpoint.templates import fill, slots_of

__all__ = ["FAMILIES", "Family", "Placement", "Row", "Task", "placements", "rows_of"]


class Task(Enum):
    """What the Transformers class is for; the value is the ending of its name."""

    ENCODER = "Model"
    MASKED_LM = "ForMaskedLM"
    CLASSIFICATION = "ForSequenceClassification"
    MULTIPLE_CHOICE = "ForMultipleChoice"


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
    Row(FL + "self_attn.q_proj.{part}", TL + "attention.self.query.{part}", ("hidden", "hidden")),
    Row(FL + "self_attn.k_proj.{part}", TL + "attention.self.key.{part}", ("hidden", "hidden")),
    Row(FL + "self_attn.v_proj.{part}", TL + "attention.self.value.{part}", ("hidden", "hidden")),
    Row(FL + "self_attn.out_proj.{part}", TL + "attention.output.dense.{part}", ("hidden", "hidden")),
    Row(FL + "fc1.{part}", TL + "intermediate.dense.{part}", ("intermediate", "hidden")),
    Row(FL + "fc2.{part}", TL + "output.dense.{part}", ("hidden", "intermediate")),
)

POST_NORM: Final = (
    Row(E + "layernorm_embedding.{part}", "{base}embeddings.LayerNorm.{part}", ("hidden",)),
    Row(FL + "self_attn_layer_norm.{part}", TL + "attention.output.LayerNorm.{part}", ("hidden",)),
    Row(FL + "final_layer_norm.{part}", TL + "output.LayerNorm.{part}", ("hidden",)),
)

PRE_NORM: Final = (
    Row(E + "layer_norm.{part}", "{base}encoder.LayerNorm.{part}", ("hidden",)),
    Row(FL + "self_attn_layer_norm.{part}", TL + "attention.self_attn_layer_norm.{part}", ("hidden",)),
    Row(FL + "final_layer_norm.{part}", TL + "LayerNorm.{part}", ("hidden",)),
)

PRE_NORM_WITH_EMBEDDING_NORM: Final = (
    Row(E + "layernorm_embedding.{part}", "{base}embeddings.LayerNorm.{part}", ("hidden",)),
    Row(E + "layer_norm.{part}", "{base}LayerNorm.{part}", ("hidden",)),
    Row(FL + "self_attn_layer_norm.{part}", TL + "attention.LayerNorm.{part}", ("hidden",)),
    Row(FL + "final_layer_norm.{part}", TL + "intermediate.LayerNorm.{part}", ("hidden",)),
)

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
DECODER_BIAS: Final = (
    "lm_head.decoder.bias"  # the same as lm_head.bias, kept apart by Transformers where nothing is tied
)

HEAD_ROWS: Final = {
    Task.ENCODER: (),
    Task.MASKED_LM: LM_HEAD,
    Task.CLASSIFICATION: CLASSIFIER,
    Task.MULTIPLE_CHOICE: CHOICE,
}


@dataclass(frozen=True)
class Family:
    """One of the three Transformers architectures that fairseq's encoder can become."""

    class_prefix: str
    model_type: str
    base: str
    norms: tuple[Row, ...]

    def class_name(self, task: Task) -> str:
        """The Transformers class for a task, for example XLMRobertaForMaskedLM."""
        return self.class_prefix + task.value

    def base_prefix(self, task: Task) -> str:
        """What stands before the encoder's names in that class."""
        return "" if task is Task.ENCODER else f"{self.base}."


FAMILIES: Final = {
    "post-norm": Family("XLMRoberta", "xlm-roberta", "roberta", POST_NORM),
    "pre-norm": Family("XLMRobertaXL", "xlm-roberta-xl", "roberta", PRE_NORM),
    "pre-norm with embedding norm": Family(
        "RobertaPreLayerNorm", "roberta-prelayernorm", "roberta_prelayernorm", PRE_NORM_WITH_EMBEDDING_NORM
    ),
}


class Placement(NamedTuple):
    """One weight: its name on both sides and the shape it must have."""

    fairseq: str
    transformers: str
    shape: tuple[int, ...]


def rows_of(family: Family, task: Task, *, is_tied: bool) -> tuple[Row, ...]:
    """The rows that make up a class of the family, in the order of the files."""
    untied = UNTIED if task is Task.MASKED_LM and not is_tied else ()
    return (*ENCODER, *family.norms, *HEAD_ROWS[task], *untied)


def placements(
    rows: Iterable[Row], *, layers: Sequence[int], slots: Mapping[str, str], dims: Mapping[str, int]
) -> Iterator[Placement]:
    """Each weight of the rows; `layers` are fairseq's numbers of the layers that become 0, 1, ...

    `slots` gives `base` and, where a row has it, `head`; `dims` the number that each dimension's name stands for.
    """
    for row in rows:
        parts = ("weight", "bias") if "part" in slots_of(row.fairseq) else ("",)
        depth = list(enumerate(layers)) if "layer" in slots_of(row.fairseq) else [(0, 0)]
        for number, old_number in depth:
            for part in parts:
                named = row.dims[:1] if part == "bias" else row.dims
                yield Placement(
                    fairseq=fill(row.fairseq, {**slots, "part": part, "layer": str(old_number)}),
                    transformers=fill(row.transformers, {**slots, "part": part, "layer": str(number)}),
                    shape=tuple(dims[name] for name in named),
                )
