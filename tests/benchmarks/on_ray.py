"""What Ray costs: `extract --ray local` beside plain runs with as many processes of one thread.

    python tests/benchmarks/on_ray.py MODEL [--texts 200000] [--actors 2] [--rounds 3]

MODEL is a folder, or demo. The texts are words by chance, of lognormal lengths (median 22 tokens). In each round the
same texts are extracted by torchrun's processes and by actors; the folders must have the same bytes. Seconds are of
whole commands, from their start to their end, and of the extraction alone, which the report says: the difference is
what starting Python, PyTorch and Ray takes. Ratios are of the two in one round; medians of the rounds are printed,
lowest to highest in brackets.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("hf-xlmr")
TORCHRUN = Path(sys.executable).with_name("torchrun")
WORDS = ("the", "train", "leaves", "дети", "играют", "夜里有火车", "नमस्ते", "der", "Zug", "fährt", "über", "ça", "va")


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = written(place / "texts.txt", options.texts)
        count = str(options.actors)
        alone = [TORCHRUN, "--nproc-per-node", count, PROGRAM]
        actors = ["--ray", "local", "--actors", count, "--cpus-per-actor", "1"]
        timed([PROGRAM], options.model, source, place / "warm", [])  # kernels are measured once
        rounds = []
        for _ in range(options.rounds):
            plain = timed(alone, options.model, source, place / "plain", [])
            on_ray = timed([PROGRAM], options.model, source, place / "ray", actors)
            assert contents(place / "plain") == contents(place / "ray"), "the folders differ"
            rounds.append((plain, on_ray))
            for name in ("plain", "ray"):
                shutil.rmtree(place / name)
    for at, what in enumerate(("whole command", "extraction alone")):
        both = [(plain[at], ray[at]) for plain, ray in rounds]
        plain, ray = ([pair[side] for pair in both] for side in (0, 1))
        ratios = [with_ray / without for without, with_ray in both]
        print(f"{what}: processes {told(plain)} s, actors {told(ray)} s, ratio {told(ratios)}")


def written(path: Path, count: int) -> Path:
    """A file of so many texts, the same in each run."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            length = max(1, min(400, round(chance.lognormvariate(2.6, 0.7))))
            file.write(" ".join(chance.choices(WORDS, k=length)) + "\n")
    return path


def timed(command: list[str | Path], model: str, source: Path, output: Path, more: list[str]) -> tuple[float, float]:
    """Seconds of the whole command, and of the extraction in it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    words = [*map(str, (*command, "extract", model, source, output, "--json", *more))]
    begun = time.perf_counter()
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - begun, json.loads(done.stdout)["seconds"]


def contents(folder: Path) -> dict[str, str]:
    """The checksums of all files."""
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def told(values: list[float]) -> str:
    """The median, and the lowest and highest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
