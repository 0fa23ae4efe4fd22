"""A repository on the Hub: its files, how a folder differs from them, and who may write to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from urllib.parse import quote

from hf_xlmr.errors import InputError
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.hub.hub_errors import TOKENS, HubRefusal, NotOnTheHub, hub_utils, not_understood, told_by_the_hub
from hf_xlmr.publishing.folder_to_push import WEIGHTS, LocalFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

MAIN: Final = "main"
LIBRARY: Final = "hf_xlmr"
MOST_ASKED: Final = 256  # files in one request, as in huggingface_hub
Answer = TypeVar("Answer")
Read = TypeVar("Read")


class RemoteFile(NamedTuple):
    """A file as the Hub lists it."""

    size: int
    git_hash: str
    sha256: str | None
    """None if the file is in git itself, as small text files are."""

    def is_like(self, file: LocalFile) -> bool:
        """Whether this file and `file` have the same content. Raises OSError."""
        if self.size != file.size:
            return False
        if self.sha256:
            return self.sha256 == file.sha256
        content = file.path.read_bytes()
        git_hash = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return self.git_hash == git_hash.hexdigest()


@dataclass(frozen=True)
class Target:
    """The repository and branch that a folder is sent to, and the requests about it; every method raises HubRefusal."""

    api: HfApi
    repo_id: str
    branch: str = MAIN
    create_pr: bool = False
    private: bool = False

    @property
    def page(self) -> str:
        """The address of the branch."""
        return f"{self.api.endpoint}/{self.repo_id}" + ("" if self.branch == MAIN else f"/tree/{self.branch}")

    @property
    def page_to_be(self) -> str:
        """The address of a planned push; for a pull request, which has no number yet, the list of pull requests."""
        return f"{self.api.endpoint}/{self.repo_id}/discussions" if self.create_pr else self.page

    def asked(self, method: Callable[..., Answer], *arguments: object, **options: object) -> Answer:
        """Call a method of huggingface_hub for the repository and return its answer."""
        with told_by_the_hub(self.repo_id):
            return method(self.repo_id, *arguments, **options)

    def info(self, revision: str | None = None) -> ModelInfo | None:
        """The Hub's information on the repository or one of its revisions, None if it does not exist."""
        try:
            return self.asked(self.api.model_info, revision=revision)
        except NotOnTheHub:
            return None

    def files_at(self, revision: str) -> dict[str, RemoteFile]:
        """The files of a revision by their names."""
        from huggingface_hub.hf_api import RepoFile

        with told_by_the_hub(self.repo_id):
            return {
                each.path: RemoteFile(each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
                for each in self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
                if isinstance(each, RepoFile)
            }

    def names_ignored(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of `names` that a commit would leave out, because the branch's `.gitignore` matches them."""
        files = [{"path": name, "size": 0, "sample": ""} for name in names]
        several = [files[first : first + MOST_ASKED] for first in range(0, len(files), MOST_ASKED)]
        answers = [self._called("preupload", {"files": each}) for each in several]
        return _understood(
            lambda: tuple(str(each["path"]) for answer in answers for each in answer["files"] if each["shouldIgnore"]),
            "it does not say which files it ignores",
        )

    def why_not_sent(self, error: HubRefusal) -> HubRefusal:
        """The Hub's own refusal if it refused hf_xet, which reports only a failed connection; else `error`."""
        try:
            self._called("xet-write-token")
        except HubRefusal as refusal:
            return refusal if refusal.status in (401, 403) else error
        return error

    def _called(self, call: str, content: Mapping[str, object] | None = None) -> JsonObject:
        proposed = "?create_pr=1" if self.create_pr else ""
        path = f"models/{self.repo_id}/{call}/{quote(self.branch, safe='')}{proposed}"
        return _called(self.api, path, content, about=self.repo_id)

    def remarks_on(self, card: str) -> tuple[str, ...]:
        """The Hub's warnings about a model card. Raises InputError if the Hub would refuse the card."""
        try:
            content = {"content": card, "repoType": "model"}
            answer = _called(self.api, "validate-yaml", content, about="the check of cards")
        except HubRefusal as error:
            if error.status != 400:
                raise
            raise InputError(f"the Hub refuses the metadata at the top of README.md: {error.said}") from error
        return _understood(
            lambda: tuple(f"README.md: {each['message']}" for each in answer.get("warnings", [])),
            "it does not say whether it accepts the card",
        )


def _called(api: HfApi, path: str, content: Mapping[str, object] | None, *, about: str) -> JsonObject:
    """The answer to a request for which huggingface_hub has no method. Raises HubRefusal."""
    from huggingface_hub import get_session

    with told_by_the_hub(about):
        headers = hub_utils().build_hf_headers(token=api.token, library_name=LIBRARY)
        method = "GET" if content is None else "POST"
        answer = get_session().request(method, f"{api.endpoint}/api/{path}", json=content, headers=headers)
        hub_utils().hf_raise_for_status(answer)
        content_of: JsonObject = answer.json()
        return content_of


def _understood(read: Callable[[], Read], otherwise: str) -> Read:
    try:
        return read()
    except (AttributeError, LookupError, TypeError):
        raise not_understood(otherwise) from None


@dataclass(frozen=True)
class HubState:
    """The state of a repository when it was read; files and head are main's if the branch does not exist."""

    is_there: bool = False
    is_private: bool = False
    has_branch: bool = False
    head: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)

    @classmethod
    def of(cls, target: Target) -> HubState:
        """Read the state of a repository, which need not exist. Raises HubRefusal."""
        repository = target.info()
        if repository is None:
            return cls()
        branch = repository if target.branch == MAIN else target.info(target.branch)
        head = (branch or repository).sha
        files = target.files_at(head) if head else {}
        return cls(
            is_there=True, is_private=bool(repository.private), has_branch=branch is not None, head=head, files=files
        )


@dataclass(frozen=True)
class Differences:
    """The files that a commit would add, delete and leave alone."""

    sent: tuple[str, ...]
    deleted: tuple[str, ...]
    """Weights of an earlier layout, which Transformers could load instead of those that are sent."""
    stays: tuple[str, ...]
    """The other files in the repository, without hidden ones."""

    @classmethod
    def between(cls, files: Mapping[str, LocalFile], remote: Mapping[str, RemoteFile]) -> Differences:
        """Compare the local `files` with those of a repository. Raises OSError."""
        deleted = tuple(name for name in remote if WEIGHTS.fullmatch(name) and name not in files)
        return cls(
            sent=tuple(name for name, file in files.items() if name not in remote or not remote[name].is_like(file)),
            deleted=deleted,
            stays=tuple(name for name in remote if name not in {*files, *deleted} and not name.startswith(".")),
        )

    @property
    def is_none(self) -> bool:
        """Whether the repository already has all of the folder."""
        return not self.sent and not self.deleted


class Account(NamedTuple):
    """The account that the token belongs to."""

    name: str
    organizations: tuple[str, ...]
    may_write: bool


def account_of(api: HfApi) -> Account:
    """The account of the token. Raises HubRefusal if there is no token, a wrong one, or one that may only read."""
    with told_by_the_hub("your account"):
        about = api.whoami()
    account = _understood(lambda: _account(about), "it does not say whose token it is")
    if not account.may_write:
        raise HubRefusal(
            f"the token may only read: create one that may write at {TOKENS}, and log in with `hf auth login --force`, "
            "or set HF_TOKEN"
        )
    return account


def _account(about: JsonObject) -> Account:
    role = ((about.get("auth") or {}).get("accessToken") or {}).get("role")
    return Account(str(about["name"]), tuple(str(each["name"]) for each in about.get("orgs") or ()), role != "read")


def check_on_hub(target: Target, account: Account, state: HubState) -> None:
    """Raise InputError for requests that the Hub would refuse after the upload, or would not do as requested."""
    repo_id, (namespace, _, name) = target.repo_id, target.repo_id.partition("/")
    own: Collection[str] = (account.name, *account.organizations)
    if target.create_pr and not state.has_branch:
        missing = f"branch {target.branch}" if state.is_there else "repository of that name that the token may see"
        raise InputError(f"{repo_id}: create_pr=True needs an existing branch, and there is no {missing}: leave it out")
    if state.is_there and target.private and not state.is_private:
        raise InputError(
            f"{repo_id} exists and is public, and private=True makes only new repositories private: make it private in "
            "its settings on the Hub, or leave private=True out"
        )
    if not state.is_there and namespace not in own:
        raise InputError(
            f"{repo_id} does not exist, and this token can create repositories only of {' and '.join(own)}: use "
            f"{account.name}/{name}, or another token"
        )
