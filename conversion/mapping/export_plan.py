"""The plan of an export: the network that a config.json describes, and where each of fairseq's weights comes from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from hf_xlmr.conversion.checkpoint.legacy_names import RESPELLED
from hf_xlmr.conversion.checkpoint.model_folder import ModelFolder, read_json
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.conversion.checkpoint.templates import fill, match
from hf_xlmr.conversion.checkpoint.weights import FLOAT_DTYPES, Computed, Constant, Stored, Weight, read_rows
from hf_xlmr.conversion.mapping.architecture import ACTIVATIONS, Architecture
from hf_xlmr.conversion.mapping.plan import EMBEDDING, LM_BIAS, LM_WEIGHT, POSITIONS, UNKNOWN_ROW, E, placements_of
from hf_xlmr.conversion.mapping.weight_map import (
    DECODER_BIAS,
    ENCODER,
    HEAD_ROWS,
    LM_HEAD,
    TOKEN_TYPES,
    UNTIED,
    Placement,
    placements,
)
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.model.adapters import ENGLISH, Adapters, adapters_of_config, fairseq_language
from hf_xlmr.model.families import FAMILIES, POST_NORM, Family, Task, family_of
from hf_xlmr.model.model_shape import count_of, label_count

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ReversePlan", "network_of", "plan_export"]

EPS: Final = 1e-5  # fairseq's LayerNorm everywhere
PAD: Final = 1  # fairseq counts positions from the index of <pad>, which no dictionary moves
FORMAT_STAMP: Final = 3.0  # fairseq/models/transformer/transformer_encoder.py: below 2 the last layer norm is not used
SHOWN: Final = 8
BAND_BYTES: Final = 1 << 20
LARGEST_NUMBER: Final = 1e308  # of an option that is a floating-point number

# What every family's PretrainedConfig fills in if config.json is silent (Transformers 5)
DEFAULTS: Final[JsonObject] = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": PAD,
    "tie_word_embeddings": True,
}

OLD_NORM: Final = next(row for row in RESPELLED if row.then == E + "layernorm_embedding.{part}")
WORDS: Final = next(row.transformers for row in ENCODER if row.fairseq == EMBEDDING)
HEAD_BIAS: Final = next(row.transformers for row in LM_HEAD if row.fairseq == LM_BIAS)
DECODER_WEIGHT: Final = next(row.transformers for row in UNTIED if row.fairseq == LM_WEIGHT)
LM_NORM: Final = "encoder.lm_head.layer_norm.weight"
VERSION: Final = E + "version"
LEFT_BEHIND: Final = {
    "{base}pooler.dense.{part}": "a pooler, which fairseq's RoBERTa does not have",
    "{base}embeddings.position_ids": "a buffer that only counts",
    "{base}embeddings.token_type_ids": "a buffer of zeros",
}


@dataclass(frozen=True)
class ReversePlan:
    """What will be written, under fairseq's names, and the account of every name on either side."""

    weights: OrderedDict[str, Weight]
    mapped: dict[str, str]
    """Transformers' names to fairseq's."""
    dropped: dict[str, str]
    """Names in the folder that are left behind, each with its reason."""
    made: dict[str, str]
    """fairseq's names without a weight in the folder, each with what they hold."""
    notes: tuple[str, ...] = field(default=())

    @property
    def storages(self) -> tuple[Weight, ...]:
        """Each weight once, however many names share it."""
        return tuple({id(weight): weight for weight in self.weights.values()}.values())


# ---- the network -----------------------------------------------------------------------------------------------------


def network_of(config: Mapping[str, object], *, head: str) -> Architecture:
    """The network that `config` describes, its classification head (if it has one) called `head`.

    Raises InputError with every reason why fairseq cannot express it, IntegrityError where the file is damaged.
    """
    family, task = _class_of(config)
    given = {**DEFAULTS, **family.defaults, **config}
    reasons = tuple(_reasons(given, task))
    if reasons:
        raise InputError(f"fairseq cannot express this model: {'; '.join(reasons)}")
    has_head = task in (Task.SEQUENCE_CLASSIFICATION, Task.MULTIPLE_CHOICE)
    labels = label_count(given) if task is Task.SEQUENCE_CLASSIFICATION else 1
    dropout = _number(given, "hidden_dropout_prob")
    return Architecture(
        family=family,
        task=task,
        head=head if has_head else None,
        labels=labels if has_head else 0,
        is_regression=task is Task.SEQUENCE_CLASSIFICATION and _is_regression(given, labels),
        is_multi_label=task is Task.SEQUENCE_CLASSIFICATION
        and given.get("problem_type") == "multi_label_classification",
        vocabulary=count_of(given, "vocab_size"),
        hidden=count_of(given, "hidden_size"),
        intermediate=count_of(given, "intermediate_size"),
        layers=tuple(range(count_of(given, "num_hidden_layers"))),
        attention_heads=count_of(given, "num_attention_heads"),
        positions=count_of(given, "max_position_embeddings"),
        position_kind="learned",
        activation=next(name for name, theirs in ACTIVATIONS.items() if theirs == given["hidden_act"]),
        dropout=dropout,
        attention_dropout=_number(given, "attention_probs_dropout_prob"),
        head_dropout=dropout if given.get("classifier_dropout") is None else _number(given, "classifier_dropout"),
        is_tied=task is not Task.MASKED_LM or given["tie_word_embeddings"] is True,
        scales_embedding=False,
        adapters=adapters_of_config(given, hidden=count_of(given, "hidden_size")) if family.has_adapters else None,
    )


def _class_of(config: Mapping[str, object]) -> tuple[Family, Task]:
    """The family and the task of the class that `config` names. Raises InputError."""
    kind, names = str(config.get("model_type")), config.get("architectures")
    family = family_of(config)
    if family is None:
        raise InputError(
            f"config.json says model_type {kind:.40}; hf-xlmr exports {', '.join(FAMILIES)} (others have another "
            "vocabulary, or another network, than fairseq's XLM-R)"
        )
    tasks = {family.class_name(task): task for task in HEAD_ROWS}
    name = str(names[0]) if isinstance(names, list) and names else "None"
    if name not in tasks:
        raise InputError(
            f"config.json names the class {name:.60}, whose head fairseq does not have; hf-xlmr exports "
            f"{', '.join(tasks)} (the encoder of any other model can be saved by itself and exported)"
        )
    return family, tasks[name]


def _reasons(config: Mapping[str, object], task: Task) -> Iterator[str]:
    activation = config["hidden_act"]
    if activation not in ACTIVATIONS.values():
        yield f"it has no activation {activation!s:.40} (hidden_act)"
    elif task is Task.MASKED_LM and activation != "gelu":
        yield f"its masked-LM head would use {activation} like the layers, and Transformers' always uses exact GELU"
    if config["layer_norm_eps"] != EPS:
        yield f"its layer norms always have an eps of {EPS}, not {config['layer_norm_eps']!s:.40} (layer_norm_eps)"
    if config["pad_token_id"] != PAD:
        yield f"its <pad> is always {PAD}, not {config['pad_token_id']!s:.40} (pad_token_id)"
    if config.get("position_embedding_type", "absolute") != "absolute":
        yield f"it has no {config['position_embedding_type']!s:.40} positions (position_embedding_type)"
    if config.get("is_decoder") or config.get("add_cross_attention"):
        yield "its RoBERTa is not a decoder (is_decoder, add_cross_attention)"
    if config.get("quantization_config"):
        yield "the weights are quantized (quantization_config)"
    if count_of(config, "hidden_size") % max(1, count_of(config, "num_attention_heads")):
        yield f"{config['num_attention_heads']} attention heads do not divide the width {config['hidden_size']}"


def _number(config: Mapping[str, object], name: str) -> float:
    value = config[name]
    if not isinstance(value, (int, float)) or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise IntegrityError(f"config.json is damaged: {name} is {str(value)!r:.40}")
    return float(value)


def _is_regression(config: Mapping[str, object], labels: int) -> bool:
    """As Transformers decides: what config.json says, else whether there is but one output."""
    kind = config.get("problem_type")
    return kind == "regression" or (kind is None and labels == 1)


# ---- the weights -----------------------------------------------------------------------------------------------------


def plan_export(folder: ModelFolder, network: Architecture, *, rows: int) -> ReversePlan:
    """Place every weight of the folder; the embedding's first `rows` are fairseq's, and those after them are cut off.

    Raises WeightsMismatch with all names that are missing, left over or of the wrong shape, InputError.
    """
    slots = {"base": network.family.base_prefix(network.task), "head": network.head or ""}
    embedding, types = fill(WORDS, slots), fill(TOKEN_TYPES, slots)
    available = dict(folder.weights)
    dropped = _settle_head(available, embedding, network)
    placed = list(placements_of(network, slots))
    left = {name: _left_out(name) for name in available.keys() - {each.transformers for each in placed} - {types}}
    _raise_if_unbalanced(available, [*placed, _of_types(types, available, network)], left)
    weights = OrderedDict((each.fairseq, _cut(each, available[each.transformers], rows)) for each in placed)
    _raise_if_types_matter(folder, available[types])
    folded = _fold_token_type(weights, available[types], network)
    made = _complete(weights, network)
    return ReversePlan(
        weights=OrderedDict((_spelled(name, network), weight) for name, weight in weights.items()),
        mapped={each.transformers: _spelled(each.fairseq, network) for each in placed},
        dropped=dict(sorted({**dropped, **{name: str(why) for name, why in left.items()}, types: folded}.items())),
        made=made,
        notes=(*_row_notes(available[embedding], rows), *_type_notes(available[types], folded), *_head_notes(network)),
    )


def _settle_head(available: dict[str, Weight], embedding: str, network: Architecture) -> dict[str, str]:
    """Leave one matrix and one bias of the masked-LM head, and report what became of the others. Raises InputError."""
    if network.task is not Task.MASKED_LM:
        return {}
    dropped: dict[str, str] = {}
    for copy, original in ((DECODER_WEIGHT, embedding), (DECODER_BIAS, HEAD_BIAS)):
        if not network.is_tied and copy == DECODER_WEIGHT:
            continue
        if copy in available and (original not in available or not network.is_tied):
            available[original] = available.pop(copy)  # of two untied biases Transformers uses this one alone
            dropped[copy] = f"taken for {original}"
        elif copy in available:
            if not same_bytes(available.pop(copy), available[original]):
                raise InputError(
                    f"{copy} differs from {original}, although config.json ties them (tie_word_embeddings)"
                )
            dropped[copy] = f"the same as {original}"
    return dropped


def _of_types(name: str, available: Mapping[str, Weight], network: Architecture) -> Placement:
    """The token types, of which there may be any number."""
    height = available[name].shape[:1] if name in available else (1,)
    return Placement(fairseq="", transformers=name, shape=(*height, network.hidden))


def _left_out(name: str) -> str | None:
    """Why a weight of the folder has no place in fairseq's network; None if nothing explains it."""
    return next((reason for template, reason in LEFT_BEHIND.items() if match(template, name) is not None), None)


def _raise_if_unbalanced(
    available: Mapping[str, Weight], expected: list[Placement], left: Mapping[str, str | None]
) -> None:
    missing = [each.transformers for each in expected if each.transformers not in available]
    unexpected = sorted(name for name, reason in left.items() if reason is None)
    present = [(each, available[each.transformers]) for each in expected if each.transformers in available]
    wrong = [
        f"{each.transformers} {list(weight.shape)}, expected {list(each.shape)}"
        for each, weight in present
        if weight.shape != each.shape
    ]
    if missing or unexpected or wrong:
        raise WeightsMismatch(missing=missing, unexpected=unexpected, wrong_shape=wrong)
    odd = sorted({weight.dtype for _each, weight in present} - set(FLOAT_DTYPES))
    if odd:
        raise InputError(f"weights are kept as {', '.join(odd)}; save the model again in a floating-point type")


def _cut(each: Placement, weight: Weight, rows: int) -> Weight:
    """The weight without the rows that `convert` appended for pieces that the dictionary lacks."""
    if each.fairseq not in (EMBEDDING, LM_WEIGHT, LM_BIAS) or rows == weight.shape[0] or not isinstance(weight, Stored):
        return weight
    return weight.rows(0, rows)


def _raise_if_types_matter(folder: ModelFolder, types: Weight) -> None:
    """Refuse a model that distinguishes token types, as its tokenizer does. Raises InputError."""
    inputs = (read_json(folder.path / "tokenizer_config.json") or {}).get("model_input_names")
    if isinstance(inputs, list) and "token_type_ids" in inputs and _types_differ(types):
        raise InputError("fairseq cannot express this model: its tokenizer gives token types, and they differ")


def _types_differ(types: Weight) -> bool:
    rows = read_rows(types, 0, types.shape[0])
    return bool((rows[1:] != rows[:1]).any())


def _fold_token_type(weights: OrderedDict[str, Weight], types: Weight, network: Architecture) -> str:
    """Add the row that every token gets to one of the two tables; gives what became of it.

    Transformers computes (word + type) + position in float32. In the word embeddings the row gives the same sums, but
    a tied LM head would see it there.
    """
    row = read_rows(types, 0, 1)[0]
    if not row.any():
        return "zeros, which add nothing"
    target = POSITIONS if network.task is Task.MASKED_LM and network.is_tied else EMBEDDING
    weights[target] = Computed("float32", weights[target].shape, partial(_plus, weights[target], row))
    return f"no place in fairseq: the first row is added to each row of {target}"


def _plus(table: Weight, row: np.ndarray, first: int, last: int) -> np.ndarray:
    import numpy as np

    total: np.ndarray = read_rows(table, first, last).astype(np.float32) + row.astype(np.float32)
    return total


def _complete(weights: OrderedDict[str, Weight], network: Architecture) -> dict[str, str]:
    """Add the weights without which fairseq does not load; gives what they hold."""
    embedding, made = weights[EMBEDDING], dict[str, str]()
    if network.task is not Task.MASKED_LM:
        dims = {**network.dims, "vocabulary": embedding.shape[0]}
        for each in placements(LM_HEAD, layers=(), slots={}, dims=dims):
            value = 1.0 if each.fairseq == LM_NORM else 0.0
            weights[each.fairseq] = Constant(embedding.dtype, each.shape, value)
            made[each.fairseq] = "a masked-LM head that predicts nothing, since fairseq loads no model without one"
    if network.is_tied:
        weights[LM_WEIGHT] = embedding
        made[LM_WEIGHT] = "the embeddings, to which it is tied"
    if network.family.norms_first:
        weights[VERSION] = Constant("float32", (1,), FORMAT_STAMP)
        made[VERSION] = "fairseq's format stamp, without which the last layer norm is not used"
    return made


def _spelled(name: str, network: Architecture) -> str:
    """The spelling that every fairseq with this network knows: 0.10.2 has the older one, later releases read both."""
    slots = match(OLD_NORM.then, name) if network.family is POST_NORM else None
    return name if slots is None else fill(OLD_NORM.template, slots)


# ---- what a person should know ---------------------------------------------------------------------------------------


def _row_notes(embedding: Weight, rows: int) -> Iterator[str]:
    cut = embedding.shape[0] - rows
    if not cut:
        return
    trained = _departed(embedding, rows)
    yield f"The last {cut} rows of the embeddings are cut off: convert appended them for what is <unk> to fairseq."
    if trained:
        yield (
            f"{trained} of them were trained apart from the row of <unk>: on texts with their pieces fairseq now "
            "differs from the Transformers model."
        )


def _departed(embedding: Weight, rows: int) -> int:
    """How many of the rows from `rows` on differ from that of `<unk>`; some are read at a time."""
    unknown = read_rows(embedding, UNKNOWN_ROW, UNKNOWN_ROW + 1)
    step, end = max(1, BAND_BYTES // unknown.nbytes), embedding.shape[0]
    bands = (read_rows(embedding, first, min(first + step, end)) for first in range(rows, end, step))
    return sum(int((band != unknown).any(axis=1).sum()) for band in bands)


def _type_notes(types: Weight, folded: str) -> Iterator[str]:
    if EMBEDDING in folded:
        yield (
            "The first token type is not zero and was added to the word embeddings, in float32: fairseq's sums are "
            "those of Transformers, bit for bit."
        )
    elif POSITIONS in folded:
        yield (
            "The first token type is not zero and was added to the position embeddings, in float32, since the LM head "
            "shares the word embeddings: fairseq adds the same three numbers in another order, and only rounding "
            "differs."
        )
    if _types_differ(types):
        yield "Token types other than the first are left behind: fairseq gives every token the same."


def _head_notes(network: Architecture) -> Iterator[str]:
    if network.task is not Task.MASKED_LM:
        yield (
            "The model has no masked-LM head, and fairseq loads none without: the checkpoint holds one that predicts "
            "nothing."
        )
    if network.adapters is not None:
        yield "fairseq loads X-MOD since 2022 (0.12.2 does, 0.10.2 does not), by XMODModel.from_pretrained."
        yield from _language_notes(network.adapters)
    elif network.family is not POST_NORM:
        yield "fairseq loads this network since February 2021 (0.12.2 does, 0.10.2 does not)."


def _language_notes(adapters: Adapters) -> Iterator[str]:
    if adapters.default not in (None, ENGLISH):
        yield f"fairseq takes {ENGLISH} where no language is given, and not {adapters.default} (default_language)."
    if ENGLISH not in adapters.languages:
        yield f"There is no {ENGLISH}, which fairseq takes where no language is given: it needs lang_id."
    if hidden := [name for name in adapters.languages if fairseq_language(name) != name]:
        yield f"fairseq never runs the adapters of {', '.join(hidden[:SHOWN])}: it takes those names for others."
