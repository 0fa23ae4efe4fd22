"""The program with standard output or standard error closed or full: the exit code is right, nothing a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import warm_processes
from places import FIXTURES

CLOSED = "import os, sys; os.close({0}); sys.{1} = None"
FULL = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), {0}); sys.{1} = os.fdopen({0}, 'w', closefd=False)"
RUN = "\nfrom hf_xlmr.cli.program import main; main()"
MODEL = str(FIXTURES / "earlier" / "masked-lm")
COMMANDS = (["--help"], ["inspect", "demo"], ["plan", MODEL, "--json"], ["export", MODEL, "out"])
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("stream", [(1, "stdout"), (2, "stderr")], ids=lambda stream: stream[1])
@pytest.mark.parametrize("how", [CLOSED, pytest.param(FULL, marks=needs_full)], ids=["closed", "full"])
def test_a_command_that_goes_well(words: list[str], stream: tuple[int, str], how: str, tmp_path: Path) -> None:
    done = warm_processes.run([sys.executable, "-c", how.format(*stream) + RUN, *words], cwd=tmp_path)
    if (how, stream[0]) == (FULL, 1):
        told = "hf-xlmr: standard output cannot be written: write to a disk that has room\n"
        assert (done.returncode, done.stderr) == (2, told)
    else:
        assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if words[0] == "export" else [])


@pytest.mark.parametrize("how", [CLOSED, pytest.param(FULL, marks=needs_full)], ids=["closed", "full"])
def test_a_command_that_does_not(how: str, tmp_path: Path) -> None:
    code = how.format(2, "stderr") + RUN
    done = warm_processes.run([sys.executable, "-c", code, "convert", "none.pt", "out"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert list(tmp_path.iterdir()) == []
