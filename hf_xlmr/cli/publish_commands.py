"""The sub-commands around a model that others shall use: `hf-xlmr doctor` and `hf-xlmr push`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hf_xlmr.cli.command_output import AsJson, Quiet, print_json, progress_of_command
from hf_xlmr.errors import InputError

__all__ = ["register"]

ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder, converted or not.")]
INTERRUPTED = 130  # what shells give for Ctrl-C


def register(app: typer.Typer) -> None:
    """Add the sub-commands to the program."""
    app.command()(doctor)
    app.command()(push)


def doctor(
    model_dir: ModelDir,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what is safe: fields of config.json and tokenizer_config.json. The old files stay, as "
            "NAME.before-fix.",
        ),
    ] = False,
    from_fairseq: Annotated[
        bool,
        typer.Option(
            "--from-fairseq",
            help="Say that fairseq trained the model, where the folder keeps none of fairseq's files to show it: what "
            "is a fault of such models alone (layer_norm_eps, pad_token_id) is then mended, too.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for the faults with which people ship XLM-R, and tell the mend of each (exit code 2 where there is one)."""
    from hf_xlmr.doctor.examination import examine

    diagnosis = examine(model_dir, fix=fix, from_fairseq=from_fairseq)
    if as_json:
        print_json({**asdict(diagnosis), "is_healthy": diagnosis.is_healthy})
    else:
        from hf_xlmr.cli.console import show_diagnosis

        show_diagnosis(diagnosis)
    if not diagnosis.is_healthy:
        raise typer.Exit(InputError.exit_code)


def push(
    model_dir: ModelDir,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="NAMESPACE/NAME on the Hub; NAME alone is one of your own.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, where it is made.")] = False,
    branch: Annotated[
        str, typer.Option(metavar="NAME", help="The branch to push to, which is made where it is not there.")
    ] = "main",
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose the change as a pull request instead of making it.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything and show what would be sent, and send nothing; where the Hub cannot be asked, of "
            "the folder alone.",
        ),
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="PATTERN",
            help="Send more than what belongs to the model: a file, a folder, or a pattern such as 'onnx/*'; may be "
            "said several times.",
        ),
    ] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Take a folder that was converted with --no-verify.")
    ] = False,
    despite_faults: Annotated[
        bool, typer.Option("--despite-faults", help="Take a folder of which doctor tells faults that break answers.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Publish a folder on the Hub: checked first, all at once for those who look, resumed by the same command."""
    from hf_xlmr.cli.console import show_folder_to_push, show_push, show_push_plan
    from hf_xlmr.hub.hub_errors import HubRefusal
    from hf_xlmr.publishing.folder_to_push import look_at
    from hf_xlmr.publishing.pushing import check_names, plan_upload
    from hf_xlmr.publishing.pushing import push as run

    progress = progress_of_command(shown=not quiet)
    check_names(repo_id, branch)
    try:
        looked = look_at(
            model_dir,
            include=include or (),
            allow_unverified=allow_unverified,
            despite_faults=despite_faults,
            progress=progress,
        )
        try:
            plan = plan_upload(looked, repo_id, private=private, branch=branch, create_pr=create_pr)
        except HubRefusal:
            if dry_run and not (as_json or quiet):  # what needs no Hub is shown without one
                show_folder_to_push(looked)
            raise
        if not (as_json or quiet):
            show_push_plan(plan.report)
        report = plan.report if dry_run else run(plan, progress=progress)
    except KeyboardInterrupt:
        typer.echo(
            f"hf-xlmr: interrupted: {repo_id} shows what it did or the whole folder, never a part of it; the same "
            "command goes on from here",
            err=True,
        )
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # Python would wait for threads of huggingface_hub, which wait for the Hub
    if as_json:
        print_json({**asdict(report), "is_dry_run": dry_run})
    elif not quiet:
        show_push(report, is_dry_run=dry_run)
