"""A folder on its way into a repository: large files first, which nobody sees, then one commit that shows all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import IntegrityError
from hf_xlmr.hub.hub_errors import HubRefusal, told_by_the_hub, xet_ends_with_an_interrupt
from hf_xlmr.hub.interruptible import interruptible
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.publishing.folder_to_push import WEIGHTS, LocalFile, raise_if_touched
from hf_xlmr.publishing.hub_repository import (
    MAIN,
    Differences,
    HubState,
    RemoteFile,
    Target,
    files_at,
    names_ignored,
    why_not_sent,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Published", "Upload", "address_to_be"]

GITIGNORE: Final = ".gitignore"
NOTHING_PUBLISHED: Final = "; nothing was published so far, and what was sent is not sent again"


@dataclass(frozen=True)
class Published:
    """Where a folder is."""

    commit: str
    address: str


@dataclass(frozen=True)
class Upload:
    """What is to be sent where, and what the repository showed when that was decided."""

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
            raise_if_touched(self.files, meanwhile="sent")
            self._make_room()
            if self.differences.is_none and self.state.head is not None:  # the branch alone was not there
                return Published(self.state.head, address_of(self.api, self.target))
            self._raise_if_ignored()
            additions = self._additions()
            self._send_large(additions, progress)
            raise_if_touched(self.files, meanwhile="sent")
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
                self._preupload([additions[name] for name in group])
                task.advance(sum(self.files[name].size for name in group))

    def _preupload(self, additions: list[Any]) -> None:
        """Send the content of some files, of which nothing is seen before the commit; Ctrl-C is heard meanwhile."""
        target = self.target
        options: dict[str, Any] = {"revision": target.branch, "create_pr": target.create_pr, "free_memory": False}
        send = partial(self.api.preupload_lfs_files, target.repo_id, additions, **options)
        try:
            with told_by_the_hub(target.repo_id), xet_ends_with_an_interrupt():
                interruptible(send)
        except HubRefusal as error:
            if not error.is_unanswered:
                raise
            raise why_not_sent(self.api, target, error) from None

    def _raise_if_ignored(self) -> None:
        """Raise HubRefusal for files that a commit would leave out, so that it would show others than belong to it."""
        if GITIGNORE not in self.state.files:
            return
        target = self.target
        ignored = names_ignored(self.api, target, self.differences.sent)
        if ignored:
            raise HubRefusal(
                f"the .gitignore of {target.repo_id} names {', '.join(ignored[:3])}, which would be left out: "
                "take the names out of it on the Hub, or delete it"
            )

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
            return self.found_in(HubState.of(self.api, self.target.repo_id, self.target.branch))
        except HubRefusal as error:
            told = f"; whether {self.target.repo_id} shows the model is not known, and the same command tells"
            raise _with(error, told) from error

    def found_in(self, state: HubState) -> Published | None:
        """Where the Hub holds all of the folder: the branch, or an open pull request. Raises HubRefusal, OSError."""
        if state.has_branch and state.head is not None and self._is_like(state.files):
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
                if info.sha and self._is_like(files_at(self.api, repo_id, info.sha)):
                    return Published(info.sha, each.url)
        return None

    def _is_like(self, remote: Mapping[str, RemoteFile]) -> bool:
        return Differences.between(self.files, remote).is_none

    def _raise_if_not_there(self, revision: str) -> None:
        """Look at what the Hub shows now. Raises IntegrityError where it is not what was sent."""
        try:
            left = Differences.between(self.files, files_at(self.api, self.target.repo_id, revision))
        except HubRefusal as error:
            raise _with(error, "; all was sent, and the same command tells whether the Hub shows it") from error
        if not left.is_none:
            raise IntegrityError(
                f"{self.target.repo_id} does not show {', '.join([*left.sent, *left.deleted][:3])} as sent: look "
                "whether a .gitignore there names them, and say the same command again"
            )


def address_to_be(api: HfApi, target: Target) -> str:
    """Where a push will be seen: the page of the branch, or of all pull requests, whose numbers the Hub gives."""
    return f"{api.endpoint}/{target.repo_id}/discussions" if target.create_pr else address_of(api, target)


def address_of(api: HfApi, target: Target) -> str:
    """The page of a branch."""
    branch = "" if target.branch == MAIN else f"/tree/{target.branch}"
    return f"{api.endpoint}/{target.repo_id}{branch}"


def _with(error: HubRefusal, told: str) -> HubRefusal:
    return HubRefusal(error.told + told, status=error.status, is_unanswered=error.is_unanswered)
