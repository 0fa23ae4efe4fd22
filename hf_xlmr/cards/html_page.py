"""The parts of an HTML report: escaped texts, definitions, tables for wide and narrow screens, their style."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape as escaped
from importlib.resources import files

from hf_xlmr.errors import printable


def escape(text: str) -> str:
    """A text of any origin in HTML, as it reads."""
    return escaped(printable(text))


def style() -> str:
    """The style of all reports, for light and dark screens, wide and narrow."""
    return (files("hf_xlmr.cards") / "report.css").read_text(encoding="utf-8")


def definitions(facts: Mapping[str, str]) -> str:
    """The rows of a `dl`."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; each cell names its column, which a narrow screen shows in front of it."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def time_of_writing() -> str:
    """Now, or SOURCE_DATE_EPOCH, if that is set, so that the same content can give the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    is_dated = epoch.isdecimal() and len(epoch) <= len("99999999999")
    now = datetime.fromtimestamp(int(epoch), timezone.utc) if is_dated else datetime.now(timezone.utc)
    return f"{now:%Y-%m-%d %H:%M} UTC"


def _cell(column: str, value: object) -> str:
    return f'<td data-column="{escape(column)}">{escape(str(value))}</td>'
