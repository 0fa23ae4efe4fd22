"""A Hub on this machine: the calls that huggingface_hub makes to publish and to load a model, and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["FOREIGN", "GOOD_TOKEN", "READ_TOKEN", "Fault", "LocalHub", "Request", "running_hub"]

GOOD_TOKEN, READ_TOKEN, FOREIGN = "hf_good", "hf_read", "hf_foreign"
OWNERS = {GOOD_TOKEN: "me", READ_TOKEN: "me", FOREIGN: "other"}
IN_LFS = re.compile(r".*\.(safetensors|model|bin)|tokenizer\.json")  # as the .gitattributes of a new repository say
READS = {"whoami-v2", "validate-yaml", "agent-harnesses"}


class Blob(NamedTuple):
    """The content of a file, in git or beside it."""

    content: bytes
    is_lfs: bool

    @property
    def git_hash(self) -> str:
        content = self.content
        if self.is_lfs:
            content = f"oid sha256:{sha(self.content)}\nsize {len(content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    """The commit that each branch, or pull request (refs/pr/1), is at."""
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: dict[int, str] = field(default_factory=dict)
    """Of pull requests."""

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {branch}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Request:
    method: str
    path: str
    received: int = 0
    """Bytes of the body that arrived."""

    @property
    def is_write(self) -> bool:
        """Whether it changes anything, or begins to."""
        return self.method in ("PUT", "DELETE") or (
            self.method == "POST" and not any(self.path.endswith(name) for name in READS)
        )


@dataclass
class Fault:
    """What happens to requests whose method and path match, `times` times after `after` of them went well."""

    matches: str
    status: int | None = None
    """Of the answer; None drops the connection."""
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    body: bytes | None = None
    """Of the answer, in place of a message."""
    times: int = 1_000
    after: int = 0
    is_after_the_deed: bool = False
    """Whether the request is obeyed before it goes wrong."""
    received: int | None = None
    """Bytes of the body that are taken before the connection is dropped."""
    does: Callable[[], object] | None = None
    """Called before it."""
    goes_well: bool = False
    """Whether it is answered as if nothing had been."""

    def applies(self, request: Request) -> bool:
        if not re.fullmatch(self.matches, f"{request.method} {request.path}") or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class LocalHub:
    """The state of the Hub, and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.part_bytes: int | None = None
        """Of multipart transfers; None takes each object in one."""
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.endpoint = ""
        self.lock = threading.Lock()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes] | None:
        """What a visitor sees; None where there is no repository or no such revision."""
        repository = self.repositories.get(repo_id)
        commit = repository.at(revision) if repository else None
        if repository is None or commit is None:
            return None
        return {name: blob.content for name, blob in repository.commits[commit].items() if name != ".gitattributes"}

    def create(self, repo_id: str, *, private: bool = False, files: Mapping[str, bytes] | None = None) -> Repository:
        repository = self.repositories[repo_id] = Repository(private)
        attributes = {".gitattributes": Blob(b"*.safetensors filter=lfs\n", is_lfs=False)}
        blobs = {name: Blob(content, bool(IN_LFS.fullmatch(name))) for name, content in (files or {}).items()}
        repository.commit("main", attributes | blobs)
        return repository

    @property
    def writes(self) -> list[Request]:
        return [request for request in self.requests if request.is_write]

    @property
    def uploaded(self) -> int:
        """Bytes of objects that arrived, whole or not."""
        return sum(request.received for request in self.requests if request.method == "PUT")

    def forget(self) -> None:
        """Begin to count anew, without faults."""
        self.requests.clear()
        self.faults.clear()


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurAnswers", (Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Answer(Exception):
    """An answer that ends a request."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        self.status = status
        self.body = body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


NO_REPOSITORY = Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
NO_REVISION = Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
NO_ENTRY = Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")


class Answers(BaseHTTPRequestHandler):
    hub: LocalHub

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        request = Request(self.command, unquote(url.path))
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = next((each for each in self.hub.faults if each.applies(request)), None)
        if fault is not None and fault.does is not None:
            fault.does()
        if fault is not None and fault.goes_well:
            fault = None
        body = self.read_body(request, fault.received if fault else None)
        if fault is not None and not fault.is_after_the_deed:
            self.fail(fault)
            return
        try:
            with self.hub.lock:
                self.route(request, body)
        except Answer as answer:
            if fault is not None:
                self.fail(fault)
            else:
                self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815  # the base class names them so

    def read_body(self, request: Request, limit: int | None) -> bytes:
        """What arrives, up to `limit`; chunks are put together."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            return self.read_chunks(request)
        left = int(self.headers.get("Content-Length") or 0)
        left = left if limit is None else min(left, limit)
        body = b""
        while left and (block := self.rfile.read(min(left, 1 << 16))):
            body += block
            left -= len(block)
            request.received += len(block)
        return body

    def read_chunks(self, request: Request) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        request.received = len(body)
        return body

    def fail(self, fault: Fault) -> None:
        if fault.status is None:
            self.close_connection = True
            with suppress(OSError):  # the other side may have gone first
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        gateways = (b"<html><h1>An error</h1></html>", {"Content_Type": "text/html"})  # who gives no reason
        body, headers = ({"error": fault.message}, {}) if fault.message else gateways
        self.send(Answer(fault.status, body if fault.body is None else fault.body, **headers, **fault.headers))

    def send(self, answer: Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        pass

    # ---- who asks ----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def user(self) -> str:
        if self.token not in OWNERS:
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        return OWNERS[self.token]

    def raise_if_read_only(self, repo_id: str, *, create_pr: bool = False) -> None:
        namespace = repo_id.partition("/")[0]
        user = self.user()
        if self.token == READ_TOKEN or (not create_pr and namespace not in (user, "team" if user == "me" else "")):
            raise Answer(403, {"error": f"You don't have the required permissions to write to {repo_id}"})

    def repository(self, repo_id: str) -> Repository:
        found = self.hub.repositories.get(repo_id)
        if found is None or (found.private and OWNERS.get(str(self.token)) != repo_id.partition("/")[0]):
            raise NO_REPOSITORY
        return found

    def commit_of(self, repo_id: str, revision: str) -> tuple[Repository, str]:
        repository = self.repository(repo_id)
        commit = repository.at(revision)
        if commit is None:
            raise NO_REVISION
        return repository, commit

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def route(self, request: Request, body: bytes) -> None:
        path = urlsplit(self.path).path  # where a revision such as refs/pr/1 is one part
        for pattern, name in ROUTES:
            if found := re.fullmatch(pattern, f"{request.method} {path}"):
                parts = [unquote(part) for part in found.groups() if part is not None]
                getattr(self, name)(*parts, **({"body": body} if request.method in ("POST", "PUT") else {}))
        raise Answer(404, {"error": f"this Hub does not know {request.method} {request.path}"})

    def whoami(self) -> None:
        user = self.user()
        role = "read" if self.token == READ_TOKEN else "write"
        orgs = [{"name": "team"}] if user == "me" else []
        auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
        raise Answer(200, {"type": "user", "name": user, "orgs": orgs, "auth": auth})

    def validate_yaml(self, *, body: bytes) -> None:
        content = json.loads(body)["content"]
        block = re.match(r"---\n(.*?)\n---", content, flags=re.S)
        if block is None:
            raise Answer(200, {"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []})
        licence = re.search(r"^license: (.*)$", block[1], flags=re.M)
        if licence and licence[1] not in ("mit", "apache-2.0", "other"):
            errors = [{"message": f'"license" must be one of [apache-2.0, mit, other], not {licence[1]}'}]
            raise Answer(400, {"errors": errors, "warnings": []})
        raise Answer(200, {"warnings": [], "errors": []})

    def create(self, *, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization'] or self.user()}/{asked['name']}"
        self.raise_if_read_only(repo_id)
        if repo_id in self.hub.repositories:
            raise Answer(409, {"error": "You already created this model repo"})
        self.hub.create(repo_id, private=asked.get("visibility") == "private")
        raise Answer(200, {"url": f"{self.hub.endpoint}/{repo_id}"})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository, commit = self.commit_of(repo_id, revision)
        names = [{"rfilename": name} for name in repository.commits[commit]]
        raise Answer(200, {"id": repo_id, "sha": commit, "private": repository.private, "siblings": names})

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repository, commit = self.commit_of(repo_id, revision)
        listed: list[dict[str, Any]] = []
        inside = {name: blob for name, blob in repository.commits[commit].items() if name.startswith(folder)}
        if not inside:
            raise NO_ENTRY
        for name, blob in inside.items():
            entry = {"type": "file", "path": name, "size": len(blob.content), "oid": blob.git_hash}
            lfs = {"oid": sha(blob.content), "size": len(blob.content), "pointerSize": 130}
            listed.append({**entry, **({"lfs": lfs} if blob.is_lfs else {})})
            if "/" in name:
                listed.append({"type": "directory", "path": name.rpartition("/")[0], "oid": "0" * 40})
        raise Answer(200, listed)

    def branch(self, repo_id: str, name: str, *, body: bytes) -> None:
        repository = self.repository(repo_id)
        self.raise_if_read_only(repo_id)
        if name in repository.branches:
            raise Answer(409, {"error": "Reference already exists"})
        repository.branches[name] = repository.branches["main"]
        raise Answer(200, {})

    def discussions(self, repo_id: str) -> None:
        found = [
            {
                "title": title,
                "num": number,
                "author": {"name": "me"},
                "status": "open",
                "isPullRequest": True,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "repo": {"name": repo_id, "type": "model"},
            }
            for number, title in self.repository(repo_id).titles.items()
        ]
        raise Answer(200, {"discussions": found, "count": len(found), "start": 0})

    # ---- what is sent ------------------------------------------------------------------------------------------------

    def preupload(self, repo_id: str, revision: str, *, body: bytes) -> None:
        repository, commit = self.commit_of(repo_id, revision)
        self.raise_if_read_only(repo_id, create_pr="create_pr" in self.query)
        ignored = repository.commits[commit].get(".gitignore", Blob(b"", is_lfs=False)).content.decode().split()
        modes = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if IN_LFS.fullmatch(each["path"].rpartition("/")[2]) else "regular",
                "shouldIgnore": each["path"] in ignored,
            }
            for each in json.loads(body)["files"]
        ]
        raise Answer(200, {"files": modes})

    def batch(self, repo_id: str, *, body: bytes) -> None:
        self.repository(repo_id)
        asked = json.loads(body)
        self.raise_if_read_only(repo_id, create_pr="ref" not in asked)
        objects = []
        for each in asked["objects"]:
            if each["oid"] not in self.hub.objects:
                each = {**each, "actions": self.actions(repo_id, each["oid"], each["size"])}
            objects.append(each)
        raise Answer(200, {"objects": objects, "transfer": "multipart" if self.hub.part_bytes else "basic"})

    def actions(self, repo_id: str, oid: str, size: int) -> dict[str, Any]:
        place = f"{self.hub.endpoint}/objects/{oid}"
        verify = {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/verify"}
        length = self.hub.part_bytes
        if length is None:
            return {"upload": {"href": place}, "verify": verify}
        count = -(-size // length)
        header = {str(number): f"{place}/{number}" for number in range(1, count + 1)}
        return {
            "upload": {"href": f"{place}/complete", "header": {**header, "chunk_size": str(length)}},
            "verify": verify,
        }

    def put(self, oid: str, *, body: bytes) -> None:
        if sha(body) != oid:
            raise Answer(400, {"error": "the content is not that of its checksum"})
        self.hub.objects[oid] = body
        raise Answer(200, {})

    def put_part(self, oid: str, number: str, *, body: bytes) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = body
        raise Answer(200, {}, ETag=sha(body))

    def complete(self, oid: str, *, body: bytes) -> None:
        parts = [self.hub.parts[oid][each["partNumber"]] for each in json.loads(body)["parts"]]
        self.put(oid, body=b"".join(parts))

    def verify(self, repo_id: str, *, body: bytes) -> None:
        asked = json.loads(body)
        held = self.hub.objects.get(asked["oid"])
        raise Answer(200 if held is not None and len(held) == asked["size"] else 404, {})

    def commit(self, repo_id: str, revision: str, *, body: bytes) -> None:
        repository, head = self.commit_of(repo_id, revision)
        create_pr = "create_pr" in self.query
        self.raise_if_read_only(repo_id, create_pr=create_pr)
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit", head) != head:
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(repository.commits[head])
        for operation in operations:
            self.apply(operation, files)
        number = len(repository.titles) + 1
        commit = repository.commit(f"refs/pr/{number}" if create_pr else revision, files)
        answer = {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{commit}", "commitOid": commit, "success": True}
        if create_pr:
            repository.titles[number] = header["value"]["summary"]
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        raise Answer(200, answer)

    def apply(self, operation: Mapping[str, Any], files: dict[str, Blob]) -> None:
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
        elif operation["key"] == "lfsFile":
            if value["oid"] not in self.hub.objects:
                raise Answer(400, {"error": f"LFS pointer of {value['path']} points to no object"})
            files[value["path"]] = Blob(self.hub.objects[value["oid"]], is_lfs=True)
        elif operation["key"] == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Answer(404, {"error": "A file with this name doesn't exist"}, X_Error_Code="EntryNotFound")
        else:
            raise Answer(400, {"error": f"this Hub does not know {operation['key']}"})

    # ---- what is loaded ----------------------------------------------------------------------------------------------

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository, commit = self.commit_of(repo_id, revision)
        blob = repository.commits[commit].get(name)
        if blob is None:
            raise NO_ENTRY
        marks = {"ETag": f'"{sha(blob.content)}"', "X_Repo_Commit": commit}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            raise Answer(206, blob.content[int(asked[1]) : int(asked[2]) + 1], **marks)
        raise Answer(200, blob.content, **marks)


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (r"POST /api/repos/create", "create"),
    (rf"GET /api/(?:models|datasets)/{REPO}", "info"),
    (rf"GET /api/models/{REPO}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{REPO}/tree/([^/]+)(?:/(.+))?", "tree"),
    (rf"GET /api/models/{REPO}/discussions", "discussions"),
    (rf"POST /api/models/{REPO}/branch/([^/]+)", "branch"),
    (rf"POST /api/models/{REPO}/preupload/([^/]+)", "preupload"),
    (rf"POST /api/models/{REPO}/commit/([^/]+)", "commit"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "batch"),
    (rf"POST /{REPO}\.git/info/lfs/verify", "verify"),
    (r"PUT /objects/([0-9a-f]{64})", "put"),
    (r"PUT /objects/([0-9a-f]{64})/(\d+)", "put_part"),
    (r"POST /objects/([0-9a-f]{64})/complete", "complete"),
    (rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)", "resolve"),
)
