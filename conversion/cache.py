"""Each fairseq source converted once, into a cache whose entries are named by content."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr import __version__
from hf_xlmr.cache_folder import cache_folder
from hf_xlmr.conversion.checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.plan import resolve_spectral_norm
from hf_xlmr.conversion.recipe import convert
from hf_xlmr.conversion.releases import download
from hf_xlmr.conversion.sources import is_archive, open_source
from hf_xlmr.conversion.weights import Weight, read_array
from hf_xlmr.errors import InputError
from hf_xlmr.model_shape import HEAD_PARTS
from hf_xlmr.own_names import RELEASE_NAMES, own_name
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CachedModel", "converted_once"]

BLOCK: Final = 1 << 20
FORMAT: Final = 1  # of the entries: one more where conversions of the same source would come out otherwise
SIZES: Final = "sizes.json"


@dataclass(frozen=True)
class CachedModel:
    """One source's conversion in the cache."""

    folder: Path
    """The masked LM (or the encoder, where the source has no LM head) as Transformers loads it."""
    heads: Path
    """Every classification head of the source: a safetensors file of `NAME.dense.weight` and so on, in float32."""


def converted_once(source: str | Path, *, data: str | Path | None = None, progress: Progress = SILENT) -> CachedModel:
    """The conversion of `source`, made and proved at the first call, and found again by content afterwards.

    Of two processes that ask at once, one converts and the other waits. Raises what `convert` raises.
    """
    if (name := own_name(source)) in RELEASE_NAMES:
        source = download(name, progress=progress)
    entry = cache_folder() / "models" / _key(source, data)
    model = CachedModel(folder=entry / "model", heads=entry / "heads.safetensors")
    if not _is_whole(entry):
        with _locked(entry):
            if not _is_whole(entry):
                shutil.rmtree(model.folder, ignore_errors=True)
                _make(model, source, data, progress)
                _write_sizes(entry)
    return model


def _is_whole(entry: Path) -> bool:
    """Whether every file of an entry is there with the size it was made with."""
    try:
        sizes = json.loads((entry / SIZES).read_text(encoding="utf-8"))
        return bool(sizes) and all((entry / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write_sizes(entry: Path) -> None:
    """Make an entry whole, in one rename."""
    files = [path for path in entry.rglob("*") if path.is_file() and path.name not in ("lock", SIZES)]
    _write_whole(entry / SIZES, json.dumps({path.relative_to(entry).as_posix(): path.stat().st_size for path in files}))


def _write_whole(path: Path, text: str) -> None:
    """Write a small file under its name in one rename, for all to read: a cache can be another user's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    draft.write_text(text, encoding="utf-8")
    draft.rename(path)


def _make(model: CachedModel, source: str | Path, data: str | Path | None, progress: Progress) -> None:
    """Fill an entry."""
    with open_checkpoint(source, data=data, scratch=model.folder.parent, progress=progress) as checkpoint:
        _write_heads(checkpoint, model.heads)
        has_lm_head = any(name.startswith("encoder.lm_head.") for name in checkpoint.weights)
    convert(
        source,
        model.folder,
        data=data,
        head="none" if has_lm_head else None,
        encoder_only=not has_lm_head,
        progress=progress,
    )


def _write_heads(checkpoint: FairseqCheckpoint, path: Path) -> None:
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for head in checkpoint.heads:
        tensors |= {f"{head}.{part}": _float32(weight) for part, weight in _parts_of(head, checkpoint.weights)}
    path.write_bytes(save(tensors))  # its save_file would make a file that only we can read


def _parts_of(head: str, weights: Mapping[str, Weight]) -> Iterator[tuple[str, Weight]]:
    """The weights of a head that fairseq's RobertaClassificationHead has; others are not of its kind and left out."""
    own = dict(weights)
    resolve_spectral_norm(own, f"classification_heads.{head}.out_proj")
    for part in HEAD_PARTS:
        if (weight := own.get(f"classification_heads.{head}.{part}")) is not None:
            yield part, weight


def _float32(weight: Weight) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.ascontiguousarray(read_array(weight), dtype=np.float32)


# ---- names by content ------------------------------------------------------------------------------------------------


def _key(source: str | Path, data: str | Path | None) -> str:
    """The digest of everything that decides about the conversion."""
    files = [_digest(path) for path in _files_of(source, data)]
    return sha256(json.dumps([__version__, FORMAT, files]).encode()).hexdigest()[:40]


def _files_of(source: str | Path, data: str | Path | None) -> list[Path]:
    """The files on the disk that `source` is made of; an archive is not unpacked for that."""
    beside = sorted(path for path in Path(data).rglob("dict.txt")) if data is not None else []
    if is_archive(source):
        return [Path(source), *beside]
    with open_source(source, data=data) as found:
        parts = [*found.checkpoint, found.dictionary, found.sentencepiece, found.labels]
        return [part.path for part in parts if part is not None]


def _digest(path: Path) -> str:
    """The file's SHA-256; remembered, since large files take long, until the file's times or size change."""
    status = path.stat()
    facts = [str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory = cache_folder() / "digests" / sha256(json.dumps(facts).encode()).hexdigest()
    try:
        remembered = memory.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        remembered = ""
    return remembered if len(remembered) == sha256().digest_size * 2 else _remembered(_sha256(path), memory)


def _remembered(digest: str, memory: Path) -> str:
    """Remember a digest where the cache can be written to; where it cannot, the entry may be there all the same."""
    with suppress(OSError):
        _write_whole(memory, digest)
    return digest


def _sha256(path: Path) -> str:
    summed = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            summed.update(block)
    return summed.hexdigest()


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the entry's lock; another process that wants it waits. Raises InputError where nothing can be written."""
    import fcntl

    try:
        entry.mkdir(parents=True, exist_ok=True)
        lock = (entry / "lock").open("w")
    except OSError as trouble:
        raise InputError(
            f"the cache {cache_folder()}, where conversions are kept, cannot be written to ({trouble.strerror}): set "
            "HF_XLMR_CACHE to a folder that can, or convert by yourself and name the converted folder"
        ) from trouble
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
