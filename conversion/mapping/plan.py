"""The plan of a conversion: every weight of the output, where its bytes come from, and what became of every name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import log, sqrt
from typing import TYPE_CHECKING, Final

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.conversion.checkpoint.templates import fill, match
from hf_xlmr.conversion.checkpoint.weights import (
    Cast,
    Computed,
    Constant,
    JoinedRows,
    Stored,
    Weight,
    read_array,
    read_rows,
)
from hf_xlmr.conversion.mapping.architecture import GLANCE_BYTES, Architecture
from hf_xlmr.conversion.mapping.weight_map import DECODER_BIAS, TOKEN_TYPES, Placement, placements, rows_of
from hf_xlmr.errors import WeightsMismatch
from hf_xlmr.model.families import Task

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NEVER_PREDICTED", "Difference", "WeightPlan", "parameters_of", "placements_of", "plan_weights"]

E: Final = "encoder.sentence_encoder."
EMBEDDING: Final = E + "embed_tokens.weight"
POSITIONS: Final = E + "embed_positions.weight"
LM_WEIGHT: Final = "encoder.lm_head.weight"
LM_BIAS: Final = "encoder.lm_head.bias"
UNKNOWN_ROW: Final = 3  # <unk> in every fairseq dictionary
PADDING_ROW: Final = 1
BESIDE: Final = "outside of fairseq's model, and unknown to hf_xlmr; it was not asked for"
NEVER_PREDICTED: Final = -10_000.0  # exp() of it is 0 in every dtype, and float16 holds it


@dataclass(frozen=True)
class Difference:
    """Parameters that the output has more than the checkpoint, or fewer if the number is below 0, and why."""

    parameters: int
    names: tuple[str, ...]
    """Transformers' names of what was made, fairseq's of what was left behind."""
    reason: str


@dataclass(frozen=True)
class WeightPlan:
    """What will be written, under Transformers' names, and the account of every name on either side."""

    weights: dict[str, Weight]
    mapped: dict[str, str]
    """fairseq's names to Transformers'."""
    dropped: dict[str, str]
    """Names in the file that are left behind, each with its reason."""
    made: dict[str, str]
    """Transformers' names without a fairseq weight, each with what they hold."""
    source_parameters: int
    """The numbers of the network in the checkpoint: a tied matrix counts once, and what is `dropped` from it too."""
    differences: tuple[Difference, ...]
    """What makes `parameters` of `source_parameters`."""

    @property
    def parameters(self) -> int:
        """The numbers of all weights together."""
        return sum(weight.count for weight in self.weights.values())

    @property
    def rounded(self) -> tuple[str, ...]:
        """Transformers' names of what fairseq computes in float32 as it runs, and what is half as precise here.

        Sinusoids, embeddings times the root of the width, and the matrix of a spectral norm.
        """
        half = {name: weight for name, weight in self.weights.items() if weight.dtype in ("float16", "bfloat16")}
        return tuple(name for name, weight in half.items() if _is_computed(weight))

    @property
    def nbytes(self) -> int:
        """The bytes of all weights together."""
        return sum(weight.nbytes for weight in self.weights.values())


def plan_weights(
    checkpoint: FairseqCheckpoint, architecture: Architecture, *, extra_rows: int = 0, dtype: str | None = None
) -> WeightPlan:
    """Place every weight of the architecture; `dtype` None keeps each as stored.

    `extra_rows` copies of `<unk>`'s row follow fairseq's own, for pieces that the dictionary lacks. Raises
    WeightsMismatch with all names that are missing, left over or of the wrong shape.
    """
    available, replaced = _available(checkpoint, architecture)
    if dtype is not None:  # what is computed is rounded once, to that
        computed = {name: weight for name, weight in available.items() if isinstance(weight, Computed)}
        available |= {name: replace(weight, dtype="float32") for name, weight in computed.items()}
    placed = list(placements_of(architecture, _slots(architecture)))
    wanted = {each.fairseq for each in placed}
    left = {name: _left_out(name, architecture) for name in available if name not in wanted}
    _raise_if_unbalanced(available, placed, left)
    weights = {each.transformers: _adjusted(each, available, architecture, extra_rows) for each in placed}
    made = dict(_made(architecture, weights, available[EMBEDDING].dtype))
    weights |= {name: weight for name, (weight, _what) in made.items()}
    mapped = {each.fairseq: each.transformers for each in placed if each.fairseq in checkpoint.weights}
    gone = {**replaced, **{name: str(reason) for name, reason in left.items()}}
    notes = {name: what for name, (_weight, what) in made.items()} | _computed_notes(architecture, extra_rows)
    return WeightPlan(
        weights=dict(sorted(_cast(weights, dtype).items())),
        mapped=mapped,
        dropped={**checkpoint.dropped, **dict.fromkeys(checkpoint.beside, BESIDE), **gone},
        made=notes,
        source_parameters=parameters_of(checkpoint),
        differences=_grouped(_differences(checkpoint, weights, mapped, gone, notes)),
    )


def placements_of(architecture: Architecture, slots: Mapping[str, str]) -> Iterator[Placement]:
    """Every weight of the architecture; `slots` gives the `base` and the `head` of its names."""
    has_norm = architecture.adapters is not None and architecture.adapters.has_own_norm
    rows = rows_of(architecture.family, architecture.task, is_tied=architecture.is_tied, has_adapter_norm=has_norm)
    yield from placements(
        rows, layers=architecture.layers, slots=slots, dims=architecture.dims, languages=architecture.languages
    )


def _slots(architecture: Architecture) -> dict[str, str]:
    return {"base": architecture.family.base_prefix(architecture.task), "head": architecture.head or ""}


def _cast(weights: Mapping[str, Weight], dtype: str | None) -> dict[str, Weight]:
    return {name: weight if dtype is None else Cast.to(dtype, weight, name=name) for name, weight in weights.items()}


# ---- what the file offers, beyond its own names ----------------------------------------------------------------------


def _available(checkpoint: FairseqCheckpoint, architecture: Architecture) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights that placements may ask for, and the names that went into computed ones."""
    available = dict(checkpoint.weights)
    replaced: dict[str, str] = {}
    if architecture.position_kind != "learned":
        available[POSITIONS] = _position_table(architecture, available[EMBEDDING].dtype)
    if architecture.scales_embedding:
        available.setdefault(LM_WEIGHT, available[EMBEDDING])
        available[EMBEDDING] = _scaled(available[EMBEDDING], sqrt(architecture.hidden))
    if architecture.head is not None:
        replaced = resolve_spectral_norm(available, f"classification_heads.{architecture.head}.out_proj")
    return available, replaced


def resolve_spectral_norm(available: dict[str, Weight], layer: str) -> dict[str, str]:
    """Put the effective matrix of a spectrally normalised layer in place of its three parts."""
    names = [f"{layer}.weight_orig", f"{layer}.weight_u", f"{layer}.weight_v"]
    if f"{layer}.weight" in available or not all(name in available for name in names):
        return {}
    height, width = _matrix_of(available[names[0]])
    if (available[names[1]].shape, available[names[2]].shape) != ((height,), (width,)):
        raise WeightsMismatch(wrong_shape=[f"{name} {list(available[name].shape)}" for name in names])
    original, left, right = (read_array(available.pop(name)) for name in names)
    effective = original / (left @ (original @ right))
    available[f"{layer}.weight"] = Computed("float32", effective.shape, lambda first, last: effective[first:last])
    return dict.fromkeys(names, f"folded into {layer}.weight (spectral norm)")


def _matrix_of(weight: Weight) -> tuple[int, int]:
    return (weight.shape[0], weight.shape[1]) if len(weight.shape) == 2 else (-1, -1)


def _is_computed(weight: Weight) -> bool:
    """Whether its numbers, apart from rows that were appended, are not those of the file."""
    if isinstance(weight, Cast):
        return _is_computed(weight.of)
    return _is_computed(weight.parts[0]) if isinstance(weight, JoinedRows) else isinstance(weight, Computed)


def _scaled(embedding: Weight, factor: float) -> Weight:
    def rows(first: int, last: int) -> np.ndarray:
        import numpy as np

        scaled: np.ndarray = read_rows(embedding, first, last).astype(np.float32) * np.float32(factor)
        return scaled

    return Computed(embedding.dtype, embedding.shape, rows)


def _position_table(architecture: Architecture, dtype: str) -> Weight:
    shape = (architecture.positions, architecture.hidden)
    if architecture.position_kind == "none":
        return Constant(dtype, shape)
    return Computed(dtype, shape, partial(_sinusoids, width=architecture.hidden))


def _sinusoids(first: int, last: int, *, width: int) -> np.ndarray:
    """Rows of fairseq's sinusoidal table: sines, then cosines (fairseq/modules/sinusoidal_positional_embedding.py)."""
    import numpy as np

    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-log(10000) / (half - 1)))
    angles = np.arange(first, last, dtype=np.float32)[:, None] * frequencies[None, :]
    table = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((last - first, width % 2), np.float32)], axis=1)
    if first <= PADDING_ROW < last:
        table[PADDING_ROW - first] = 0
    return table


# ---- what becomes of each name ---------------------------------------------------------------------------------------


def _left_out(name: str, architecture: Architecture) -> str | None:
    """Why a weight of the file has no place in this architecture; None if nothing explains it."""
    if name == LM_WEIGHT and architecture.is_tied and architecture.task is Task.MASKED_LM:
        return "the same as the embeddings, to which Transformers ties it"
    if name.startswith("encoder.lm_head.") and architecture.task is not Task.MASKED_LM:
        return "the masked-LM head, which this class does not have"
    if name.startswith("classification_heads.") and name.split(".")[1] != architecture.head:
        return "another classification head, which was not asked for"
    if (slots := match(E + "layers.{layer}.{any}", name)) and int(slots["layer"]) not in architecture.layers:
        return "a layer that --encoder-layers-to-keep prunes"
    return None


def _raise_if_unbalanced(
    available: Mapping[str, Weight], placed: list[Placement], left: Mapping[str, str | None]
) -> None:
    missing = [each.fairseq for each in placed if each.fairseq not in available]
    unexpected = [name for name, reason in left.items() if reason is None]
    wrong = [
        f"{each.fairseq} {list(available[each.fairseq].shape)}, expected {list(each.shape)}"
        for each in placed
        if each.fairseq in available and available[each.fairseq].shape != each.shape
    ]
    if missing or unexpected or wrong:
        raise WeightsMismatch(missing=missing, unexpected=unexpected, wrong_shape=wrong)


def _adjusted(each: Placement, available: Mapping[str, Weight], architecture: Architecture, extra: int) -> Weight:
    """The weight of a placement, with rows for the pieces that the dictionary lacks."""
    weight = available[each.fairseq]
    if extra == 0 or each.fairseq not in (EMBEDDING, LM_WEIGHT, LM_BIAS):
        return weight
    if each.fairseq == LM_BIAS:
        return JoinedRows.of([weight, Constant(weight.dtype, (extra,), NEVER_PREDICTED)])
    return JoinedRows.of([weight, _copies(weight, UNKNOWN_ROW, extra)])


def _copies(weight: Weight, index: int, count: int) -> Weight:
    """So many copies of one row of a matrix, however it is put together."""
    shape = (count, *weight.shape[1:])
    if isinstance(weight, Stored):
        return replace(weight.rows(index, index + 1), shape=shape, stride=(0, *weight.stride[1:]))

    def rows(first: int, last: int) -> np.ndarray:
        return read_rows(weight, index, index + 1).repeat(last - first, axis=0)

    return Computed(weight.dtype, shape, rows)


def _made(
    architecture: Architecture, weights: Mapping[str, Weight], dtype: str
) -> Iterator[tuple[str, tuple[Weight, str]]]:
    """The weights that Transformers has and fairseq does not."""
    name = fill(TOKEN_TYPES, _slots(architecture))
    yield name, (Constant(dtype, (1, architecture.hidden)), "zeros: fairseq has no token types")
    if architecture.task is Task.MASKED_LM and not architecture.is_tied:
        yield DECODER_BIAS, (weights["lm_head.bias"], "the same as lm_head.bias")


def _computed_notes(architecture: Architecture, extra_rows: int) -> dict[str, str]:
    base = _slots(architecture)["base"]
    notes: dict[str, str] = {}
    if architecture.position_kind != "learned":
        notes[f"{base}embeddings.position_embeddings.weight"] = f"fairseq's {architecture.position_kind} positions"
    if architecture.scales_embedding:
        notes[f"{base}embeddings.word_embeddings.weight"] = "fairseq's embeddings times the root of the width"
    if extra_rows:
        notes[f"{base}embeddings.word_embeddings.weight (last rows)"] = f"{extra_rows} copies of <unk>'s row"
    return notes


# ---- the numbers of parameters on either side ------------------------------------------------------------------------


def parameters_of(checkpoint: FairseqCheckpoint) -> int:
    """The numbers of the network in a checkpoint: a tied matrix counts once, what is not part of it does not."""
    return sum(_counts(checkpoint).values())


def _counts(checkpoint: FairseqCheckpoint) -> dict[str, int]:
    """The numbers of each weight, 0 for a matrix that is the embeddings again, by its beginning."""
    weights = checkpoint.weights
    counts = {name: weight.count for name, weight in weights.items()}
    if {EMBEDDING, LM_WEIGHT} <= counts.keys():
        is_tied = same_bytes(weights[EMBEDDING], weights[LM_WEIGHT], at_most=GLANCE_BYTES)
        counts[LM_WEIGHT] = 0 if is_tied else counts[LM_WEIGHT]
    return counts


def _differences(
    checkpoint: FairseqCheckpoint,
    weights: Mapping[str, Weight],
    mapped: Mapping[str, str],
    gone: Mapping[str, str],
    made: Mapping[str, str],
) -> Iterator[Difference]:
    """The differences name by name: what was left behind, what has grown, and what was made."""
    counts = _counts(checkpoint)
    for name, reason in gone.items():
        yield Difference(-counts.get(name, 0), (name,), reason)
    for name, theirs in mapped.items():
        grown = "rows for the pieces that the dictionary lacks" if counts[name] else "kept apart from the embeddings"
        yield Difference(weights[theirs].count - counts[name], (theirs,), grown)
    for theirs in weights.keys() - mapped.values():
        yield Difference(weights[theirs].count, (theirs,), made.get(theirs, "computed from what the checkpoint holds"))


def _grouped(differences: Iterable[Difference]) -> tuple[Difference, ...]:
    """The differences with one reason joined, the largest first."""
    groups: dict[tuple[str, bool], list[Difference]] = {}
    for each in differences:
        if each.parameters:
            groups.setdefault((each.reason, each.parameters > 0), []).append(each)
    joined = []
    for (reason, _is_more), group in groups.items():
        names = sorted(name for each in group for name in each.names)
        joined.append(Difference(sum(each.parameters for each in group), tuple(names), reason))
    return tuple(sorted(joined, key=lambda each: (-abs(each.parameters), each.reason)))
