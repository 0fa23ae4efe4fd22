"""Inflating a .tar.gz of float weights: Python's gzip beside the way `open_source` does it.

Run: python tests/benchmarks/inflate.py [megabytes]. Not timed: making the archive, and comparing the outcomes.
"""

from __future__ import annotations

import filecmp
import gzip
import io
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from isal import igzip, igzip_threaded

from hf_xlmr.conversion.source.sources import open_source

BLOCK = 1 << 20
ROUNDS = 5


def make_archive(folder: Path, megabytes: int) -> Path:
    """A .tar.gz with a model.pt of float32 numbers spread as weights are."""
    weights = np.random.default_rng(0).standard_normal(megabytes * 250_000, dtype=np.float32) * np.float32(0.02)
    (folder / "model.pt").write_bytes(b"\x80\x02" + weights.tobytes())
    archive = folder / "weights.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        tar.add(folder / "model.pt", "weights/model.pt")
    return archive


def drain(stream: io.BufferedIOBase) -> None:
    with stream:
        while stream.read(BLOCK):
            pass


def python_unpack(archive: Path, folder: Path) -> Path:
    target = folder / "python"
    with tarfile.open(archive, "r:gz") as tar, target.open("wb") as file:
        source = tar.extractfile("weights/model.pt")
        assert source is not None
        shutil.copyfileobj(source, file, BLOCK)
    return target


def our_unpack(archive: Path, folder: Path) -> None:
    with open_source(archive, scratch=folder):
        pass


def check_agreement(archive: Path, folder: Path) -> None:
    """Stop unless both ways give the same bytes."""
    theirs = python_unpack(archive, folder)
    with open_source(archive, scratch=folder) as files:
        assert filecmp.cmp(theirs, files.checkpoint[0].path, shallow=False), "the ways do not agree"


def best_of(*ways: Callable[[], object]) -> list[float]:
    """The shortest time of each way, in turns so that a busy machine slows all of them."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(ROUNDS):
        for way, taken in zip(ways, times, strict=True):
            begun = time.perf_counter()
            way()
            taken.append(time.perf_counter() - begun)
    return [min(taken) for taken in times]


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = make_archive(folder, megabytes)
        print(f"{megabytes} MB of float32 in {archive.stat().st_size / 1e6:.0f} MB; best of {ROUNDS}")
        check_agreement(archive, folder)
        read = best_of(
            lambda: drain(gzip.GzipFile(archive)),
            lambda: drain(igzip.IGzipFile(archive)),  # type: ignore[no-untyped-call]
            lambda: drain(igzip_threaded.open(archive)),  # type: ignore[no-untyped-call]
        )
        unpacked = best_of(lambda: python_unpack(archive, folder), lambda: our_unpack(archive, folder))
    tell("inflate only", ("gzip", "igzip", "igzip_threaded"), read)
    tell("unpack to disk", ("tarfile r:gz", "open_source"), unpacked)


def tell(what: str, ways: tuple[str, ...], times: list[float]) -> None:
    told = [f"{way} {taken:.2f} s ({times[0] / taken:.2f}x)" for way, taken in zip(ways, times, strict=True)]
    print(f"{what}: {', '.join(told)}")


if __name__ == "__main__":
    main()
