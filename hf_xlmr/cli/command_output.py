"""Output that all sub-commands share, and its options: progress, and results as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hf_xlmr.progress import Progress

__all__ = ["AsJson", "Quiet", "print_json", "progress_of_command"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


def progress_of_command(*, shown: bool) -> Progress:
    """Progress bars if standard error is a terminal, else nothing."""
    from hf_xlmr.progress import SILENT

    if not (shown and sys.stderr.isatty()):
        return SILENT
    from hf_xlmr.cli.console import Bars

    return Bars()


def print_json(result: object) -> None:
    """Print `result` in ASCII, since names of files need not be UTF-8, with paths as strings."""
    typer.echo(json.dumps(result, indent=2, default=str))
