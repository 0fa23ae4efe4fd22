"""The sub-command `hf-xlmr to-sentence-transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_xlmr.cli.command_help import add_command
from hf_xlmr.cli.command_output import AsJson, Verbose, print_result
from hf_xlmr.cli.values import one_of

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the sub-command to the program."""
    add_command(app, to_sentence_transformers)


def to_sentence_transformers(
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A Transformers folder of an encoder or a masked LM.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The folder to create; it appears when it is complete.")
    ],
    pool: Annotated[
        str, one_of("mean", "cls", "max", about="How the vectors of a text's tokens become one vector, as in extract.")
    ] = "mean",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUTPUT once the new folder is complete.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a folder that sentence-transformers loads, with the same vectors as extract, from a Transformers folder."""
    from hf_xlmr.cli.console import show_sentence_transformers
    from hf_xlmr.conversion import to_sentence_transformers as run

    report = run(model_dir, output, pool=pool, overwrite=overwrite)
    print_result(report, show_sentence_transformers, as_json=as_json)
