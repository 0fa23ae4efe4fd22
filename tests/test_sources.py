"""What `open_source` finds, takes, and refuses, on real folders and real archives."""

from __future__ import annotations

import bz2
import gzip
import importlib.resources
import io
import lzma
import os
import random
import shutil
import socket
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from refusals import refusal

from hf_xlmr.conversion.source.slices import FileSlice
from hf_xlmr.conversion.source.sources import SourceFiles, open_source
from hf_xlmr.errors import InputError, IntegrityError

MODEL = b"\x80\x02" + random.Random(0).randbytes(70_001)
FILES = {
    "model.pt": MODEL,
    "dict.txt": b"the 10\nof 9\n",
    "sentencepiece.bpe.model": b"pieces",
    "label/dict.txt": b"yes 2\nno 1\n",
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}
COMPRESSED = ["tar.gz", "tar.bz2", "tar.xz"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, for each test its own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def member(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    return header


def tar_bytes(files: dict[str, bytes], *traps: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format) as tar:
        for name, content in files.items():
            header = member(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        for trap in traps:
            tar.addfile(trap)
    return packed.getvalue()


def archive(path: Path, files: dict[str, bytes], *traps: tarfile.TarInfo) -> Path:
    ending = next(ending for ending in sorted(PACKERS, key=len, reverse=True) if path.name.endswith(ending))
    path.write_bytes(PACKERS[ending](tar_bytes(files, *traps)))
    return path


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def content(part: FileSlice | None) -> bytes | None:
    return None if part is None else part.read()


def contents(found: SourceFiles) -> dict[str, bytes | None]:
    assert len(found.checkpoint) == 1
    return {
        "model.pt": found.checkpoint[0].read(),
        "dict.txt": content(found.dictionary),
        "sentencepiece.bpe.model": content(found.sentencepiece),
        "label/dict.txt": content(found.labels),
    }


def contents_of(source: Path) -> dict[str, bytes | None]:
    with open_source(source) as found:
        return contents(found)


def checkpoint_names(source: Path) -> list[str]:
    with open_source(source) as found:
        return [part.path.name for part in found.checkpoint]


def damage(source: str | Path) -> str:
    with pytest.raises(IntegrityError) as caught, open_source(source):
        pass
    return str(caught.value)


# ---- folders


def test_a_folder_gives_its_four_files(tmp_path: Path) -> None:
    with open_source(fill(tmp_path / "xlmr.mine", FILES)) as found:
        assert (found.name, found.kind) == ("xlmr.mine", "folder")
        assert contents(found) == FILES


def test_a_source_may_be_a_string(tmp_path: Path) -> None:
    with open_source(str(fill(tmp_path / "run", FILES))) as found:
        assert contents(found) == FILES


def test_the_current_folder_has_its_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path / "run", FILES))
    with open_source(".") as found:
        assert found.name == "run"


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    with open_source(fill(tmp_path / "run", {"model.pt": MODEL})) as found:
        assert (found.dictionary, found.sentencepiece, found.labels) == (None, None, None)


def test_the_dictionary_of_a_classifier_is_found_in_input0(tmp_path: Path) -> None:
    files = {"model.pt": MODEL, "input0/dict.txt": b"inner 1\n"}
    with open_source(fill(tmp_path / "run", files)) as found:
        assert content(found.dictionary) == b"inner 1\n"
    with open_source(fill(tmp_path / "run", {"dict.txt": b"outer 1\n"})) as found:
        assert content(found.dictionary) == b"outer 1\n"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["sentencepiece.bpe.model", "spm.model", "a.model"], "sentencepiece.bpe.model"),
        (["sentencepiece.model", "spm.model"], "sentencepiece.model"),
        (["spm.model", "a.model"], "spm.model"),
        (["mine.model"], "mine.model"),
        (["a.model", "b.model"], None),
    ],
)
def test_the_sentencepiece_model_is_the_best_known_name_or_the_only_one(
    tmp_path: Path, names: list[str], chosen: str | None
) -> None:
    with open_source(fill(tmp_path / "run", {"model.pt": MODEL, **dict.fromkeys(names, b"pieces")})) as found:
        assert (found.sentencepiece.path.name if found.sentencepiece else None) == chosen


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.pt", "checkpoint_best.pt", "other.pt"], ["model.pt"]),
        (["checkpoint_best.pt", "checkpoint_last.pt", "checkpoint1.pt"], ["checkpoint_best.pt"]),
        (["checkpoint_last.pt", "checkpoint1.pt", "checkpoint2.pt"], ["checkpoint_last.pt"]),
        (["anything.pt"], ["anything.pt"]),
        (["model.pt", "model_part0.pt", "model_part1.pt"], ["model.pt"]),
        (["model.pt", "x-shard1.pt"], ["model.pt"]),
        (["checkpoint_best.pt", "model_part0.pt", "model_part1.pt"], ["model_part0.pt", "model_part1.pt"]),
        ([".model.pt", "mine.pt"], ["mine.pt"]),
    ],
)
def test_the_checkpoint_of_a_folder_is_the_one_that_is_meant(
    tmp_path: Path, names: list[str], chosen: list[str]
) -> None:
    assert checkpoint_names(fill(tmp_path / "run", dict.fromkeys(names, MODEL))) == chosen


@pytest.mark.parametrize("mark", ["-model_part-", "_part", "-shard"])
def test_parts_are_one_checkpoint_in_rank_order(tmp_path: Path, mark: str) -> None:
    names = [f"checkpoint_best{mark}{rank}.pt" for rank in range(12)]
    folder = fill(tmp_path / "run", dict.fromkeys(names, MODEL))
    assert checkpoint_names(folder) == names
    assert checkpoint_names(folder / names[5]) == names
    with open_source(folder / names[5]) as found:
        assert (found.name, found.kind) == ("checkpoint_best", "file")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run", {f"m-shard{rank}.pt": MODEL for rank in (0, 1, 3)})
    assert "not m-shard2.pt" in refusal(folder)
    assert "not m-shard2.pt" in refusal(folder / "m-shard0.pt")


def test_one_rank_under_two_names_is_refused(tmp_path: Path) -> None:
    assert "part 1 twice" in refusal(
        fill(tmp_path / "run", dict.fromkeys(["m_part0.pt", "m_part1.pt", "m_part01.pt"], b"x"))
    )


def test_several_checkpoints_are_listed_not_guessed_at(tmp_path: Path) -> None:
    told = refusal(fill(tmp_path / "run", dict.fromkeys(["checkpoint1.pt", "checkpoint2.pt", "b-shard0.pt"], MODEL)))
    assert "b-shard0.pt, checkpoint1.pt, checkpoint2.pt" in told


def test_a_folder_around_the_folder_is_seen_through(tmp_path: Path) -> None:
    fill(tmp_path / "unpacked" / "xlmr.base", FILES)
    (tmp_path / "unpacked" / "notes.txt").touch()
    with open_source(tmp_path / "unpacked") as found:
        assert contents(found) == FILES


def test_of_two_inner_folders_none_is_guessed(tmp_path: Path) -> None:
    fill(fill(tmp_path / "both" / "a", FILES).parent / "b", FILES)
    assert "holds no checkpoint" in refusal(tmp_path / "both")


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint: model.pt" in refusal(tmp_path / "empty")


# ---- files


def test_a_file_comes_with_its_neighbours(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run", {**FILES, "checkpoint_7.pt": b"PK\x03\x04seven"})
    with open_source(folder / "checkpoint_7.pt") as found:
        assert (found.name, found.kind) == ("checkpoint_7", "file")
        assert contents(found) == {**FILES, "model.pt": b"PK\x03\x04seven"}


def test_a_file_needs_no_ending(tmp_path: Path) -> None:
    with open_source(fill(tmp_path / "run", {"weights.bin": MODEL}) / "weights.bin") as found:
        assert found.checkpoint[0].read() == MODEL


def test_links_are_followed_and_neighbours_are_those_of_the_link(tmp_path: Path) -> None:
    fill(tmp_path, {"blobs/abc": MODEL})
    folder = fill(tmp_path / "run", {"dict.txt": b"beside the link 1\n"})
    (folder / "model.pt").symlink_to(tmp_path / "blobs" / "abc")
    (tmp_path / "alias").symlink_to(folder)
    for source in (folder, folder / "model.pt", tmp_path / "alias"):
        with open_source(source) as found:
            assert found.checkpoint[0].read() == MODEL
            assert content(found.dictionary) == b"beside the link 1\n"


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"])
def test_a_checkpoint_is_no_archive_whatever_its_name(tmp_path: Path, start: bytes) -> None:
    with open_source(fill(tmp_path, {"odd.tar.gz": start + MODEL}) / "odd.tar.gz") as found:
        assert found.kind == "file"


# ---- what can neither be found nor read


@pytest.mark.parametrize("source", ["no/such/place", "", "a\0b", "https://host/xlmr.tar.gz"])
def test_a_source_that_is_nothing_is_told_with_names_that_there_are(source: str) -> None:
    told = refusal(source)
    assert "neither a file or folder" in told
    assert "a name such as demo or xlmr.base" in told


@pytest.mark.parametrize(
    ("meant", "name"),
    [("xlmr-base", "xlmr.base"), ("xlmr.larg", "xlmr.large"), ("xmod.base.13.125", "xmod.base.13.125k")],
)
def test_a_misspelt_name_is_told_with_the_nearest_one(meant: str, name: str) -> None:
    assert refusal(meant).endswith(f"did you mean {name}?")


def test_what_was_tried_is_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"tried {tmp_path}/mdoel.pt" in refusal("mdoel.pt")


def test_a_dangling_link_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    assert "a link that leads nowhere" in refusal(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.pt").symlink_to("nowhere")
    assert "cannot read" in refusal(tmp_path / "other")


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "cannot read" in refusal(tmp_path / "a")


def test_a_name_too_long_is_told() -> None:
    assert "cannot read" in refusal("x" * 5000)


def test_a_folder_in_place_of_the_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "model.pt").mkdir(parents=True)
    assert "model.pt is a folder, not a file" in refusal(tmp_path / "run")


def test_a_pipe_or_socket_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    assert "special file" in refusal(tmp_path)
    assert "special file" in refusal(tmp_path / "model.pt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.pt"))
        assert "special file" in refusal(tmp_path / "s.pt")
    assert "special file" in refusal("/dev/null")


@pytest.mark.parametrize("name", ["model.pt", "dict.txt", "sentencepiece.bpe.model", "label/dict.txt"])
def test_an_empty_file_is_told(tmp_path: Path, name: str) -> None:
    assert f"{name} is empty" in refusal(fill(tmp_path / "run", {**FILES, name: b""}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    (fill(tmp_path / "run", FILES) / "model.pt").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "run")


# ---- archives that are as they should be


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("home", ["xlmr.mine", ".", "./deep/er"])
def test_an_archive_gives_the_four_files_of_its_folder(tmp_path: Path, ending: str, home: str) -> None:
    path = archive(tmp_path / f"xlmr.mine.{ending}", under(home, FILES), member(f"{home}/", kind=tarfile.DIRTYPE))
    before = path.read_bytes()
    with open_source(path) as found:
        assert (found.name, found.kind) == ("xlmr.mine", "archive")
        assert contents(found) == FILES
    assert path.read_bytes() == before


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_dialect_is_read(tmp_path: Path, format: int) -> None:  # noqa: A002
    long = "/".join(["a_folder_of_a_long_name"] * (4 if format == tarfile.USTAR_FORMAT else 12))
    (tmp_path / "a.tar").write_bytes(tar_bytes(under(long, FILES), format=format))
    with open_source(tmp_path / "a.tar") as found:
        assert contents(found) == FILES


def test_a_tar_from_before_the_magic_word_is_known_by_its_checksum(tmp_path: Path) -> None:
    packed = bytearray(tar_bytes({"model.pt": MODEL}, format=tarfile.USTAR_FORMAT))
    packed[257:265] = bytes(8)
    packed[148:156] = b" " * 8
    packed[148:156] = b"%06o\0 " % sum(packed[:512])
    (tmp_path / "old").write_bytes(packed)
    with open_source(tmp_path / "old") as found:
        assert found.checkpoint[0].read() == MODEL


@pytest.mark.parametrize(("ending", "name"), [("tar", "a.pt"), ("tar.gz", "a.tar"), ("tar", "a.tar.gz"), ("tgz", "a")])
def test_the_content_tells_an_archive_not_its_name(tmp_path: Path, ending: str, name: str) -> None:
    archive(tmp_path / f"first.{ending}", FILES).rename(tmp_path / name)
    with open_source(tmp_path / name) as found:
        assert (found.name, found.kind) == ("a", "archive")
        assert contents(found) == FILES


def test_members_of_a_plain_tar_are_read_where_they_lie(tmp_path: Path, scratch: Path) -> None:
    path = archive(tmp_path / "a.tar", under("a", FILES))
    with open_source(path) as found:
        model = found.checkpoint[0]
        assert (model.path, model.length, model.name) == (path, len(MODEL), f"{path}:a/model.pt")
        assert path.read_bytes()[model.offset : model.offset + model.length] == MODEL
        assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("ending", COMPRESSED)
def test_what_was_unpacked_goes_away_at_exit_even_after_an_error(tmp_path: Path, ending: str) -> None:
    path, scratch = archive(tmp_path / f"a.{ending}", under("a", FILES)), tmp_path / "chosen"
    scratch.mkdir()
    with pytest.raises(ZeroDivisionError), open_source(path, scratch=scratch) as found:
        assert scratch in found.checkpoint[0].path.parents
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("first", [True, False])
def test_only_what_is_wanted_is_unpacked(tmp_path: Path, scratch: Path, first: bool) -> None:
    others = {"checkpoint_last.pt": b"last", "checkpoint3.pt": b"3", "README.md": b"text", "._model.pt": b"mac"}
    files = {**FILES, **others} if first else {**others, **FILES}
    with open_source(archive(tmp_path / "a.tar.gz", under("a", files))) as found:
        assert contents(found) == FILES
        unpacked = sorted(path.read_bytes() for path in scratch.rglob("*") if path.is_file())
        assert unpacked == sorted(FILES.values())


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_parts_in_an_archive_are_one_checkpoint(tmp_path: Path, ending: str) -> None:
    files = {f"a/model_part{rank}.pt": b"\x80%d" % rank for rank in (2, 0, 1)}
    with open_source(archive(tmp_path / f"a.{ending}", {"a/checkpoint_best.pt": b"\x80b", **files})) as found:
        assert [part.read() for part in found.checkpoint] == [b"\x800", b"\x801", b"\x802"]


def test_checkpoints_in_several_folders_are_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", {**under("one", FILES), **under("two", FILES)})
    assert "several folders (one/, two/)" in refusal(path)


def test_an_archive_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    assert "holds no checkpoint" in refusal(archive(tmp_path / "a.tar.gz", {"dict.txt": b"a 1\n"}))


def test_progress_counts_the_bytes_of_the_compressed_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", under("a", FILES))
    counter = Counter()
    with open_source(path, progress=counter):
        assert counter.told == [("unpacking a.tar.gz", path.stat().st_size)]
        assert counter.sum == path.stat().st_size


class Counter:
    def __init__(self) -> None:
        self.told: list[tuple[str, int | None]] = []
        self.sum = 0

    def task(self, label: str, *, total: int | None = None) -> AbstractContextManager[Counter]:
        self.told.append((label, total))
        return nullcontext(self)

    def advance(self, amount: int) -> None:
        self.sum += amount


# ---- archives that are traps


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    ("trap", "told"),
    [
        (member("../evil.pt"), "'../evil.pt' leaves"),
        (member("a/../../evil.txt"), "'a/../../evil.txt' leaves"),
        (member("/etc/evil"), "'/etc/evil' leaves"),
        (member("../", kind=tarfile.DIRTYPE), "leaves"),
        (member("a/out", kind=tarfile.SYMTYPE, link="/etc"), "'a/out' is a link to '/etc'"),
        (member("a/out", kind=tarfile.SYMTYPE, link="../../etc"), "is a link to '../../etc'"),
        (member("a/dict.txt", kind=tarfile.SYMTYPE, link="model.pt"), "is a link to 'model.pt'"),
        (member("a/dict.txt", kind=tarfile.LNKTYPE, link="a/model.pt"), "is a link to 'a/model.pt'"),
        (member("a/hard", kind=tarfile.LNKTYPE, link="/etc/passwd"), "is a link to '/etc/passwd'"),
        (member("a/null", kind=tarfile.CHRTYPE), "'a/null' is a device or pipe"),
        (member("a/disk", kind=tarfile.BLKTYPE), "'a/disk' is a device or pipe"),
        (member("a/pipe", kind=tarfile.FIFOTYPE), "'a/pipe' is a device or pipe"),
        (member("a/model.pt"), "'a/model.pt' twice"),
        (member("./a//model.pt"), "'a/model.pt' twice"),
        (member("a/spm.model", kind=tarfile.GNUTYPE_SPARSE), "stored sparse"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.type.decode()}-{value.name}",
)
def test_a_trap_has_the_archive_refused_and_nothing_left_behind(
    tmp_path: Path, scratch: Path, ending: str, trap: tarfile.TarInfo, told: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    path = archive(tmp_path / f"a.{ending}", {"a/model.pt": MODEL}, trap)
    message = refusal(path)
    assert "is refused" in message
    assert told in message
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])
    assert list(scratch.iterdir()) == []


def test_a_link_that_stays_inside_and_is_not_wanted_is_let_be(tmp_path: Path) -> None:
    link = member("a/latest", kind=tarfile.SYMTYPE, link="model.pt")
    with open_source(archive(tmp_path / "a.tar.gz", under("a", FILES), link)) as found:
        assert contents(found) == FILES


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("name", ["b.pt", "checkpoint_9.txt"])
@pytest.mark.parametrize("size", [b"\xff" * 11 + b"\x00", b"\x80" + b"\0" * 5 + b"\x7f" * 6, b"\x80" + b"\x7f" * 11])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_impossible_sizes_are_damage_and_do_not_hang(
    tmp_path: Path, ending: str, name: str, size: bytes, kind: bytes
) -> None:
    packed = bytearray(tar_bytes({"model.pt": b"x"}) + bytes(1024))
    header = bytearray(member(name, kind=kind).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    packed[1024:1536] = header
    (tmp_path / "a").write_bytes(PACKERS[ending](bytes(packed)))
    damage(tmp_path / "a")


# ---- archives that are damaged


@pytest.mark.parametrize("ending", PACKERS)
def test_a_truncated_archive_is_damage_wherever_it_ends(tmp_path: Path, scratch: Path, ending: str) -> None:
    whole = archive(tmp_path / f"whole.{ending}", under("a", FILES)).read_bytes()
    end = len(whole.rstrip(b"\0")) if ending == "tar" else len(whole)
    for cut in {end // 3, end // 2, end - 600, end - 5, end - 1}:
        (tmp_path / f"cut.{ending}").write_bytes(whole[:cut])
        assert "damaged" in damage(tmp_path / f"cut.{ending}"), cut
    assert list(scratch.iterdir()) == []


def test_what_a_cut_member_lacks_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(gzip.compress(tar_bytes({"a/model.pt": MODEL})[: 512 + 60_000]))
    assert f"'a/model.pt' lacks {len(MODEL) - 60_000:,} bytes" in damage(tmp_path / "cut")


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_cut_between_two_members_is_damage(tmp_path: Path, ending: str) -> None:
    first = len(tar_bytes({"model.pt": MODEL}).rstrip(b"\0"))
    cut = tar_bytes(FILES)[: first + -first % 512]
    (tmp_path / "cut").write_bytes(PACKERS[ending](cut))
    assert "damaged" in damage(tmp_path / "cut")


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_spoilt_header_is_damage_not_the_end(tmp_path: Path, ending: str) -> None:
    packed = bytearray(tar_bytes(FILES))
    at = packed.index(b"dict.txt")
    packed[at] ^= 1
    (tmp_path / "spoilt").write_bytes(PACKERS[ending](bytes(packed)))
    assert "damaged" in damage(tmp_path / "spoilt")


@pytest.mark.parametrize("at", [-8, -5, -4, -1])
def test_a_wrong_checksum_or_length_of_a_gzip_is_damage(tmp_path: Path, at: int) -> None:
    packed = bytearray(archive(tmp_path / "a.tar.gz", under("a", FILES)).read_bytes())
    packed[at] ^= 0x10
    (tmp_path / "a.tar.gz").write_bytes(packed)
    assert "damaged" in damage(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_flipped_bit_in_the_middle_is_damage(tmp_path: Path, ending: str) -> None:
    packed = bytearray(archive(tmp_path / f"a.{ending}", under("a", FILES)).read_bytes())
    packed[len(packed) // 2] ^= 0x10
    (tmp_path / f"a.{ending}").write_bytes(packed)
    damage(tmp_path / f"a.{ending}")


def test_a_gzip_of_several_streams_and_padding_is_whole_but_not_with_rubbish_after_it(tmp_path: Path) -> None:
    packed = tar_bytes(under("a", FILES))
    pieces = gzip.compress(packed[:30_000]) + gzip.compress(packed[30_000:])
    (tmp_path / "a.tgz").write_bytes(pieces + bytes(1000))
    with open_source(tmp_path / "a.tgz") as found:
        assert contents(found) == FILES
    (tmp_path / "a.tgz").write_bytes(pieces + b"rubbish")
    assert "damaged" in damage(tmp_path / "a.tgz")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_file_that_is_no_tar_is_told(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "model.pt.gz").write_bytes(pack(MODEL))
    assert "not a tar" in damage(tmp_path / "model.pt.gz")


def test_a_file_named_as_an_archive_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"<html>Not found</html>")
    assert "its content is none" in damage(tmp_path / "a.tar.gz")


# ---- room


def test_room_is_asked_for_before_a_member_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "a.tar.gz", under("a", FILES))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 500, 500))
    assert f"{len(MODEL):,} bytes are needed and 500 are free" in refusal(path)


def test_a_scratch_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", under("a", FILES))
    with pytest.raises(InputError, match="cannot unpack into"), open_source(path, scratch=tmp_path / "none"):
        pass


# ---- names


@pytest.fixture
def releases_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on this machine gives out as the address of the releases."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_XLMR_RELEASES_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "served"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_release_is_downloaded_unpacked_and_kept(releases_url: Path) -> None:
    archive(releases_url / "xlmr.base.tar.gz", under("xlmr.base", FILES))
    for _ in range(2):
        with open_source("xlmr.base") as found:
            assert (found.name, found.kind) == ("xlmr.base", "release")
            assert contents(found) == FILES
        (releases_url / "xlmr.base.tar.gz").unlink(missing_ok=True)


def test_a_damaged_release_in_the_cache_is_told_with_the_way_out(releases_url: Path, tmp_path: Path) -> None:
    whole = archive(releases_url / "xlmr.base.tar.gz", under("xlmr.base", FILES)).read_bytes()
    (releases_url / "xlmr.base.tar.gz").write_bytes(whole[:-100])
    assert f"Delete {tmp_path}/cache/xlmr.base.tar.gz" in damage("xlmr.base")
    assert (tmp_path / "cache" / "xlmr.base.tar.gz").exists()


@pytest.mark.parametrize("name", ["demo", "xlmr.base"])
def test_a_path_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fill(tmp_path / name, FILES)
    monkeypatch.chdir(tmp_path)
    with open_source(name) as found:
        assert found.kind == "folder"


def test_a_folder_that_hides_a_name_by_accident_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "the folder demo (not hf_xlmr's own of that name, since a path that exists comes first)" in refusal("demo")


@pytest.mark.parametrize("zipped", [False, True])
def test_the_demo_comes_out_of_the_package_even_a_zipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    files = {f"demo/{name}": content for name, content in FILES.items() if "/" not in name}
    fill(tmp_path / "package", files)
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as packed:
        for name, inner in files.items():
            packed.writestr(name, inner)
    root = zipfile.Path(tmp_path / "package.zip") if zipped else tmp_path / "package"
    monkeypatch.setattr(importlib.resources, "files", lambda package: root)
    monkeypatch.chdir(tmp_path)
    with open_source("demo") as found:
        assert (found.name, found.kind) == ("demo", "demo")
        assert contents(found) == {**FILES, "label/dict.txt": None}
    if zipped:
        root.root.close()  # type: ignore[union-attr]


def test_an_installation_without_the_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "has no demo" in refusal("demo")


# ---- dictionaries elsewhere


def test_the_dictionaries_of_a_data_folder_come_first(tmp_path: Path) -> None:
    source = fill(tmp_path / "run", FILES)
    data = fill(tmp_path / "data-bin", {"input0/dict.txt": b"theirs 1\n", "label/dict.txt": b"yes 1\n"})
    with open_source(source, data=data) as found:
        assert contents(found) == {**contents_of(source), "dict.txt": b"theirs 1\n", "label/dict.txt": b"yes 1\n"}


def test_a_data_folder_may_bring_the_pieces_too(tmp_path: Path) -> None:
    source = fill(tmp_path / "run", {"model.pt": MODEL})
    data = fill(tmp_path / "data-bin", {"dict.txt": b"theirs 1\n", "sentencepiece.bpe.model": b"pieces"})
    with open_source(source, data=data) as found:
        assert contents(found)["sentencepiece.bpe.model"] == b"pieces"


@pytest.mark.parametrize("held", [{}, {"other.txt": b"x"}])
def test_a_data_folder_without_a_dictionary_is_refused(held: dict[str, bytes], tmp_path: Path) -> None:
    source = fill(tmp_path / "run", FILES)
    (tmp_path / "data-bin").mkdir()
    for name in held:
        (tmp_path / "data-bin" / name).write_bytes(held[name])
    with pytest.raises(InputError, match="holds no dict"), open_source(source, data=tmp_path / "data-bin"):
        pass
    with pytest.raises(InputError, match="not a folder"), open_source(source, data=tmp_path / "none"):
        pass
