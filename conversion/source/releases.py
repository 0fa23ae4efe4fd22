"""The official XLM-R releases: their addresses, and a download that survives breaks and company."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import TYPE_CHECKING

from hf_xlmr.conversion.source.release_hashes import HASHES_VARIABLE, known_sha256
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.cache_folder import CACHE_VARIABLE, cache_folder, make_cache_folder
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.files.locks import locked
from hf_xlmr.files.own_names import RELEASE_NAMES
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "PATIENT",
    "RELEASES",
    "Patience",
    "Release",
    "download",
    "out_of_room",
    "release_address",
    "require_room",
]

logger = logging.getLogger(__name__)

OFFICIAL_BASE = "https://dl.fbaipublicfiles.com/fairseq/models"
BASE_VARIABLE = "HF_XLMR_RELEASES_URL"
WRITE_BUFFER = 1 << 20
CONTENT_RANGE = re.compile(r"bytes (?P<start>[0-9]{1,18})-[0-9]{1,18}/(?P<total>[0-9]{1,18}|\*)")
LENGTH = re.compile(r"[0-9]{1,18}")
SENDABLE = re.compile(r"[\x20-\x7e]+")  # what a header can hold
BROKEN_OFF = re.compile("closed|disconnect|terminated|reset|incomplete", re.IGNORECASE)
GB = 10**9
LARGEST = 30 * GB
NEW_OR_LONGER = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
NETWORK_SETTINGS = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
BY_HAND = "Download the archive by other means and pass its path instead of the name."
GZIP_MAGIC = b"\x1f\x8b"
WORTH_ANOTHER_TRY = frozenset({408, 425, 429})  # of the 4xx codes; every other one means the address is wrong


@dataclass(frozen=True)
class Release:
    """One official archive; `tail` is what follows the base address, and it has at most `most` bytes."""

    name: str
    tail: str
    most: int


RELEASES = (  # at most what the parameters take in single precision
    Release("xlmr.base", "xlmr.base.tar.gz", 2 * GB),
    Release("xlmr.large", "xlmr.large.tar.gz", 3 * GB),
    Release("xlmr.xl", "xlmr/xlmr.xl.tar.gz", 15 * GB),
    Release("xlmr.xxl", "xlmr/xlmr.xxl.tar.gz", LARGEST),
    Release("xlmr.base.v0", "xlmr.base.v0.tar.gz", 2 * GB),
    Release("xlmr.large.v0", "xlmr.large.v0.tar.gz", 3 * GB),
    Release("xmod.base", "xmod/xmod.base.81.1M.tar.gz", 4 * GB),
    Release("xmod.large.prenorm", "xmod/xmod.large.prenorm.81.500k.tar.gz", 7 * GB),
    Release("xmod.base.13.125k", "xmod/xmod.base.13.125k.tar.gz", 2 * GB),
    Release("xmod.base.30.125k", "xmod/xmod.base.30.125k.tar.gz", 2 * GB),
    Release("xmod.base.30.195k", "xmod/xmod.base.30.195k.tar.gz", 2 * GB),
    Release("xmod.base.60.125k", "xmod/xmod.base.60.125k.tar.gz", 3 * GB),
    Release("xmod.base.60.265k", "xmod/xmod.base.60.265k.tar.gz", 3 * GB),
    Release("xmod.base.75.125k", "xmod/xmod.base.75.125k.tar.gz", 4 * GB),
    Release("xmod.base.75.269k", "xmod/xmod.base.75.269k.tar.gz", 4 * GB),
)


@dataclass(frozen=True)
class Patience:
    """How long to put up with a server: a try more than there are pauses (seconds) between tries that bring nothing."""

    pauses: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    timeout: float = 30.0


PATIENT = Patience()


class _TryAgainError(Exception):
    """Trouble that may pass; never leaves this module."""


@dataclass(frozen=True)
class _Job:
    """One archive to fetch, and where it and what belongs to it are."""

    release: Release
    address: str
    target: Path
    label: str
    progress: Progress
    patience: Patience

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def notes(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")


@dataclass(frozen=True)
class _Notes:
    """What the server said of the file that the .part file is a beginning of."""

    address: str
    etag: str
    modified: str
    total: int | None

    @property
    def validator(self) -> str:
        """What If-Range may name: a strong ETag, else the date of the last change, else nothing."""
        strong = self.etag if not self.etag.startswith("W/") else ""
        return next((each for each in (strong, self.modified) if SENDABLE.fullmatch(each)), "")

    @property
    def is_sound(self) -> bool:
        """Whether every field has its type."""
        has_texts = all(isinstance(each, str) for each in (self.address, self.etag, self.modified))
        return has_texts and (self.total is None or (type(self.total) is int and self.total > 0))


@dataclass(frozen=True)
class _Body:
    """The place in the whole file where an answer's bytes begin, and how long the whole is."""

    start: int
    total: int | None


def release_address(name: str) -> str:
    """The address of the archive of release `name`. Raises InputError."""
    release = _find(name)
    base = os.environ.get(BASE_VARIABLE) or OFFICIAL_BASE
    if not base.startswith(("https://", "http://")):
        raise InputError(f"{BASE_VARIABLE} must be an http:// or https:// address, not {base!r}.")
    return f"{base.rstrip('/')}/{release.tail}"


def download(name: str, *, progress: Progress = SILENT, patience: Patience = PATIENT) -> Path:
    """The cached archive of release `name`, fetched or completed if need be. Raises InputError, IntegrityError."""
    release = _find(name)
    target = cache_folder() / f"{name}.tar.gz"
    job = _Job(release, release_address(name), target, f"downloading {name}", progress, patience)
    expected, was_there = known_sha256(name), target.is_file()
    with _cache_named(target.parent):
        if not was_there:
            make_cache_folder()
            with _locked(target):
                if not target.is_file():  # whoever held the lock may have fetched it
                    _fetch(job)
        if expected is not None and sha256_of(target) != expected:
            raise _another(job, sha256_of(target), expected, was_there=was_there)
    logger.debug("%s is in the cache: %s", name, target)
    return target


def _another(job: _Job, digest: str, expected: str, *, was_there: bool) -> IntegrityError:
    """The error for an archive that is not the one the user knows; one that has just come does not stay."""
    if not was_there:
        job.target.unlink()
    where = f"{job.target}, which was in the cache," if was_there else f"what came from {job.address}"
    way_on = "Delete it to have it downloaded again." if was_there else BY_HAND
    return IntegrityError(
        f"{where} has the SHA-256 {digest}, but {HASHES_VARIABLE} says that {job.release.name} has {expected}. {way_on}"
    )


def out_of_room(folder: Path, *, needed: int) -> InputError:
    """The error for a file system that cannot take `needed` more bytes under `folder`."""
    free = shutil.disk_usage(folder).free
    return InputError(f"the disk of {folder} is full: {needed:,} bytes are needed and {free:,} are free.")


def require_room(folder: Path, *, needed: int) -> None:
    """Check that `needed` more bytes fit under `folder`. Raises InputError."""
    if shutil.disk_usage(folder).free < needed:
        raise out_of_room(folder, needed=needed)


def _find(name: str) -> Release:
    for release in RELEASES:
        if release.name == name:
            return release
    raise InputError(f"{name!r} is not a release; the releases are {', '.join(RELEASE_NAMES)}.")


@contextmanager
def _cache_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as trouble:
        raise InputError(f"the cache folder {folder} cannot be used ({trouble}); set {CACHE_VARIABLE}.") from trouble


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock that goes with `target`, waiting for it if somebody else does. Raises InputError, OSError."""
    lock = target.with_name(f"{target.name}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, waits=False))
        except BlockingIOError:
            logger.info("waiting for another process that is downloading %s", target.name)
            stack.enter_context(locked(lock))
        yield


def _fetch(job: _Job) -> None:
    """Try until the archive is whole; tries that bring nothing new are counted. Raises InputError, IntegrityError."""
    most = _size(job.part)
    pauses = iter(job.patience.pauses)
    while True:
        try:
            return _try_once(job)
        except _TryAgainError as trouble:
            if _size(job.part) > most:
                most = _size(job.part)
                pauses = iter(job.patience.pauses)
            pause = next(pauses, None)
            if pause is None:
                raise _given_up(job, trouble) from trouble
            logger.info("%s: %s; trying again in %s s", job.address, trouble, pause)
            time.sleep(pause)


def _try_once(job: _Job) -> None:
    """Ask for what is missing, once, and put the archive in its place if that made it whole."""
    held = _held(job)
    if held is not None and _size(job.part) == held.total:
        return _publish(job, held.total)
    # A proxy or server must not wrap the archive in a second compression.
    headers = {"Accept-Encoding": "identity", "User-Agent": "hf_xlmr"}
    if held is not None:
        headers |= {"Range": f"bytes={_size(job.part)}-", "If-Range": held.validator}
    with (
        _network_errors(job),
        _client(job) as client,
        client.stream("GET", job.address, headers=headers) as response,
    ):
        _check_answer(job, response)
        body = _body(job, response, held)
        _take(job, response, body)
    return _publish(job, body.total)


def _client(job: _Job) -> httpx2.Client:
    """A client that goes where the address leads. Raises InputError if the environment's settings cannot be used."""
    import httpx2

    def look(request: httpx2.Request) -> None:  # before each hop, so that nothing is asked for over a plain line
        if job.address.startswith("https:") and request.url.scheme != "https":
            raise InputError(f"{job.address} leads to {request.url}, which is not encrypted; this is refused.")

    try:
        return httpx2.Client(timeout=job.patience.timeout, follow_redirects=True, event_hooks={"request": [look]})
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as trouble:
        raise InputError(f"the network cannot be used ({trouble}): look at {NETWORK_SETTINGS}. {BY_HAND}") from trouble


@contextmanager
def _network_errors(job: _Job) -> Iterator[None]:
    """Tell trouble that may pass from trouble that will not. Raises _TryAgainError, InputError."""
    import httpx2

    try:
        yield
    except httpx2.ConnectError as trouble:
        if _size(job.part) == 0:
            raise InputError(f"{job.address} cannot be reached ({trouble}). {BY_HAND}") from trouble
        raise _TryAgainError(f"no connection ({trouble})") from trouble
    except (httpx2.HTTPError, httpx2.InvalidURL) as trouble:
        told = str(trouble).rstrip(".") or type(trouble).__name__
        if _may_pass(trouble):
            raise _TryAgainError(told) from trouble
        raise InputError(f"{job.address} cannot be downloaded: {told}. {BY_HAND}") from trouble


def _may_pass(trouble: Exception) -> bool:
    """Whether to try again: not if the address or the answer is wrong, which would come again."""
    import httpx2

    if isinstance(trouble, httpx2.RemoteProtocolError):  # also a connection that was closed too early
        return BROKEN_OFF.search(str(trouble)) is not None
    wrong = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
    return isinstance(trouble, httpx2.TransportError) and not isinstance(trouble, wrong)


def _check_answer(job: _Job, response: httpx2.Response) -> None:
    """Refuse an answer that holds no part of the file. Raises _TryAgainError, InputError."""
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416:  # what is asked for is beyond the file's end: it is another file by now
        _forget(job)
    if status >= 500 or status == 416 or status in WORTH_ANOTHER_TRY:
        raise _TryAgainError(f"the server answered {status} {response.reason_phrase}".rstrip())
    raise InputError(f"the server answered {status} for {job.address}. {BY_HAND}")


def _body(job: _Job, response: httpx2.Response, held: _Notes | None) -> _Body:
    """Where the answer's bytes belong, once noted; a file that changed is begun again. Raises _TryAgainError."""
    if response.status_code == 206 and held is not None:
        return _continuation(job, response, held)
    if response.status_code == 206:
        raise _TryAgainError("the server sent a piece where the whole was asked for")
    length = response.headers.get("content-length", "")
    body = _Body(start=0, total=int(length) if LENGTH.fullmatch(length) else None)
    if body.total is None and "chunked" not in response.headers.get("transfer-encoding", ""):
        raise InputError(f"the server does not say how long {job.address} is, so a break would pass unseen. {BY_HAND}")
    _raise_if_too_long(job, body.total or 0)
    _forget(job)
    _write_notes(job, _Notes(job.address, *_stamps(response), body.total))
    return body


def _continuation(job: _Job, response: httpx2.Response, held: _Notes) -> _Body:
    said = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    start = int(said["start"]) if said else -1
    total = int(said["total"]) if said and said["total"] != "*" else held.total
    if _changed(response, held) or start != _size(job.part) or held.total not in (None, total):
        _forget(job)
        raise _TryAgainError("the file on the server is not the one that was begun")
    _raise_if_too_long(job, total or 0)
    return _Body(start=start, total=total)


def _raise_if_too_long(job: _Job, length: int) -> None:
    if length > job.release.most:
        _forget(job)
        raise InputError(
            f"{job.address} gives {length:,} bytes or more, and {job.release.name} has at most {job.release.most:,}: "
            f"it is something else. {BY_HAND}"
        )


def _take(job: _Job, response: httpx2.Response, body: _Body) -> None:
    """Append the answer's bytes to the .part file, keeping what came if the connection breaks. Raises InputError."""
    missing = (body.total or body.start) - body.start
    require_room(job.part.parent, needed=missing)
    try:
        with (
            os.fdopen(os.open(job.part, NEW_OR_LONGER, 0o666), "ab", buffering=WRITE_BUFFER) as file,
            job.progress.task(job.label, total=body.total) as task,
        ):
            task.advance(body.start)
            have = body.start
            for block in response.iter_raw():
                have += len(block)
                _raise_if_too_long(job, have)
                file.write(block)
                task.advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    except OSError as trouble:
        if trouble.errno in (ENOSPC, EDQUOT):
            raise out_of_room(job.part.parent, needed=missing) from trouble
        raise


def _publish(job: _Job, total: int | None) -> None:
    """Give the finished .part file its name. Raises _TryAgainError, IntegrityError."""
    size = _size(job.part)
    if total is not None and size != total:
        raise _TryAgainError(f"{size:,} of {total:,} bytes have come")
    with job.part.open("rb") as file:
        magic = file.read(len(GZIP_MAGIC))
    if magic != GZIP_MAGIC:  # such as the log-in page of a public network, which must not stay in the cache
        _forget(job)
        raise IntegrityError(f"what came from {job.address} is not a .tar.gz archive. {BY_HAND}")
    job.part.replace(job.target)
    job.notes.unlink(missing_ok=True)
    folder = os.open(job.target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _held(job: _Job) -> _Notes | None:
    """The notes on the .part file, if it can be continued."""
    try:
        known = json.loads(job.notes.read_bytes())
        notes = _Notes(**known)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    if not notes.is_sound:
        return None
    size = _size(job.part)
    fits = size > 0 and (notes.total is None or size <= notes.total)
    return notes if fits and notes.address == job.address and notes.validator else None


def _stamps(response: httpx2.Response) -> tuple[str, str]:
    return str(response.headers.get("etag", "")), str(response.headers.get("last-modified", ""))


def _changed(response: httpx2.Response, held: _Notes) -> bool:
    """Whether a server that did not heed If-Range shows by its stamps that the file is another one."""
    pairs = zip(_stamps(response), (held.etag, held.modified), strict=True)
    return any(now and then and now != then for now, then in pairs)


def _write_notes(job: _Job, notes: _Notes) -> None:
    replace_content(job.notes, json.dumps(asdict(notes)).encode())


def _forget(job: _Job) -> None:
    job.notes.unlink(missing_ok=True)
    job.part.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _given_up(job: _Job, trouble: Exception) -> InputError:
    tries = len(job.patience.pauses) + 1
    kept = f" What came is kept and continued next time: {job.part}." if _held(job) else ""
    return InputError(f"{job.address} could not be downloaded in {tries} tries: {trouble}.{kept} {BY_HAND}")
