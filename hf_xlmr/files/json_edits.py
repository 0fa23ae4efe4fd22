"""A few fields of a JSON file changed, and every other byte of it left as somebody wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from json.decoder import JSONDecoder
from typing import Final, NamedTuple

SPACE: Final = " \t\r\n"


class _Field(NamedTuple):
    """A field of the outermost object: where the white space before its name begins, its name, and its value."""

    gap: int
    name_start: int
    name: str
    start: int
    end: int


def field_of(text: str, name: str) -> object:
    """The value of the first field `name` of the JSON object `text`, None without one; what follows is not read.

    Raises ValueError if the text is not a JSON object as far as it is read.
    """
    try:
        if text[_past_space(text, 0)] != "{":
            raise ValueError("this is not a JSON object")
        return next((json.loads(text[each.start : each.end]) for each in _fields(text) if each.name == name), None)
    except IndexError:
        raise ValueError("this JSON object has no end") from None


def with_fields(text: str, fields: Mapping[str, object]) -> str:
    """The JSON object `text` with `fields` set: in their places if it has them, else after its last one.

    Raises ValueError if the text is not a JSON object.
    """
    if not isinstance(json.loads(text), dict):
        raise ValueError("this is not a JSON object")
    for name, value in fields.items():
        text = _with_field(text, name, json.dumps(value, ensure_ascii=False))
    return text


def _with_field(text: str, name: str, value: str) -> str:
    found = list(_fields(text))
    named = [field for field in found if field.name == name]
    if named:  # of several fields of one name the last counts
        return text[: named[-1].start] + value + text[named[-1].end :]
    if not found:
        opening = text.index("{") + 1
        return f"{text[:opening]}{json.dumps(name)}: {value}{text[opening:].lstrip(SPACE)}"
    last = found[-1]
    gap = text[last.gap : last.name_start]
    return f"{text[: last.end]},{gap}{json.dumps(name)}: {value}{text[last.end :]}"


def _fields(text: str) -> Iterator[_Field]:
    """The fields of the outermost object of a text that is known to be one."""
    decoder = JSONDecoder()
    gap = text.index("{") + 1
    while text[name_start := _past_space(text, gap)] == '"':
        name, end = decoder.raw_decode(text, name_start)
        start = _past_space(text, _past_space(text, end) + 1)  # past the colon
        _, end = decoder.raw_decode(text, start)
        yield _Field(gap, name_start, name, start, end)
        gap = _past_space(text, end) + 1  # past the comma, or the closing brace
        if text[gap - 1] == "}":
            return


def _past_space(text: str, at: int) -> int:
    while text[at] in SPACE:
        at += 1
    return at
