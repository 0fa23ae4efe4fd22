"""Recognizes fairseq dictionaries whose symbols are not SentencePiece's pieces in XLM-R's order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Final

from hf_xlmr.tokenizer.dictionary import BOS, EOS, FILLER, MASK, SPECIAL_SYMBOLS, Dictionary

SPACE: Final = "\u2581"  # SentencePiece's mark before each word
BYTE_SPACE: Final = "\u0120"  # GPT-2's letter for the byte of a space
PRINTABLE: Final = frozenset((*range(32, 127), *range(161, 173), *range(174, 256)))
LETTERS_OF_BYTES: Final = frozenset(SPACE + "".join(chr(byte + 256 * (byte not in PRINTABLE)) for byte in range(256)))
"""How fairseq writes bytes (fairseq/data/encoders/byte_utils.py)."""
SPECIALS: Final = frozenset((*SPECIAL_SYMBOLS, MASK))
FILLER_NAME: Final = re.compile(FILLER + "[0-9]{4,}")  # pads a dictionary to a multiple of 8


@dataclass(frozen=True)
class DictionaryKind:
    """The kind of a dictionary; `what` continues from "dict.txt holds"."""

    what: str
    how: str = ""
    """How fairseq makes symbols of a text; continues from "to encode a text, "."""
    option: str | None = None
    """The value of fairseq's option `bpe` that means this kind."""
    is_spelled: Callable[[str], bool] = lambda _: False
    """Whether a symbol has a spelling that only this kind and its neighbours in the table have."""
    share: float = 1.0
    """The smallest share of symbols with this spelling."""
    has_sentencepiece: bool = False
    """Whether tokenizer.json can give these ids, with the SentencePiece model."""
    is_of_letters: bool = False
    """Whether its symbols can look like pieces, though SentencePiece never saw plain texts."""

    def told(self, place: str) -> str:
        """A remark for users on the ids; `place` is the path of the dictionary, such as fairseq/dict.txt."""
        if self.has_sentencepiece:
            return (
                f"{place} holds {self.what}: the model's ids are those of {place}, and XLM-R's class of tokenizers "
                "gives others."
            )
        return (
            f"{place} holds {self.what}. To encode a text, {self.how}, and look up each: the model's ids are those of "
            f"{place}, and no tokenizer of XLM-R's kind belongs to it."
        )


def _is_decimal(symbol: str) -> bool:
    return symbol.isascii() and symbol.isdecimal()


def _is_joined(symbol: str) -> bool:
    return len(symbol) > 2 and symbol.endswith("@@")


DECIMALS: Final = "the decimal ids of GPT-2's byte-level BPE, as English RoBERTa's does"
JOINED: Final = "pieces of fastBPE or subword-nmt, in which @@ joins a piece to the next, as PhoBERT's does"
CODES: Final = "cut it with {} and the training's codes into pieces (first prepare it as the training's texts were)"
_DECIMAL: Final = partial(DictionaryKind, is_spelled=_is_decimal, share=0.9)
KINDS: Final = (  # of those with one spelling the first is meant if the option says nothing
    _DECIMAL(
        f"{DECIMALS}, or of another byte-level BPE, as GottBERT's does",
        "cut it with the training's BPE (encoder.json and vocab.bpe, or vocab.json and merges.txt) into decimal ids",
    ),
    _DECIMAL(
        DECIMALS,
        "cut it with the training's encoder.json and vocab.bpe (English RoBERTa's are GPT-2's own) into decimal ids",
        "gpt2",
    ),
    _DECIMAL(
        "the decimal ids of a byte-level BPE of Hugging Face's, as GottBERT's does",
        "cut it with ByteLevelBPETokenizer and the training's vocab.json and merges.txt into decimal ids",
        "hf_byte_bpe",
    ),
    DictionaryKind(JOINED, CODES.format("fastBPE or subword-nmt"), None, _is_joined, 0.02),
    DictionaryKind(JOINED, CODES.format("fastBPE"), "fastbpe", _is_joined, 0.02),
    DictionaryKind(JOINED, CODES.format("subword-nmt"), "subword_nmt", _is_joined, 0.02),
    DictionaryKind(
        f"pieces of a byte-level BPE, in which {BYTE_SPACE} is a space",
        "cut it with the training's byte-level BPE (vocab.json and merges.txt) into pieces",
        None,
        lambda symbol: len(symbol) > 1 and symbol.startswith(BYTE_SPACE),
        0.02,
    ),
    DictionaryKind(
        "BERT's WordPieces, in which ## joins a piece to the one before",
        "cut it with BertTokenizer and the training's vocab.txt into pieces",
        "bert",
        lambda symbol: len(symbol) > 2 and symbol.startswith("##"),
        0.02,
    ),
)
LETTERS: Final = (  # whose spelling SentencePiece's pieces can have, too, so that the option has to say it
    DictionaryKind(
        "single characters", f"take its characters, and {SPACE} for a space", "characters", is_of_letters=True
    ),
    DictionaryKind("single bytes", "take the letters that fairseq writes for its bytes", "bytes", is_of_letters=True),
    DictionaryKind(
        "pieces over the letters that fairseq writes for bytes",
        "write its bytes as fairseq does, and cut that with the training's SentencePiece model into pieces",
        "byte_bpe",
        is_of_letters=True,
    ),
)
PIECES: Final = 0.02  # the smallest share of symbols that begin a word in a dictionary of SentencePiece's pieces
CAMEMBERT: Final = "SentencePiece's pieces, with <s> and </s> a second time as {bos} and {eos}, as CamemBERT's does"


def kind_of_dictionary(dictionary: Dictionary, *, bpe: object = None) -> DictionaryKind | None:
    """The kind of a dictionary, None if its symbols can be pieces of SentencePiece's in XLM-R's order.

    `bpe` is fairseq's option of that name, which decides if the symbols do not.
    """
    symbols = [
        each
        for each in dictionary.symbols
        if each not in SPECIALS and not (each.startswith(FILLER) and FILLER_NAME.fullmatch(each))
    ]
    if letters := _letters(symbols, bpe):
        return letters
    if _share(symbols, methodcaller("startswith", SPACE)) >= PIECES:
        return _camembert(dictionary)
    spelled = [kind for kind in KINDS if _share(symbols, kind.is_spelled) >= kind.share]
    named = [kind for kind in spelled or (*KINDS, *LETTERS) if bpe is not None and kind.option == bpe]
    return next(iter([*named, *spelled]), None)


def _letters(symbols: Sequence[str], bpe: object) -> DictionaryKind | None:
    """The kind that the option names, if the symbols do not contradict it."""
    kind = next((kind for kind in LETTERS if kind.option == bpe), None)
    if kind is None or kind.option == "byte_bpe":
        return kind if all(map(LETTERS_OF_BYTES.issuperset, symbols)) else None
    return kind if all(len(symbol) == 1 for symbol in symbols) else None


def _camembert(dictionary: Dictionary) -> DictionaryKind | None:
    moved = (dictionary.bos_index, dictionary.eos_index)
    if moved == tuple(map(SPECIAL_SYMBOLS.index, (BOS, EOS))):
        return None
    return DictionaryKind(CAMEMBERT.format(bos=moved[0], eos=moved[1]), has_sentencepiece=True)


def _share(symbols: Sequence[str], is_spelled: Callable[[str], bool]) -> float:
    return sum(map(is_spelled, symbols)) / max(1, len(symbols))
