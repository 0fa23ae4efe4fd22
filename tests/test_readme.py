"""README is true: what it shows for the demo is run, top to bottom, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from places import CHECKOUT

PROGRAM = Path(sysconfig.get_path("scripts")) / "hf-xlmr"
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.S | re.M)


def commands() -> list[list[str]]:
    """What a newcomer would type, in order: the program's lines, and the Python blocks."""
    typed: list[list[str]] = []
    for kind, block in BLOCKS:
        if kind == "python":
            typed.append([sys.executable, "-c", block])
        typed += [["sh", "-c", line] for line in block.splitlines() if line.startswith("printf ")]
        typed += [[str(PROGRAM), *line.split()[1:]] for line in block.splitlines() if line.startswith("hf-xlmr ")]
    return [command for command in typed if not {"SOURCE", "MODEL_DIR", "MODEL"} & set(command)]


def test_every_block_for_the_demo_runs(tmp_path: Path) -> None:
    assert len(commands()) >= 5
    environment = {**os.environ, "HF_XLMR_CACHE": str(tmp_path / "cache")}
    for command in commands():
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "report.html").is_file()


COMMANDS = (
    "convert",
    "inspect",
    "verify",
    "export",
    "plan",
    "extract",
    "finetune",
    "evaluate",
    "doctor",
    "to-sentence-transformers",
    "push",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_that_it_lists_exist(command: str) -> None:
    first = r"(?:SOURCE|MODEL_DIR|MODEL|xnli\|mlqa\|ner)"
    usage = re.search(rf"hf-xlmr {command} {first} .*?(?=\nhf-xlmr|\n```)", README, flags=re.S)
    assert usage is not None
    helped = subprocess.run([PROGRAM, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in helped for option in re.findall(r"--[a-z-]+", usage[0]))
