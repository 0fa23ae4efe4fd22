"""Servers of every temper end in an answer or in one sentence, and verify-runtime prints and writes what it found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_process
import pytest
from faulty_runtimes import Runtime, served, without_tokens
from planted_faults import FAULTS

from hf_xlmr.conformance import compare
from hf_xlmr.errors import InputError

KEY = "sk-very-secret-0123456789"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(families: dict[str, Path]) -> Path:
    return families["post-norm"]


# ---- servers of every temper -----------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again(model: Path) -> None:
    asked: list[str] = []

    def busy(handler: Any, body: Any) -> bool:
        asked.append(handler.path)
        if len(asked) == 3:
            handler.send({"error": "overloaded"}, status=429, headers={"Retry-After": "1"})
            return True
        return without_tokens(handler, body)

    with served(Runtime(model), odd=busy) as address:
        assert compare(model, address).agrees
    assert asked[2] == asked[3]


def test_a_server_without_batches_is_asked_one_by_one(model: Path) -> None:
    def single(handler: Any, body: Any) -> bool:
        if body and len(body.get("inputs", "")) > 1:
            handler.send({"error": "batch size 4 > maximum allowed batch size 1"}, status=413)
            return True
        return False

    with served(Runtime(model), odd=single) as address:
        found = compare(model, address)
    assert found.agrees and any("refuses 2 texts in a request" in note for note in found.notes)


def test_only_batches_that_are_refused_are_asked_one_by_one(model: Path) -> None:
    taken: set[int] = set()

    def small(handler: Any, body: Any) -> bool:
        if body and len(body.get("inputs", "")) > 2:
            handler.send({"error": "batch size 4 > maximum allowed batch size 2"}, status=413)
            return True
        taken.add(len(body["inputs"]) if body else 0)
        return False

    with served(Runtime(model), odd=small) as address:
        found = compare(model, address)
    assert found.agrees and 2 in taken and not any("refuses 2 texts" in note for note in found.notes)


def test_texts_that_are_refused_are_told(model: Path) -> None:
    def limited(most: int) -> Callable[[Any, Any], bool]:
        def odd(handler: Any, body: Any) -> bool:
            if (
                body
                and handler.path == "/embed"
                and any(len(handler.runtime.ids(each)) >= most for each in body["inputs"])
            ):
                handler.send({"error": "`inputs` must have less tokens"}, status=413)
                return True
            return without_tokens(handler, body)

        return odd

    with served(Runtime(model, longest=10_000, keeps_end=True), odd=limited(65)) as address:
        found = compare(model, address)
        assert found.agrees and any("beyond the limit are refused" in note for note in found.notes)
    with served(Runtime(model), odd=limited(40)) as address:
        found = compare(model, address)
    assert not found.agrees and "it refuses texts of" in found.verdict and "less tokens" in found.verdict


def odd_answers(model: Path) -> dict[str, tuple[Callable[[Any, Any], bool], str]]:
    def sends(content: object, **options: Any) -> Callable[[Any, Any], bool]:
        return lambda handler, body: handler.path == "/embed" and (handler.send(content, **options) or True)

    def closes(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"[[0.1,")
            handler.close_connection = True
        return handler.path == "/embed"

    def hangs(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            time.sleep(3)
        return False

    def trickles(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            for _ in range(40):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
            handler.close_connection = True
        return handler.path == "/embed"

    def trickles_headers(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for number in range(60):
                handler.wfile.write(b"X-%d: a\r\n" % number)
                handler.wfile.flush()
                time.sleep(0.05)
            handler.wfile.write(b"Content-Length: 2\r\n\r\n[]")
        return handler.path == "/embed"

    def repeats(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.send([[handler.headers["Authorization"]]])
        return handler.path == "/embed"

    return {
        "a key in a vector": (repeats, "not a vector: ['Bearer (hidden)']"),
        "headers in a trickle": (trickles_headers, "does not answer within 0.5 seconds"),
        "nonsense": (sends(b"<html>"), "answers what is not JSON"),
        "an object": (sends({"a": 1}), "a dict where vectors of 1 texts"),
        "words": (sends([["a", "b"]]), "answers what is not a vector"),
        "ragged rows": (sends([[1, [2]]]), "answers what is not a vector"),
        "too many": (sends([[1.0], [2.0]]), "answers 2 where vectors of 1 texts"),
        "another width": (sends([[1.0, 2.0]]), "it is another model"),
        "infinite numbers": (sends(b"[[1e999]]"), "too large"),
        "a key wanted": (sends({"error": "who?"}, status=401), "asks for a key (status 401)"),
        "another address": (sends(b"", status=308, headers={"Location": "http://x/"}), "leads to another address"),
        "a long wait": (sends({}, status=429, headers={"Retry-After": "3600"}), "is busy (status 429)"),
        "errors": (sends({"error": f"bad key {KEY}"}, status=500), "bad key (hidden)"),
        "an early end": (closes, "breaks off its answers"),
        "silence": (hangs, "does not answer within 0.5 seconds"),
        "a trickle": (trickles, "does not answer within 0.5 seconds"),
    }


@pytest.mark.parametrize("name", odd_answers(Path()))
def test_odd_servers_end_in_one_sentence(model: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_xlmr.conformance.http_calls.FIRST_WAIT", 0.01)
    monkeypatch.setenv("HF_XLMR_RUNTIME_KEY", KEY)
    odd, said = odd_answers(model)[name]
    with served(Runtime(model), odd=odd) as address, pytest.raises(InputError) as caught:
        compare(model, address, timeout=0.5)
    told = str(caught.value)
    assert said in told and KEY not in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("status", [200, 302, 401, 500])
def test_what_is_not_tei_at_info_may_be_the_other_interface(model: Path, status: int) -> None:
    def odd(handler: Any, _body: Any) -> bool:
        if handler.path == "/info":
            handler.send(b"<html>", status=status, headers={"Location": "/login"} if status == 302 else {})
        return handler.path == "/info"

    with served(Runtime(model), odd=odd) as address:
        assert compare(model, address).runtime == "a server with OpenAI's interface (the-model)"


def test_a_page_at_every_path_is_told(model: Path) -> None:
    with (
        served(None, odd=lambda handler, _body: handler.send(b"<html>") or True) as address,
        pytest.raises(InputError, match="/info answers what is not JSON"),
    ):
        compare(model, address)


def test_a_page_beside_an_interface_that_wants_a_key_is_not_what_is_told(model: Path) -> None:
    def odd(handler: Any, _body: Any) -> bool:
        handler.send(b"<html>", status=200 if handler.path == "/info" else 401)
        return True

    with served(None, odd=odd) as address, pytest.raises(InputError, match="asks for a key"):
        compare(model, address)


def test_a_server_that_answers_nothing_is_not_asked_everything(model: Path) -> None:
    asked: list[str] = []

    def odd(handler: Any, _body: Any) -> bool:
        asked.append(handler.path)
        if handler.path == "/embed":
            handler.send({"error": "out of memory"}, status=500)
        return handler.path == "/embed"

    with (
        served(Runtime(model), odd=odd) as address,
        pytest.raises(InputError, match="no answer: status 500: out of"),
    ):
        compare(model, address)
    assert asked.count("/embed") == 8


def test_values_that_are_not_finite_are_named(model: Path) -> None:
    def nulls(handler: Any, body: Any) -> bool:
        if handler.path == "/embed":
            handler.send([[None] * 16 for _ in body["inputs"]])
        return handler.path == "/embed" or without_tokens(handler, body)

    with served(Runtime(model), odd=nulls) as address:
        assert "gives values that are not finite" in compare(model, address).verdict


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://host/x", "not an address of the web"),
        ("file:///etc/passwd", "not an address of the web"),
        ("http://", "not an address of the web"),
        ("http://host:99999/", "not an address of the web"),
        ("http://user:pa55word@127.0.0.1:9/?key=s3cret", "cannot be reached"),
        ("no/such/folder", "is not a folder or file, nor an address"),
    ],
)
def test_addresses_are_checked_and_hide_what_is_secret(model: Path, address: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        compare(model, address, timeout=2)
    assert said in str(caught.value)
    assert "pa55word" not in str(caught.value) and "s3cret" not in str(caught.value)


def test_user_and_password_are_hidden_as_a_header_has_them(model: Path) -> None:
    def repeats(handler: Any, _body: Any) -> bool:
        handler.send({"error": f"what is {handler.headers['Authorization']}?"}, status=400)
        return True

    with served(None, odd=repeats) as address, pytest.raises(InputError) as caught:
        compare(model, address.replace("http://", "http://me:pa%20ss@") + "/embed")
    assert "what is Basic (hidden)?" in str(caught.value)


def test_folders_of_nothing_and_of_too_much(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "two" / name).write_bytes(b"x")
    for target, said in (
        ("empty", "is not a folder of ONNX"),
        ("two", "holds several models"),
        ("two/a.onnx", "a.onnx"),
    ):
        if target != "two/a.onnx" or pytest.importorskip("onnxruntime"):
            with pytest.raises(InputError, match=said):
                compare(model, tmp_path / target)


def test_a_report_that_cannot_be_written_is_one_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        compare(model, model, report=tmp_path / "missing" / "page.html")


# ---- the program -----------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_what_it_found(model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The train leaves.\nДети играют.\n" * 3, encoding="utf-8")
    page = tmp_path / "page.html"
    given = {"prepare": FAULTS["tanh GELU"][0]["prepare"]}
    with served(Runtime(model, **given), odd=without_tokens) as address:
        secret = address.replace("http://", f"http://me:{KEY}@") + f"/?token={KEY}"
        shown = in_process.run("verify-runtime", model, secret, "--texts", texts, "--report", page)
        as_json = in_process.run("verify-runtime", model, secret, "--json", "--pool", "mean")
        wide = in_process.run("verify-runtime", model, secret, "--tolerance", "0.5", "--quiet")
    assert shown.returncode == as_json.returncode == 1 and wide.returncode == 0 and not wide.stdout
    assert "the tanh approximation of GELU" in " ".join(shown.stdout.split()) and "your texts" in shown.stdout
    found = json.loads(as_json.stdout)
    assert found["agrees"] is False and found["faults"] == [
        "computes the tanh approximation of GELU, not the exact GELU"
    ]
    html = page.read_text(encoding="utf-8")
    assert "the tanh approximation of GELU" in html and "your texts" in html and "src=" not in html
    assert KEY not in shown.stdout + shown.stderr + as_json.stdout + as_json.stderr + html
