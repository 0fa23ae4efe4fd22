"""Options whose values the program checks itself, in plain sentences: a name from a list, or a number in a range."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Final, TypeVar

import typer

__all__ = ["argument_of", "decimal", "one_of", "whole"]

Number = TypeVar("Number", int, float)
LONGEST_SHOWN: Final = 60  # characters of a value in a message
ASCII_NUMBER: Final = re.compile(r"[-+.\deEinfINF]+", re.ASCII)  # without the _ that Python takes
NEAR: Final = 0.54  # fp16 and float16, but not x and max


def one_of(*names: str, about: str, flag: str | None = None, usual: str | None = None) -> object:
    """An option that takes one of `names`, and says of another name which one is near; `usual` as in `whole`."""
    return typer.Option(*[flag] if flag else [], **_choice(names), help=about, show_default=usual or True)


def argument_of(*names: str, about: str) -> object:
    """An argument that takes one of `names`; for another name it says which one is near."""
    return typer.Argument(**_choice(names), help=about)


def _choice(names: tuple[str, ...]) -> dict[str, Any]:
    def parsed(text: str) -> str:
        if text in names:
            return text
        near = get_close_matches(text.lower(), names, 1, cutoff=NEAR)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise typer.BadParameter(f"{_shown(text)} is not one of {', '.join(names)}{suggestion}")

    def completed(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return {"parser": parsed, "metavar": "|".join(names), "autocompletion": completed}


def whole(*flags: str, about: str, least: int | None = None, usual: str | None = None) -> object:
    """An option that takes a whole number, not below `least`; help shows `usual` where the default is None."""
    parser = _parser(int, "a whole number", least, None)
    return typer.Option(*flags, parser=parser, metavar="N", help=about, show_default=usual or True)


def decimal(
    *flags: str, about: str, least: float | None = None, most: float | None = None, usual: str | None = None
) -> object:
    """An option that takes a number from `least` to `most`; help shows `usual` where the default is None."""
    parser = _parser(float, "a number", least, most)
    return typer.Option(*flags, parser=parser, metavar="X", help=about, show_default=usual or True)


def _parser(
    kind: type[Number], called: str, least: Number | None, most: Number | None
) -> Callable[[str | Number], Number]:
    def parsed(text: str | Number) -> Number:
        try:
            found = kind(text)
        except ValueError:
            found = None
        if found is None or found != found or not ASCII_NUMBER.fullmatch(str(text)):  # nan is not equal to itself
            raise typer.BadParameter(f"{_shown(text)} is not {called}")
        if least is not None and not found >= least:
            raise typer.BadParameter(f"{_shown(text)} is below {least}, the lowest value")
        if most is not None and not found <= most:
            raise typer.BadParameter(f"{_shown(text)} is above {most}, the highest value")
        return found

    return parsed


def _shown(value: object) -> str:
    """A value as the user typed it; of a long one, the beginning."""
    return repr(str(value)[:LONGEST_SHOWN])
