"""What sharing an input gives: several processes compared with one, and a run that goes on after 90 % of its shards.

    TOKENIZERS_PARALLELISM=false python tests/benchmarks/shares.py [--texts 100000] [--processes 2] [--rounds 3]
        [--model demo] [--kinds txt jsonl csv parquet txt.gz] [--only shares resume]

`shares`: the extraction by one process and by several (torchrun), each with one thread, in turns: seconds from the
first text read to the last shard written, as the program reports them, and the ratio in each round. `resume`: a run is
ended when 90 % of its shards are there, and goes on; bytes are those that files of lines gave, and for Parquet all that
the process read (rchar of Linux) less those over an input of one text and the size of the shards that it made, an upper
bound; seconds are those from the start of the process, and from the loaded model, to the first missing shard. Texts
have lognormal lengths (median 11 words, sigma 0.8).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROW_GROUP = 50_000
PROGRAM = "import torch; torch.set_num_threads(1)\nfrom hf_xlmr.cli.program import main; main()"
RESUMED = """
import json, sys, time
import torch; torch.set_num_threads(1)
from hf_xlmr.features import shares
from hf_xlmr.features.bulk_extraction import ExtractionOptions, extract
times, parts, share_of = [], shares._Cut.parts, shares.cuts_of
def counted_from(*arguments):
    times.append(time.time())
    return share_of(*arguments)
def watched(self):
    for part in parts(self):
        if isinstance(part, shares.ShardRows):
            times.append(time.time())
        yield part
shares.cuts_of, shares._Cut.parts = counted_from, watched
class Counted:
    def __init__(self, file):
        self.seek, self.close, self.file = file.seek, file.close, file
    def read(self, size):
        data = self.file.read(size)
        seen.append(len(data))
        return data
from hf_xlmr.data import text_files
seen, opened = [], text_files.opened_part
text_files.opened_part = lambda file, *more: opened(Counted(file), *more)
options = ExtractionOptions(dtype="float32", device="cpu", rows_per_shard=1024)
report = extract(sys.argv[1], sys.argv[2], sys.argv[3], options=options, resume=True)
read = next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
started = float(sys.argv[4])
print(json.dumps([sum(seen), read, report.texts, times[1] - started, times[1] - times[0]]))
"""


def write_input(path: Path, count: int) -> Path:
    """So many texts in the form that the ending of `path` says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = random.Random(0)
    words = ["train", "leaves", "дети", "играют", "house", "in", "the", "и", "на", "Bahnhof", "le", "monde"]
    texts = [" ".join(chance.choices(words, k=max(1, round(chance.lognormvariate(2.4, 0.8))))) for _ in range(count)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=ROW_GROUP)
        return path
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.suffixes:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
        else:
            file.writelines(f"{json.dumps({'text': text}) if '.jsonl' in path.suffixes else text}\n" for text in texts)
    return path


def seconds_of(model: str, source: Path, output: Path, processes: int) -> float:
    """The seconds of one extraction."""
    program = [
        sys.executable,
        "-c",
        PROGRAM,
        "extract",
        model,
        source,
        output,
        "--dtype",
        "float32",
        "--json",
        "--quiet",
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--no-python"]
    command = program if processes == 1 else [sys.executable, *launcher, *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout[done.stdout.index("{") :])["seconds"])


def shares(model: str, folder: Path, kind: str, count: int, processes: int, rounds: int) -> None:
    """Print the seconds of one process and of several."""
    source = write_input(folder / f"texts.{kind}", count)
    pairs = [
        [seconds_of(model, source, folder / f"{kind}-{turn}-{each}", each) for each in (1, processes)]
        for turn in range(rounds)
    ]
    one, several = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(first / second for first, second in pairs)
    told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"{kind}: 1 process {one:.1f} s, {processes} processes {several:.1f} s, {told} times as fast", flush=True)


def resumed(model: str, source: Path, output: Path) -> tuple[int, int, int, float, float]:
    """The bytes of lines, all bytes that were read, the texts that were made, and the two times."""
    import time

    arguments = [model, str(source), str(output), str(time.time())]
    done = subprocess.run([sys.executable, "-c", RESUMED, *arguments], capture_output=True, text=True, check=True)
    lines, read, texts, total, since_model = json.loads(done.stdout)
    return lines, read, texts, total, since_model


def resume(model: str, folder: Path, kind: str, count: int) -> None:
    """Print what going on reads, and when it begins."""
    import torch

    from hf_xlmr.errors import InputError
    from hf_xlmr.features.bulk_extraction import ExtractionOptions, extract
    from hf_xlmr.features.store.shards import Shards

    source, options = (
        write_input(folder / f"texts.{kind}", count),
        ExtractionOptions(dtype="float32", device="cpu", rows_per_shard=1024),
    )
    torch.set_num_threads(1)
    last, record = -(-count // options.rows_per_shard) * 9 // 10, Shards.record

    def ending(self: Shards, state: Any) -> None:
        if state["number"] >= last:
            raise InputError("it ends here")
        record(self, state)

    Shards.record = ending  # type: ignore[method-assign]
    try:
        extract(model, source, folder / kind, options=options)
    except InputError:
        pass
    finally:
        Shards.record = record  # type: ignore[method-assign]
    (folder / "small").mkdir(exist_ok=True)
    without = resumed(model, write_input(folder / "small" / f"one.{kind}", 1), folder / f"one-{kind}")[1]
    before = {path.name for path in (folder / kind).glob("part-*")}
    lines, read, texts, total, since_model = resumed(model, source, folder / kind)
    made = sum(path.stat().st_size for path in (folder / kind).glob("part-*") if path.name not in before)
    size, of_input = (
        source.stat().st_size,
        lines or read - made - without,
    )  # what was made is read again, for its checksum
    share = f"{of_input:,} of {size:,} bytes read ({of_input / size:.1%})"
    print(f"{kind}: {texts:,} texts left, {share}, begins after {total:.1f} s, {since_model:.2f} s after the model")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kinds", nargs="+", default=["txt", "jsonl", "csv", "parquet", "txt.gz"])
    parser.add_argument("--only", nargs="+", default=["shares", "resume"])
    asked = parser.parse_args()
    for kind in asked.kinds:
        with tempfile.TemporaryDirectory() as folder:
            if "shares" in asked.only:
                shares(asked.model, Path(folder), kind, asked.texts, asked.processes, asked.rounds)
            if "resume" in asked.only and not kind.endswith("gz"):
                resume(asked.model, Path(folder), kind, asked.texts)


if __name__ == "__main__":
    main()
