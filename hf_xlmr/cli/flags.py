"""Arguments of the library in a sentence as the options of the program: `head='none'` as `--head none`."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["in_flags"]

FLAGS: Final = (
    (re.compile(r"\bencoder_only=True"), "--encoder-only"),
    (re.compile(r"\bhead='([^']*)'"), r"--head \1"),
    (re.compile(r"\bhead=(?!\w)"), "--head"),
    (re.compile(r"\battention_heads=N\b"), "--attention-heads N"),
)


def in_flags(sentence: str) -> str:
    """The sentence for somebody who types commands."""
    for pattern, flag in FLAGS:
        sentence = pattern.sub(flag, sentence)
    return sentence
