"""The fuzzer: so many damaged files through all that reads them, and none may end in anything but our own errors.

    python tests/fuzzing/run.py --count 100000 --seed 0 [--kind KIND]

Sources go through `convert` and `inspect`; SentencePiece models, tokenizer.json, config.json, headers of safetensors
files and Parquet through what reads them (`doors.py`), in processes that may die. The same count, seed and kind give
the same files. A finding is an exception that is not an HfXlmrError, more than 10 seconds of processor time, memory
beyond the file's size and 450 MB, anything left behind after a failure, or a death; its files are saved with the
reason, and `--only KIND:NUMBER` runs it again. Interrupted, it tells what it has tried so far.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from patience import PATIENCE

from fuzzing.doors import DOORS
from fuzzing.seeds import KINDS, OF_DOORS, Source, mutant, whole

__all__ = ["Finding", "Result", "Runner", "main"]

SECONDS = 10  # of processor time, which other work on the machine leaves alone
MEMORY = 450_000_000
ALONE = 180_000_000  # what a process that does nothing but fuzz holds: tests share theirs with others
CONVERTED_PART = 3  # every third input is converted, the others only inspected; but always of these kinds:
CONVERTED_KINDS = ("dict", "spm", "labels")  # inspect does not read all of the files beside the checkpoint
SHARES = {
    "pickle": 26,
    "zip": 12,
    "legacy": 10,
    "dict": 6,
    "spm": 9,
    "tar": 6,
    "labels": 3,
    "sentencepiece": 12,
    "tokenizer.json": 4,
    "config.json": 4,
    "header": 4,
    "parquet": 4,
}


class Hang(BaseException):
    """The watchdog's: no handler of the program's may take it for its own."""


@dataclass(frozen=True)
class Finding:
    """An input that did what none may do."""

    kind: str
    number: int
    reason: str
    details: str


@dataclass
class Result:
    """What became of the inputs of one kind."""

    kind: str
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0


class Runner:
    """Runs inputs in this process, in a folder of its own."""

    def __init__(
        self, folder: Path, *, seed: int, convert: Callable[..., object], inspect: Callable[..., object]
    ) -> None:
        """Take the functions to try, so that a test can hand in broken ones."""
        self.home, self.scratch = folder / "home", folder / "scratch"
        self.seed, self.convert, self.inspect = seed, convert, inspect
        self.results: list[Result] = []
        """Of all that was tried, also where it was interrupted."""
        _forget_peak()
        self.held_by_others = max(0, _peak() - ALONE)
        for each in (self.home, self.scratch):
            each.mkdir()

    def run(self, kind: str, numbers: range, *, told: Callable[[Finding, Source], None] = lambda *_: None) -> Result:
        """Try the inputs of these numbers."""
        self.results.append(result := Result(kind))
        begun = time.monotonic()
        for number in numbers:
            source = mutant(kind, number, self.seed)
            start = time.monotonic()
            outcome, finding = self._try(kind, number, source)
            took = time.monotonic() - start
            result.inputs += 1
            result.outcomes[outcome] += 1
            result.slowest = max(result.slowest, took)
            result.peak = max(result.peak, _peak())
            result.seconds = time.monotonic() - begun
            if finding is not None:
                result.findings.append(finding)
                told(finding, source)
        return result

    def _try(self, kind: str, number: int, source: Source) -> tuple[str, Finding | None]:
        from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError

        is_converted = kind in CONVERTED_KINDS or number % CONVERTED_PART == 0
        given = source.write(self.home)
        outcome, details = "?", ""
        _forget_peak()
        try:
            with _watchdog(), _temporary(self.scratch):
                outcome = self._call(kind, given, is_converted=is_converted)
        except (InputError, IntegrityError) as error:
            outcome = "InputError" if isinstance(error, InputError) else "IntegrityError"
            details = "" if str(error) else "an error without a sentence"
        except HfXlmrError:
            outcome, details = "HfXlmrError", "the root of the errors itself was raised"
        except Hang:
            outcome, details = "hang", traceback.format_exc()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001  # that is what is looked for
            outcome, details = "exception", traceback.format_exc()
        details = details or self._left_behind(source, outcome=outcome)
        if _peak() > source.size + MEMORY + self.held_by_others:
            details = details or f"a peak of {_peak() / 1e6:.0f} MB"
        self.clear()
        return outcome, Finding(kind, number, details.strip().splitlines()[-1][:200], details) if details else None

    def _call(self, kind: str, given: Path, *, is_converted: bool) -> str:
        if kind in DOORS:
            DOORS[kind](given)
            return "read"
        if is_converted:
            self.convert(given, self.home / "out", verify=False)
            return "converted"
        self.inspect(given)
        return "inspected"

    def _left_behind(self, source: Source, *, outcome: str) -> str:
        """What is in the way of a clean failure, or missing from a success."""
        expected = {"m", "out"} if outcome == "converted" else {"m"}
        found = {path.name for path in self.home.iterdir()}
        if found != expected and not (outcome == "read" and found == {"m", "out"}):
            return f"the folder holds {sorted(found)} after {outcome}"
        if any(self.scratch.iterdir()):
            return f"the temporary folder holds {[path.name for path in self.scratch.iterdir()]}"
        if outcome == "converted" and not (self.home / "out" / "config.json").is_file():
            return "a converted folder without config.json"
        return "" if source.files else "no files"

    def clear(self) -> None:
        """Forget the files of the last input."""
        for folder in (self.home, self.scratch):
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _forget_peak() -> None:
    """Begin anew with counting the peak, so that each input is told from those before it."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that this process held since the last `_forget_peak`; elsewhere than on Linux, since it began."""
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def _watchdog() -> Iterator[None]:
    """Stop what computes for long, or waits for ever."""

    def bark(*_given: object) -> None:
        raise Hang(f"more than {SECONDS} seconds of processor time, or {PATIENCE} in all")

    previous = {number: signal.signal(number, bark) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    previous, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = previous


def shares(count: int) -> dict[str, int]:
    """How many inputs of each kind."""
    return {kind: max(1, count * SHARES[kind] // sum(SHARES.values())) for kind in (*KINDS, *OF_DOORS)}


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run it; gives 1 where there was a finding."""
    from fuzzing.apart import run_apart

    options = _options()
    only = options.only.split(":") if options.only else None
    wanted = {options.kind: options.count} if options.kind else shares(options.count)
    runs = {only[0]: range(int(only[1]), int(only[1]) + 1)} if only else {kind: range(n) for kind, n in wanted.items()}
    with tempfile.TemporaryDirectory(dir=_fast_folder(), prefix="hf-xlmr-fuzz-") as folder:
        runner = _runner(Path(folder), seed=options.seed, kinds=runs)
        with suppress(KeyboardInterrupt):
            for kind, numbers in runs.items():
                run = run_apart if kind in DOORS else Runner.run
                run(runner, kind, numbers, told=lambda finding, source: _save(finding, source, options.findings))
                print(_row(runner.results[-1]), file=sys.stderr, flush=True)
    print(table(runner.results))
    return 1 if any(result.findings for result in runner.results) else 0


def _runner(folder: Path, *, seed: int, kinds: Collection[str]) -> Runner:
    import google.protobuf.descriptor_pool  # noqa: F401  # so that the first input does not pay for it
    import numpy  # noqa: F401

    from hf_xlmr.conversion import convert, inspect

    warm(folder, [kind for kind in OF_DOORS if kind in kinds])
    return Runner(folder, seed=seed, convert=convert, inspect=inspect)


def warm(folder: Path, kinds: Collection[str]) -> None:
    """Go through these doors once with what is whole: what they import is there before memory is measured."""
    for kind in kinds:
        DOORS[kind](whole(kind).write(folder / kind))
        shutil.rmtree(folder / kind)


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _save(finding: Finding, source: Source, folder: Path) -> None:
    place = folder / f"{finding.kind}-{finding.number}"
    shutil.rmtree(place, ignore_errors=True)
    source.write(place)
    (place / "reason.txt").write_text(finding.details + "\n")
    print(f"finding {finding.kind}:{finding.number}: {finding.reason} (in {place})", file=sys.stderr, flush=True)


COLUMNS = (
    "kind",
    "inputs",
    "converted",
    "inspected",
    "read",
    "InputError",
    "IntegrityError",
    "findings",
    "seconds",
    "slowest s",
    "peak MB",
)


def _cells(result: Result) -> tuple[Any, ...]:
    counts = (result.outcomes[name] for name in COLUMNS[2:7])
    return (result.kind, result.inputs, *counts, len(result.findings), f"{result.seconds:.0f}", f"{result.slowest:.2f}",
            f"{result.peak / 1e6:.0f}")  # fmt: skip


def _row(result: Result) -> str:
    return "| " + " | ".join(map(str, _cells(result))) + " |"


def table(results: list[Result]) -> str:
    """What became of all inputs, as a table."""
    total = Result("all")
    for result in results:
        total.inputs += result.inputs
        total.outcomes += result.outcomes
        total.findings += result.findings
        total.seconds += result.seconds
        total.slowest = max(total.slowest, result.slowest)
        total.peak = max(total.peak, result.peak)
    rows = [*results, total] if len(results) > 1 else results
    return "\n".join(["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(_row, rows)])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Put damaged files through convert and inspect.")
    parser.add_argument("--count", type=int, default=100_000, help="inputs, shared among the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=(*KINDS, *OF_DOORS))
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one input, again")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where findings are saved")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
