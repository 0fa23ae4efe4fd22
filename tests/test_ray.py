"""Actors of Ray make the same folder as a process alone, whoever dies meanwhile."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import extractions
import psutil
import pytest
import torch
from extractions import OPTIONS, texts_of, write
from kills import contents
from patience import PATIENCE, until

from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError
from hf_xlmr.features.bulk_extraction import extract
from hf_xlmr.features.on_ray import RayCluster, extract_on_ray
from hf_xlmr.progress import ProgressTask

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install hf-xlmr[ray])")
model = extractions.model
TEXTS = texts_of(95)
TWO = RayCluster(actors=2, cpus_per_actor=1)
FOLDER = "FOLDER_OF_THE_TEST"


@pytest.fixture(scope="module")
def place(cache_folder: Path) -> Iterator[Path]:
    """Where Ray has its sockets, whose paths may have some 100 characters."""
    with TemporaryDirectory(prefix="ray") as short, pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("HOME", short)  # newer releases of Ray put a token there
        patch.setenv("OMP_NUM_THREADS", "1")
        yield Path(short)


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[str]:
    """A Ray of the tests' own process, which an extraction does not end."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield "auto"
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("texts") / "texts.txt", TEXTS)


@pytest.fixture(scope="module")
def expected(model: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a process alone writes, with as many threads as an actor."""
    output, threads = tmp_path_factory.mktemp("plain") / "out", torch.get_num_threads()
    torch.set_num_threads(1)
    extract(model, source, output, options=OPTIONS)
    torch.set_num_threads(threads)
    return contents(output)


class Watched:
    """Progress that calls `at_first` when the first shard is done."""

    def __init__(self, at_first: Callable[[], object]) -> None:
        self.at_first: Callable[[], object] | None = at_first

    @contextmanager
    def task(self, label: str, *, total: int | None = None, unit: str = "bytes") -> Iterator[ProgressTask]:
        yield self

    def advance(self, amount: int, *, note: str = "") -> None:
        at_first, self.at_first = self.at_first, None
        if at_first:
            at_first()


# What a shell starts in the background ignores interrupts, and hands that on
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from hf_xlmr.cli.program import main; main()"
)


def started(place: Path, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """The program with a Ray of its own, and all of it in a new group of processes that inherit FOLDER."""
    environment = {**os.environ, FOLDER: str(place)}
    command = [*map(str, (sys.executable, "-c", INTERRUPTIBLE, "extract", *words, "--ray", "local", "--actors", "2"))]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)


def processes_in(place: Path) -> list[psutil.Process]:
    """The processes that the program left, by what they inherited."""
    return [each for each in psutil.process_iter() if inherited(each) == str(place)]


def inherited(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(FOLDER)
    except psutil.Error:
        return None


def actors() -> list[psutil.Process]:
    """The processes of the actors of this process's Ray, by the name that Ray gives them."""
    return [each for each in psutil.process_iter(["cmdline"]) if is_actor(each)]


def is_actor(process: psutil.Process) -> bool:
    return (process.info["cmdline"] or [""])[0].startswith("ray::ShardMaker")


@pytest.mark.parametrize("packed", [False, True], ids=["from the middle", "read once"])
def test_two_actors_make_the_same_bytes_as_a_process_alone(
    model: Path, source: Path, cluster: str, expected: dict[str, str], tmp_path: Path, packed: bool
) -> None:
    if packed:
        source = tmp_path / "texts.txt.gz"
        source.write_bytes(gzip.compress("".join(f"{text}\n" for text in TEXTS).encode()))
    report = extract_on_ray(model, source, tmp_path / "out", options=OPTIONS, cluster=TWO)
    assert contents(tmp_path / "out") == expected
    assert (report.rows, report.texts, report.shards) == (95, 95, 10)
    again = extract_on_ray(model, source, tmp_path / "out", options=OPTIONS, cluster=TWO, resume=True)
    assert (again.rows, again.texts, again.shards) == (95, 0, 0)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("killed", [1, 2])
def test_shards_of_an_actor_that_dies_are_made_again(
    model: Path, source: Path, cluster: str, expected: dict[str, str], tmp_path: Path, killed: int
) -> None:
    def kill() -> None:
        until(lambda: len(actors()) >= killed, otherwise="an actor did not start")
        for process in actors()[:killed]:
            process.kill()

    report = extract_on_ray(model, source, tmp_path / "out", options=OPTIONS, cluster=TWO, progress=Watched(kill))
    assert contents(tmp_path / "out") == expected
    assert report.rows == 95


def test_an_actor_that_always_dies_ends_the_run(
    model: Path, source: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_xlmr.features import ray_crew

    class Dying(ray_crew.ShardMaker):
        def make(self, number: int, rows: object = None) -> object:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_crew, "ShardMaker", Dying)
    with pytest.raises(InputError, match=r"actors of Ray died as they had to compute the 10 rows from row \d+ on"):
        extract_on_ray(model, source, tmp_path / "out", options=OPTIONS, cluster=RayCluster(cpus_per_actor=1))
    assert not (tmp_path / "out").exists()


def test_the_first_of_several_bad_rows_is_named_and_the_shards_before_it_are_kept(
    model: Path, cluster: str, expected: dict[str, str], source: Path, tmp_path: Path
) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    bad = tmp_path / "texts.txt"
    bad.write_bytes(b"".join(b"\xff\n" if number in (33, 36, 71) else line for number, line in enumerate(lines)))
    with pytest.raises(BadRow) as caught:
        extract_on_ray(model, bad, tmp_path / "out", options=OPTIONS, cluster=TWO)
    assert str(caught.value) == "texts.txt, line 34: byte 1 (0xFF) is not UTF-8"
    assert caught.value.place == "texts.txt, line 34"
    assert {f"part-0000{number}.parquet" for number in range(3)} <= contents(tmp_path / "out").keys()
    bad.write_bytes(source.read_bytes())
    extract_on_ray(model, bad, tmp_path / "out", options=OPTIONS, cluster=TWO, resume=True)
    assert contents(tmp_path / "out") == expected


def test_after_the_program_was_killed_nothing_runs_and_the_rest_is_made(
    model: Path, cluster: str, place: Path, tmp_path: Path
) -> None:
    source, output, plain = write(tmp_path / "texts.txt", texts_of(3000)), tmp_path / "out", tmp_path / "plain"
    words = (model, source, output, "--dtype", "float32", "--rows-per-shard", "10")
    with started(place, *words) as program:
        until((output / ".state" / "00001.json").exists, otherwise="no shard was made")
        program.kill()
    assert not (output / ".manifest.json").exists()
    until(lambda: not processes_in(place), otherwise="processes of Ray are left")
    report = extract_on_ray(model, source, output, options=OPTIONS, cluster=TWO, resume=True)
    assert 0 < report.texts < 3000
    extract(model, source, plain, options=OPTIONS)
    assert contents(output) == contents(plain)


def test_an_interrupt_ends_the_program_and_its_ray(model: Path, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = (model, "-", output, "--rows-per-shard", "2")
    with started(place, *words, stdin=subprocess.PIPE) as program:
        program.stdin.write(b"text\n" * 20)
        program.stdin.flush()
        until((output / ".state" / "00000.json").exists, otherwise="no shard was made")
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE) in (130, -signal.SIGINT)
        assert b"Traceback" not in program.stderr.read()
    until(lambda: not processes_in(place), otherwise="processes of Ray are left")


def test_a_head_that_is_lost_ends_the_program_which_says_how_to_go_on(model: Path, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = (model, "-", output, "--rows-per-shard", "2")
    with started(place, *words, stdin=subprocess.PIPE) as program:
        program.stdin.write(b"text\n" * 20)
        program.stdin.flush()
        until((output / ".state" / "00000.json").exists, otherwise="no shard was made")
        (head,) = (each for each in psutil.Process(program.pid).children(recursive=True) if each.name() == "gcs_server")
        head.kill()
        assert program.wait(PATIENCE) == 2
        told = program.stderr.read().decode()
    assert told.startswith("hf-xlmr: the connection to Ray's head (") and told.count("\n") == 1, told
    assert "the same command with --resume continues" in told
    until(lambda: not processes_in(place), otherwise="processes of Ray are left")


def test_the_work_of_a_node_that_is_lost_goes_to_the_others(
    model: Path, source: Path, expected: dict[str, str], place: Path, tmp_path: Path
) -> None:
    code = """
import sys
from ray.cluster_utils import Cluster
from test_ray import OPTIONS, RayCluster, Watched, actors, extract_on_ray, until
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)

def lose():
    until(lambda: len(actors()) == 2, otherwise="an actor did not start")
    cluster.remove_node(node, allow_graceful=False)

two = RayCluster(address=cluster.address, actors=2)
extract_on_ray(*sys.argv[1:4], options=OPTIONS, cluster=two, progress=Watched(lose))
cluster.shutdown()
"""
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, model, source, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == expected
