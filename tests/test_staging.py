"""A folder appears when it is whole, an old one goes when the new one is there, and leftovers of killed runs go too."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from factory import ROWS, Checkpoint
from patience import PATIENCE
from safetensors.torch import load_file

from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError, IntegrityError, WeightsMismatch
from hf_xlmr.files.staging import staged_folder

# A conversion in a process of its own that stops at a chosen place: it says so, and waits for its input to end.
HARNESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from contextlib import nullcontext
from hf_xlmr.conversion import convert
from hf_xlmr.files import staging
from hf_xlmr.errors import HfXlmrError

source, output, place, overwrite = sys.argv[1:]

def stop():
    print("here", flush=True)
    sys.stdin.read()

def stopping(function, *, before):
    def wrapped(*given, **named):
        if before:
            stop()
        result = function(*given, **named)
        if not before:
            stop()
        return result
    return wrapped

class Watch:
    blocks = 0
    def task(self, label, *, total=None):
        return nullcontext(self)
    def advance(self, amount):
        self.blocks += 1
        if place == "in the weights" and self.blocks == 9:
            stop()

if place == "after the last look":
    look, looks = staging._raise_if_taken, []
    def looking(*given, **named):
        look(*given, **named)
        looks.append(1)
        if len(looks) == 2:
            stop()
    staging._raise_if_taken = looking
elif place == "before the name is given":
    staging._publish = stopping(staging._publish, before=True)
elif place == "after the name is given":
    staging._publish = stopping(staging._publish, before=False)
elif place == "between the renames":
    staging._exchange = lambda one, other: False
    staging.Path.rename = stopping(staging.Path.rename, before=False)
try:
    convert(source, output, verify=False, overwrite=overwrite == "overwrite", progress=Watch())
except HfXlmrError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Checkpoint().write(tmp_path / "source")


def other_source(tmp_path: Path) -> Path:
    checkpoint = Checkpoint()
    checkpoint.model = type(checkpoint.model)((name, tensor + 1) for name, tensor in checkpoint.model.items())
    return checkpoint.write(tmp_path / "other-source")


def broken_source(tmp_path: Path) -> Path:
    """Damage that shows only in the weights, after the draft has been begun."""
    folder = Checkpoint().write(tmp_path / "broken")
    last = Checkpoint().model["encoder.lm_head.bias"].numpy().tobytes()
    assert len(last) == ROWS * 4
    data = bytearray((folder / "model.pt").read_bytes())
    data[data.index(last)] ^= 1
    (folder / "model.pt").write_bytes(data)
    return folder


@contextmanager
def stopped(source: Path, output: Path, place: str, *, overwrite: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A conversion that has come to `place` and waits there."""
    arguments = [sys.executable, "-c", HARNESS, str(source), str(output), place, "overwrite" if overwrite else ""]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(arguments, text=True, cwd=source.parent, **pipes) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line == "here\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def killed(source: Path, output: Path, place: str, *, overwrite: bool = False) -> None:
    with stopped(source, output, place, overwrite=overwrite) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def stamp(path: Path) -> tuple[int, ...]:
    """Of the file itself, all but when it was read."""
    found = path.lstat()
    return (
        found.st_mode,
        found.st_ino,
        found.st_nlink,
        found.st_uid,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def scratches(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.hf-xlmr-*"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where outputs go, and nothing else."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


# ---- what is there already -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a model", "an empty folder", "a file", "a link", "a dead link"])
def test_what_exists_is_refused_and_untouched(kind: str, source: Path, home: Path) -> None:
    output = home / "out"
    make(kind, output, source)
    before = names(home), stamp(output), contents(output) if output.is_dir() else None
    with pytest.raises(InputError, match="exists; choose another folder, or pass overwrite=True") as caught:
        convert(source, output, verify=False)
    assert caught.value.exit_code == 2
    assert (names(home), stamp(output), contents(output) if output.is_dir() else None) == before


def make(kind: str, output: Path, source: Path) -> None:
    if kind == "a model":
        convert(source, output, verify=False)
    elif kind == "an empty folder":
        output.mkdir()
    elif kind == "a folder of somebody's":
        output.mkdir()
        (output / "letters.txt").write_text("dear")
    elif kind == "a file":
        output.write_text("precious")
    elif kind == "a link":
        convert(source, output.with_name("target"), verify=False)
        output.symlink_to("target")
    elif kind == "a dead link":
        output.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a folder of somebody's", "does not look like what is written here"),
        ("a file", "is not a folder"),
        ("a link", "is not a folder"),
        ("a dead link", "is not a folder"),
    ],
)
def test_overwrite_replaces_nothing_but_models(kind: str, message: str, source: Path, home: Path) -> None:
    output = home / "out"
    make(kind, output, source)
    before = names(home), stamp(output)
    with pytest.raises(InputError, match=message):
        convert(source, output, overwrite=True, verify=False)
    assert (names(home), stamp(output)) == before


def test_overwrite_takes_an_empty_folder(source: Path, home: Path) -> None:
    (home / "out").mkdir()
    convert(source, home / "out", overwrite=True, verify=False)
    assert (home / "out" / "config.json").is_file() and names(home) == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwrite_replaces_the_whole_model(
    can_exchange: bool, source: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one exchange where the system has it, in two renames where it has not; nothing of the old one stays."""
    if not can_exchange:
        monkeypatch.setattr("hf_xlmr.files.staging._exchange", lambda one, other: False)
    convert(source, home / "out", verify=False, max_shard_size="4KB")
    (home / "out" / "mine.txt").write_text("added by hand")
    convert(other_source(tmp_path), home / "new", verify=False)
    convert(tmp_path / "other-source", home / "out", overwrite=True, verify=False)
    assert contents(home / "out") == contents(home / "new")
    assert names(home) == ["new", "out"]


def test_a_failing_conversion_leaves_the_old_model(source: Path, home: Path, tmp_path: Path) -> None:
    convert(source, home / "out", verify=False)
    before, stamp = contents(home / "out"), (home / "out").stat()
    with pytest.raises(IntegrityError, match="checksum"):
        convert(broken_source(tmp_path), home / "out", overwrite=True, verify=False)
    assert contents(home / "out") == before
    assert ((home / "out").stat().st_ino, (home / "out").stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    assert names(home) == ["out"]


@pytest.mark.parametrize("inside", ["", "..", "../.."])
def test_the_folder_of_the_checkpoint_is_never_replaced(inside: str, tmp_path: Path) -> None:
    """Even if it looks like a model's folder, as one with a config.json of its own does."""
    folder = Checkpoint().write(tmp_path / "a" / "b" / "source")
    output = Path(os.path.normpath(folder / inside))
    (output / "config.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds the checkpoint itself"):
        convert(folder, output, overwrite=True, verify=False)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("packing", ["w", "w:gz", "w:xz"])
def test_nor_is_that_of_an_archive(packing: str, source: Path, home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "config.json").write_text("{}")
    with tarfile.open(home / "out" / "model.tar", packing) as archive:
        archive.add(source, "model")
    before = contents(home)
    with pytest.raises(InputError, match="holds the checkpoint itself"):
        convert(home / "out" / "model.tar", home / "out", overwrite=True, verify=False)
    assert contents(home) == before


def test_nor_is_that_of_links_to_a_checkpoint(source: Path, home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "config.json").write_text("{}")
    (home / "out" / "model.pt").symlink_to(source / "model.pt")
    (home / "out" / "dict.txt").write_bytes((source / "dict.txt").read_bytes())
    before = contents(home)
    with pytest.raises(InputError, match="holds the checkpoint itself"):
        convert(home / "out", home / "out", overwrite=True, verify=False)
    assert contents(home) == before


def test_nor_by_way_of_a_link(tmp_path: Path) -> None:
    folder = Checkpoint().write(tmp_path / "real" / "source")
    (folder / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("real")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds the checkpoint itself"):
        convert(folder, tmp_path / "link" / "source", overwrite=True, verify=False)
    with pytest.raises(InputError, match="holds the checkpoint itself"):
        convert(tmp_path / "link" / "source", folder, overwrite=True, verify=False)
    assert contents(tmp_path) == before


def test_inside_of_the_source_is_a_place_like_any_other(source: Path) -> None:
    convert(source, source / "converted", verify=False)
    assert names(source) == ["converted", "dict.txt", "model.pt"]


def test_parents_are_made(source: Path, home: Path) -> None:
    convert(source, home / "a" / "b" / "out", verify=False)
    assert (home / "a" / "b" / "out" / "config.json").is_file()
    assert names(home / "a" / "b") == ["out"]


@pytest.mark.parametrize("output", ["out/", "./out", "x/../out", "ü [1]*?"])
def test_a_path_may_be_spelled_in_many_ways(
    output: str, source: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    convert(source, output, verify=False)
    assert (home / os.path.normpath(output) / "config.json").is_file()
    assert names(home) == [os.path.normpath(output)]


def test_a_file_among_the_parents_is_told(source: Path, home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        convert(source, home / "file" / "out", verify=False)
    assert names(home) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_permission_is_told(source: Path, home: Path) -> None:
    home.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        convert(source, home / "out", verify=False)
    home.chmod(0o700)


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_conversion_leaves_nothing(home: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="checksum"):
        convert(broken_source(tmp_path), home / "out", verify=False)
    assert names(home) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, WeightsMismatch])
def test_nothing_is_left_whatever_ends_the_block(error: type[BaseException], home: Path) -> None:
    with pytest.raises(error), staged_folder(home / "out") as draft:
        (draft / "half").write_text("written")
        raise error
    assert names(home) == []


def test_an_interrupted_program_leaves_nothing(source: Path, home: Path) -> None:
    with stopped(source, home / "out", "in the weights") as process:
        assert len(scratches(home)) == 1
        process.send_signal(signal.SIGINT)
        process.communicate("", timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert names(home) == []


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
sys.argv = ["hf-xlmr", *sys.argv[1:]]
from hf_xlmr.cli.program import main
main()
"""


def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(source: Path, home: Path) -> None:
    arguments = [sys.executable, "-c", FULL_DISK, "convert", str(source), str(home / "out"), "--no-verify"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=home, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("hf-xlmr: File too large")
    assert names(home) == []


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["in the weights", "before the name is given"])
def test_a_killed_run_leaves_no_output_and_the_next_one_clears_up(place: str, source: Path, home: Path) -> None:
    killed(source, home / "out", place)
    assert not (home / "out").exists()
    assert len(scratches(home)) == 1
    convert(source, home / "out", verify=False)
    assert names(home) == ["out"]
    assert load_file(home / "out" / "model.safetensors")


def test_a_run_killed_at_the_very_end_has_done_its_work(source: Path, home: Path) -> None:
    killed(source, home / "out", "after the name is given")
    convert(source, home / "whole", verify=False)
    assert contents(home / "out") == contents(home / "whole")
    with pytest.raises(InputError, match="exists"):
        convert(source, home / "out", verify=False)
    assert names(home) == ["out", "whole"]


@pytest.mark.parametrize("place", ["in the weights", "before the name is given"])
def test_a_killed_overwrite_leaves_the_old_model(place: str, source: Path, home: Path, tmp_path: Path) -> None:
    convert(source, home / "out", verify=False)
    before = contents(home / "out")
    killed(other_source(tmp_path), home / "out", place, overwrite=True)
    assert contents(home / "out") == before
    convert(tmp_path / "other-source", home / "out", overwrite=True, verify=False)
    assert names(home) == ["out"]


def test_a_run_killed_between_two_renames_is_mended_by_the_next(source: Path, home: Path, tmp_path: Path) -> None:
    """Where the system cannot exchange, the name is free for a moment; the old model is put back."""
    convert(source, home / "out", verify=False)
    before = contents(home / "out")
    killed(other_source(tmp_path), home / "out", "between the renames", overwrite=True)
    assert not (home / "out").exists()
    with pytest.raises(InputError, match="exists"):
        convert(tmp_path / "other-source", home / "out", verify=False)
    assert contents(home / "out") == before
    assert names(home) == ["out"]


def test_leftovers_of_other_outputs_are_left_to_them(source: Path, home: Path) -> None:
    killed(source, home / "out", "in the weights")
    (left,) = scratches(home)
    convert(source, home / "out2", verify=False)
    convert(source, home / "ou", verify=False)
    assert left.is_dir()


def test_a_scratch_folder_without_a_lock_is_cleared(source: Path, home: Path) -> None:
    """As a run leaves it that is killed between making the folder and locking it."""
    (home / ".out.hf-xlmr-abcdefgh").mkdir()
    convert(source, home / "out", verify=False)
    assert names(home) == ["out"]


# ---- side by side ----------------------------------------------------------------------------------------------------


def test_the_scratch_folder_of_a_live_run_is_left_alone(source: Path, home: Path) -> None:
    with stopped(source, home / "out", "in the weights") as process:
        (alive,) = scratches(home)
        convert(source, home / "out", verify=False)
        assert scratches(home) == [alive]
        assert (alive / "draft" / "model.safetensors").is_file()
        before = contents(home / "out")
        _output, errors = process.communicate("", timeout=PATIENCE)
    assert process.returncode == 2
    assert "exists; choose another folder" in errors and len(errors.splitlines()) == 1
    assert contents(home / "out") == before
    assert names(home) == ["out"]


@pytest.mark.parametrize("place", ["before the name is given", "after the last look"])
def test_a_model_that_another_run_made_meanwhile_is_not_replaced(
    place: str, source: Path, home: Path, tmp_path: Path
) -> None:
    with stopped(other_source(tmp_path), home / "out", place) as process:
        convert(source, home / "out", verify=False)
        before = contents(home / "out")
        _output, errors = process.communicate("", timeout=PATIENCE)
    assert process.returncode == 2
    assert "exists" in errors and len(errors.splitlines()) == 1
    assert contents(home / "out") == before
    assert names(home) == ["out"]


def test_two_overwrites_at_once_leave_the_last_one_whole(source: Path, home: Path, tmp_path: Path) -> None:
    with stopped(other_source(tmp_path), home / "out", "before the name is given", overwrite=True) as process:
        convert(source, home / "out", overwrite=True, verify=False)
        process.communicate("", timeout=PATIENCE)
    assert process.returncode == 0
    convert(tmp_path / "other-source", home / "alone", verify=False)
    assert contents(home / "out") == contents(home / "alone")
    assert names(home) == ["alone", "out"]


def test_a_file_that_is_called_like_a_scratch_folder_is_left_alone(source: Path, home: Path) -> None:
    (home / ".out.hf-xlmr-abcdefgh").write_text("somebody's")
    convert(source, home / "out", verify=False)
    assert (home / ".out.hf-xlmr-abcdefgh").read_text() == "somebody's"


def test_a_lock_held_by_anyone_is_respected(source: Path, home: Path) -> None:
    scratch = home / ".out.hf-xlmr-abcdefgh"
    scratch.mkdir()
    with (scratch / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        convert(source, home / "out", verify=False)
        assert names(home) == [scratch.name, "out"]
    convert(source, home / "out", overwrite=True, verify=False)
    assert names(home) == ["out"]


@pytest.mark.parametrize("round_number", range(3))
def test_of_two_conversions_to_one_place_exactly_one_wins(round_number: int, source: Path, home: Path) -> None:
    """Both are ready to give the name before either may."""
    place = "before the name is given"
    with stopped(source, home / "out", place) as first, stopped(source, home / "out", place) as second:
        assert len(scratches(home)) == 2
        outcomes: dict[int, str] = {}

        def finish(index: int, process: subprocess.Popen[str]) -> None:
            outcomes[index] = process.communicate("", timeout=PATIENCE)[1]

        threads = [threading.Thread(target=finish, args=pair) for pair in enumerate((first, second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    codes = sorted((first.returncode, second.returncode))
    assert codes == [0, 2], outcomes
    assert sorted(len(errors.splitlines()) for errors in outcomes.values()) == [0, 1]
    convert(source, home / "alone", verify=False)
    assert contents(home / "out") == contents(home / "alone")
    assert names(home) == ["alone", "out"]


def test_many_at_once_leave_one_whole_model(source: Path, home: Path) -> None:
    """Eight threads, which start together and clear up after each other."""
    results: list[str] = []
    ready = threading.Barrier(8)

    def run() -> None:
        ready.wait()
        try:
            convert(source, home / "out", verify=False)
            results.append("won")
        except InputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("won") == 1 and len(results) == 8
    assert all("exists" in result for result in results if result != "won")
    convert(source, home / "alone", verify=False)
    assert contents(home / "out") == contents(home / "alone")
    assert names(home) == ["alone", "out"]


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), KeyboardInterrupt()])
def test_without_an_exchange_a_failing_rename_gives_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that cannot swap two names in one step."""
    from hf_xlmr.files import staging

    output = tmp_path / "model"
    output.mkdir()
    (output / "config.json").write_text("old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "draft":
            raise error
        return rename(path, target)

    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)), staging.staged_folder(output, overwrite=True) as draft:
        (draft / "config.json").write_text("new")
    assert (output / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_neither_locks_nor_drafts_follow_or_empty_links(link: object, source: Path, home: Path, tmp_path: Path) -> None:
    """Somebody may have put them where an earlier run could have left its folder."""
    assert callable(link)
    (tmp_path / "precious").write_text("precious")
    scratch = home / ".out.hf-xlmr-abcdefgh"
    scratch.mkdir()
    link(tmp_path / "precious", scratch / "lock")
    (scratch / "draft").symlink_to(tmp_path)
    convert(source, home / "out", verify=False)
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / "source").is_dir()
    assert names(home) == [scratch.name, "out"]


def test_what_goes_wrong_in_a_draft_is_told_by_the_name_it_was_to_have(home: Path) -> None:
    for error in (OSError(28, "No space left on device"), IntegrityError("")):
        with pytest.raises(type(error)) as caught, staged_folder(home / "out") as draft:
            error.args = (*error.args, f"{draft}/a")
            if isinstance(error, OSError):
                error.filename = f"{draft}/a"
            raise error
        assert f"{home}/out/a" in str(caught.value) and "hf-xlmr-" not in str(caught.value)
