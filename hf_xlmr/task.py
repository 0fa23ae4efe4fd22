"""What code written for fairseq reaches for under `.task` and `.bpe`, over our own dictionary and tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_xlmr.dictionary import SPECIAL_SYMBOLS, Dictionary
from hf_xlmr.errors import InputError
from hf_xlmr.tokenization import ExactTokenizer, text_of_symbols

if TYPE_CHECKING:
    import torch

__all__ = ["FairseqTask", "SentencepieceBpe", "SourceDictionary"]


class NoMask(InputError, AttributeError):
    """The dictionary has no `<mask>`."""


class SourceDictionary:
    """A Dictionary under the names of fairseq.data.Dictionary; read-only."""

    nspecial = len(SPECIAL_SYMBOLS)

    def __init__(self, dictionary: Dictionary) -> None:
        """Show `dictionary`."""
        self.dictionary = dictionary
        self.symbols = list(dictionary.symbols)

    def __len__(self) -> int:
        return len(self.dictionary)

    def __getitem__(self, index: int) -> str:
        return self.symbols[index] if 0 <= index < len(self) else self.symbols[self.unk()]

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.dictionary

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceDictionary) and self.symbols == other.symbols

    __hash__ = None  # type: ignore[assignment]

    def index(self, symbol: str) -> int:
        """The id of `symbol`, or that of `<unk>`."""
        return self.dictionary.index(symbol)

    def bos(self) -> int:
        """Always 0; encoded texts begin with index("<s>")."""
        return 0

    def pad(self) -> int:
        """Always 1."""
        return self.dictionary.pad_index

    def eos(self) -> int:
        """Always 2; encoded texts end with index("</s>")."""
        return 2

    def unk(self) -> int:
        """Always 3."""
        return self.dictionary.unk_index

    def string(self, tokens: Iterable[int]) -> str:
        """The symbols of the `tokens` of one text with spaces between; ids 0 and 2 are left out."""
        return self.dictionary.string(tokens)

    def encode_line(
        self, line: str, append_eos: bool = True, add_if_not_exist: bool = False, **_unused: object
    ) -> torch.Tensor:
        """The ids of the symbols in `line`, which white space separates, as an int32 tensor."""
        import torch

        if add_if_not_exist:
            raise InputError("this dictionary is read-only: pass add_if_not_exist=False")
        ids = [self.index(symbol) for symbol in line.split()]
        return torch.tensor([*ids, self.eos()] if append_eos else ids, dtype=torch.int32)


@dataclass(frozen=True)
class FairseqTask:
    """The dictionaries of a model, where fairseq's code looks for them."""

    source_dictionary: SourceDictionary
    label_dictionary: SourceDictionary | None
    """The classes' names from id 4 (`nspecial`) on; None where the model has no named classes."""

    @property
    def dictionary(self) -> SourceDictionary:
        """The source dictionary."""
        return self.source_dictionary

    @property
    def target_dictionary(self) -> SourceDictionary:
        """The source dictionary."""
        return self.source_dictionary

    @property
    def mask_idx(self) -> int:
        """The id of `<mask>`. Raises NoMask, an AttributeError."""
        mask = self.source_dictionary.dictionary.mask_index
        if mask is None:
            raise NoMask("the dictionary has no <mask>, so this model cannot fill one")
        return mask


class SentencepieceBpe:
    """Fairseq's `bpe` object: texts to pieces with spaces between them, and back."""

    def __init__(self, tokenizer: ExactTokenizer) -> None:
        """Cut texts as `tokenizer` does."""
        self._tokenizer = tokenizer
        self.sp = tokenizer.processor

    def encode(self, text: str) -> str:
        """The pieces of `text`."""
        return " ".join(self._tokenizer.pieces(text))

    def decode(self, pieces: str) -> str:
        """The text of `pieces`: no spaces but those that the pieces stand for."""
        return text_of_symbols(pieces)

    def is_beginning_of_word(self, piece: str) -> bool:
        """Whether `piece` begins a word."""
        return piece in {"<unk>", "<s>", "</s>", "<pad>"} or piece.startswith("\u2581")
