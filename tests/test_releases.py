"""Downloads against a real server on this machine that breaks, lies and dawdles on demand."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import ssl
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from patience import PATIENCE, until
from places import FIXTURES

from hf_xlmr.conversion.source import releases
from hf_xlmr.conversion.source.releases import Patience, download, release_address
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.cache_folder import cache_folder
from hf_xlmr.files.own_names import RELEASE_NAMES

CERTIFICATE = FIXTURES / "tls" / "this_machine.pem"
QUICK = Patience(pauses=(0.01, 0.01, 0.01, 0.01), timeout=PATIENCE)
BODY = b"\x1f\x8b" + random.Random(1).randbytes(300_000)
NEW_BODY = b"\x1f\x8b" + random.Random(2).randbytes(280_000)
SAME_LENGTH_BODY = b"\x1f\x8b" + random.Random(2).randbytes(300_000)


@dataclass(frozen=True)
class Seen:
    path: str
    range: str | None
    if_range: str | None


@dataclass
class Shelf:
    """What the server has and how it misbehaves: one fault per request, then none."""

    body: bytes = BODY
    etag: str | None = '"first"'
    modified: str | None = "Mon, 07 Jun 2021 10:00:00 GMT"
    faults: deque[str] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    next_body: bytes | None = None
    url: str = ""
    leads_to: str = "/elsewhere.tar.gz"
    length: str = ""
    content_range: str = ""
    is_over: threading.Event = field(default_factory=threading.Event)
    """Until then a stalled answer says nothing more."""

    def change(self) -> None:
        if self.next_body is not None:
            self.body, self.etag, self.modified = self.next_body, '"second"', "Tue, 08 Jun 2021 10:00:00 GMT"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        shelf = self.shelf
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        shelf.seen.append(Seen(self.path, asked, condition))
        fault, _, amount = (shelf.faults.popleft() if shelf.faults else "").partition(":")
        if fault.isdecimal():
            return self.refuse(int(fault))
        start = 0
        if asked and fault != "ignore-range" and (condition in (shelf.etag, shelf.modified) or fault == "blind"):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(shelf.body):
                return self.refuse(416)
        end = start + int(amount) if fault == "piece" else len(shelf.body)
        self.head(start, end, ranged=bool(start), fault=fault)
        self.send(shelf.body[start:end], fault, int(amount or 0))
        return None

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status == 302:
            self.send_header("Location", self.shelf.leads_to)
        self.end_headers()

    def head(self, start: int, end: int, *, ranged: bool, fault: str) -> None:
        shelf = self.shelf
        self.send_response(206 if ranged else 200)
        if ranged:
            known = f"bytes {start}-{end - 1}/{len(shelf.body)}"
            self.send_header("Content-Range", shelf.content_range or known)
        for name, value in (("ETag", shelf.etag), ("Last-Modified", shelf.modified)):
            if value:
                self.send_header(name, value)
        if fault in ("chunked", "endless"):
            self.send_header("Transfer-Encoding", "chunked")
        elif fault != "no-length":
            more = 100 if fault == "lie" else 0
            self.send_header("Content-Length", shelf.length or str(end - start + more))
        self.end_headers()

    def send(self, body: bytes, fault: str, amount: int) -> None:
        try:
            self._send(body, fault, amount)
        except OSError:  # the other side has gone, as some tests want it to
            self.close_connection = True

    def _send(self, body: bytes, fault: str, amount: int) -> None:
        if fault in ("drop", "reset", "stall", "drop-and-change"):
            self.wfile.write(body[:amount])
            self.wfile.flush()
            if fault == "stall":
                self.shelf.is_over.wait(PATIENCE)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if fault == "drop-and-change":
                self.shelf.change()
            self.close_connection = True
        elif fault == "slow":
            for at in range(0, len(body), len(body) // 8 + 1):
                self.wfile.write(body[at : at + len(body) // 8 + 1])
                time.sleep(amount / 1000)
        elif fault == "endless":
            while True:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        elif fault == "chunked":
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.wfile.write(body)
            self.close_connection = fault in ("lie", "no-length")


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Faults are meant; nothing is printed of them."""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    shelf = Shelf()
    server = Server(("127.0.0.1", 0), type("ShelfHandler", (Handler,), {"shelf": shelf}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    shelf.url = f"http://127.0.0.1:{server.server_port}/models"
    monkeypatch.setenv("HF_XLMR_RELEASES_URL", shelf.url)
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))  # reading all that certifi has takes longer than a download
    yield shelf
    shelf.is_over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def got(patience: Patience = QUICK) -> bytes:
    path: Path = download("xlmr.base", patience=patience)
    return path.read_bytes()


def ranges(shelf: Shelf) -> list[str | None]:
    return [seen.range for seen in shelf.seen]


def test_the_releases_have_the_addresses_that_fairseq_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_XLMR_RELEASES_URL", raising=False)
    base = "https://dl.fbaipublicfiles.com/fairseq/models"
    assert {name: release_address(name) for name in RELEASE_NAMES} == {
        "xlmr.base": f"{base}/xlmr.base.tar.gz",
        "xlmr.large": f"{base}/xlmr.large.tar.gz",
        "xlmr.xl": f"{base}/xlmr/xlmr.xl.tar.gz",
        "xlmr.xxl": f"{base}/xlmr/xlmr.xxl.tar.gz",
        "xlmr.base.v0": f"{base}/xlmr.base.v0.tar.gz",
        "xlmr.large.v0": f"{base}/xlmr.large.v0.tar.gz",
        "xmod.base": f"{base}/xmod/xmod.base.81.1M.tar.gz",
        "xmod.large.prenorm": f"{base}/xmod/xmod.large.prenorm.81.500k.tar.gz",
        **{
            name: f"{base}/xmod/{name}.tar.gz"
            for name in (
                *("xmod.base.13.125k", "xmod.base.30.125k", "xmod.base.30.195k", "xmod.base.60.125k"),
                *("xmod.base.60.265k", "xmod.base.75.125k", "xmod.base.75.269k"),
            )
        },
    }


def test_an_unknown_release_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'xlmr\.huge' is not a release.*xlmr\.xxl"):
        download("xlmr.huge")


@pytest.mark.parametrize("base", ["ftp://mirror/models", "mirror/models"])
def test_a_base_address_that_is_not_http_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_RELEASES_URL", base)
    with pytest.raises(InputError, match="HF_XLMR_RELEASES_URL"):
        release_address("xlmr.base")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("HF_XLMR_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "hf_xlmr"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == tmp_path / "home" / ".cache" / "hf_xlmr"


def test_a_download_is_complete_and_leaves_no_draft(shelf: Shelf) -> None:
    path = download("xlmr.xl", patience=QUICK)
    assert path == cache_folder() / "xlmr.xl.tar.gz"
    assert path.read_bytes() == BODY
    assert [seen.path for seen in shelf.seen] == ["/models/xlmr/xlmr.xl.tar.gz"]
    assert {one.name for one in cache_folder().iterdir()} == {"xlmr.xl.tar.gz", "xlmr.xl.tar.gz.lock"}


def test_a_cached_archive_is_used_without_a_request(shelf: Shelf) -> None:
    assert got() == got()
    assert len(shelf.seen) == 1


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_a_broken_connection_is_resumed_where_it_broke(shelf: Shelf, fault: str) -> None:
    shelf.faults.append("drop:200000" if fault == "drop" else "reset:200000")
    assert got() == BODY
    first, second = shelf.seen
    assert first.range is None
    assert second.if_range == '"first"'
    if fault == "drop":  # a reset may take bytes in flight with it
        assert second.range == "bytes=200000-"


def test_breaks_that_bring_something_each_time_do_not_use_up_the_tries(shelf: Shelf) -> None:
    shelf.faults.extend(["drop:20000"] * 12)
    assert got() == BODY
    assert ranges(shelf)[-1] == "bytes=240000-"


def test_a_stalled_connection_is_dropped_and_resumed(shelf: Shelf) -> None:
    shelf.faults.append("stall:100000")
    assert got(Patience(pauses=QUICK.pauses, timeout=1)) == BODY
    assert ranges(shelf)[:2] == [None, "bytes=100000-"]  # beside busy processes a second try may be dropped, too


def test_a_slow_server_is_waited_for(shelf: Shelf) -> None:
    """In all it takes longer than a read may take."""
    shelf.faults.append("slow:400")
    assert got(Patience(pauses=(), timeout=3)) == BODY


def test_the_next_run_goes_on_where_the_last_gave_up(shelf: Shelf) -> None:
    shelf.faults.extend(["drop:150000", "503", "503"])
    with pytest.raises(InputError, match=r"3 tries.*503.*continued next time: .*xlmr\.base\.tar\.gz\.part"):
        got(Patience(pauses=(0.01, 0.01)))
    assert got() == BODY
    assert ranges(shelf)[-1] == "bytes=150000-"


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(shelf: Shelf) -> None:
    shelf.body = b"\x1f\x8b" + random.Random(3).randbytes(3 << 20)
    shelf.faults.append(f"stall:{(2 << 20) + 7}")
    process = subprocess.Popen([sys.executable, "-c", DOWNLOADER], cwd=cache_folder().parent)
    part = cache_folder() / "xlmr.base.tar.gz.part"
    until(lambda: part.exists() and part.stat().st_size, otherwise="nothing arrives")
    process.kill()
    process.wait()
    kept = part.stat().st_size
    assert kept > 0
    assert got() == shelf.body
    assert ranges(shelf) == [None, f"bytes={kept}-"]


def test_a_whole_part_is_only_given_its_name(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def power_cut(job: object, total: int | None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(releases, "_publish", power_cut)
        got()
    assert got() == BODY
    assert len(shelf.seen) == 1


def test_a_server_that_ignores_ranges_is_read_from_the_start(shelf: Shelf) -> None:
    shelf.faults.extend(["drop:200000", "ignore-range"])
    assert got() == BODY


def test_a_file_that_changed_between_tries_is_begun_again(shelf: Shelf) -> None:
    shelf.next_body = NEW_BODY
    shelf.faults.append("drop-and-change:200000")
    assert got() == NEW_BODY


@pytest.mark.parametrize("body", [NEW_BODY, SAME_LENGTH_BODY])
@pytest.mark.parametrize("etag", ['"first"', None])
def test_a_changed_file_is_noticed_even_where_if_range_is_not_heeded(
    shelf: Shelf, body: bytes, etag: str | None
) -> None:
    shelf.etag, shelf.next_body = etag, body
    shelf.faults.extend(["drop-and-change:200000", "blind"])
    assert got() == body
    assert ranges(shelf) == [None, "bytes=200000-", None]


def test_a_file_that_shrank_below_what_is_held_is_begun_again(shelf: Shelf) -> None:
    shelf.next_body = NEW_BODY
    shelf.faults.extend(["drop-and-change:290000", "blind"])
    assert got() == NEW_BODY
    assert ranges(shelf) == [None, "bytes=290000-", None]


def test_the_date_of_the_last_change_serves_where_there_is_no_strong_tag(shelf: Shelf) -> None:
    shelf.etag = 'W/"weak"'
    shelf.faults.append("drop:200000")
    assert got() == BODY
    assert shelf.seen[1] == Seen("/models/xlmr.base.tar.gz", "bytes=200000-", shelf.modified)


def test_a_server_that_gives_less_than_was_asked_for_is_asked_for_the_rest(shelf: Shelf) -> None:
    shelf.faults.extend(["drop:100000", "piece:50000", "piece:60000"])
    assert got() == BODY
    assert ranges(shelf) == [None, "bytes=100000-", "bytes=150000-", "bytes=210000-"]


def test_a_file_without_any_stamp_is_not_continued(shelf: Shelf) -> None:
    shelf.etag = shelf.modified = None
    shelf.faults.append("drop:200000")
    assert got() == BODY
    assert ranges(shelf) == [None, None]


@pytest.mark.parametrize("notes", [b"", b"[]", b'{"address": 1}', b"\xff\xfe"])
def test_notes_that_cannot_be_read_mean_a_new_start(shelf: Shelf, notes: bytes) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "xlmr.base.tar.gz.part").write_bytes(b"of unknown origin")
    (cache_folder() / "xlmr.base.tar.gz.part.json").write_bytes(notes)
    assert got() == BODY
    assert ranges(shelf) == [None]


def test_what_came_from_another_address_is_not_continued(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.faults.extend(["drop:200000"])
    with pytest.raises(InputError):
        got(Patience(pauses=()))
    monkeypatch.setenv("HF_XLMR_RELEASES_URL", f"{shelf.url}/mirror/")
    assert got() == BODY
    assert shelf.seen[-1] == Seen("/models/mirror/xlmr.base.tar.gz", None, None)


@pytest.mark.parametrize("fault", ["500", "502", "503", "429", "408"])
def test_a_server_in_trouble_is_asked_again(shelf: Shelf, fault: str) -> None:
    shelf.faults.extend([fault, fault])
    assert got() == BODY


def test_tries_are_bounded(shelf: Shelf) -> None:
    shelf.faults.extend(["500"] * 50)
    with pytest.raises(InputError, match=r"could not be downloaded in 5 tries: the server answered 500"):
        got()
    assert len(shelf.seen) == 5


@pytest.mark.parametrize("status", ["401", "403", "404", "410"])
def test_a_refusal_is_told_at_once_with_the_address(shelf: Shelf, status: str) -> None:
    shelf.faults.append(status)
    with pytest.raises(InputError, match=rf"answered {status} for {shelf.url}/xlmr\.base\.tar\.gz.*pass its path"):
        got()
    assert len(shelf.seen) == 1


def test_a_redirect_is_followed(shelf: Shelf) -> None:
    shelf.faults.append("302")
    assert got() == BODY
    assert shelf.seen[-1].path == "/elsewhere.tar.gz"


def test_a_length_that_is_never_reached_is_not_taken_for_success(shelf: Shelf) -> None:
    shelf.faults.extend(["lie"] * 50)
    with pytest.raises(InputError, match="could not be downloaded"):
        got()
    assert not (cache_folder() / "xlmr.base.tar.gz").exists()


def test_a_chunked_body_is_taken_since_its_end_is_marked(shelf: Shelf) -> None:
    shelf.faults.append("chunked")
    assert got() == BODY


def test_a_body_whose_end_could_not_be_told_from_a_break_is_refused(shelf: Shelf) -> None:
    shelf.faults.append("no-length")
    with pytest.raises(InputError, match="does not say how long"):
        got()


def test_a_page_in_place_of_the_archive_does_not_get_into_the_cache(shelf: Shelf) -> None:
    shelf.body = b"<html>Please log in to this network</html>"
    with pytest.raises(IntegrityError, match=r"not a \.tar\.gz archive"):
        got()
    assert {one.name for one in cache_folder().iterdir()} == {"xlmr.base.tar.gz.lock"}


def test_without_a_network_the_address_and_the_way_on_are_told_at_once(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HF_XLMR_RELEASES_URL", address)
        monkeypatch.setattr(releases.time, "sleep", lambda _seconds: pytest.fail("there is no second try"))
        with pytest.raises(InputError, match=rf"{address}/xlmr\.base\.tar\.gz cannot be reached.*pass its path"):
            download("xlmr.base")


@pytest.fixture
def encrypted(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A server with TLS, whose certificate is trusted; the mirror is there."""
    other = Shelf()
    server = Server(("127.0.0.1", 0), type("ShelfHandler", (Handler,), {"shelf": other}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    other.url = f"https://127.0.0.1:{server.server_port}/models"
    monkeypatch.setenv("HF_XLMR_RELEASES_URL", other.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    yield other
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_encrypted_address_may_lead_to_another(encrypted: Shelf) -> None:
    encrypted.faults.append("302")
    assert got() == BODY
    assert [seen.path for seen in encrypted.seen] == ["/models/xlmr.base.tar.gz", "/elsewhere.tar.gz"]


def test_an_encrypted_address_never_leads_over_a_plain_one(encrypted: Shelf, shelf: Shelf) -> None:
    """Nor back again: the plain server is not even asked."""
    encrypted.leads_to, shelf.leads_to = f"{shelf.url}/x", f"{encrypted.url}/y"
    encrypted.faults.append("302")
    shelf.faults.append("302")
    with pytest.raises(InputError, match=rf"leads to {shelf.url}/x, which is not encrypted"):
        got()
    assert not shelf.seen and len(encrypted.seen) == 1


def test_a_mirror_without_encryption_may_lead_to_one_with_it_and_back(
    encrypted: Shelf, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_XLMR_RELEASES_URL", shelf.url)
    encrypted.leads_to, shelf.leads_to = f"{shelf.url}/x", f"{encrypted.url}/y"
    encrypted.faults.append("302")
    shelf.faults.append("302")
    assert got() == BODY


# ---- what servers and settings may say -------------------------------------------------------------------------------


def test_a_length_beyond_what_a_release_has_stops_at_once(shelf: Shelf) -> None:
    shelf.length = str(10**12)
    with pytest.raises(
        InputError, match=r"gives 1,000,000,000,000 bytes or more, and xlmr\.base has at most 2,000,000"
    ):
        got()
    assert {one.name for one in cache_folder().iterdir()} == {"xlmr.base.tar.gz.lock"} and len(shelf.seen) == 1


def test_a_body_without_an_end_stops_there_too(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    small = releases.Release("xlmr.base", "xlmr.base.tar.gz", most=len(BODY) * 3)
    monkeypatch.setattr(releases, "RELEASES", (small,))
    shelf.faults.append("endless")
    with pytest.raises(InputError, match="it is something else"):
        got()
    assert {one.name for one in cache_folder().iterdir()} == {"xlmr.base.tar.gz.lock"}


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1,2", "1_0", "\xb2"])
def test_a_length_that_is_no_number_is_a_sentence(shelf: Shelf, length: str) -> None:
    shelf.length = length
    with pytest.raises(InputError, match=r"xlmr\.base\.tar\.gz"):
        got(Patience(pauses=(0.01,)))


@pytest.mark.parametrize(
    "said",
    ["bytes 5-3/10", "bytes 200000-1/*", "bytes \xb2-1/2", f"bytes {'9' * 5000}-1/2", "none", "bytes 200000-1/3"],
)
def test_an_odd_range_means_a_new_start(shelf: Shelf, said: str) -> None:
    shelf.content_range = said
    shelf.faults.append("drop:200000")
    assert got() == BODY


@pytest.mark.parametrize("etag", ['"\xe4\xdf"', '"\x80"', "\xb2"])
def test_a_tag_that_cannot_be_sent_back_is_not(shelf: Shelf, etag: str) -> None:
    shelf.etag = etag
    shelf.faults.append("drop:200000")
    assert got() == BODY
    assert shelf.seen[1].if_range == shelf.modified


def test_notes_of_other_types_mean_a_new_start(shelf: Shelf) -> None:
    good = {"address": f"{shelf.url}/xlmr.base.tar.gz", "etag": '"first"', "modified": "", "total": None}
    odd: list[dict[str, object]] = [{"etag": 5}, {"modified": ["x"]}, {"total": "many"}, {"total": -1}, {"total": 0.5}]
    cache_folder().mkdir(parents=True)
    for change in [*odd, {"etag": "\n", "modified": "\0"}]:
        (cache_folder() / "xlmr.base.tar.gz.part").write_bytes(b"of unknown origin")
        (cache_folder() / "xlmr.base.tar.gz.part.json").write_text(json.dumps(good | change))
        assert got() == BODY
        (cache_folder() / "xlmr.base.tar.gz").unlink()
    (cache_folder() / "xlmr.base.tar.gz.part").write_bytes(b"of unknown origin")
    (cache_folder() / "xlmr.base.tar.gz.part.json").write_text("[" * 100_000)
    assert got() == BODY
    assert set(ranges(shelf)) == {None}


SETTINGS = [
    *[
        ("HTTP_PROXY", value)
        for value in ("foo://x", "http://[::1", "http://h:abc", "http://\xfc \xfc", "http://\udcff")
    ],
    *[("SSL_CERT_FILE", value) for value in ("/nonexistent", "/", "/dev/null", "\udcff")],
]


@pytest.mark.parametrize(("variable", "value"), SETTINGS)
def test_settings_of_the_network_that_are_of_no_use_are_a_sentence(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=r"the network cannot be used \(.*\): look at HTTP_PROXY"):
        got()


@pytest.mark.parametrize("target", ["http://[", "ftp://x/y", "file:///etc/hosts", "http://\xff/"])
def test_a_redirect_to_nowhere_is_a_sentence_at_once(shelf: Shelf, target: str) -> None:
    shelf.leads_to = target
    shelf.faults.extend(["302"] * 9)
    with pytest.raises(InputError, match=r"xlmr\.base\.tar\.gz cannot be (downloaded: |reached )") as refused:
        got()
    assert len(shelf.seen) == 1 and ".." not in str(refused.value)


def test_redirects_without_end_are_a_sentence_at_once(shelf: Shelf) -> None:
    shelf.leads_to = f"{shelf.url}/xlmr.base.tar.gz"
    shelf.faults.extend(["302"] * 99)
    with pytest.raises(InputError, match=r"cannot be downloaded: [^.]+\. Download the archive") as refused:
        got()
    assert ".." not in str(refused.value) and len(shelf.seen) < 50


@pytest.mark.parametrize("length", ["abc", "-1", "1,2"])
def test_a_header_that_no_answer_may_have_is_told_at_once(shelf: Shelf, length: str) -> None:
    shelf.length = length
    with pytest.raises(InputError, match=r"xlmr\.base\.tar\.gz cannot be downloaded: ") as refused:
        got()
    assert len(shelf.seen) == 1 and ".." not in str(refused.value)


# ---- hashes that the user knows --------------------------------------------------------------------------------------


def known(form: str, digest: str, folder: Path) -> str:
    if form == "list":
        return f"xlmr.large={'0' * 64}, xlmr.base={digest.upper()}"
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  other.tar.gz\n\n{digest} *models/xlmr.base.tar.gz\n")
    return str(folder / "SHA256SUMS")


@pytest.mark.parametrize("form", ["list", "file"])
def test_an_archive_must_have_the_hash_that_is_known(
    form: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_XLMR_RELEASES_SHA256", known(form, sha256(BODY).hexdigest(), tmp_path))
    assert got() == BODY and got() == BODY
    monkeypatch.setenv("HF_XLMR_RELEASES_SHA256", known(form, sha256(NEW_BODY).hexdigest(), tmp_path))
    with pytest.raises(IntegrityError, match=r"which was in the cache, has the SHA-256 .* Delete it"):
        got()
    (cache_folder() / "xlmr.base.tar.gz").unlink()
    with pytest.raises(IntegrityError, match=rf"what came from {shelf.url}/xlmr.base.tar.gz has the SHA-256"):
        got()
    assert not (cache_folder() / "xlmr.base.tar.gz").exists()


@pytest.mark.parametrize("value", ["xlmr.base=12", "xlmr.bas=" + "0" * 64, "/nonexistent", "x\ny", "0" * 64])
def test_hashes_that_cannot_be_read_are_a_sentence(value: str, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_RELEASES_SHA256", value)
    with pytest.raises(InputError, match="HF_XLMR_RELEASES_SHA256 is a list such as"):
        got()


# ---- room and company ------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_told_before_anything_is_written(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(InputError, match=rf"{len(BODY):,} bytes are needed and 1,000 are free"):
        got()
    assert not (cache_folder() / "xlmr.base.tar.gz.part").exists()


def test_a_disk_that_fills_up_on_the_way_is_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "NEW_OR_LONGER", os.O_WRONLY)
    monkeypatch.setattr(releases._Job, "part", property(lambda job: Path("/dev/full")))
    monkeypatch.setattr(releases, "_forget", lambda job: None)
    with pytest.raises(InputError, match=r"is full: [\d,]+ bytes are needed and [\d,]+ are free"):
        got()


def test_a_cache_that_cannot_be_used_is_told_with_its_variable(shelf: Shelf) -> None:
    cache_folder().parent.mkdir(exist_ok=True)
    cache_folder().write_bytes(b"a file where the folder should be")
    with pytest.raises(InputError, match="HF_XLMR_CACHE"):
        got()


def test_neither_lock_nor_draft_nor_notes_follow_a_link(shelf: Shelf, tmp_path: Path) -> None:
    """And none of them empties what the link leads to."""
    victim = tmp_path / "precious"
    victim.write_text("precious")
    cache_folder().mkdir(parents=True)
    for name in (".part", ".part.json", ".lock"):
        link = cache_folder() / f"xlmr.base.tar.gz{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        if name == ".lock":
            with pytest.raises(InputError, match=r"should be a lock file, but it is a link: remove it"):
                got()
            link.unlink()
            os.link(victim, link)
            with pytest.raises(InputError, match=r"should be a lock file, but it is a link: remove it"):
                got()
            link.unlink()
        assert got() == BODY and victim.read_text() == "precious"
        (cache_folder() / "xlmr.base.tar.gz").unlink()


def test_the_cache_is_made_for_its_user_alone(shelf: Shelf) -> None:
    got()
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


@pytest.mark.parametrize("home", ["~nouser/x", "~nouser"])
def test_the_home_of_nobody_is_a_sentence(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", home)
    with pytest.raises(InputError, match=f"HF_XLMR_CACHE is {home}, and there is no home folder of that user"):
        got()


DOWNLOADER = "from hf_xlmr.conversion.source.releases import download; print(download('xlmr.base'))"


def test_two_processes_make_one_download(shelf: Shelf) -> None:
    shelf.faults.append("slow:120")
    run = [sys.executable, "-c", DOWNLOADER]
    where = cache_folder().parent
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=where) for _ in range(2)]
    paths = {process.communicate(timeout=PATIENCE)[0].strip() for process in both}
    assert paths == {str(cache_folder() / "xlmr.base.tar.gz")}
    assert Path(paths.pop()).read_bytes() == BODY
    assert len(shelf.seen) == 1


class Counter:
    """Progress that remembers each task's label, total and sum."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int | None]] = []
        self.sums: list[int] = []

    def task(self, label: str, *, total: int | None = None) -> AbstractContextManager[Counter]:
        self.tasks.append((label, total))
        self.sums.append(0)
        return nullcontext(self)

    def advance(self, amount: int) -> None:
        self.sums[-1] += amount


def test_progress_counts_what_is_held_and_ends_at_the_total(shelf: Shelf) -> None:
    shelf.faults.append("drop:200000")
    counter = Counter()
    download("xlmr.base", progress=counter, patience=QUICK)
    assert counter.tasks == [("downloading xlmr.base", len(BODY))] * 2
    assert counter.sums == [200000, len(BODY)]
