"""Text of any origin in Markdown: it neither ends a line nor becomes markup or HTML."""

from __future__ import annotations

from typing import Final

from hf_xlmr.errors import printable

__all__ = ["as_code", "as_text"]

MARKS: Final = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|"})


def as_text(value: object) -> str:
    """`value` as it reads, whatever marks of Markdown it holds."""
    return printable(str(value)).translate(MARKS)


def as_code(value: object) -> str:
    """`value` in a code span, outside tables; backticks, which would end it, become quotes."""
    return f"`{printable(str(value)).replace('`', chr(39))}`"
