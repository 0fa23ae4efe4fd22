"""Runs the program inside the process of the tests: its messages, files and exit codes without seconds of imports.

What is about streams, signals, memory or imports needs a process of its own: see warm_processes.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from unittest.mock import patch

import typer.main

from hf_xlmr.cli.program import main

__all__ = ["limited", "run"]

typer.main.get_command = cache(typer.main.get_command)  # the commands take longer to make than most take to run


def run(
    *words: str | Path, cwd: Path | None = None, encoding: str = "utf-8", **variables: str
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured text, of the words after `hf-xlmr`, in a terminal 200 columns wide.

    `variables` are set in the environment.
    """
    argv, usual = ["hf-xlmr", *map(str, words)], Path.cwd()
    written = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(each, encoding=encoding, write_through=True) for each in written]
    os.chdir(cwd or usual)
    try:
        with (
            redirect_stdout(streams[0]),
            redirect_stderr(streams[1]),
            patch("sys.argv", argv),
            patch.dict(os.environ, {"COLUMNS": "200", **variables}),
        ):
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os.chdir(usual)
    out, err = (each.getvalue().decode(encoding) for each in written)
    return subprocess.CompletedProcess(argv, code, out, err)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file gets larger, as on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
