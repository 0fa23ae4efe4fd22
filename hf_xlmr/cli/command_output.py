"""What all sub-commands share: their options as the library takes them, progress, and results as JSON."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict, is_dataclass
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hf_xlmr.progress import Progress

__all__ = [
    *("INTERRUPTED", "LOGGER", "AsJson", "Quiet", "Verbose", "called_with", "is_verbose"),
    *("print_json", "print_result", "progress_of_command"),
]

INTERRUPTED: Final = 130  # what shells give for Ctrl-C
LOGGER: Final = logging.getLogger("hf_xlmr")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


def _show_all(wanted: bool) -> None:
    if wanted:
        LOGGER.setLevel(logging.DEBUG)


Verbose = Annotated[
    bool,
    typer.Option("--verbose", callback=_show_all, help="Also print what is logged, and where a refused run ended."),
]


def is_verbose() -> bool:
    """Whether the command was given `--verbose`."""
    return LOGGER.level == logging.DEBUG


Result = TypeVar("Result")


def called_with(function: Callable[..., Result], given: Mapping[str, object], **others: object) -> Result:
    """Call the library with a command's options: with those `given` that are named as its parameters, and `others`."""
    known = {**given, **others}
    return function(**{name: known[name] for name in signature(function).parameters if name in known})


def progress_of_command(*, shown: bool) -> Progress:
    """Progress bars if standard error is a terminal, else a line now and then; nothing if not `shown`."""
    from hf_xlmr.cli.progress_lines import Lines
    from hf_xlmr.progress import SILENT

    if not shown:
        return SILENT
    if not sys.stderr.isatty():
        return Lines()
    from hf_xlmr.cli.console import Bars

    return Bars()


def print_result(result: Result, show: Callable[[Result], None], *, as_json: bool, quiet: bool = False) -> None:
    """Print `result` as JSON or as `show` prints it, or if `quiet` not at all."""
    if as_json:
        print_json(result)
    elif not quiet:
        show(result)


def print_json(result: object) -> None:
    """Print `result` in ASCII, since names of files need not be UTF-8, with reports as objects and paths as strings."""
    typer.echo(json.dumps(result, indent=2, default=_as_json))


def _as_json(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
