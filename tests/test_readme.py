"""README and the guides are true: what they show for the demo is run, top to bottom, in an empty folder."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import pytest
from local_hub import GOOD_TOKEN, running_hub
from places import CHECKOUT
from warm_processes import PROGRAM, run

from hf_xlmr.conversion.source.releases import RELEASE_NAMES
from hf_xlmr.features.store.files import StoreLayout
from hf_xlmr.features.store.records import MANIFEST, Manifest, ShardRecord
from hf_xlmr.files.memory import MaxMemory
from hf_xlmr.model_shape import shape_of
from hf_xlmr.sharding import plan_placement

README = CHECKOUT / "README.md"
GUIDES = sorted((CHECKOUT / "notebooks" / "guide").glob("*.md"))
SHELL = "import subprocess, sys; subprocess.run(['sh', '-c', sys.argv[1]], check=True)"
PRINTED = "# -> "  # marks in a block what the line before it prints


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[tuple[list[str], list[str]]]:
    """What a newcomer would type, in order: the program's lines and Python blocks, each with what it shall print."""
    typed: list[tuple[list[str], list[str]]] = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), flags=re.S | re.M):
        lines = block.splitlines()
        if kind == "python":
            printed = [line.removeprefix(PRINTED) for line in lines if line.startswith(PRINTED)]
            typed.append(([sys.executable, "-c", block], printed))
        typed += [([sys.executable, "-c", SHELL, line], []) for line in lines if line.startswith("printf ")]
        typed += [([str(PROGRAM), *line.split()[1:]], []) for line in lines if line.startswith("hf-xlmr ")]
    placeholders = {"SOURCE", "MODEL_DIR", "MODEL", "model.pt"}
    has_faiss = find_spec("faiss") is not None  # of the extra for tests
    return [
        each for each in typed if not placeholders & set(each[0]) and (has_faiss or "import faiss" not in each[0][-1])
    ]


def type_all(page: Path, folder: Path) -> None:
    """Each command in turn, with a Hub and a token for it, and the program where a shell finds it."""
    path = os.pathsep.join((str(PROGRAM.parent), os.environ["PATH"]))
    with running_hub() as hub:
        ours = {"HF_XLMR_CACHE": str(folder / "cache"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": GOOD_TOKEN}
        environment = {**os.environ, **ours, "HF_HUB_DISABLE_XET": "1", "PATH": path}
        for command, printed in commands(page):
            done = run(command, cwd=folder, env=environment)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            assert not printed or done.stdout.splitlines() == printed, command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody has read README to its end, and typed all of it."""
    place = tmp_path_factory.mktemp("newcomer")
    type_all(README, place)
    return place


def test_every_block_for_the_demo_runs(folder: Path) -> None:
    assert len(commands(README)) >= 5 and sum(len(printed) for _, printed in commands(README)) >= 5
    assert (folder / "report.html").is_file()


def test_it_is_read_in_five_minutes() -> None:
    assert len(re.findall(r"\w+", re.sub(r"\]\(.*?\)", "]", text_of(README)))) <= 5 * 250


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_so_do_those_of_the_guides_in_the_same_folder(page: Path, folder: Path) -> None:
    type_all(page, folder)


@pytest.mark.parametrize("page", [README, *GUIDES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text_of(page))
    assert targets or page != README
    for target in targets:
        assert (page.parent / target).exists(), target


def test_readme_leads_to_every_guide() -> None:
    assert all(f"](notebooks/guide/{page.name})" in text_of(README) for page in GUIDES)


def test_the_table_of_the_releases_is_what_plan_computes() -> None:
    page = text_of(CHECKOUT / "notebooks" / "guide" / "releases.md")
    rows = re.findall(r"^\| `(xlmr\.\w+)` \| (\S+ \+ .*) \|$", page, flags=re.M)
    releases = [name for name in RELEASE_NAMES if name.startswith("xlmr.") and not name.endswith(".v0")]
    assert [name for name, _ in rows] == releases
    memory: dict[str, MaxMemory] = {"float32": {0: "80GiB"}, "bfloat16": {0: "80GiB"}, "int8": {"cpu": "80GiB"}}
    for name, cells in rows:
        plans = [plan_placement(shape_of(name), max_memory=each, dtype=dtype) for dtype, each in memory.items()]
        sums = [(sum(s.weights for s in plan.shares), sum(s.activations for s in plan.shares)) for plan in plans]
        assert cells == " | ".join(f"{weights / 1e9:.1f} + {room / 1e9:.1f} GB" for weights, room in sums)


def test_there_are_twelve_jobs_and_each_is_run() -> None:
    sections = re.split(r"^## ", text_of(CHECKOUT / "notebooks" / "guide" / "jobs.md"), flags=re.M)[1:]
    assert [section.split(".")[0] for section in sections] == [str(number) for number in range(1, 13)]
    assert all(re.search(r"^(hf-xlmr |```python$)", section, flags=re.M) for section in sections)


def test_the_features_guide_names_all_that_a_folder_of_features_has() -> None:
    page = text_of(CHECKOUT / "notebooks" / "guide" / "features.md").split("## What is in the folder\n")[1]
    records = {*get_type_hints(Manifest), *get_type_hints(ShardRecord), *(each.name for each in fields(StoreLayout))}
    assert all(f"`{name}`" in page for name in records)
    assert all(f"{name}-00000.npy" in page for name in ("features", "offsets", "spans")) and MANIFEST in page


COMMANDS = (
    "convert",
    "inspect",
    "verify",
    "export",
    "plan",
    "extract",
    "finetune",
    "evaluate",
    "adopt",
    "doctor",
    "to-sentence-transformers",
    "to-onnx",
    "to-openvino",
    "verify-runtime",
    "push",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_that_the_guides_list_exist(command: str) -> None:
    first = r"(?:SOURCE|MODEL_DIR|MODEL|xnli\|mlqa\|ner)"
    pattern = rf"^hf-xlmr {command} {first} .*?(?=\nhf-xlmr|\n```)"
    usages = [found for page in GUIDES for found in re.findall(pattern, text_of(page), flags=re.S | re.M)]
    assert usages
    helped = run([PROGRAM, command, "--help"], check=True).stdout
    assert all(option in helped for option in re.findall(r"--[a-z-]+", " ".join(usages)))
