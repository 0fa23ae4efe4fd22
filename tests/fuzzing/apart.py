"""Runs of the fuzzer in processes that may die: a death, or native code that never comes back, is a finding."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from patience import PATIENCE

from fuzzing import run
from fuzzing.run import Finding, Result, Runner
from fuzzing.seeds import mutant

__all__ = ["run_apart"]

LONGEST_WAIT = 2 * PATIENCE  # seconds without a sign of life: its own watchdog should bark before


def run_apart(runner: Runner, kind: str, numbers: range, *, told: Any = lambda *_: None) -> Result:
    """As `runner.run`; after a death the rest of the inputs are tried in another process."""
    total = Result(kind)
    rest = numbers
    while rest:
        done, death = _in_a_fork(runner, kind, rest)
        total = _added(total, done)
        if death:
            number = rest[done.inputs]
            finding = Finding(kind, number, death, death)
            total.findings.append(finding)
            total.inputs, total.outcomes["death"] = total.inputs + 1, total.outcomes["death"] + 1
            told(finding, mutant(kind, number, runner.seed))
            runner.clear()
        for finding in done.findings:
            told(finding, mutant(kind, finding.number, runner.seed))
        rest = rest[done.inputs + bool(death) :]
    runner.results.append(total)
    return total


def _in_a_fork(runner: Runner, kind: str, numbers: range) -> tuple[Result, str]:
    """What a process did before it ended, and how it died, nothing where it came to its end."""
    reading, writing = Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        reading.close()
        _tell_all(runner, kind, numbers, writing)
    writing.close()
    result, death = Result(kind), ""
    try:
        while not death:
            if reading.poll(LONGEST_WAIT):
                result = _added(result, reading.recv())
            else:
                os.kill(child, signal.SIGKILL)
                death = f"no sign of life for {LONGEST_WAIT} seconds"
    except EOFError:
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        raise RuntimeError(f"the fuzzer itself failed at {kind}:{numbers[result.inputs]}")
    return result, death or (f"the process died of {signal.Signals(-code).name}" if code < 0 else "")


def _tell_all(runner: Runner, kind: str, numbers: range, answers: Connection) -> NoReturn:
    """Try one input after the other, and tell of each when it is done."""
    code = 70
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for number in numbers:  # native code hears no watchdog: the system ends it
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 2 * run.SECONDS + 1, -1))
            answers.send(runner.run(kind, range(number, number + 1)))
        code = 0
    finally:
        os._exit(code)


def _added(one: Result, other: Result) -> Result:
    return Result(
        one.kind,
        inputs=one.inputs + other.inputs,
        outcomes=one.outcomes + other.outcomes,
        findings=[*one.findings, *other.findings],
        seconds=one.seconds + other.seconds,
        slowest=max(one.slowest, other.slowest),
        peak=max(one.peak, other.peak),
    )
