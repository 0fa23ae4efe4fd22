"""A model folder that is opened once and passed along: what several readers need of it is read for the first alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

from hf_xlmr.errors import InputError
from hf_xlmr.files.json_files import LARGEST, JsonObject, object_of
from hf_xlmr.model.folder_records import CONVERSION, FINETUNING, ConversionRecord, record_fields

CARD: Final = "README.md"
CONFIG: Final = "config.json"
BLOCK: Final = 1 << 20


class FileState(NamedTuple):
    """The size, time and inode of a file, which show whether it changed."""

    size: int
    changed_at: int
    """In nanoseconds."""
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of a file as it is now, links followed. Raises OSError."""
        now = path.stat()
        return cls(now.st_size, now.st_mtime_ns, now.st_ino)


@dataclass(frozen=True)
class OpenedFolder:
    """A model folder as it was when each of its files was first asked for."""

    path: Path
    _contents: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _states: dict[str, FileState] = field(default_factory=dict, init=False, repr=False, compare=False)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return name in self._contents or (self.path / name).is_file()

    def state(self, name: str) -> FileState:
        """What a file was before the first of it was read. Raises OSError."""
        if name not in self._states:
            self._states[name] = FileState.of(self.path / name)
        return self._states[name]

    def read(self, name: str) -> bytes:
        """The content of a small file, which is kept; of one above 256 MB the beginning. Raises OSError."""
        if name in self._contents:
            return self._contents[name]
        self.state(name)
        with (self.path / name).open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) <= LARGEST:
            self._contents[name] = content
        return content

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of any file, block by block; after the last one its SHA-256 is known. Raises OSError."""
        digest, _state = sha256(), self.state(name)
        content = self._contents.get(name)
        with (self.path / name).open("rb") if content is None else BytesIO(content) as file:
            while block := file.read(BLOCK):
                digest.update(block)
                yield block
        self._digests[name] = digest.hexdigest()

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file in hexadecimal digits. Raises OSError."""
        if name not in self._digests:
            for _block in self.blocks(name):
                pass
        return self._digests[name]

    @cached_property
    def config(self) -> JsonObject:
        """config.json. Raises InputError without one, IntegrityError, OSError."""
        if not self.has(CONFIG):
            why = (
                f"has no {CONFIG}"
                if self.path.is_dir()
                else "is not a folder"
                if self.path.exists()
                else "is not there"
            )
            raise InputError(f"{self.path} is not a Transformers folder: it {why}")
        return object_of(self.read(CONFIG), self.path / CONFIG)

    @cached_property
    def record(self) -> ConversionRecord:
        """What the conversion wrote down; empty without one. Raises IntegrityError, InputError, OSError."""
        return ConversionRecord(self.path / CONVERSION, self._record(CONVERSION))

    @cached_property
    def training(self) -> JsonObject:
        """What `finetuning.json` says; empty without one. Raises IntegrityError, InputError, OSError."""
        return self._record(FINETUNING)

    def _record(self, kind: str) -> JsonObject:
        return record_fields(self.read(kind), self.path / kind, kind) if self.has(kind) else {}
