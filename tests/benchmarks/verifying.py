"""What the proof of a conversion costs: seconds and peak memory of `verify`, for XLM-R base and XL shapes.

    python tests/benchmarks/verifying.py [--only base-zip xl-zip] [--work FOLDER]

The checkpoints are those of converting.py, in whose folder they are kept or made. Peak memory is what /proc says of
the process that verifies (VmHWM, which counts the file pages it has mapped), and of one that only imports
Transformers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from converting import CASES, PROGRAM, made

PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
IMPORTS = f"import transformers, torch\ntransformers.XLMRobertaForMaskedLM, transformers.AutoTokenizer\n{PEAK}"
VERIFY = f"""
import sys
from hf_xlmr.conversion import verify
report = verify(sys.argv[1], sys.argv[2])
print(report.tokens, len(report.steps), report.largest)
{PEAK}
"""


def measured(program: str, *arguments: object) -> tuple[float, list[str]]:
    """Seconds of a process, and what it printed; its last line is its peak in KiB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, done.stdout.decode().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["base-zip", "xl-zip"], choices=[case.name for case in CASES])
    parser.add_argument("--work", type=Path, help="keeps the checkpoints it makes (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        _seconds, (imports,) = measured(IMPORTS)
        rows = [{"case": "importing Transformers alone", "peak MB": round(int(imports) * 1024 / 1e6)}]
        for case in CASES:
            if case.name in options.only:
                source, output = made(case, folder), Path(temporary) / case.name
                subprocess.run([PROGRAM, "convert", source, output, "--no-verify", "--quiet"], check=True)
                seconds, (found, peak) = measured(VERIFY, source, output)
                size = (source / "model.pt").stat().st_size / 1e9
                rows.append(
                    {
                        "case": f"{case.name}, {size:.2f} GB",
                        "peak MB": round(int(peak) * 1024 / 1e6),
                        "seconds": round(seconds, 1),
                        "tokens, steps, largest relative difference": found,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
