"""`finetune` goes on from a checkpoint that is what the training wrote, to the bit, or names the file that is not."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from places import FIXTURES
from safetensors.torch import load_file
from small_tasks import write_xnli

from hf_xlmr.errors import IntegrityError
from hf_xlmr.features.processes import Processes
from hf_xlmr.tasks.fitting.checkpoints import HASHES, STATE
from hf_xlmr.tasks.fitting.finetuned_folder import FinetunedFolder
from hf_xlmr.tasks.training import FinetuningOptions, finetune

OPTIONS = FinetuningOptions(
    max_steps=5, save_steps=2, batch_size=8, warmup=0.1, learning_rate=3e-3, max_length=32, cpu=True
)
MODEL = str(FIXTURES / "earlier" / "masked-lm")
KINDS = {"plain": OPTIONS, "adapters": replace(OPTIONS, lora=True)}
LAST = "checkpoint-4"
READ: Final = {
    "plain": {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE, "training_args.bin"},
    "adapters": {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE},
}

pytestmark = pytest.mark.usefixtures("cache_folder")


class Break(Exception):
    """What ends a run."""


class BreaksBeforeTheEnd:
    """A progress that ends a training before its last step."""

    @contextmanager
    def task(self, label: str, **_facts: Any) -> Iterator[BreaksBeforeTheEnd]:
        self.left = OPTIONS.max_steps if label == "training" else None
        yield self

    def advance(self, amount: int, *, note: str = "") -> None:
        if self.left is not None:
            self.left -= amount
            if self.left == 0:
                raise Break


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [write_xnli(tmp_path_factory.mktemp("data") / "train.tsv", 24, ("en",))]


@pytest.fixture(scope="module")
def broken(train: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings that broke after their second checkpoint."""
    folder = tmp_path_factory.mktemp("broken")
    for name, options in KINDS.items():
        with pytest.raises(Break):
            finetune("xnli", MODEL, train, folder / name, options=options, progress=BreaksBeforeTheEnd())
    return {name: folder / name for name in KINDS}


@pytest.fixture
def out(broken: dict[str, Path], tmp_path: Path, kind: str) -> Path:
    return shutil.copytree(broken[kind], tmp_path / "out")


class Runs:
    """A pickle that would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def link(path: Path, target: str | Path) -> None:
    path.unlink()
    path.symlink_to(target)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def changed_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def earlier_one(path: Path) -> None:
    """Valid in itself; where it is the same in both checkpoints, of another training."""
    other = (path.parents[1] / "checkpoint-2" / path.name).read_bytes()
    path.write_bytes(other if other != path.read_bytes() else other + b"\n")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "other bytes": lambda path: path.write_bytes(bytes(range(1, 256)) * 9),
    "a changed bit": changed_bit,
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "trace"))),
    "a file of PyTorch": lambda path: torch.save({"state": {}, "python": [1]}, path),
    "of an earlier step": earlier_one,
    "JSON of another shape": lambda path: path.write_text('{"global_step": "many", "weight_map": 7}'),
    "removed": Path.unlink,
    "a folder": folder_instead,
    "a link to nothing": lambda path: link(path, "nowhere"),
    "a link to a device": lambda path: link(path, "/dev/zero"),
    "a pipe": pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_what_was_written_is_named(out: Path, kind: str, damage: str) -> None:
    folder = FinetunedFolder(out, Processes.current())
    checkpoint = out / "checkpoints" / LAST
    names = {path.name for path in checkpoint.iterdir()}
    assert names > {*READ[kind], HASHES}
    kept = shutil.copytree(checkpoint, out.with_name("kept"))
    for name in sorted(names):
        DAMAGES[damage](checkpoint / name)
        if (name, damage) in ((HASHES, "removed"), (HASHES, "a link to nothing")):  # as of a run that was killed there
            assert folder.last_checkpoint() == out / "checkpoints" / "checkpoint-2"
        else:
            with pytest.raises(IntegrityError) as caught:
                folder.last_checkpoint()
            named = "" if (name, damage) == (HASHES, "of an earlier step") else name  # it is whole, and of other files
            assert str(checkpoint / named) in str(caught.value)
            assert f"remove the folder {LAST} to continue from checkpoint-2, or train again" in str(caught.value)
        assert not (checkpoint / "trace").exists()
        shutil.rmtree(checkpoint)
        shutil.copytree(kept, checkpoint)
    assert folder.last_checkpoint() == checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_as_the_message_says_to_the_same_weights(
    out: Path, kind: str, train: list[str], tmp_path: Path
) -> None:
    checkpoint = out / "checkpoints" / LAST
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"pytorch_model.bin is not of this training"):
        finetune("xnli", MODEL, train, out, options=KINDS[kind], resume=True)
    (checkpoint / "pytorch_model.bin").unlink()
    changed_bit(checkpoint / "rng_state.pth")
    with pytest.raises(IntegrityError, match=r"rng_state.pth is not what the training wrote"):
        finetune("xnli", MODEL, train, out, options=KINDS[kind], resume=True)
    shutil.rmtree(checkpoint)
    (out / "checkpoints" / "checkpoint-2" / ".DS_Store").touch()
    resumed = finetune("xnli", MODEL, train, out, options=KINDS[kind], resume=True)
    whole = finetune("xnli", MODEL, train, tmp_path / "whole", options=KINDS[kind])
    first, second = load_file(whole.output / "model.safetensors"), load_file(resumed.output / "model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["plain"])
def test_what_is_not_gone_on_with_is_told(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = FinetunedFolder(out, Processes.current())
    assert folder.last_checkpoint() == out / "checkpoints" / LAST and not caplog.messages
    for name, start in ((LAST, "checkpoint-2"), ("checkpoint-2", "its first step")):
        (out / "checkpoints" / name / HASHES).unlink()
        folder.last_checkpoint()
        assert caplog.messages.pop().endswith(f"{LAST}; the training continues from {start}")
        caplog.clear()


@pytest.mark.parametrize("kind", ["plain"])
def test_links_to_what_was_written_are_gone_on_with(out: Path, tmp_path: Path) -> None:
    shutil.move(out / "checkpoints" / LAST, tmp_path / "elsewhere")
    (out / "checkpoints" / LAST).mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (out / "checkpoints" / LAST / path.name).symlink_to(path)
    assert FinetunedFolder(out, Processes.current()).last_checkpoint() == out / "checkpoints" / LAST
