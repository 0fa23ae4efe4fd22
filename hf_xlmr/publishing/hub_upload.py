"""Sends a folder to a repository: first the large files, which stay invisible, then one commit that shows all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from hf_xlmr.errors import IntegrityError
from hf_xlmr.hub.hub_errors import HubRefusal, told_by_the_hub
from hf_xlmr.hub.interruptible import interruptible
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.publishing.folder_to_push import WEIGHTS, LocalFile, raise_if_touched
from hf_xlmr.publishing.hub_repository import MAIN, Differences, HubState, RemoteFile, Target

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

GITIGNORE: Final = ".gitignore"
NOTHING_PUBLISHED: Final = "; nothing is published yet, and files that were sent are not sent again"


class Published(NamedTuple):
    """The commit that shows a folder, and its address."""

    commit: str
    address: str


@dataclass(frozen=True)
class Upload:
    """The files to send, their target, and the state of the repository when the push was planned."""

    target: Target
    author: str
    message: str
    state: HubState
    files: Mapping[str, LocalFile]
    differences: Differences

    def run(self, *, progress: Progress = SILENT) -> Published:
        """Send what the repository lacks. Raises HubRefusal, IntegrityError, OSError."""
        try:
            raise_if_touched(self.files, meanwhile="sent")
            self._make_room()
            if self.differences.is_none and self.state.head is not None:  # only the branch was missing
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
        target, api = self.target, self.target.api
        if not self.state.is_there:
            target.asked(api.create_repo, private=target.private or None)
        if not self.state.has_branch and target.branch != MAIN:
            target.asked(api.create_branch, branch=target.branch)

    def _raise_if_ignored(self) -> None:
        """Raise HubRefusal if the repository's .gitignore would leave files out of the commit."""
        is_there = GITIGNORE in self.state.files
        if ignored := self.target.names_ignored(self.differences.sent) if is_there else ():
            raise HubRefusal(
                f"the .gitignore of {self.target.repo_id} names {', '.join(ignored[:3])}, which would be left out: "
                "remove the names from it on the Hub, or delete it"
            )

    def _additions(self) -> dict[str, CommitOperationAdd]:
        from huggingface_hub import CommitOperationAdd

        additions = {}
        for name in self.differences.sent:
            additions[name] = CommitOperationAdd(name, self.files[name].path)
            additions[name].upload_info.sha256 = bytes.fromhex(self.files[name].sha256)  # saves reading the file again
        return additions

    def _send_large(self, additions: Mapping[str, CommitOperationAdd], progress: Progress) -> None:
        """Send files that the Hub stores outside of git: weights one by one, equal contents once, known ones never."""
        weights = [name for name in additions if WEIGHTS.fullmatch(name)]
        others = [name for name in additions if name not in weights]
        firsts = {self.files[name].sha256: name for name in reversed(others)}.values()
        groups = [*([name] for name in weights), [*firsts], [name for name in others if name not in firsts]]
        with progress.task("uploading", total=sum(self.files[name].size for name in additions)) as task:
            for group in filter(None, groups):
                self._preupload([additions[name] for name in group])
                task.advance(sum(self.files[name].size for name in group))

    def _preupload(self, additions: list[CommitOperationAdd]) -> None:
        """Send the content of files, which stays invisible until the commit; Ctrl-C interrupts it."""
        target = self.target
        send = partial(
            target.api.preupload_lfs_files,
            target.repo_id,
            additions,
            revision=target.branch,
            create_pr=target.create_pr,
            free_memory=False,
        )
        try:
            with told_by_the_hub(target.repo_id):
                interruptible(send)
        except HubRefusal as error:
            if not error.is_unanswered:
                raise
            raise target.why_not_sent(error) from None

    def _commit(self, additions: Mapping[str, object]) -> tuple[Published, str]:
        """Make the commit and return it with the revision that shows it; if the answer is lost, look for the commit."""
        from huggingface_hub import CommitOperationDelete

        target = self.target
        operations = [*additions.values(), *map(CommitOperationDelete, self.differences.deleted)]
        options: dict[str, object] = {"revision": target.branch, "create_pr": target.create_pr}
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
        """The commit whose answer was lost, None if it was not made. Raises HubRefusal if the Hub does not answer."""
        try:
            return self.found_in(HubState.of(self.target))
        except HubRefusal as error:
            unknown = f"; it is not known whether {self.target.repo_id} shows the model: run the same command again"
            raise error.going_on(unknown) from error

    def found_in(self, state: HubState) -> Published | None:
        """The branch or open pull request that has all of the folder, None if none. Raises HubRefusal, OSError."""
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
        """Compare what the repository shows with what was sent. Raises IntegrityError if they differ."""
        try:
            left = Differences.between(self.files, self.target.files_at(revision))
        except HubRefusal as error:
            raise error.going_on("; all was sent: run the same command to see whether the Hub shows it") from error
        if not left.is_none:
            raise IntegrityError(
                f"{self.target.repo_id} does not show {', '.join([*left.sent, *left.deleted][:3])} as sent: check "
                "whether its .gitignore names them, and run the same command again"
            )
