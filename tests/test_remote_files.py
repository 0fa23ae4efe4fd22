"""Files that fsspec opens give the rows of the same files on this disk, and no credential is ever shown."""

from __future__ import annotations

import gzip
import os
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import extractions
import fsspec
import huggingface_hub.constants
import huggingface_hub.utils
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from extractions import OPTIONS, texts_of
from fsspec.registry import known_implementations
from kills import contents
from local_hub import running_hub
from range_server import Served, running_server
from test_shares import interrupted

from hf_xlmr.data.remote_files import RemotePlace, remote_place, without_credentials
from hf_xlmr.data.text_files import TextInput, open_texts
from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError
from hf_xlmr.features.bulk_extraction import extract

TEXTS = texts_of(57)
LINES = "".join(f"{text}\n" for text in TEXTS).encode()
SECRETS = ("sesame", "pa55word", "k3y")

model = extractions.model
pytestmark = pytest.mark.usefixtures("cache_folder")


def parquet() -> bytes:
    written = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS, "more": ["much " * 99] * len(TEXTS)}), written, row_group_size=5)
    return bytes(written.getvalue())


def zstd() -> bytes:
    written = pa.BufferOutputStream()
    with pa.CompressedOutputStream(written, "zstd") as file:
        file.write(LINES)
    return bytes(written.getvalue())


FILES = {
    "texts.txt": LINES,
    "texts.csv": b"text\n" + b"".join(f'"{text}"\r\n'.encode() for text in TEXTS),
    "texts.parquet": parquet(),
    "texts.txt.gz": gzip.compress(LINES),
    "texts.txt.zst": zstd(),
}


@pytest.fixture(params=["memory", "web", "hub"])
def base(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder of these files."""
    if request.param == "memory":
        files = fsspec.filesystem("memory")
        files.pipe({f"/folder/{name}": content for name, content in FILES.items()})
        yield "memory://folder"
        files.rm("/folder", recursive=True)
    elif request.param == "hub":
        with running_hub() as hub:
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
            template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
            monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", os.devnull)
            huggingface_hub.HfFileSystem.clear_instance_cache()
            hub.create("me/texts", files=FILES)
            yield "hf://me/texts"
            huggingface_hub.HfFileSystem.clear_instance_cache()
            huggingface_hub.utils.close_session()
    else:
        with running_server() as server:
            server.files.update({f"/folder/{name}": content for name, content in FILES.items()})
            yield f"{server.url}/folder"


@pytest.mark.parametrize("name", FILES)
def test_a_remote_file_is_read_as_a_local_one(base: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    remote = open_texts(f"{base}/{name}")
    rows = list(remote)
    assert rows == list(open_texts(tmp_path / name))
    cuts = remote.cuts(10)
    assert (cuts is None) == name.endswith(("gz", "zst"))
    if cuts is not None:
        assert [row for shard in range(len(cuts)) for row in remote.rows_of(cuts, shard)] == rows
    assert remote.fingerprint() == open_texts(f"{base}/{name}").fingerprint() is not None


@pytest.fixture
def server() -> Iterator[Served]:
    with running_server() as running:
        yield running


@pytest.mark.parametrize("name", FILES)
def test_a_server_that_sends_whole_files_is_streamed(server: Served, name: str, tmp_path: Path) -> None:
    server.files[f"/{name}"], server.sends_parts = FILES[name], False
    (tmp_path / name).write_bytes(FILES[name])
    if name == "texts.parquet":
        with pytest.raises(InputError, match="can only be read from its beginning on: download it first"):
            open_texts(f"{server.url}/{name}")
    else:
        opened = open_texts(f"{server.url}/{name}")
        assert list(opened) == list(open_texts(tmp_path / name)) and opened.cuts(10) is None


def test_patterns_and_folders(server: Served) -> None:
    files = fsspec.filesystem("memory")
    for number in (2, 0, 1):
        server.files[f"/many/{number}.txt"] = f"{number}\n".encode()
        files.pipe(f"/many/{number}.txt", f"{number}\n".encode())
    for source in ("memory://many", "memory://many/", "memory://many/*.txt", f"{server.url}/many/"):
        assert [row.text for row in open_texts(source)] == ["0", "1", "2"], source
    rows = list(open_texts(f"{server.url}/many/[12].txt"))
    assert [row.text for row in rows] == ["1", "2"]
    assert rows[0].place == f"{server.url}/many/1.txt, line 1"
    files.pipe("/many/3.csv", b"text\n3\n")
    with pytest.raises(InputError, match=r"memory://many holds files of several kinds \(\.csv, \.txt\)"):
        open_texts("memory://many")
    files.rm("/many", recursive=True)


def test_a_local_url_is_a_path(tmp_path: Path) -> None:
    path = extractions.write(tmp_path / "texts.txt", TEXTS)
    assert open_texts(path.as_uri()).paths == (path,)


def test_what_is_done_is_not_fetched_again(model: Path, tmp_path: Path, server: Served) -> None:
    server.files["/texts.txt"] = "".join(f"{'word ' * 60}{number}\n" for number in range(500)).encode()
    options: dict[str, Any] = {"rows_per_shard": 10, "max_length": 8}
    interrupted(model, f"{server.url}/texts.txt", tmp_path / "out", 45, **options)
    server.sent.clear()
    source, again = f"{server.url}/texts.txt", replace(OPTIONS, **options)
    report = extract(model, source, tmp_path / "out", options=again, resume=True)
    assert (report.texts, report.rows) == (50, 500)
    assert sum(server.sent) <= 0.15 * len(server.files["/texts.txt"])


@pytest.mark.parametrize(("name", "most"), [("texts.txt", 3), ("texts.csv", 3), ("texts.parquet", 5)])
def test_a_shard_takes_few_requests(server: Served, name: str, most: int) -> None:
    """Two ask whether the file is the same; the others fetch rows, in Parquet also the sizes of two pages."""
    rows = [f"{'word ' * 99}{number}" for number in range(1000)]
    written = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": rows}), written, row_group_size=100)
    lines = "text\n" + "".join(f"{row}\n" for row in rows)
    server.files[f"/{name}"] = bytes(written.getvalue()) if name == "texts.parquet" else lines.encode()
    opened = open_texts(f"{server.url}/{name}")
    cuts = opened.cuts(100)
    assert cuts is not None and len(list(opened.rows_of(cuts, 1))) == 100
    before = server.requests
    assert len(list(opened.rows_of(cuts, 2))) == 100
    assert server.requests - before <= most


@pytest.mark.parametrize("every", [20, 7, 33])
def test_row_groups_of_other_shards_are_not_fetched(server: Served, every: int) -> None:
    table, written = (
        pa.table({"text": ["word " * 1200 + str(number) for number in range(1000)]}),
        pa.BufferOutputStream(),
    )
    pq.write_table(table, written, row_group_size=20, compression="none", use_dictionary=False)
    server.files["/texts.parquet"] = bytes(written.getvalue())
    opened = open_texts(f"{server.url}/texts.parquet")
    cuts = opened.cuts(every)
    assert cuts is not None
    server.sent.clear()
    last = range(len(cuts) * 9 // 10, len(cuts))
    found = [row.text for shard in last for row in opened.rows_of(cuts, shard)]
    assert found == table["text"].to_pylist()[last[0] * every :]
    assert sum(server.sent) <= 0.15 * len(server.files["/texts.parquet"])


# ---- credentials -----------------------------------------------------------------------------------------------------


def all_that_is_shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("{server}/texts.txt?token=sesame-wrong", "{server}/texts.txt may not be read by you: check your credentials"),
        ("{user}/texts.txt?token=sesame-wrong", "{server}/texts.txt may not be read by you: check your credentials"),
        ("{server}/none.txt?token=sesame", "{server}/none.txt does not exist, or may not be seen by you"),
        ("{server}/texts.bin?token=sesame", "{server}/texts.bin is of no known kind"),
        ("http://me:pa55word@127.0.0.1:9/texts.txt?token=sesame", "http://127.0.0.1:9/texts.txt cannot be read: "),
        ("http://me:pa55word/x@host/texts.txt", "http://host/texts.txt cannot be read: "),
        ("http://pa55word@127.0.0.1:9/*.txt", "http://127.0.0.1:9/*.txt cannot be read: "),
        ("nowhere://k3y:pa55word@bucket/texts.txt", "nowhere://bucket/texts.txt cannot be read: Protocol not known"),
    ],
)
def test_credentials_are_never_shown(server: Served, url: str, told: str) -> None:
    server.token = "sesame"
    names = {"server": server.url, "user": server.url.replace("//", "//k3y:pa55word@")}
    with pytest.raises(InputError) as caught:
        list(open_texts(url.format(**names)))
    assert str(caught.value).startswith(told.format(**names))
    assert not any(secret in all_that_is_shown(caught.value) for secret in SECRETS)


def test_a_bad_row_a_report_and_an_output_show_none(
    model: Path, tmp_path: Path, server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    server.token, server.files["/texts.txt"] = "sesame", LINES
    url = f"{server.url}/texts.txt?token=sesame"
    report = extract(model, url, tmp_path / "out", options=OPTIONS)
    assert report.source == f"{server.url}/texts.txt"
    server.files["/texts.txt"] = LINES + b"\xff\n"
    with pytest.raises(BadRow, match=r"^texts\.txt, line 58: byte 1") as caught:
        extract(model, url, tmp_path / "more", options=OPTIONS)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    shown = f"{report}{all_that_is_shown(caught.value)}{caplog.text}{written!r}"
    assert "sesame" not in shown
    local = extractions.write(tmp_path / "texts.txt", TEXTS)
    extract(model, local, tmp_path / "local", options=OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


def test_options_of_a_file_system_are_not_shown() -> None:
    class Failing(fsspec.AbstractFileSystem):
        protocol = "failing"

        def info(self, path: str, **_options: Any) -> Any:
            raise ValueError(f"bad signature of {path} for {self.storage_options}")

        def _open(self, path: str, *_arguments: Any, **_options: Any) -> Any:
            return self.info(path)

    fsspec.register_implementation("failing", Failing, clobber=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "failing", {"secret": "k3y-of-mine", "more": {"token": "sesame/1"}})
        with pytest.raises(InputError) as caught:
            open_texts("failing://bucket/texts.txt").fingerprint()
    assert "bad signature of bucket/texts.txt for" in str(caught.value)
    assert not any(secret in all_that_is_shown(caught.value) for secret in SECRETS)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.FileSystem", "err": "Install no_such_package to read this"}
    monkeypatch.setitem(known_implementations, "unread", known)
    with pytest.raises(
        InputError, match=r"^unread://b/x\.txt needs a package .* Install no_such_package to read this$"
    ):
        open_texts("unread://k3y:pa55word@b/x.txt")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host:8080/a@b/c.txt", "https://host:8080/a@b/c.txt"),
        ("hf://datasets/owner/name@main/a.txt", "hf://datasets/owner/name@main/a.txt"),
        ("s3://bucket/part-?.txt", "s3://bucket/part-?.txt"),
        ("s3://bucket/a.txt?versionId=1", "s3://bucket/a.txt"),
        ("simplecache::https://me:p@ss@host/a.txt?k", "simplecache::https://host/a.txt"),
        ("zip://a.txt::https://me:secret@host/x.zip", "zip://a.txt::https://host/x.zip"),
        ("https://host/a.txt#sesame", "https://host/a.txt"),
    ],
)
def test_what_is_not_secret_stays(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


# ---- changes ---------------------------------------------------------------------------------------------------------


def test_a_remote_file_that_changes_is_noticed(server: Served) -> None:
    server.files["/texts.txt"] = LINES
    opened: TextInput = open_texts(f"{server.url}/texts.txt")
    cuts, before = opened.cuts(10), opened.fingerprint()
    assert cuts is not None
    server.files["/texts.txt"] = LINES.replace(b"13", b"31")
    assert opened.fingerprint() != before and not opened.is_cut_by(cuts)
    with pytest.raises(InputError, match="changed while it was read"):
        next(opened.rows_of(cuts, 1))


def test_a_file_that_nothing_identifies_is_streamed(server: Served) -> None:
    """Read in parts, another content between two looks would give half lines."""
    server.has_marks = False
    server.files["/texts.txt"] = LINES
    opened: TextInput = open_texts(f"{server.url}/texts.txt")
    assert opened.cuts(10) is None
    assert b"".join(row.text.encode() + b"\n" for row in opened) == LINES


def test_a_server_that_falls_silent_is_given_up_and_a_slow_reader_is_not() -> None:
    """aiohttp's own limit is five minutes for the whole answer, computing included."""
    for url in ("https://host/a.txt", "simplecache::http://host/a.txt"):
        place = remote_place(url)
        assert isinstance(place, RemotePlace)
        web = getattr(place.files, "fs", place.files)
        assert web.client_kwargs["timeout"].total is None and web.client_kwargs["timeout"].sock_read == 60


def test_a_server_that_breaks_off_is_named(server: Served) -> None:
    server.files["/texts.txt"] = LINES * 20_000
    rows = iter(open_texts(f"{server.url}/texts.txt"))
    next(rows)
    server.files.clear()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+/texts\.txt "):
        list(rows)
