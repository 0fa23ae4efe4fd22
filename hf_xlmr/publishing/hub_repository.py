"""A repository on the Hub: what it holds, how a folder differs from that, and who may write there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from hf_xlmr.errors import InputError
from hf_xlmr.hub.hub_errors import TOKENS, HubRefusal, NotOnTheHub, hub_utils, not_understood, told_by_the_hub
from hf_xlmr.publishing.folder_to_push import WEIGHTS, LocalFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "MAIN",
    "Account",
    "Differences",
    "HubState",
    "RemoteFile",
    "Target",
    "account_of",
    "check_on_hub",
    "files_at",
    "names_ignored",
    "warnings_of_card",
    "why_not_sent",
]

MAIN: Final = "main"
LIBRARY: Final = "hf_xlmr"
MOST_ASKED: Final = 256  # files of one request, as huggingface_hub asks


@dataclass(frozen=True)
class Target:
    """Where a folder goes."""

    repo_id: str
    branch: str = MAIN
    create_pr: bool = False
    private: bool = False

    @property
    def namespace(self) -> str:
        """The user or the organization."""
        return self.repo_id.partition("/")[0]

    def path_of(self, call: str) -> str:
        """Of a call about the branch, below the Hub's `/api/`."""
        proposed = "?create_pr=1" if self.create_pr else ""
        return f"models/{self.repo_id}/{call}/{quote(self.branch, safe='')}{proposed}"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it."""

    size: int
    git_hash: str
    sha256: str | None
    """None where it lies in git itself, as small texts do."""

    def is_like(self, file: LocalFile) -> bool:
        """Whether both have the same content. Raises OSError."""
        if self.size != file.size:
            return False
        return self.sha256 == file.sha256 if self.sha256 else self.git_hash == _git_hash(file.path)


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Account:
    """Whose token it is."""

    name: str
    organizations: tuple[str, ...]


@dataclass(frozen=True)
class HubState:
    """What a repository showed when it was looked at; files and head are main's where the branch is not there."""

    is_there: bool = False
    is_private: bool = False
    has_branch: bool = False
    head: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)

    @classmethod
    def of(cls, api: HfApi, repo_id: str, revision: str) -> HubState:
        """Look at a repository; one that is not there is a state too. Raises HubRefusal."""
        repository = _info_of(api, repo_id)
        if repository is None:
            return cls()
        branch = repository if revision == MAIN else _info_of(api, repo_id, revision)
        head = (branch or repository).sha
        return cls(
            is_there=True,
            is_private=bool(repository.private),
            has_branch=branch is not None,
            head=head,
            files=files_at(api, repo_id, head) if head else {},
        )


def _info_of(api: HfApi, repo_id: str, revision: str | None = None) -> Any:
    """What the Hub tells of a repository or a revision of it, None where that is not there. Raises HubRefusal."""
    try:
        with told_by_the_hub(repo_id):
            return api.repo_info(repo_id, revision=revision)
    except NotOnTheHub:
        return None


def files_at(api: HfApi, repo_id: str, revision: str) -> dict[str, RemoteFile]:
    """The files of a revision by their names. Raises HubRefusal."""
    from huggingface_hub.hf_api import RepoFile

    with told_by_the_hub(repo_id):
        return {
            each.path: RemoteFile(each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
            for each in api.list_repo_tree(repo_id, recursive=True, revision=revision)
            if isinstance(each, RepoFile)
        }


def names_ignored(api: HfApi, target: Target, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that a commit would leave out, as the `.gitignore` of the branch says. Raises HubRefusal."""
    files, path = [{"path": name, "size": 0, "sample": ""} for name in names], target.path_of("preupload")
    several = (files[first : first + MOST_ASKED] for first in range(0, len(files), MOST_ASKED))
    answers = [_asked(api, path, {"files": each}, about=target.repo_id) for each in several]
    try:
        return tuple(str(each["path"]) for told in answers for each in told["files"] if each["shouldIgnore"])
    except (LookupError, TypeError):
        raise not_understood("it does not tell which files it ignores") from None


def why_not_sent(api: HfApi, target: Target, error: HubRefusal) -> HubRefusal:
    """`error`, or what the Hub says itself where it refused hf_xet, which says only that the connection failed."""
    try:
        _asked(api, target.path_of("xet-write-token"), about=target.repo_id)
    except HubRefusal as told:
        return told if told.status in (401, 403) else error
    return error


def _asked(api: HfApi, path: str, content: Mapping[str, object] | None = None, *, about: str) -> Any:
    """The answer to a call of the Hub that huggingface_hub has no method for. Raises HubRefusal."""
    from huggingface_hub import get_session

    with told_by_the_hub(about):
        headers = hub_utils().build_hf_headers(token=api.token, library_name=LIBRARY)
        method = "GET" if content is None else "POST"
        answer = get_session().request(method, f"{api.endpoint}/api/{path}", json=content, headers=headers)
        hub_utils().hf_raise_for_status(answer)
        return answer.json()


@dataclass(frozen=True)
class Differences:
    """What a commit would have to do."""

    sent: tuple[str, ...]
    unchanged: tuple[str, ...]
    deleted: tuple[str, ...]
    """Weights of an earlier layout, which Transformers could load in place of those that are sent."""
    stays: tuple[str, ...]
    """What else the Hub holds, hidden files aside."""

    @classmethod
    def between(cls, files: Mapping[str, LocalFile], remote: Mapping[str, RemoteFile]) -> Differences:
        """From what the Hub holds to `files`; what else it holds stays. Raises OSError."""
        unchanged = tuple(name for name, file in files.items() if name in remote and remote[name].is_like(file))
        deleted = tuple(name for name in remote if WEIGHTS.fullmatch(name) and name not in files)
        return cls(
            sent=tuple(name for name in files if name not in unchanged),
            unchanged=unchanged,
            deleted=deleted,
            stays=tuple(name for name in remote if name not in {*files, *deleted} and not name.startswith(".")),
        )

    @property
    def is_none(self) -> bool:
        """Whether the Hub holds the folder already."""
        return not self.sent and not self.deleted


# ---- what is asked before anything is sent ---------------------------------------------------------------------------


def account_of(api: HfApi) -> Account:
    """Whose token is used. Raises HubRefusal for none, for a wrong one and for one that may only read."""
    with told_by_the_hub("your account"):
        about: Any = api.whoami()
    try:
        role = ((about.get("auth") or {}).get("accessToken") or {}).get("role")
        account = Account(str(about["name"]), tuple(str(each["name"]) for each in about.get("orgs") or ()))
    except (AttributeError, LookupError, TypeError):
        raise not_understood("it does not tell whose token it is") from None
    if role == "read":
        raise HubRefusal(
            f"the token may only read: take one that may write from {TOKENS}, and log in with `hf auth login --force`, "
            "or set HF_TOKEN"
        )
    return account


def check_on_hub(target: Target, account: Account, state: HubState) -> None:
    """Refuse what the Hub would refuse after the upload, or do otherwise than was asked. Raises InputError."""
    if target.create_pr and not state.has_branch:
        missing = (
            f"no branch {target.branch}" if state.is_there else "no repository of that name that the token may see"
        )
        raise InputError(
            f"{target.repo_id}: there is {missing}, to which to propose a change: leave create_pr=True out"
        )
    if state.is_there and target.private and not state.is_private:
        raise InputError(
            f"{target.repo_id} is there and public, and private=True makes only new repositories private: make it "
            "private in its settings on the Hub, or leave private=True out"
        )
    if not state.is_there and target.namespace not in (account.name, *account.organizations):
        theirs = " and ".join((account.name, *account.organizations))
        raise InputError(
            f"{target.repo_id} is not there, and this token makes repositories of {theirs} alone: say "
            f"{account.name}/{target.repo_id.partition('/')[2]}, or take another token"
        )


def warnings_of_card(api: HfApi, card: str) -> tuple[str, ...]:
    """What the Hub remarks on a model card. Raises InputError where it would not take it, HubRefusal."""
    try:
        told = _asked(api, "validate-yaml", {"content": card, "repoType": "model"}, about="the check of cards")
    except HubRefusal as error:
        if error.status != 400:
            raise
        raise InputError(f"the Hub does not take the metadata at the top of README.md: {error.said}") from error
    try:
        return tuple(f"README.md: {each['message']}" for each in told.get("warnings", []))
    except (AttributeError, LookupError, TypeError):
        raise not_understood("it does not tell what it thinks of the card") from None
