"""Where the files come from: a folder, a file, an archive, a release or the demo, all as runs of bytes."""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from errno import EDQUOT, EINVAL, ENOSPC
from itertools import count
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import IO, TYPE_CHECKING, Literal, cast

from hf_xlmr.conversion.source.other_formats import OF_TRAINERS, is_hub_id, kind_of_file, kind_of_folder
from hf_xlmr.conversion.source.releases import download, out_of_room, require_room
from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.errors import InputError, IntegrityError, as_named, first_of
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.files.own_names import DEMO, NAMES, RELEASE_NAMES, is_there, own_name
from hf_xlmr.progress import SILENT, Progress, ProgressTask

if TYPE_CHECKING:
    import tarfile

__all__ = ["SourceFiles", "SourceKind", "is_archive", "open_source"]

logger = logging.getLogger(__name__)

SourceKind = Literal["folder", "file", "archive", "release", "demo"]
Packing = Literal["tar", "gzip", "bzip2", "xz"]

CHECKPOINT_STEMS = ("model", "checkpoint_best", "checkpoint_last")  # the first that exists is taken
DICTIONARY_NAMES = ("dict.txt", "input0/dict.txt")
SENTENCEPIECE_NAMES = ("sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
LABELS_NAME = "label/dict.txt"
DEEP_NAMES = ("fairseq/conversion.json",)  # files in subfolders that show what a folder is
PART = re.compile(r"(?P<stem>.+?)(?P<mark>-model_part-|_part|-shard)(?P<rank>[0-9]{1,5})\.pt")

CHECKPOINT_MAGICS = (b"PK\x03\x04", b"\x80")  # torch's zip and its older pickle stream
PACKING_MAGICS: dict[bytes, Packing] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
ARCHIVE_NAME = re.compile(r"(?P<stem>.+)\.(tar|tgz|tbz2?|txz|tar\.[a-z0-9]+)", re.IGNORECASE)
TAR_BLOCK = 512
TAR_CHECKSUM = slice(148, 156)
LARGEST_HEADER = 1 << 15  # of a long name or an extended header: more than that is an attack on memory
MOST_EFFORT = 1 << 29  # squared bytes of extended headers: tarfile takes that long, and that much memory, for them
MOST_MEMBERS = 100_000
MOST_INFLATION = 200  # times the compressed size; weights do not shrink by a tenth of that
ALWAYS_INFLATED = 1 << 29
COPY_BLOCK = 1 << 20
SHOWN = 8
LARGEST_NEIGHBOUR = 1 << 28  # of a dictionary or a SentencePiece model; they are read whole


@dataclass(frozen=True)
class SourceFiles:
    """The files of one checkpoint; `checkpoint` is one file, or the parts in rank order."""

    name: str
    kind: SourceKind
    checkpoint: tuple[FileSlice, ...]
    dictionary: FileSlice | None
    sentencepiece: FileSlice | None
    labels: FileSlice | None
    archive_sha256: str | None = None
    """The digest of the archive, if the source is a release."""

    @property
    def companions(self) -> dict[str, FileSlice]:
        """The small files next to the checkpoint, under the names that fairseq looks for."""
        parts = {"dict.txt": self.dictionary, SENTENCEPIECE_NAMES[0]: self.sentencepiece, LABELS_NAME: self.labels}
        return {name: part for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class _Candidate:
    """The name of a checkpoint: a whole file, or all parts with one `mark` before their ranks."""

    stem: str
    mark: str = ""

    @classmethod
    def of(cls, name: str) -> _Candidate:
        part = PART.fullmatch(name)
        return cls(part["stem"], part["mark"]) if part else cls(name.removesuffix(".pt"))

    @property
    def standing(self) -> int:
        known = self.stem in CHECKPOINT_STEMS
        return CHECKPOINT_STEMS.index(self.stem) if known else len(CHECKPOINT_STEMS)

    def outranks(self, other: _Candidate) -> bool:
        """Whether `other` cannot be chosen together with this one."""
        whole = self.stem == other.stem and not self.mark and bool(other.mark)
        return whole or self.standing < other.standing


@contextmanager
def open_source(
    source: str | Path, *, data: str | Path | None = None, progress: Progress = SILENT, scratch: Path | None = None
) -> Iterator[SourceFiles]:
    """The files that `source` stands for; what had to be unpacked goes away at exit. Raises InputError, IntegrityError.

    `source` is a path, the name of a release, or `demo`. `data` is a folder whose dictionaries come before those of the
    source, as that of fairseq-preprocess. Compressed archives are unpacked under `scratch`.
    """
    with ExitStack() as stack:
        found = _find(str(source), stack, progress, scratch)
        yield found if data is None else _with_data(found, Path(data))


def is_archive(source: str | Path) -> bool:
    """Whether `source` is the path of an archive. Raises InputError."""
    path = Path(source)
    return is_there(str(source)) and path.is_file() and _packing(_whole(path)) is not None


def _find(source: str, stack: ExitStack, progress: Progress, scratch: Path | None) -> SourceFiles:
    name = own_name(source)
    if name == DEMO:
        return _from_demo(stack)
    if name is not None:
        return _from_release(name, stack, progress, scratch)
    if is_there(source):
        return _from_path(Path(source), stack, progress, scratch)
    raise InputError(_not_found(source))


def _not_found(source: str) -> str:
    if source and "\0" not in source and Path(source).is_symlink():
        return f"{source} is a link that leads nowhere."
    tried = Path(source).absolute() if source else "''"
    on_hub = (
        " A repository of that name on the Hub is a Transformers model already: AutoModel and XLMR load it by its name."
    )
    near = get_close_matches(source, NAMES, 1)
    told = f"{source!r} is neither a file or folder (tried {tried}) nor a name such as {DEMO} or {RELEASE_NAMES[0]}"
    return f"{told}; did you mean {near[0]}?" if near else f"{told}.{on_hub * is_hub_id(source)}"


def _from_path(path: Path, stack: ExitStack, progress: Progress, scratch: Path | None) -> SourceFiles:
    with _reading_named(path):
        if path.is_dir():
            return _from_folder(path)
        packing = _packing(_whole(path))
        if packing is None:
            return _from_file(path)
    return _from_archive(path, packing, stack, progress, scratch)


# ---- folders and files


def _from_folder(path: Path) -> SourceFiles:
    home, listing = path, _listing(path)
    if not _checkpoint_names(listing):
        folders = [entry for entry in listing.values() if entry.is_dir()]
        if len(folders) == 1:  # as unpacked archives are
            home, listing = folders[0], _listing(folders[0])
    if not _checkpoint_names(listing):
        for folder in dict.fromkeys((path, home)):
            _raise_if_transformers(folder)
        hidden = " (not hf_xlmr's own of that name, since a path that exists comes first)" * (str(path) in NAMES)
        raise InputError(f"the folder {path}{hidden} holds no checkpoint: model.pt, or one other .pt file.")
    return _gather(path.resolve().name, "folder", _choose(listing, home), listing, lambda name: _whole(home / name))


def _raise_if_transformers(folder: Path) -> None:
    """Raise InputError for a folder of Transformers, which says what can be done with it."""
    names = {*_listing(folder), *(name for name in DEEP_NAMES if (folder / name).is_file())}
    if kind := kind_of_folder(names, lambda name: (folder / name).read_bytes()):
        raise InputError(f"{folder} is {kind}.")


def _from_file(path: Path) -> SourceFiles:
    if kind := kind_of_file(path, _whole(path).read(0, TAR_BLOCK)):
        raise InputError(f"{path} is {kind}.")
    listing = _listing(path.parent)
    part = PART.fullmatch(path.name) if path.name in listing else None
    files = _files_of(_Candidate.of(path.name), listing, path.parent) if part else (path.name,)
    name = part["stem"] if part else path.stem
    return _gather(name, "file", files, listing, lambda one: _whole(path.parent / one))


def _from_demo(stack: ExitStack) -> SourceFiles:
    from importlib.resources import as_file, files

    folder = files("hf_xlmr") / DEMO
    if not (folder / "model.pt").is_file():
        raise InputError("this installation of hf_xlmr has no demo; install it again.")
    listing = {entry.name: stack.enter_context(as_file(entry)) for entry in folder.iterdir() if entry.is_file()}
    return _gather(DEMO, "demo", ("model.pt",), listing, lambda name: _whole(listing[name]))


def _listing(folder: Path) -> dict[str, Path]:
    """What `folder` shows by name, with the dictionaries one level below. Raises InputError."""
    with _reading_named(folder):
        entries = {entry.name: entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")}
        below = {name: folder / name for name in (*DICTIONARY_NAMES, LABELS_NAME) if (folder / name).is_file()}
    return entries | below


def _whole(path: Path) -> FileSlice:
    """The whole of a regular file that can be read. Raises InputError."""
    with _reading_named(path):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # checked before opening, since opening a pipe would wait for its other end
            raise InputError(f"{path} is a {'folder' if stat.S_ISDIR(mode) else 'special file'}, not a file.")
        with path.open("rb"):
            return FileSlice.whole(path)


@contextmanager
def _reading_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as trouble:
        raise InputError(f"cannot read {path}: {trouble.strerror or trouble}.") from trouble


def _with_data(files: SourceFiles, data: Path) -> SourceFiles:
    """`files` with what the folder `data` holds in place of its own. Raises InputError if it has no dictionary."""
    with _reading_named(data):
        if not data.is_dir():
            raise InputError(f"{data}, where dict.txt should be, is not a folder.")
    beside = _gather(data.name, "folder", (), (listing := _listing(data)), lambda name: _whole(data / name))
    if beside.dictionary is None:
        raise InputError(
            f"the folder {data} holds no dict.txt, nor input0/dict.txt (it has {first_of(list(listing), SHOWN)})."
        )
    return replace(
        files,
        dictionary=beside.dictionary,
        sentencepiece=files.sentencepiece or beside.sentencepiece,
        labels=beside.labels or files.labels,
    )


# ---- the choice among names, the same for folders and archives


def _checkpoint_names(names: Collection[str]) -> list[str]:
    return sorted(name for name in names if name.endswith(".pt") and "/" not in name and name not in OF_TRAINERS)


def _choose(names: Collection[str], where: Path) -> tuple[str, ...]:
    """The files of the checkpoint that is meant, parts in rank order. Raises InputError."""
    candidates = {_Candidate.of(name): name for name in _checkpoint_names(names)}
    left = [one for one in candidates if not any(other.outranks(one) for other in candidates)]
    if len(left) > 1:
        several = first_of([candidates[one] for one in left], SHOWN)
        raise InputError(f"{where} holds several checkpoints ({several}): pass one.")
    return _files_of(left[0], names, where)


def _files_of(candidate: _Candidate, names: Collection[str], where: Path) -> tuple[str, ...]:
    """The files of `candidate` in rank order. Raises InputError."""
    files = [name for name in _checkpoint_names(names) if _Candidate.of(name) == candidate]
    ranked: dict[int, str] = {}
    for name in files if candidate.mark else ():
        part = PART.fullmatch(name)
        rank = int(part["rank"]) if part else 0
        if rank in ranked:
            raise InputError(f"{where} holds part {rank} twice: {ranked[rank]} and {name}.")
        ranked[rank] = name
    gap = next(rank for rank in count() if rank not in ranked)
    if gap < len(ranked):
        missing = f"{candidate.stem}{candidate.mark}{gap}.pt"
        raise InputError(f"{where} holds {ranked[max(ranked)]} but not {missing}: all parts must be together.")
    return tuple(ranked[rank] for rank in range(gap)) if candidate.mark else tuple(files)


def _gather(
    name: str, kind: SourceKind, checkpoint: tuple[str, ...], names: Collection[str], get: Callable[[str], FileSlice]
) -> SourceFiles:
    """The chosen `checkpoint` and what belongs to it among `names`. Raises InputError."""
    dictionary = next((one for one in DICTIONARY_NAMES if one in names), None)
    sentencepiece = _sentencepiece(names)
    found = SourceFiles(
        name=name or "checkpoint",
        kind=kind,
        checkpoint=tuple(get(one) for one in checkpoint),
        dictionary=get(dictionary) if dictionary else None,
        sentencepiece=get(sentencepiece) if sentencepiece else None,
        labels=get(LABELS_NAME) if LABELS_NAME in names else None,
    )
    for part in (*found.checkpoint, found.dictionary, found.sentencepiece, found.labels):
        if part is not None and part.length == 0:
            raise InputError(f"{part.name} is empty.")
    for part in (found.dictionary, found.sentencepiece, found.labels):
        if part is not None and part.length > LARGEST_NEIGHBOUR:
            raise InputError(f"{part.name} has {part.length:,} bytes, as no dictionary or SentencePiece model does.")
    return found


def _sentencepiece(names: Collection[str]) -> str | None:
    known = next((name for name in SENTENCEPIECE_NAMES if name in names), None)
    others = sorted(name for name in names if name.endswith(".model") and "/" not in name)
    if known is None and len(others) > 1:
        logger.warning("none of %s is taken for the SentencePiece model: there are several", first_of(others, SHOWN))
    return known or (others[0] if len(others) == 1 else None)


# ---- archives


def _from_release(name: str, stack: ExitStack, progress: Progress, scratch: Path | None) -> SourceFiles:
    path = download(name, progress=progress)
    stack.enter_context(_of_release(path, name))
    found = _from_path(path, stack, progress, scratch)
    return replace(found, name=name, kind="release", archive_sha256=sha256_of(path))


@contextmanager
def _of_release(path: Path, name: str) -> Iterator[None]:
    """Say the release's `name` for its archive in the cache, and how to repair a damaged one."""
    try:
        yield
    except IntegrityError as trouble:
        if str(path) not in str(trouble):
            raise
        told = str(trouble).replace(str(path), name).rstrip(".")
        raise IntegrityError(f"{told}. Delete {path} to have it downloaded again.") from trouble
    except (InputError, OSError):
        with as_named(path, name):
            raise


def _packing(file: FileSlice) -> Packing | None:
    """How the archive is packed, None for a checkpoint. Raises IntegrityError."""
    head = file.read(0, TAR_BLOCK)
    if head.startswith(CHECKPOINT_MAGICS):
        return None
    for magic, packing in PACKING_MAGICS.items():
        if head.startswith(magic):
            return packing
    if head[257:262] == b"ustar" or _has_tar_checksum(head):
        return "tar"
    if head and ARCHIVE_NAME.fullmatch(file.path.name):
        raise IntegrityError(f"{file.path} has the name of an archive, but its content is none.")
    return None


def _has_tar_checksum(head: bytes) -> bool:
    """Whether `head` is the header of a tar from before there was a magic word."""
    try:
        stated = int(head[TAR_CHECKSUM].strip(b" \0"), 8)
    except ValueError:
        return False
    blanked = head[: TAR_CHECKSUM.start] + b" " * 8 + head[TAR_CHECKSUM.stop :]
    return len(head) == TAR_BLOCK and sum(blanked) == stated


def _from_archive(
    path: Path, packing: Packing, stack: ExitStack, progress: Progress, scratch: Path | None
) -> SourceFiles:
    seen: set[str] = set()
    with _damage_named(path):
        if packing == "tar":
            members = _members_in_place(path, seen)
        else:
            unpacked = _scratch_folder(stack, scratch)
            stack.enter_context(as_named(unpacked, f"{path} (unpacked)"))
            members = _members_unpacked(path, packing, unpacked, progress, seen)
    home = _home(members, path, seen)
    inside = {name.removeprefix(home): part for name, part in members.items() if name.startswith(home)}
    named = ARCHIVE_NAME.fullmatch(path.name)
    stem = named["stem"] if named else path.stem
    return _gather(stem, "archive", _choose(inside, path), inside, inside.__getitem__)


def _home(members: Collection[str], path: Path, seen: Collection[str]) -> str:
    """The folder of the archive that the checkpoint is in with its slash, empty for the root. Raises InputError."""
    files = [name.rpartition("/") for name in members]
    homes = {"".join(parts[:2]) for parts in files if parts[2].endswith(".pt") and parts[2] not in OF_TRAINERS}
    if not homes:
        if kind := kind_of_folder({name.rpartition("/")[2] for name in seen}, lambda _name: b""):
            raise InputError(f"the archive {path} is {kind}.")
        raise InputError(f"the archive {path} holds no checkpoint: model.pt, or one other .pt file.")
    if "" not in homes and len(homes) > 1:
        raise InputError(f"the archive {path} holds checkpoints in several folders ({first_of(sorted(homes), SHOWN)}).")
    return "" if "" in homes else homes.pop()


def _members_in_place(path: Path, seen: set[str]) -> dict[str, FileSlice]:
    """The wanted members of a plain tar where they are, by name; `seen` gets the names of all."""
    import tarfile

    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_strict_headers()) as tar:
        return {
            name: FileSlice(path, member.offset_data, member.size, f"{path}:{name}")
            for name, member in _wanted_members(tar, path, seen)
        }


def _members_unpacked(
    path: Path, packing: Packing, scratch: Path, progress: Progress, seen: set[str]
) -> dict[str, FileSlice]:
    """The wanted members of a compressed tar, unpacked into `scratch` in one pass; `seen` gets the names of all."""
    import tarfile

    kept: dict[str, FileSlice] = {}
    numbers = count()  # so that members of one name in two folders do not meet
    with (
        path.open("rb", buffering=0) as file,
        _inflating(file, packing) as inflated,
        progress.task(f"unpacking {path.name}", total=path.stat().st_size) as task,
    ):
        stream = _Forward(inflated, file, task)
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_strict_headers()) as tar:
            for name, member in _wanted_members(tar, path, seen):
                if any(_outranks(other, name) for other in kept):
                    continue
                for beaten in [other for other in kept if _outranks(name, other)]:
                    kept.pop(beaten).path.unlink()
                target = scratch / f"{next(numbers)}-{PurePosixPath(name).name}"
                _unpack(stream, member, target)
                kept[name] = FileSlice(target, 0, member.size, f"{path}:{name}")
        while stream.read(COPY_BLOCK):  # the checksum comes after the tar's end
            pass
    return kept


class _Forward(io.RawIOBase):
    """An inflated file that is only ever read onwards; progress is how far the compressed one has been read.

    tarfile's own stream mode does not notice the end while it skips: a lie about a size keeps it busy for hours.
    """

    def __init__(self, inflated: IO[bytes], compressed: IO[bytes], task: ProgressTask) -> None:
        super().__init__()
        self._inflated = inflated
        self._compressed = compressed
        self._task = task
        self._told = 0
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        block = self._inflated.read(size)
        self._position += len(block)
        now = self._compressed.tell()
        self._task.advance(now - self._told)
        self._told = now
        if self._position > ALWAYS_INFLATED + MOST_INFLATION * now:
            raise EOFError(f"{now:,} bytes of it hold more than {self._position:,}")
        return block

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go on to `position`, or to the end if that comes first. Raises EOFError."""
        if whence != io.SEEK_SET or position < self._position:
            raise EOFError("it would have to be read backwards")
        while self._position < position and self.read(min(COPY_BLOCK, position - self._position)):
            pass
        return self._position


def _unpack(stream: _Forward, member: tarfile.TarInfo, target: Path) -> None:
    require_room(target.parent, needed=member.size)
    stream.seek(member.offset_data)
    left = member.size
    try:
        with target.open("xb") as file:
            while block := stream.read(min(COPY_BLOCK, left)):
                file.write(block)
                left -= len(block)
    except OSError as trouble:
        if trouble.errno in (ENOSPC, EDQUOT):
            raise out_of_room(target.parent, needed=member.size) from trouble
        raise
    if left:
        raise EOFError(f"{member.name!r} lacks {left:,} bytes")


def _outranks(name: str, other: str) -> bool:
    """Whether the checkpoint `name` is sure to be chosen over `other`, which then need not take up room."""
    one, two = PurePosixPath(name), PurePosixPath(other)
    checkpoints = one.parent == two.parent and one.suffix == two.suffix == ".pt"
    return checkpoints and _Candidate.of(one.name).outranks(_Candidate.of(two.name))


def _scratch_folder(stack: ExitStack, scratch: Path | None) -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="hf_xlmr-", dir=scratch))
    except OSError as trouble:
        raise InputError(f"cannot unpack into {scratch or tempfile.gettempdir()}: {trouble.strerror}.") from trouble
    stack.callback(rmtree, folder, ignore_errors=True)
    return folder


def _inflating(file: IO[bytes], packing: Packing) -> IO[bytes]:
    """A reader of what `file` holds once inflated. Raises what the format's library raises."""
    if packing == "gzip":
        from isal import igzip

        # Not igzip_threaded: tests/benchmarks/inflate.py shows no gain from it, the inflating itself being the limit.
        return cast("IO[bytes]", igzip.IGzipFile(fileobj=file, mode="rb"))  # type: ignore[no-untyped-call]
    if packing == "bzip2":
        import bz2

        return bz2.open(file, "rb")
    import lzma

    return lzma.open(file, "rb")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Tell a damaged archive from one that cannot be read. Raises InputError, IntegrityError."""
    import lzma
    import tarfile
    import zlib

    from isal.igzip_lib import IsalError

    damage = (tarfile.TarError, zlib.error, IsalError, lzma.LZMAError, EOFError)
    nonsense = (ValueError, OverflowError, RecursionError)  # what tarfile does not catch of hostile headers
    try:
        yield
    except (*damage, *nonsense) as trouble:  # type: ignore[misc]  # isal's stubs give its error class as an instance
        raise IntegrityError(f"the archive {path} is damaged, or not a tar at all: {trouble}.") from trouble
    except OSError as trouble:
        if trouble.errno in (None, EINVAL):  # how gzip and bz2 describe damage, and seek of an impossible place
            raise IntegrityError(f"the archive {path} is damaged: {trouble}.") from trouble
        raise InputError(f"cannot unpack {path}: {trouble.strerror}.") from trouble


def _wanted_members(tar: tarfile.TarFile, path: Path, seen: set[str]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The members to keep, by clean name, once none is found to be a trap; `seen` gets all. Raises InputError."""
    for number, member in enumerate(tar):
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps them all, with their headers; its stubs do not say so
        if number == MOST_MEMBERS:
            raise InputError(f"the archive {path} is refused: it holds more than {MOST_MEMBERS:,} members.")
        name = _safe_name(member, path)
        if member.isdir():
            continue
        if name in seen:
            raise InputError(f"the archive {path} is refused: it holds {name!r} twice.")
        seen.add(name)
        wanted = _is_wanted(name)
        _refuse_trap(member, name, path, wanted=wanted)
        if wanted:
            yield name, member


def _safe_name(member: tarfile.TarInfo, path: Path) -> str:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"the archive {path} is refused: its member {member.name!r} leaves the archive's folder.")
    return str(name)


def _refuse_trap(member: tarfile.TarInfo, name: str, path: Path, *, wanted: bool) -> None:
    """Refuse devices, pipes, and links that are wanted or lead outside. Raises InputError."""
    if member.issym() or member.islnk():
        base = os.path.dirname(name) if member.issym() else ""  # noqa: PTH120  # a name in the archive, not on disk
        leaves = os.path.normpath(os.path.join(base, member.linkname)).startswith(("..", "/"))  # noqa: PTH118
        if wanted or leaves:
            raise InputError(f"the archive {path} is refused: its member {name!r} is a link to {member.linkname!r}.")
    elif not member.isreg():
        raise InputError(f"the archive {path} is refused: its member {name!r} is a device or pipe.")
    elif wanted and member.issparse():
        raise InputError(f"the archive {path} is refused: its member {name!r} is stored sparse; pack it again.")


def _is_wanted(name: str) -> bool:
    base = PurePosixPath(name).name
    # macOS packs a hidden ._NAME next to every file
    return not base.startswith(".") and (base.endswith((".pt", ".model")) or base == "dict.txt")


def _strict_headers() -> type[tarfile.TarInfo]:
    """Headers for one archive that do not take damage for its end, as tarfile's own do, and that have a limit."""
    import tarfile

    pax = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
    extended = (*pax, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

    class StrictHeader(tarfile.TarInfo):
        effort = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictHeader:
            if bytes(buf) == bytes(TAR_BLOCK):
                return super().frombuf(buf, encoding, errors)  # raises what tarfile knows as the end
            try:
                header = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as trouble:
                raise tarfile.ReadError(f"{trouble} where a member or the end should be") from trouble
            if header.size < 0 or (header.type in extended and header.size > LARGEST_HEADER):
                raise tarfile.ReadError(f"a member of {header.size} bytes")
            if header.type in pax:  # global ones are copied for every member
                cls.effort += max(TAR_BLOCK, header.size) ** 2 * (16 if header.type == tarfile.XGLTYPE else 1)
            if cls.effort > MOST_EFFORT:
                raise tarfile.ReadError("too many extended headers")
            if header.type == tarfile.GNUTYPE_SPARSE and buf[482]:  # a map that continues; tarfile reads without an end
                raise tarfile.ReadError("a member in too many pieces")
            return header

        def _proc_gnusparse_10(self, *_given: object) -> None:
            raise tarfile.ReadError("a member in pieces, whose map tarfile reads without an end")

    return StrictHeader
