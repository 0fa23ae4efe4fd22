"""Text of any origin in Markdown and its metadata: it neither ends a line nor becomes markup, HTML or another value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from hf_xlmr.errors import printable

__all__ = ["as_code", "as_text", "as_yaml"]

MARKS: Final = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|&~$"})
BLOCK: Final = re.compile(r"(\s*)(?:([#=]|[+-](?=[\s-]))|(\d{1,9})([.)](?=\s|$)))")
"""What begins a heading, a list or a rule at the beginning of a line."""
TICKS: Final = re.compile("`+")
NUMBER_ALONE: Final = re.compile(
    r"([-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|0[box][\da-fA-F_]+|[-+]?\.(?:inf|nan))$",
    re.IGNORECASE,
)
"""What some reader of YAML takes for a number: 1.1, which PyYAML reads, and 1.2, which the Hub reads, differ."""


def as_text(value: object) -> str:
    """`value` as it reads, whatever marks of Markdown it holds."""
    text = printable(str(value)).translate(MARKS)
    begun = BLOCK.match(text)
    if begun is None:
        return text
    space, mark, number, dot = begun.groups()
    return f"{space}{f'{chr(92)}{mark}' if mark else f'{number}{chr(92)}{dot}'}{text[begun.end() :]}"


def as_code(value: object, *, in_table: bool = False) -> str:
    """`value` in a code span, which more backticks than it holds in a row begin and end."""
    text = printable(str(value))
    fence = "`" * (max(map(len, TICKS.findall(text)), default=0) + 1)
    pad = " " if not text or {text[0], text[-1]} & {"`", " "} else ""
    span = f"{fence}{pad}{text}{pad}{fence}"
    return span.replace("|", "\\|") if in_table else span  # the bar ends a cell even inside a span


def as_yaml(fields: Mapping[str, object], *, line_break: str = "\n") -> str:
    """`fields` as metadata of a card, which every reader of YAML reads alike."""
    import yaml

    quoting: Any = type("Quoting", (yaml.SafeDumper,), {})  # what is asked of it changes no other dumper
    quoting.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER_ALONE, None)
    return str(yaml.dump(dict(fields), Dumper=quoting, sort_keys=False, allow_unicode=True, line_break=line_break))
