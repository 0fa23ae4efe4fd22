"""A folder of features that fills shard by shard, survives being killed at any moment, and is the same however made."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.feature_files import FeatureGroup, ShardFiles, StoreLayout, open_shard_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MANIFEST", "FeatureStore", "Row", "ShardWriter", "TextsDigest"]

MANIFEST: Final = ".manifest.json"  # there when all is done; readers of data sets skip hidden files
JOB: Final = ".job.json"  # there until then
STATE: Final = ".state"  # which shards are done, and files that are not yet
LOCK: Final = "lock"
TEMPORARY: Final = ".tmp"
BLOCK: Final = 1 << 20
MOST_LISTED: Final = 10  # shards in a message

# What the objects in our files hold
RECORD_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({"job": dict, "layout": dict})
MANIFEST_FIELDS: Final[Mapping[str, Any]] = MappingProxyType(
    {**RECORD_FIELDS, "rows": int, "counts": dict, "shards": list}
)
SHARD_FIELDS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "number": int,
        "first_row": int,
        "rows": int,
        "texts_sha256": str,
        "id_type": (str, type(None)),
        "files": list,
        "counts": dict,
    }
)
FILE_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({"name": str, "size": int, "sha256": str})

_LOG: Final = logging.getLogger(__name__)


class Row(Protocol):
    """What the store asks of a row of the input, such as a TextRow."""

    @property
    def number(self) -> int:
        """Of the row in the whole input, from 0."""

    @property
    def text(self) -> str:
        """What was extracted from."""

    @property
    def id(self) -> object | None:
        """A string, an integer of 64 bits, or None."""


class TextsDigest:
    """The checksum of rows, from their texts and ids; a shard remembers that of its own."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, row: Row) -> None:
        """Count in the next row."""
        told = row.text if row.id is None else json.dumps([row.text, row.id])
        data = told.encode()
        self._sum.update(len(data).to_bytes(8, "little"))
        self._sum.update(data)

    def hexdigest(self) -> str:
        """The sum of all rows so far."""
        return self._sum.hexdigest()


class FeatureStore:
    """Features of the rows of one input, in shards of equal numbers of rows: row r is in shard r // rows_per_shard.

    Each shard's files get their names when they are whole and on the disk; several processes may write different
    shards into one folder. The same features give the same bytes, in whatever portions, order or number of runs they
    come.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], layout: StoreLayout) -> None:
        """Use `create`."""
        self.folder = folder
        self.layout = layout
        self._record = record
        self._finished: dict[str, Any] | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        job: Mapping[str, Any],
        *,
        layout: StoreLayout,
        resume: bool = False,
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> FeatureStore:
        """Begin an output, or with `resume` go on with one where there is one.

        `job` is JSON and tells everything that the features depend on: to go on, it and `layout` must be the same.
        Processes that fill one folder together all say `resume`; the first of them begins it. What killed runs left
        is removed, what others are writing just now is not. `notes` are kept for whoever goes on, until all is done;
        they may differ. A finished output whose files were lost or cut is begun again, with the shards
        that are left. Raises InputError, IntegrityError.
        """
        folder = Path(folder)
        record = json.loads(json.dumps({"job": dict(job), "layout": asdict(layout)}))
        store = cls(folder, record, layout)
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            store._raise_if_taken()
            with store._locked():
                store._begin_or_go_on(notes, resume=resume)
        return store

    @classmethod
    def begun_with(cls, folder: str | Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The job that an output was begun with, and the notes of then; empty where there is none, or no longer.

        Raises InputError, IntegrityError.
        """
        paths = [Path(folder) / name for name in (MANIFEST, JOB)]
        with _told(Path(folder)):
            found = [_read_json(path) if path.is_file() else {} for path in paths]
        jobs = [each["job"] for each in found if isinstance(each.get("job"), dict)]
        notes = found[1].get("notes")
        return (jobs or [{}])[0], notes if isinstance(notes, dict) else {}

    @property
    def is_finished(self) -> bool:
        """Whether everything is there, so that nothing is left to do."""
        return (self.folder / MANIFEST).is_file()

    def is_done(self, number: int) -> bool:
        """Whether a shard is there, with its files as long as they were.

        Raises IntegrityError, and InputError where the output is finished and has no such shard.
        """
        state = self._state(number)
        if state is None:
            if self.is_finished:
                raise self._another_input(f"it has more than {self._manifest()['rows']} rows")
            return False
        wrong = self._wrong_files(state)
        if wrong:
            _LOG.warning("%s: %s changed since, and is made again", self.folder, ", ".join(wrong))
        return not wrong

    def check(self, number: int, texts_sha256: str) -> None:
        """See that a shard that was made before was made from these texts. Raises InputError naming its rows."""
        state = self._state(number)
        if state is None or state["texts_sha256"] == texts_sha256:
            return
        first, rows = state["first_row"], state["rows"]
        raise self._another_input(
            f"rows {first} to {first + rows - 1} (counted from 0) have other texts now, or more or fewer follow them"
        )

    def _another_input(self, why: str) -> InputError:
        return InputError(
            f"the input is not what {self.folder} was begun with: {why}; give the same input, or choose another folder"
        )

    @contextmanager
    def shard(self, number: int) -> Iterator[ShardWriter]:
        """A writer for a shard; its files appear when the block ends well, and nothing is left when it does not.

        Raises InputError, where the disk is full or the folder gone.
        """
        writer = ShardWriter(self, number)
        try:
            yield writer
            writer._publish()
        finally:
            writer._close()

    def finish(self, *, rows: int) -> None:
        """Declare all `rows` of the input done: the manifest takes the place of what resuming needs.

        One process calls it, when the shards of all are done; where that is declared already, `rows` are to be as many
        as then. Raises InputError naming what is missing or too much, IntegrityError.
        """
        with _told(self.folder), self._locked():
            if self.is_finished:
                if rows != (before := self._manifest()["rows"]):
                    raise self._another_input(f"it has {rows} rows, not {before}")
                return
            shards = self._all_shards(rows)
            named = {file["name"] for shard in shards for file in shard["files"]}
            for name in self._names():
                if self.layout.is_shard_file(name) and name not in named:  # of a run that was killed between two names
                    (self.folder / name).unlink()
            counts = sum((Counter(shard["counts"]) for shard in shards), Counter())
            manifest = {**self._record, "rows": rows, "counts": counts, "shards": shards}
            self._write_json(self.folder / MANIFEST, manifest)
            self._finished = None

    # ---- beginning and going on --------------------------------------------------------------------------------------

    def _begin_or_go_on(self, notes: Mapping[str, Any], *, resume: bool) -> None:
        self._raise_if_taken()
        self._finished = None  # while this process waited, another one may have begun it again
        begun = self._begun()
        if begun is None:
            self._write_json(self.folder / JOB, {**self._record, "notes": dict(notes)})
            return
        if not resume:
            state = "is finished" if self.is_finished else "was begun"
            raise InputError(f"{self.folder} {state} by an earlier run; choose another folder, or say --resume")
        differences = _differences(begun, self._record)
        if differences:
            raise InputError(
                f"{self.folder} was begun with other options: {'; '.join(differences)}. "
                "Say the same to go on, or choose another folder"
            )
        if self.is_finished and not self._is_whole:
            self._begin_again(notes)
        self._clear_leftovers()

    def _begin_again(self, notes: Mapping[str, Any]) -> None:
        """Make an unfinished folder of a finished one; the manifest goes last, so that this can be done twice."""
        for state in self._manifest()["shards"]:
            self._write_json(self._state_path(state["number"]), state)
        self._write_json(self.folder / JOB, {**self._record, "notes": dict(notes)})
        (self.folder / MANIFEST).unlink()
        _flush_folder(self.folder)
        self._finished = None

    def _raise_if_taken(self) -> None:
        names = self._names()
        if not names or {MANIFEST, JOB}.intersection(names):
            return
        if shards := [name for name in names if self.layout.is_shard_file(name)]:
            raise InputError(
                f"{self.folder} holds features ({shards[0]}), but neither {MANIFEST} nor {JOB}, which tell what they "
                "were made from: copy that too (its name makes it a hidden file), or choose another folder"
            )
        raise InputError(f"{self.folder} holds something else ({names[0]}); choose an empty or a new folder")

    def _begun(self) -> dict[str, Any] | None:
        """What the folder was begun for, None for a folder that was not."""
        for name in (MANIFEST, JOB):
            if (self.folder / name).is_file():
                found = _checked(self.folder / name, _read_json(self.folder / name), RECORD_FIELDS)
                return {"job": found["job"], "layout": found["layout"]}
        return None

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != STATE)

    def _clear_leftovers(self) -> None:
        """Remove the temporary files of runs that are no longer alive; a live one holds their locks."""
        for path in (self.folder / STATE).glob(f"*{TEMPORARY}"):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _clear_unneeded(self) -> None:
        """Remove what only an unfinished folder needs; one that was cleared before may be read-only."""
        if (self.folder / JOB).exists():
            (self.folder / JOB).unlink(missing_ok=True)
        shutil.rmtree(self.folder / STATE, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from beginning or finishing the folder; one that is whole needs no lock."""
        lock = None
        while lock is None and not self._is_whole:
            lock = self._lock()
        try:
            yield
        finally:
            if self.is_finished:
                self._clear_unneeded()
            if lock is not None:
                lock.close()

    def _lock(self) -> IO[bytes] | None:
        """A file that only this process holds, None where the folder was finished while it waited."""
        (self.folder / STATE).mkdir(exist_ok=True)
        try:
            file = (self.folder / STATE / LOCK).open("ab")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
        return None

    # ---- the states of shards ----------------------------------------------------------------------------------------

    def _state_path(self, number: int) -> Path:
        return self.folder / STATE / f"{number:05d}.json"

    def _state(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard that was made, None where none was. Raises IntegrityError."""
        if self.is_finished:
            shards: list[dict[str, Any]] = self._manifest()["shards"]
            return shards[number] if number < len(shards) else None
        path = self._state_path(number)
        with _told(path):
            return _checked_state(path, _read_json(path), number) if path.is_file() else None

    def _manifest(self) -> dict[str, Any]:
        """That of a finished folder, read once. Raises IntegrityError."""
        if self._finished is None:
            path = self.folder / MANIFEST
            with _told(path):
                found = _checked(path, _read_json(path), MANIFEST_FIELDS)
            for number, state in enumerate(found["shards"]):
                _checked_state(path, state, number)
            self._finished = found
        return self._finished

    @property
    def _is_whole(self) -> bool:
        """Whether the folder is finished, and its files are as long as they were. Raises IntegrityError."""
        return self.is_finished and not any(map(self._wrong_files, self._manifest()["shards"]))

    def _wrong_files(self, state: Mapping[str, Any]) -> list[str]:
        return [file["name"] for file in state["files"] if _size(self.folder / file["name"]) != file["size"]]

    def _all_shards(self, rows: int) -> list[dict[str, Any]]:
        """The states of all shards that `rows` make. Raises InputError."""
        size = self.layout.rows_per_shard
        wanted = range(-(-rows // size))
        found = {int(path.stem) for path in (self.folder / STATE).glob("*.json") if path.stem.isdecimal()}
        missing = [number for number in wanted if number not in found or not self.is_done(number)]
        if missing:
            raise InputError(f"{self.folder} is not complete: {_listed(missing)} of {len(wanted)} shards missing")
        if beyond := sorted(found.difference(wanted)):
            raise InputError(f"{self.folder} has more than the {rows} rows of the input: {_listed(beyond)} too much")
        shards = [state for state in map(self._state, wanted) if state is not None]
        for shard in shards:
            expected = min(size, rows - shard["first_row"])
            if shard["rows"] != expected:
                raise InputError(f"shard {shard['number']} has {shard['rows']} rows where {expected} belong")
        if len({shard["id_type"] for shard in shards}) > 1:
            raise InputError("the ids are integers in some shards and strings in others; make them all strings")
        return shards

    # ---- files -------------------------------------------------------------------------------------------------------

    def _scratch(self, name: str) -> IO[bytes]:
        """A temporary file for one that will have this name, locked while this process has it open."""
        while True:
            token = f"{os.getpid()}-{secrets.token_hex(4)}"
            file = (self.folder / STATE / f"{name}.{token}{TEMPORARY}").open("x+b", buffering=BLOCK)
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # another process took the new file for a leftover

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a file that is there whole or not at all, whatever happens."""
        with self._scratch(path.name) as file:
            try:
                file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
                _flush(file)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        _flush_folder(path.parent)


class ShardWriter:
    """Takes the rows of one shard in their order, in portions of any size."""

    def __init__(self, store: FeatureStore, number: int) -> None:
        """Use `FeatureStore.shard`."""
        self.counts: Counter[str] = Counter()
        """What the manifest is to tell beside rows, such as how many texts were truncated; shards are added up."""
        self._store = store
        self._layout = store.layout
        self._number = number
        self._first = number * store.layout.rows_per_shard
        self._next = self._first
        self._digest = TextsDigest()
        self._id_type: str | None = None
        self._scratches: dict[str, IO[bytes]] = {}
        self._files: ShardFiles | None = None
        self._pending: list[FeatureGroup] = []
        self._pending_vectors = 0

    def write(
        self,
        rows: Sequence[Row],
        features: Mapping[int, NDArray[np.floating[Any]] | Sequence[NDArray[np.floating[Any]]]],
        *,
        spans: Sequence[NDArray[np.integer[Any]]] | None = None,
    ) -> None:
        """Append the next rows with the features of each layer, which may be overwritten afterwards.

        `features` are (rows, width), or per token for each row (its tokens, width); `spans` are then for each row
        (its tokens, 2), where tokens begin and end in the text, in characters. Raises InputError, also where a value
        is too large for float16; ValueError where shapes, layers or the order of rows are not those of the shard.
        """
        group = self._group(rows, features, spans)
        for row in rows:
            self._digest.add(row)
        self._next += len(rows)
        with self._told():
            self._take(group)

    def _group(self, rows: Sequence[Row], features: Mapping[int, Any], spans: Sequence[Any] | None) -> FeatureGroup:
        import numpy as np

        if [row.number for row in rows] != list(range(self._next, self._next + len(rows))):
            raise ValueError(f"the next row of shard {self._number} is {self._next}, and the others follow it")
        if self._next + len(rows) > self._first + self._layout.rows_per_shard:
            raise ValueError(f"shard {self._number} has only {self._layout.rows_per_shard} rows")
        if {*features} != {*self._layout.layers} or (spans is not None) != self._layout.per_token:
            raise ValueError(
                f"features of the layers {self._layout.layers} are needed, with spans if they are of tokens"
            )
        vectors = {layer: self._vectors(features[layer], rows) for layer in self._layout.layers}
        lengths = np.ones(len(rows), np.int64)
        if spans is not None:
            lengths = np.array([len(each) for each in spans], np.int64)
        for layer in self._layout.layers if self._layout.per_token else ():
            if [len(each) for each in features[layer]] != lengths.tolist():
                raise ValueError(f"layer {layer} has not as many vectors as there are spans")
        flat = None if spans is None else np.concatenate([np.zeros((0, 2), np.int32), *spans]).astype(np.int32)
        return FeatureGroup(self._next, lengths, vectors, flat, self._ids(rows))

    def _vectors(self, given: Any, rows: Sequence[Row]) -> NDArray[np.floating[Any]]:
        """A copy in the dtype of the store, as what is given may be used anew."""
        import numpy as np

        if len(given) != len(rows):
            raise ValueError(f"{len(given)} features are given for {len(rows)} rows")
        empty = np.zeros((0, self._layout.width), self._layout.dtype)
        found = np.concatenate([empty, *given]) if self._layout.per_token else np.asarray(given)
        if found.shape[1:] != empty.shape[1:] or found.ndim != empty.ndim:
            raise ValueError(f"features of width {self._layout.width} are needed, not of shape {found.shape}")
        try:
            with np.errstate(over="raise"):
                return found.astype(self._layout.dtype, order="C", copy=not self._layout.per_token)
        except FloatingPointError as error:
            place = f"rows {rows[0].number} to {rows[-1].number}"
            raise InputError(f"features of {place} are too large for {self._layout.dtype}; keep float32") from error

    def _ids(self, rows: Sequence[Row]) -> list[object] | None:
        if not self._layout.has_ids:
            return None
        ids = [row.id for row in rows]
        kinds = {type(each).__name__ for each in ids} | ({self._id_type} if self._id_type else set())
        if len(kinds) > 1 or not kinds <= {"str", "int"}:
            raise InputError(
                f"the ids of shard {self._number} are not all strings or all integers, but {sorted(kinds)}"
            )
        self._id_type = next(iter(kinds), self._id_type)
        return ids

    def _take(self, group: FeatureGroup) -> None:
        """Write every group that is full, and keep the rest."""
        import numpy as np

        while len(group.lengths):
            room = self._layout.vectors_per_group - self._pending_vectors
            rows = int(np.searchsorted(group.lengths.cumsum(), room)) + 1
            taken, group = group.split(rows)
            self._pending.append(taken)
            self._pending_vectors += int(taken.lengths.sum())
            if self._pending_vectors >= self._layout.vectors_per_group:
                self._write_pending()

    def _write_pending(self) -> None:
        if self._files is None:
            self._files = open_shard_files(self._number, self._layout, self._open)
        self._files.append(FeatureGroup.joined(self._pending))
        self._pending, self._pending_vectors = [], 0

    def _open(self, name: str) -> IO[bytes]:
        self._scratches[name] = self._store._scratch(name)
        return self._scratches[name]

    def _publish(self) -> None:
        """Give the files their names, and then note that the shard is done."""
        if self._next == self._first:
            raise ValueError(f"shard {self._number} has no rows")
        with self._told():
            if self._pending:
                self._write_pending()
            if self._files is not None:
                self._files.finish()
            self._store.check(self._number, self._digest.hexdigest())  # its files may have been lost, not its texts
            files = [_facts(name, file) for name, file in sorted(self._scratches.items())]
            for name, file in self._scratches.items():
                Path(file.name).replace(self._store.folder / name)
            _flush_folder(self._store.folder)
            state = {
                "number": self._number,
                "first_row": self._first,
                "rows": self._next - self._first,
                "texts_sha256": self._digest.hexdigest(),
                "id_type": self._id_type,
                "files": files,
                "counts": dict(self.counts),
            }
            self._store._write_json(self._store._state_path(self._number), state)
            self._files = None

    def _close(self) -> None:
        """Close the files, and remove those that have no name yet."""
        if self._files is not None:
            self._files.abandon()
        for file in self._scratches.values():
            Path(file.name).unlink(missing_ok=True)
            with suppress(OSError):  # what is still to be written is not needed
                file.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        with _told(self._store.folder):
            yield


def _facts(name: str, file: IO[bytes]) -> dict[str, Any]:
    """The length and checksum of a file that is now on the disk."""
    _flush(file)
    summed, size = hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(BLOCK):
        summed.update(block)
        size += len(block)
    return {"name": name, "size": size, "sha256": summed.hexdigest()}


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises IntegrityError, OSError."""
    try:
        found: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damage(path, str(error)) from error
    return _checked(path, found, {})


def _checked(path: Path, found: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What was found in a file, if it is an object with values of these types. Raises IntegrityError."""
    if not isinstance(found, dict):
        raise _damage(path, f"an object belongs where {json.dumps(found):.40} is")
    wrong = [name for name, kind in kinds.items() if name not in found or not isinstance(found[name], kind)]
    if wrong:
        raise _damage(path, f"{', '.join(wrong)} is missing or of another type")
    return found


def _checked_state(path: Path, found: object, number: int) -> dict[str, Any]:
    """What is known of a shard, if it is what a writer of shards notes. Raises IntegrityError."""
    state = _checked(path, found, SHARD_FIELDS)
    for file in state["files"]:
        _checked(path, file, FILE_FIELDS)
    _checked(path, state["counts"], dict.fromkeys(state["counts"], int))
    if state["number"] != number:
        raise _damage(path, f"shard {state['number']} is where {number} belongs")
    return state


def _damage(path: Path, why: str) -> IntegrityError:
    is_state = path.parent.name == STATE
    mend = "remove it, and the shard is made again" if is_state else "put back the file that was there, or begin anew"
    return IntegrityError(f"{path} is damaged: {why}; {mend}")


def _differences(begun: Any, now: Any, name: str = "") -> list[str]:
    """Every option that is not what it was, with both values."""
    if isinstance(begun, dict) and isinstance(now, dict):
        keys = sorted(begun.keys() | now.keys())
        return [each for key in keys for each in _differences(begun.get(key), now.get(key), f"{name}.{key}")]
    label = name.removeprefix(".job.").removeprefix(".layout.")
    return [] if begun == now else [f"{label} was {json.dumps(begun)} and is {json.dumps(now)} now"]


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
    return ", ".join(map(str, numbers[:MOST_LISTED])) + more


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell of the system's refusals in our errors, and where they happened."""
    with told_plainly():
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno is not None:
                error.filename = str(path)
            raise
