"""The reference pages say what the program and the docstrings say."""

from __future__ import annotations

import os
import subprocess
import sys

import in_process
import pytest
from places import CHECKOUT
from write_reference import PUBLIC, REFERENCE, pages

PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_source_gives(name: str) -> None:
    kept = (REFERENCE / name).read_text(encoding="utf-8")
    assert kept == PAGES[name], "run: python tests/write_reference.py"


def test_nothing_else_lies_there() -> None:
    assert {path.name for path in REFERENCE.iterdir()} == set(PAGES)


@pytest.mark.parametrize("columns", ["20", "300"])
def test_the_terminal_does_not_matter(columns: str) -> None:
    code = "import sys; sys.path.insert(0, 'tests'); import write_reference as w; print(w.commands_page(), end='')"
    environment = {**os.environ, "COLUMNS": columns, "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == PAGES["commands.md"]


def test_every_option_of_every_command_is_told() -> None:
    """Counted against what --help prints, which another piece of code writes."""
    for section in PAGES["commands.md"].split("\n## hf-xlmr ")[1:]:
        command = section.split("\n", 1)[0]
        helped = in_process.run(command, "--help", COLUMNS="200")
        assert helped.returncode == 0
        told = {
            word for line in section.splitlines() if line.startswith("| `--") for word in line.split("`")[1].split()
        }
        wanted = {
            word.strip(",/")
            for line in helped.stdout.splitlines()
            if line.startswith("  --")
            for word in line.split()[:3]
        }
        assert {word for word in wanted if word.startswith("--")} - {"--help"} == {
            word for word in told if word.startswith("--")
        }, command


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_told_with_words(module: str) -> None:
    """A heading for each name of `__all__`, and a docstring below it."""
    from importlib import import_module

    section = PAGES["api.md"].split(f"\n## {module}\n")[1].split("\n## ")[0]
    for name in import_module(module).__all__:
        if name != "__version__":
            assert f"\n### {name}\n" in section, name
