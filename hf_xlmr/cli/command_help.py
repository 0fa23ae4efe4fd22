"""What help says of each sub-command, with examples, and which option an unknown one was perhaps meant to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from hf_xlmr.cli.interrupts import ends_at_interrupts
from hf_xlmr.errors import InputError

__all__ = ["EXAMPLES", "SUMMARIES", "Program", "add_command"]

SUMMARIES: Final[Mapping[str, str]] = {
    "convert": "Convert a fairseq checkpoint, and prove it.",
    "inspect": "Report what a checkpoint would become.",
    "verify": "Prove that a folder equals its checkpoint.",
    "export": "Go back to a checkpoint that fairseq loads.",
    "plan": "Report which layer goes on which device.",
    "extract": "Write the features of any number of texts.",
    "finetune": "Fine-tune for XNLI, MLQA or named entities.",
    "evaluate": "Score a fine-tuned model in each language.",
    "adopt": "Complete a folder of your own Trainer.",
    "doctor": "Find and fix the faults of a model folder.",
    "push": "Publish a folder on the Hub.",
    "to-sentence-transformers": "Make a folder for sentence-transformers.",
    "to-onnx": "Make a folder for ONNX Runtime.",
    "to-openvino": "Make a folder for OpenVINO.",
    "verify-runtime": "Find out what a runtime gets wrong.",
}
"""Sentences that fit beside the names in 80 columns."""

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "convert": (
        "hf-xlmr convert xlmr.base xlmr-base",
        "hf-xlmr convert checkpoint_best.pt my-model --data data-bin --head xnli",
    ),
    "inspect": ("hf-xlmr inspect checkpoint_best.pt",),
    "verify": ("hf-xlmr verify xlmr.base.tar.gz xlmr-base --report proof.html",),
    "export": ("hf-xlmr export xlmr-base for-fairseq",),
    "plan": ("hf-xlmr plan xlmr.xxl --max-memory 0=24GiB,1=24GiB,cpu=64GiB --dtype float16",),
    "extract": (
        "hf-xlmr extract xlmr-base texts.jsonl features --id-column id",
        "zcat texts.gz | hf-xlmr extract demo - features --pool cls --format npy",
        "hf-xlmr extract xlmr-base 's3://bucket/*.parquet' features --ray auto",
        "torchrun --nproc-per-node 8 -m hf_xlmr extract xlmr-base texts.txt out",
    ),
    "finetune": (
        "hf-xlmr finetune xnli --model xlmr --train facebook/xnli@en --output out",
        "hf-xlmr finetune ner --model demo --train demo --eval demo --output out",
    ),
    "evaluate": ("hf-xlmr evaluate xnli --model xnli --data facebook/xnli@all_languages",),
    "adopt": ("hf-xlmr adopt my-classifier --from xlmr-base",),
    "doctor": ("hf-xlmr doctor xlmr-base", "hf-xlmr doctor old-folder --fix"),
    "push": ("hf-xlmr push xlmr-base me/xlmr-base --dry-run", "hf-xlmr push xlmr-base me/xlmr-base --private"),
    "to-sentence-transformers": ("hf-xlmr to-sentence-transformers xlmr-base sentence-model --pool mean",),
    "to-onnx": (
        "hf-xlmr to-onnx my-classifier my-classifier-onnx",
        "hf-xlmr to-onnx xlmr-base xlmr-base-onnx --pool mean --dtype int8",
    ),
    "to-openvino": ("hf-xlmr to-openvino xlmr-base xlmr-base-openvino --pool mean",),
    "verify-runtime": (
        "hf-xlmr verify-runtime xlmr-base xlmr-base-onnx --report comparison.html",
        "hf-xlmr verify-runtime xlmr-base http://localhost:8080 --pool cls",
    ),
}
VERBATIM: Final = "\b\n"  # typer keeps the lines of a paragraph that begins so


def add_command(app: typer.Typer, command: Callable[..., None]) -> None:
    """Add a sub-command, named as its function, with its summary and its examples."""
    name = command.__name__.replace("_", "-")
    examples = "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[name])])
    added = app.command(name, cls=_Command, short_help=SUMMARIES[name], epilog=VERBATIM + examples)
    added(ends_at_interrupts(command))


@contextmanager
def _plain_errors(command: TyperCommand | TyperGroup) -> Iterator[None]:
    """Raise InputError, one sentence, for arguments that `command` does not take.

    typer does not export the classes of its usage errors: these alone have `format_message`, and those for unknown
    options `option_name` and `possibilities`.
    """
    try:
        yield
    except Exception as error:  # of a class that has no public name; all others go on as they are
        if not hasattr(error, "format_message"):
            raise
        if hasattr(error, "option_name") and hasattr(error, "possibilities"):
            raise InputError(_unknown_option(command, str(getattr(error, "option_name", "")))) from None
        told = " ".join(error.format_message().split()).removesuffix(".")
        says_enough = told.endswith("?") or told.startswith("Invalid value")
        way_on = "" if says_enough else f"; see hf-xlmr {_own_name(command)}-h"
        raise InputError(f"{told[:1].lower()}{told[1:]}{way_on}") from None


def _own_name(command: TyperCommand | TyperGroup) -> str:
    return "" if isinstance(command, TyperGroup) else f"{command.name} "


def _unknown_option(command: TyperCommand | TyperGroup, unknown: str) -> str:
    flags = [flag for each in command.params for flag in (*each.opts, *each.secondary_opts)]
    names = {flag.removeprefix("--"): flag for flag in flags if flag.startswith("--")}
    near = get_close_matches(unknown.strip("-"), names, 1)
    way_on = f"did you mean {names[near[0]]}?" if near else "-h lists those that there are"
    return f"{unknown:.60} is not an option of {command.name}; {way_on}"


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _plain_errors(self):
            return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Also the options that must be given."""
        needed: list[Any] = [each for each in self.params if each.required and each.param_type_name == "option"]
        return [*super().collect_usage_pieces(ctx), *(f"{each.opts[0]} {each.metavar}" for each in needed)]


class Program(TyperGroup):
    """All commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in typer, but errors are InputErrors; without arguments, help is shown."""
        with _plain_errors(self):
            return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in typer, but errors are InputErrors."""
        with _plain_errors(self):
            return super().resolve_command(ctx, args)
