"""Plans and makes a push: checks a model folder, then sends it so that the repository is never seen half filled."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr import __version__
from hf_xlmr.doctor.examination import Finding
from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.hub.hub_errors import hub_utils, quiet_hub
from hf_xlmr.model.provenance import Standing
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.publishing.folder_to_push import FolderToPush, look_at, raise_if_touched
from hf_xlmr.publishing.hub_repository import MAIN, Differences, HubState, Target, account_of, check_on_hub
from hf_xlmr.publishing.hub_upload import Upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi

BRANCH: Final = re.compile(r"\w(?:[\w./-]{0,98}\w)?", re.ASCII)
WHAT_STAYS: Final[Mapping[str, str]] = {
    "adapter_config.json": "adapter_config.json stays in the repository, and Transformers with peft adds its adapter "
    "to this model: delete it on the Hub unless you want that",
    "modules.json": "modules.json stays in the repository, and sentence-transformers loads by it: delete it on the "
    "Hub, or push the folder that `hf-xlmr to-sentence-transformers` makes",
    "pytorch_model.bin": "pytorch_model.bin stays in the repository: it has the weights of another upload as a pickle, "
    "which readers without safetensors load: delete it on the Hub",
}
"""Files of an earlier upload that change what is loaded, each with a note."""


@dataclass(frozen=True)
class PushReport:
    """The files that a push sends or has sent; `commit` is None while the push is only planned."""

    folder: Path
    repo_id: str
    branch: str
    is_new: bool
    """Whether the push creates the repository."""
    is_private: bool
    is_proposed: bool
    """Whether the push is a pull request."""
    standing: Standing
    held: tuple[str, ...]
    """Files that equal the conversion's record; of config.json only the fields that decide the model's outputs."""
    sent: Mapping[str, int]
    """Names and bytes of files that the repository lacks or has with other content."""
    unchanged: Mapping[str, int]
    deleted: tuple[str, ...]
    """Weights of an earlier layout, which the same commit deletes."""
    stays: tuple[str, ...]
    """The other files in the repository, which the push leaves alone."""
    unknown: Mapping[str, int]
    """Names and bytes of files that are not known to belong to a model; they are sent only if `include` names them."""
    left_out: Mapping[str, str]
    """Names that are not sent for another reason, each with that reason."""
    findings: tuple[Finding, ...]
    """The faults of the folder that `hf-xlmr doctor` reports."""
    notes: tuple[str, ...]
    address: str
    """The address of the model; for a pull request that is only planned, the list of pull requests."""
    commit: str | None = None


@dataclass(frozen=True)
class PushPlan:
    """A push that is prepared; it has written nothing to the Hub."""

    report: PushReport
    """Has a commit if the repository already has all of the folder."""
    upload: Upload


def plan_push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    branch: str = MAIN,
    create_pr: bool = False,
    include: Collection[str] = (),
    allow_unverified: bool = False,
    despite_faults: bool = False,
    api: HfApi | None = None,
    progress: Progress = SILENT,
) -> PushPlan:
    """Check a Transformers folder, and plan what `push` would do to the repository `repo_id` on the Hub.

    `repo_id` is NAME or NAMESPACE/NAME. `private` makes a new repository private, `branch` is created if it does not
    exist, and `create_pr` proposes the change as a pull request. The push sends the files that belong to the model, and
    those that `include` names: files, folders, or patterns in fnmatch's syntax. `allow_unverified` accepts a folder
    that was converted with verify=False, `despite_faults` one with faults that `hf_xlmr.doctor` finds severe. `api`
    replaces huggingface_hub's default HfApi (its token, its endpoint). Raises InputError for what the user can fix
    (HubRefusal for what the Hub refuses), IntegrityError for damage, and for weights that changed since they were
    verified.
    """
    check_names(repo_id, branch)
    looked = look_at(
        Path(folder),
        include=include,
        allow_unverified=allow_unverified,
        despite_faults=despite_faults,
        progress=progress,
    )
    return plan_upload(looked, repo_id, private=private, branch=branch, create_pr=create_pr, api=api)


def plan_upload(
    looked: FolderToPush,
    repo_id: str,
    *,
    private: bool = False,
    branch: str = MAIN,
    create_pr: bool = False,
    api: HfApi | None = None,
) -> PushPlan:
    """The second half of `plan_push`, which sends requests to the Hub, for a folder that `look_at` checked."""
    with told_plainly(), quiet_hub():
        if api is None:
            from huggingface_hub import HfApi

            api = HfApi(library_name="hf_xlmr", library_version=__version__)
        account = account_of(api)
        full_id = repo_id if "/" in repo_id else f"{account.name}/{repo_id}"
        target = Target(api, full_id, branch=branch, create_pr=create_pr, private=private)
        state = HubState.of(target)
        check_on_hub(target, account, state)
        remarks = target.remarks_on(looked.card)
        raise_if_touched(looked.files, meanwhile="looked at")
        differences = Differences.between(looked.files, state.files)
        message = f"Push {looked.path.resolve().name} with hf_xlmr {__version__}"
        upload = Upload(target, account.name, message, state, looked.files, differences)
        published = upload.found_in(state)
    report = _report(looked, upload, remarks)
    if published is not None:
        everything = {**report.unchanged, **report.sent}
        report = replace(report, sent={}, unchanged=everything, deleted=(), **published._asdict())
    return PushPlan(report, upload)


def push(plan: PushPlan, *, progress: Progress = SILENT) -> PushReport:
    """Send what was planned: first the large files, which stay invisible, then everything in one commit.

    After any interruption the repository shows its earlier state or the whole folder, and a new plan sends only what is
    missing. If the repository already has the folder, nothing is sent. Raises HubRefusal, IntegrityError, InputError.
    """
    if plan.report.commit is not None:
        return plan.report
    with told_plainly(), quiet_hub():
        published = plan.upload.run(progress=progress)
    return replace(plan.report, **published._asdict())


def check_names(repo_id: str, branch: str) -> None:
    """Raise InputError for invalid names of repositories and branches."""
    from huggingface_hub.errors import HFValidationError

    try:
        hub_utils().validate_repo_id(repo_id)
    except HFValidationError:
        raise InputError(
            f"{repo_id!r:.120} is not a name on the Hub: use NAMESPACE/NAME, of letters, digits, -, _ and ., at most 96"
        ) from None
    if not BRANCH.fullmatch(branch) or ".." in branch or branch.startswith("refs/") or branch == "HEAD":
        raise InputError(f"branch {branch!r:.80}: use a name such as v2, of letters, digits, -, _, . and /")


def _report(looked: FolderToPush, upload: Upload, remarks: tuple[str, ...]) -> PushReport:
    state, target, differences = upload.state, upload.target, upload.differences
    sizes = {name: file.size for name, file in looked.files.items()}
    return PushReport(
        folder=looked.path,
        repo_id=target.repo_id,
        branch=target.branch,
        is_new=not state.is_there,
        is_private=state.is_private if state.is_there else target.private,
        is_proposed=target.create_pr,
        standing=looked.standing,
        held=looked.held,
        sent={name: sizes[name] for name in differences.sent},
        unchanged={name: size for name, size in sizes.items() if name not in differences.sent},
        deleted=differences.deleted,
        stays=differences.stays,
        unknown=looked.unknown,
        left_out=looked.left_out,
        findings=looked.findings,
        notes=(*looked.notes, *remarks, *(note for name, note in WHAT_STAYS.items() if name in differences.stays)),
        address=target.page_to_be,
    )
