"""Requests to a server that may be slow, busy, broken or hostile: limits of time and size, retries, no secrets told."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from http import HTTPStatus
from threading import Thread
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from hf_xlmr.data.remote_files import without_credentials
from hf_xlmr.errors import InputError, printable
from hf_xlmr.files.json_files import LARGEST, strict_json

if TYPE_CHECKING:
    import httpx2

__all__ = ["KEY", "Calls", "LockedAnswer", "OddAnswer", "RefusedRequest"]

KEY: Final = "HF_XLMR_RUNTIME_KEY"
BUSY: Final = frozenset({429, 502, 503, 504})
MOST_TRIES: Final = 6
FIRST_WAIT: Final = 0.5  # seconds, twice as long after each try
LONGEST_WAIT: Final = 10.0
LONGEST_REASON: Final = 200  # characters
SHORTEST_SECRET: Final = 3
HIDDEN: Final = "(hidden)"
REASONS: Final = ("error", "message", "detail")
CONTROL: Final = re.compile(r"[\s\x00-\x1f]+")


class RefusedRequest(InputError):
    """That a server does not want what it was asked."""

    def __init__(self, message: str, status: int) -> None:
        """Carry the HTTP `status`."""
        super().__init__(message)
        self.status = status


class OddAnswer(InputError):
    """That what answers is not an interface that is known, or not one for everybody."""


class LockedAnswer(OddAnswer):
    """That a server wants a key."""


class Calls:
    """JSON in requests and answers, to one server."""

    def __init__(self, address: str, *, timeout: float) -> None:
        """Prepare to call an http or https address; a request ends after `timeout` seconds. Raises InputError."""
        import httpx2

        self.shown = printable(without_credentials(address))
        try:
            parts = urlsplit(address)
            is_web = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
            self._port = parts.port
        except ValueError:
            is_web = False
        if not is_web:
            raise InputError(
                f"{self.shown} is not an address of the web: give one that begins with http:// or https://"
            )
        self.base = parts.path.rstrip("/")
        self._parts, self._timeout = parts, timeout
        key = os.environ.get(KEY, "")
        self._secrets = {key, *_secrets_of(address)}
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx2.Client(timeout=timeout, follow_redirects=False, headers=headers)
        except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
            raise InputError(f"the network cannot be used ({self.told(str(error))})") from None

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON at a path. Raises InputError, RefusedRequest."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """The JSON that a path answers to `body`. Raises InputError, RefusedRequest."""
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        """One request, again while the server is busy or breaks off."""
        import httpx2

        wait, trouble = FIRST_WAIT, ""
        ends = time.monotonic() + 3 * self._timeout
        for tried in range(MOST_TRIES):
            try:
                response, data = self._in_time(method, path, body)
            except httpx2.TimeoutException:
                raise InputError(f"{self.shown}{path} does not answer within {self._timeout:g} seconds") from None
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.ConnectError) as error:
                raise InputError(f"{self.shown} cannot be reached ({self.told(str(error))})") from None
            except (httpx2.HTTPError, OSError, ValueError) as error:
                trouble = f"breaks off its answers ({self.told(str(error)) or type(error).__name__})"
            else:
                if response.status_code not in BUSY:
                    return self._read(path, response, data)
                trouble = f"is busy (status {response.status_code})"
                wait = max(wait, _retry_after(response))
            if wait > LONGEST_WAIT or tried + 1 == MOST_TRIES or time.monotonic() + wait > ends:
                break
            time.sleep(wait)
            wait *= 2
        raise InputError(f"{self.shown}{path} {trouble}{f', also after {tried + 1} tries' if tried else ''}")

    def _in_time(self, *request: Any) -> tuple[httpx2.Response, bytes]:
        """An answer that is there in time: the client's own limit starts again with each byte of the headers."""
        import httpx2

        answer: Future[tuple[httpx2.Response, bytes]] = Future()

        def run() -> None:
            try:
                answer.set_result(self._answer(*request))
            except Exception as error:  # noqa: BLE001 - raised in the other thread
                answer.set_exception(error)

        Thread(target=run, daemon=True).start()
        try:
            return answer.result(timeout=self._timeout)
        except FutureTimeoutError:
            raise httpx2.ReadTimeout("the answer does not end") from None

    def _answer(self, method: str, path: str, body: Mapping[str, object] | None) -> tuple[httpx2.Response, bytes]:
        import httpx2

        address = self._parts._replace(path=f"{self.base}{path}", fragment="").geturl()
        ends = time.monotonic() + self._timeout
        held = bytearray()
        with self._client.stream(method, address, json=body) as response:
            for chunk in response.iter_bytes():
                held += chunk
                if time.monotonic() > ends:
                    raise httpx2.ReadTimeout("the answer does not end")
                if len(held) > LARGEST:
                    raise OddAnswer(f"{self.shown}{path} answers more than {LARGEST >> 20} MB")
        return response, bytes(held)

    def _read(self, path: str, response: httpx2.Response, data: bytes) -> Any:
        status = response.status_code
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise LockedAnswer(f"{self.shown} asks for a key (status {status}): set the variable {KEY} to it")
        if response.is_redirect:
            raise OddAnswer(f"{self.shown}{path} leads to another address (status {status}): name that one")
        try:
            content = strict_json(data)
        except ValueError as error:
            content, damage = None, self.told(str(error))
        else:
            damage = ""
        if not response.is_success:
            raise RefusedRequest(f"status {status}: {self._reason(content, data)}", status)
        if damage:
            raise OddAnswer(f"{self.shown}{path} answers what is not JSON ({damage})")
        return content

    def _reason(self, content: Any, data: bytes) -> str:
        """What the server says, shortened, and without what it may repeat of a key."""
        while isinstance(content, Mapping):
            content = next((content[name] for name in REASONS if content.get(name)), "no reason")
        text = content if isinstance(content, str) else data.decode("utf-8", "replace")
        return self.told(text) or "no reason"

    def told(self, text: str) -> str:
        """What a server says, in one short line without what is secret."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, HIDDEN)
        return printable(CONTROL.sub(" ", text).strip()[:LONGEST_REASON])


def _retry_after(response: httpx2.Response) -> float:
    """The seconds that a busy server asks for; one that asks for too many is given up."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < LONGEST_REASON else 0.0


def _secrets_of(address: str) -> set[str]:
    """What an address holds that must not be shown: user, password and query."""
    try:
        parts = urlsplit(address)
        found = {parts.username or "", parts.password or "", parts.query}
    except ValueError:
        return set()
    found |= {each.partition("=")[2] for each in parts.query.split("&")}
    found |= {unquote(each) for each in found}
    basic = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"  # as a header has them
    return found | {base64.b64encode(basic.encode()).decode()}
