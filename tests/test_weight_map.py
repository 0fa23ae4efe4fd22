"""The map gives every name of every Transformers class at full size, once, and gives fairseq's names back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from places import RUNS_RANKERS

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint
from hf_xlmr.conversion.checkpoint.templates import fill, match
from hf_xlmr.conversion.checkpoint.weights import Constant, Weight
from hf_xlmr.conversion.mapping.architecture import Architecture, Wanted, decide
from hf_xlmr.conversion.mapping.config import SpecialIds, config_of
from hf_xlmr.conversion.mapping.plan import WeightPlan, plan_weights
from hf_xlmr.conversion.mapping.weight_map import DECODER_BIAS, HEAD_ROWS, TOKEN_TYPES, Row, rows_of
from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.conversion.source.sources import SourceFiles
from hf_xlmr.model.families import FAMILIES, Family, Task

E = "encoder.sentence_encoder."
POSITIONS = 514
HEAD, LABELS = "some_task", 3


class Release(NamedTuple):
    """The sizes of a published model (fairseq/models/roberta/model_xlmr.py names them)."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    rows: int
    norms: str


RELEASES = {
    "xlmr.base": Release(12, 768, 12, 3072, 250002, "post"),
    "xlmr.large": Release(24, 1024, 16, 4096, 250002, "post"),
    "xlmr.xl": Release(36, 2560, 32, 10240, 250880, "pre"),
    "xlmr.xxl": Release(48, 4096, 32, 16384, 250880, "pre"),
    "pre-norm with embedding norm": Release(24, 1024, 16, 4096, 250002, "both"),
}
CLASSES = {"post": "XLMRoberta", "pre": "XLMRobertaXL", "both": "RobertaPreLayerNorm"}
TASKS: dict[Task, dict[str, Any]] = {
    Task.MASKED_LM: {"task": "masked_lm"},
    Task.ENCODER: {"task": "masked_lm"},
    Task.SEQUENCE_CLASSIFICATION: {"task": "sentence_prediction"},
    Task.MULTIPLE_CHOICE: {"task": "sentence_ranking"},
}


def fairseq_names(release: Release) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every weight in the state dict of fairseq's RobertaModel, as B.1 of fairseq's own naming lists them."""
    width = release.hidden
    yield f"{E}embed_tokens.weight", (release.rows, width)
    yield f"{E}embed_positions.weight", (POSITIONS, width)
    if release.norms != "pre":
        yield from both(f"{E}layernorm_embedding", width)
    if release.norms != "post":
        yield from both(f"{E}layer_norm", width)
    for number in range(release.layers):
        layer = f"{E}layers.{number}."
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from both(f"{layer}self_attn.{projection}", width, width)
        yield from both(f"{layer}self_attn_layer_norm", width)
        yield from both(f"{layer}fc1", release.intermediate, width)
        yield from both(f"{layer}fc2", width, release.intermediate)
        yield from both(f"{layer}final_layer_norm", width)
    yield from both("encoder.lm_head.dense", width, width)
    yield from both("encoder.lm_head.layer_norm", width)
    yield "encoder.lm_head.weight", (release.rows, width)
    yield "encoder.lm_head.bias", (release.rows,)


def both(name: str, out: int, *into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, *into)
    yield f"{name}.bias", (out,)


def opened(release: Release, task: Task, **options: Any) -> FairseqCheckpoint:
    """A checkpoint of full size whose weights are described and take no room."""
    shapes = dict(fairseq_names(release))
    if task in (Task.SEQUENCE_CLASSIFICATION, Task.MULTIPLE_CHOICE):
        labels = 1 if task is Task.MULTIPLE_CHOICE else LABELS
        shapes |= both(f"classification_heads.{HEAD}.dense", release.hidden, release.hidden)
        shapes |= both(f"classification_heads.{HEAD}.out_proj", labels, release.hidden)
    weights: dict[str, Weight] = {name: Constant("float32", shape) for name, shape in shapes.items()}
    part = FileSlice(Path("model.pt"), 0, 0, "model.pt")
    return FairseqCheckpoint(
        files=SourceFiles("x", "folder", (part,), None, None, None),
        format="zip",
        era="args",
        options={"encoder_attention_heads": release.heads, **TASKS[task], **options},
        weights=weights,
        raw=weights,
    )


class Planned(NamedTuple):
    architecture: Architecture
    plan: WeightPlan
    config: dict[str, object]


def planned(release: Release, task: Task, **options: Any) -> Planned:
    checkpoint = opened(release, task, **options)
    architecture = decide(checkpoint, Wanted(encoder_only=task is Task.ENCODER), reads_weights=False)
    config = config_of(architecture, vocabulary=release.rows, ids=SpecialIds(), dtype="float32")
    return Planned(architecture, plan_weights(checkpoint, architecture), config)


def meta_model(planned: Planned) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(**planned.config)
    with torch.device("meta"):
        made: torch.nn.Module = getattr(transformers, planned.architecture.class_name)(config)
    return made


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


TIED = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
ABSENT = {
    Task.MASKED_LM: TIED,
    Task.ENCODER: POOLER,
    Task.SEQUENCE_CLASSIFICATION: set[str](),
    Task.MULTIPLE_CHOICE: set[str](),
}


@pytest.mark.parametrize("task", HEAD_ROWS)
@pytest.mark.parametrize("name", RELEASES)
def test_every_weight_of_the_class_is_given_and_no_other(name: str, task: Task) -> None:
    release = RELEASES[name]
    given = planned(release, task)
    assert given.architecture.class_name == CLASSES[release.norms] + task.value
    expected = shapes_of(meta_model(given))
    if task is Task.MULTIPLE_CHOICE and release.norms == "post" and not RUNS_RANKERS:
        expected |= both("roberta.pooler.dense", release.hidden, release.hidden)
    assert expected.keys() >= ABSENT[task]
    shapes = {key: weight.shape for key, weight in given.plan.weights.items()}
    assert shapes == {key: shape for key, shape in expected.items() if key not in ABSENT[task]}


@pytest.mark.parametrize("task", HEAD_ROWS)
@pytest.mark.parametrize("name", RELEASES)
def test_every_fairseq_weight_is_accounted_for(name: str, task: Task) -> None:
    """Mapped or left behind with a reason; and the only weight that is made are the token types."""
    given = planned(RELEASES[name], task)
    plan, names = given.plan, opened(RELEASES[name], task).weights.keys()
    assert plan.mapped.keys() | plan.dropped.keys() == names
    assert not plan.mapped.keys() & plan.dropped.keys()
    left = {"encoder.lm_head.weight"} if task is Task.MASKED_LM else {n for n in names if "lm_head" in n}
    assert plan.dropped.keys() == left
    base = given.architecture.family.base_prefix(task)
    assert plan.made.keys() == {fill(TOKEN_TYPES, {"base": base})}
    assert plan.weights.keys() == set(plan.mapped.values()) | plan.made.keys()


@pytest.mark.parametrize("name", RELEASES)
def test_an_untied_head_fills_the_whole_class(name: str) -> None:
    given = planned(RELEASES[name], Task.MASKED_LM, untie_weights_roberta=True)
    assert given.config["tie_word_embeddings"] is False
    assert {key: weight.shape for key, weight in given.plan.weights.items()} == shapes_of(meta_model(given))
    assert set(given.plan.made) == {fill(TOKEN_TYPES, {"base": f"{given.architecture.family.base}."}), DECODER_BIAS}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("xlmr.base", 278_295_186), ("xlmr.large", 560_142_482), ("xlmr.xl", 3_482_741_760), ("xlmr.xxl", 10_712_994_816)],
)
def test_the_number_of_parameters(name: str, parameters: int) -> None:
    given = planned(RELEASES[name], Task.MASKED_LM)
    assert sum(weight.count for weight in given.plan.weights.values()) == parameters
    built = shapes_of(meta_model(given))  # which some releases tie only when they load a model
    assert sum(prod(shape) for name, shape in built.items() if name not in TIED) == parameters


# ---- both directions -------------------------------------------------------------------------------------------------

EVERY = [
    pytest.param(family, task, is_tied, id=f"{key} {task.value}{'' if is_tied else ' untied'}")
    for key, family in FAMILIES.items()
    for task in HEAD_ROWS
    for is_tied in ((True, False) if task is Task.MASKED_LM else (True,))
]


def names_of(rows: tuple[Row, ...], family: Family, task: Task) -> list[tuple[Row, str, str]]:
    """Every row with its names of both sides, for eleven layers (so that 1 and 10 are told apart)."""
    slots = {"base": family.base_prefix(task), "head": HEAD}
    named = []
    for row in rows:
        for part in ("weight", "bias") if "{part}" in row.fairseq else ("",):
            for layer in range(11) if "{layer}" in row.fairseq else (0,):
                full = {**slots, "part": part, "layer": str(layer), "language": "sw_KE"}
                named.append((row, fill(row.fairseq, full), fill(row.transformers, full)))
    return named


def matching(rows: tuple[Row, ...], name: str, side: int) -> dict[Row, Mapping[str, str]]:
    """The rows whose template of a side (0 fairseq's, 1 Transformers') matches, with what is in the slots."""
    return {row: slots for row in rows if (slots := match(row[side], name)) is not None}


@pytest.mark.parametrize(("family", "task", "is_tied"), EVERY)
def test_the_map_is_one_to_one(family: Family, task: Task, is_tied: bool) -> None:
    rows = rows_of(family, task, is_tied=is_tied, has_adapter_norm=family.has_adapters)
    assert len(set(rows)) == len(rows)
    named = names_of(rows, family, task)
    assert len({fairseq for _row, fairseq, _theirs in named}) == len(named)
    assert len({theirs for _row, _fairseq, theirs in named}) == len(named)
    for row, fairseq, theirs in named:
        assert list(matching(rows, fairseq, 0)) == [row], fairseq
        assert list(matching(rows, theirs, 1)) == [row], theirs


@pytest.mark.parametrize(("family", "task", "is_tied"), EVERY)
def test_read_backwards_it_gives_fairseqs_names(family: Family, task: Task, is_tied: bool) -> None:
    rows = rows_of(family, task, is_tied=is_tied, has_adapter_norm=family.has_adapters)
    for row, fairseq, theirs in names_of(rows, family, task):
        there = matching(rows, fairseq, 0)[row]
        assert fill(row.transformers, {"base": family.base_prefix(task), **there}) == theirs
        back = matching(rows, theirs, 1)[row]
        assert back.get("base", family.base_prefix(task)) == family.base_prefix(task)
        assert fill(row.fairseq, {"head": HEAD, **back}) == fairseq


@pytest.mark.parametrize(("family", "task", "is_tied"), EVERY)
def test_both_sides_have_the_same_slots(family: Family, task: Task, is_tied: bool) -> None:
    """But for `base`, which only Transformers' names have, and `head`, which only fairseq's have."""
    for row in rows_of(family, task, is_tied=is_tied, has_adapter_norm=family.has_adapters):
        ours, theirs = (set(re.findall(r"\{(\w+)\}", side)) for side in row[:2])
        assert ours - {"head"} == theirs - {"base"}, row


@pytest.mark.parametrize("made", [TOKEN_TYPES, DECODER_BIAS])
@pytest.mark.parametrize(("family", "task", "is_tied"), EVERY)
def test_what_is_made_is_in_no_row(family: Family, task: Task, is_tied: bool, made: str) -> None:
    name = fill(made, {"base": family.base_prefix(task)})
    assert not matching(rows_of(family, task, is_tied=is_tied, has_adapter_norm=family.has_adapters), name, 1)
