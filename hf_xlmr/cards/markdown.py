"""Escapes text of any origin for Markdown and its metadata: it cannot end a line or become markup or another value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from posixpath import normpath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from hf_xlmr.errors import printable

if TYPE_CHECKING:
    from markdown_it.token import Token

MARKS: Final = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|&~$"})
BLOCK: Final = re.compile(r"(\s*)(?:([#=]|[+-](?=[\s-]))|(\d{1,9})([.)](?=\s|$)))")
"""The characters that begin a heading, a list or a rule at the beginning of a line."""
TICKS: Final = re.compile("`+")
NUMBER_ALONE: Final = re.compile(
    r"([-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|0[box][\da-fA-F_]+|[-+]?\.(?:inf|nan))$", re.IGNORECASE
)
"""Texts that YAML 1.1 (PyYAML) or YAML 1.2 (the Hub) reads as a number."""
METADATA: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n.*?^---[ \t]*$", re.DOTALL | re.MULTILINE)
"""The block of metadata at the beginning of a card."""
LINKS: Final = frozenset({"src", "href", "poster"})
"""Attributes that hold one address; `srcset` holds several, each with a size."""


def as_text(value: object) -> str:
    """`value` as Markdown that shows exactly its text."""
    text = printable(str(value)).translate(MARKS)
    begun = BLOCK.match(text)
    if begun is None:
        return text
    space, mark, number, dot = begun.groups()
    return f"{space}{f'{chr(92)}{mark}' if mark else f'{number}{chr(92)}{dot}'}{text[begun.end() :]}"


def as_code(value: object, *, in_table: bool = False) -> str:
    """`value` in a code span, between more backticks than `value` has in a row."""
    text = printable(str(value))
    fence = "`" * (max(map(len, TICKS.findall(text)), default=0) + 1)
    pad = " " if not text or {text[0], text[-1]} & {"`", " "} else ""
    span = f"{fence}{pad}{text}{pad}{fence}"
    return span.replace("|", "\\|") if in_table else span  # the bar ends a cell even inside a span


def as_yaml(fields: Mapping[str, object], *, line_break: str = "\n") -> str:
    """`fields` as metadata of a card, which YAML 1.1 and 1.2 read with the same values."""
    import yaml

    quoting: Any = type("Quoting", (yaml.SafeDumper,), {})  # a new class: the resolver changes no other dumper
    quoting.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER_ALONE, None)
    return str(yaml.dump(dict(fields), Dumper=quoting, sort_keys=False, allow_unicode=True, line_break=line_break))


def linked_files(card: str) -> frozenset[str]:
    """The files next to a card that its pictures and links lead to, in Markdown and in HTML, as paths with slashes."""
    from markdown_it import MarkdownIt

    addresses, markup = [], _Links()
    tokens = MarkdownIt("commonmark").enable("table").parse(METADATA.sub("", card))
    for token in [each for outer in tokens for each in _with_children(outer)]:
        if token.type in ("html_block", "html_inline"):
            markup.feed(token.content)
        addresses += [str(token.attrs[name]) for name in ("src", "href") if token.attrs.get(name)]
    paths = map(_path_beside, [*addresses, *markup.addresses])
    return frozenset(path for path in paths if path is not None)


class _Links(HTMLParser):
    """Collects the addresses that HTML loads or links to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in LINKS and value:
                self.addresses.append(value)
            elif name == "srcset" and value:
                self.addresses += [each.split()[0] for each in value.split(",") if each.strip()]


def _with_children(token: Token) -> Iterator[Token]:
    yield token
    for child in token.children or ():
        yield from _with_children(child)


def _path_beside(address: str) -> str | None:
    """The path of a file next to the card that an address leads to, None if it leads elsewhere."""
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        return None
    path = unquote(parts.path)
    if parts.scheme or parts.netloc or not path or path.startswith("/"):
        return None
    return normpath(path)
