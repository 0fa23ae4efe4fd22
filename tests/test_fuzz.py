"""A short run of the fuzzer and of the kills, proofs that both can find something, and faults of disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import kills
import pytest
from factory import Checkpoint, E
from fuzzing.apart import run_apart
from fuzzing.doors import DOORS
from fuzzing.run import CONVERTED_PART, Runner, shares, table, warm
from fuzzing.seeds import KINDS, OF_DOORS, mutant, sources
from warm_processes import run

from hf_xlmr.conversion import convert, inspect
from hf_xlmr.conversion.checkpoint import weights as weights_module
from hf_xlmr.errors import InputError, IntegrityError

INPUTS = 600  # `make fuzz` tries 100,000
KILLS = 6
SHM = Path("/dev/shm")


# ---- fuzzing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: the inputs are many."""
    if not SHM.is_dir():
        yield tmp_path
        return
    made = SHM / f"hf-xlmr-{os.getpid()}-{tmp_path.name}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_documented_errors(kind: str, folder: Path) -> None:
    result = Runner(folder, seed=0, convert=convert, inspect=inspect).run(kind, range(shares(INPUTS)[kind]))
    assert not result.findings, "\n".join(finding.details for finding in result.findings)
    assert sum(result.outcomes.values()) == result.inputs
    assert result.outcomes["converted"] + result.outcomes["inspected"] > 0, "not all of it is nonsense"
    assert result.outcomes["InputError"] + result.outcomes["IntegrityError"] > 0, "nor is all of it whole"


@pytest.mark.parametrize("kind", OF_DOORS)
def test_damaged_single_files_end_in_documented_errors_and_in_no_death(kind: str, folder: Path) -> None:
    warm(folder, [kind])  # which also shows that what is whole is taken
    runner = Runner(folder, seed=0, convert=convert, inspect=inspect)
    result = run_apart(runner, kind, range(shares(INPUTS)[kind]))
    assert not result.findings, "\n".join(finding.details for finding in result.findings)
    assert sum(result.outcomes.values()) == result.inputs == shares(INPUTS)[kind]
    assert result.outcomes["read"] > 0, "not all of it is nonsense"
    assert result.outcomes["InputError"] + result.outcomes["IntegrityError"] > 0, "nor is all of it whole"


def abort(given: Path) -> None:
    if len((given / "texts.parquet").read_bytes()) % 3 == 1:
        os.abort()


def never_come_back(given: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGPROF])
    while len((given / "texts.parquet").read_bytes()) % 3 == 1:
        pass


@pytest.mark.parametrize(("door", "told"), [(abort, "died of SIGABRT"), (never_come_back, "died of SIGXCPU")])
def test_a_death_is_found_and_the_rest_is_tried(
    door: Callable[[Path], None], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = [n for n in range(12) if len(mutant("parquet", n, 0).files["m/texts.parquet"]) % 3 == 1]
    inputs = range(hit[0], hit[0] + 2) if door is never_come_back else range(12)
    expected = [n for n in hit if n in inputs]
    monkeypatch.setattr("fuzzing.run.DOORS", {**DOORS, "parquet": door})
    monkeypatch.setattr("fuzzing.run.SECONDS", 1)
    result = run_apart(Runner(folder, seed=0, convert=convert, inspect=inspect), "parquet", inputs)
    assert [finding.number for finding in result.findings] == expected != []
    assert all(told in finding.reason for finding in result.findings)
    assert (result.inputs, result.outcomes["read"]) == (len(inputs), len(inputs) - len(expected))


def test_every_seed_is_whole(folder: Path) -> None:
    """Else the fuzzer would never come far."""
    for name, source in sources().items():
        given = source.write(folder / name)
        options: dict[str, Any] = {"verify": False}
        assert convert(given, folder / name / "out", **options).parameters > 0


def test_the_same_seed_gives_the_same_inputs() -> None:
    for kind in (*KINDS, *OF_DOORS):
        assert mutant(kind, 7, 0) == mutant(kind, 7, 0)
        assert mutant(kind, 7, 0) != mutant(kind, 8, 0) != mutant(kind, 8, 1)


def key_error(given: Path) -> None:
    raise KeyError("x") if b"#fairseq:overwrite" in (given / "dict.txt").read_bytes() else InputError("no")


def hang(given: Path) -> None:
    while (given / "dict.txt").stat().st_size % 7 == 3:
        pass


def litter(given: Path) -> None:
    (given.parent / "out").mkdir()
    raise IntegrityError("after a folder")


def hoard(given: Path) -> None:
    block = bytearray(600_000_000)
    block[::4096] = b"x" * len(block[::4096])
    raise InputError("too late")


@pytest.mark.parametrize(
    ("bug", "reason", "inputs"),
    [(key_error, "KeyError", 200), (hang, "Hang", 60), (litter, "the folder holds", 3), (hoard, "a peak of", 2)],
)
def test_a_planted_bug_is_found(
    bug: Callable[[Path], None], reason: str, inputs: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzzing.run.SECONDS", 1 if bug is hang else 60)

    def broken(given: Path, *_more: object, **_named: object) -> None:
        bug(given)

    runner = Runner(folder, seed=0, convert=broken, inspect=broken)
    found = []
    for number in range(0, inputs, 1):
        result = runner.run("dict", range(number, number + 1))
        found += [finding.reason for finding in result.findings if reason in finding.reason]
        if found:
            break
    assert found and reason in found[0]


def test_the_table_counts_all_inputs(folder: Path) -> None:
    def broken(given: Path, *_more: object, **_named: object) -> None:
        raise ValueError("x")

    runner = Runner(folder, seed=0, convert=broken, inspect=broken)
    lines = table([runner.run("dict", range(4)), runner.run("labels", range(3))]).splitlines()
    assert lines[-1].startswith("| all | 7 | 0 | 0 | 0 | 0 | 0 | 7 |")
    assert CONVERTED_PART > 1


def test_the_command_saves_what_it_finds(tmp_path: Path) -> None:
    """Run as a command, with a reader that has a bug."""
    program = Path(kills.__file__).parent / "fuzzing" / "run.py"
    planted = tmp_path / "sitecustomize.py"
    planted.write_text(
        "import hf_xlmr.tokenizer.dictionary as d\n"
        "def parse(content, *, name, **options):\n"
        "    raise KeyError(name)\n"
        "d.Dictionary.parse = staticmethod(parse)\n"
    )
    command = [sys.executable, program, "--kind", "labels", "--count", "2", "--findings", tmp_path / "found"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "| labels | 2 | 0 | 0 | 0 | 0 | 0 | 2 |" in done.stdout
    assert "KeyError" in (tmp_path / "found" / "labels-0" / "reason.txt").read_text()
    assert (tmp_path / "found" / "labels-0" / "m" / "dict.txt").is_file()


# ---- kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convert, over another", "export, over another"])
def test_kills_leave_all_or_nothing(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in kills.CASES if case.name == name)
    tally = kills.kill_often(case, KILLS, tmp_path, Random(0))
    assert tally.faults == []
    assert tally.kills > KILLS // 2
    assert tally.left["old"] > 0


def test_a_kill_that_leaves_half_a_model_would_be_seen(tmp_path: Path) -> None:
    case = kills.CASES[0]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert kills._faults(kills._state(tmp_path / "out", new={"config.json": "x"}, old=None), case) != []


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Checkpoint().write(tmp_path / "source")


def sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(not SHM.is_dir(), reason="there is no second file system, /dev/shm")
@pytest.mark.parametrize("packed", [False, True])
def test_an_output_on_another_file_system(packed: bool, source: Path, folder: Path, tmp_path: Path) -> None:
    """Nothing is renamed across: the draft lies beside the output, whatever the temporary folder is."""
    assert folder.stat().st_dev != tmp_path.stat().st_dev or tmp_path.is_relative_to(SHM)
    given = source
    if packed:
        given = tmp_path / "source.tar.gz"
        with tarfile.open(given, "w:gz") as archive:
            archive.add(source, "source")
    convert(given, folder / "out", verify=False)
    convert(given, folder / "out", verify=False, overwrite=True)
    convert(source, tmp_path / "here", verify=False)
    assert sizes(folder / "out").keys() == sizes(tmp_path / "here").keys()
    weights = "model.safetensors"
    assert (folder / "out" / weights).read_bytes() == (tmp_path / "here" / weights).read_bytes()
    assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KB, where the system lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("spare", [0, 1 << 40], ids=["asked first", "found out"])
def test_a_full_disk_loses_nothing(
    spare: int, source: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both where the room is counted before, and where it turns out to be less."""
    old = small_disk / "out"
    old.mkdir()
    (old / "config.json").write_text("{}")
    if spare:
        monkeypatch.setattr(
            "hf_xlmr.conversion.converting.shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(spare, 0, spare)
        )
    with pytest.raises(InputError, match="free" if not spare else "No space left on device"):
        convert(source, old, verify=False, overwrite=True)
    assert sizes(small_disk) == {"out/config.json": 2}
    monkeypatch.undo()
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    convert(source, old, verify=False, overwrite=True)
    assert (old / "model.safetensors").is_file() and [path.name for path in small_disk.iterdir()] == ["out"]


LIMITED = """
import resource, signal, sys
from hf_xlmr.cli.program import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["hf-xlmr", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize("most", [0, 300, 20_000])
@pytest.mark.parametrize("command", ["convert", "export"])
def test_a_file_that_cannot_grow_loses_nothing(command: str, most: int, source: Path, tmp_path: Path) -> None:
    """What a full disk does, without a disk of one's own: writing fails at some byte, early or in the weights."""
    if command == "export":
        convert(source, tmp_path / "model", verify=False)
        source = tmp_path / "model"
    mark = {"convert": "config.json", "export": "model.pt"}[command]
    old = tmp_path / "home" / "out"
    old.mkdir(parents=True)
    (old / mark).write_text("{}")
    more = ["--no-verify"] if command == "convert" else []
    program = [sys.executable, "-c", LIMITED, str(most), command, source, old, "--overwrite", "--quiet", *more]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr and len(done.stderr.splitlines()) == 1
    assert sizes(tmp_path / "home") == {f"out/{mark}": 2}


def failing_at(position: int, error: Callable[[], int]) -> Callable[..., int]:
    real = os.preadv

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        reached = offset <= position < offset + sum(map(len, buffers))
        is_source = Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".pt"
        return error() if reached and is_source else real(descriptor, buffers, offset)

    return read


def bad_block() -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the files behind descriptors are not told")
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(("error", "told"), [(bad_block, "could not be read"), (lambda: 0, "became shorter")])
def test_a_block_that_cannot_be_read_is_damage(
    error: Callable[[], int], told: str, part: float, is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dying disk answers, and as a file does that somebody cuts off meanwhile."""
    checkpoint = Checkpoint()
    source = checkpoint.write(tmp_path / "source", is_zip=is_zip)
    # in the embeddings: elsewhere a block may be one that nobody needs
    embeddings = checkpoint.model[f"{E}embed_tokens.weight"].numpy().tobytes()
    position = (source / "model.pt").read_bytes().index(embeddings) + int(len(embeddings) * part)
    monkeypatch.setattr(weights_module.os, "preadv", failing_at(position, error))
    (tmp_path / "home").mkdir()
    with pytest.raises(IntegrityError, match=told) as caught:
        convert(source, tmp_path / "home" / "out", verify=False)
    assert caught.value.exit_code == 1 and len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "home").iterdir()) == []


CUT = """
import sys
from contextlib import nullcontext
from pathlib import Path
from hf_xlmr.conversion import convert
from hf_xlmr.errors import HfXlmrError

source, output, kept = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

class Cutting:
    blocks = 0
    def task(self, label, *, total=None):
        return nullcontext(self)
    def advance(self, amount):
        self.blocks += 1
        if self.blocks == 5:
            file = source / "model.pt"
            with file.open("r+b") as opened:
                opened.truncate(int(file.stat().st_size * kept))
try:
    convert(source, output, verify=False, progress=Cutting())
except HfXlmrError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("is_transposed", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_source_that_is_cut_while_it_is_read(kept: float, is_transposed: bool, is_zip: bool, tmp_path: Path) -> None:
    """Also where its weights are mapped: touching a page that is gone must not end the process by a signal."""
    checkpoint = Checkpoint()
    if is_transposed:
        checkpoint.model.update(
            {name: tensor.t().contiguous().t() for name, tensor in checkpoint.model.items() if tensor.dim() == 2}
        )
    source = checkpoint.write(tmp_path / "source", is_zip=is_zip)
    (tmp_path / "home").mkdir()
    done = run([sys.executable, "-c", CUT, source, tmp_path / "home" / "out", str(kept)])
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "home").iterdir()) == []
