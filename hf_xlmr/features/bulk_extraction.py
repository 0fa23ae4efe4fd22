"""Extracts features of a file of texts into a folder: each process makes its share of the shards, and can be killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr import __version__
from hf_xlmr.data.text_files import TextInput, open_texts
from hf_xlmr.data.text_rows import BadRow, TextRow
from hf_xlmr.errors import InputError
from hf_xlmr.features.background import handed_over
from hf_xlmr.features.packed.int8_quality import INT8, LEAST_COSINE, SAMPLE_TEXTS, Int8Quality
from hf_xlmr.features.processes import Processes
from hf_xlmr.features.shares import Passed, Share, share_of
from hf_xlmr.features.store.files import StoreLayout
from hf_xlmr.features.store.folder import FeatureStore
from hf_xlmr.features.store.shards import Shards, ShardWriter, TextsDigest
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.files.memory import CPU, Device, available_memory, parse_size
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.model.fingerprint import fingerprint
from hf_xlmr.model.model_shape import ModelShape
from hf_xlmr.placement.planner import lay_out
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from hf_xlmr.features.chunks import Window, WindowMaker
    from hf_xlmr.features.extraction import FeatureExtractor, Features
    from hf_xlmr.features.packed.encoder_weights import TextEncoder

__all__ = ["ExtractionReport", "extract", "placing_for"]

MOST_ROWS: Final = 8192
LEAST_ROWS: Final = 16
PRODUCTS: Final = 512 * 520 * 85e6  # multiplications of a shard: base on 512 texts of up to 514 tokens, and a few more
MAX_ROW_SIZE: Final = "16MB"
LARGEST_ROW: Final = 1 << 30  # bytes that Arrow and Python can hold in one piece
MOST_NAMED: Final = 100  # rows of a shard that are named as truncated
ID_CHARACTERS: Final = 1 << 22  # in all ids of rows that are computed together


@dataclass(frozen=True)
class ExtractionReport:
    """The result of one process's share of an extraction."""

    model: str
    source: str
    output: str
    rows: int
    """The number of rows of the whole input."""
    shards: int
    """The number of shards that this process made in this run."""
    rows_per_shard: int
    texts: int
    """The number of texts in these shards."""
    tokens: int
    """The number of tokens that were computed."""
    truncated: int
    """The number of texts that were truncated."""
    seconds: float
    """The time from the first text read to the last shard written."""
    layers: tuple[int, ...]
    pool: str
    dtype: str
    kernel: str
    device: str
    processes: int
    int8: Int8Quality | None
    """In int8: how near the vectors of the first texts are to those in float32."""


@dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """Options of an extraction and its output; FeatureExtractor and StoreLayout describe them further."""

    column: str = "text"
    """The column of the texts, if the input has columns."""
    id_column: str | None = None
    """A column whose values are written next to the features."""
    language: str | None = None
    """The language of all texts of an X-MOD, such as sw_KE; None for the model's usual one."""
    language_column: str | None = None
    """A column that names the language of each text."""
    split: str | None = None
    config: str | None = None
    """The configuration of a data set."""
    max_row_size: str | int = MAX_ROW_SIZE
    """The most bytes of a line, or of a value if the input has no lines; a longer one is a bad row."""
    layers: tuple[int, ...] = (-1,)
    pool: str = "mean"
    dtype: str = "auto"
    least_cosine: float = LEAST_COSINE
    """In int8: the lowest cosine to float32 that a vector of the first texts may have."""
    emulate_dtype: bool = False
    """Compute in `dtype` also if the processor has no instructions for it, instead of in float32."""
    device: str | None = None
    """A device such as cpu or cuda:1; None is the process's own GPU, or the CPU if there is none."""
    tokens_per_batch: int | None = None
    max_length: int | None = None
    on_long: str = "truncate"
    file_format: str = "parquet"
    store_dtype: str = "float32"
    rows_per_shard: int | None = None
    """None is what the output was begun with, for a new one what `usual_rows_per_shard` says."""


def extract(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    options: ExtractionOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ExtractionReport:
    """Write the features of every text in `source` into the folder `output`, in the order of the input.

    `model` is what `XLMR.from_pretrained` accepts, `source` what `text_files.open_texts` accepts. Under `torchrun` or
    `accelerate launch` each process makes its share of the shards, and reads no others if the input can be entered in
    the middle; the folder has the same bytes as with one process, and with or without interruptions. `output` appears
    when the first text has been read; if no shard was finished, it is removed. `resume` keeps what is already there and
    does not read it again while the input's files are the same, `overwrite` first removes what an earlier extraction
    made. Raises InputError, BadRow naming the line, IntegrityError.
    """
    given = extraction_input(source, output, options, Processes.current, resume=resume, overwrite=overwrite)
    files = find_model(model, progress=progress)
    set_threads(given.threads)
    options, texts, processes = given.options, given.texts, given.processes
    extractor = extractor_of(files, processes, options, given.sample, begun=given.job)
    layout = layout_of(options, extractor, files.shape, processes, has_ids=texts.has_ids)
    begun = job_of(files, extractor, given.sample)
    store = _store(output, begun, layout, processes, resume=resume, overwrite=overwrite)
    shards = partial(Shards, store.folder, store.layout, made_from=given.made_from)
    with _closed_in_the_end(store, processes):
        is_whole = processes.is_first and store.is_whole  # the first tells the others
        with share_of(texts, given.rows, shards(), processes, is_whole=is_whole) as share:
            steps = _Reader(share, window_maker(extractor, options)).steps()
            tally = _made(steps, shards(), extractor, total=share.own_rows, progress=progress)
            processes.wait()
        tally.rows = processes.agreed(share.rows)
        if processes.is_first:
            store.finish(rows=tally.rows)
        processes.wait()
    return report_of(str(model), texts.name, str(output), extractor, layout, tally, processes)


@contextmanager
def _closed_in_the_end(store: FeatureStore, processes: Processes) -> Iterator[None]:
    """Remove the output in the end if no shard of it could be made."""
    try:
        yield
    except BaseException:
        if processes.count == 1:  # otherwise other processes may still write
            store.discard()
        raise
    finally:
        store.close()


def report_of(
    model: str,
    source: str,
    output: str,
    extractor: FeatureExtractor,
    layout: StoreLayout,
    tally: Tally,
    processes: Processes,
) -> ExtractionReport:
    from hf_xlmr.model.precision import dtype_name

    return ExtractionReport(
        model=model,
        source=source,
        output=output,
        **asdict(tally),
        rows_per_shard=layout.rows_per_shard,
        layers=extractor.layers,
        pool=extractor.pooling.value,
        dtype=dtype_name(extractor.dtype),
        kernel=extractor.kernel,
        device=str(extractor.device),
        processes=processes.count,
        int8=extractor.int8,
    )


# ---- the input -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ExtractionInput:
    """The texts, and what an output that is continued was begun with: all that is known before a model is loaded."""

    texts: TextInput
    processes: Processes
    made_from: str | None
    """Which files the texts are in, as `TextInput.fingerprint` says."""
    options: ExtractionOptions
    """As given, with shards of the continued output's size."""
    job: JsonObject
    """Of the output that is continued; empty if none is."""
    threads: int | None
    """With which it was begun, if its notes say so."""
    sample: list[TextRow]
    """Texts to compare int8 on."""
    rows: Iterator[TextRow]
    """All rows, where this process is the first and the input has no cuts."""


def extraction_input(
    source: str | Path,
    output: str | Path,
    options: ExtractionOptions | None,
    join: Callable[[], Processes],
    *,
    resume: bool,
    overwrite: bool,
) -> ExtractionInput:
    """Open the texts, and `output` if it is continued; `join` gives the processes that share them.

    Raises InputError, BadRow, IntegrityError.
    """
    options = options or ExtractionOptions()
    if resume and overwrite:
        raise InputError("resume (continue the output) and overwrite (begin it again) exclude each other")
    processes = join()
    texts = opened(source, options)
    made_from = texts.fingerprint()
    if resume and not texts.is_repeatable:
        raise InputError(f"{texts.name} can be read only once, so it cannot be resumed: use a file")
    _raise_if_within(output, texts)
    job, notes, layout = FeatureStore.begun_with(output) if resume else ({}, {}, {})
    size = layout.get("rows_per_shard")
    if options.rows_per_shard is None and type(size) is int and size >= 1:
        options = replace(options, rows_per_shard=size)
    threads = notes.get("threads")
    sample, rows = _begun_rows(texts, processes, options, begun=job)
    return ExtractionInput(
        texts=texts,
        processes=processes,
        made_from=made_from,
        options=options,
        job=job,
        threads=threads if isinstance(threads, int) and threads > 0 else None,
        sample=sample,
        rows=rows,
    )


def opened(source: str | Path, options: ExtractionOptions) -> TextInput:
    if options.language is not None and options.language_column is not None:
        raise InputError("language= (of all texts) and language_column= (of each) exclude each other")
    return open_texts(
        source,
        column=options.column,
        id_column=options.id_column,
        language_column=options.language_column,
        split=options.split,
        config=options.config,
        max_row_size=_max_row_size(options.max_row_size),
    )


def _max_row_size(size: str | int) -> int:
    """The number of bytes that `size` says. Raises InputError."""
    found = parse_size(size)
    if not 1 <= found <= LARGEST_ROW:
        raise InputError(f"max_row_size={size!s:.40}: give a size from 1 byte to {LARGEST_ROW:,} bytes")
    return found


def _begun_rows(
    texts: TextInput, processes: Processes, options: ExtractionOptions, *, begun: JsonObject
) -> tuple[list[TextRow], Iterator[TextRow]]:
    """The rows of int8's sample, which the first process reads, and there all rows of an input that has no cuts.

    The first row is read in any case, unless an output was `begun`: an unreadable input is found before there is one.
    Raises BadRow.
    """
    count = SAMPLE_TEXTS if options.dtype == INT8 else int(not begun)
    rows = iter(texts) if processes.is_first else iter(())
    first = list(islice(rows, count))
    return processes.agreed(first), iter(()) if texts.has_cuts else chain(first, rows)


def _raise_if_within(output: str | Path, texts: TextInput) -> None:
    """Raise InputError if a file of the input is in the output, which may remove it."""
    folder = Path(output).resolve()
    for path in texts.paths:
        if folder in path.resolve().parents:
            raise InputError(f"{path} is an input, and is in {output}, the folder for features; choose another folder")


def set_threads(count: int | None) -> None:
    """Use as many threads as the interrupted run: with another number, sums may round differently."""
    import torch

    if count:
        torch.set_num_threads(count)


# ---- the model -------------------------------------------------------------------------------------------------------


def extractor_of(
    files: ModelFiles,
    processes: Processes,
    options: ExtractionOptions,
    sample: list[TextRow],
    *,
    begun: JsonObject,
) -> FeatureExtractor:
    """The extractor on the device of this process, with the dtype and the kernel that the first process chose.

    `sample` are texts to compare int8 on, `begun` is the job that is continued, if any. Raises InputError.
    """
    from hf_xlmr.features.extraction import FeatureExtractor

    is_int8 = options.dtype == INT8
    if begun.get("dtype") == INT8 and not is_int8:
        raise InputError("the output was begun in int8: continue it with dtype=int8")
    model = _encoder(files, processes, options, begun)
    languages = [row.language for row in sample if row.language is not None]

    def made(chosen: str | None) -> FeatureExtractor:
        return FeatureExtractor(
            model,
            layers=options.layers,
            pool=options.pool,
            dtype=INT8 if is_int8 else None,
            sample=[row.text for row in sample] or None,
            sample_languages=languages or None,
            language=options.language,
            language_column=options.language_column,
            least_cosine=options.least_cosine,
            emulate_dtype=True,  # all processes agreed on this dtype
            tokens_per_batch=options.tokens_per_batch,
            max_length=options.max_length,
            on_long=options.on_long,
            kernel=chosen,
        )

    extractor = made(begun.get("kernel"))
    agreed = processes.agreed(extractor.kernel)
    return extractor if agreed == extractor.kernel else made(agreed)


def _encoder(files: ModelFiles, processes: Processes, options: ExtractionOptions, begun: JsonObject) -> TextEncoder:
    """The encoder on the device of this process. Raises InputError, IntegrityError."""
    import torch

    from hf_xlmr.features.packed.encoder_weights import TextEncoder
    from hf_xlmr.hub_interface.network import Placing, plan_loading

    Placing(device=options.device)  # raises InputError if the device does not exist
    memory = available_memory()
    gpus = [each for each in memory if isinstance(each, int)]
    place = torch.device(options.device or ("cuda" if gpus else "cpu"))
    dtype = _dtype(options, place, processes, begun)
    placing = {"device": options.device} if options.device else placing_for(files.shape, memory, processes, dtype=dtype)
    return TextEncoder.of_files(files, plan_loading(files, Placing(dtype=dtype, **placing)))


def _dtype(options: ExtractionOptions, place: torch.device, processes: Processes, begun: Mapping[str, object]) -> str:
    """The name of the dtype of all processes, and of the job that is continued, if any. Raises InputError."""
    import torch

    from hf_xlmr.model.precision import DTYPES, device_name, dtype_name, is_native, wanted_dtype, without_emulation

    wanted = torch.float32 if options.dtype == INT8 else wanted_dtype(options.dtype, place)

    def is_refused(name: object) -> bool:
        dtype = DTYPES.get(name) if isinstance(name, str) else None
        return dtype is not None and not options.emulate_dtype and not is_native(dtype, place)

    if is_refused(begun.get("dtype")):
        raise InputError(
            f"the output was begun in {begun['dtype']} on another processor ({begun.get('device')}), and this one "
            f"({device_name(place)}) has no instructions for it: continue there, or choose another folder"
            if begun.get("device") != device_name(place)
            else f"the output was begun in {begun['dtype']}, which this processor emulates: pass emulate_dtype again"
        )
    if processes.is_first and not options.emulate_dtype:
        wanted = without_emulation(wanted, place)
    agreed = processes.agreed(dtype_name(wanted))
    if is_refused(agreed):
        raise InputError(
            f"the first process computes in {agreed}, for which the processor of process {processes.rank} "
            f"({device_name(place)}) has no instructions: use dtype=float32 in all of them"
        )
    return agreed


def placing_for(
    shape: ModelShape, memory: Mapping[Device, int | None], processes: Processes, *, dtype: str
) -> dict[str, object]:
    """The placement of a process's model, as options of `XLMR.from_pretrained`, with these budgets by device.

    If the model fits one GPU, each process loads it onto its own GPU; if not, one process spreads it over all GPUs.
    Raises InputError.
    """
    gpus = {number: budget for number, budget in memory.items() if isinstance(number, int)}
    if not gpus:
        return {"device": "cpu"}
    if processes.local_rank >= len(gpus):
        raise InputError(f"process {processes.local_rank} has no GPU: this machine has only {len(gpus)}")
    own = sorted(gpus)[processes.local_rank]
    if lay_out(shape, max_memory={own: gpus[own]}, dtype=dtype).fits:
        return {"device": f"cuda:{own}"}
    if processes.count > 1:
        raise InputError(
            "the model does not fit one GPU, so that each process cannot have its own: run one process, which spreads "
            "the model over all GPUs"
        )
    return {"device_map": "auto", "max_memory": gpus}


# ---- the output ------------------------------------------------------------------------------------------------------


def _store(
    output: str | Path,
    job: Mapping[str, object],
    layout: StoreLayout,
    processes: Processes,
    *,
    resume: bool,
    overwrite: bool,
) -> FeatureStore:
    """The output, which the first process begins and the others then join."""
    import torch

    if processes.is_first:
        notes = {"threads": torch.get_num_threads()}
        store = FeatureStore.create(output, job, layout=layout, resume=resume, overwrite=overwrite, notes=notes)
        processes.wait()
        return store
    processes.wait()
    return FeatureStore.join(output, job, layout=layout)


def usual_rows_per_shard(shape: ModelShape, *, tokens: int, device: str) -> int:
    """The rows of a shard on this type of device, for texts of at most so many `tokens`.

    What is lost when a run is killed is a shard, so on a CPU the longest texts should take minutes: two cores compute 1
    to 2 texts of 512 tokens a second with base, so its shards have 512 rows. Others have as many, by powers of two, as
    take the same time; more than 8192 would lose more texts, and fewer than 16 fill no batch.
    """
    if device != CPU:
        return MOST_ROWS
    of_token = shape.layers * shape.hidden * (4 * shape.hidden + 2 * shape.intermediate)
    rows = int(PRODUCTS / (of_token * tokens))
    return min(max(1 << rows.bit_length() >> 1, LEAST_ROWS), MOST_ROWS)


def layout_of(
    options: ExtractionOptions, extractor: FeatureExtractor, shape: ModelShape, processes: Processes, *, has_ids: bool
) -> StoreLayout:
    """The layout of the output, for which the first process chooses the size of shards. Raises InputError."""
    tokens, device = extractor.texts.max_length, extractor.device.type
    rows = options.rows_per_shard
    if rows is None:
        rows = usual_rows_per_shard(shape, tokens=tokens, device=device)
    return StoreLayout(
        layers=extractor.layers,
        width=extractor.width,
        per_token=extractor.is_unpooled,
        has_ids=has_ids,
        format=options.file_format,
        dtype=options.store_dtype,
        rows_per_shard=processes.agreed(rows),
    )


def job_of(files: ModelFiles, extractor: FeatureExtractor, sample: list[TextRow]) -> dict[str, object]:
    """Everything except the texts that the features depend on; in int8 they depend on its sample too."""
    import torch

    from hf_xlmr.model.precision import device_name, dtype_name

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
        "torch": str(torch.__version__),  # of a class of PyTorch's own, which to unpickle imports it
        **({"sample": _digest(sample)} if extractor.int8 else {}),
        **_languages(extractor),
    }


def _languages(extractor: FeatureExtractor) -> dict[str, object]:
    """What a job says of languages: nothing for a model without."""
    if extractor.languages is None:
        return {}
    column = extractor.language_column
    return {"language": extractor.language} if column is None else {"language_column": column}


def _digest(sample: list[TextRow]) -> str:
    """The checksum of the texts of a sample."""
    digest = TextsDigest()
    for row in sample:
        digest.add(row.text, None, row.language)
    return digest.hexdigest()


# ---- from rows to shards ---------------------------------------------------------------------------------------------
#
#     reads and tokenizes             computes and counts              writes
#     _Reader.steps  -- Window -->   FeatureExtractor.computed  -- Features -->  _write
#
# Each column is a thread with its own objects, each arrow a queue of background.py, the only object that two threads
# use; an item that went through it belongs to the next thread. A text's row travels with its tokens, then with its
# vector. Marks for the end of a shard, and rows that are not computed, travel in the same order.


@dataclass(frozen=True, slots=True)
class _Row:
    """The part of a row that travels with its tokens and its features: everything but its text, which can be large."""

    number: int
    id: object | None
    place: str
    language: str | None


@dataclass(frozen=True, slots=True)
class ShardEnd:
    """The mark after all rows of a shard."""

    texts_sha256: str


@dataclass
class Tally:
    """Counts of what was computed so far; only the computing thread changes them."""

    rows: int = 0
    """The number of rows of the whole input, in the end."""
    shards: int = 0
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0

    def add(self, step: Features | ShardEnd | Passed) -> None:
        """Add the next step to the counts."""
        if isinstance(step, ShardEnd):
            self.shards += 1
        elif not isinstance(step, Passed):
            self.texts += step.texts
            self.tokens += step.tokens
            self.truncated += step.truncated


def _made(
    steps: Iterator[Window | ShardEnd | Passed],
    shards: Shards,
    extractor: FeatureExtractor,
    *,
    total: int | None,
    progress: Progress,
) -> Tally:
    """Make every missing shard; one is written while the next is computed. Raises InputError, BadRow."""
    from hf_xlmr.model.precision import dtype_name

    tally, start = Tally(), time.perf_counter()
    with (
        progress.task(f"extracting in {dtype_name(extractor.dtype)}", total=total, unit="texts") as task,
        handed_over(partial(_write, shards), depth=1) as hand_over,
    ):
        done: Iterator[Features | ShardEnd | Passed] = extractor.computed(steps)
        for step in done:
            tally.add(step)
            if isinstance(step, Passed):
                task.advance(step.rows)
                continue
            hand_over(step)
            if not isinstance(step, ShardEnd):
                task.advance(step.texts, note=f"{tally.tokens / (time.perf_counter() - start):,.0f} tokens/s")
    tally.seconds = round(time.perf_counter() - start, 3)
    return tally


def window_maker(extractor: FeatureExtractor, options: ExtractionOptions) -> WindowMaker:
    """The extractor's window maker, with a limit that refuses texts that would take too much memory."""
    most = _max_row_size(options.max_row_size)
    return replace(extractor.texts, most_bytes=most // 8 if extractor.is_unpooled else most)


@dataclass(frozen=True)
class _Reader:
    """Turns the rows of the shards that this process makes into windows."""

    share: Share
    texts: WindowMaker

    def steps(self) -> Iterator[Window | ShardEnd | Passed]:
        """Yield all rows, shard by shard; the next shard is read only after this one was yielded. Raises BadRow."""
        for part in self.share.parts():
            if isinstance(part, Passed):
                yield part
            else:
                yield from shard_windows(part.rows, self.texts)


def shard_windows(rows: Iterator[TextRow], texts: WindowMaker) -> Iterator[Window | ShardEnd]:
    """The windows of the rows of one shard, and its end. Raises BadRow."""
    from hf_xlmr.features.chunks import BadText

    digest = TextsDigest()
    try:
        while (first := next(rows, None)) is not None:
            yield from texts.windows(_texts(_few_ids(chain([first], rows)), digest))
    except BadText as error:
        raise BadRow(error.index.place, error.reason) from None
    yield ShardEnd(digest.hexdigest())


def _texts(rows: Iterator[TextRow], digest: TextsDigest) -> Iterator[tuple[_Row, str, str | None]]:
    """Yield each row, its text and its language, and add them to the checksum."""
    for row in rows:
        digest.add(row.text, row.id, row.language)
        yield _Row(row.number, row.id, row.place, row.language), row.text, row.language


def _few_ids(rows: Iterator[TextRow]) -> Iterator[TextRow]:
    """Yield rows until their ids have ID_CHARACTERS characters together."""
    characters = 0
    for row in rows:
        yield row
        characters += len(row.id) if isinstance(row.id, str) else 0
        if characters >= ID_CHARACTERS:
            return


def _write(shards: Shards, items: Iterator[Features | ShardEnd]) -> None:
    """Write all shards, each of which ends with its ShardEnd. Raises InputError."""
    for first in items:
        if not isinstance(first, ShardEnd):
            with shards.shard(first.rows[0].number // shards.layout.rows_per_shard) as writer:
                writer.texts_sha256 = written(writer, chain([first], items))


def written(writer: ShardWriter, items: Iterator[Features | ShardEnd]) -> str:
    """Write the items up to the end of a shard, and return the checksum of its texts; empty if the end is missing."""
    for each in items:
        if isinstance(each, ShardEnd):
            return each.texts_sha256
        writer.write(each.rows, each.layers, spans=each.spans)
        writer.counts["truncated"] += each.truncated
        writer.truncated_rows += [row.number for row in each.cut[: MOST_NAMED - len(writer.truncated_rows)]]
        writer.counts["tokens"] += each.tokens
        writer.counts.update(f"texts in {row.language}" for row in each.rows if row.language is not None)
    return ""
