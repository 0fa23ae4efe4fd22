"""A folder of features that is filled shard by shard, can be killed at any moment, and always gets the same bytes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hf_xlmr.errors import InputError, first_of
from hf_xlmr.features.store.files import StoreLayout, is_shard_name
from hf_xlmr.features.store.records import (
    CUTS,
    JOB,
    LOCK,
    MANIFEST,
    STATE,
    TEMPORARY,
    JobRecord,
    ShardRecord,
    checked_record,
    differences,
    read_record,
    write_record,
)
from hf_xlmr.features.store.shards import Shards
from hf_xlmr.files.fsync import flush_path, told_with_place
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.files.locks import locked

__all__ = ["FeatureStore"]

MOST_LISTED: Final = 10  # shards in a message


class FeatureStore(Shards):
    """Features of the rows of one input, in shards of equal numbers of rows: row r is in shard r // rows_per_shard.

    Each shard's files get their names when they are complete and on the disk; several processes may write different
    shards into one folder. The same features give the same bytes, whatever the portions, their order and the number of
    runs.
    """

    def __init__(self, folder: Path, record: Mapping[str, object], layout: StoreLayout) -> None:
        """Store the arguments; use `create` or `join` instead."""
        super().__init__(folder, layout)
        self._record = record
        self._lock = ExitStack()
        self._is_locked = False
        self._made: list[Path] = []
        """The folders that this run created."""
        self._begins = False

    @classmethod
    def create(
        cls,
        folder: str | Path,
        job: Mapping[str, object],
        *,
        layout: StoreLayout,
        resume: bool = False,
        overwrite: bool = False,
        notes: Mapping[str, object] = MappingProxyType({}),
    ) -> FeatureStore:
        """Begin an output, or with `resume` continue one if there is one, or with `overwrite` begin it again.

        `job` is JSON and says everything that the features depend on: to continue, `job` and `layout` must be the same.
        No other run can begin or continue before `finish`, `close` or `discard`. Leftovers of killed runs are removed.
        `notes` are kept for the next run, until all is done; they may differ. A finished output with lost or truncated
        files is continued from the shards that are left. `overwrite` removes what an extraction wrote, and refuses a
        folder that holds anything else. Raises InputError, IntegrityError.
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
    def join(cls, folder: str | Path, job: Mapping[str, object], *, layout: StoreLayout) -> FeatureStore:
        """Join an output that another process began, to write other shards of it.

        Raises InputError if it was begun for another job or layout, IntegrityError.
        """
        store = cls._of(folder, job, layout)
        with told_with_place(store.folder):
            begun = store._begun()
            if begun is None:
                raise InputError(f"{folder} was not begun by the first process, or is another folder for each process")
            store._raise_if_other(begun)
        return store

    @classmethod
    def _of(cls, folder: str | Path, job: Mapping[str, object], layout: StoreLayout) -> FeatureStore:
        record = json.loads(json.dumps({"job": dict(job), "layout": asdict(layout)}))
        return cls(Path(folder), record, layout)

    def close(self) -> None:
        """Let other runs continue the output."""
        self._lock.close()
        self._is_locked = False

    def discard(self) -> None:
        """Remove the output if this run began it and no shard of it is done; else only let others continue it."""
        with suppress(OSError):
            if self._begins and self._names() == [JOB] and not any((self.folder / STATE).glob("*.json")):
                (self.folder / STATE / CUTS).unlink(missing_ok=True)
                (self.folder / JOB).unlink()
                self._unmake()
        self.close()

    @classmethod
    def begun_with(cls, folder: str | Path) -> tuple[JsonObject, JsonObject, JsonObject]:
        """The job that an output was begun with, its notes and its layout; empty what there is not.

        Raises InputError, IntegrityError.
        """
        paths = [Path(folder) / name for name in (MANIFEST, JOB)]
        with told_with_place(Path(folder)):
            found = [read_record(path) if path.is_file() else {} for path in paths]
        job, notes, layout = (
            next((value for each in found if isinstance(value := each.get(name), dict)), {})
            for name in ("job", "notes", "layout")
        )
        return job, notes, layout

    def finish(self, *, rows: int) -> None:
        """Declare all `rows` of the input done: the manifest replaces the files that resuming needs.

        The process that began the output calls this when all processes' shards are done; if the output is already
        finished, `rows` must be the same. Raises InputError naming what is missing or too much, IntegrityError.
        """
        with told_with_place(self.folder):
            if self.is_finished:
                if rows != (before := self.manifest()["rows"]):
                    raise self.another_input(f"it has {rows} rows, not {before}")
                return
            shards = self._all_shards(rows)
            named = {file["name"] for shard in shards for file in shard["files"]}
            for name in self._names():
                if self.layout.is_shard_file(name) and name not in named:  # a run was killed between two renames
                    (self.folder / name).unlink()
            counts = sum((Counter(shard["counts"]) for shard in shards), Counter())
            manifest = {**self._record, "rows": rows, "counts": counts, "shards": shards}
            write_record(self.folder / MANIFEST, manifest)
            self._finished = None
            self._clear_unneeded()
            self.close()

    # ---- beginning and going on --------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; use a folder, or the name of a new one")
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _unmake(self) -> None:
        """Remove the folders that this run created but could not begin, if nobody else has put files into them."""
        if self._is_locked and self._made[:1] == [self.folder / STATE]:
            (self.folder / STATE / LOCK).unlink(missing_ok=True)
        self.close()
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _begin(self, notes: Mapping[str, object], *, resume: bool, overwrite: bool) -> None:
        self._raise_if_taken(overwrite=overwrite)
        if not overwrite:
            self._check_begun(resume=resume)
            if resume and self.is_whole:  # nothing is written, and the folder may be read-only
                self._clear_unneeded()
                return
        self._take_lock()
        if overwrite:
            self._remove_all()
        elif self._check_begun(resume=resume):  # checked again, as another run may have ended meanwhile
            if self.is_finished and not self.is_whole:
                self._begin_again(notes)
            self._clear_leftovers()
            return
        self._clear_leftovers()
        (self.folder / STATE / CUTS).unlink(missing_ok=True)  # of a run that may have had another size of shards
        self._begins = True
        write_record(self.folder / JOB, {**self._record, "notes": dict(notes)})

    def _check_begun(self, *, resume: bool) -> bool:
        """Whether the folder was begun. Raises InputError if that cannot be continued."""
        self._finished = None
        begun = self._begun()
        if begun is None:
            return False
        if not resume and not self._has_shards:  # a run failed before it made one: nothing would be lost
            return False
        if not resume:
            state = "holds the finished output of" if self.is_finished else "was begun by"
            way_on = "" if self.is_finished else "resume=True to continue it, or "
            raise InputError(
                f"{self.folder} {state} an earlier run; choose another folder, or pass {way_on}"
                "overwrite=True to begin it again"
            )
        self._raise_if_other(begun)
        return True

    @property
    def _has_shards(self) -> bool:
        return self.is_finished or any(path.stem.isdecimal() for path in (self.folder / STATE).glob("*.json"))

    def _raise_if_other(self, begun: Mapping[str, object]) -> None:
        changed = differences(begun, self._record)
        if changed:
            numbers = [each.argument for each in changed if each.argument]
            same = ", ".join(numbers) if len(numbers) == len(changed) else "the same"
            raise InputError(
                f"{self.folder} was begun with other options: {'; '.join(map(str, changed))}. "
                f"Use {same} to continue, or choose another folder"
            )

    def _remove_all(self) -> None:
        """Remove shards and their records; the files that identify the folder as an output go last."""
        for path in (self.folder / STATE).iterdir():
            if path.name.endswith((".json", TEMPORARY)) or path.name == CUTS:
                path.unlink()
        for name in sorted(self._names(), key=lambda name: name in (JOB, MANIFEST)):
            (self.folder / name).unlink()
        flush_path(self.folder)
        self._finished = None

    def _begin_again(self, notes: Mapping[str, object]) -> None:
        """Turn a finished folder into an unfinished one; the manifest goes last, so that this can be done twice."""
        for state in self.manifest()["shards"]:
            for name in self.wrong_files(state):
                (self.folder / name).unlink(missing_ok=True)  # its new record would be later than its damage
            write_record(self.state_path(state["number"]), state)
        write_record(self.folder / JOB, {**self._record, "notes": dict(notes)})
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
                f"{self.folder} also holds other files ({others[0]}): move them away, or choose another folder"
            )
        if is_ours:
            return
        if len(others) < len(names):
            shard = next(name for name in names if name not in others)
            raise InputError(
                f"{self.folder} holds features ({shard}), but neither {MANIFEST} nor {JOB}, which say what they "
                "were made from: copy that file too (it is hidden), or choose another folder"
            )
        raise InputError(f"{self.folder} holds something else ({names[0]}); choose an empty or a new folder")

    def _is_shard(self, name: str) -> bool:
        path = self.folder / name
        return is_shard_name(name) and path.is_file() and not path.is_symlink()

    def _begun(self) -> JobRecord | None:
        """The record of the job that the folder was begun for, None if it was not begun."""
        for name in (MANIFEST, JOB):
            if (self.folder / name).is_file():
                found = checked_record(self.folder / name, read_record(self.folder / name), JobRecord)
                return {"job": found["job"], "layout": found["layout"]}
        return None

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != STATE)

    def _clear_leftovers(self) -> None:
        """Remove the temporary files of runs that have ended."""
        for path in (self.folder / STATE).glob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _clear_unneeded(self) -> None:
        """Remove the files that only an unfinished folder needs; a folder without them may be read-only."""
        if (self.folder / JOB).exists():
            (self.folder / JOB).unlink(missing_ok=True)
        shutil.rmtree(self.folder / STATE, ignore_errors=True)

    def _take_lock(self) -> None:
        """Keep other runs out until this one closes the store. Raises InputError if another run has the lock."""
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

    def _all_shards(self, rows: int) -> list[ShardRecord]:
        """The states of all shards of an input of `rows` rows. Raises InputError."""
        size = self.layout.rows_per_shard
        wanted = range(-(-rows // size))
        found = {int(path.stem) for path in (self.folder / STATE).glob("*.json") if path.stem.isdecimal()}
        done = {number: state for number in wanted if number in found and (state := self.done(number)) is not None}
        missing = [number for number in wanted if number not in done]
        if missing:
            lacking = first_of(missing, MOST_LISTED)
            raise InputError(f"{self.folder} is not complete: {lacking} of {len(wanted)} shards missing")
        if beyond := sorted(found.difference(wanted)):
            more = first_of(beyond, MOST_LISTED)
            raise InputError(f"{self.folder} has more than the {rows} rows of the input: {more} too much")
        shards = [*done.values()]
        for shard in shards:
            expected = min(size, rows - shard["first_row"])
            if shard["rows"] != expected:
                raise InputError(f"shard {shard['number']} has {shard['rows']} rows instead of {expected}")
        if len({shard["id_type"] for shard in shards}) > 1:
            raise InputError("the ids are integers in some shards and strings in others; make them all strings")
        return shards
