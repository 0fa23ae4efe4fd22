"""SentencePiece's model files put together by hand, field by field, so that they can hold what no training gives."""

from __future__ import annotations

import struct
from collections.abc import Mapping

__all__ = ["SPECIAL_PIECES", "charsmap", "charsmap_of", "message", "piece", "sentencepiece", "varint"]


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


def message(number: int, content: bytes | int) -> bytes:
    """A field of a protobuf message."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content % 2**64)
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(spelled: str | bytes, score: float = -1.0, kind: int = 1) -> bytes:
    """A piece, by PieceType."""
    text = spelled.encode() if isinstance(spelled, str) else spelled
    return message(1, message(1, text) + b"\x15" + struct.pack("<f", score) + message(3, kind))


SPECIAL_PIECES = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)


def sentencepiece(
    pieces: bytes = b"",
    *,
    kind: int = 1,
    charsmap: bytes = b"",
    byte_fallback: bool = False,
    special: bytes = SPECIAL_PIECES,
) -> bytes:
    """A model with these pieces after the special ones, by ModelType."""
    trainer = message(2, message(3, kind) + (message(35, 1) if byte_fallback else b""))
    normalizer = message(3, message(2, charsmap) + message(3, 1))
    return special + pieces + trainer + normalizer


def charsmap(units: list[int], strings: bytes = b"x\0") -> bytes:
    """A precompiled charsmap: the units of its double array, and what its rules make."""
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + strings


def charsmap_of(rules: Mapping[str, str] | Mapping[bytes, str]) -> bytes:
    """A precompiled charsmap with these rules; each branch has a block of 256 units for itself."""
    strings, values = b"", {}
    for key, value in rules.items():
        values[key if isinstance(key, bytes) else key.encode()] = len(strings)
        strings += value.encode() + b"\0"
    prefixes = sorted({key[:end] for key in values for end in range(len(key) + 1)}, key=lambda each: (len(each), each))
    blocks = {prefix: 256 * number for number, prefix in enumerate(prefixes, 1)}
    units = [0] * 256 * (len(prefixes) + 1)
    units[0] = blocks[b""] << 10
    for prefix, block in blocks.items():
        if prefix in values:
            units[block] = 0x80000000 | values[prefix]
        if prefix:
            place = blocks[prefix[:-1]] ^ prefix[-1]
            units[place] = prefix[-1] | (0x100 if prefix in values else 0) | (place ^ block) << 10
    return charsmap(units, strings)
