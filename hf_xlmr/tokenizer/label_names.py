"""Writes names of classes as lines of fairseq's label dictionary, which refuses some names that config.json allows."""

from __future__ import annotations

from collections.abc import Sequence

from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.dictionary import SPECIAL_SYMBOLS, Dictionary


def label_lines(names: Sequence[str], *, place: str) -> bytes:
    """The content of a label/dict.txt with the `names` of id2label in their order.

    Raises InputError, which names the class in `place`, for a name that fairseq would read as another.
    """
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if (reason := _obstacle(name, seen)) is not None:
            raise InputError(f"{place}: id2label calls class {number} {name!r:.60}, {reason}: give it another name")
        seen[name] = number
    return "".join(f"{name} {len(names) - number}\n" for number, name in enumerate(names)).encode()


def _obstacle(name: str, seen: dict[str, int]) -> str | None:
    """Why a label dictionary cannot hold a name after the names in `seen`, None if it can."""
    if name in seen:
        return f"which is also the name of class {seen[name]}, and fairseq's label dictionary holds each name once"
    if name in SPECIAL_SYMBOLS:
        return "which fairseq's label dictionary uses as a special symbol"
    try:
        read = Dictionary.parse(f"{name} 1\n".encode(), name="").symbols[len(SPECIAL_SYMBOLS) :]
    except (InputError, UnicodeEncodeError):
        read = ()
    return None if read == (name,) else "which fairseq's label dictionary cannot hold in a line"
