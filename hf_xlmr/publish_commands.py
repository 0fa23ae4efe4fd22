"""The sub-commands around a model that others shall use: `hf-xlmr doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hf_xlmr.errors import InputError

__all__ = ["register"]

ModelDir = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder, converted or not.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands to the program."""
    app.command()(doctor)


def doctor(
    model_dir: ModelDir,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what is safe: fields of config.json and tokenizer_config.json.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for the faults with which people ship XLM-R, and tell the mend of each (exit code 2 where there is one)."""
    from hf_xlmr.doctor import examine

    diagnosis = examine(model_dir, fix=fix)
    if as_json:
        _print_json({**asdict(diagnosis), "is_healthy": diagnosis.is_healthy})
    else:
        from hf_xlmr.console import show_diagnosis

        show_diagnosis(diagnosis)
    if not diagnosis.is_healthy:
        raise typer.Exit(InputError.exit_code)


def _print_json(result: object) -> None:
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False, default=str))
