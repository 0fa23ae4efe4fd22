"""What code written for fairseq reaches for under `.task` and `.bpe`, over our own dictionary and tokenizer."""

from __future__ import annotations

import operator
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from hf_xlmr.errors import (
    InputAssertionError,
    InputAttributeError,
    InputIndexError,
    InputNotImplementedError,
    InputTypeError,
    InputValueError,
)
from hf_xlmr.tokenizer.dictionary import BOS, EOS, PAD, SPECIAL_SYMBOLS, UNK, Dictionary
from hf_xlmr.tokenizer.tokenization import ExactTokenizer, text_of_symbols

if TYPE_CHECKING:
    import torch
    from sentencepiece import SentencePieceProcessor

JOINERS: Mapping[str, str] = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}
"""What stands for a space between words, by fairseq's names for the ways to cut them."""
SUBWORD_NMT = "@@ "
WRITING = ("add_from_file", "finalize", "load", "pad_to_multiple_", "update")


class SourceDictionary:
    """A Dictionary under the names of fairseq.data.Dictionary; read-only."""

    nspecial = len(SPECIAL_SYMBOLS)
    bos_word, pad_word, eos_word, unk_word = BOS, PAD, EOS, UNK
    bos_index, pad_index, eos_index, unk_index = range(len(SPECIAL_SYMBOLS))

    def __init__(self, dictionary: Dictionary) -> None:
        """Show `dictionary`."""
        self.dictionary = dictionary
        self.symbols = list(dictionary.symbols)

    def __len__(self) -> int:
        return len(self.dictionary)

    def __getitem__(self, index: int) -> str:
        if index >= len(self):
            return self.unk_word
        try:
            return self.symbols[index]
        except IndexError:
            raise InputIndexError(f"there is no id {index}: the dictionary has {len(self)} symbols") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.dictionary

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceDictionary) and self.symbols == other.symbols

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> NoReturn:
        if name == "count":  # the property found none: its own sentence, not the one below
            self._counts()
        if name in WRITING:
            raise InputAttributeError(f"this dictionary is that of the model and read-only: it has no {name}")
        raise AttributeError(f"the dictionary has no attribute {name!r}")

    @property
    def indices(self) -> Mapping[str, int]:
        """Each symbol's id, read-only."""
        return self.dictionary.rows

    @property
    def count(self) -> Sequence[int]:
        """How often each symbol came in the corpus, as dict.txt has it."""
        return list(self._counts())

    def get_count(self, idx: int) -> int:
        """How often the symbol with that id came in the corpus. Raises an AttributeError without counts."""
        return self._counts()[idx]

    def _counts(self) -> Sequence[int]:
        if self.dictionary.counts is None:
            raise InputAttributeError("the counts are in fairseq/dict.txt, which the model's folder does not have")
        return self.dictionary.counts

    def index(self, sym: str) -> int:
        """The id of the symbol `sym`, or that of `<unk>`. Raises InputAssertionError for what is not a str."""
        if not isinstance(sym, str):
            raise InputAssertionError(f"index takes a symbol, a str, not {type(sym).__name__}; d[id] gives the symbol")
        return self.dictionary.index(sym)

    def add_symbol(self, word: str, n: int = 1, overwrite: bool = False) -> int:
        """The id of a symbol of the dictionary; `n` is not counted. AttributeError for another, and to overwrite."""
        if overwrite or word not in self:
            raise InputAttributeError(
                f"{word!r} cannot be added: this dictionary is that of the model's embedding, and read-only"
            )
        return self.index(word)

    def bos(self) -> int:
        """Always 0; encoded texts begin with index("<s>")."""
        return self.bos_index

    def pad(self) -> int:
        """Always 1."""
        return self.pad_index

    def eos(self) -> int:
        """Always 2; encoded texts end with index("</s>")."""
        return self.eos_index

    def unk(self) -> int:
        """Always 3."""
        return self.unk_index

    def unk_string(self, escape: bool = False) -> str:
        """`<unk>`, or `<<unk>>`."""
        return f"<{self.unk_word}>" if escape else self.unk_word

    def string(
        self,
        tensor: torch.Tensor | Iterable[Any],
        bpe_symbol: str | None = None,
        escape_unk: bool = False,
        extra_symbols_to_ignore: Collection[int] | None = None,
        unk_string: str | None = None,
        include_eos: bool = False,
        separator: str = " ",
    ) -> str:
        """The symbols of one text's ids with `separator` between them; ids 0 and 2 are left out.

        `bpe_symbol="sentencepiece"` joins the pieces to words. A 2-D tensor gives a line for each row, by fairseq's
        own rule without `unk_string` and `separator`. Raises InputTypeError for what are not ids, InputIndexError,
        InputNotImplementedError.
        """
        if getattr(tensor, "ndim", 1) == 2:
            rows = (
                self.string(row, bpe_symbol, escape_unk, extra_symbols_to_ignore, include_eos=include_eos)
                for row in tensor
            )
            return "\n".join(rows)
        ignored = {self.bos(), *(extra_symbols_to_ignore or ()), *(() if include_eos else (self.eos(),))}
        unknown = self.unk_string(escape_unk) if unk_string is None else unk_string
        ids = [index for index in _ids(tensor) if index not in ignored]
        return _joined(separator.join(unknown if index == self.unk() else self[index] for index in ids), bpe_symbol)

    def save(self, f: str | Path | IO[str]) -> None:
        """Write dict.txt, a symbol and its count in each line, to a path or a file. Raises AttributeError, OSError."""
        rows = zip(self.symbols[self.nspecial :], self._counts()[self.nspecial :], strict=True)
        text = "".join(f"{symbol} {count}\n" for symbol, count in rows)
        if isinstance(f, (str, Path)):
            Path(f).parent.mkdir(parents=True, exist_ok=True)
            Path(f).write_text(text, encoding="utf-8")
        else:
            f.write(text)

    def encode_line(
        self,
        line: str,
        line_tokenizer: Callable[[str], Iterable[str]] = str.split,
        add_if_not_exist: bool = False,
        consumer: Callable[[str, int], object] | None = None,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> torch.Tensor:
        """The ids of the symbols in `line`, which `line_tokenizer` cuts, as an int32 tensor.

        Each symbol and its id are shown to `consumer`. With `add_if_not_exist`, which is off here, a symbol that the
        dictionary lacks raises an AttributeError; without, it is `<unk>`.
        """
        import torch

        words = list(line_tokenizer(line))
        find = self.add_symbol if add_if_not_exist else self.index
        ids = []
        for word in reversed(words) if reverse_order else words:
            ids.append(find(word))
            if consumer is not None:
                consumer(word, ids[-1])
        return torch.tensor([*ids, self.eos()] if append_eos else ids, dtype=torch.int32)


def _ids(tensor: Iterable[Any]) -> Iterator[int]:
    """The elements of a tensor, an array or a list as ids. Raises InputTypeError."""
    dimensions = getattr(tensor, "ndim", 1)
    if dimensions != 1:
        kind = InputValueError if dimensions else InputTypeError
        raise kind(f"ids are a 1-D or 2-D tensor, not one of {dimensions} dimensions")
    for each in tensor:
        try:
            yield operator.index(each)
        except TypeError:
            raise InputTypeError(f"ids are whole numbers, not {type(each).__name__}: {each!r:.60}") from None


def _joined(symbols: str, bpe_symbol: str | None) -> str:
    """Fairseq.data.data_utils.post_process: symbols with spaces between them as the text that they were cut from."""
    if bpe_symbol in (None, "none"):
        return symbols
    if bpe_symbol in JOINERS:
        return symbols.replace(" ", "").replace(JOINERS[bpe_symbol], " ").strip()
    if bpe_symbol == "silence":
        return " ".join(part for part in symbols.replace("<SIL>", "").split(" ") if part).strip()
    if bpe_symbol in ("subword_nmt", "@@", SUBWORD_NMT):
        mark = SUBWORD_NMT if bpe_symbol == "subword_nmt" else bpe_symbol
        return f"{symbols} ".replace(mark, "").rstrip()
    known = ", ".join([*JOINERS, "subword_nmt", "silence", "none"])
    raise InputNotImplementedError(f"bpe_symbol={bpe_symbol!r}: fairseq knows {known}; XLM-R's is sentencepiece")


@dataclass(frozen=True)
class FairseqTask:
    """The dictionaries of a model, where fairseq's code looks for them."""

    source_dictionary: SourceDictionary
    labels: SourceDictionary | None = None
    """The classes' names from id 4 (`nspecial`) on; None if the model has no named classes."""
    args: Namespace = field(default_factory=Namespace)
    """The options of the task in training."""
    longest: int | None = None

    @property
    def dictionary(self) -> SourceDictionary:
        """The source dictionary."""
        return self.source_dictionary

    target_dictionary = dictionary

    @property
    def label_dictionary(self) -> SourceDictionary:
        """The classes' names from id 4 (`nspecial`) on, and `<mask>`; for regression the source dictionary.

        Raises an AttributeError without labels.
        """
        if self.labels is None:
            raise InputAttributeError("there is no label dictionary: the task has no classes, or the files no names")
        return self.labels

    @property
    def cfg(self) -> Namespace:
        """`args`, under its name from fairseq 0.12 on."""
        return self.args

    @property
    def mask_idx(self) -> int:
        """The id of `<mask>`. Raises an AttributeError without one."""
        mask = self.source_dictionary.dictionary.mask_index
        if mask is None:
            raise InputAttributeError("the dictionary has no <mask>, so this model cannot fill one")
        return mask

    def max_positions(self) -> int | None:
        """The most tokens that a sentence task takes; None for masked_lm, where the model alone has a limit."""
        return self.longest


class SentencepieceBpe:
    """Fairseq's `bpe` object: texts to pieces with spaces between them, and back."""

    def __init__(self, find_tokenizer: Callable[[], ExactTokenizer]) -> None:
        """Cut texts as the tokenizer that `find_tokenizer` gives; `decode` does without."""
        self._find_tokenizer = find_tokenizer

    @property
    def sp(self) -> SentencePieceProcessor:
        """The SentencePieceProcessor. Raises InputError if there is none."""
        found: SentencePieceProcessor = self._find_tokenizer().processor
        return found

    def encode(self, x: str) -> str:
        """The pieces of the text `x`, such as U+0085 too, where `encode_line` splits. Raises InputError."""
        return " ".join(self._find_tokenizer().segments(x))

    def decode(self, x: str) -> str:
        """The text of the pieces `x`: no spaces but those that the pieces stand for."""
        return text_of_symbols(x)

    def is_beginning_of_word(self, x: str) -> bool:
        """Whether the piece `x` begins a word."""
        return x in SPECIAL_SYMBOLS or x.startswith("\u2581")
