"""The shards of a folder of features: finds those that are done, and writes the rows of others in portions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from hf_xlmr.errors import InputError
from hf_xlmr.features.store.files import GROUP_BYTES, FeatureGroup, ShardFiles, StoreLayout, Vectors, open_shard_files
from hf_xlmr.features.store.records import (
    MANIFEST,
    STATE,
    FileRecord,
    Manifest,
    ShardRecord,
    checked_record,
    checked_state,
    read_record,
    scratch,
    write_record,
)
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.files.fsync import flush, flush_path, told_with_place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Given: TypeAlias = "Vectors | Sequence[Vectors]"
"""The features of rows in one layer: a vector for each row, or for each token of it."""
Spans: TypeAlias = "NDArray[np.integer[Any]]"

__all__ = ["Row", "ShardWriter", "Shards", "TextsDigest"]

BLOCK: Final = 1 << 20
MADE_FROM: Final = "made_from"  # in the record of a shard
_LOG: Final = logging.getLogger(__name__)


class Row(Protocol):
    """The properties that the store needs of a row of the input, such as a TextRow."""

    @property
    def number(self) -> int:
        """The number of the row in the whole input, from 0."""

    @property
    def id(self) -> object | None:
        """The id of the row: a string, an integer of 64 bits, or None."""


class TextsDigest:
    """A checksum of the texts, ids and languages of rows; each shard's record has the one of its rows."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, text: str, id_: object | None, language: str | None = None) -> None:
        """Add the next row to the checksum."""
        named = [] if language is None else [language]
        data = (text if id_ is None and not named else json.dumps([text, id_, *named])).encode()
        self._sum.update(len(data).to_bytes(8, "little"))
        self._sum.update(data)

    def hexdigest(self) -> str:
        """The checksum of all rows so far."""
        return self._sum.hexdigest()


class Shards:
    """The finished shards of a folder, by their records, and writers for others; each thread has its own object."""

    def __init__(self, folder: Path, layout: StoreLayout, *, made_from: str | None = None) -> None:
        """Open the shards of `folder`, whose features are in this `layout`.

        `made_from` identifies the input as it is now; None if nothing does.
        """
        self.folder = folder
        self.layout = layout
        self.made_from = made_from
        self._finished: Manifest | None = None
        self._told: set[int] = set()
        """The numbers of shards that a warning has named."""
        self._latest: tuple[int, object] = -1, None
        """The number of the record that was read last, and the input that its shard was made from."""

    @property
    def is_finished(self) -> bool:
        """Whether the output is finished."""
        return (self.folder / MANIFEST).is_file()

    def is_done(self, number: int) -> bool:
        """Whether a shard is done, and its files are as they were recorded. Raises what `done` raises."""
        return self.done(number) is not None

    def done(self, number: int) -> ShardRecord | None:
        """The record of a shard that is done, and whose files are as they were recorded, by `wrong_files`.

        Raises IntegrityError, and InputError if the output is finished and has no such shard.
        """
        state = self.state(number)
        if state is None and self.is_finished:
            raise self.another_input(f"it has more than {self.manifest()['rows']} rows")
        if state is not None and (wrong := self.wrong_files(state)):
            if number not in self._told:
                self._told.add(number)
                _LOG.warning("%s: %s changed since, and is made again", self.folder, ", ".join(wrong))
            return None
        return state

    def is_current(self, number: int) -> bool:
        """Whether a finished shard was made from the input as it is now, or compared with it. Raises IntegrityError."""
        if self.made_from is None or self.is_finished:
            return False
        if self._latest[0] != number:
            self.state(number)
        return self._latest == (number, self.made_from)

    def record(self, state: ShardRecord) -> None:
        """Record that a shard is done, and from which input."""
        made_from = {} if self.made_from is None else {MADE_FROM: self.made_from}
        write_record(self.state_path(state["number"]), {**state, **made_from})

    def check(self, number: int, texts_sha256: str) -> ShardRecord | None:
        """The record of a finished shard that was made from these texts. Raises InputError naming its rows."""
        state = self.state(number)
        if state is None or state["texts_sha256"] == texts_sha256:
            return state
        first, rows = state["first_row"], state["rows"]
        raise self.another_input(
            f"rows {first} to {first + rows - 1} (counted from 0) have other texts now, or more or fewer follow them"
        )

    def confirm(self, number: int, texts_sha256: str) -> None:
        """Check a shard that is done, and record the input that it was compared with. Raises what `check` raises."""
        state = self.check(number, texts_sha256)
        if state is not None and self.made_from is not None and not self.is_finished:
            with told_with_place(self.folder):
                self.record(state)

    def another_input(self, why: str) -> InputError:
        """The error for an input that is not the one that the folder was begun with."""
        return InputError(
            f"the input is not what {self.folder} was begun with: {why}; use the same input, or choose another folder"
        )

    @contextmanager
    def shard(self, number: int) -> Iterator[ShardWriter]:
        """A writer for a shard; its files appear when the block succeeds, and are removed when it fails.

        Raises InputError if the disk is full or the folder is gone.
        """
        writer = ShardWriter(self, number)
        try:
            yield writer
            writer.publish()
        finally:
            writer.close()

    def state_path(self, number: int) -> Path:
        """The path of the record that says that a shard is done."""
        return self.folder / STATE / f"{number:05d}.json"

    def state(self, number: int) -> ShardRecord | None:
        """The record of a finished shard, None if it is not finished. Raises IntegrityError."""
        if self.is_finished:
            shards = self.manifest()["shards"]
            return shards[number] if number < len(shards) else None
        path = self.state_path(number)
        with told_with_place(path):
            found = read_record(path) if path.is_file() else None
        if found is None:
            return None
        # apart from the record, as the manifest is the same whenever the files of the input were written
        self._latest = number, found.pop(MADE_FROM, None)
        return checked_state(path, found, number)

    def manifest(self) -> Manifest:
        """The manifest of a finished folder, read once. Raises IntegrityError."""
        if self._finished is None:
            path = self.folder / MANIFEST
            with told_with_place(path):
                found = checked_record(path, read_record(path), Manifest)
            for number, state in enumerate(found["shards"]):
                checked_state(path, state, number)
            self._finished = found
        return self._finished

    @property
    def is_whole(self) -> bool:
        """Whether the folder is finished, and its files are as they were recorded. Raises IntegrityError."""
        return self.is_finished and not any(map(self.wrong_files, self.manifest()["shards"]))

    def wrong_files(self, state: ShardRecord) -> list[str]:
        """The files of a finished shard that are gone, or are not what was recorded of them. Raises OSError.

        A file of the recorded size is read only if it is later than its record.
        """
        record = self.folder / MANIFEST if self.is_finished else self.state_path(state["number"])
        recorded_at = record.stat().st_mtime_ns
        return [file["name"] for file in state["files"] if not self._is_as_recorded(file, recorded_at)]

    def _is_as_recorded(self, file: FileRecord, recorded_at: int) -> bool:
        path = self.folder / file["name"]
        found = path.stat() if path.is_file() else None
        if found is None or found.st_size != file["size"]:
            return False
        times = found.st_mtime_ns, found.st_ctime_ns
        return max(times) <= recorded_at or _sha256(path, *times) == file["sha256"]


class ShardWriter:
    """Takes the rows of one shard in their order, in portions of any size."""

    def __init__(self, store: Shards, number: int) -> None:
        """Open the files of the shard; use `Shards.shard` instead."""
        self.counts: Counter[str] = Counter()
        """Counts besides rows, such as the number of truncated texts; the manifest has their sums over shards."""
        self.truncated_rows: list[int] = []
        """The numbers of the first rows that were truncated."""
        self.texts_sha256 = ""
        """The checksum of the shard's texts, by TextsDigest; must be set before the shard is published."""
        self._store = store
        self._layout = store.layout
        self._number = number
        self._first = number * store.layout.rows_per_shard
        self._next = self._first
        self._id_type: str | None = None
        self._scratches: dict[str, IO[bytes]] = {}
        self._files: ShardFiles | None = None
        self._pending: list[FeatureGroup] = []
        self._pending_vectors = self._pending_ids = 0

    def write(
        self,
        rows: Sequence[Row],
        features: Mapping[int, Given],
        *,
        spans: Sequence[Spans] | None = None,
    ) -> None:
        """Append the next rows with the features of each layer, which may be overwritten afterwards.

        `features` are (rows, width), or per token for each row (its tokens, width); `spans` are then for each row
        (its tokens, 2), where tokens begin and end in the text, in characters. Raises InputError, also if a value
        is too large for float16; ValueError if shapes, layers or the order of rows do not fit the shard.
        """
        group = self._group(rows, features, spans)
        self._next += len(rows)
        with told_with_place(self._store.folder):
            self._take(group)

    def _group(self, rows: Sequence[Row], features: Mapping[int, Given], spans: Sequence[Spans] | None) -> FeatureGroup:
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

    def _vectors(self, given: Given, rows: Sequence[Row]) -> Vectors:
        """A copy of `given` in the dtype of the store, since the caller may overwrite `given`."""
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
        while len(group.lengths):
            taken, group = group.split(self._fitting(group))
            self._pending.append(taken)
            self._pending_vectors += int(taken.lengths.sum())
            self._pending_ids += int(taken.id_sizes.sum())
            if self._pending_vectors >= self._layout.vectors_per_group or self._pending_ids >= GROUP_BYTES:
                self._write_pending()

    def _fitting(self, group: FeatureGroup) -> int:
        """The number of rows of `group` that fill the pending group."""
        import numpy as np

        room = self._layout.vectors_per_group - self._pending_vectors
        rows = np.searchsorted(group.lengths.cumsum(), room)
        for_ids = np.searchsorted(group.id_sizes.cumsum(), GROUP_BYTES - self._pending_ids)
        return int(min(rows, for_ids)) + 1

    def _write_pending(self) -> None:
        if self._files is None:
            self._files = open_shard_files(self._number, self._layout, self._open)
        self._files.append(FeatureGroup.joined(self._pending))
        self._pending, self._pending_vectors, self._pending_ids = [], 0, 0

    def _open(self, name: str) -> IO[bytes]:
        self._scratches[name] = scratch(self._store.folder / name)
        return self._scratches[name]

    def publish(self) -> None:
        """Give the files their names, and then record that the shard is done."""
        if self._next == self._first:
            raise ValueError(f"shard {self._number} has no rows")
        if not self.texts_sha256:
            raise ValueError(f"shard {self._number} has no checksum of its texts")
        with told_with_place(self._store.folder):
            if self._pending:
                self._write_pending()
            if self._files is not None:
                self._files.finish()
            # what was lost or damaged is made again from the same texts; a record that is older than the damage stays
            self._store.check(self._number, self.texts_sha256)
            files = [_facts(name, file) for name, file in sorted(self._scratches.items())]
            for name, file in self._scratches.items():
                Path(file.name).replace(self._store.folder / name)
            flush_path(self._store.folder)
            state: ShardRecord = {
                "number": self._number,
                "first_row": self._first,
                "rows": self._next - self._first,
                "texts_sha256": self.texts_sha256,
                "id_type": self._id_type,
                "files": files,
                "counts": dict(self.counts),
            }
            if self.truncated_rows:
                state["truncated_rows"] = self.truncated_rows
            self._store.record(state)
            self._files = None

    def close(self) -> None:
        """Close the files, and remove those that do not have their names yet."""
        if self._files is not None:
            self._files.abandon()
        for file in self._scratches.values():
            Path(file.name).unlink(missing_ok=True)
            with suppress(OSError):  # unwritten data is not needed
                file.close()


@lru_cache(maxsize=1 << 16)
def _sha256(path: Path, *_times: int) -> str:
    """The checksum of a file that has these times: a run asks several times, and `sha256_of` may have no cache."""
    return sha256_of(path)


def _facts(name: str, file: IO[bytes]) -> FileRecord:
    """The length and checksum of a file that is now on the disk."""
    flush(file)
    summed, size = hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(BLOCK):
        summed.update(block)
        size += len(block)
    return {"name": name, "size": size, "sha256": summed.hexdigest()}
