"""A folder of features that fills shard by shard, survives being killed at any moment, and is the same however made."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from hf_xlmr.errors import InputError
from hf_xlmr.features.feature_files import StoreLayout, is_shard_name
from hf_xlmr.features.shard_records import (
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
from hf_xlmr.features.shard_writer import ShardWriter
from hf_xlmr.files.fsync import flush, flush_path, told_with_place
from hf_xlmr.files.locks import locked

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
        """Use `create` or `join`."""
        self.folder = folder
        self.layout = layout
        self._record = record
        self._finished: dict[str, Any] | None = None
        self._lock = ExitStack()
        self._is_locked = False
        self._made: list[Path] = []
        """The folders that this run made."""
        self._begins = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        job: Mapping[str, Any],
        *,
        layout: StoreLayout,
        resume: bool = False,
        overwrite: bool = False,
        notes: Mapping[str, Any] = MappingProxyType({}),
    ) -> FeatureStore:
        """Begin an output, or with `resume` go on with one if there is one, or with `overwrite` begin it again.

        `job` is JSON and tells everything that the features depend on: to go on, it and `layout` must be the same.
        No other run can begin or go on before `finish`, `close` or `discard`. What killed runs left is removed.
        `notes` are kept for whoever goes on, until all is done; they may differ. A finished output whose files were
        lost or cut is begun again, with the shards that are left. `overwrite` removes what an extraction wrote, and
        refuses a folder that holds anything else. Raises InputError, IntegrityError.
        """
        store = cls._of(folder, job, layout)
        with told_with_place(store.folder):
            store._make_folder()
            try:
                store._begin(notes, resume=resume, overwrite=overwrite)
            except BaseException:
                store._unmake()
                raise
        return store

    @classmethod
    def join(cls, folder: str | Path, job: Mapping[str, Any], *, layout: StoreLayout) -> FeatureStore:
        """Fill an output together with the process that began it, in which others write other shards.

        Raises InputError unless it was begun for the same, IntegrityError.
        """
        store = cls._of(folder, job, layout)
        with told_with_place(store.folder):
            begun = store._begun()
            if begun is None:
                raise InputError(f"{folder} was not begun by the first process, or is not the same folder for all")
            store._raise_if_other(begun)
        return store

    @classmethod
    def _of(cls, folder: str | Path, job: Mapping[str, Any], layout: StoreLayout) -> FeatureStore:
        record = json.loads(json.dumps({"job": dict(job), "layout": asdict(layout)}))
        return cls(Path(folder), record, layout)

    def close(self) -> None:
        """Let other runs go on with the output."""
        self._lock.close()
        self._is_locked = False

    def discard(self) -> None:
        """Remove the output if this run began it and no shard of it is done; else only let others go on with it."""
        with suppress(OSError):
            if self._begins and self._names() == [JOB] and not any((self.folder / STATE).glob("*.json")):
                (self.folder / JOB).unlink()
                self._unmake()
        self.close()

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

        The process that began it calls this, when the shards of all are done; where that is declared already, `rows`
        are to be as many as then. Raises InputError naming what is missing or too much, IntegrityError.
        """
        with told_with_place(self.folder):
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
            self._clear_unneeded()
            self.close()

    # ---- beginning and going on --------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; give a folder, or the name of a new one")
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _unmake(self) -> None:
        """Remove what a run made that could not begin, and that nobody else has put something into."""
        if self._is_locked and self._made[:1] == [self.folder / STATE]:
            (self.folder / STATE / LOCK).unlink(missing_ok=True)
        self.close()
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _begin(self, notes: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        self._raise_if_taken(overwrite=overwrite)
        if not overwrite:
            self._check_begun(resume=resume)
            if resume and self._is_whole:  # there is nothing to write, and the folder may be read-only
                self._clear_unneeded()
                return
        self._take_lock()
        if overwrite:
            self._remove_all()
        elif self._check_begun(resume=resume):  # again, as another run may have ended meanwhile
            if self.is_finished and not self._is_whole:
                self._begin_again(notes)
            self._clear_leftovers()
            return
        self._begins = True
        self.write_json(self.folder / JOB, {**self._record, "notes": dict(notes)})

    def _check_begun(self, *, resume: bool) -> bool:
        """Whether the folder was begun. Raises InputError if that cannot be gone on with."""
        self._finished = None
        begun = self._begun()
        if begun is None:
            return False
        if not resume:
            state = "is finished" if self.is_finished else "was begun"
            raise InputError(
                f"{self.folder} {state} by an earlier run; choose another folder, or pass resume=True, or "
                "overwrite=True to begin it again"
            )
        self._raise_if_other(begun)
        return True

    def _raise_if_other(self, begun: Mapping[str, Any]) -> None:
        changed = differences(begun, self._record)
        if changed:
            raise InputError(
                f"{self.folder} was begun with other options: {'; '.join(changed)}. "
                "Say the same to go on, or choose another folder"
            )

    def _remove_all(self) -> None:
        """Remove shards and what is noted of them; what tells whose folder it is goes last."""
        for path in (self.folder / STATE).iterdir():
            if path.name.endswith((".json", TEMPORARY)):
                path.unlink()
        for name in sorted(self._names(), key=lambda name: name in (JOB, MANIFEST)):
            (self.folder / name).unlink()
        flush_path(self.folder)
        self._finished = None

    def _begin_again(self, notes: Mapping[str, Any]) -> None:
        """Make an unfinished folder of a finished one; the manifest goes last, so that this can be done twice."""
        for state in self._manifest()["shards"]:
            self.write_json(self.state_path(state["number"]), state)
        self.write_json(self.folder / JOB, {**self._record, "notes": dict(notes)})
        (self.folder / MANIFEST).unlink()
        flush_path(self.folder)
        self._finished = None

    def _raise_if_taken(self, *, overwrite: bool) -> None:
        if (self.folder / STATE).is_symlink():
            raise InputError(f"{self.folder} holds a link {STATE}, which no extraction makes; choose another folder")
        names = self._names()
        is_ours = not names or bool({MANIFEST, JOB}.intersection(names))
        others = [name for name in names if name not in (MANIFEST, JOB) and not self._is_shard(name)]
        if is_ours and overwrite and others:
            raise InputError(
                f"{self.folder} holds something else, too ({others[0]}): move that away, or choose another folder"
            )
        if is_ours:
            return
        if len(others) < len(names):
            shard = next(name for name in names if name not in others)
            raise InputError(
                f"{self.folder} holds features ({shard}), but neither {MANIFEST} nor {JOB}, which tell what they "
                "were made from: copy that too (its name makes it a hidden file), or choose another folder"
            )
        raise InputError(f"{self.folder} holds something else ({names[0]}); choose an empty or a new folder")

    def _is_shard(self, name: str) -> bool:
        path = self.folder / name
        return is_shard_name(name) and path.is_file() and not path.is_symlink()

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
        """Remove the temporary files of runs that are no longer alive."""
        for path in (self.folder / STATE).glob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _clear_unneeded(self) -> None:
        """Remove what only an unfinished folder needs; one that was cleared before may be read-only."""
        if (self.folder / JOB).exists():
            (self.folder / JOB).unlink(missing_ok=True)
        shutil.rmtree(self.folder / STATE, ignore_errors=True)

    def _take_lock(self) -> None:
        """Keep other runs out until this one closes the store. Raises InputError if one is at work."""
        with suppress(FileExistsError):
            (self.folder / STATE).mkdir()
            self._made.insert(0, self.folder / STATE)
        try:
            self._lock.enter_context(locked(self.folder / STATE / LOCK, waits=False))
        except BlockingIOError:
            raise InputError(
                f"another run is writing into {self.folder}; wait for it, or choose another folder"
            ) from None
        self._is_locked = True
        if not (self.folder / STATE / LOCK).exists():  # the run that held it has just removed it
            raise InputError(f"another run has just ended in {self.folder}; try again")

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
        """A temporary file for one that will have this name."""
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        return (self.folder / STATE / f"{name}.{token}{TEMPORARY}").open("x+b", buffering=BLOCK)

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
        flush_path(path.parent)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MOST_LISTED} more" if len(numbers) > MOST_LISTED else ""
    return ", ".join(map(str, numbers[:MOST_LISTED])) + more
