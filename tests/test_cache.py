"""Conversions that are kept: made for one user, found again by content, and never trusted further than their record."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from factory import OPTIONS, Checkpoint
from places import FIXTURES

from hf_xlmr import XLMR
from hf_xlmr.conversion import cache, convert, inspect
from hf_xlmr.conversion.cache import CachedModel, converted_once
from hf_xlmr.conversion.preview import shape_of
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError
from hf_xlmr.files.digests import sha256_of

WEIGHTS = "model/model.safetensors"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint; the cache is a folder that is not there yet."""
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "caches" / "mine"))
    return Checkpoint().write(tmp_path / "source")


@pytest.fixture
def made(source: Path) -> CachedModel:
    return converted_once(source)


def record_of(entry: Path) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = json.loads((entry / "sizes.json").read_text())
    return content


def test_the_folder_is_for_its_user_alone_and_the_record_names_every_file(made: CachedModel, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "caches" / "mine").stat().st_mode) == 0o700
    entry = made.folder.parent
    names = {path.relative_to(entry).as_posix() for path in entry.rglob("*") if path.is_file()}
    assert names == {*record_of(entry), "lock", "sizes.json"} and WEIGHTS in names


def test_what_is_as_it_was_made_is_found_without_being_read(
    source: Path, made: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cache.sha256_of

    def looked_at(path: Path) -> str:
        assert source in path.parents, f"{path} was read"
        return read(path)

    monkeypatch.setattr(cache, "sha256_of", looked_at)
    monkeypatch.setattr(cache, "convert", lambda *_given, **_named: pytest.fail("converted again"))
    assert converted_once(source) == made


@pytest.mark.parametrize("name", [WEIGHTS, "heads.safetensors", "model/config.json"])
def test_a_changed_byte_is_noticed_by_its_hash(name: str, source: Path, made: CachedModel) -> None:
    """Whatever its length: the file's time of change is not what was recorded."""
    path = made.folder.parent / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert converted_once(source) == made
    assert path.read_bytes() == whole


def test_a_file_that_took_the_place_of_another_is_noticed_too(source: Path, made: CachedModel) -> None:
    """With the size and time of the other: its inode is not what was recorded."""
    path = made.folder.parent / WEIGHTS
    whole, status = path.read_bytes(), path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(len(whole)))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert converted_once(source) == made
    assert path.read_bytes() == whole


def test_a_cache_that_was_copied_is_as_good(
    source: Path, made: CachedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is hashed once, and its record says so."""
    shutil.copytree(tmp_path / "caches" / "mine", tmp_path / "copy", copy_function=shutil.copy)
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "copy"))
    monkeypatch.setattr(cache, "convert", lambda *_given, **_named: pytest.fail("converted again"))
    entry = converted_once(source).folder.parent
    facts = {name: facts["facts"] for name, facts in record_of(entry).items()}
    assert facts == {name: cache._facts_of(entry / name) for name in facts} != record_of(made.folder.parent)


@pytest.mark.parametrize(
    "record", ["", "{}", "[]", "[" * 100_000, '{"model": 5}', '{"model": {"facts": [], "sha256": 1}}', "\ud800"]
)
def test_a_record_of_no_use_means_that_it_is_made_again(record: str, source: Path, made: CachedModel) -> None:
    path = made.folder.parent / "sizes.json"
    whole = json.loads(path.read_text()).keys()
    path.write_bytes(record.encode(errors="surrogatepass"))
    assert converted_once(source) == made and record_of(made.folder.parent).keys() == whole


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(
    link: object, source: Path, made: CachedModel, tmp_path: Path
) -> None:
    assert callable(link)
    (tmp_path / "precious").write_text("precious")
    entry = made.folder.parent
    (entry / "lock").unlink()
    link(tmp_path / "precious", entry / "lock")
    assert converted_once(source) == made, "what is whole needs no lock"
    (entry / "sizes.json").unlink()
    with pytest.raises(InputError, match=r"lock should be a lock file, but it is a link: remove it"):
        converted_once(source)
    assert (tmp_path / "precious").read_text() == "precious"
    (entry / "lock").unlink()
    assert converted_once(source) == made


def test_a_lock_with_content_is_not_emptied(source: Path, made: CachedModel) -> None:
    lock = made.folder.parent / "lock"
    lock.write_text("precious")
    (made.folder.parent / "sizes.json").unlink()
    with pytest.raises(InputError, match="not an empty file"):
        converted_once(source)
    assert lock.read_text() == "precious"


def test_a_record_that_is_a_link_is_replaced_not_followed(source: Path, made: CachedModel, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (made.folder.parent / "sizes.json").unlink()
    (made.folder.parent / "sizes.json").symlink_to(tmp_path / "precious")
    assert converted_once(source) == made
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (made.folder.parent / "sizes.json").is_symlink()


# ---- digests of large files ------------------------------------------------------------------------------------------


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "mine"))
    path = tmp_path / "large"
    path.write_bytes(bytes(1 << 20))
    assert sha256_of(path) == sha256(bytes(1 << 20)).hexdigest()
    (memory,) = (tmp_path / "mine" / "digests").iterdir()
    memory.write_text("0" * 64)
    assert sha256_of(path) == "0" * 64, "it was not read again"
    for damage in (b"", b"\xff" * 64, b"0" * 63):
        memory.write_bytes(damage)
        assert sha256_of(path) == sha256(bytes(1 << 20)).hexdigest()
    path.write_bytes(b"x" * (1 << 20))
    assert sha256_of(path) == sha256(b"x" * (1 << 20)).hexdigest()


def test_a_digest_needs_no_cache_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "file"))
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    assert sha256_of(tmp_path / "large") == sha256(bytes(1 << 20)).hexdigest()


# ---- what is wrong is told by what the user gave ---------------------------------------------------------------------

DAMAGE: dict[str, tuple[str, bytes, str]] = {
    "checkpoint": ("model.pt", b"\x80", "v0122/model.pt "),
    "dictionary": ("dict.txt", b"\xff\n", "v0122/dict.txt, line 1"),
    "SentencePiece model": ("sentencepiece.bpe.model", b"\0\xff" * 40, "v0122/sentencepiece.bpe.model "),
    "labels": ("label/dict.txt", b"\xff\n", "v0122/label/dict.txt, line 1"),
}
ASKED: dict[str, Callable[[str, Path], object]] = {
    "XLMR": lambda source, _folder: XLMR.from_pretrained(source),
    "plan": lambda source, _folder: shape_of(source),
    "inspect": lambda source, _folder: inspect(source),
    "convert": lambda source, folder: convert(source, folder / "out", verify=False),
}
UNREAD = {("plan", part) for part in DAMAGE if part != "checkpoint"} | {
    ("inspect", "SentencePiece model"),
}


@pytest.mark.parametrize("damaged", DAMAGE)
@pytest.mark.parametrize("kind", ["archive", "release"])
def test_damage_in_an_archive_is_told_by_its_name(
    kind: str, damaged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place in the cache is named only where the archive there is to be deleted."""
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    name, content, told = DAMAGE[damaged]
    fixture = "v0122cls" if damaged == "labels" else "v0122"  # labels of a network without classes are not read
    folder = shutil.copytree(FIXTURES / fixture, tmp_path / "v0122")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    (tmp_path / "cache").mkdir()
    base = tmp_path / "a" if kind == "archive" else tmp_path / "cache" / "xlmr.base"
    packed = shutil.make_archive(str(base), "gztar", tmp_path, "v0122")
    source = packed if kind == "archive" else "xlmr.base"
    for asked, ask in ASKED.items():
        if (asked, damaged) in UNREAD or (asked, kind) == ("plan", "release"):
            ask(source, tmp_path)
            continue
        with pytest.raises(HfXlmrError) as caught:
            ask(source, tmp_path)
        sentence, _dot, way_on = str(caught.value).partition(f". Delete {packed}")
        assert sentence.startswith(f"{source}:{told}") and str(tmp_path / "cache") not in sentence
        assert bool(way_on) == (kind == "release" and isinstance(caught.value, IntegrityError))


def test_options_that_are_no_use_are_told_by_the_checkpoint(source: Path) -> None:
    Checkpoint(options={**OPTIONS, "pooler_dropout": "abc"}).write(source)
    with pytest.raises(IntegrityError) as caught:
        XLMR.from_pretrained(source)
    assert str(caught.value) == f"{source}: options.json is damaged: pooler_dropout is 'abc'"
