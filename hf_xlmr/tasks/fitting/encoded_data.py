"""The data of a training as numbers: encoded once, into the cache, and mapped from there by every process."""

from __future__ import annotations

import errno
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from hf_xlmr import __version__
from hf_xlmr.data.columns import identity_of
from hf_xlmr.errors import NO_ROOM, InputError, printable
from hf_xlmr.features.processes import Processes
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.cache_folder import CACHE_VARIABLE, cache_folder, make_cache_folder
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.files.fsync import flush
from hf_xlmr.files.json_files import strict_json
from hf_xlmr.files.locks import locked
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tasks.encoding.encoding import Features, batches_of, digest_of, in_language
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.task import AnyTask, Coding
from hf_xlmr.tasks.kinds.task_data import TaskData, gather, sources_of

if TYPE_CHECKING:
    import pyarrow

__all__ = ["EncodedData", "encoded_data"]

FORMAT: Final = 1  # of the entries: raised if the same data come out differently
ENTRIES: Final = "training"  # in the cache folder
ONCE: Final = "once-"  # begins the name of an entry that nobody could find again
LOCK: Final = "lock"
DRAFT: Final = "draft.arrow"  # the rows in the order in which they were read
ROWS: Final = "rows.arrow"  # a stream, as `datasets.Dataset.from_file` maps it
FACTS: Final = "facts.json"  # written last: an entry without it is not whole
CODE: Final = ("data", "tasks", "tokenizer")  # packages that decide on the numbers
AT_ONCE: Final = 1024  # examples of a key that are encoded together
MOST_WAITING: Final = 16 * AT_ONCE  # of all keys
CHANGED: Final = "{}: the data changed while they were read; start again when they are complete"
NOT_WRITABLE: Final = (
    "the cache {}, where encoded training data are kept, cannot be written to ({}): make room there, or set {} to a "
    "folder on another disk"
)


@dataclass(frozen=True)
class EncodedData:
    """The rows of a training, and what they were made of."""

    features: Features
    digest: str
    """The `digest_of` the rows."""
    data: TaskData
    """Without examples."""
    labels: tuple[str, ...] | None
    """The labels by number; None if the task has none."""


def encoded_data(
    task: AnyTask,
    sources: Sequence[str],
    reading: Reading,
    coding: Coding,
    *,
    processes: Processes,
    progress: Progress = SILENT,
) -> EncodedData:
    """The rows of all `sources`; if `coding` has no labels, with those of the data.

    They are found in the cache by the content of the data and all else that decides on the numbers. If they are not
    there, the first process that comes encodes them, in memory that does not grow with their number, and the others
    wait for it. Data whose content only reading shows, such as a pipe, are encoded each time. Raises what `gather` and
    the task raise.
    """
    name = ", ".join(sources)
    own = _key(task, sources, reading, coding) if processes.is_first else None
    key = processes.agreed(own or f"{ONCE}{secrets.token_hex(16)}")
    entry, is_found_again = cache_folder() / ENTRIES / key, not key.startswith(ONCE)

    def check() -> None:
        if is_found_again and _key(task, sources, reading, coding) not in (key, None):
            raise InputError(printable(CHANGED.format(name)))

    with _told_with_the_cache(), nullcontext() if is_found_again else _kept_for_now(entry, processes):
        if (encoded := _opened(entry, name)) is None:
            make_cache_folder(f"{ENTRIES}/{key}")
            with locked(entry / LOCK):
                if (encoded := _opened(entry, name)) is None:
                    make_cache_folder(f"{ENTRIES}/{key}")  # if a process that failed has removed it
                    _clear_leftovers(entry)
                    with progress.task("encoding", unit="examples") as bar:
                        _write(entry, _Draft(task, coding, reading, bar.advance), sources, check)
                    encoded = _opened(entry, name)
    if encoded is None:
        raise InputError(f"{entry} was changed while it was written: start again")
    return encoded


@contextmanager
def _kept_for_now(entry: Path, processes: Processes) -> Iterator[None]:
    """Remove an entry when each process has mapped its rows, which stay readable, or one has failed."""
    try:
        yield
        processes.wait()
    finally:
        shutil.rmtree(entry, ignore_errors=True)


def _clear_leftovers(own: Path) -> None:
    """Remove the rows of entries that are not whole, and whose process, which would hold their lock, has ended."""
    for entry in own.parent.iterdir():
        with suppress(OSError, InputError):
            left = [] if entry == own or (entry / FACTS).exists() else [entry / DRAFT, entry / ROWS]
            if any(path.exists() for path in left):
                with locked(entry / LOCK, waits=False):
                    for path in [] if (entry / FACTS).exists() else left:
                        path.unlink(missing_ok=True)


@contextmanager
def _told_with_the_cache() -> Iterator[None]:
    """Turn the system's errors about the cache into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        cache, place = str(cache_folder()), str(error.filename or "")
        is_there = bool(place) and (place.startswith(cache) or cache.startswith(place))
        if not is_there and (place or error.errno not in {*NO_ROOM, errno.EROFS, errno.EACCES}):
            raise
        reason = error.strerror or str(error)
        raise InputError(printable(NOT_WRITABLE.format(cache, reason, CACHE_VARIABLE))) from error


def _key(task: AnyTask, sources: Sequence[str], reading: Reading, coding: Coding) -> str | None:
    """The digest of everything that decides on the rows; None if only reading the data would show what they are."""
    found = sources_of(task, sources, reading)
    identities = [identity_of(source.source) for source, _ in found]
    if None in identities:
        return None
    given = [(source.language, source.config, split) for source, split in found]
    package = Path(__file__).parents[2]
    code = [sha256_of(path) for name in CODE for path in sorted((package / name).rglob("*.py"))]
    facts = [
        *(FORMAT, __version__, code, task.name, identities, given, asdict(reading)),
        *(coding.tokenizer.digest(), coding.labels, coding.max_length, asdict(coding.questions)),
        None if coding.languages is None else coding.languages.names,
    ]
    return sha256(json.dumps(facts).encode()).hexdigest()[:40]


# ---- an entry of the cache -------------------------------------------------------------------------------------------


def _opened(entry: Path, name: str) -> EncodedData | None:
    """What an entry holds for data called `name`; None if it is not whole."""
    import pyarrow

    try:
        facts = strict_json((entry / FACTS).read_bytes())
        digest = _digest(entry / ROWS)
        if digest != facts["digest"]:
            return None
        features = Features(pyarrow.ipc.open_stream(pyarrow.memory_map(str(entry / ROWS))))
        misaligned = {key: tuple(ids) for key, ids in facts["misaligned"].items()}
        data = TaskData(name, facts["counts"], misaligned, facts["skipped"])
        return EncodedData(features, digest, data, None if facts["labels"] is None else tuple(facts["labels"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # pyarrow's errors are some of these
        return None


def _digest(path: Path) -> str:
    """The digest of the rows in a file, which is not mapped: its pages would count as this process's memory."""
    import pyarrow

    with pyarrow.OSFile(str(path)) as file:
        return digest_of(pyarrow.ipc.open_stream(file))


def _write(entry: Path, draft: _Draft, sources: Sequence[str], check: Callable[[], None]) -> None:
    """Fill an entry with the rows of all `sources`, which is whole if `check` then raises nothing.

    Raises what `gather`, the task and `check` raise, OSError.
    """
    for name in (FACTS, ROWS):  # of an entry that is damaged, which others may have mapped: never written over
        (entry / name).unlink(missing_ok=True)
    try:
        with (entry / DRAFT).open("wb") as file:
            data = draft.fill(file, sources)
        with (entry / ROWS).open("wb") as file:
            draft.copy_in_order(entry / DRAFT, file, data.counts)
            flush(file)
        check()
    except BaseException:
        (entry / ROWS).unlink(missing_ok=True)
        raise
    finally:
        (entry / DRAFT).unlink(missing_ok=True)
    facts = {
        "digest": _digest(entry / ROWS),
        "labels": draft.labels,
        "counts": data.counts,
        "misaligned": data.misaligned,
        "skipped": data.skipped,
    }
    replace_content(entry / FACTS, json.dumps(facts, indent=1).encode())


# ---- from examples to rows -------------------------------------------------------------------------------------------


class _Draft:
    """Rows as they are read: record batches of one key each, with labels of the data in the order of their coming."""

    def __init__(self, task: AnyTask, coding: Coding, reading: Reading, advance: Callable[[int], None]) -> None:
        self._task, self._coding, self._reading, self._advance = task, coding, reading, advance
        languages = reading.languages
        self._wanted = None if languages is None else frozenset(map(task.key_of, languages))
        self._takes_labels = not coding.labels
        self._waiting: dict[str, list[object]] = {}
        self._held = 0  # examples that wait
        self._keys: list[str] = []  # of the batches that are written
        self._file: IO[bytes] | None = None
        self._writer: pyarrow.RecordBatchFileWriter | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels by their final numbers; None if there are none."""
        met = self._coding.labels
        return (self._task.labels_in((), met) if self._takes_labels and met else met) or None

    def fill(self, file: IO[bytes], sources: Sequence[str]) -> TaskData:
        """Encode all `sources` into `file`. Raises what `gather` and the task raise, OSError."""
        self._file = file
        data = gather(self._task, sources, self._reading, self._take)
        for key in tuple(self._waiting):
            self._encode(key)
        if self._writer is None:
            raise InputError(printable(f"{data.name}: the examples make no rows"))
        self._writer.close()
        return data

    def _take(self, key: str, example: object) -> None:
        if self._wanted is not None and key not in self._wanted:
            return
        several = self._waiting.setdefault(key, [])
        several.append(example)
        self._held += 1
        if len(several) == AT_ONCE:
            self._encode(key)
        elif self._held == MOST_WAITING:  # there are many keys
            for each in tuple(self._waiting):
                self._encode(each)

    def _encode(self, key: str) -> None:
        import pyarrow

        examples = self._waiting.pop(key)
        self._held -= len(examples)
        if self._takes_labels:
            labels = (*self._coding.labels, *(self._task.labels_in(examples) or ()))
            self._coding = replace(self._coding, labels=tuple(dict.fromkeys(labels)))
        numbers = self._task.language_numbers([key], self._coding.languages)
        for batch in batches_of(in_language(self._task.encode(examples, self._coding), numbers[key])):
            if self._writer is None:
                self._writer = pyarrow.ipc.new_file(self._file, batch.schema)
            self._writer.write_batch(batch)
            self._keys.append(key)
        self._advance(len(examples))

    def copy_in_order(self, draft: Path, file: IO[bytes], keys: Iterable[str]) -> None:
        """Copy the batches from `draft` to `file`, those of each of the `keys` together, with the final labels."""
        import pyarrow

        with pyarrow.OSFile(str(draft)) as opened:
            reader = pyarrow.ipc.open_file(opened)
            with pyarrow.ipc.new_stream(file, reader.schema) as writer:
                for key in keys:
                    for number in (number for number, each in enumerate(self._keys) if each == key):
                        writer.write_batch(self._renumbered(reader.get_batch(number)))

    def _renumbered(self, batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
        """The batch with the final numbers of labels that came with the data."""
        import numpy as np
        import pyarrow

        met, final = self._coding.labels, self.labels
        if not self._takes_labels or final is None or met == final:
            return batch
        numbers = np.array([final.index(each) for each in met], np.int32)
        for name in self._task.recipe.label_columns:
            place, column = batch.schema.get_field_index(name), batch.column(name)
            is_list = pyarrow.types.is_list(column.type)
            values = (column.flatten() if is_list else column).to_numpy().copy()
            values[values >= 0] = numbers[values[values >= 0]]
            flat = pyarrow.array(values)
            renewed = pyarrow.ListArray.from_arrays(column.offsets, flat) if is_list else flat
            batch = batch.set_column(place, name, renewed)
        return batch
