"""The exported tokenizer against fairseq's rule, on generated texts of every class that has ever made a difference."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.vocabulary import Vocabulary
from hf_xlmr.dictionary import SPECIAL_SYMBOLS, UNK_INDEX
from hf_xlmr.plain_tokenizer import plain_tokenizer
from hf_xlmr.tokenization import ExactTokenizer

__all__ = ["PLAIN_CLASSES", "TextClass", "compare_tokenizers", "texts_by_class"]

SEED: Final = 1
SPACES: Final = "\t\n\x0b\x0c\r\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff  "
MARKS: Final = "".join(
    map(chr, (*range(0x300, 0x345), *range(0x591, 0x5B0), *range(0x64B, 0x653), 0x93C, 0x3099, 0x309A))
)
JAMO: Final = "".join(map(chr, (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
KANA: Final = "".join(map(chr, range(0xFF66, 0xFFA0)))
EMOJI: Final = ("👍", "👍🏽", "👨‍👩‍👧", "🇩🇪", "1️⃣", "❤️", "☃", "🙂")
COMPATIBILITY: Final = "ﬁ½Ａ①㈱㍿ª™Ⅷ…²￥"
PLAIN_CLASSES: Final = ("text of pieces", "decomposed text", "white space")
"""The classes where fairseq and the export must agree."""


@dataclass(frozen=True)
class TextClass:
    """One class of texts: how many, how many got other ids than fairseq's, and the first of those."""

    name: str
    texts: int
    different: int
    example: str | None


def texts_by_class(pieces: Sequence[str], *, count: int, seed: int = SEED) -> dict[str, list[str]]:
    """`count` generated texts of each class, out of the vocabulary's own pieces; the same for the same `seed`."""
    chance = random.Random(seed)

    def some(most: int) -> str:
        return "".join(chance.choice(pieces).replace("▁", " ") for _ in range(chance.randint(1, most)))

    def sprinkled(items: Sequence[str]) -> Callable[[], str]:
        return lambda: "".join(some(3) if chance.random() < 0.5 else chance.choice(items) for _ in range(8))

    makers: dict[str, Callable[[], str]] = {
        "text of pieces": lambda: unicodedata.normalize("NFC", some(25)),
        "decomposed text": lambda: unicodedata.normalize("NFD", some(25)),
        "white space": sprinkled(SPACES),
        "control characters": sprinkled([chr(code) for code in (*range(1, 32), *range(127, 160))]),
        "combining marks": sprinkled(MARKS),
        "half-width kana": sprinkled(KANA),
        "conjoining jamo": sprinkled(JAMO),
        "emoji": sprinkled(EMOJI),
        "compatibility characters": sprinkled(COMPATIBILITY),
        "long repeats": lambda: chance.choice(pieces)[:3] * chance.randint(3, 30),
        "special-looking text": sprinkled((*SPECIAL_SYMBOLS, "<mask>", "▁", "<", ">")),
    }
    return {name: [make() for _ in range(count)] for name, make in makers.items()}


def compare_tokenizers(vocabulary: Vocabulary, exact: ExactTokenizer, folder: Path, *, count: int) -> list[TextClass]:
    """Encode texts of every class with plain Transformers and by fairseq's rule, and count where the ids differ."""
    exported = plain_tokenizer(folder)
    pieces = [piece for piece in exact.dictionary.symbols if piece not in (*SPECIAL_SYMBOLS, "<mask>")]
    return [
        _compared(name, texts, exported(texts)["input_ids"], exact, vocabulary)
        for name, texts in texts_by_class(pieces, count=count).items()
    ]


def _compared(
    name: str, texts: Sequence[str], encoded: Sequence[Sequence[int]], exact: ExactTokenizer, vocabulary: Vocabulary
) -> TextClass:
    """Ids of the rows that were appended stand for copies of `<unk>`; those beyond all rows for nothing."""
    appended = range(vocabulary.rows, vocabulary.rows + vocabulary.extra_unk_rows)
    known = [[UNK_INDEX if index in appended else index for index in ids] for ids in encoded]
    wrong = [text for text, ids in zip(texts, known, strict=True) if ids != exact.encode(text)]
    return TextClass(name=name, texts=len(texts), different=len(wrong), example=wrong[0] if wrong else None)
