"""The checkpoints of a training: hashed when Trainer has written them, and compared before a training continues."""

from __future__ import annotations

import json
import logging
import re
from hashlib import sha256
from pathlib import Path
from typing import Final

from hf_xlmr.errors import IntegrityError
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.digests import read_sha256
from hf_xlmr.files.json_files import json_object

logger = logging.getLogger(__name__)

NAME: Final = re.compile(r"checkpoint-([0-9]{1,18})")
HASHES: Final = "sha256.json"
FILES: Final = "files"
ITSELF: Final = "sha256_of_files"  # of what is under FILES
STATE: Final = "trainer_state.json"  # what Trainer writes last


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


def last_checkpoint(checkpoints: Path, *, warns: bool) -> Path | None:
    """The newest checkpoint that was written to its end, None if there is none; with `warns` later ones are logged.

    Raises IntegrityError if a file of that checkpoint is not what the training wrote.
    """
    found = {int(hit[1]): path for path in checkpoints.iterdir() if (hit := NAME.fullmatch(path.name))}
    paths = [found[step] for step in sorted(found)]
    whole = [path for path in paths if (path / HASHES).exists()]
    last = whole[-1] if whole else None
    if last is not None and (damage := _damage(last)):
        earlier = f"continue from {whole[-2].name}" if whole[1:] else "begin with the first step"
        raise IntegrityError(
            f"{damage}: remove the folder {last.name} to {earlier}, or train again with overwrite=True"
        )
    unfinished = ", ".join(path.name for path in (paths if last is None else paths[paths.index(last) + 1 :]))
    if unfinished and warns:
        start = "its first step" if last is None else last.name
        logger.warning("not written to its end: %s; the training continues from %s", unfinished, start)
    return last


def _damage(checkpoint: Path) -> str | None:
    """The first file that is not what was written, in words."""
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
