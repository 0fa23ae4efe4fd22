"""Arguments of the library in a sentence as the options of the program: `head='none'` as `--head none`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import typer

__all__ = ["Flag", "flags_of", "in_flags"]

ARGUMENT: Final = re.compile(
    r"\b(?P<of>[a-z][a-z_]*\.)?(?P<name>[a-z][a-z_]*)="
    r"(?:(?P<switch>True|False)\b|(?P<quote>['\"])(?P<text>[^'\"]*)(?P=quote)|(?P<value>[-+.\w]*\w)|)"
)
RENAMED: Final[Mapping[str, str]] = {
    "evaluation_options.split": "eval_split",
    "misaligned": "on_misaligned",
    "unlabelled": "on_unlabelled",
}
"""Arguments of the library whose option has another name."""


class Flag(NamedTuple):
    """How an option of the program is typed."""

    on: str
    off: str | None
    """What switches it off, if anything does."""
    is_switch: bool


def flags_of(app: typer.Typer, command: str | None = None) -> dict[str, Flag]:
    """The options of all sub-commands by the names that the library gives them; those of `command` come first."""
    import typer.main

    commands = dict(getattr(typer.main.get_command(app), "commands", {}))
    last = [commands.pop(command)] if command in commands else []
    options = [each for several in (*commands.values(), *last) for each in several.params]
    flags = {
        str(each.name): Flag(each.opts[0], next(iter(each.secondary_opts), None), bool(getattr(each, "is_flag", False)))
        for each in options
        if each.opts[0].startswith("--")
    }
    return flags | {name: flags[option] for name, option in RENAMED.items()}


def in_flags(sentence: str, flags: Mapping[str, Flag]) -> str:
    """The sentence for somebody who types commands; arguments that are not options stay as they are."""

    def typed(found: re.Match[str]) -> str:
        flag = flags.get(f"{found['of'] or ''}{found['name']}") or flags.get(found["name"])
        if flag is None or (found["switch"] == "False" and flag.off is None):
            return found[0]
        if found["switch"]:
            return flag.on if found["switch"] == "True" else str(flag.off)
        value = found["text"] if found["quote"] else found["value"]
        if value and flag.is_switch:
            return found[0]
        return f"{flag.on} {value}" if value else flag.on

    return ARGUMENT.sub(typed, sentence)
