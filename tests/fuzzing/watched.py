"""A process that runs the program again and again, each time in a fork of its own, and tells what each run took.

As a module it is the handle on that process; as a script it is the process. It imports no torch, so that its memory is
that of the program. A hook of `sys.audit` notes whatever a hostile pickle would like to do.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from patience import PATIENCE

__all__ = ["CANARY", "Outcome", "Watched"]

CANARY = "hostile_canary"  # a module that exists in the process and leaves a file behind when it is imported or called
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "socket.connect",
             "webbrowser.open")  # fmt: skip
NAMED_MODULES = (CANARY, "antigravity", "this", "runpy", "webbrowser", "pydoc", "turtle", "idlelib", "torch", "pip")
CANARY_SOURCE = """
import os
def mark(*_given, **_named):
    open(os.environ["HOSTILE_CANARY"], "a").write("struck")
    return {}
mark()
strike = mark
class Striker:
    def __new__(cls, *given, **named):
        mark()
        return object.__new__(cls)
    def __init__(self, *given, **named):
        mark()
    def __setstate__(self, state):
        mark()
    def __call__(self, *given, **named):
        return mark()
    class Deep:
        strike = mark
"""


@dataclass(frozen=True)
class Outcome:
    """What one run of the program did."""

    code: int
    """The exit code; negative for a signal, -9 where it ran out of patience."""
    stdout: str
    stderr: str
    effort: float
    """Its processor time, as a multiple of what `inspect demo` takes in the same process."""
    peak_bytes: int
    did: tuple[str, ...]
    """What it must not do and did: audited events, imports of named modules, the canary."""


class Watched:
    """The process, and the runs of the program in it."""

    def __init__(self, folder: Path) -> None:
        """Start it; `folder` is for the canary and for what the runs print."""
        self.canary = folder / "struck"
        (folder / f"{CANARY}.py").write_text(CANARY_SOURCE)
        (folder / "prints").mkdir()
        environment = {**os.environ, "PYTHONPATH": str(folder), "HOSTILE_CANARY": str(self.canary), "COLUMNS": "200"}
        command = [sys.executable, "-B", str(Path(__file__).resolve()), str(folder / "prints")]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env=environment, cwd=folder, **pipes)

    def run(self, *arguments: object) -> Outcome:
        """Run `hf-xlmr` with these arguments."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(each) for each in arguments]) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        if self.canary.exists():
            told["did"].append("the canary")
            self.canary.unlink()
        return Outcome(**{**told, "did": tuple(told["did"])})

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


# ---- inside of the process -------------------------------------------------------------------------------------------


def _serve(prints: Path) -> None:
    """Answer one run after the other; all that a run would import is there before the first fork."""
    for name in (
        "in_process",
        "hf_xlmr.conversion.converting",
        "google.protobuf.text_format",
        "isal.isal_zlib",
        "numpy",
    ):
        import_module(name)
    os.fsync = lambda _descriptor: None  # nobody cuts the power
    answers = os.fdopen(os.dup(1), "w")
    _into(prints / "warmed")
    assert _exit_code(["inspect", "demo"]) == 0
    gc.freeze()
    usual = max(_run(["inspect", "demo"], prints)["effort"] for _ in range(3))
    for line in sys.stdin:
        done = _run(json.loads(line), prints)
        print(json.dumps({**done, "effort": done["effort"] / usual}), file=answers, flush=True)


def _run(arguments: list[str], prints: Path) -> dict[str, Any]:
    """What an Outcome tells; the effort in seconds."""
    child = os.fork()
    if child == 0:
        _be_the_program(arguments, prints)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(PATIENCE)
    _child, status, usage = os.wait4(child, 0)
    signal.alarm(0)
    did = (prints / "did").read_text().splitlines() if (prints / "did").exists() else ["it told nothing"]
    (prints / "did").unlink(missing_ok=True)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "stdout": (prints / "out").read_bytes().decode(errors="replace"),
        "stderr": (prints / "err").read_bytes().decode(errors="replace"),
        "effort": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "did": did,
    }


def _be_the_program(arguments: list[str], prints: Path) -> None:
    code = 70
    try:
        _into(prints / "out")
        _into(prints / "err", descriptor=2)
        did: list[str] = []
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = set(sys.modules)
        sys.addaudithook(lambda event, given: did.append(f"{event} {given!r:.80}") if event in FORBIDDEN else None)
        code = _exit_code(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        did += [f"import {name}" for name in NAMED_MODULES if name in sys.modules and name not in before]
        (prints / "did").write_text("".join(f"{event}\n" for event in did))
    finally:
        os._exit(code)


def _into(file: Path, *, descriptor: int = 1) -> None:
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(opened, descriptor)
    os.close(opened)


def _exit_code(arguments: list[str]) -> int:
    from hf_xlmr.cli.program import main

    sys.argv = ["hf-xlmr", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001  # whatever it is, it is told
        import traceback

        traceback.print_exc()
        return 70


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
