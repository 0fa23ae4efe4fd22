"""The wheel holds every source file and the demo, under the right names, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.message import Message
from email.parser import BytesParser
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from places import CHECKOUT

from hf_xlmr import __version__

NEEDED = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "setup.py")
PLACES = {"hf_xlmr": "hf_xlmr", "conversion": "hf_xlmr/conversion"}
DEMO = {"model.pt", "dict.txt", "sentencepiece.bpe.model"}


def names_in(folder: str) -> list[str]:
    """The data beside the sources of the tasks."""
    return [path.name for path in (CHECKOUT / "hf_xlmr" / "tasks" / folder).iterdir()]


DATA = {
    "hf_xlmr/py.typed",
    "hf_xlmr/cards/report.css",
    "hf_xlmr/conformance/report.html",
    "hf_xlmr/conversion/templates/card.md",
    "hf_xlmr/conversion/templates/report.html",
    *(f"hf_xlmr/demo/{name}" for name in DEMO),
    *(f"hf_xlmr/tasks/{folder}/{name}" for folder in ("configs", "examples") for name in names_in(folder)),
}
LARGEST_DEMO = 3_000_000
LARGEST_WHEEL = 5_000_000

pytestmark = pytest.mark.skipif(
    find_spec("build") is None or find_spec("setuptools") is None, reason="building needs build and setuptools"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel built from a copy of the whole checkout, tests and notebooks too, so that the checkout stays clean."""
    copy, made = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for folder in (*PLACES, "tests", "notebooks"):
        copytree(CHECKOUT / folder, copy / folder, ignore=ignore_patterns("__pycache__", "fixtures"))
    for name in NEEDED:
        if (CHECKOUT / name).is_file():
            (copy / name).write_bytes((CHECKOUT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=made, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = made.iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def content(wheel: zipfile.ZipFile) -> set[str]:
    """The files of the wheel, without its own records."""
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def record(wheel: zipfile.ZipFile, name: str) -> bytes:
    (path,) = (each for each in wheel.namelist() if each.endswith(f".dist-info/{name}"))
    return wheel.read(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    return BytesParser().parsebytes(record(wheel, "METADATA"))


def test_every_source_file_is_in_it_byte_for_byte(wheel: zipfile.ZipFile) -> None:
    for folder, place in PLACES.items():
        paths = [path for path in (CHECKOUT / folder).rglob("*.py") if "__pycache__" not in path.parts]
        assert paths
        for path in paths:
            name = f"{place}/{path.relative_to(CHECKOUT / folder).as_posix()}"
            assert wheel.read(name) == path.read_bytes(), name


def test_data_is_in_it(wheel: zipfile.ZipFile) -> None:
    assert content(wheel) >= DATA
    assert wheel.read("hf_xlmr/demo/model.pt") == (CHECKOUT / "hf_xlmr" / "demo" / "model.pt").read_bytes()


def test_nothing_else_is_in_it(wheel: zipfile.ZipFile) -> None:
    """No tests, no notebooks, no caches: only sources, and the data that is named here."""
    data = {name for name in content(wheel) if not name.endswith(".py")}
    assert data == DATA
    assert all(name.startswith("hf_xlmr/") for name in content(wheel))
    from test_packages import SOURCES

    assert sum(name.endswith(".py") for name in content(wheel)) == len(SOURCES)


def test_it_takes_one_name_in_site_packages(wheel: zipfile.ZipFile) -> None:
    """A `conversion` at the top would be overwritten by any other package of that name, without a word from pip."""
    assert record(wheel, "top_level.txt").decode().split() == ["hf_xlmr"]
    assert {name.split("/")[0] for name in content(wheel)} == {"hf_xlmr"}


def test_it_is_of_python_alone(wheel: zipfile.ZipFile) -> None:
    assert b"Root-Is-Purelib: true" in record(wheel, "WHEEL")
    assert str(wheel.filename).endswith(f"hf_xlmr-{__version__}-py3-none-any.whl")


def test_it_is_small(wheel: zipfile.ZipFile) -> None:
    demo = [info.file_size for info in wheel.infolist() if info.filename.startswith("hf_xlmr/demo/")]
    assert len(demo) == len(DEMO) and sum(demo) < LARGEST_DEMO
    assert Path(str(wheel.filename)).stat().st_size < LARGEST_WHEEL


def test_the_program_and_the_facts_about_it(wheel: zipfile.ZipFile) -> None:
    points = ConfigParser()
    points.read_string(record(wheel, "entry_points.txt").decode())
    assert dict(points["console_scripts"]) == {"hf-xlmr": "hf_xlmr.cli:run"}
    facts = metadata(wheel)
    assert (facts["Name"], facts["Version"]) == ("hf-xlmr", __version__)
    assert facts["License-Expression"] == "MIT" or facts["License"] == "MIT"
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_what_is_imported_is_required(wheel: zipfile.ZipFile) -> None:
    """Every package that some line of the sources imports is among the requirements."""
    from test_packages import SOURCES, imports_in

    providers = {"google": "protobuf", "markdown_it": "markdown-it-py", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    names = {each.name.split(".")[0] for module in SOURCES for each in imports_in(module)}
    outside = {providers.get(name, name) for name in names - {"hf_xlmr", *sys.stdlib_module_names}}
    others = "extra == .(benchmarks|docs|test)"  # are of examples, benchmarks and tests, not of the sources
    required = [line for line in metadata(wheel).get_all("Requires-Dist", []) if not re.search(others, line)]
    listed = {"".join(each if each.isalnum() or each in "-_" else " " for each in line).split()[0] for line in required}
    assert outside <= listed


def test_from_the_wheel_alone_the_demo_is_inspected(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked in an empty folder that comes before everything installed."""
    wheel.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in repr(each).lower()]\n"
        "from hf_xlmr.conversion import convert, converting\n"
        "print(converting.__file__); print(convert('demo', 'out', verify=False).class_name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(tmp_path / "site" / "hf_xlmr" / "conversion" / "converting.py"),
        "XLMRobertaForMaskedLM",
    ]
