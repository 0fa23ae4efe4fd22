"""Recognizes fairseq dictionaries whose symbols are not SentencePiece's pieces in XLM-R's order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hf_xlmr.tokenizer.dictionary import BOS, EOS, FILLER, MASK, SPECIAL_SYMBOLS, Dictionary

__all__ = ["FILLER_NAME", "DictionaryKind", "kind_of_dictionary"]

SPACE: Final = "\u2581"  # SentencePiece's mark before each word
BYTE_SPACE: Final = "\u0120"  # GPT-2's letter for the byte of a space
FILLER_NAME: Final = re.compile(FILLER + "[0-9]{4,}")  # pads a dictionary to a multiple of 8


@dataclass(frozen=True)
class DictionaryKind:
    """The kind of a dictionary; `what` continues from "dict.txt holds"."""

    what: str
    options: frozenset[str] = frozenset()
    """Values of fairseq's option `bpe` that mean this kind."""
    is_spelled: Callable[[str], bool] = lambda _: False
    """Whether a symbol has a spelling that only this kind has."""
    share: float = 1.0
    """The smallest share of symbols with this spelling."""
    has_sentencepiece: bool = False

    def told(self, place: str) -> str:
        """A remark for users on the ids; `place` is the path of the dictionary, such as fairseq/dict.txt."""
        return (
            f"{place} holds {self.what}: the model's ids are those of {place}, and no tokenizer of XLM-R's kind "
            "belongs to it."
        )


KINDS: Final = (
    DictionaryKind(
        "the decimal ids of GPT-2's byte-level BPE, as English RoBERTa's does",
        frozenset({"gpt2"}),
        lambda symbol: symbol.isascii() and symbol.isdecimal(),
        0.9,
    ),
    DictionaryKind(
        "pieces of fastBPE or subword-nmt, in which @@ joins a piece to the next, as PhoBERT's does",
        frozenset({"fastbpe", "subword_nmt"}),
        lambda symbol: len(symbol) > 2 and symbol.endswith("@@"),
        0.02,
    ),
    DictionaryKind(
        f"pieces of a byte-level BPE of Hugging Face's, in which {BYTE_SPACE} is a space, as GottBERT's does",
        frozenset({"hf_byte_bpe"}),
        lambda symbol: len(symbol) > 1 and symbol.startswith(BYTE_SPACE),
        0.02,
    ),
    DictionaryKind(
        "BERT's WordPieces, in which ## joins a piece to the one before",
        frozenset({"bert"}),
        lambda symbol: len(symbol) > 2 and symbol.startswith("##"),
        0.02,
    ),
    DictionaryKind("single bytes or characters, or a BPE over bytes", frozenset({"bytes", "byte_bpe", "characters"})),
)
PIECES: Final = 0.02  # the smallest share of symbols that begin a word in a dictionary of SentencePiece's pieces
CAMEMBERT: Final = "SentencePiece's pieces, with <s> and </s> a second time as {bos} and {eos}, as CamemBERT's does"


def kind_of_dictionary(dictionary: Dictionary, *, bpe: object = None) -> DictionaryKind | None:
    """The kind of a dictionary, None if its symbols can be pieces of SentencePiece's in XLM-R's order.

    `bpe` is fairseq's option of that name, which decides if the symbols do not.
    """
    symbols = [
        each for each in dictionary.symbols if not (each in (*SPECIAL_SYMBOLS, MASK) or FILLER_NAME.fullmatch(each))
    ]
    if _share(symbols, lambda symbol: symbol.startswith(SPACE)) >= PIECES:
        return _camembert(dictionary)
    spelled = (kind for kind in KINDS if _share(symbols, kind.is_spelled) >= kind.share)
    return next(spelled, next((kind for kind in KINDS if bpe in kind.options), None))


def _camembert(dictionary: Dictionary) -> DictionaryKind | None:
    moved = (dictionary.bos_index, dictionary.eos_index)
    if moved == tuple(map(SPECIAL_SYMBOLS.index, (BOS, EOS))):
        return None
    return DictionaryKind(CAMEMBERT.format(bos=moved[0], eos=moved[1]), has_sentencepiece=True)


def _share(symbols: Sequence[str], is_spelled: Callable[[str], bool]) -> float:
    return sum(map(is_spelled, symbols)) / max(1, len(symbols))
