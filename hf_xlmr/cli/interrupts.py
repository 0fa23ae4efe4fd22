"""What the program says at Ctrl-C: what is left on the disk, and how to continue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Final

import typer

from hf_xlmr.cli.command_output import INTERRUPTED
from hf_xlmr.errors import printable
from hf_xlmr.features.processes import is_first_of_all

__all__ = ["ends_at_interrupts"]


def _of_staged(given: Mapping[str, object]) -> str:
    output = Path(str(given["output"]))
    return f"{output} is as it was before" if output.exists() else f"{output} was not written"


def _of_extraction(given: Mapping[str, object]) -> str:
    from hf_xlmr.features.store.records import MANIFEST, STATE

    output = Path(str(given["output"]))
    if (output / MANIFEST).is_file():
        return f"{output} is that of the earlier run"
    if not any(path.stem.isdecimal() for path in (output / STATE).glob("*.json")):
        return "no shard was finished; start again with the same command"
    return f"the finished shards stay in {output}; continue with {_resuming(given)}"


def _of_training(given: Mapping[str, object]) -> str:
    from hf_xlmr.tasks.fitting.finetuned_folder import CHECKPOINTS

    output = Path(str(given["output"]))
    if any((output / CHECKPOINTS).glob("checkpoint-*")):
        return f"the checkpoints stay in {output / CHECKPOINTS}; continue with {_resuming(given)}"
    if (output / CHECKPOINTS).is_dir():
        return f"no checkpoint was written; start again with {_resuming(given)}"
    return "nothing was trained; start again with the same command"


def _resuming(given: Mapping[str, object]) -> str:
    replaced = " in place of --overwrite" if given.get("overwrite") else ""
    return f"the same command and --resume{replaced}"


STATES: Final[Mapping[str, Callable[[Mapping[str, object]], str]]] = {
    **dict.fromkeys(("convert", "export", "to_sentence_transformers", "to_onnx", "to_openvino"), _of_staged),
    "extract": _of_extraction,
    "finetune": _of_training,
}
"""By command, what an interrupt leaves; other commands write nothing that could be left half done."""


def ends_at_interrupts(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which at Ctrl-C reports what is left and ends with the exit code of an interrupt."""

    @wraps(command)
    def run(**given: object) -> None:
        try:
            command(**given)
        except KeyboardInterrupt:
            if is_first_of_all():  # one of several processes prints
                found = STATES[command.__name__](given) if command.__name__ in STATES else ""
                typer.echo(f"hf-xlmr: interrupted{': ' * bool(found)}{printable(found)}", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return run
