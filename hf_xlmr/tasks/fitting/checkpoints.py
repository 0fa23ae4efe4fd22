"""The checkpoints of a training: hashed when Trainer has written them, and compared before a training continues."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from hf_xlmr.errors import IntegrityError
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.digests import read_sha256
from hf_xlmr.files.json_files import json_object, strict_json

__all__ = ["checkpoint_name", "last_checkpoint", "record_checkpoint", "remarks_on", "resumed_from", "share_weights"]

NAME: Final = re.compile(r"checkpoint-([0-9]{1,18})")
HASHES: Final = "sha256.json"
FILES: Final = "files"
ITSELF: Final = "sha256_of_files"  # of what is under FILES
STATE: Final = "trainer_state.json"  # what Trainer writes last
WEIGHTS: Final = ("*model*.safetensors", "*model*.bin", "pytorch_model_fsdp*")  # whole, adapters, parts by FSDP
LONGEST_ERROR: Final = 200  # characters of what a library says
NEEDED: Final = ("optimizer*", "scheduler.pt", "rng_state*.pth")  # Trainer continues without, to other weights


def checkpoint_name(step: int) -> str:
    """The name of the folder that Trainer writes after an update."""
    return f"checkpoint-{step}"


def record_checkpoint(checkpoint: Path) -> None:
    """Write down the SHA-256 of every file in a checkpoint, which is whole from then on. Raises OSError."""
    share_weights(checkpoint, as_of=STATE)
    hashes = {name: read_sha256(path) for name, path in _files(checkpoint).items()}
    replace_content(checkpoint / HASHES, json.dumps({FILES: hashes, ITSELF: _sum(hashes)}, indent=2).encode())


def share_weights(folder: Path, *, as_of: str) -> None:
    """Give the weights, which safetensors makes for its user alone, the permissions of another file in the folder."""
    usual = (folder / as_of).stat().st_mode & 0o777
    for path in folder.glob("*.safetensors"):
        path.chmod(usual)


def last_checkpoint(checkpoints: Path, *, are_recorded: bool) -> Path | None:
    """The newest checkpoint that was written to its end; None if there is none.

    `are_recorded` is False for a training that an earlier hf_xlmr began, which wrote no hashes. Raises IntegrityError
    if a file of that checkpoint is not what the training wrote.
    """
    found = {int(hit[1]): path for path in checkpoints.iterdir() if (hit := NAME.fullmatch(path.name))}
    whole = [found[step] for step in sorted(found) if _is_whole(found[step], is_recorded=are_recorded)]
    if not whole:
        return None
    if damage := _damage(whole[-1]):
        earlier = f"continue from {whole[-2].name}" if whole[1:] else "begin with the first step"
        raise IntegrityError(
            f"{damage}: remove the folder {whole[-1].name} to {earlier}, or train again with overwrite=True"
        )
    return whole[-1]


def remarks_on(checkpoints: Path, last: Path | None) -> Iterator[str]:
    """Remarks on a training that continues from the checkpoint `last`, None for its first step."""
    steps = sorted(int(hit[1]) for path in checkpoints.iterdir() if (hit := NAME.fullmatch(path.name)))
    unfinished = [checkpoint_name(step) for step in steps if last is None or step > _step(last)]
    if unfinished:
        start = "its first step" if last is None else last.name
        yield f"not written to its end: {', '.join(unfinished)}; the training continues from {start}"
    if last is not None and not (last / HASHES).exists():
        yield f"{last} has no {HASHES}, as of an earlier hf_xlmr: its files cannot be compared with what was written"


@contextmanager
def resumed_from(checkpoint: Path | None, steps: Callable[[], int]) -> Iterator[None]:
    """Turn what a library raises over a checkpoint without hashes, before its next step, into an IntegrityError.

    `steps` gives how many updates were made.
    """
    try:
        yield
    except Exception as error:
        if checkpoint is None or (checkpoint / HASHES).exists() or steps() > _step(checkpoint):
            raise
        told = " ".join(str(error).split())[:LONGEST_ERROR] or type(error).__name__
        raise IntegrityError(
            f"{checkpoint} is damaged ({told}): remove it to continue from an earlier checkpoint, or train again with "
            "overwrite=True"
        ) from error


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path, *, is_recorded: bool) -> bool:
    if (checkpoint / HASHES).exists() or is_recorded:
        return (checkpoint / HASHES).exists()
    try:
        is_object = (checkpoint / STATE).is_file() and isinstance(strict_json((checkpoint / STATE).read_bytes()), dict)
    except ValueError:
        return False
    return is_object and any(any(checkpoint.glob(each)) for each in WEIGHTS)


def _damage(checkpoint: Path) -> str | None:
    """The first file that is not what was written, in words; of a checkpoint without hashes, one that is not there."""
    if not (checkpoint / HASHES).exists():
        missing = [each for each in NEEDED if not any(path.exists() for path in checkpoint.glob(each))]
        return f"{checkpoint / missing[0]} is missing" if missing else None
    recorded = _recorded(checkpoint)
    if recorded is None:
        return f"{checkpoint / HASHES} is damaged"
    files = _files(checkpoint)
    for name in sorted({*recorded, *files}):
        path = checkpoint / name
        if name not in recorded:
            return f"{path} is not of this training"
        if name not in files:
            return f"{path} is {'not a file' if path.exists() else 'missing'}"
        if read_sha256(path) != recorded[name]:
            return f"{path} is not what the training wrote"
    return None


def _recorded(checkpoint: Path) -> dict[str, str] | None:
    """The hashes of the files by their names; None if they are damaged themselves."""
    if not (checkpoint / HASHES).is_file():
        return None
    try:
        content = json_object(checkpoint / HASHES)
    except IntegrityError:
        return None
    hashes = content.get(FILES)
    return hashes if isinstance(hashes, dict) and content.get(ITSELF) == _sum(hashes) else None


def _sum(hashes: dict[str, str]) -> str:
    return sha256(json.dumps(hashes).encode()).hexdigest()


def _files(checkpoint: Path) -> dict[str, Path]:
    """Files that belong to a checkpoint by their names in it; not hidden ones, which systems leave behind."""
    paths = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("[!.]*") if path.is_file()}
    return {name: path for name, path in paths.items() if name != HASHES}
