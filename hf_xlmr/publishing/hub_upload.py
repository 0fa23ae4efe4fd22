"""A folder on its way into a repository: large files first, which nobody sees, then one commit that shows all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from hf_xlmr.errors import IntegrityError
from hf_xlmr.hub.hub_errors import HubRefusal, told_by_the_hub
from hf_xlmr.hub.interruptible import interruptible
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.publishing.folder_to_push import WEIGHTS, LocalFile, raise_if_touched
from hf_xlmr.publishing.hub_repository import MAIN, Differences, HubState, RemoteFile, Target

__all__ = ["Published", "Upload"]

GITIGNORE: Final = ".gitignore"
NOTHING_PUBLISHED: Final = "; nothing was published so far, and what was sent is not sent again"


class Published(NamedTuple):
    """Where a folder is."""

    commit: str
    address: str


@dataclass(frozen=True)
class Upload:
    """What is to be sent where, and what the repository showed when that was decided."""

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
                return Published(self.state.head, self.target.page)
            self._raise_if_ignored()
            additions = self._additions()
            self._send_large(additions, progress)
            raise_if_touched(self.files, meanwhile="sent")
        except HubRefusal as error:
            raise error.going_on(NOTHING_PUBLISHED) from error
        published, revision = self._commit(additions)
        self._raise_if_not_there(revision)
        return published

    def _make_room(self) -> None:
        """Make the repository and the branch, where they are not there."""
        target, api = self.target, self.target.api
        if not self.state.is_there:
            target.asked(api.create_repo, private=target.private or None)
        if not self.state.has_branch and target.branch != MAIN:
            target.asked(api.create_branch, branch=target.branch)

    def _raise_if_ignored(self) -> None:
        """Raise HubRefusal for files that a commit would leave out, so that it would show others than belong to it."""
        is_there = GITIGNORE in self.state.files
        if ignored := self.target.names_ignored(self.differences.sent) if is_there else ():
            raise HubRefusal(
                f"the .gitignore of {self.target.repo_id} names {', '.join(ignored[:3])}, which would be left out: "
                "take the names out of it on the Hub, or delete it"
            )

    def _additions(self) -> dict[str, Any]:
        from huggingface_hub import CommitOperationAdd

        additions = {}
        for name in self.differences.sent:
            additions[name] = CommitOperationAdd(name, self.files[name].path)
            additions[name].upload_info.sha256 = bytes.fromhex(self.files[name].sha256)  # it is not read once more
        return additions

    def _send_large(self, additions: Mapping[str, object], progress: Progress) -> None:
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
        send = partial(target.api.preupload_lfs_files, target.repo_id, additions, **options)
        try:
            with told_by_the_hub(target.repo_id):
                interruptible(send)
        except HubRefusal as error:
            if not error.is_unanswered:
                raise
            raise target.why_not_sent(error) from None

    def _commit(self, additions: Mapping[str, object]) -> tuple[Published, str]:
        """Make the commit, and tell it with the revision to look at; one whose answer was lost is looked for."""
        from huggingface_hub import CommitOperationDelete

        target = self.target
        operations = [*additions.values(), *map(CommitOperationDelete, self.differences.deleted)]
        options: dict[str, Any] = {"revision": target.branch, "create_pr": target.create_pr}
        options |= {"commit_message": self.message, "parent_commit": self.state.head}
        try:
            info = target.asked(target.api.create_commit, operations, **options)
        except HubRefusal as error:
            found = self._made_all_the_same() if error.is_unanswered else None
            if found is None:
                raise error.going_on(NOTHING_PUBLISHED) from error
            return found, found.commit
        return Published(info.oid, info.pr_url or target.page), str(info.pr_revision or info.oid)

    def _made_all_the_same(self) -> Published | None:
        """The commit whose answer was lost, None where it was not made. Raises HubRefusal where nobody can tell."""
        try:
            return self.found_in(HubState.of(self.target))
        except HubRefusal as error:
            told = f"; whether {self.target.repo_id} shows the model is not known, and the same command tells"
            raise error.going_on(told) from error

    def found_in(self, state: HubState) -> Published | None:
        """Where the Hub holds all of the folder: the branch, or an open pull request. Raises HubRefusal, OSError."""
        if state.has_branch and state.head is not None and self._is_like(state.files):
            return Published(state.head, self.target.page)
        return self._found_pull_request() if self.target.create_pr else None

    def _found_pull_request(self) -> Published | None:
        target = self.target
        with told_by_the_hub(target.repo_id):
            found = target.api.get_repo_discussions(
                target.repo_id, author=self.author, discussion_type="pull_request", discussion_status="open"
            )
            for each in (each for each in found if each.title == self.message):
                info = target.info(each.git_reference)
                if info is not None and info.sha and self._is_like(target.files_at(info.sha)):
                    return Published(info.sha, each.url)
        return None

    def _is_like(self, remote: Mapping[str, RemoteFile]) -> bool:
        return Differences.between(self.files, remote).is_none

    def _raise_if_not_there(self, revision: str) -> None:
        """Look at what the Hub shows now. Raises IntegrityError where it is not what was sent."""
        try:
            left = Differences.between(self.files, self.target.files_at(revision))
        except HubRefusal as error:
            raise error.going_on("; all was sent, and the same command tells whether the Hub shows it") from error
        if not left.is_none:
            raise IntegrityError(
                f"{self.target.repo_id} does not show {', '.join([*left.sent, *left.deleted][:3])} as sent: look "
                "whether a .gitignore there names them, and say the same command again"
            )
