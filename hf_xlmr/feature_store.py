"""A folder of features that fills shard by shard, survives being killed at any moment, and is the same however made."""

from __future__ import annotations

import fcntl
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
from typing import IO, TYPE_CHECKING, Any, Final

from hf_xlmr.durable_files import flush, flush_folder, told_with_place
from hf_xlmr.errors import InputError
from hf_xlmr.feature_files import StoreLayout
from hf_xlmr.shard_records import (
    JOB,
    MANIFEST,
    MANIFEST_FIELDS,
    RECORD_FIELDS,
    STATE,
    checked_record,
    checked_state,
    differences,
    read_record,
)
from hf_xlmr.shard_writer import ShardWriter

if TYPE_CHECKING:
    pass

__all__ = ["FeatureStore"]

LOCK: Final = "lock"
TEMPORARY: Final = ".tmp"
BLOCK: Final = 1 << 20
MOST_LISTED: Final = 10  # shards in a message

_LOG: Final = logging.getLogger(__name__)


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
        with told_with_place(folder):
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
        with told_with_place(Path(folder)):
            found = [read_record(path) if path.is_file() else {} for path in paths]
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
            writer.publish()
        finally:
            writer.close()

    def finish(self, *, rows: int) -> None:
        """Declare all `rows` of the input done: the manifest takes the place of what resuming needs.

        One process calls it, when the shards of all are done; where that is declared already, `rows` are to be as many
        as then. Raises InputError naming what is missing or too much, IntegrityError.
        """
        with told_with_place(self.folder), self._locked():
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
            self.write_json(self.folder / MANIFEST, manifest)
            self._finished = None

    # ---- beginning and going on --------------------------------------------------------------------------------------

    def _begin_or_go_on(self, notes: Mapping[str, Any], *, resume: bool) -> None:
        self._raise_if_taken()
        self._finished = None  # while this process waited, another one may have begun it again
        begun = self._begun()
        if begun is None:
            self.write_json(self.folder / JOB, {**self._record, "notes": dict(notes)})
            return
        if not resume:
            state = "is finished" if self.is_finished else "was begun"
            raise InputError(f"{self.folder} {state} by an earlier run; choose another folder, or say --resume")
        changed = differences(begun, self._record)
        if changed:
            raise InputError(
                f"{self.folder} was begun with other options: {'; '.join(changed)}. "
                "Say the same to go on, or choose another folder"
            )
        if self.is_finished and not self._is_whole:
            self._begin_again(notes)
        self._clear_leftovers()

    def _begin_again(self, notes: Mapping[str, Any]) -> None:
        """Make an unfinished folder of a finished one; the manifest goes last, so that this can be done twice."""
        for state in self._manifest()["shards"]:
            self.write_json(self.state_path(state["number"]), state)
        self.write_json(self.folder / JOB, {**self._record, "notes": dict(notes)})
        (self.folder / MANIFEST).unlink()
        flush_folder(self.folder)
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
                found = checked_record(self.folder / name, read_record(self.folder / name), RECORD_FIELDS)
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

    def state_path(self, number: int) -> Path:
        """Where it is noted that a shard is done."""
        return self.folder / STATE / f"{number:05d}.json"

    def _state(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard that was made, None where none was. Raises IntegrityError."""
        if self.is_finished:
            shards: list[dict[str, Any]] = self._manifest()["shards"]
            return shards[number] if number < len(shards) else None
        path = self.state_path(number)
        with told_with_place(path):
            return checked_state(path, read_record(path), number) if path.is_file() else None

    def _manifest(self) -> dict[str, Any]:
        """That of a finished folder, read once. Raises IntegrityError."""
        if self._finished is None:
            path = self.folder / MANIFEST
            with told_with_place(path):
                found = checked_record(path, read_record(path), MANIFEST_FIELDS)
            for number, state in enumerate(found["shards"]):
                checked_state(path, state, number)
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

    def scratch(self, name: str) -> IO[bytes]:
        """A temporary file for one that will have this name, locked while this process has it open."""
        while True:
            token = f"{os.getpid()}-{secrets.token_hex(4)}"
            file = (self.folder / STATE / f"{name}.{token}{TEMPORARY}").open("x+b", buffering=BLOCK)
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()  # another process took the new file for a leftover

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a file that is there whole or not at all, whatever happens."""
        with self.scratch(path.name) as file:
            try:
                file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
                flush(file)
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        flush_folder(path.parent)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
    return ", ".join(map(str, numbers[:MOST_LISTED])) + more
