"""A model is known by what it computes with: any small tensor, any large one that was trained, and all its words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.model.fingerprint import SMALL, WHOLE, fingerprint

WEIGHTS = "model.safetensors"
LARGE = (9 * SMALL // 1024, 256)  # of float32: 9 MiB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One with all files that count, and weights of which some are too large to be read in whole."""
    folder = tmp_path / "model"
    (folder / "fairseq").mkdir(parents=True)
    for name in WHOLE:
        (folder / name).write_text(f"what {name} holds", encoding="utf-8")
    draw = torch.Generator().manual_seed(1)
    shapes = {"embeddings": LARGE, "0.dense": LARGE, "0.bias": (64,), "0.norm": (64,), "1.dense": (64, 64)}
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, folder / WEIGHTS)
    return folder


def changed(folder: Path, name: str, place: object, by: float) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[name][place] += by
    save_file(weights, folder / WEIGHTS)


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("about it", encoding="utf-8")
    assert fingerprint(tmp_path / "copy") == fingerprint(folder)


@pytest.mark.parametrize("name", ["0.bias", "0.norm", "1.dense"])
@pytest.mark.parametrize("place", [0, 37, -1])
def test_one_number_of_a_small_tensor_counts(folder: Path, name: str, place: int) -> None:
    """As when biases alone are trained."""
    before = fingerprint(folder)
    changed(folder, name, place, 1e-3)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", ["embeddings", "0.dense"])
@pytest.mark.parametrize("place", [slice(None), slice(2), slice(-1, None)], ids=["all", "first", "last"])
def test_a_large_tensor_that_was_trained_counts(folder: Path, name: str, place: slice) -> None:
    """The first rows of the embedding are those of <s> and <pad>, and every text has <s>."""
    before = fingerprint(folder)
    changed(folder, name, place, 1e-3)
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("is_lost", [False, True])
def test_config_dictionary_and_tokenizer_count(folder: Path, name: str, is_lost: bool) -> None:
    before = fingerprint(folder)
    (folder / name).unlink() if is_lost else (folder / name).write_text(f"What {name} holds", encoding="utf-8")
    assert fingerprint(folder) != before


def test_weights_in_several_files_count(folder: Path) -> None:
    weights, seen = load_file(folder / WEIGHTS), {fingerprint(folder)}
    (folder / WEIGHTS).unlink()
    for by in (0, 1e-3):
        save_file({"embeddings": weights["embeddings"]}, folder / "model-00001-of-00002.safetensors")
        save_file({"0.bias": weights["0.bias"] + by}, folder / "model-00002-of-00002.safetensors")
        seen.add(fingerprint(folder))
    assert len(seen) == 3


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 9, b"\x02" + bytes(7) + b"[]", bytes([8, *bytes(7)])])
def test_what_is_not_safetensors_is_told(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors is (truncated or )?damaged: its header"):
        fingerprint(folder)


def test_weights_that_cannot_be_read_are_told(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(InputError, match=r"Is a directory .*model\.safetensors"):
        fingerprint(folder)
