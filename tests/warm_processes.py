"""Runs the program, or Python code, in processes forked from one that has imported PyTorch and Transformers.

These imports take four to five seconds of each process that has to begin with them. hf_xlmr is not among them: what
runs here meets plain Transformers until it imports hf_xlmr itself. The variables of huggingface_hub (HF_HOME,
HF_ENDPOINT) are read again. For code that is about imports, begin a process of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, reload
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

__all__ = ["PROGRAM", "Running", "begun", "run", "run_two", "start"]

PROGRAM = Path(sysconfig.get_path("scripts")) / "hf-xlmr"
IMPORTED = [
    "torch",
    "torch._dynamo",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.xlm_roberta.modeling_xlm_roberta",
    "transformers.trainer",
    "datasets",
]


@dataclass(frozen=True)
class Running:
    """A process that was begun; its output is in files."""

    words: list[str]
    process: BaseProcess
    streams: list[str]

    @property
    def pid(self) -> int:
        """For os.kill."""
        return int(self.process.pid or 0)

    @property
    def sentinel(self) -> int:
        """What multiprocessing.connection.wait takes to wait for its end."""
        return self.process.sentinel

    def ended(self, *, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        """Its exit code and output, once it has ended; only one thread may ask."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it has not ended"
        out, err = (Path(stream).read_text(encoding="utf-8") for stream in self.streams[1:])
        return subprocess.CompletedProcess(self.words, self.process.exitcode, out, err)


@contextmanager
def begun(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: str = ""
) -> Iterator[Running]:
    """Begin a command as `run` takes it; it is killed where it has not ended with the block."""
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder) / name) for name in ("stdin", "stdout", "stderr")]
        Path(streams[0]).write_text(stdin, encoding="utf-8")
        process = start(words, cwd=cwd, env=env, streams=streams)
        try:
            yield Running(words, process, streams)
        finally:
            process.kill()
            process.join()


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured text, of `[PROGRAM, ...]` or `[sys.executable, "-c", code, ...]`."""
    with begun(command, cwd=cwd, env=env, stdin=stdin) as running:
        done = running.ended()
    if check:
        done.check_returncode()
    return done


def run_two(command: Sequence[str | Path], *, cwd: Path | None = None) -> list[subprocess.CompletedProcess[str]]:
    """Two processes at once that know each other by what torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    with ThreadPoolExecutor(2) as pool:
        each = [{**os.environ, **meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        return list(pool.map(lambda env: run(command, cwd=cwd, env=env), each))


def start(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    streams: Sequence[str] = (os.devnull,) * 3,
) -> BaseProcess:
    """As subprocess.Popen, with files for the standard streams."""
    words = [str(word) for word in command]
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_child, args=(words, str(cwd or Path.cwd()), dict(env or os.environ), streams))
    process.start()
    return process


def _child(words: list[str], cwd: str, env: dict[str, str], streams: Sequence[str]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    reload(import_module("huggingface_hub.constants"))  # which reads variables when it is imported
    if words[0] == str(PROGRAM):
        sys.argv = words
        from hf_xlmr.cli.program import main

        main()
    else:
        assert words[:2] == [sys.executable, "-c"], words
        sys.argv, sys.path[:0] = ["-c", *words[3:]], [""]
        exec(compile(words[2], "<code>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as python -c does
