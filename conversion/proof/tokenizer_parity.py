"""The exported tokenizer against fairseq's rule, on generated texts of every class that has ever made a difference.

Both look for the cut with the best score. SentencePiece adds scores up in single precision and tokenizers in double, so
of cuts whose scores are equal, or nearer than rounding, each takes one by chance: `aaaaaaa` of XLM-R is ▁a, a, aaaaa or
▁a, aaaaa, a. Only there, and where a text holds what tokenizer.json cannot express, may ordinary texts get other ids.
"""

from __future__ import annotations

import math
import random
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from string import ascii_letters
from typing import Final

from hf_xlmr.conversion.tokenizer_json.vocabulary import TokenizerPlan, Vocabulary
from hf_xlmr.tokenizer.dictionary import MASK, SPECIAL_SYMBOLS, UNK, UNK_INDEX
from hf_xlmr.tokenizer.plain_tokenizer import tokenizer_damage_told
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

__all__ = ["EMPHATIC", "EXACT_CLASSES", "TextClass", "compare_tokenizers", "texts_by_class"]

SEED: Final = 1
SPACES: Final = "\t\n\x0b\x0c\r\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff  "
MARKS: Final = "".join(
    map(chr, (*range(0x300, 0x345), *range(0x591, 0x5B0), *range(0x64B, 0x653), 0x93C, 0x3099, 0x309A))
)
JAMO: Final = "".join(map(chr, (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
KANA: Final = "".join(map(chr, range(0xFF66, 0xFFA0)))
EMOJI: Final = ("👍", "👍🏽", "👨‍👩‍👧", "🇩🇪", "1️⃣", "❤️", "☃", "🙂")
COMPATIBILITY: Final = "ﬁ½Ａ①㈱㍿ª™Ⅷ…²￥"
EMPHATIC: Final = "emphatic repeats"
EXACT_CLASSES: Final = ("text of pieces", "decomposed text", "white space", "long repeats", EMPHATIC)
"""The classes where fairseq and the export must agree but for cuts of equal score and what cannot be expressed."""
ROUNDING: Final = 2.0**-23  # of the score of a text, for each of its pieces: two cuts, each addition off by half an ulp


@dataclass(frozen=True)
class TextClass:
    """One class of texts: how many, how many got other ids than fairseq's, why, and one of those."""

    name: str
    texts: int
    different: int
    equal_score: int
    """How many of the different ones have two cuts of the same score."""
    limited: int
    """How many of the others hold what tokenizer.json cannot express, as the notes say."""
    example: str | None
    """The first text without a reason, otherwise the first with one."""

    @property
    def unexplained(self) -> int:
        """How many are different without a reason."""
        return self.different - self.equal_score - self.limited


def texts_by_class(pieces: Sequence[str], *, count: int, seed: int = SEED) -> dict[str, list[str]]:
    """`count` generated texts of each class, out of the vocabulary's own pieces; the same for the same `seed`.

    Fewer in the EXACT_CLASSES, where those that spell a special symbol are left out.
    """
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
        "special-looking text": sprinkled((*SPECIAL_SYMBOLS, MASK, "▁", "<", ">")),
        EMPHATIC: lambda: " ".join(_emphatic(chance, chance.choice(pieces)) for _ in range(chance.randint(1, 4))),
    }
    made = {name: [make() for _ in range(count)] for name, make in makers.items()}
    return {
        name: [text for text in texts if name not in EXACT_CLASSES or not _spells_a_special(text)]
        for name, texts in made.items()
    }


def _emphatic(chance: random.Random, piece: str) -> str:
    """A word whose end comes many times: `sooooo`, `hahaha`, `yes!!!!`."""
    word = piece.replace("▁", "")
    return word + word[-chance.randint(1, 3) :] * chance.randint(3, 12)


def _spells_a_special(text: str) -> bool:
    """Whether Transformers takes a part of the text for a special symbol."""
    return any(symbol in text for symbol in (*SPECIAL_SYMBOLS, MASK))


def compare_tokenizers(vocabulary: Vocabulary, exact: ExactTokenizer, folder: Path, *, count: int) -> list[TextClass]:
    """Encode texts of every class with plain Transformers and by fairseq's rule, and count where the ids differ.

    The folder's rules are taken to be those that convert writes, which cannot make a text explode.
    """
    from transformers import AutoTokenizer

    comparison = _Comparison(vocabulary, exact)
    classes = texts_by_class(comparison.pieces, count=count)
    texts = [text for each in classes.values() for text in each]
    with tokenizer_damage_told(folder):
        exported = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    encoded = iter(exported(texts, return_attention_mask=False)["input_ids"])
    right = iter(exact.encode_batch(texts))
    return [
        comparison.of(name, each, list(islice(encoded, len(each))), list(islice(right, len(each))))
        for name, each in classes.items()
    ]


class _Comparison:
    """The exported tokenizer's ids compared with those of fairseq's rule."""

    def __init__(self, vocabulary: Vocabulary, exact: ExactTokenizer) -> None:
        assert vocabulary.tokenizer is not None
        self.vocabulary, self.exact = vocabulary, exact
        self.plan: TokenizerPlan = vocabulary.tokenizer
        self.scores = self.plan.slots.coverage.scores
        self.unknown_score = min(self.scores.values(), default=0.0) - SentencePieceModel.UNK_PENALTY
        not_text = {*SPECIAL_SYMBOLS, MASK, *self.plan.slots.coverage.byte_pieces}
        of_texts = [symbol for symbol in exact.dictionary.symbols if symbol not in not_text and symbol.strip()]
        self.pieces = of_texts or ["▁", *ascii_letters]  # a dictionary may have symbols for bytes alone

    def of(
        self, name: str, texts: Sequence[str], encoded: Sequence[Sequence[int]], right: Sequence[list[int]]
    ) -> TextClass:
        """Count the texts of a class; `encoded` is what the exported tokenizer gives for them, `right` what fairseq."""
        rows = zip(texts, encoded, right, strict=True)
        wrong = {text: ids for text, ids, expected in rows if self._in_rows(ids) != expected}
        equal = {text for text, ids in wrong.items() if self._is_of_equal_score(text, ids)}
        limited = {text for text in wrong.keys() - equal if self._is_limited(text)}
        by_reason = sorted(wrong, key=lambda text: text in equal or text in limited)  # stable: the first of each
        return TextClass(
            name=name,
            texts=len(texts),
            different=sum(text in wrong for text in texts),
            equal_score=sum(text in equal for text in texts),
            limited=sum(text in limited for text in texts),
            example=by_reason[0] if by_reason else None,
        )

    def _in_rows(self, ids: Sequence[int]) -> list[int]:
        """Ids of the rows that were appended stand for copies of `<unk>`; those beyond all rows for nothing."""
        rows = self.vocabulary.rows
        appended = range(rows, rows + self.vocabulary.extra_unk_rows)
        return [UNK_INDEX if index in appended else index for index in ids]

    def _is_limited(self, text: str) -> bool:
        normalized = self.exact.normalized(text)
        strings = (string for limit in self.plan.limits for string in limit.strings)
        return any(string in text or string in normalized for string in strings)

    def _is_of_equal_score(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the exported tokenizer's cut is one that SentencePiece could have taken but for rounding."""
        if not self.plan.slots.coverage.is_unigram:
            return self._may_merge_otherwise(self.exact.normalized(text))
        names, pieces = self.plan.names, self.exact.pieces(text)
        theirs = self._cut(names[index] if index < len(names) else UNK for index in ids[1:-1])
        ours = self._cut(pieces)
        normalized = "".join(self.exact.normalized(text).split())
        if theirs == ours or not (self._is_cut_of(normalized, theirs) and self._is_cut_of(normalized, ours)):
            return False
        size = sum(abs(self.scores.get(piece, self.unknown_score * len(piece))) for piece in pieces)
        apart = self._score(theirs, len(normalized)) - self._score(ours, len(normalized))
        return abs(apart) <= ROUNDING * len(normalized) * size

    def _cut(self, pieces: Iterable[str]) -> list[str | None]:
        """The pieces, with None for each run of unknown ones."""
        cut: list[str | None] = []
        for piece in pieces:
            if piece in self.scores:
                cut.append(piece)
            elif not cut or cut[-1] is not None:
                cut.append(None)
        return cut

    def _score(self, cut: Sequence[str | None], length: int) -> float:
        """What the cut of a text of this length scores."""
        known = [piece for piece in cut if piece is not None]
        unknown = length - sum(map(len, known))
        return math.fsum((*map(self.scores.__getitem__, known), unknown * self.unknown_score))

    def _is_cut_of(self, normalized: str, cut: Sequence[str | None]) -> bool:
        """Whether the pieces make up the text."""
        ends: set[int] = {0}
        for piece in cut:
            if piece is None:
                ends = {stop for end in ends for stop in self._ends_of_unknown(normalized, end)}
            else:
                ends = {end + len(piece) for end in ends if normalized.startswith(piece, end)}
        return len(normalized) in ends

    def _ends_of_unknown(self, normalized: str, start: int) -> Iterator[int]:
        """Where a run of unknown characters from `start` on can end."""
        for end in range(start, len(normalized)):
            if normalized[end] in self.plan.slots.coverage.chars:
                return
            yield end + 1

    def _may_merge_otherwise(self, normalized: str) -> bool:
        """Whether the text holds two pieces of BPE with one score, of which SentencePiece merges the left one first."""
        return any(sum(piece in normalized for piece in pieces) > 1 for pieces in self._pieces_of_equal_score)

    @cached_property
    def _pieces_of_equal_score(self) -> list[list[str]]:
        by_score = defaultdict(list)
        for piece, score in self.scores.items():
            if len(piece) > 1:
                by_score[score].append(piece)
        return [pieces for pieces in by_score.values() if len(pieces) > 1]
