"""Extracts features with Ray: every actor loads the model once and makes shard after shard of the same folder."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from hf_xlmr.features.bulk_extraction import (
    ExtractionOptions,
    ExtractionReport,
    Tally,
    extraction_input,
)
from hf_xlmr.features.processes import Processes
from hf_xlmr.features.ray_cluster import POLL_SECONDS, RayCluster, actor_shares, connected, nodes_of_ray
from hf_xlmr.features.ray_crew import Order, RayCrew
from hf_xlmr.features.shard_maker import Begun, Made, Plan, Work
from hf_xlmr.features.shares import Passed, Share, share_of
from hf_xlmr.features.store.folder import FeatureStore
from hf_xlmr.features.store.records import STATE, TEMPORARY
from hf_xlmr.features.store.shards import Shards
from hf_xlmr.files.memory import CPU
from hf_xlmr.progress import SILENT, Progress

__all__ = ["RayCluster", "extract_on_ray"]

_LOG: Final = logging.getLogger(__name__)
RECORD_SECONDS: Final = 90.0  # until a shared disk shows a file that another node wrote


def extract_on_ray(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    cluster: RayCluster | None = None,
    options: ExtractionOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ExtractionReport:
    """Write what `extract` writes, byte for byte, with the actors of `cluster`; the arguments are those of `extract`.

    A shard is one task: it appears whole, is made again if its actor dies, and is skipped if it is there. Every node
    must reach `model`, `output` and, if it can be read from the middle, `source`. Otherwise this process reads
    `source` once, and hands out its rows. A Ray that the caller has started is used, whatever the address. Raises
    InputError, BadRow naming the first line that is bad, IntegrityError.
    """
    cluster = cluster or RayCluster()
    given = extraction_input(source, output, options, Processes, resume=resume, overwrite=overwrite)
    with connected(cluster.address):
        shares = actor_shares(cluster, nodes_of_ray(), device=given.options.device)
        work = Work(
            model=str(model),
            source=str(source),
            output=str(Path(output).absolute()),
            options=replace(given.options, device=None if shares.gpus else CPU),
            sample=given.sample,
            begun=given.job,
            threads=given.threads or shares.cpus,
            gpus=shares.gpus,
            folder=str(Path.cwd()),
        )
        with RayCrew(work, shares).at_work() as crew:
            begun = crew.begun()
            for each in begun.warnings:
                _LOG.warning("%s", each)
            store = FeatureStore.create(
                output,
                begun.job,
                layout=begun.layout,
                resume=resume,
                overwrite=overwrite,
                notes={"threads": work.threads},
            )
            shards = Shards(store.folder, store.layout, made_from=given.made_from)
            share = share_of(given.texts, given.rows, shards, given.processes, is_whole=store.is_whole)
            tally = _filled(store, share, crew, begun, made_from=given.made_from, progress=progress)
    return replace(begun.report, model=str(model), source=given.texts.name, output=str(output), **asdict(tally))


def _filled(
    store: FeatureStore,
    share_of_all: AbstractContextManager[Share],
    crew: RayCrew,
    begun: Begun,
    *,
    made_from: str | None,
    progress: Progress,
) -> Tally:
    """Let the crew make all shards, and finish the output; if no shard could be made, remove it."""
    tally, start = Tally(), time.perf_counter()
    label = f"extracting in {begun.report.dtype}"
    try:
        with (
            share_of_all as share,
            _marked(store) as mark,
            progress.task(label, total=share.own_rows, unit="texts") as task,
        ):
            for done in crew.made(_orders(share), Plan(begun, mark, made_from, share.cuts)):
                if isinstance(done, Made):
                    _count(done, tally)
                task.advance(done.rows, note=f"{tally.tokens / (time.perf_counter() - start):,.0f} tokens/s")
            tally.rows = share.rows
        tally.seconds = round(time.perf_counter() - start, 3)
        _await_records(store, tally.rows)
        store.finish(rows=tally.rows)
    except BaseException:
        crew.end()
        store.discard()
        raise
    finally:
        store.close()
    return tally


def _count(made: Made, tally: Tally) -> None:
    tally.shards += 1
    tally.texts += made.rows
    tally.tokens += made.tokens
    tally.truncated += made.truncated


def _orders(share: Share) -> Iterator[Passed | Order]:
    """What is done, and what is to be made: with its rows if only this process can read them."""
    for part in share.parts():
        if isinstance(part, Passed):
            yield part
        else:
            yield part.number, None if share.cuts else list(part.rows)


@contextmanager
def _marked(store: FeatureStore) -> Iterator[str | None]:
    """The name of a new file in the output's STATE; None if the output is finished, and may be read-only."""
    if store.is_finished:
        yield None
        return
    mark = store.folder / STATE / f"ray-{secrets.token_hex(8)}{TEMPORARY}"
    mark.touch()
    try:
        yield mark.name
    finally:
        with suppress(OSError):
            mark.unlink(missing_ok=True)


def _await_records(store: FeatureStore, rows: int) -> None:
    """Wait until the records of all shards are seen: a shared disk may be late with files of other nodes."""
    deadline = time.monotonic() + RECORD_SECONDS
    for number in range(-(-rows // store.layout.rows_per_shard)):
        while store.state(number) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
