"""Names of weights as literal templates with named slots, readable against a checkpoint's listing, matched whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

__all__ = ["fill", "match", "slots_of"]

_SLOTS: Final = {
    "layer": r"[0-9]{1,4}",
    "part": r"weight|bias",
    "head": r"[^.]+",
    "language": r"[^.]+",
    "module": r"in_proj|out_proj|fc1|fc2",
    "base": r"(?:roberta(?:_prelayernorm)?\.)?",
    "any": r".+",
}


@cache
def _compiled(template: str) -> re.Pattern[str]:
    literals = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(f"(?P<{text}>{_SLOTS[text]})" if index % 2 else re.escape(text) for index, text in enumerate(literals))
    )


def match(template: str, name: str) -> dict[str, str] | None:
    """What the slots of `template` hold in `name`, None if it does not match as a whole."""
    found = _compiled(template).fullmatch(name)
    return None if found is None else found.groupdict()


def fill(template: str, slots: Mapping[str, str]) -> str:
    """`template` with its slots filled. Raises KeyError if one is not given."""
    return template.format_map(slots)


@cache
def slots_of(template: str) -> frozenset[str]:
    """The names of the slots in `template`."""
    return frozenset(_compiled(template).groupindex)
