"""A fairseq checkpoint, opened but not loaded: its options, its weights under the newest names, and what is left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.containers import ITEM_SIZES, Container, open_container
from hf_xlmr.conversion.checkpoint.legacy_names import ANCHORS, Canonical, canonical, drop_reason, is_beside
from hf_xlmr.conversion.checkpoint.options import Options, options_of
from hf_xlmr.conversion.checkpoint.parallel_parts import join_partitions, join_shards, raise_if_partial
from hf_xlmr.conversion.checkpoint.pickles import Inert, TensorRef
from hf_xlmr.conversion.checkpoint.weights import Constant, Stored, Weight
from hf_xlmr.conversion.source.other_formats import kind_of_names
from hf_xlmr.conversion.source.sources import SourceFiles, open_source
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.progress import SILENT, Progress

__all__ = ["FairseqCheckpoint", "open_checkpoint"]

EMBEDDING: Final = ANCHORS[0]
HEAD: Final = "classification_heads."
LAYER: Final = re.compile(r"encoder\.sentence_encoder\.layers\.([0-9]{1,4})\.(.+)")
DEEPEST_WRAPPER: Final = 8
SHARD_METADATA: Final = ("fsdp_metadata", "shard_metadata")


@dataclass(frozen=True)
class FairseqCheckpoint:
    """An opened checkpoint; `weights` are under fairseq's newest names and give their bytes when asked."""

    files: SourceFiles
    format: str
    """The container: zip or legacy."""
    era: str
    """How the options were kept: args, cfg, omegaconf or none."""
    options: Options
    """The options of these weights; empty if they contradict the weights."""
    weights: Mapping[str, Weight]
    raw: Mapping[str, Weight]
    """The same as the file spells them (parts of Megatron's already joined)."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Names in the file that have no place, each with its reason."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Names that belong to something Transformers cannot express, each with what that is."""
    beside: tuple[str, ...] = ()
    """Names outside of fairseq's model that are known of no project."""
    contradictions: tuple[str, ...] = ()
    """Where the file's options do not describe its weights."""
    all_options: Options = field(default_factory=dict)
    """The file's options, whether they describe its weights or not."""
    has_old_embedding_norm: bool = False
    has_ema: bool = False

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the classification heads, in the file's order."""
        return tuple(self.parts_of_heads)

    @cached_property
    def parts_of_heads(self) -> Mapping[str, Mapping[str, Weight]]:
        """What each head consists of, by names such as dense.weight."""
        found: dict[str, dict[str, Weight]] = {}
        for name, weight in self.weights.items():
            if name.startswith(HEAD):
                head, _dot, part = name.removeprefix(HEAD).partition(".")
                found.setdefault(head, {})[part] = weight
        return found


@contextmanager
def open_checkpoint(
    source: str | Path,
    *,
    data: str | Path | None = None,
    ema: bool = False,
    scratch: Path | None = None,
    progress: Progress = SILENT,
) -> Iterator[FairseqCheckpoint]:
    """Open a fairseq checkpoint without running code from it and without loading its tensors.

    `source` is a folder, a `.pt` file, an archive, a release name or `demo`; `data` is a folder with other
    dictionaries than those next to it (fairseq's data-bin); `ema` takes the moving average that training kept, in place
    of the weights. A compressed archive is inflated into `scratch` (default: the system's
    temporary folder) until the context ends. Raises InputError, IntegrityError.
    """
    with open_source(source, data=data, progress=progress, scratch=scratch) as files:
        yield read_checkpoint(files, ema=ema)


def read_checkpoint(files: SourceFiles, *, ema: bool = False) -> FairseqCheckpoint:
    """The checkpoint in `files`. Raises InputError, IntegrityError."""
    containers = [open_container(part) for part in files.checkpoint]
    states = [_state_of(container) for container in containers]
    pairs = zip(states, containers, strict=True)
    stored = [_stored(_model_of(state, container, ema=ema), container) for state, container in pairs]
    options, era = options_of(states[0])
    raw, joined = _as_one(stored, states)
    contradictions = tuple(_contradictions(options, joined.weights))
    return FairseqCheckpoint(
        files=files,
        format=containers[0].format,
        era=era,
        options={} if contradictions else options,
        all_options=options,
        contradictions=contradictions,
        weights=joined.weights,
        raw=raw,
        dropped=joined.dropped,
        refused=joined.refused,
        beside=joined.beside,
        has_old_embedding_norm=joined.has_old_embedding_norm,
        has_ema=_ema_of(states[0]) is not None,
    )


def _state_of(container: Container) -> dict[object, object]:
    if not isinstance(container.value, dict):
        raise InputError(f"{container.file.name} is not a fairseq checkpoint: it holds no dictionary")
    return container.value


def _ema_of(state: Mapping[object, object]) -> dict[object, object] | None:
    extra = state.get("extra_state")
    ema = extra.get("ema") if isinstance(extra, dict) else None
    return ema if isinstance(ema, dict) and ema else None


def _model_of(state: dict[object, object], container: Container, *, ema: bool) -> dict[object, object]:
    """The dictionary of weights: fairseq's `model`, its moving average, or the whole file if it holds nothing else."""
    if ema:
        found = _ema_of(state)
        if found is None:
            raise InputError(f"{container.file.name} holds no moving average (it was not trained with --store-ema)")
        return found
    model = state.get("model", state)
    if not isinstance(model, dict) or not any(isinstance(item, TensorRef) for item in model.values()):
        keys = ", ".join(_shown(key) for key in list(state)[:8])
        raise InputError(f"{container.file.name} is not a fairseq checkpoint: it has no weights under `model` ({keys})")
    return model


def _stored(model: Mapping[object, object], container: Container) -> dict[str, Weight]:
    """The tensors of a state dict where they are. Raises IntegrityError if one is none, or beyond its storage."""
    odd: list[str] = []
    stored: dict[str, Weight] = {}
    for name, item in model.items():
        if isinstance(name, str) and isinstance(item, TensorRef):
            stored[name] = _weight(name, item, container)
        elif isinstance(name, str) and (drop_reason(name) or _is_outside(name)):
            stored[name] = Constant("float32", (0,))  # left behind with its reason, whatever it is
        else:
            odd.append(f"{_shown(name)} ({_kind(item):.80})")
    if odd:
        raise IntegrityError(f"{container.file.name} holds weights that are not plain tensors: {', '.join(odd[:8])}")
    return stored


def _is_outside(name: str) -> bool:
    """Whether a name is none of the model's, whatever a wrapper puts before those."""
    pieces = name.split(".")
    return all(is_beside(".".join(pieces[first:])) for first in range(min(len(pieces), DEEPEST_WRAPPER)))


def _shown(key: object) -> str:
    """A key for a message; what is not a text is only named by its kind, since writing it out could take for ever."""
    return key[:80] if isinstance(key, str) else f"<{type(key).__name__}>"


def _kind(item: object) -> str:
    return item.type_name if isinstance(item, Inert) else type(item).__name__


def _weight(name: str, tensor: TensorRef, container: Container) -> Stored:
    storage = tensor.storage
    record = container.storages.get(storage.key)
    if record is None:
        raise IntegrityError(f"{container.file.name} is damaged: the storage of {name} is not in it")
    if storage.dtype not in ITEM_SIZES:
        raise IntegrityError(f"{container.file.name} holds {name} in the unknown type {storage.dtype:.40}")
    geometry = (tensor.shape, tensor.stride, tensor.offset + storage.view_offset)
    return Stored.view(name, record, storage.dtype, geometry)


def _as_one(
    stored: Sequence[dict[str, Weight]], states: Sequence[Mapping[object, object]]
) -> tuple[Mapping[str, Weight], Canonical]:
    """The weights of all parts as the file spells them, and under the newest names."""
    if any("flat_param" in name for name in stored[0]):
        metadata = [next((state[key] for key in SHARD_METADATA if state.get(key)), None) for state in states]
        whole = join_shards(stored, metadata)
        return whole, _known(canonical(whole))
    parts = [_known(canonical(weights)) for weights in stored]
    joined = parts[0].weights if len(parts) == 1 else join_partitions([part.weights for part in parts])
    raise_if_partial(joined, parts=len(parts))
    if len(parts) == 1:
        return stored[0], parts[0]
    return joined, replace(parts[0], weights=joined)


def _known(found: Canonical) -> Canonical:
    """`found`, if it is a model of RoBERTa's kind at all. Raises InputError."""
    if EMBEDDING in found.weights or found.refused:
        return found
    names = [*found.weights, *found.beside]
    if kind := kind_of_names(names):
        raise InputError(f"this is {kind}")
    shown = ", ".join(names[:6])
    raise InputError(f"this is not an XLM-R or RoBERTa of fairseq's: it has no {EMBEDDING} (it has {shown}, ...)")


def _contradictions(options: Options, weights: Mapping[str, Weight]) -> Iterator[str]:
    """Where the options contradict the weights: then what only options say, such as attention heads, is wrong, too."""
    layers = {int(hit[1]) for name in weights if (hit := LAYER.fullmatch(name))}
    sizes = {
        "encoder_embed_dim": ("width", set(weights[EMBEDDING].shape[-1:]) if EMBEDDING in weights else set()),
        "encoder_layers": ("number of layers", {len(layers), *_pruned(options)} if layers else set()),
        "encoder_ffn_embed_dim": ("feed-forward width", _feed_forward_widths(weights, options)),
    }
    for option, (what, found) in sizes.items():
        told = options.get(option)
        if type(told) is int and found and told not in found:
            yield f"the options give the {what} {told}, the weights {'; '.join(map(str, sorted(found)))}"


def _pruned(options: Options) -> list[int]:
    """The number of layers that --encoder-layers-to-keep leaves, which fairseq notes before it prunes."""
    kept = options.get("encoder_layers_to_keep") or options.get("decoder_layers_to_keep")  # 0.9.0 moved it there
    return [len(set(kept.split(",")))] if isinstance(kept, str) else []


def _feed_forward_widths(weights: Mapping[str, Weight], options: Options) -> set[int]:
    """Of all layers; none if AdaPrune has removed blocks of them."""
    removed = options.get("ffn_blocks_to_remove")
    if isinstance(removed, int) and removed > 0:
        return set()
    found = (weight for name, weight in weights.items() if (hit := LAYER.fullmatch(name)) and hit[2] == "fc1.weight")
    return {weight.shape[0] for weight in found if len(weight.shape) == 2}
