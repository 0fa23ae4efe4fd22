"""`inspect` and `convert` give the same numbers of parameters, and name what makes one of them of the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import HIDDEN, INTERMEDIATE, OPTIONS, POSITIONS, ROWS, Checkpoint, E, add_head, weights
from places import FIXTURES
from transformers import AutoModelForMaskedLM

from hf_xlmr.conversion import convert, inspect
from hf_xlmr.errors import WeightsMismatch

TYPES = "roberta.embeddings.token_type_embeddings.weight"
LM_HEAD = HIDDEN * HIDDEN + 3 * HIDDEN + ROWS
LAYER = 4 * (HIDDEN * HIDDEN + HIDDEN) + 4 * HIDDEN + 2 * HIDDEN * INTERMEDIATE + HIDDEN + INTERMEDIATE
Model = dict[str, torch.Tensor]


def untied(model: Model) -> None:
    model["encoder.lm_head.weight"] = torch.randn(ROWS, HIDDEN)


def spectral(model: Model) -> None:
    add_head(model, "x")
    matrix = model.pop("classification_heads.x.out_proj.weight")
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    parts = {"weight_orig": matrix, "weight_u": u[:, 0], "weight_v": v[0]}
    model.update({f"classification_heads.x.out_proj.{part}": value for part, value in parts.items()})
    assert s[0] > 0


CASES: dict[str, tuple[Callable[[Model], object], dict[str, Any], dict[str, int]]] = {
    "tied": (lambda model: None, {}, {TYPES: HIDDEN}),
    "untied": (untied, {"untie_weights_roberta": True}, {TYPES: HIDDEN, "lm_head.decoder.bias": ROWS}),
    "a classifier": (
        lambda model: add_head(model, "x"),
        {"task": "sentence_prediction"},
        {TYPES: HIDDEN, "encoder.lm_head.bias": -LM_HEAD},
    ),
    "one of two classifiers": (
        lambda model: [add_head(model, name) for name in "xy"],
        {"task": "sentence_prediction", "classification_head_name": "y"},
        {
            TYPES: HIDDEN,
            "encoder.lm_head.bias": -LM_HEAD,
            "classification_heads.x.dense.bias": -(HIDDEN + 4) * HIDDEN - 3,
        },
    ),
    "spectral norm": (
        spectral,
        {"task": "sentence_prediction"},
        {
            TYPES: HIDDEN,
            "encoder.lm_head.bias": -LM_HEAD,
            "classification_heads.x.out_proj.weight_orig": -(3 * HIDDEN + 3 + HIDDEN),
            "classifier.out_proj.weight": 3 * HIDDEN,
        },
    ),
    "scaled embeddings": (
        lambda model: None,
        {"no_scale_embedding": False},
        {TYPES: HIDDEN, "lm_head.decoder.weight": ROWS * HIDDEN, "lm_head.decoder.bias": ROWS},
    ),
    "sinusoids": (
        lambda model: model.pop(f"{E}embed_positions.weight"),
        {"encoder_learned_pos": False},
        {TYPES: HIDDEN, "roberta.embeddings.position_embeddings.weight": POSITIONS * HIDDEN},
    ),
    "pruned": (lambda model: None, {"encoder_layers_to_keep": "1"}, {TYPES: HIDDEN, f"{E}layers.0.fc1.bias": -LAYER}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_difference_is_named(case: str, tmp_path: Path) -> None:
    change, options, expected = CASES[case]
    model = weights()
    change(model)
    folder = Checkpoint(model=model, options={**OPTIONS, **options}).write(tmp_path / "model")
    report, inspected = convert(folder, tmp_path / "out", verify=False), inspect(folder)
    found = {each.names[0]: each.parameters for each in report.differences}
    assert found == expected
    assert report.parameters == report.source_parameters + sum(expected.values())
    assert (inspected.parameters, inspected.output_parameters) == (report.source_parameters, report.parameters)
    assert inspected.differences == report.differences
    assert all(each.reason for each in report.differences)


def test_rows_for_pieces_that_the_dictionary_lacks_are_named(tmp_path: Path) -> None:
    report, inspected = convert(FIXTURES / "v0122", tmp_path / "out", verify=False), inspect(FIXTURES / "v0122")
    loaded = AutoModelForMaskedLM.from_pretrained(report.output)
    assert report.parameters == sum(each.numel() for each in loaded.parameters()) == inspected.output_parameters
    (grown,) = [each for each in report.differences if "dictionary lacks" in each.reason]
    assert grown.names == ("lm_head.bias", "roberta.embeddings.word_embeddings.weight")
    rows = loaded.config.vocab_size - inspected.embedding_rows
    assert grown.parameters == rows * (loaded.config.hidden_size + 1) > 0


def test_what_convert_would_refuse_becomes_nothing(tmp_path: Path) -> None:
    """A weight too many, also in the masked-LM head, and a dictionary of another model."""
    for name in (f"{E}layers.0.gate", "encoder.lm_head.gate"):
        model = weights()
        model[name] = torch.ones(2)
        folder = Checkpoint(model=model).write(tmp_path / name)
        with pytest.raises(WeightsMismatch, match=name):
            convert(folder, tmp_path / "out")
        inspected = inspect(folder)
        assert (inspected.class_name, inspected.output_parameters) == (None, None)
        assert name in inspected.reasons[0]
    other = Checkpoint(symbols=("a", "b")).write(tmp_path / "other")
    assert "do not belong together" in inspect(other).reasons[0]
