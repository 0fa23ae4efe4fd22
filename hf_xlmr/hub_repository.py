"""A repository on the Hub: what it holds, how a folder differs from that, and the one commit that makes them equal."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.folder_to_push import WEIGHTS, LocalFile
from hf_xlmr.hub_errors import HubRefusal, NotOnTheHub, hub_utils, told_by_the_hub
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "MAIN",
    "Account",
    "Differences",
    "HubState",
    "Published",
    "Target",
    "Upload",
    "account_of",
    "address_of",
    "check_on_hub",
    "warnings_of_card",
]

MAIN: Final = "main"
LIBRARY: Final = "hf_xlmr"
NOTHING_PUBLISHED: Final = "; nothing was published so far, and what was sent is not sent again"


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
    """What a repository showed when it was looked at."""

    is_there: bool = False
    is_private: bool = False
    has_branch: bool = False
    head: str | None = None
    files: Mapping[str, RemoteFile] | None = None

    @classmethod
    def of(cls, api: HfApi, repo_id: str, revision: str) -> HubState:
        """Look at a repository; one that is not there is a state too. Raises HubRefusal."""
        with told_by_the_hub(repo_id):
            try:
                with told_by_the_hub(repo_id):
                    info = api.repo_info(repo_id)
            except NotOnTheHub:
                return cls()
            has_branch = True
            if revision != MAIN:
                try:
                    with told_by_the_hub(repo_id):
                        info = api.repo_info(repo_id, revision=revision)
                except NotOnTheHub:
                    has_branch = False
            files = _files_at(api, repo_id, info.sha) if info.sha else {}
        is_private = bool(info.private)
        return cls(is_there=True, is_private=is_private, has_branch=has_branch, head=info.sha, files=files)


def _files_at(api: HfApi, repo_id: str, revision: str) -> dict[str, RemoteFile]:
    """The files of a revision. Raises what huggingface_hub does."""
    from huggingface_hub.hf_api import RepoFile

    return {
        each.path: RemoteFile(each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
        for each in api.list_repo_tree(repo_id, recursive=True, revision=revision)
        if isinstance(each, RepoFile)
    }


@dataclass(frozen=True)
class Differences:
    """What a commit would have to do."""

    sent: tuple[str, ...]
    unchanged: tuple[str, ...]
    deleted: tuple[str, ...]
    """Weights of an earlier layout, which Transformers could load in place of those that are sent."""

    @classmethod
    def between(cls, files: Mapping[str, LocalFile], remote: Mapping[str, RemoteFile]) -> Differences:
        """From what the Hub holds to `files`; what else it holds stays. Raises OSError."""
        unchanged = tuple(name for name, file in files.items() if name in remote and remote[name].is_like(file))
        return cls(
            sent=tuple(name for name in files if name not in unchanged),
            unchanged=unchanged,
            deleted=tuple(name for name in remote if WEIGHTS.fullmatch(name) and name not in files),
        )

    @property
    def is_none(self) -> bool:
        """Whether the Hub holds the folder already."""
        return not self.sent and not self.deleted


# ---- what is asked before anything is sent ---------------------------------------------------------------------------


def account_of(api: HfApi) -> Account:
    """Whose token is used. Raises HubRefusal for none, for a wrong one and for one that may only read."""
    with told_by_the_hub(""):
        about: Mapping[str, Any] = api.whoami()
    role = ((about.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise HubRefusal(
            "the token may only read: take one that may write from https://huggingface.co/settings/tokens, and log in "
            "with `hf auth login --force`, or set HF_TOKEN"
        )
    return Account(str(about["name"]), tuple(str(each["name"]) for each in about.get("orgs") or ()))


def check_on_hub(target: Target, account: Account, state: HubState) -> None:
    """Refuse what the Hub would refuse after the upload, or do otherwise than was asked. Raises InputError."""
    if target.create_pr and not state.has_branch:
        missing = (
            f"no branch {target.branch}" if state.is_there else "no repository of that name that the token may see"
        )
        raise InputError(f"{target.repo_id}: there is {missing}, to which to propose a change: leave --create-pr out")
    if state.is_there and target.private and not state.is_private:
        raise InputError(
            f"{target.repo_id} is there and public, and --private makes only new repositories private: make it private "
            "in its settings on the Hub, or leave --private out"
        )
    if not state.is_there and target.namespace not in (account.name, *account.organizations):
        theirs = " and ".join((account.name, *account.organizations))
        raise InputError(
            f"{target.repo_id} is not there, and this token makes repositories of {theirs} alone: say "
            f"{account.name}/{target.repo_id.partition('/')[2]}, or take another token"
        )


def warnings_of_card(api: HfApi, card: str) -> tuple[str, ...]:
    """What the Hub remarks on a model card. Raises InputError where it would not take it, HubRefusal."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import BadRequestError

    url = f"{api.endpoint}/api/validate-yaml"
    with told_by_the_hub(""):
        headers = hub_utils().build_hf_headers(token=api.token, library_name=LIBRARY)
        answer = get_session().post(url, json={"content": card, "repoType": "model"}, headers=headers)
        try:
            hub_utils().hf_raise_for_status(answer)
        except BadRequestError as error:
            told = " ".join(str(error.server_message or error).split())
            raise InputError(f"the Hub does not take the metadata at the top of README.md: {told}") from error
        return tuple(f"README.md: {each['message']}" for each in answer.json().get("warnings", []))


# ---- sending ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """Where a folder is."""

    commit: str
    address: str


@dataclass(frozen=True)
class Upload:
    """A folder on its way into a repository: large files go first and are seen by nobody, then one commit shows all."""

    api: HfApi
    target: Target
    author: str
    message: str
    state: HubState
    files: Mapping[str, LocalFile]
    differences: Differences

    def run(self, *, progress: Progress = SILENT) -> Published:
        """Send what the Hub lacks. Raises HubRefusal, IntegrityError, OSError."""
        try:
            _raise_if_touched(self.files)
            self._make_room()
            if self.differences.is_none and self.state.head is not None:  # the branch alone was not there
                return Published(self.state.head, address_of(self.api, self.target))
            additions = self._additions()
            self._send_large(additions, progress)
            _raise_if_touched(self.files)
        except HubRefusal as error:
            raise _with(error, NOTHING_PUBLISHED) from error
        published, revision = self._commit(additions)
        self._raise_if_not_there(revision)
        return published

    def _make_room(self) -> None:
        """Make the repository and the branch, where they are not there."""
        target = self.target
        with told_by_the_hub(target.repo_id):
            if not self.state.is_there:
                self.api.create_repo(target.repo_id, private=target.private or None)
            if not self.state.has_branch and target.branch != MAIN:
                self.api.create_branch(target.repo_id, branch=target.branch)

    def _additions(self) -> dict[str, Any]:
        from huggingface_hub import CommitOperationAdd

        additions = {}
        for name in self.differences.sent:
            file = self.files[name]
            additions[name] = CommitOperationAdd(name, file.path)
            additions[name].upload_info.sha256 = bytes.fromhex(file.sha256)  # so that it is not read once more
        return additions

    def _send_large(self, additions: Mapping[str, Any], progress: Progress) -> None:
        """Send what lies outside of git, weights one by one, and no content twice; what the Hub holds stays there."""
        weights = [name for name in additions if WEIGHTS.fullmatch(name)]
        others = [name for name in additions if name not in weights]
        firsts = {self.files[name].sha256: name for name in reversed(others)}.values()
        groups = [*([name] for name in weights), [*firsts], [name for name in others if name not in firsts]]
        with progress.task("upload", total=sum(self.files[name].size for name in additions)) as task:
            for group in filter(None, groups):
                with told_by_the_hub(self.target.repo_id):
                    self.api.preupload_lfs_files(
                        self.target.repo_id,
                        [additions[name] for name in group],
                        revision=self.target.branch,
                        create_pr=self.target.create_pr,
                        free_memory=False,
                    )
                task.advance(sum(self.files[name].size for name in group))

    def _commit(self, additions: Mapping[str, Any]) -> tuple[Published, str]:
        """Make the commit, and tell it with the revision to look at; one whose answer was lost is looked for."""
        from huggingface_hub import CommitOperationDelete

        deletions = [CommitOperationDelete(name) for name in self.differences.deleted]
        try:
            with told_by_the_hub(self.target.repo_id):
                info = self.api.create_commit(
                    self.target.repo_id,
                    [*additions.values(), *deletions],
                    commit_message=self.message,
                    revision=self.target.branch,
                    parent_commit=self.state.head,
                    create_pr=self.target.create_pr,
                )
        except HubRefusal as error:
            found = self._made_all_the_same() if error.is_unanswered else None
            if found is None:
                raise _with(error, NOTHING_PUBLISHED) from error
            return found, found.commit
        if info.pr_url is not None:
            return Published(info.oid, info.pr_url), str(info.pr_revision)
        return Published(info.oid, address_of(self.api, self.target)), info.oid

    def _made_all_the_same(self) -> Published | None:
        """The commit whose answer was lost, None where it was not made. Raises HubRefusal where nobody can tell."""
        try:
            return self.found()
        except HubRefusal as error:
            told = f"; whether {self.target.repo_id} shows the model is not known, and the same command tells"
            raise _with(error, told) from error

    def found(self) -> Published | None:
        """Where the Hub holds all of the folder: the branch, or an open pull request. Raises HubRefusal, OSError."""
        return self.found_in(HubState.of(self.api, self.target.repo_id, self.target.branch))

    def found_in(self, state: HubState) -> Published | None:
        """The same, where the repository was looked at already."""
        if state.has_branch and state.head is not None and self._is_like(state.files or {}):
            return Published(state.head, address_of(self.api, self.target))
        return self._found_pull_request() if self.target.create_pr else None

    def _found_pull_request(self) -> Published | None:
        repo_id = self.target.repo_id
        with told_by_the_hub(repo_id):
            found = self.api.get_repo_discussions(
                repo_id, author=self.author, discussion_type="pull_request", discussion_status="open"
            )
            for each in (each for each in found if each.title == self.message):
                info = self.api.repo_info(repo_id, revision=each.git_reference)
                if info.sha and self._is_like(_files_at(self.api, repo_id, info.sha)):
                    return Published(info.sha, each.url)
        return None

    def _is_like(self, remote: Mapping[str, RemoteFile]) -> bool:
        return Differences.between(self.files, remote).is_none

    def _raise_if_not_there(self, revision: str) -> None:
        """Look at what the Hub shows now. Raises IntegrityError where it is not what was sent."""
        try:
            with told_by_the_hub(self.target.repo_id):
                left = Differences.between(self.files, _files_at(self.api, self.target.repo_id, revision))
        except HubRefusal as error:
            raise _with(error, "; all was sent, and the same command tells whether the Hub shows it") from error
        if not left.is_none:
            raise IntegrityError(
                f"{self.target.repo_id} does not show {', '.join([*left.sent, *left.deleted][:3])} as sent: look "
                "whether a .gitignore there names them, and say the same command again"
            )


def address_of(api: HfApi, target: Target) -> str:
    """The page of a branch."""
    branch = "" if target.branch == MAIN else f"/tree/{target.branch}"
    return f"{api.endpoint}/{target.repo_id}{branch}"


def _raise_if_touched(files: Mapping[str, LocalFile]) -> None:
    """Refuse files that are not as they were when they were hashed. Raises InputError, OSError."""
    for name, file in files.items():
        if not file.is_untouched:
            raise InputError(f"{name} was changed while it was sent: nothing was published; say the same command again")


def _with(error: HubRefusal, told: str) -> HubRefusal:
    return HubRefusal(error.told + told, status=error.status, is_unanswered=error.is_unanswered)
