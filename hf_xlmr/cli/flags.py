"""Arguments of the library in a sentence as the options of the program: `head='none'` as `--head none`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import typer

__all__ = ["Flag", "flags_of", "in_flags"]

ARGUMENT: Final = re.compile(
    r"\b(?P<name>[a-z][a-z_]*)=(?:(?P<switch>True|False)\b|(?P<quote>['\"])(?P<text>[^'\"]*)(?P=quote)|(?P<value>\w+)|)"
)


class Flag(NamedTuple):
    """How an option of the program is typed."""

    on: str
    off: str | None
    """What switches it off, if anything does."""


def flags_of(app: typer.Typer) -> dict[str, Flag]:
    """The options of all sub-commands by the names that the library gives them as arguments."""
    import typer.main

    commands = getattr(typer.main.get_command(app), "commands", {})
    options = [each for command in commands.values() for each in command.params if each.opts[0].startswith("--")]
    return {each.name: Flag(each.opts[0], next(iter(each.secondary_opts), None)) for each in options}


def in_flags(sentence: str, flags: Mapping[str, Flag]) -> str:
    """The sentence for somebody who types commands; arguments that are no options stay as they are."""

    def typed(found: re.Match[str]) -> str:
        flag = flags.get(found["name"])
        if flag is None or (found["switch"] == "False" and flag.off is None):
            return found[0]
        if found["switch"]:
            return flag.on if found["switch"] == "True" else str(flag.off)
        value = found["text"] if found["quote"] else found["value"]
        return f"{flag.on} {value}" if value else flag.on

    return ARGUMENT.sub(typed, sentence)
