"""Every container PyTorch has written opens without torch, and every damage to it is told."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import Checkpoint, E, weights

from hf_xlmr.conversion import open_checkpoint
from hf_xlmr.conversion.checkpoint import weights as weights_module
from hf_xlmr.conversion.checkpoint.weights import read_array
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError

EMBEDDING = f"{E}embed_tokens.weight"


def values(folder: Path, name: str = EMBEDDING) -> torch.Tensor:
    with open_checkpoint(folder) as checkpoint:
        return torch.from_numpy(read_array(checkpoint.weights[name]).copy())


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_in_every_container(is_zip: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.model = type(checkpoint.model)((name, tensor.to(dtype)) for name, tensor in checkpoint.model.items())
    folder = checkpoint.write(tmp_path / "model", is_zip=is_zip)
    expected = checkpoint.model[EMBEDDING]
    read = values(folder)
    assert torch.equal(read, expected.float() if dtype == torch.bfloat16 else expected)


@pytest.mark.parametrize("is_zip", [True, False])
def test_views_and_strides(is_zip: bool, tmp_path: Path) -> None:
    """Transposed, sliced and shared tensors keep the values that torch.load gives them."""
    checkpoint = Checkpoint()
    fc1, fc2 = f"{E}layers.0.fc1.weight", f"{E}layers.0.fc2.weight"
    large = torch.randn(50, 60)
    checkpoint.model[fc1] = large[3:27, 5:21]
    checkpoint.model[fc2] = large.t()[1:17, 2:26]
    checkpoint.model[f"{E}layers.0.fc2.bias"] = torch.randn(1).expand(16)
    folder = checkpoint.write(tmp_path / "model", is_zip=is_zip)
    loaded = torch.load(folder / "model.pt", weights_only=False)["model"]
    for name in (fc1, fc2, f"{E}layers.0.fc2.bias"):
        assert torch.equal(values(folder, name), loaded[name]), name


LARGE = torch.arange(2_400_000, dtype=torch.float32)
VIEWS = {
    "transposed": LARGE.view(1000, 2400).t(),
    "every third column": LARGE.view(1000, 2400)[:, 1::3],
    "transposed, every seventh row": LARGE.view(1000, 2400)[::7].t(),
    "axes exchanged": LARGE.view(20, 300, 400).permute(2, 0, 1),
    "axes exchanged, far apart": LARGE.view(8, 300, 1000)[:, ::50, ::90].permute(1, 2, 0),
    "far apart": LARGE[5::70_001],
    "long rows": LARGE.view(2, 1_200_000)[:, ::2],
    "one row for all": LARGE.view(1000, 2400)[7].expand(600, 2400),
    "one column for all": LARGE.view(1000, 2400)[:, 7:8].expand(1000, 900),
}


@pytest.mark.parametrize("gathered", [1 << 18, weights_module.GATHERED_BYTES])
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_a_large_storage_need_little_memory(
    name: str, gathered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "GATHERED_BYTES", gathered)
    checkpoint = Checkpoint()
    checkpoint.model[EMBEDDING] = VIEWS[name]
    folder = checkpoint.write(tmp_path / "model")
    assert torch.equal(values(folder), VIEWS[name])
    with open_checkpoint(folder) as opened:
        blocks = opened.weights[EMBEDDING].blocks()
        tracemalloc.start()
        longest = max(len(block) for block in blocks)
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert longest <= weights_module.BLOCK_BYTES
    assert peak < (1 + weights_module.SPARSEST) * gathered + 2 * weights_module.BLOCK_BYTES


def test_parameters_and_cuda_locations(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.model[EMBEDDING] = torch.nn.Parameter(checkpoint.model[EMBEDDING])
    folder = checkpoint.write(tmp_path / "model", is_zip=False)
    data = (folder / "model.pt").read_bytes()
    moved = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00gpu")  # any location is one to ignore
    (folder / "model.pt").write_bytes(moved)
    assert torch.equal(values(folder), checkpoint.model[EMBEDDING].detach())


def test_the_optimizer_state_is_never_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.more["last_optimizer_state"] = {"state": {0: {"exp_avg": torch.zeros(1000)}}, "param_groups": [{}]}
    folder = checkpoint.write(tmp_path / "model")
    with zipfile.ZipFile(folder / "model.pt") as archive:
        (last,) = (member for member in archive.infolist() if member.file_size == 4000)
    data = bytearray((folder / "model.pt").read_bytes())
    data[last.header_offset + 200] ^= 0xFF  # inside of the optimizer's storage: its checksum is wrong now
    (folder / "model.pt").write_bytes(data)
    assert torch.equal(values(folder), checkpoint.model[EMBEDDING])


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_damage(is_zip: bool, kept: float, tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model", is_zip=is_zip)
    data = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(IntegrityError):
        values(folder)


def test_a_flipped_bit_breaks_the_checksum(tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    embedding = weights()[EMBEDDING].numpy().tobytes()
    data = (folder / "model.pt").read_bytes()
    at = data.index(embedding) + 100
    (folder / "model.pt").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(IntegrityError, match="checksum"):
        values(folder)


def test_a_tensor_shorter_than_its_shape_is_damage(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    folder = checkpoint.write(tmp_path / "model")
    rewrite(folder / "model.pt", lambda name, data: data[:-4] if name.endswith("/data/1") else data)
    with pytest.raises(IntegrityError, match=r"needs .* bytes of storage 1"):
        values(folder)


def rewrite(path: Path, change: Any, *, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            changed = change(name, old.read(name))
            if changed is not None:
                new.writestr(name, changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name.endswith("data.pkl") else data, "no data.pkl"),
        (lambda name, data: None if name.endswith("/data/1") else data, "not in it"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, "big-endian"),
    ],
)
def test_odd_archives_are_told_apart(change: Any, message: str, tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    rewrite(folder / "model.pt", change)
    with pytest.raises(HfXlmrError, match=message):
        values(folder)


def test_a_compressed_archive_says_what_to_do(tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    rewrite(folder / "model.pt", lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="zip -0"):
        values(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, this is no model", "not a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x80\x02}q\x00.", "bare pickle"),
    ],
)
def test_other_files_are_named_for_what_they_are(content: bytes, message: str, tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    (folder / "model.pt").write_bytes(content)
    with pytest.raises(HfXlmrError, match=message):
        values(folder)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "no dictionary"),
        ({"epoch": 3}, "no weights under `model`"),
        (
            {"model": {"roberta.embeddings.word_embeddings.weight": torch.zeros(2, 2)}},
            "Transformers checkpoint already",
        ),
        ({"model": {"embed.weight": torch.zeros(2, 2)}}, "not an XLM-R or RoBERTa"),
        ({"model": {EMBEDDING: torch.zeros(2, 2), "encoder.x": torch.zeros(2).to_sparse()}}, "not plain tensors"),
    ],
)
def test_other_checkpoints_are_named_for_what_they_are(state: Any, message: str, tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    torch.save(state, folder / "model.pt")
    with pytest.raises(HfXlmrError, match=message):
        values(folder)


def test_a_bare_state_dict_opens(tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    torch.save(weights(), folder / "model.pt")
    assert torch.equal(values(folder), weights()[EMBEDDING])


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "model")
    code = (
        "import sys; from hf_xlmr.conversion import inspect; inspect(sys.argv[1]); "
        "print(sorted({'torch', 'transformers', 'fairseq', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"
