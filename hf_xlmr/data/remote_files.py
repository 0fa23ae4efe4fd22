"""Files that fsspec opens (`hf://`, `s3://`, `gs://`, `https://` ...); what is said of them shows no credentials."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from hf_xlmr.errors import HfXlmrError, InputError, printable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["RemoteFile", "RemotePlace", "is_url", "remote_place", "without_credentials"]

URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
URL_IN_TEXT: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
USER: Final = re.compile(r"://([^/?#\s]*|[^/?#@\s]+:(?!\d*[/?#])[^@\s]*)@")  # a password may hold what it should not
QUERY: Final = re.compile(r"[?#].*")
SETTINGS: Final = re.compile(r"\?[^?]*=.*")  # a question mark is also part of a pattern
WEB: Final = ("http://", "https://")
LOCAL: Final = ("file", "local")
BLOCK: Final = 1 << 22  # bytes of one request
SILENT_SECONDS: Final = 60.0
SHORTEST_SECRET: Final = 3
LONGEST_TOLD: Final = 300
HIDDEN: Final = "***"
MARKS: Final = (
    *("ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "VersionId", "md5Hash", "crc32c"),
    *("generation", "updated", "content_md5", "last_modified", "mtime", "created", "modified", "checksum", "sha256"),
    *("blob_id", "xet_hash"),
)
"""What file systems say of a file that changes with its content."""


def is_url(source: str) -> bool:
    """Whether this is a URL, and not a path."""
    return bool(URL.match(source))


def without_credentials(url: str) -> str:
    """A URL as it may be shown: without a user, a password, and what follows a question mark."""
    links = [USER.sub("://", link) for link in url.split("::")]
    return "::".join((QUERY if link.startswith(WEB) else SETTINGS).sub("", link) for link in links)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a file system of fsspec, with the methods of a path that reading needs; as text it is its name."""

    files: AbstractFileSystem
    path: str
    shown: str
    """Its URL without credentials."""
    seen: list[tuple[object, ...] | None] = field(default_factory=list, compare=False, repr=False)
    """The latest `identity`, by which a file is opened without another request."""

    def __str__(self) -> str:
        """The URL without credentials."""
        return self.shown

    @property
    def _plain(self) -> PurePosixPath:
        return PurePosixPath(without_credentials(self.path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._plain.name

    @property
    def suffix(self) -> str:
        """The ending of the name."""
        return self._plain.suffix

    @property
    def suffixes(self) -> list[str]:
        """All endings of the name."""
        return self._plain.suffixes

    def is_file(self) -> bool:
        """It can be read more than once."""
        return True

    @cached_property
    def is_random(self) -> bool:
        """Whether parts of it can be read; some servers send whole files alone. Raises InputError."""
        with _told(self.shown, _secrets(self.path, self.files)):
            try:
                with self.files.open(self.path, "rb", block_size=BLOCK, cache_type="none") as file:
                    file.seek(1)
                    file.read(1)
                    return True
            except (ValueError, NotImplementedError):  # from servers that ignore what is asked for
                return False

    def open(self, _mode: str = "rb", buffering: int = 0) -> IO[bytes]:
        """The file, unbuffered. Raises InputError."""
        size, secrets = BLOCK if self.is_random else 0, _secrets(self.path, self.files)
        with _told(self.shown, secrets):
            options: dict[str, object] = {"cache_type": "none"} if size else {}
            if size and self.path.startswith(WEB) and self.seen and self.seen[0]:
                options["size"] = self.seen[0][1]  # else the server is asked for it
            return _Reader(self.files.open(self.path, "rb", block_size=size, **options), self, secrets)  # type: ignore[return-value]

    def identity(self) -> tuple[object, ...] | None:
        """What the file system says that changes with the content; None if it says nothing. Raises InputError."""
        with _told(self.shown, _secrets(self.path, self.files)):
            self.files.invalidate_cache(self.path)
            found: Mapping[str, object] = self.files.info(self.path)
        marks = [f"{key}={found[key]}" for key in MARKS if found.get(key)]
        self.seen[:] = [(self.shown, found.get("size"), "; ".join(marks)) if marks else None]
        return self.seen[0]


class _Reader(io.RawIOBase):
    """What fsspec opened; it has its own position, as files in memory share one."""

    def __init__(self, file: IO[bytes], place: RemoteFile, secrets: frozenset[str]) -> None:
        self._file, self._place, self._secrets = file, place, secrets
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._place.is_random

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _told(self._place.shown, self._secrets):
            if not self.seekable():
                raise InputError(printable(f"{self._place} can only be read from its beginning on: download it first"))
            self._at = int(self._file.seek(self._at + offset, 0) if whence == 1 else self._file.seek(offset, whence))
        return self._at

    def read(self, size: int = -1) -> bytes:
        with _told(self._place.shown, self._secrets):
            if self.seekable() and self._file.tell() != self._at:
                self._file.seek(self._at)
            data = bytes(self._file.read(size))
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@dataclass(frozen=True)
class RemotePlace:
    """What a URL names: a file, a pattern or a folder."""

    files: AbstractFileSystem
    path: str
    url: str

    @property
    def name(self) -> str:
        """The URL without credentials."""
        return without_credentials(self.url)

    @property
    def file(self) -> RemoteFile:
        """The file of that name."""
        return RemoteFile(self.files, self.path, self.name)

    @property
    def _is_web(self) -> bool:
        return self.path.startswith(WEB)

    @property
    def is_pattern(self) -> bool:
        """Whether it names several files."""
        return any(each in self.path for each in ("*[" if self._is_web else "*[?"))

    def is_folder(self, *, is_named_as_file: bool) -> bool:
        """Whether it is a folder; a page of the web is not if it is named as a file is. Raises InputError."""
        if self.url.endswith("/") or (is_named_as_file and self._is_web):
            return self.url.endswith("/")
        with _told(self.name, _secrets(self.url, self.files)):
            return bool(self.files.isdir(self.path))

    def matches(self) -> list[RemoteFile]:
        """The files that match a pattern, by their names. Raises InputError."""
        with _told(self.name, _secrets(self.url, self.files)):
            found: Mapping[str, Mapping[str, object]] = self.files.glob(self.path, detail=True)
            return self._named([path for path, facts in found.items() if facts.get("type") != "directory"])

    def listed(self) -> list[RemoteFile]:
        """The files in a folder, by their names. Raises InputError."""
        with _told(self.name, _secrets(self.url, self.files)):
            found = self.files.ls(self.path, detail=True)
            return self._named([each["name"] for each in found if each.get("type") != "directory"])

    def _named(self, paths: list[str]) -> list[RemoteFile]:
        full = {path: self.files.unstrip_protocol(path) for path in sorted(paths)}
        return [RemoteFile(self.files, path, without_credentials(url)) for path, url in full.items()]


def remote_place(url: str) -> RemotePlace | str:
    """What a URL names, or the path on this disk that it is. Raises InputError naming a package that is missing."""
    from fsspec.core import url_to_fs

    name = without_credentials(url)
    with _told(name, _secrets(url)):
        try:
            files, path = url_to_fs(url, **_patience_of_the_web(url))
        except ImportError as error:
            raise InputError(printable(f"{name} needs a package that is not installed: {error}")) from None
    protocol = files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)
    return str(path) if set(protocol) & set(LOCAL) else RemotePlace(files, str(path), url)


def _patience_of_the_web(url: str) -> dict[str, object]:
    """The options by which a server that falls silent is given up, and one that is waited with is not.

    aiohttp would end every answer that takes more than five minutes, also where computing holds the reader back.
    """
    found = [scheme for scheme in ("http", "https") if f"{scheme}://" in url]
    if not found:
        return {}
    from aiohttp import ClientTimeout

    limits = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
    return {scheme: {"client_kwargs": {"timeout": limits}} for scheme in found}


@contextmanager
def _told(name: str, secrets: frozenset[str]) -> Iterator[None]:
    """Turn what file systems raise into a sentence without secrets; the error itself, which has them, is let go of."""
    try:
        yield
    except (HfXlmrError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - each file system has its own errors
        raise InputError(printable(f"{name} {_why(error, secrets)}")) from None


def _why(error: Exception, secrets: frozenset[str]) -> str:
    if isinstance(error, OSError) and error.__cause__ is not None:  # of the web, whatever it was
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == HTTPStatus.NOT_FOUND:
        return "does not exist, or may not be seen by you"
    if isinstance(error, PermissionError) or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "may not be read by you: check your credentials"
    said = URL_IN_TEXT.sub(lambda found: without_credentials(found[0]), str(error).strip().partition("\n")[0])
    for secret in sorted(secrets, key=len, reverse=True):
        said = said.replace(secret, HIDDEN)
    return f"cannot be read: {said[:LONGEST_TOLD] or type(error).__name__}"


def _secrets(url: str, files: AbstractFileSystem | None = None) -> frozenset[str]:
    """What must not be shown: of a URL its user, password and query, of a file system its options."""
    found: list[str] = []
    for user in USER.finditer(url):
        found += [user[1], *user[1].split(":")]
    for part in url.split("::"):
        query = urlsplit(part.replace("#", "?")).query if "?" in part else ""
        found += [query, *(value for _, value in parse_qsl(query))]
    found += _texts_in(files.storage_options if files is not None else {})
    forms = {form for each in found for form in (each, quote(each, safe=""), unquote(each))}
    return frozenset(each for each in forms if len(each) >= SHORTEST_SECRET)


def _texts_in(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for each in value.values() for text in _texts_in(each)]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts_in(each)]
    return [value] if isinstance(value, str) else []
