"""What every sub-command prints in the same way: progress for whoever looks at it, results as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hf_xlmr.progress import Progress

__all__ = ["print_json", "progress_of_command"]


def progress_of_command(*, shown: bool) -> Progress:
    """Bars on standard error where a person looks at it, nothing elsewhere."""
    from hf_xlmr.progress import SILENT

    if not (shown and sys.stderr.isatty()):
        return SILENT
    from hf_xlmr.console import Bars

    return Bars()


def print_json(result: object, *, ensure_ascii: bool = False) -> None:
    """Print on standard output; what JSON has no word for, such as a path, as a string."""
    typer.echo(json.dumps(result, indent=2, ensure_ascii=ensure_ascii, default=str))
