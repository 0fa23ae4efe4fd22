"""Kills conversions and exports at random moments: all of an output or none may be left, and never a lost one.

    python tests/kills.py [--count 200] [--seed 0]

Each run of `hf-xlmr` is ended by SIGKILL somewhere between its start and its usual end. Afterwards OUTPUT must
be absent or whole (its files are those of a run that was left in peace), a model that was there before must be there
still or be replaced by the whole new one, and the next run must work and clear what the killed one left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random

__all__ = ["CASES", "Case", "Tally", "kill_often", "main"]

PROGRAM = Path(sys.executable).with_name("hf-xlmr")
FIXTURES = Path(__file__).resolve().parent / "fixtures"
LATE = "came too late"  # these count as no kills


@dataclass(frozen=True)
class Case:
    """What is run; `share` tells how many of the kills are for it."""

    name: str
    command: str
    source: str
    options: tuple[str, ...]
    overwrites: bool
    share: int


CASES = (
    Case("convert", "convert", "demo", ("--no-verify",), overwrites=False, share=4),
    Case("convert, over another", "convert", "v0102", ("--no-verify",), overwrites=True, share=6),
    Case("convert an archive, over another", "convert", "archive", ("--no-verify",), overwrites=True, share=2),
    Case("convert with proof, over another", "convert", "v0102", (), overwrites=True, share=1),
    Case("export", "export", "model", (), overwrites=False, share=3),
    Case("export, over another", "export", "model", (), overwrites=True, share=4),
)


@dataclass
class Tally:
    """What the kills of one case left."""

    case: Case
    kills: int = 0
    left: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def kill_often(
    case: Case, count: int, folder: Path, random: Random, *, told: Callable[[str], object] = lambda _line: None
) -> Tally:
    """Kill runs of a case at `count` moments spread over its time."""
    source = _source(case, folder)
    output = folder / "home" / "out"
    output.parent.mkdir()
    new, usual = _in_peace(case, source, output)
    old = _other(case, folder, output) if case.overwrites else None
    tally = Tally(case)
    while tally.kills < count and tally.left[LATE] < 3 * count:
        moment = usual * (tally.kills + random.random()) / count
        _restore(output, folder / "old" if case.overwrites else None)
        was_killed = _run_and_kill(case, source, output, moment)
        state = _state(output, new=new, old=old)
        scratches = sorted(path.name for path in output.parent.iterdir() if path != output)
        tally.kills += was_killed
        tally.left[state if was_killed else LATE] += 1
        usual *= 1 if was_killed else 0.8  # it was measured when the machine was busier
        tally.left["scratch left"] += bool(scratches)
        faults = [*_faults(state, case), *_faults_of_next(case, source, output, new)]
        tally.faults += [f"after {moment:.3f} s: {fault}" for fault in faults]
        told(f"{case.name} {tally.kills}/{count}: {moment:.3f} s, {state}, {len(scratches)} scratches")
    return tally


def _faults(state: str, case: Case) -> list[str]:
    allowed = {"old", "new"} if case.overwrites else {"absent", "new"}
    return [] if state in allowed else [f"the output is {state}"]


def _faults_of_next(case: Case, source: str, output: Path, new: dict[str, str]) -> list[str]:
    """Run again, in peace."""
    done = _start(case, source, output, overwrite=True)
    _output, errors = done.communicate()
    found = [f"the next run ends with {done.returncode}: {errors.decode()}"] if done.returncode else []
    found += [] if contents(output) == new else ["the next run gives something else"]
    left = sorted(path.name for path in output.parent.iterdir() if path != output)
    return found + ([f"the next run leaves {', '.join(left)}"] if left else [])


def _in_peace(case: Case, source: str, output: Path) -> tuple[dict[str, str], float]:
    """What the case gives when nobody disturbs it, and how long it takes."""
    times = []
    for _ in range(3):
        shutil.rmtree(output, ignore_errors=True)
        begun = time.monotonic()
        process = _start(case, source, output, overwrite=True)
        _output, errors = process.communicate()
        times.append(time.monotonic() - begun)
        assert process.returncode == 0, errors.decode()
    return contents(output), sorted(times)[1]


def _source(case: Case, folder: Path) -> str:
    if case.source == "archive":
        return shutil.make_archive(str(folder / "v0102"), "gztar", FIXTURES / "v0102")
    if case.source == "model":
        return _converted("demo", folder / "model")
    return case.source if case.source == "demo" else str(FIXTURES / case.source)


def _converted(source: str, output: Path) -> str:
    command = [PROGRAM, "convert", source, output, "--no-verify", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return str(output)


def _other(case: Case, folder: Path, output: Path) -> dict[str, str]:
    """Another model, to be overwritten; it is kept in `old`."""
    shutil.rmtree(output)
    other = _converted(str(FIXTURES / "v0122cls"), folder / "old")
    if case.command == "export":
        shutil.move(other, folder / "other")
        subprocess.run([PROGRAM, "export", folder / "other", other, "--quiet"], check=True, capture_output=True)
    return contents(folder / "old")


def _restore(output: Path, old: Path | None) -> None:
    for path in output.parent.iterdir():
        shutil.rmtree(path)
    if old is not None:
        shutil.copytree(old, output)


def _start(case: Case, source: str, output: Path, *, overwrite: bool) -> subprocess.Popen[bytes]:
    more = ("--overwrite",) if overwrite else ()
    command = [PROGRAM, case.command, source, output, "--quiet", *case.options, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(output.parent.parent)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def _run_and_kill(case: Case, source: str, output: Path, moment: float) -> bool:
    """Whether the run was killed, and not over before."""
    with _start(case, source, output, overwrite=case.overwrites) as process:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    return process.returncode == -signal.SIGKILL


def _state(output: Path, *, new: dict[str, str], old: dict[str, str] | None) -> str:
    if not output.exists():
        return "absent"
    found = contents(output)
    return "new" if found == new else "old" if found == old else f"neither: {sorted(found)}"


def contents(folder: Path, *, but: str | None = None) -> dict[str, str]:
    """Every file of a folder with its checksum; those whose names end with `but` are not opened."""
    files = sorted(path for path in folder.rglob("*") if not (but and path.name.endswith(but)) and path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


# ---- the command -----------------------------------------------------------------------------------------------------


def table(tallies: Sequence[Tally]) -> str:
    """What was left, as a table."""
    columns = ("absent", "old", "new", "scratch left", LATE)
    lines = ["| case | kills | " + " | ".join(columns) + " | faults |", "|" + "---|" * (len(columns) + 3)]
    for tally in tallies:
        cells = [tally.case.name, tally.kills, *(tally.left[name] for name in columns), len(tally.faults)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    total = [
        "all",
        sum(each.kills for each in tallies),
        *(sum(each.left[name] for each in tallies) for name in columns),
    ]
    total.append(sum(len(each.faults) for each in tallies))
    return "\n".join([*lines, "| " + " | ".join(map(str, total)) + " |"])


def main() -> int:
    """Kill, and print the table; gives 1 where there was a fault."""
    parser = argparse.ArgumentParser(description="Kill conversions and exports and look at what they leave.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; its file system is the one that is tried")
    options = parser.parse_args()
    random, tallies = Random(options.seed), []
    for case in CASES:
        count = max(1, options.count * case.share // sum(each.share for each in CASES))
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            told = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
            tallies.append(kill_often(case, count, Path(folder), random, told=told))
    print(table(tallies))
    for tally in tallies:
        print(*tally.faults, sep="\n", end="\n" if tally.faults else "")
    return 1 if any(tally.faults for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
