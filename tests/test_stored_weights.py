"""Weights are read so that products round alike, wherever they lie in their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_xlmr.model.stored_weights
from hf_xlmr.errors import IntegrityError
from hf_xlmr.model.stored_weights import ALIGNMENT, OffloadedWeights, StoredWeight

WEIGHT = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def file_at(offset: int, folder: Path) -> Path:
    """A file in which WEIGHT begins `offset` bytes behind a multiple of 64."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [7, 5], "data_offsets": [0, WEIGHT.nbytes]}}).encode()
    header += b" " * ((offset - 8 - len(header)) % ALIGNMENT)
    path = folder / f"at-{offset}.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + WEIGHT.numpy().tobytes())
    return path


@pytest.mark.parametrize("offset", range(0, ALIGNMENT, 8))
@pytest.mark.parametrize("is_own", [False, True])
def test_weights_begin_where_products_round_alike(offset: int, is_own: bool, tmp_path: Path) -> None:
    read = StoredWeight(file_at(offset, tmp_path), "weight").on_cpu(torch.float32, is_own=is_own)
    assert torch.equal(read, WEIGHT)
    assert read.data_ptr() % ALIGNMENT == 0


def test_what_lies_right_stays_mapped_unless_it_shall_not(tmp_path: Path) -> None:
    path = file_at(0, tmp_path)
    mapped = StoredWeight(path, "weight").on_cpu(torch.float32)
    own = StoredWeight(path, "weight").on_cpu(torch.float32, is_own=True)
    with path.open("r+b") as file:
        file.seek(-WEIGHT.nbytes, 2)
        file.write(bytes(WEIGHT.nbytes))
    assert not mapped.any()
    assert torch.equal(own, WEIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("band", [1, 40, 1 << 20])
def test_bands_give_the_cast_of_the_whole(
    dtype: torch.dtype, band: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_xlmr.model.stored_weights, "BAND_BYTES", band)
    assert torch.equal(StoredWeight(file_at(8, tmp_path), "weight").on_cpu(dtype), WEIGHT.to(dtype))


@pytest.mark.parametrize("shape", [(0, 5), (5,), (1,), ()])
def test_weights_of_any_rank_are_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    weight = torch.full(shape, 1.5)
    save_file({"weight": weight}, tmp_path / "any.safetensors")
    read = StoredWeight(tmp_path / "any.safetensors", "weight").on_cpu(torch.float16, is_own=True)
    assert torch.equal(read, weight.half())


def test_offloaded_weights_are_those_kept_and_those_on_disk(tmp_path: Path) -> None:
    kept = torch.ones(2)
    on_disk = {"there": StoredWeight(file_at(8, tmp_path), "weight")}
    for is_for_cpu in (True, False):
        weights = OffloadedWeights({"here": kept}, on_disk, dtype=torch.bfloat16, is_for_cpu=is_for_cpu)
        assert list(weights) == ["here", "there"]
        assert len(weights) == 2
        assert weights["here"] is kept
        assert torch.equal(weights["there"], WEIGHT.bfloat16())
        assert "nowhere" not in weights
        with pytest.raises(KeyError):
            weights["nowhere"]


def test_a_file_that_is_cut_off_later_is_damage(tmp_path: Path) -> None:
    path = file_at(8, tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(IntegrityError, match="damaged"):
        StoredWeight(path, "weight").on_cpu(torch.float32)
