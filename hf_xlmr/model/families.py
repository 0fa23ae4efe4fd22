"""The architectures of Transformers that fairseq's encoder can become: their names, layouts and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final


class Task(Enum):
    """What a Transformers class is for; the value is the ending of its name."""

    ENCODER = "Model"
    MASKED_LM = "ForMaskedLM"
    CAUSAL_LM = "ForCausalLM"
    SEQUENCE_CLASSIFICATION = "ForSequenceClassification"
    TOKEN_CLASSIFICATION = "ForTokenClassification"
    QUESTION_ANSWERING = "ForQuestionAnswering"
    MULTIPLE_CHOICE = "ForMultipleChoice"


@dataclass(frozen=True)
class Family:
    """One architecture: the names of its classes and layer norms, and the values of fields that config.json leaves out.

    `attention_norm` and `feed_forward_norm` are names within a layer; `embedding_norm` and `final_norm` within the
    encoder, and None if it has no such norm.
    """

    model_type: str
    class_prefix: str
    base: str
    norms_first: bool
    """Whether a layer normalizes what it takes (pre-norm) and not what it gives (post-norm)."""
    attention_norm: str
    feed_forward_norm: str
    embedding_norm: str | None
    final_norm: str | None
    defaults: Mapping[str, object]
    has_adapters: bool = False
    """Whether each layer has an adapter for each language (X-MOD)."""

    @property
    def layer_norms(self) -> dict[str, str]:
        """Fairseq's names of the layer norms within a layer, with Transformers' names."""
        return {"self_attn_layer_norm": self.attention_norm, "final_layer_norm": self.feed_forward_norm}

    def class_name(self, task: Task) -> str:
        """The Transformers class for a task, for example XLMRobertaForMaskedLM."""
        return self.class_prefix + task.value

    def base_prefix(self, task: Task) -> str:
        """What precedes the encoder's names in that class: empty, or `roberta.` and the like."""
        return "" if task is Task.ENCODER else f"{self.base}."


LAYER_LINEARS: Final = (
    ("self_attn.q_proj", "attention.self.query", ("hidden", "hidden")),
    ("self_attn.k_proj", "attention.self.key", ("hidden", "hidden")),
    ("self_attn.v_proj", "attention.self.value", ("hidden", "hidden")),
    ("self_attn.out_proj", "attention.output.dense", ("hidden", "hidden")),
    ("fc1", "intermediate.dense", ("intermediate", "hidden")),
    ("fc2", "output.dense", ("hidden", "intermediate")),
)
"""fairseq's name within a layer, Transformers' name (the same in every family), and the shape of the weight."""

# The defaults are those of the configuration classes of Transformers 5.
BASE_SIZES: Final = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_BASE_FIELDS: Final = {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
_BASE_DEFAULTS: Final = {**BASE_SIZES, **_BASE_FIELDS, "hidden_act": "gelu"}
_XL_SIZES: Final = {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 10240}
_XL_FIELDS: Final = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}

POST_NORM: Final = Family(
    model_type="xlm-roberta",
    class_prefix="XLMRoberta",
    base="roberta",
    norms_first=False,
    attention_norm="attention.output.LayerNorm",
    feed_forward_norm="output.LayerNorm",
    embedding_norm="embeddings.LayerNorm",
    final_norm=None,
    defaults={**_BASE_DEFAULTS, "vocab_size": 30522},
)
PRE_NORM: Final = Family(
    model_type="xlm-roberta-xl",
    class_prefix="XLMRobertaXL",
    base="roberta",
    norms_first=True,
    attention_norm="attention.self_attn_layer_norm",
    feed_forward_norm="LayerNorm",
    embedding_norm=None,
    final_norm="encoder.LayerNorm",
    defaults={**_XL_SIZES, **_XL_FIELDS, "vocab_size": 250880},
)
PRE_NORM_WITH_EMBEDDING_NORM: Final = Family(
    model_type="roberta-prelayernorm",
    class_prefix="RobertaPreLayerNorm",
    base="roberta_prelayernorm",
    norms_first=True,
    attention_norm="attention.LayerNorm",
    feed_forward_norm="intermediate.LayerNorm",
    embedding_norm="embeddings.LayerNorm",
    final_norm="LayerNorm",
    defaults={**_BASE_DEFAULTS, "vocab_size": 50265},
)
XMOD: Final = replace(
    POST_NORM,
    model_type="xmod",
    class_prefix="Xmod",
    defaults={
        **POST_NORM.defaults,
        "pre_norm": False,
        "adapter_reduction_factor": 2,
        "adapter_layer_norm": False,
        "adapter_reuse_layer_norm": True,
        "ln_before_adapter": True,
        "languages": ["en_XX"],
        "default_language": None,
    },
    has_adapters=True,
)
XMOD_PRE_NORM: Final = replace(XMOD, norms_first=True, final_norm="encoder.LayerNorm")
"""X-MOD's other layout: the same names, and a norm at the end."""
FAMILIES: Final = {family.model_type: family for family in (POST_NORM, PRE_NORM, PRE_NORM_WITH_EMBEDDING_NORM, XMOD)}
"""By the model_type of config.json, for what each has in all its layouts: `family_of` knows the layout, too."""


def family_of(config: Mapping[str, object]) -> Family | None:
    """The family of a config.json in the layout that it has; None for a model_type that is not XLM-R's."""
    family = FAMILIES.get(str(config.get("model_type")))
    return XMOD_PRE_NORM if family is XMOD and config.get("pre_norm") is True else family
