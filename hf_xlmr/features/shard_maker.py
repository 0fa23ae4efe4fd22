"""Makes shards of an output one by one, as another process orders them: what an actor of Ray runs."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr.data.cuts import Cuts
from hf_xlmr.data.text_rows import BadRow, TextRow
from hf_xlmr.errors import HfXlmrError, InputError
from hf_xlmr.features.background import handed_over
from hf_xlmr.features.bulk_extraction import (
    ExtractionOptions,
    ExtractionReport,
    ShardEnd,
    Tally,
    extractor_of,
    job_of,
    layout_of,
    opened,
    report_of,
    set_threads,
    shard_windows,
    window_maker,
    written,
)
from hf_xlmr.features.processes import Processes, Shared
from hf_xlmr.features.shares import Passed, own_cuts
from hf_xlmr.features.store.files import StoreLayout
from hf_xlmr.features.store.folder import FeatureStore
from hf_xlmr.features.store.records import STATE
from hf_xlmr.features.store.shards import Shards
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.files.memory import available_memory
from hf_xlmr.hub_interface.loading import ModelFiles, find_model

if TYPE_CHECKING:
    from hf_xlmr.features.chunks import Window, WindowMaker
    from hf_xlmr.features.extraction import FeatureExtractor, Features

__all__ = ["Begun", "Made", "Plan", "ShardMaker", "Work"]

FLUSH: Final = Passed(0)  # lets an extractor that computes one step behind give the last one out


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all makers of one output do, as the process that orders it understands it."""

    model: str
    source: str
    output: str
    options: ExtractionOptions
    sample: list[TextRow]
    """The first rows: in int8 the sample."""
    begun: JsonObject
    """The job that is continued, if any."""
    threads: int
    gpus: int
    """The number of GPUs that a maker sees."""
    folder: str
    """The working directory, to which paths are relative."""


@dataclass(frozen=True)
class Begun:
    """What the first maker decided: everybody else computes in the same way."""

    job: dict[str, object]
    layout: StoreLayout
    agreed: tuple[object, ...]
    report: ExtractionReport
    """The report, without counts."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a maker must know to join an output that was begun."""

    begun: Begun
    mark: str | None
    """A file that was just made in the output: another folder of the same name has no such file."""
    made_from: str | None
    """What identifies the input, if anything does."""
    cuts: Cuts | None
    """Where each shard begins in the input; None if each order comes with its rows."""


@dataclass(frozen=True)
class Made:
    """Counts of a shard that is done."""

    rows: int
    tokens: int
    truncated: int


@dataclass(frozen=True, eq=False)
class _Order:
    """A shard to make, and the rows of it if they do not come from the input."""

    number: int
    rows: list[TextRow] | None
    made: Future[Made] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _End(ShardEnd):
    """The end of an order: whether it could be read."""

    order: _Order
    error: Exception | None = None


@dataclass(frozen=True)
class _Followed(Processes):
    """A process that does as the first one did: `before` are the values of its broadcasts."""

    before: tuple[object, ...] = ()
    agreements: list[object] = field(default_factory=list)

    def agreed(self, value: Shared) -> Shared:
        """The first process's value."""
        at = len(self.agreements)
        self.agreements.append(self.before[at] if at < len(self.before) else value)
        found: Shared = self.agreements[at]  # type: ignore[assignment]
        return found


class ShardMaker:
    """Loads the model once, and makes the shards that it is asked for; calls may come from several threads.

    As within `extract`, one shard is read and tokenized while another is computed and a third is written.
    """

    def __init__(self, work: Work, *, rank: int) -> None:
        """Store the arguments; `rank` is 0 for the maker that decides."""
        self._work, self._rank = work, rank
        self._preparing = threading.Lock()
        self._files: ModelFiles | None = None
        self._loaded: tuple[FeatureExtractor, Begun] | None = None
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._open: set[_Order] = set()
        self._failure: BaseException | None = None

    def node(self) -> str:
        """The name of this machine."""
        return socket.gethostname()

    def prepare(self) -> ModelFiles:
        """Find the model, and import what computes: all that takes time and needs nothing agreed. Raises InputError."""
        with self._preparing:
            if self._files is None:
                with suppress(OSError):  # a node without this folder needs whole paths
                    os.chdir(self._work.folder)
                with self._named("cannot use the model"):
                    self._files = find_model(self._work.model)
                import_module("hf_xlmr.features.extraction")
            return self._files

    def begin(self, agreed: tuple[object, ...] = ()) -> Begun:
        """Load the model, and decide what is not yet `agreed`. Raises InputError, IntegrityError."""
        return self._load(agreed)[1]

    def join(self, plan: Plan) -> None:
        """Get ready to make shards of the output. Raises InputError naming the node, IntegrityError."""
        extractor, begun = self._loaded or self._load(plan.begun.agreed)
        output, rows_of = Path(self._work.output), None
        with self._named("cannot write the output"):
            if plan.mark is not None and not (output / STATE / plan.mark).is_file():
                raise InputError(f"{output} is missing there, or is another folder; give one that all nodes share")
            FeatureStore.join(output, begun.job, layout=begun.layout)
        if plan.cuts is not None:
            with self._named("cannot read the input"):
                texts = opened(self._work.source, self._work.options)
                rows_of = partial(texts.rows_of, own_cuts(texts, plan.cuts, name="it"))
        shards = partial(Shards, output, begun.layout, made_from=plan.made_from)
        steps = self._steps(shards(), window_maker(extractor, self._work.options), rows_of)
        threading.Thread(target=self._work_off, args=(extractor, steps, shards()), daemon=True).start()

    def _load(self, agreed: tuple[object, ...]) -> tuple[FeatureExtractor, Begun]:
        work, files = self._work, self.prepare()
        set_threads(work.threads)
        if (seen := sum(isinstance(each, int) for each in available_memory())) < work.gpus:
            raise InputError(f"node {self.node()}: Ray gives an actor {work.gpus} GPUs, and PyTorch sees {seen}")
        processes = _Followed(rank=self._rank, before=agreed)
        begun = {**work.begun, "kernel": agreed[-1]} if agreed else work.begun
        with _warnings_kept() as warnings:
            extractor = extractor_of(files, processes, work.options, work.sample, begun=begun)
        has_ids = work.options.id_column is not None
        layout = layout_of(work.options, extractor, files.shape, Processes(), has_ids=has_ids)
        decided = Begun(
            job=job_of(files, extractor, work.sample),
            layout=layout,
            agreed=tuple(processes.agreements),
            report=report_of(work.model, work.source, work.output, extractor, layout, Tally(), Processes()),
            warnings=tuple(warnings),
        )
        self._loaded = extractor, decided
        return self._loaded

    def make(self, number: int, rows: list[TextRow] | None = None) -> Made:
        """Make a shard, if it is not there yet. Raises BadRow, InputError naming the node."""
        order = _Order(number, rows)
        self._orders.put(order)
        with self._named("cannot make a shard"):
            return order.made.result()

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Name the node in errors, but not in those of rows, which are the same everywhere."""
        try:
            yield
        except BadRow:
            raise
        except HfXlmrError as error:
            error.args = (f"node {self.node()} {what}: {error}",)
            raise

    # ---- threads as in bulk_extraction: one reads and tokenizes, one computes, one writes ----------------------------

    def _work_off(self, extractor: FeatureExtractor, steps: Iterator[Window | _End | Passed], shards: Shards) -> None:
        """Compute the windows of all orders."""
        set_threads(self._work.threads)
        computed: Iterator[Features | _End | Passed] = extractor.computed(steps)
        try:
            with handed_over(partial(self._write, shards), depth=1) as hand_over:
                for step in computed:
                    if not isinstance(step, Passed):
                        hand_over(step)
        except BaseException as error:  # noqa: BLE001 - no shard can be computed any more
            self._failure = error
            for order in chain(tuple(self._open), iter(self._orders.get, None)):
                self._report(order, error)

    def _steps(
        self, shards: Shards, texts: WindowMaker, rows_of: Callable[[int], Iterator[TextRow]] | None
    ) -> Iterator[Window | _End | Passed]:
        """The windows of each order, and an end, after which an order that cannot be read has failed."""
        for order in iter(self._orders.get, None):
            self._open.add(order)
            if self._failure is not None:
                self._report(order, self._failure)
                return
            try:
                if shards.is_done(order.number):  # by an actor that died before it could say so
                    self._report(order, _made(shards, order.number))
                    continue
                rows = iter(order.rows or ()) if rows_of is None else rows_of(order.number)
                for step in shard_windows(rows, texts):
                    yield step if not isinstance(step, ShardEnd) else _End(step.texts_sha256, order)
            except Exception as error:  # noqa: BLE001 - raised where the shard was ordered
                yield _End("", order, error)
            yield FLUSH

    def _write(self, shards: Shards, items: Iterator[Features | _End]) -> None:
        """Write the shard of each order."""
        size = shards.layout.rows_per_shard
        for first in items:
            ends: list[_End] = []
            steps = _until_end(chain([first], items), ends)
            number = first.order.number if isinstance(first, _End) else first.rows[0].number // size
            try:
                with shards.shard(number) as writer:
                    writer.texts_sha256 = written(writer, steps)
                    if ends[0].error is not None:
                        raise ends[0].error
                made = _made(shards, number)
            except Exception as error:
                deque(steps, maxlen=0)
                if not ends:  # the computation ended before the shard did
                    raise
                self._report(ends[0].order, error)
            else:
                self._report(ends[0].order, made)

    def _report(self, order: _Order, result: Made | BaseException) -> None:
        """Let the caller that ordered a shard have the result."""
        self._open.discard(order)
        if isinstance(result, Made):
            order.made.set_result(result)
        else:
            order.made.set_exception(result)


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """The warnings of the block, for the process that shows them."""
    kept: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hf_xlmr")
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)


def _made(shards: Shards, number: int) -> Made:
    """The counts of a shard that is done."""
    state = shards.state(number)
    assert state is not None
    return Made(state["rows"], state["counts"]["tokens"], state["counts"]["truncated"])


def _until_end(items: Iterator[Features | _End], ends: list[_End]) -> Iterator[Features | _End]:
    """Yield the items of a shard, the last of which is its end, and append this to `ends`."""
    for each in items:
        if isinstance(each, _End):
            ends.append(each)
        yield each
        if ends:
            return
