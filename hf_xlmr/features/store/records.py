"""The JSON files of a folder of features: reads, checks and writes them, and words the error for a damaged one."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import IO, Final, NamedTuple, TypedDict, TypeVar, cast, get_origin, get_type_hints

from hf_xlmr.errors import IntegrityError
from hf_xlmr.files.fsync import flush, flush_path
from hf_xlmr.files.json_files import strict_json

__all__ = [
    *("CUTS", "JOB", "LOCK", "MANIFEST", "STATE", "TEMPORARY", "FileRecord", "JobRecord", "Manifest", "ShardRecord"),
    "checked_record",
    "checked_state",
    "differences",
    "read_record",
    "scratch",
    "write_record",
]

MANIFEST: Final = ".manifest.json"  # exists when all is done; readers of data sets skip hidden files
JOB: Final = ".job.json"  # exists until then
STATE: Final = ".state"  # has a record for each finished shard, and temporary files
TEMPORARY: Final = ".tmp"
LOCK: Final = "lock"  # in STATE; the first process of a run holds it
CUTS: Final = "input.cuts"  # where the shards begin in the input
BLOCK: Final = 1 << 20

Record = TypeVar("Record")


class FileRecord(TypedDict):
    """One file of a shard."""

    name: str
    size: int
    sha256: str


class _Truncated(TypedDict, total=False):
    truncated_rows: list[int]
    """The first rows that were truncated; left out if none was, and by earlier releases."""


class ShardRecord(_Truncated):
    """A shard that is done."""

    number: int
    first_row: int
    rows: int
    texts_sha256: str
    id_type: str | None
    files: list[FileRecord]
    counts: dict[str, int]


class JobRecord(TypedDict):
    """What a folder was begun for."""

    job: dict[str, object]
    layout: dict[str, object]


class Manifest(JobRecord):
    """A folder that is finished."""

    rows: int
    counts: dict[str, int]
    shards: list[ShardRecord]


def read_record(path: Path) -> dict[str, object]:
    """The object in the JSON file at `path`. Raises IntegrityError, OSError."""
    try:
        found: object = strict_json(path.read_bytes(), has_paths=True)
    except ValueError as error:
        raise _damage(path, str(error)) from error
    return _object(path, found)


def scratch(path: Path) -> IO[bytes]:
    """A temporary file for one that will be at `path`, in the folder of features or in its STATE."""
    folder = path.parent if path.parent.name == STATE else path.parent / STATE
    name = f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
    return (folder / name).open("x+b", buffering=BLOCK)


def write_record(path: Path, content: Mapping[str, object]) -> None:
    """Write a file atomically: it is complete or does not exist, whatever happens."""
    with scratch(path) as file:
        try:
            file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
            flush(file)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    flush_path(path.parent)


def checked_record(path: Path, found: object, kind: type[Record]) -> Record:
    """`found`, checked to be an object with the fields of `kind`, a TypedDict. Raises IntegrityError."""
    content = _object(path, found)
    kinds = get_type_hints(kind).items()
    needed: frozenset[str] = getattr(kind, "__required_keys__")  # noqa: B009  # of every TypedDict
    wrong = [
        name
        for name, each in kinds
        if (not isinstance(content[name], _class(each)) if name in content else name in needed)
    ]
    _raise_if_any(path, wrong)
    return cast("Record", content)


def checked_state(path: Path, found: object, number: int) -> ShardRecord:
    """`found`, checked to be the record of shard `number`. Raises IntegrityError."""
    state = checked_record(path, found, ShardRecord)
    for file in state["files"]:
        checked_record(path, file, FileRecord)
    _raise_if_any(path, [name for name, count in state["counts"].items() if not isinstance(count, int)])
    if state["number"] != number:
        raise _damage(path, f"it describes shard {state['number']} instead of {number}")
    return state


def _class(kind: type | UnionType) -> type | UnionType:
    """What `isinstance` takes for a type: `list` for `list[str]`."""
    return kind if isinstance(kind, UnionType) else get_origin(kind) or kind


def _object(path: Path, found: object) -> dict[str, object]:
    if not isinstance(found, dict):
        raise _damage(path, f"it has {json.dumps(found):.40} instead of an object")
    return found


def _raise_if_any(path: Path, wrong: Sequence[str]) -> None:
    if wrong:
        raise _damage(path, f"{', '.join(wrong)} is missing or of another type")


def _damage(path: Path, why: str) -> IntegrityError:
    is_state = path.parent.name == STATE
    remedy = "remove it, and the shard is made again" if is_state else "restore the original file, or start again"
    return IntegrityError(f"{path} is damaged: {why}; {remedy}")


class Changed(NamedTuple):
    """An option of a folder that was begun, and what it is now."""

    name: str
    begun: object
    now: object

    def __str__(self) -> str:
        return f"{self.name} was {json.dumps(self.begun)} and is {json.dumps(self.now)} now"

    @property
    def argument(self) -> str:
        """The argument as it was when the folder was begun, where one number is all of it."""
        return f"{self.name}={self.begun}" if type(self.begun) is int else ""


def differences(begun: object, now: object, name: str = "") -> list[Changed]:
    """Every option that has changed."""
    if isinstance(begun, dict) and isinstance(now, dict):
        keys = sorted(begun.keys() | now.keys())
        return [each for key in keys for each in differences(begun.get(key), now.get(key), f"{name}.{key}")]
    label = name.removeprefix(".job.").removeprefix(".layout.")
    return [] if begun == now else [Changed(label, begun, now)]
