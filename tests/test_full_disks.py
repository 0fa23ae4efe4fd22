"""Every command that writes, where it cannot: one sentence, exit code 2, nothing half-made, and it can be repeated.

Room is wanting by a limit on the size of files, and on a small disk where the tests may mount one; permission in a
folder that another user owns, or the same. What is written is as open as any new file.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from factory import Checkpoint
from in_process import limited, run
from kills import contents
from places import FIXTURES
from small_tasks import write_xnli

from hf_xlmr.conversion import convert
from hf_xlmr.files.atomic_write import replace_keeping
from hf_xlmr.tasks.fitting.checkpoints import STATE, record_checkpoint
from hf_xlmr.tasks.training import FinetuningOptions, finetune

MODEL: Final = FIXTURES / "earlier" / "masked-lm"
PAGE: Final = 4096
REFUSALS: Final = ("File too large", "No space left", "make room", "bytes, and 4,096 are free")
NOBODY: Final = 65534
DISK: Final = 72 << 20  # conversions ask for 64 MB first


@dataclass(frozen=True)
class Given:
    """What commands are given, on a disk that has room."""

    source: Path
    converted: Path
    texts: Path
    data: Path
    trained: Path


@pytest.fixture(scope="module")
def opened() -> Iterator[Path]:
    """A folder that every user may look into, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def here(opened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are run from where every user may go back to."""
    monkeypatch.chdir(opened)


@pytest.fixture(scope="module")
def given(opened: Path, cache_folder: Path) -> Given:
    folder = opened / "given"
    folder.mkdir()
    source = Checkpoint().write(folder / "source")
    convert(source, folder / "converted", verify=False)
    (folder / "texts.txt").write_text("one text\nand another\n")
    data = write_xnli(folder / "data.tsv", 3, ("en",))
    finetune("xnli", str(MODEL), [data], folder / "trained", options=FinetuningOptions(max_steps=1, warmup=0, cpu=True))
    return Given(source, folder / "converted", folder / "texts.txt", Path(data), folder / "trained")


@dataclass(frozen=True)
class Case:
    """A command, what is there before it, and sizes of files at which it has to fail."""

    words: Callable[[Given], list[str | Path]]
    limits: tuple[int, ...]
    before: Callable[[Given, Path], object] = lambda _given, _place: None
    goes_on: bool = False
    """Whether what is left of it is gone on with."""


def copied(given: Given, place: Path) -> None:
    shutil.copytree(given.converted, place / "model")


def at_fault(given: Given, place: Path) -> None:
    copied(given, place)
    config = place / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": 0}, indent=2))


def trained(given: Given, place: Path) -> None:
    shutil.copytree(given.trained, place / "out")


def finetuning(given: Given, *more: str) -> list[str | Path]:
    short = ["--max-steps", "1", "--warmup", "0", "--cpu"]
    return ["finetune", "xnli", "--model", MODEL, "--train", given.data, "--output", "out", *short, *more]


CASES: Final = {
    "convert": Case(lambda given: ["convert", given.source, "out"], (64, 1000, 9000)),
    "export": Case(lambda _given: ["export", MODEL, "out"], (64, 1000, 30_000)),
    "to-sentence-transformers": Case(lambda _given: ["to-sentence-transformers", MODEL, "out"], (64, 5000, 30_000)),
    "verify --report": Case(
        lambda given: ["verify", given.source, "model", "--report", "page.html"], (64, 3000), before=copied
    ),
    "verify --record": Case(lambda given: ["verify", given.source, "model", "--record"], (64, 3000), before=copied),
    "doctor --fix": Case(lambda _given: ["doctor", "model", "--fix"], (64, 300), before=at_fault),
    "extract": Case(lambda given: ["extract", MODEL, given.texts, "out", "--device", "cpu"], (64,)),
    "evaluate": Case(
        lambda given: ["evaluate", "xnli", "--model", given.trained, "--data", given.data, "--output", "out", "--cpu"],
        (64, 350, 12_000),
    ),
    "finetune": Case(finetuning, (64, 1000, 30_000, 60_000), goes_on=True),
    "finetune --eval": Case(
        lambda given: finetuning(given, "--eval", str(given.data), "--resume"), (64, 500, 12_000), before=trained
    ),
}


def program(words: list[str | Path], place: Path) -> tuple[int, str]:
    """The program in this process, in a folder: its exit code, and what it said on stderr."""
    done = run(*words, *(["--quiet"] if words[0] in QUIET else []), cwd=place)
    return done.returncode, done.stderr


EXAMPLE: Final = Given(*[Path("x")] * 5)
QUIET: Final = {"convert", "export", "verify", "extract", "finetune", "evaluate"}


def prepared(case: Case, given: Given, place: Path) -> Path:
    place.mkdir()
    case.before(given, place)
    return place


@pytest.fixture(scope="module")
def usual(given: Given, opened: Path) -> Callable[[str], dict[str, str]]:
    """What a command leaves where there is room; it has then imported what another user may not read."""

    @cache
    def in_peace(name: str) -> dict[str, str]:
        place = prepared(CASES[name], given, Path(tempfile.mkdtemp(dir=opened)) / "usual")
        code, told = program(CASES[name].words(given), place)
        assert code == 0, told
        return contents(place)

    return in_peace


def check(case: Case, given: Given, usual: dict[str, str], place: Path, full: AbstractContextManager[object]) -> None:
    """Run a command without room, and then with it."""
    before = contents(prepared(case, given, place))
    with full:
        code, told = program(case.words(given), place)
    left = contents(place)
    assert code == 2, told
    (line,) = told.splitlines()
    assert line.startswith("hf-xlmr: ") and any(word in line for word in REFUSALS)
    if case.goes_on:
        assert {name.split("/")[1] for name in left} <= {"checkpoints"}
    else:
        assert all(left[name] in (before.get(name), usual.get(name)) for name in left), left.keys()
        assert before.keys() <= left.keys()
    is_begun = (place / "out" / "checkpoints" / "run.json").is_file()
    code, told = program([*case.words(given), *(["--resume"] if is_begun else [])], place)
    assert code == 0, told
    assert contents(place) == usual


@pytest.mark.parametrize(("name", "limit"), [(name, limit) for name, case in CASES.items() for limit in case.limits])
def test_where_a_file_cannot_get_larger(
    name: str, limit: int, given: Given, usual: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    check(CASES[name], given, usual(name), tmp_path / "place", limited(limit))


@contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """Leave so many bytes of a disk."""
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left)
    try:
        yield
    finally:
        (disk / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", CASES)
def test_on_a_disk_that_is_full(name: str, given: Given, usual: Callable[[str], dict[str, str]], disk: Path) -> None:
    check(CASES[name], given, usual(name), disk / "place", filled(disk, PAGE))


def test_a_file_that_is_kept_beside_its_successor_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old" * 200)
    for limit in (300, 1000):
        with limited(limit), pytest.raises(OSError, match="File too large") as caught:
            replace_keeping(path, b"new" * 500)
        assert str(caught.value.filename).startswith(str(path))
        assert contents(tmp_path).keys() == {"config.json"} and path.read_bytes() == b"old" * 200


def test_a_report_that_is_there_stays_where_another_cannot_be_written(given: Given, tmp_path: Path) -> None:
    copied(given, tmp_path)
    (tmp_path / "page.html").write_text("an earlier page")
    with limited(3000):
        code, told = program(["verify", given.source, "model", "--report", "page.html"], tmp_path)
    assert (code, told) == (2, "hf-xlmr: File too large (page.html)\n")
    assert (tmp_path / "page.html").read_text() == "an earlier page"


def test_what_a_conversion_in_the_cache_lacks_room_for_is_told_with_the_cache(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    words: list[str | Path] = ["extract", "demo", given.texts, "out", "--device", "cpu"]
    for limit in (64, 9000):
        with limited(limit):
            code, told = program(words, tmp_path)
        assert code == 2 and told.startswith(f"hf-xlmr: File too large ({tmp_path}/cache: conversion of demo"), told
        assert not (tmp_path / "out").exists()
    assert program(words, tmp_path) == (0, "")


# ---- permissions -----------------------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    usual = os.umask(mask)
    try:
        yield
    finally:
        os.umask(usual)


@pytest.mark.parametrize("mask", [0o077, 0o000])
@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_as_open_as_any_new_file(name: str, mask: int, given: Given, tmp_path: Path) -> None:
    """And what is replaced as open as it was."""
    place = prepared(CASES[name], given, tmp_path / "place")
    before = {path: path.stat().st_mode for path in place.rglob("*")}
    with umask(mask):
        code, told = program(CASES[name].words(given), place)
    assert code == 0, told
    for path in place.rglob("*"):
        usual = (0o777 if path.is_dir() else 0o666) & ~mask
        kept = before.get(path.with_name(path.name.removesuffix(".before-fix")))
        assert stat.S_IMODE(path.stat().st_mode) == (usual if kept is None else stat.S_IMODE(kept)), path


def test_checkpoints_are_too(tmp_path: Path) -> None:
    with umask(0o002):
        for name, mode in {STATE: 0o666, "model.safetensors": 0o600}.items():
            os.close(os.open(tmp_path / name, os.O_CREAT, mode))
        record_checkpoint(tmp_path)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o664}


def cache_for_all(home: Path) -> Path:
    """A cache that every user may write to, so that nothing else is refused than what a test is about."""
    (home / "cache").mkdir()
    (home / "cache").chmod(0o777)
    return home / "cache"


@contextmanager
def without_permission(*folders: Path) -> Iterator[None]:
    """Let folders be such in which this process may not write: as another user where it may become one."""
    is_root = os.geteuid() == 0
    for folder in folders:
        folder.chmod(0o755 if is_root else 0o555)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("name", CASES)
def test_a_place_where_nothing_may_be_written_is_told(
    name: str, given: Given, usual: Callable[[str], dict[str, str]], opened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that OUTPUT would be in."""
    case, home = CASES[name], Path(tempfile.mkdtemp(dir=opened))
    home.chmod(0o755)
    usual(name)
    monkeypatch.setenv("HF_XLMR_CACHE", str(cache_for_all(home)))
    place = prepared(case, given, home / "place")
    before = contents(place)
    with without_permission(place, *(path for path in place.iterdir() if path.is_dir())):
        code, told = program(case.words(given), place)
    assert code == 2, told
    (line,) = told.splitlines()
    assert line.startswith("hf-xlmr: ") and ("Permission denied" in line or "another user" in line), line
    assert contents(place) == before and {path.name for path in place.iterdir()} == {
        name.split("/")[0] for name in before
    }


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "out" in case.words(EXAMPLE)])
def test_an_output_of_another_user_is_told(
    name: str, given: Given, usual: Callable[[str], dict[str, str]], opened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, home = CASES[name], Path(tempfile.mkdtemp(dir=opened))
    home.chmod(0o755)
    usual(name)
    monkeypatch.setenv("HF_XLMR_CACHE", str(cache_for_all(home)))
    place = prepared(case, given, home / "place")
    place.chmod(0o777)
    (place / "out").mkdir(exist_ok=True)
    before = contents(place)
    with without_permission(place / "out"):
        code, told = program(case.words(given), place)
    assert code == 2, told
    (line,) = told.splitlines()
    assert line.startswith("hf-xlmr: ") and "out" in line
    assert contents(place) == before and (place / "out").is_dir()
