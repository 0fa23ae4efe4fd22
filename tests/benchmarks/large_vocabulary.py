"""Every command at XLM-V's vocabulary of 901,629 rows: processor seconds and peak memory.

    python tests/benchmarks/large_vocabulary.py [--pieces 901624] [--work FOLDER]

The network is tiny (2 layers of width 16) and the pieces are generated: what is seen is dictionary, SentencePiece
model and tokenizer; `converting.py --only xlmv-zip` has weights of XLM-V's size. Each command is a process of its own;
what the system counts for it is printed (ru_utime and ru_stime, ru_maxrss).
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PROGRAM = Path(sysconfig.get_path("scripts")) / "hf-xlmr"
MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_large_vocabulary import make
make(Path(sys.argv[2]), pieces=int(sys.argv[3]), missing=0)
"""


def used(command: list[str | Path]) -> tuple[float, float]:
    """Processor seconds and peak MB of a process. Raises SystemExit if it fails."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[1]} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=901_624)
    parser.add_argument("--work", type=Path, help="keeps what is made (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        source, model, texts = work / "source", work / "model", work / "texts.txt"
        if not source.exists():
            subprocess.run([sys.executable, "-c", MAKE, TESTS, source, str(options.pieces)], check=True)
        chance = random.Random(0)
        lines = (
            " ".join("".join(chance.choices(["ba", "de", "ko", "lu"], k=3)) for _ in range(9)) for _ in range(1000)
        )
        texts.write_text("\n".join(lines) + "\n")
        commands: dict[str, list[str | Path]] = {
            "inspect": [source],
            "convert": [source, model, "--overwrite"],
            "verify": [source, model],
            "doctor": [model],
            "plan": [model, "--max-memory", "cpu=64GiB"],
            "export": [model, work / "back", "--overwrite"],
            "extract": [model, texts, work / "features", "--pool", "mean", "--overwrite"],
        }
        print("command | processor s | peak MB")
        for name, words in commands.items():
            seconds, peak = used([PROGRAM, name, *words])
            print(f"{name} | {seconds:.1f} | {peak:.0f}", flush=True)


if __name__ == "__main__":
    main()
