"""Weights into safetensors shards, a block at a time, and their index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from pathlib import Path
from threading import Lock
from typing import Final

from hf_xlmr.conversion.checkpoint.weights import Weight
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.model.stored_weights import ALIGNMENT
from hf_xlmr.progress import SILENT, Progress, ProgressTask

__all__ = ["parse_size", "write_weights"]

# The format: a little-endian 64-bit length, a JSON header that spaces may follow, then the tensors' bytes. Readers map
# them, and processors multiply aligned numbers best.
LENGTH_BYTES: Final = 8
DTYPE_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
FLUSH_BYTES: Final = 1 << 26  # flushed early and often, so that the last fsync has little left to do

WRITERS: Final = 8  # while some wait for files, or for the interpreter, others read, check or cast

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB, as Transformers counts them. Raises InputError."""
    hit = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([KMG]?I?B?)\s*", text.upper())
    if hit is None or hit[2] not in UNITS or float(hit[1]) * UNITS[hit[2]] < 1:
        raise InputError(f"{text!r:.40} is not a size such as 5GB or 500MB")
    return int(float(hit[1]) * UNITS[hit[2]])


def write_weights(
    weights: Mapping[str, Weight],
    folder: Path,
    *,
    max_shard_size: int,
    progress: Progress = SILENT,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[str, ...]:
    """Write the weights into shards of at most `max_shard_size` bytes (one weight may exceed it alone).

    They come in their order, but for those in a shard that would leave the next one unaligned. One shard is
    `model.safetensors`; several have numbers and an index, as Transformers writes them. The system is asked to begin
    writing them to the disk; whoever publishes the folder waits for that. `meanwhile` is called while they are
    written. Gives the names of the files. Raises IntegrityError, InputError, OSError, and what `meanwhile` raises.
    """
    shards = _shards(weights, max_shard_size)
    names = _shard_names(len(shards))
    total = sum(weight.nbytes for weight in weights.values())
    metadata = {"total_parameters": sum(weight.count for weight in weights.values()), "total_size": total}
    with progress.task("writing weights", total=total) as task, ThreadPoolExecutor(WRITERS) as pool:
        pump = _Pump(task)
        begun = (_begun(folder / name, shard) for name, shard in zip(names, shards, strict=True))
        try:
            jobs = [pool.submit(pump, *weight) for weight in chain.from_iterable(begun)]
            meanwhile()
            for job in jobs:
                job.result()
        except BaseException:
            pump.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
    if len(shards) > 1:
        _write_index(folder / INDEX, dict(zip(names, shards, strict=True)), metadata)
        return (*names, INDEX)
    return names


def _shards(weights: Mapping[str, Weight], limit: int) -> list[dict[str, Weight]]:
    shards: list[dict[str, Weight]] = [{}]
    filled = 0
    for name, weight in weights.items():
        if shards[-1] and filled + weight.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = weight
        filled += weight.nbytes
    return [_aligned(shard) for shard in shards]


def _aligned(shard: Mapping[str, Weight]) -> dict[str, Weight]:
    """The same weights, with those last that would leave the next one unaligned, such as the LM head's bias."""
    return dict(sorted(shard.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0))


def _shard_names(count: int) -> tuple[str, ...]:
    if count == 1:
        return (SINGLE,)
    return tuple(f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))


def _write_index(path: Path, shards: Mapping[str, Mapping[str, Weight]], metadata: Mapping[str, int]) -> None:
    placed = {weight: name for name, shard in shards.items() for weight in shard}
    index = {"metadata": metadata, "weight_map": dict(sorted(placed.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Mapping[str, Weight]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, weight in shard.items():
        stop = start + weight.nbytes
        entries[name] = {"dtype": DTYPE_NAMES[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _begun(path: Path, shard: Mapping[str, Weight]) -> Iterator[tuple[Path, str, Weight, int]]:
    """Begin a shard with its header, and give each weight with its place in the file."""
    header = _header(shard)
    path.write_bytes(header)
    starts = accumulate((weight.nbytes for weight in shard.values()), initial=len(header))
    yield from ((path, *item, start) for item, start in zip(shard.items(), starts, strict=False))


class _Pump:
    """Writes weights at their places in files, from several threads."""

    def __init__(self, task: ProgressTask) -> None:
        self.stopped = False
        self._task = task
        self._lock = Lock()

    def __call__(self, path: Path, name: str, weight: Weight, start: int) -> None:
        """Write the bytes of a weight from `start` on. Raises IntegrityError, InputError, OSError."""
        position = flushed = start
        with path.open("r+b", buffering=0) as file:
            for block in weight.blocks():
                if self.stopped:
                    return
                _write_at(file.fileno(), block, position)
                position += len(block)
                if position - flushed >= FLUSH_BYTES:
                    _begin_flushing(file.fileno())
                    flushed = position
                with self._lock:
                    self._task.advance(len(block))
        if position - start != weight.nbytes:
            raise IntegrityError(f"{name} gave {position - start} bytes where its shape asks for {weight.nbytes}")


def _write_at(file: int, block: memoryview, position: int) -> None:
    while block:
        done = os.pwrite(file, block, position)
        block, position = block[done:], position + done


def _begin_flushing(file: int) -> None:
    """Ask the system to write to the disk what it holds of the file, and do not wait for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
