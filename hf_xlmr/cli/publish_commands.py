"""The sub-commands that check and publish a folder: `hf-xlmr doctor` and `hf-xlmr push`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hf_xlmr.cli.command_help import add_command
from hf_xlmr.cli.command_output import INTERRUPTED, AsJson, Quiet, Verbose, print_json, progress_of_command
from hf_xlmr.errors import InputError

__all__ = ["register"]

FOLDER_ALONE = 3
"""The exit code of a dry run that found nothing against the folder and could not ask the Hub."""

ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder, converted or not.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands to the program."""
    add_command(app, doctor)
    add_command(app, push)


def doctor(
    model_dir: ModelDir,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Fix what is safe to fix: fields of config.json and tokenizer_config.json. The old files stay as "
            "NAME.before-fix.",
        ),
    ] = False,
    from_fairseq: Annotated[
        bool,
        typer.Option(
            "--from-fairseq",
            help="Say that fairseq trained the model, if the folder has no file of fairseq to show it. Then --fix also "
            "fixes what is a fault in such models only (layer_norm_eps, pad_token_id).",
        ),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Find the faults that published XLM-R folders often have, and say how to fix each (exit code 2 if any is left)."""
    from hf_xlmr.doctor.examination import examine

    diagnosis = examine(model_dir, fix=fix, from_fairseq=from_fairseq)
    if as_json:
        print_json({**asdict(diagnosis), "is_healthy": diagnosis.is_healthy})
    else:
        from hf_xlmr.cli.console import show_diagnosis

        show_diagnosis(diagnosis)
    if not diagnosis.is_healthy:
        raise typer.Exit(InputError.exit_code)


RepoId = Annotated[
    str, typer.Argument(metavar="REPO_ID", help="NAMESPACE/NAME on the Hub; NAME alone is a repository of yours.")
]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private, if this command creates it.")]
Branch = Annotated[str, typer.Option(metavar="NAME", help="The branch to push to; created if it does not exist.")]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Propose the change as a pull request instead of making it.")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, show what would be sent, and send nothing. If the Hub cannot be asked, only the "
        "folder is checked: the exit code is then 3, and 2 if the folder is refused.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Also send what does not belong to the model: a file, a folder, or a pattern such as 'onnx/*'. May be "
        "given several times.",
    ),
]
AllowUnverified = Annotated[
    bool, typer.Option("--allow-unverified", help="Publish a folder that was converted with --no-verify.")
]
DespiteFaults = Annotated[
    bool, typer.Option("--despite-faults", help="Publish a folder in which doctor finds faults that break results.")
]


def push(
    model_dir: ModelDir,
    repo_id: RepoId,
    private: Private = False,
    branch: Branch = "main",
    create_pr: CreatePr = False,
    dry_run: DryRun = False,
    include: Include = None,
    allow_unverified: AllowUnverified = False,
    despite_faults: DespiteFaults = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Publish a folder on the Hub: check it, send it in one commit; after a break the same command resumes."""
    from hf_xlmr.cli.console import show_folder_to_push, show_push, show_push_plan
    from hf_xlmr.hub.hub_errors import HubRefusal
    from hf_xlmr.publishing.folder_to_push import look_at
    from hf_xlmr.publishing.pushing import check_names, plan_upload
    from hf_xlmr.publishing.pushing import push as run

    progress, is_shown = progress_of_command(shown=not quiet), not (as_json or quiet)
    check_names(repo_id, branch)
    with _interrupts_shown(repo_id):
        looked = look_at(
            model_dir,
            include=include or (),
            allow_unverified=allow_unverified,
            despite_faults=despite_faults,
            progress=progress,
        )
        try:
            plan = plan_upload(looked, repo_id, private=private, branch=branch, create_pr=create_pr)
        except HubRefusal as refusal:
            if dry_run:  # the folder's part of the plan needs no Hub
                refusal.exit_code = FOLDER_ALONE
                if as_json:
                    print_json({**looked.as_told(), "is_dry_run": True})
                elif is_shown:
                    show_folder_to_push(looked)
            raise
        if is_shown:
            show_push_plan(plan.report)
        report = plan.report if dry_run else run(plan, progress=progress)
    if as_json:
        print_json({**asdict(report), "is_dry_run": dry_run})
    elif not quiet:
        show_push(report, is_dry_run=dry_run)


@contextmanager
def _interrupts_shown(repo_id: str) -> Iterator[None]:
    """End the program at Ctrl-C, where Python would wait for threads of huggingface_hub, which wait for the Hub."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"hf-xlmr: interrupted: {repo_id} has either its old content or the whole folder, never a part of it; run "
            "the same command to continue",
            err=True,
        )
        sys.stdout.flush()
        os._exit(INTERRUPTED)
