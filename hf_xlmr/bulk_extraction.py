"""From a file of texts to a folder of features: each process makes its share of the shards, and can be killed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hf_xlmr import __version__
from hf_xlmr.errors import InputError
from hf_xlmr.feature_files import StoreLayout
from hf_xlmr.feature_store import FeatureStore
from hf_xlmr.fingerprint import fingerprint
from hf_xlmr.loading import ModelFiles, find_model
from hf_xlmr.memory import Device, available_memory
from hf_xlmr.model_shape import ModelShape
from hf_xlmr.overlap import handed_over
from hf_xlmr.processes import Processes
from hf_xlmr.progress import SILENT, Progress, ProgressTask
from hf_xlmr.shard_writer import TextsDigest
from hf_xlmr.sharding import lay_out
from hf_xlmr.text_files import TextInput, open_texts
from hf_xlmr.text_rows import BadRow, TextRow
from hf_xlmr.windows import TextTooLong

if TYPE_CHECKING:
    import torch

    from hf_xlmr.extraction import FeatureExtractor, Features

__all__ = ["ExtractionReport", "extract", "placing_for"]

ROWS_PER_SHARD: Final = 8192


@dataclass(frozen=True)
class ExtractionReport:
    """What one process did of an extraction."""

    model: str
    source: str
    output: str
    rows: int
    """Of the whole input."""
    shards: int
    """That this process made in this run."""
    texts: int
    """In these shards."""
    tokens: int
    """That were computed."""
    truncated: int
    """Texts that were cut off."""
    seconds: float
    """From the first text read to the last shard written."""
    layers: tuple[int, ...]
    pool: str
    dtype: str
    kernel: str
    device: str
    processes: int


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """What is extracted, how, and in what form it is kept; FeatureExtractor and StoreLayout tell more."""

    column: str = "text"
    """Of the texts, where the input has columns."""
    id_column: str | None = None
    """What is handed on beside the features."""
    split: str | None = None
    config: str | None = None
    """Of a data set."""
    layers: tuple[int, ...] = (-1,)
    pool: str = "mean"
    dtype: str = "auto"
    emulate_dtype: bool = False
    """Compute in `dtype` also if the processor has no instructions for it, instead of in float32."""
    device: str | None = None
    """Such as cpu or cuda:1; None is the process's own GPU, or the CPU where there is none."""
    tokens_per_batch: int | None = None
    max_length: int | None = None
    on_long: str = "truncate"
    file_format: str = "parquet"
    store_dtype: str = "float32"
    rows_per_shard: int = ROWS_PER_SHARD


def extract(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    options: ExtractionOptions | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> ExtractionReport:
    """Write the features of every text in `source` into the folder `output`, in the order of the input.

    `model` is what `XLMR.from_pretrained` takes, `source` what `text_files.open_texts` takes. Under `torchrun` or
    `accelerate launch` each process makes every so-manieth shard; the folder is the same as one process makes it, and
    the same with breaks as without. With `resume` what is there already is kept. Raises InputError, BadRow naming the
    line, IntegrityError.
    """
    from hf_xlmr.precision import dtype_name

    options = options or ExtractionOptions()
    processes = Processes.current()
    texts = open_texts(
        source, column=options.column, id_column=options.id_column, split=options.split, config=options.config
    )
    _raise_if_read_once(texts, processes, resume=resume)
    files = find_model(model, progress=progress)
    job, notes = FeatureStore.begun_with(output) if resume else ({}, {})
    _set_threads(notes.get("threads"))
    extractor = _extractor(files, processes, options, begun=job)
    layout = StoreLayout(
        layers=extractor.layers,
        width=extractor.width,
        per_token=extractor.is_unpooled,
        has_ids=texts.has_ids,
        format=options.file_format,
        dtype=options.store_dtype,
        rows_per_shard=options.rows_per_shard,
    )
    store = _store(output, _job(files, extractor), layout, processes, resume=resume)
    share = _Share(texts, store, extractor, processes)
    start = time.perf_counter()
    with progress.task(f"extracting in {dtype_name(extractor.dtype)}", total=share.count(), unit="texts") as task:
        share.make(task)
    seconds = time.perf_counter() - start
    processes.wait()
    if processes.is_first:
        store.finish(rows=share.rows_read)
    processes.wait()
    return _report(str(model), texts.name, str(output), share, seconds)


def _report(model: str, source: str, output: str, share: _Share, seconds: float) -> ExtractionReport:
    from hf_xlmr.precision import dtype_name

    extractor = share.extractor
    return ExtractionReport(
        model=model,
        source=source,
        output=output,
        rows=share.rows_read,
        shards=share.shards,
        texts=share.texts_done,
        tokens=share.tokens,
        truncated=share.truncated,
        seconds=round(seconds, 3),
        layers=extractor.layers,
        pool=extractor.pooling.value,
        dtype=dtype_name(extractor.dtype),
        kernel=extractor.kernel,
        device=str(extractor.device),
        processes=share.processes.count,
    )


def _raise_if_read_once(texts: TextInput, processes: Processes, *, resume: bool) -> None:
    if not texts.is_repeatable and (resume or processes.count > 1):
        raise InputError(
            f"{texts.name} can be read only once, so that nothing can go on after a break, and processes cannot share "
            "it: give a file"
        )


def _set_threads(count: object) -> None:
    """Go on with as many threads as the run before the break had: sums may round otherwise with others."""
    import torch

    if isinstance(count, int) and count > 0:
        torch.set_num_threads(count)


# ---- the model -------------------------------------------------------------------------------------------------------


def _extractor(
    files: ModelFiles, processes: Processes, options: ExtractionOptions, *, begun: Mapping[str, Any]
) -> FeatureExtractor:
    """The extractor on the device of this process, with the dtype and the kernel that the first process chose.

    `begun` is the job that goes on, if any. Raises InputError.
    """
    import torch

    from hf_xlmr.extraction import FeatureExtractor
    from hf_xlmr.hub_interface import XLMR
    from hf_xlmr.network import Placing, load_encoder

    Placing(device=options.device)  # tells of a device that there is none of
    memory = available_memory()
    gpus = [each for each in memory if isinstance(each, int)]
    place = torch.device(options.device or ("cuda" if gpus else "cpu"))
    dtype = _dtype(options, place, processes, begun)
    placing = {"device": options.device} if options.device else placing_for(files.shape, memory, processes, dtype=dtype)
    loaded = load_encoder(files, Placing(dtype=dtype, **placing))
    xlmr = XLMR(files, loaded.encoder, device=loaded.device).eval()

    def made(chosen: str | None) -> FeatureExtractor:
        return FeatureExtractor(
            xlmr,
            layers=options.layers,
            pool=options.pool,
            emulate_dtype=True,  # what all processes agreed on
            tokens_per_batch=options.tokens_per_batch,
            max_length=options.max_length,
            on_long=options.on_long,
            kernel=chosen,
        )

    extractor = made(begun.get("kernel"))
    agreed = processes.agreed(extractor.kernel)
    return extractor if agreed == extractor.kernel else made(agreed)


def _dtype(options: ExtractionOptions, place: torch.device, processes: Processes, begun: Mapping[str, Any]) -> str:
    """The name of the dtype that all processes compute in, and the job that goes on was begun in. Raises InputError."""
    from hf_xlmr.precision import DTYPES, device_name, dtype_name, is_native, wanted_dtype, without_emulation

    wanted = wanted_dtype(options.dtype, place)

    def is_refused(name: object) -> bool:
        dtype = DTYPES.get(name) if isinstance(name, str) else None
        return dtype is not None and not options.emulate_dtype and not is_native(dtype, place)

    if is_refused(begun.get("dtype")):
        raise InputError(
            f"the output was begun in {begun['dtype']} on another processor ({begun.get('device')}), and this one "
            f"({device_name(place)}) has no instructions for it: go on there, or choose another folder"
            if begun.get("device") != device_name(place)
            else f"the output was begun in {begun['dtype']}, which this processor emulates: give emulate_dtype again"
        )
    if processes.is_first and not options.emulate_dtype:
        wanted = without_emulation(wanted, place)
    agreed = processes.agreed(dtype_name(wanted))
    if is_refused(agreed):
        raise InputError(
            f"the first process computes in {agreed}, for which the processor of process {processes.rank} "
            f"({device_name(place)}) has no instructions: give dtype=float32 to all of them"
        )
    return agreed


def placing_for(
    shape: ModelShape, memory: Mapping[Device, int | None], processes: Processes, *, dtype: str
) -> dict[str, Any]:
    """Where a process puts its model, as options of `XLMR.from_pretrained`, with these budgets by device.

    A model that fits one GPU is there once for each process; one that does not lies over all of them, in one process.
    Raises InputError.
    """
    gpus = {number: budget for number, budget in memory.items() if isinstance(number, int)}
    if not gpus:
        return {"device": "cpu"}
    if processes.local_rank >= len(gpus):
        raise InputError(f"process {processes.local_rank} of this machine has no GPU of its own: there are {len(gpus)}")
    own = sorted(gpus)[processes.local_rank]
    if lay_out(shape, max_memory={own: gpus[own]}, dtype=dtype).fits:
        return {"device": f"cuda:{own}"}
    if processes.count > 1:
        raise InputError(
            "the model does not fit one GPU, so that processes cannot have one each: run one process, which lays it "
            "out over all GPUs"
        )
    return {"device_map": "auto", "max_memory": gpus}


# ---- the output ------------------------------------------------------------------------------------------------------


def _store(
    output: str | Path, job: Mapping[str, Any], layout: StoreLayout, processes: Processes, *, resume: bool
) -> FeatureStore:
    """The output, begun by the first process and then joined by the others."""
    import torch

    if processes.is_first:
        notes = {"threads": torch.get_num_threads()}
        store = FeatureStore.create(output, job, layout=layout, resume=resume, notes=notes)
        processes.wait()
        return store
    processes.wait()
    return FeatureStore.create(output, job, layout=layout, resume=True)


def _job(files: ModelFiles, extractor: FeatureExtractor) -> dict[str, Any]:
    """All that the features depend on beside the texts."""
    import torch

    from hf_xlmr.precision import device_name, dtype_name

    return {
        "model": fingerprint(files.folder),
        "pool": extractor.pooling.value,
        "dtype": dtype_name(extractor.dtype),
        "kernel": extractor.kernel,
        "device": device_name(extractor.device),
        "tokens_per_batch": extractor.tokens_per_batch,
        "max_length": extractor.texts.max_length,
        "on_long": extractor.texts.on_long.value,
        "hf_xlmr": __version__,
        "torch": torch.__version__,
    }


Result: TypeAlias = "tuple[list[TextRow], Features]"
"""Rows, and the features of their texts."""


def _until_full(first: Result, others: Iterator[Result], rows_per_shard: int) -> Iterator[Result]:
    """The results of one shard: nothing that follows is waited for, so that a bad row spoils its own shard alone."""
    rows, _features = first
    yield first
    while (rows[-1].number + 1) % rows_per_shard and (following := next(others, None)):
        rows, _features = following
        yield following


@dataclass
class _Share:
    """The shards that fall to one process, and how far it is."""

    texts: TextInput
    store: FeatureStore
    extractor: FeatureExtractor
    processes: Processes
    rows_read: int = 0
    shards: int = 0
    texts_done: int = 0
    tokens: int = 0
    truncated: int = 0
    _waiting: deque[TextRow] = field(default_factory=deque)
    """Rows whose texts are on their way through the network."""
    _taken: int = 0
    """Rows that came out of it."""

    def count(self) -> int | None:
        """About how many texts are this process's; None where nobody knows."""
        return None if self.texts.count is None else -(-self.texts.count // self.processes.count)

    def make(self, task: ProgressTask) -> None:
        """Make every shard that is not there yet; one is written while the next is computed.

        Raises InputError, BadRow.
        """
        start = time.perf_counter()

        def write(results: Iterator[Result]) -> None:
            for first in results:
                self._write(first, results, task, start)

        with handed_over(write, depth=1) as hand_over:
            for result in self._results(task):
                hand_over(result)

    def _write(self, first: Result, others: Iterator[Result], task: ProgressTask, start: float) -> None:
        """Write one shard, of which `first` is the beginning."""
        size = self.store.layout.rows_per_shard
        with self.store.shard(first[0][0].number // size) as writer:
            for rows, features in _until_full(first, others, size):
                writer.write(rows, features.layers, spans=features.spans)
                writer.counts["truncated"] += features.truncated
                writer.counts["tokens"] += features.tokens
                self.texts_done += features.texts
                self.tokens += features.tokens
                self.truncated += features.truncated
                speed = self.tokens / (time.perf_counter() - start)
                task.advance(features.texts, note=f"{speed:,.0f} tokens/s")
        self.shards += 1

    def _results(self, task: ProgressTask) -> Iterator[Result]:
        """Rows and their features; no window has rows of two shards. Raises BadRow."""
        size = self.store.layout.rows_per_shard
        try:
            for features in self.extractor.windows(self._wanted(task), texts_per_block=size):
                rows = [self._waiting.popleft() for _ in range(features.texts)]
                self._taken += len(rows)
                yield rows, features
        except TextTooLong as error:
            row = self._waiting[error.index - self._taken]
            reason = f"{error.tokens} tokens, and {error.most} are the most (--on-long truncate or split takes it)"
            raise BadRow(row.place, reason) from None

    def _wanted(self, task: ProgressTask) -> Iterator[str]:
        """The texts of the shards that this process is to make; every row of the input is read."""
        size = self.store.layout.rows_per_shard
        for number, rows in groupby(self.texts, key=lambda row: row.number // size):
            if number % self.processes.count != self.processes.rank:
                self.rows_read += sum(1 for _row in rows)
            elif self.store.is_done(number):
                task.advance(self._checked(number, rows))
            else:
                for row in rows:
                    self.rows_read += 1
                    self._waiting.append(row)
                    yield row.text

    def _checked(self, number: int, rows: Iterator[TextRow]) -> int:
        """How many rows a shard has that is there; their texts are to be what it was made from. Raises InputError."""
        digest, before = TextsDigest(), self.rows_read
        for row in rows:
            digest.add(row)
            self.rows_read += 1
        self.store.check(number, digest.hexdigest())
        return self.rows_read - before
