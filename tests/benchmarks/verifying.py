"""What the proof of a conversion costs: seconds and peak memory of `verify`, for XLM-R base, XLM-V and XL shapes.

    python tests/benchmarks/verifying.py [--rounds 3] [--only base-zip xl-zip] [--work FOLDER]

The checkpoints are those of converting.py, in whose folder they are kept or made. Peak memory is what /proc says of
the process that verifies (VmHWM, which counts the file pages it has mapped), and of one that only imports
Transformers. Seconds are medians of the rounds, and stand beside `cp` and `sync` of the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from converting import CASES, PROGRAM, copy, made, timed

PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
IMPORTS = f"import transformers, torch\ntransformers.XLMRobertaForMaskedLM, transformers.AutoTokenizer\n{PEAK}"
VERIFY = f"""
import sys, time
from hf_xlmr.conversion import verify
report = verify(sys.argv[1], sys.argv[2])
print(time.process_time(), report.tokens, len(report.steps), report.largest)
{PEAK}
"""


def measured(program: str, *arguments: object) -> tuple[float, list[str]]:
    """Seconds of a process, and what it printed; its last line is its peak in KiB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, done.stdout.decode().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["base-zip", "xl-zip"], choices=[case.name for case in CASES])
    parser.add_argument("--work", type=Path, help="keeps the checkpoints it makes (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, scratch = options.work or Path(temporary), Path(temporary) / "copy"
        _seconds, (imports,) = measured(IMPORTS)
        rows = [{"case": "importing Transformers alone", "peak MB": round(int(imports) * 1024 / 1e6)}]
        for case in CASES:
            if case.name in options.only:
                source, output = made(case, folder), Path(temporary) / case.name
                subprocess.run([PROGRAM, "convert", source, output, "--no-verify", "--quiet"], check=True)
                seconds, copied, processor, peaks = [], [], [], []
                for _ in range(options.rounds):
                    copied.append(timed(lambda: copy(source, scratch, synced=True), scratch))  # noqa: B023 - called here
                    wall, (found, peak) = measured(VERIFY, source, output)
                    spent, found = found.split(maxsplit=1)
                    seconds.append(wall)
                    processor.append(float(spent))
                    peaks.append(int(peak))
                size, middle = (source / "model.pt").stat().st_size / 1e9, statistics.median(seconds)
                rows.append(
                    {
                        "case": f"{case.name}, {size:.2f} GB",
                        "peak MB": round(max(peaks) * 1024 / 1e6),
                        "seconds": round(middle, 1),
                        "times cp + sync": round(middle / statistics.median(copied), 1),
                        "processor s": round(statistics.median(processor), 1),
                        "tokens, steps, largest relative difference": found,
                    }
                )
                shutil.rmtree(output)
                shutil.rmtree(scratch)
                print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
