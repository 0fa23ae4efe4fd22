"""A web server on this machine that sends files, and parts of them if it may; it counts what it sent."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

__all__ = ["Served", "running_server"]


@dataclass
class Served:
    """The files of the server by their paths, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    sends_parts: bool = True
    token: str = ""
    """What the query of each request must hold as its token; any, if empty."""
    sent: list[int] = field(default_factory=list)
    """The bytes of each answer."""
    requests: int = 0
    has_marks: bool = True
    """Whether it says what changes with a file."""
    url: str = ""


@contextmanager
def running_server() -> Iterator[Served]:
    """The server, until the block ends."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer is one packet

        def do_HEAD(self) -> None:
            self._answer(is_body_wanted=False)

        def do_GET(self) -> None:
            self._answer(is_body_wanted=True)

        def _answer(self, *, is_body_wanted: bool) -> None:
            served.requests += 1
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            if served.token and query.get("token") != [served.token]:
                self._send(403, b"", {})
                return
            content = served.files.get(path)
            below = sorted(name for name in served.files if name.startswith(path) and path.endswith("/"))
            if content is None and not below:
                self._send(404, b"", {})
                return
            if content is None:
                content = "".join(f'<a href="{name}">{name}</a>\n' for name in below).encode()
            marks = {"ETag": f'"{sha256(content).hexdigest()}"'} if served.has_marks else {}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and served.sends_parts:
                first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
                marks["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                self._send(206, content[first : last + 1], marks, is_body_wanted=is_body_wanted)
            else:
                self._send(200, content, marks, is_body_wanted=is_body_wanted)

        def _send(self, status: int, body: bytes, headers: dict[str, str], *, is_body_wanted: bool = True) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if is_body_wanted:
                served.sent.append(len(body))
                self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
