"""Each fairseq source converted once, into a cache whose entries are named by content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr import __version__
from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.checkpoint.weights import Weight, read_array
from hf_xlmr.conversion.converting import convert
from hf_xlmr.conversion.mapping.architecture import EMBEDDING, beside_heads, decide, head_oddity
from hf_xlmr.conversion.mapping.plan import resolve_spectral_norm
from hf_xlmr.conversion.source.releases import download
from hf_xlmr.conversion.source.sources import is_archive, open_source
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch, as_named
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.cache_folder import CACHE_VARIABLE, cache_folder, make_cache_folder
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.files.fsync import room_told
from hf_xlmr.files.json_files import JsonObject, strict_json
from hf_xlmr.files.locks import locked
from hf_xlmr.files.own_names import RELEASE_NAMES, own_name
from hf_xlmr.model.model_shape import HEAD_PARTS
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CachedModel", "converted_once"]

FORMAT: Final = 2  # of the entries: raised if conversions of the same source come out differently
MODELS: Final = "models"  # in the cache folder
RECORD: Final = "sizes.json"  # of an entry that is whole: size, time, inode and hash of each file
LOCK: Final = "lock"


@dataclass(frozen=True)
class CachedModel:
    """One source's conversion in the cache."""

    folder: Path
    """The masked LM (or the encoder, if the source has no LM head) as Transformers loads it."""
    heads: Path
    """Every classification head of the source: a safetensors file of `NAME.dense.weight` and so on, in float32."""
    origin: Path
    """The first file of the checkpoint, or its archive."""


def converted_once(source: str | Path, *, data: str | Path | None = None, progress: Progress = SILENT) -> CachedModel:
    """The conversion of `source`, made and proved at the first call, and found again by content afterwards.

    Of two processes that ask at once, one converts and the other waits. Raises what `convert` raises.
    """
    name = own_name(source)
    files = _files_of(download(name, progress=progress) if name in RELEASE_NAMES else source, data)
    entry = cache_folder() / MODELS / _key(files)
    model = CachedModel(folder=entry / "model", heads=entry / "heads.safetensors", origin=files[0])
    if not _is_whole(entry):
        with _locked(entry):
            if not _is_whole(entry):
                shutil.rmtree(model.folder, ignore_errors=True)
                (entry / RECORD).unlink(missing_ok=True)
                name = f"{cache_folder()}: conversion of {source}"
                with as_named(entry, name), as_named(model.folder, name), room_told(entry):
                    written = _make(model, source, data, progress)
                    _write_record(entry, {f"{model.folder.name}/{name}": digest for name, digest in written.items()})
    return model


def _is_whole(entry: Path) -> bool:
    """Whether an entry holds what it was made with: by its files' facts, and by their hashes where these changed."""
    try:
        record = strict_json((entry / RECORD).read_bytes(), has_paths=True)
        whole = bool(record) and all(_is_as_made(entry / name, made) for name, made in record.items())
        is_moved = whole and any(_facts_of(entry / name) != made["facts"] for name, made in record.items())
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return False
    if is_moved:
        with suppress(OSError):  # as in a cache that was copied, and may be another user's
            _write_record(entry, {name: made["sha256"] for name, made in record.items()})
    return whole


def _is_as_made(path: Path, made: JsonObject) -> bool:
    facts = _facts_of(path)
    return bool(facts == made["facts"] or (facts[0] == made["facts"][0] and sha256_of(path) == made["sha256"]))


def _facts_of(path: Path) -> list[int]:
    """Size, time of the last change, and inode. Raises OSError."""
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _write_record(entry: Path, known: Mapping[str, str]) -> None:
    """Make an entry whole, in one rename; `known` are SHA-256 of files, by their names in the entry. Raises OSError."""
    files = [path for path in sorted(entry.rglob("*")) if path.is_file() and path.name not in (LOCK, RECORD)]
    record = {
        name: {"facts": _facts_of(path), "sha256": known.get(name) or sha256_of(path)}
        for path in files
        for name in [path.relative_to(entry).as_posix()]
    }
    replace_content(entry / RECORD, json.dumps(record).encode())


def _make(model: CachedModel, source: str | Path, data: str | Path | None, progress: Progress) -> Mapping[str, str]:
    """Fill an entry; gives the SHA-256 of its weights, by their names in the model's folder."""
    with open_checkpoint(source, data=data, scratch=model.folder.parent, progress=progress) as checkpoint:
        wanted = beside_heads(checkpoint)
        decide(checkpoint, wanted, reads_weights=False)  # what is refused is reported before heads are read
        _write_heads(checkpoint, model.heads)
    report = convert(
        source,
        model.folder,
        data=data,
        head=wanted.head,
        encoder_only=wanted.encoder_only,
        progress=progress,
    )
    hashes = report.parity["output_sha256"] if report.parity else {}
    return hashes if isinstance(hashes, dict) else {}


def _write_heads(checkpoint: FairseqCheckpoint, path: Path) -> None:
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    for head, parts in checkpoint.parts_of_heads.items():
        if head_oddity(parts):  # if it is of unknown code, UnknownHead says so
            continue
        try:
            own = _resolved(parts, hidden=checkpoint.weights[EMBEDDING].shape[-1])
        except WeightsMismatch as trouble:
            raise IntegrityError(f"the head {head} in {checkpoint.files.checkpoint[0].name}: {trouble}") from trouble
        tensors |= {f"{head}.{part}": _float32(weight) for part, weight in own.items()}
    path.write_bytes(save(tensors))  # its save_file would make a file that only we can read


def _resolved(parts: Mapping[str, Weight], *, hidden: int) -> dict[str, Weight]:
    """The weights of a head, as fairseq's RobertaClassificationHead has them. Raises WeightsMismatch."""
    own = dict(parts)
    resolve_spectral_norm(own, "out_proj")
    shapes = {part: own[part].shape for part in HEAD_PARTS if part in own}
    inner, classes = shapes.get("dense.weight", ())[:1], shapes.get("out_proj.weight", ())[:1]
    expected = dict(zip(HEAD_PARTS, ((*inner, hidden), inner, (*classes, *inner), classes), strict=True))
    if len(shapes) == len(HEAD_PARTS):
        wrong = [f"{part} {list(shape)}" for part, shape in shapes.items() if shape != expected[part] or 0 in shape]
        if wrong:
            raise WeightsMismatch(wrong_shape=wrong)
    return {part: own[part] for part in shapes}


def _float32(weight: Weight) -> np.ndarray:
    import numpy as np

    return np.ascontiguousarray(read_array(weight), dtype=np.float32)


# ---- names by content ------------------------------------------------------------------------------------------------


def _key(files: Sequence[Path]) -> str:
    """The digest of everything that decides about the conversion."""
    hashes = [sha256_of(path) for path in files]
    return sha256(json.dumps([__version__, FORMAT, hashes]).encode()).hexdigest()[:40]


def _files_of(source: str | Path, data: str | Path | None) -> list[Path]:
    """The files on the disk that `source` is made of, the checkpoint first; an archive is not unpacked for that."""
    beside = sorted(path for path in Path(data).rglob("dict.txt")) if data is not None else []
    if is_archive(source):
        return [Path(source), *beside]
    with open_source(source, data=data) as found:
        parts = [*found.checkpoint, found.dictionary, found.sentencepiece, found.labels]
        return [part.path for part in parts if part is not None]


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the entry's lock; another process that wants it waits. Raises InputError if nothing can be written."""
    with ExitStack() as stack:
        try:
            make_cache_folder(f"{MODELS}/{entry.name}")
            stack.enter_context(locked(entry / LOCK))
        except OSError as trouble:
            raise InputError(
                f"the cache {cache_folder()}, where conversions are kept, cannot be written to ({trouble.strerror}): "
                f"set {CACHE_VARIABLE} to a folder that can, or convert by yourself and name the converted folder"
            ) from trouble
        yield
