"""Checkpoints that were written in parts: Megatron's partitions and FSDP's shards, put together without being held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Final

from hf_xlmr.conversion.checkpoint.templates import match
from hf_xlmr.conversion.checkpoint.weights import JoinedColumns, JoinedRows, Stored, Weight
from hf_xlmr.errors import IntegrityError, WeightsMismatch

__all__ = ["join_partitions", "join_shards", "raise_if_partial", "same_bytes"]

LAYER: Final = "encoder.sentence_encoder.layers.{layer}."

# fairseq/model_parallel: which layers are split over ranks, and on which axis; all others are whole on every rank
SPLIT_ON_ROWS: Final = (
    "encoder.sentence_encoder.embed_tokens.weight",
    LAYER + "self_attn.q_proj.{part}",
    LAYER + "self_attn.k_proj.{part}",
    LAYER + "self_attn.v_proj.{part}",
    LAYER + "fc1.{part}",
    "encoder.lm_head.weight",
    "encoder.lm_head.dense.{part}",
    "classification_heads.{head}.dense.{part}",
)
SPLIT_ON_COLUMNS: Final = (
    LAYER + "self_attn.out_proj.weight",
    LAYER + "fc2.weight",
)
LARGEST_SIZE: Final = 1 << 40
MOST_NAMES: Final = 100_000
SQUARE: Final = "encoder.lm_head.dense.weight"  # split on rows, so its height says whether all ranks are there


def join_partitions(partitions: Sequence[Mapping[str, Weight]]) -> dict[str, Weight]:
    """The weights of Megatron's ranks, in rank order and under the newest names, as one.

    Raises WeightsMismatch if the ranks hold different names, IntegrityError if what should be equal is not.
    """
    common = set(partitions[0]).intersection(*partitions)
    uneven = sorted(set(partitions[0]).union(*partitions) - common)
    if uneven:
        raise WeightsMismatch(missing=[f"{name} (not in every part)" for name in uneven])
    return {name: _joined(name, [partition[name] for partition in partitions]) for name in partitions[0]}


def raise_if_partial(weights: Mapping[str, Weight], *, parts: int) -> None:
    """Raise IntegrityError if weights of the checkpoint's `parts` are missing or too many."""
    shape: tuple[int, ...] = weights[SQUARE].shape if SQUARE in weights else ()
    if len(shape) == 2 and shape[0] != shape[1]:
        raise IntegrityError(
            f"parts of the checkpoint are missing or too many: with {parts} of them, {SQUARE} is {list(shape)}, "
            "and it must be square"
        )


def _joined(name: str, parts: list[Weight]) -> Weight:
    if any(match(template, name) is not None for template in SPLIT_ON_ROWS):
        _raise_if_uneven(name, parts, axis=0)
        return JoinedRows.of(parts)
    if any(match(template, name) is not None for template in SPLIT_ON_COLUMNS):
        _raise_if_uneven(name, parts, axis=1)
        columns = [part for part in parts if isinstance(part, Stored)]
        if len(columns) < len(parts):
            raise IntegrityError(f"{name} cannot be put together from its parts")
        return JoinedColumns.of(columns)
    if any(not same_bytes(parts[0], part) for part in parts[1:]):
        raise IntegrityError(f"{name} differs between the parts, which should each hold all of it")
    return parts[0]


def _raise_if_uneven(name: str, parts: list[Weight], *, axis: int) -> None:
    """Refuse parts that differ in more than their length on the axis on which they meet."""
    kinds = {(part.dtype, len(part.shape), part.shape[:axis], part.shape[axis + 1 :]) for part in parts}
    if len(kinds) > 1 or len(parts[0].shape) <= axis:
        told = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        raise IntegrityError(f"{name} cannot be put together: its parts are {told}")


def same_bytes(one: Weight, other: Weight, *, at_most: int | None = None) -> bool:
    """Whether two weights hold the same bits, of which `at_most` the first bytes are read.

    Where they differ, damage is ruled out first. Raises IntegrityError.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if isinstance(one, Stored) and isinstance(other, Stored):
        if one.same_place(other):
            return True
        sums = one.whole_crc32, other.whole_crc32
        if None not in sums and sums[0] != sums[1]:
            return False
    alike = _begin_alike(one, other, one.nbytes if at_most is None else min(at_most, one.nbytes))
    for weight in (one, other):
        if not alike and at_most is None and isinstance(weight, Stored):
            weight.confirm()
    return alike


def _begin_alike(one: Weight, other: Weight, left: int) -> bool:
    """Whether the first `left` bytes are equal, whatever the blocks they come in."""
    ours, theirs = one.blocks(), other.blocks()
    mine, yours = memoryview(b""), memoryview(b"")
    while left > 0:
        mine, yours = mine or next(ours), yours or next(theirs)
        size = min(len(mine), len(yours))
        if bytes(mine[:size]) != bytes(yours[:size]):  # views compare element by element
            return False
        mine, yours, left = mine[size:], yours[size:], left - size
    return True


@dataclass(frozen=True)
class _FlatParameter:
    """What fairscale's metadata says of one flat parameter: the parameters in it, in order, and each rank's padding."""

    key: str
    path: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    numels: tuple[object, ...] | None
    paddings: tuple[object, ...]
    is_replicated: bool


def join_shards(shards: Sequence[Mapping[str, Weight]], metadata: Sequence[object]) -> dict[str, Weight]:
    """The weights of FSDP's ranks, in rank order, cut out of their flat parameters by the ranks' `metadata`.

    Follows fairscale's `FullyShardedDataParallel.consolidate_shard_weights`. Raises IntegrityError.
    """
    try:
        described = [_of_rank(each) for each in metadata]
        whole: dict[str, Weight] = {}
        for flat in _flat_parameters(described):
            whole |= _cut(flat, shards)
        for source, copy in _shared(described[0]):
            whole[copy] = whole[source]
        for name in _names(described[0].get("buffer_names", ())):
            whole.setdefault(name, shards[0][name])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise IntegrityError(f"the shards and their metadata do not fit together: {error!r}") from error
    return whole


def _of_rank(metadata: object) -> dict[str, object]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("param_metadata"), list):
        raise ValueError("a shard without param_metadata")
    return metadata


def _names(value: object) -> list[str]:
    return [_text(name) for name in value] if isinstance(value, (list, tuple)) else []


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a name that is not a text")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        type(size) is int and 0 <= size < LARGEST_SIZE for size in value
    ):
        raise ValueError("a shape of something else than sizes")
    return tuple(value)


def _flat_parameters(described: Sequence[Mapping[str, object]]) -> Iterator[_FlatParameter]:
    left = MOST_NAMES
    for index, module in enumerate(map(_mapping, _listed(described[0]["param_metadata"]))):
        path = _text(module["fsdp_path"])
        for key, value in _mapping(module["params"]).items():
            about = _mapping(value)
            names = _listed(about["names"])
            left -= 1 + len(names)
            if left < 0:  # one long list can be referred to again and again
                raise ValueError(f"more than {MOST_NAMES} parameters")
            modules = [_mapping(_listed(each["param_metadata"])[index]) for each in described]
            ranks = [_mapping(_mapping(each["params"])[key]) for each in modules]
            yield _FlatParameter(
                key=f"{path}.{key}" if path else key,
                path=path,
                names=tuple(map(_text, names)),
                shapes=tuple(map(_sizes, _listed(about["shapes"]))),
                numels=tuple(_listed(about["numels"])) if "numels" in about else None,
                paddings=tuple(rank["padding"] for rank in ranks),
                is_replicated=bool(module.get("no_broadcast_optim_state", False)),
            )


def _mapping(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("metadata of an unknown form")
    return value


def _listed(value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("metadata of an unknown form")
    return value


def _cut(flat: _FlatParameter, shards: Sequence[Mapping[str, Weight]]) -> dict[str, Weight]:
    """The parameters inside one flat parameter that is spread over ranks."""
    ranks = shards[:1] if flat.is_replicated else shards
    runs = [_unpadded(shard[flat.key], padding) for shard, padding in zip(ranks, flat.paddings, strict=False)]
    sizes = [prod(shape) for shape in flat.shapes]
    _raise_if_misfit(flat, runs, sizes)
    starts = list(accumulate(sizes, initial=0))[:-1]
    return {
        f"{flat.path}.{name}" if flat.path else name: _between(runs, start, shape)
        for name, start, shape in zip(flat.names, starts, flat.shapes, strict=True)
    }


def _raise_if_misfit(flat: _FlatParameter, runs: Sequence[Stored], sizes: list[int]) -> None:
    """Refuse what fairscale cannot have written: it cuts by torch.chunk and pads to the first rank's length."""
    lengths, total = [run.shape[0] for run in runs], sum(sizes)
    if sum(lengths) != total:
        raise ValueError(f"{flat.key} holds {sum(lengths)} values, its parts {total}")
    each = -(-total // len(runs))
    if lengths != [max(0, min(each, total - rank * each)) for rank in range(len(runs))]:
        raise ValueError(f"the padding of {flat.key} is on the wrong rank ({lengths} values are left)")
    if flat.numels is not None and list(flat.numels) != sizes:
        raise ValueError(f"the sizes of what is in {flat.key} differ from the shapes")
    if len({run.dtype for run in runs}) > 1:
        raise ValueError(f"{flat.key} has different types on different ranks")


def _unpadded(run: Weight, padding: object) -> Stored:
    if not isinstance(run, Stored) or len(run.shape) != 1:
        raise ValueError("a flat parameter that is not flat")
    if type(padding) is not int or not 0 <= padding <= run.shape[0]:
        raise ValueError("a padding that does not fit")
    return run.rows(0, run.shape[0] - padding)


def _between(runs: Sequence[Stored], start: int, shape: tuple[int, ...]) -> Weight:
    """The values from `start` on that make `shape`, out of runs that follow each other."""
    stop, begin = start + prod(shape), 0
    parts: list[Stored] = []
    for run in runs:
        low, high = max(start - begin, 0), min(stop - begin, run.shape[0])
        parts += [run.rows(low, high)] if low < high else []
        begin += run.shape[0]
    if len(parts) == 1:
        return replace(parts[0], shape=shape, stride=tuple(prod(shape[axis + 1 :]) for axis in range(len(shape))))
    return JoinedRows(dtype=runs[0].dtype, shape=shape, parts=tuple(parts))


def _shared(metadata: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Pairs of names that share one parameter: the one that holds it, and the one that borrows it."""
    for module in map(_mapping, _listed(metadata["param_metadata"])):
        path = _text(module["fsdp_path"])
        for source, copy in _pairs(module.get("shared_param_info", ())):
            yield (f"{path}.{source}", f"{path}.{copy}") if path else (source, copy)


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(_text(first), _text(second)) for first, second in value] if isinstance(value, (list, tuple)) else []
