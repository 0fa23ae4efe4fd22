"""The Transformers configuration of an architecture, with every field that matters written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hf_xlmr.conversion.mapping.architecture import Architecture
from hf_xlmr.model.families import Task

__all__ = ["TRANSFORMERS_LAYOUT", "SpecialIds", "config_of"]

TRANSFORMERS_LAYOUT: Final = "5.0.0"
"""The release whose layout of files a folder has.

Where none is named, releases from 5.0 to 5.22 take any large vocabulary for a Mistral's, and warn that "this will
lead to incorrect tokenization" (tokenization_utils_tokenizers.py, `_patch_mistral_regex`).
"""


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the special symbols, by fairseq's dictionary."""

    bos: int = 0
    pad: int = 1
    eos: int = 2


def config_of(
    architecture: Architecture, *, vocabulary: int, ids: SpecialIds, dtype: str, labels: Sequence[str] = ()
) -> dict[str, object]:
    """The content of `config.json`; `vocabulary` counts all rows, `labels` name the classes if they are known.

    Defaults of Transformers that are wrong for XLM-R (eps, token types, positions, the head's dropout) are overridden
    by what fairseq fixes in its code (LayerNorm's eps is 1e-5 everywhere).
    """
    fields: dict[str, object] = {
        "architectures": [architecture.class_name],
        "attention_probs_dropout_prob": architecture.attention_dropout,
        "bos_token_id": ids.bos,
        "classifier_dropout": architecture.head_dropout,
        "dtype": dtype,
        "eos_token_id": ids.eos,
        "hidden_act": architecture.activation,
        "hidden_dropout_prob": architecture.dropout,
        "hidden_size": architecture.hidden,
        "initializer_range": 0.02,
        "intermediate_size": architecture.intermediate,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": architecture.positions,
        "model_type": architecture.family.model_type,
        "num_attention_heads": architecture.attention_heads,
        "num_hidden_layers": len(architecture.layers),
        "pad_token_id": ids.pad,
        "position_embedding_type": "absolute",  # which Transformers 5 ignores, and converters of other runtimes ask for
        "tie_word_embeddings": architecture.is_tied,
        "transformers_version": TRANSFORMERS_LAYOUT,
        "type_vocab_size": 1,
        "vocab_size": vocabulary,
    }
    if (adapters := architecture.adapters) is not None:
        fields |= {"pre_norm": architecture.family.norms_first, **adapters.fields}
    return dict(sorted((fields | _label_fields(architecture, labels)).items()))


def _label_fields(architecture: Architecture, labels: Sequence[str]) -> dict[str, object]:
    if architecture.task is not Task.SEQUENCE_CLASSIFICATION:
        return {}
    names = list(labels) or [f"LABEL_{index}" for index in range(architecture.labels)]
    fields: dict[str, object] = {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if architecture.is_regression:
        return fields | {"problem_type": "regression"}
    return fields | ({"problem_type": "multi_label_classification"} if architecture.is_multi_label else {})
