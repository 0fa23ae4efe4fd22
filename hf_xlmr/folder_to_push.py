"""A folder before it is published: what of it is sent, whether that is whole, and what is known of its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from hf_xlmr.card_check import check_card
from hf_xlmr.doctor import Finding, examine
from hf_xlmr.errors import InputError
from hf_xlmr.folder_facts import FolderFacts
from hf_xlmr.hub_errors import SMALLER_FILES
from hf_xlmr.kept_files import read_kept
from hf_xlmr.placed_loading import check_weights, files_of_weights
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.recorded_files import Standing, standing_of

__all__ = ["WEIGHTS", "FolderToPush", "LocalFile", "hashed", "look_at", "raise_if_touched"]

KEPT: Final = "fairseq"
KEPT_FILES: Final = ("dict.txt", "sentencepiece.bpe.model")
INDEX: Final = "model.safetensors.index.json"
WEIGHTS: Final = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
"""What Transformers takes for the weights of a folder; those of variants and of other folders are another's."""
LARGEST_FILE: Final = 50 * 10**9  # bytes; the Hub takes no larger one
BLOCK: Final = 1 << 20
OTHER_WEIGHTS: Final = "no weights of this model"
LEFT_OUT: Final[Mapping[str, str]] = {  # of the name of a file, or of a folder with / at its end
    r"\..+": "hidden",
    r"__pycache__/|.+\.py[co]": "made by Python",
    r"checkpoints?/|checkpoint[-_]\w+/": "checkpoints of a training",
    r"id_(rsa|dsa|ecdsa|ed25519)|.+\.(pem|key)|credentials(\.json)?|secrets?(\.\w+)?|(hf_)?token(\.txt)?": "a secret",
    r"(wandb|mlruns|venv|node_modules)/|core|nohup\.out|slurm-.+\.out|Thumbs\.db": "of a machine, not of a model",
    r".+\.(bak|orig|swp)": "a copy of an editor's",
    r"(runs|logs)/|.+\.log|events\.out\.tfevents\..+": "logs",
    r"offload.*/|[0-9a-f]{32}/": "offloaded weights",
    r".+\.(part|tmp|incomplete|lock)|.+~": "not finished",
    r".+\.(bin|pt|pth|ckpt|pkl|pickle|pth\.tar)": "a pickle, which runs what it says when it is loaded",
}
"""Names that are never sent, each with its reason."""
MILD: Final = frozenset({"model_max_length", "tokenizer_config.json", "pooler", "shard size", "dtype"})
"""Faults with which a model still loads and answers as it should: they are told, and refuse nothing."""


@dataclass(frozen=True)
class LocalFile:
    """A file that is sent."""

    path: Path
    size: int
    changed_at: int
    """In nanoseconds, as the file system told before the folder was looked at."""
    sha256: str = ""
    """Empty until it is hashed."""

    @classmethod
    def of(cls, path: Path) -> LocalFile:
        """Note how a file is now. Raises OSError."""
        now = path.stat()
        return cls(path, now.st_size, now.st_mtime_ns)

    @property
    def is_untouched(self) -> bool:
        """Whether the file is as it was when it was noted. Raises OSError."""
        now = self.path.stat()
        return (now.st_size, now.st_mtime_ns) == (self.size, self.changed_at)


@dataclass(frozen=True)
class FolderToPush:
    """What of a folder is sent, and what was found out about it."""

    path: Path
    files: Mapping[str, LocalFile]
    """By their names in the repository."""
    left_out: Mapping[str, str]
    """Names that are not sent, each with the reason."""
    findings: tuple[Finding, ...]
    """The faults that `hf-xlmr doctor` tells."""
    notes: tuple[str, ...]
    standing: Standing


def look_at(folder: Path, *, despite_faults: bool = False) -> FolderToPush:
    """What of `folder` would be sent, once its card can be published and its weights are whole.

    `despite_faults` takes those that `hf-xlmr doctor` finds. Raises InputError for what the user can mend,
    IntegrityError for damage.
    """
    _ = FolderFacts(folder).config  # what is no model is refused before all of it is walked
    found, left_out = _found(folder)
    findings = examine(folder).findings
    severe = [finding for finding in findings if finding.name not in MILD]
    if severe and not despite_faults:
        raise InputError(
            f"{folder}: {severe[0].told}; mend it first ({severe[0].mend}; `hf-xlmr doctor {folder}` tells of "
            f"{_counted(len(severe))}), or publish it as it is with --despite-faults"
        )
    if findings:  # where there are none, doctor has held the weights against the configuration already
        check_weights(folder)
    for name in KEPT_FILES:
        if (folder / KEPT / name).is_file():
            read_kept(folder / KEPT, name)
    notes = check_card(folder)
    files = _without_other_weights(found, left_out, _names_of_weights(folder))
    _raise_if_too_large(files)
    return FolderToPush(folder, files, left_out, findings, notes, standing_of(folder))


def _counted(faults: int) -> str:
    return "this fault" if faults == 1 else f"all {faults} faults"


def _raise_if_too_large(files: Mapping[str, LocalFile]) -> None:
    for name, file in files.items():
        if file.size > LARGEST_FILE:
            raise InputError(
                f"{name} has {file.size / 10**9:.0f} GB, and the Hub takes at most {LARGEST_FILE / 10**9:.0f}: "
                + SMALLER_FILES
            )


# ---- which files -----------------------------------------------------------------------------------------------------


def _found(folder: Path) -> tuple[dict[str, LocalFile], dict[str, str]]:
    """The files that no name keeps out, noted as they are now, and the names of the others, a folder as one name."""
    left: dict[str, str] = {}
    return {name: LocalFile.of(path) for name, path in _walked(folder, left)}, left


def _without_other_weights(
    found: Mapping[str, LocalFile], left: dict[str, str], used: Collection[str]
) -> dict[str, LocalFile]:
    """The files to send; weights that the model does not use go into `left`."""
    others = {name for name in found if WEIGHTS.fullmatch(name) and name not in used}
    left.update(dict.fromkeys(sorted(others), OTHER_WEIGHTS))
    return {name: file for name, file in found.items() if name not in others}


def _names_of_weights(folder: Path) -> set[str]:
    names = {path.name for path in files_of_weights(folder).values()}
    return names if names == {"model.safetensors"} else names | {INDEX}


def _walked(folder: Path, left: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """Every file that no name keeps out, in order; what is kept out goes into `left`, whole folders unread."""
    for top, folders, files in os.walk(folder, onerror=_raise):
        place = Path(top)
        for name in sorted(folders):
            if (why := _why_left_out(f"{name}/")) or (place / name).is_symlink():
                left[f"{(place / name).relative_to(folder).as_posix()}/"] = why or "a link to a folder"
                folders.remove(name)
        folders.sort()
        for name in sorted(files):
            path = place / name
            why = _why_left_out(name) or (None if path.is_file() else "no file, or a broken link")
            shown = path.relative_to(folder).as_posix()
            if why:
                left[shown] = why
            else:
                yield shown, path


def _raise(error: OSError) -> None:
    raise error


def _why_left_out(name: str) -> str | None:
    if not name.isprintable():
        return "a name that the Hub does not take"
    return next((why for pattern, why in LEFT_OUT.items() if re.fullmatch(pattern, name, re.IGNORECASE)), None)


# ---- what is known of the files --------------------------------------------------------------------------------------


def hashed(files: Mapping[str, LocalFile], *, progress: Progress = SILENT) -> dict[str, LocalFile]:
    """`files` with their SHA-256. Raises InputError where one is not as it was when it was noted, OSError."""
    found = {}
    with progress.task("hash", total=sum(file.size for file in files.values())) as task:
        for name, file in files.items():
            digest = sha256()
            with file.path.open("rb") as stream:
                while block := stream.read(BLOCK):
                    digest.update(block)
                    task.advance(len(block))
            found[name] = replace(file, sha256=digest.hexdigest())
    raise_if_touched(found, meanwhile="looked at")
    return found


def raise_if_touched(files: Mapping[str, LocalFile], *, meanwhile: str) -> None:
    """Refuse files that are not as they were when they were noted. Raises InputError, OSError."""
    for name, file in files.items():
        if not file.is_untouched:
            raise InputError(
                f"{name} was changed while it was {meanwhile}: nothing was published; say the same command again"
            )
