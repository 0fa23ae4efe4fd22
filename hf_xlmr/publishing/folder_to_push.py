"""Examines a folder before it is published: the files that are sent, whether all are there, and the weights' proof."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from hf_xlmr.cards.card_check import check_card
from hf_xlmr.doctor.examination import Finding, findings_of
from hf_xlmr.doctor.folder_facts import FolderFacts
from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.hub.hub_errors import SMALLER_FILES
from hf_xlmr.model.folder_records import read_kept
from hf_xlmr.model.model_shape import shape_of_config
from hf_xlmr.model.opened_folder import CARD, CONFIG, FileState, OpenedFolder
from hf_xlmr.model.provenance import Standing, held_to_record, standing_of
from hf_xlmr.model.safetensors_files import raise_if_not_text
from hf_xlmr.placement.placed_loading import INDEX, check_weights, files_of_weights
from hf_xlmr.progress import SILENT, Progress, ProgressTask
from hf_xlmr.publishing.known_files import KnownFiles
from hf_xlmr.publishing.secret_files import SecretFinder, is_name_of_secret

KEPT: Final = "fairseq"
KEPT_FILES: Final = ("dict.txt", "sentencepiece.bpe.model")
WEIGHTS: Final = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
"""Files that Transformers loads as the weights of a folder; variants and files in subfolders do not match."""
LARGEST_FILE: Final = 50 * 10**9  # bytes; the Hub refuses larger files
OTHER_WEIGHTS: Final = "no weights of this model"
SAFETENSORS: Final = ".safetensors"
CHANGED: Final = "{} was changed while it was {}: nothing was published; run the same command again"
SECRET_INSIDE: Final = (
    "{} has text in line {} that looks like {}: remove it, and revoke it at its service; nothing was published"
)
NOT_VERIFIED: Final = (
    "{folder} was converted without the proof: verify it (`hf-xlmr verify SOURCE {folder}`, with record=True), or "
    "publish it unverified with allow_unverified=True"
)
NEVER: Final[Mapping[str, str]] = {  # patterns of a file's name, or of a folder's name with / at its end
    r"\..+": "hidden",
    r"__pycache__/|.+\.py[co]": "made by Python",
    r".+\.(bin|pt|pth|ckpt|pkl|pickle|pth\.tar|joblib|dill)": "a pickle, which can run code when it is loaded",
}
"""Names that are never sent, each with its reason."""
USUAL: Final[Mapping[str, str]] = {
    r"checkpoints?/|checkpoint[-_]\w+/": "checkpoints of a training",
    r"(wandb|mlruns|venv|node_modules)/|core|nohup\.out|slurm-.+\.out|Thumbs\.db": "a machine's, not a model's",
    r".+\.(bak|orig|swp|before-fix)": "a copy from before a change",
    r"(runs|logs)/|.+\.log|events\.out\.tfevents\..+": "logs",
    r"offload.*/|[0-9a-f]{32}/": "offloaded weights",
    r".+\.(part|tmp|incomplete|lock)|.+~": "not finished",
}
"""Names of files that are often next to a model, each with its reason; they are sent only if `include` names them."""
SECRET: Final = "a secret, by its name"
NOT_SECRET: Final = "added_tokens.json"  # a tokenizer's file
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # folders of the Hub's cache, where snapshots are links to blobs


@dataclass(frozen=True)
class LocalFile:
    """A file that is sent."""

    path: Path
    state: FileState
    """The state before any byte of the file was read."""
    sha256: str = ""
    """Empty until the file is hashed."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.state.size

    @property
    def is_untouched(self) -> bool:
        """Whether the file has not changed since `state` was recorded. Raises OSError."""
        return FileState.of(self.path) == self.state


@dataclass(frozen=True)
class FolderToPush:
    """The files of a folder that are sent, and what the checks found."""

    opened: OpenedFolder
    files: Mapping[str, LocalFile]
    """The files that are sent, by their names in the repository."""
    unknown: Mapping[str, int]
    """Names and bytes of files that are not sent: not known to belong to a model, and not named by `include`."""
    left_out: Mapping[str, str]
    """Names that are not sent for another reason, each with that reason."""
    findings: tuple[Finding, ...]
    """The faults that `hf-xlmr doctor` reports."""
    notes: tuple[str, ...]
    standing: Standing
    held: tuple[str, ...]
    """Files that equal the conversion's record; of config.json only the fields that decide the model's outputs."""

    @property
    def path(self) -> Path:
        """The path of the folder."""
        return self.opened.path

    def as_told(self) -> dict[str, object]:
        """What the checks found, for JSON: files by their sizes, and no content."""
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "opened"}
        return {"folder": self.path, **told, "files": {name: file.size for name, file in self.files.items()}}

    @property
    def card(self) -> str:
        """The text of README.md, with a line feed at the end of each line."""
        return self.opened.read(CARD).decode("utf-8").replace("\r\n", "\n")


def look_at(
    folder: Path,
    *,
    include: Collection[str] = (),
    allow_unverified: bool = False,
    despite_faults: bool = False,
    progress: Progress = SILENT,
) -> FolderToPush:
    """Check the card, the weights and the other files of `folder`, and return which files would be sent.

    No request goes to the Hub. Files that belong to the model are sent, and those that `include` names: folders, or
    patterns in fnmatch's syntax. `allow_unverified` accepts weights that were never verified, `despite_faults` severe
    faults that `hf-xlmr doctor` finds. Raises InputError for what the user can fix, IntegrityError for damage, and for
    weights that changed since they were verified.
    """
    with told_plainly():
        opened = FolderFacts(folder)
        _ = opened.config  # a folder that is not a model is refused before all of it is walked
        raise_if_not_text(folder)
        found = _sorted(opened, include)
        _raise_if_nothing_matches(found, include)
        standing = _standing(opened, allow_unverified=allow_unverified)
        if standing is Standing.verified:  # doctor asks for the hashes of the weights, which takes long
            weights = {name: file for name, file in found.files.items() if WEIGHTS.fullmatch(name)}
            found.files.update(hashed(opened, weights, progress=progress))
        findings = _findings(opened, despite_faults=despite_faults)
        notes = check_card(opened)
        used = {path.name for path in files_of_weights(folder).values()}
        used |= set() if used == {"model.safetensors"} else {INDEX}
        for name in sorted(name for name in found.files if WEIGHTS.fullmatch(name) and name not in used):
            found.left[name] = OTHER_WEIGHTS
            del found.files[name]
        found = _folded(found)
        _raise_if_too_large(found.files)
        files = hashed(opened, found.files, progress=progress)
        hashes = {name: file.sha256 for name, file in files.items()}
        held = held_to_record(opened, hashes, with_config=not (despite_faults and findings))
        return FolderToPush(opened, files, found.unknown, found.left, findings, notes, standing, held)


def _standing(folder: OpenedFolder, *, allow_unverified: bool) -> Standing:
    """Whether the weights were verified. Raises InputError if not, IntegrityError if a file of fairseq/ was changed."""
    standing = standing_of(folder)
    if standing is Standing.unverified and not allow_unverified:
        raise InputError(NOT_VERIFIED.format(folder=folder.path))
    for name in KEPT_FILES:
        if folder.has(f"{KEPT}/{name}"):
            read_kept(folder.path / KEPT, name, record=folder.record)
    return standing


def _findings(folder: FolderFacts, *, despite_faults: bool) -> tuple[Finding, ...]:
    """The faults of the folder. Raises InputError for severe ones, IntegrityError if weights are missing or damaged."""
    findings = findings_of(folder)
    severe = [finding for finding in findings if not finding.is_mild]
    if severe and not despite_faults:
        several = "this fault" if len(severe) == 1 else f"all {len(severe)} faults"
        raise InputError(
            f"{folder.path}: {severe[0].told}; fix it first ({severe[0].mend}; `hf-xlmr doctor {folder.path}` reports "
            f"{several}), or publish it unfixed with despite_faults=True"
        )
    if findings:  # if there are none, doctor has already compared the weights with the configuration
        check_weights(folder.path, shape_of_config(folder.config, name=str(folder.path / CONFIG)))
    return findings


def _raise_if_too_large(files: Mapping[str, LocalFile]) -> None:
    for name, file in files.items():
        if file.size > LARGEST_FILE:
            raise InputError(
                f"{name} has {file.size / 10**9:.0f} GB, and the Hub accepts at most {LARGEST_FILE / 10**9:.0f}: "
                + SMALLER_FILES
            )


# ---- which files -----------------------------------------------------------------------------------------------------


@dataclass
class _Sorted:
    """The files of a folder, sorted into sent, unknown and left out; a folder that is not looked into is one name."""

    files: dict[str, LocalFile] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def _sorted(opened: OpenedFolder, include: Collection[str]) -> _Sorted:
    """Sort every file of a folder. Raises InputError for a file of the model that cannot be sent, OSError."""
    found, known, folder = _Sorted(), KnownFiles(opened), opened.path
    for name, path in _walked(folder, found.left, known):
        is_wanted, is_known = _matches(name, include), name in known
        why = _why_never(name) or _why_not_readable(path, folder)
        if why and is_known:
            raise InputError(f"{path} belongs to the model and is not sent: it is {why}; put a copy of the file there")
        why = why or (None if is_known or is_wanted else _why_usually_not(name))
        if why:
            found.left[name] = why
        elif is_known or is_wanted:
            found.files[name] = LocalFile(path.resolve(), opened.state(name))  # resolved: a link may change meanwhile
        else:
            found.unknown[name] = path.lstat().st_size
    return found


def _walked(folder: Path, left: dict[str, str], known: KnownFiles) -> Iterator[tuple[str, Path]]:
    """Yield every file of a folder in order; put the folders that are not looked into into `left`."""
    for top, folders, files in os.walk(folder, onerror=_raise):
        place = Path(top)
        for name in sorted(folders):
            shown = (place / name).relative_to(folder).as_posix()
            if why := _why_no_folder(place / name, shown, known):
                left[f"{shown}/"] = why
                folders.remove(name)
        folders.sort()
        yield from (((place / name).relative_to(folder).as_posix(), place / name) for name in sorted(files))


def _raise(error: OSError) -> None:
    raise error


def _why_no_folder(path: Path, shown: str, known: KnownFiles) -> str | None:
    """Why a folder is not looked into, None if it is. Raises InputError if it is a link with files of the model."""
    is_link = path.is_symlink()
    if is_link and known.needs_folder(shown):
        raise InputError(f"{path} belongs to the model and is not sent: it is a link; put a copy of the folder there")
    if is_link:
        return "a link to a folder"
    if not os.access(path, os.R_OK | os.X_OK):
        return "not readable"
    return _reason(f"{path.name}/", NEVER) or (SECRET if is_name_of_secret(path.name) else _unprintable(path.name))


def _why_never(name: str) -> str | None:
    """Why a file is never sent, judged by its name alone, even if `include` names it."""
    last = name.rpartition("/")[2]
    is_secret = name != NOT_SECRET and is_name_of_secret(last)
    return _unprintable(last) or _reason(last, NEVER) or (SECRET if is_secret else None)


def _unprintable(name: str) -> str | None:
    return None if name.isprintable() else "a name that the Hub does not accept"


def _why_usually_not(name: str) -> str | None:
    """Why a file is not sent unless `include` names it, judged by its name and the names of its folders."""
    *folders, last = name.split("/")
    reasons = [_reason(f"{each}/", USUAL) for each in folders] + [_reason(last, USUAL)]
    return next(filter(None, reasons), None)


def _reason(name: str, reasons: Mapping[str, str]) -> str | None:
    return next((why for pattern, why in reasons.items() if re.fullmatch(pattern, name, re.IGNORECASE)), None)


def _why_not_readable(path: Path, folder: Path) -> str | None:
    """Why a file is not sent, judged by its kind: links may lead into the folder or to a blob of its own cache."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # also a circle of links
        return "a broken link"
    if path.is_symlink():
        root = folder.resolve()
        blobs = root.parent.parent / BLOBS if root.parent.name == SNAPSHOTS else None
        if root not in target.parents and (blobs is None or target.parent != blobs.resolve()):
            return "a link that leaves the folder"
        if is_name_of_secret(target.name):
            return "a link to a secret"
    if not target.is_file():
        return "neither a file nor a folder"
    return None if os.access(target, os.R_OK) else "not readable"


def _matches(name: str, include: Collection[str]) -> bool:
    """Whether `include` names a file: by its name, by a pattern, or by the name of a folder that contains it."""
    wanted = (each.removeprefix("./").rstrip("/") for each in include)
    return any(fnmatchcase(name, each) or name.startswith(f"{each}/") for each in wanted)


def _raise_if_nothing_matches(found: _Sorted, include: Collection[str]) -> None:
    for pattern in include:
        if any(_matches(name, [pattern]) for name in found.files):
            continue
        for name, why in found.left.items():
            if _matches(name.rstrip("/"), [pattern]) or (name.endswith("/") and pattern.startswith(name)):
                raise InputError(f"{name!r:.120} was requested, but is never sent: it is {why}")
        raise InputError(f"{pattern!r:.120} was requested, but no file has that name or matches that pattern")


def _folded(found: _Sorted) -> _Sorted:
    """`found` with one name, which ends with a slash, for each folder whose files are all unknown or all left out."""
    fates = {**dict.fromkeys(found.files, "sent"), **dict.fromkeys(found.unknown, "unknown"), **found.left}
    of_folders: dict[str, set[str]] = {}
    for name, fate in fates.items():
        for folder in _folders_of(name):
            of_folders.setdefault(folder, set()).add(fate)
    folded = _Sorted(found.files)
    for name, fate in fates.items():
        shown = next((folder for folder in _folders_of(name) if len(of_folders[folder]) == 1), name)
        if name in found.unknown:
            folded.unknown[shown] = folded.unknown.get(shown, 0) + found.unknown[name]
        elif name in found.left:
            folded.left[shown] = fate
    return folded


def _folders_of(name: str) -> Iterator[str]:
    """The folders that contain a name, from the outermost, each with a slash at its end."""
    parts = name.rstrip("/").split("/")
    return ("/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))


# ---- the content of the files ----------------------------------------------------------------------------------------


def hashed(
    folder: OpenedFolder, files: Mapping[str, LocalFile], *, progress: Progress = SILENT
) -> dict[str, LocalFile]:
    """`files` with their SHA-256; files that have one are not read again.

    Raises InputError if a file changed since its state was recorded, or has text that looks like a secret, OSError.
    """
    left = {name: file for name, file in files.items() if not file.sha256}
    with progress.task("hashing", total=sum(file.size for file in left.values())) as task:
        for name in left:
            _look_for_secrets(name, folder.blocks(name), task)
    for name, file in left.items():
        if (folder.path / name).resolve() != file.path:
            raise InputError(CHANGED.format(name, "looked at"))
    found = {name: replace(file, sha256=folder.sha256(name)) for name, file in files.items()}
    raise_if_touched(found, meanwhile="looked at")
    return found


def _look_for_secrets(name: str, blocks: Iterable[bytes], task: ProgressTask) -> None:
    """Search the `blocks` of a file; of weights the header, which describes them. Raises InputError."""
    finder, left = SecretFinder(), sys.maxsize
    for number, block in enumerate(blocks):
        if number == 0 and name.endswith(SAFETENSORS):
            left = 8 + int.from_bytes(block[:8], "little")
        if left > 0:
            finder.look(block[:left])
        left -= len(block)
        task.advance(len(block))
    if finder.found is not None:
        raise InputError(SECRET_INSIDE.format(name, finder.line, finder.found))


def raise_if_touched(files: Mapping[str, LocalFile], *, meanwhile: str) -> None:
    """Raise InputError if a file changed since its state was recorded. Raises OSError."""
    for name, file in files.items():
        if not file.is_untouched:
            raise InputError(CHANGED.format(name, meanwhile))
