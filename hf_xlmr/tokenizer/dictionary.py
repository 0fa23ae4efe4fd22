"""fairseq's dictionary, read-only: which id each symbol has, by the rules of fairseq's own reader."""

from __future__ import annotations

import io
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from hf_xlmr.errors import InputError, InputIndexError

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
MASK = "<mask>"
SPECIAL_SYMBOLS = (BOS, PAD, EOS, UNK)  # fairseq.data.Dictionary adds these four before it reads any line
BOS_INDEX, PAD_INDEX, EOS_INDEX, UNK_INDEX = range(4)  # fairseq's places; a dict.txt may give other rows the same names
ADDED_COUNT = 1  # the count of a symbol that fairseq adds itself
OVERWRITE_FLAG = "#fairseq:overwrite"
FILLER = "madeupword"  # begins the names with which fairseq-preprocess pads a dict.txt, also the one of labels
NO_SEPARATOR = bytes(set(range(256)).difference(b" \r\n"))
LONGEST_COUNT = 19  # digits of a usual line
MOST_LINES = 1_500_000  # the largest known dictionary, XLM-V's, has 900,000
LARGEST_FILE = 1 << 26

FILE_SIGNS = (
    (b"PK\x03\x04", "a zip file, such as a checkpoint"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80\x02", "a pickle, such as a checkpoint"),
    (b"{", "a JSON file"),
)


def fillers(taken: Container[str]) -> Iterator[str]:
    """Yield fairseq's names for rows without a name, `madeupword0000` and so on, except those in `taken`."""
    return (name for number in itertools.count() if (name := f"{FILLER}{number:04d}") not in taken)


@dataclass(frozen=True)
class Dictionary:
    """A dictionary: its rows in order, the four specials first; a name that occurs twice belongs to its last row."""

    symbols: tuple[str, ...]
    _indices: dict[str, int] = field(repr=False, compare=False)
    counts: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    """The frequency of each symbol in the corpus by dict.txt; None for a dictionary of another origin."""

    @classmethod
    def of(cls, symbols: Iterable[str], *, counts: Iterable[int] | None = None) -> Dictionary:
        """A dictionary with these rows, specials included, and the `counts` of all of them."""
        rows = tuple(symbols)
        return cls(
            symbols=rows,
            _indices=dict(zip(rows, itertools.count(), strict=False)),
            counts=None if counts is None else tuple(counts),
        )

    @classmethod
    def parse(cls, data: bytes, *, expected_rows: int | None = None, like: Sequence[str] = (), name: str) -> Dictionary:
        """Read a dict.txt as fairseq.data.Dictionary.add_from_file does; messages call it `name`.

        If the lines are `like` these strings, in this order, the dictionary holds them, which saves their memory.
        Up to fairseq 0.9.0 every duplicate was an overwrite: that rule is used if only it gives `expected_rows` (the
        rows of the embedding, with or without `<mask>`). Raises InputError.
        """
        text = _text_of(data, name=name)
        rows, counts, overwriting = _usual_rows(data, text) or _rows(data, text, name=name)
        symbols, counts = (
            [*SPECIAL_SYMBOLS, *(like if rows == list(like) else rows)],
            [*[ADDED_COUNT] * len(SPECIAL_SYMBOLS), *counts],
        )
        made = cls.of(symbols, counts=counts)
        names = len(symbols)
        if len(made._indices) < names and expected_rows not in {names, names + (MASK not in made)}:
            _raise_if_doubled(symbols, overwriting, expected_rows=expected_rows, name=name)
        return made

    def index(self, symbol: str) -> int:
        """The id of `symbol`, or that of `<unk>`."""
        return self._indices.get(symbol, UNK_INDEX)

    @property
    def rows(self) -> Mapping[str, int]:
        """A read-only mapping from each name to its id."""
        return MappingProxyType(self._indices)

    def indices(self, symbols: Iterable[str]) -> list[int]:
        """The `index` of each of the `symbols`."""
        find = self._indices.get
        return [find(symbol, UNK_INDEX) for symbol in symbols]

    def string(self, indices: Iterable[int]) -> str:
        """The symbols of `indices` joined by spaces, without those of ids 0 and 2, as fairseq.data.Dictionary.string.

        An id after the last is `<unk>`, and a negative one counts from the end, as in fairseq. Raises InputIndexError.
        """
        try:
            return " ".join(
                self.symbols[index] if index < len(self) else UNK
                for index in indices
                if index not in (BOS_INDEX, EOS_INDEX)
            )
        except IndexError:
            raise InputIndexError(f"An id is below {-len(self)}: these are not ids of this dictionary.") from None

    def with_mask(self) -> Dictionary:
        """The dictionary as the masked_lm tasks complete it: `<mask>` at the end, unless it has one."""
        if MASK in self:
            return self
        counts = None if self.counts is None else (*self.counts, ADDED_COUNT)
        return Dictionary(symbols=(*self.symbols, MASK), _indices={**self._indices, MASK: len(self)}, counts=counts)

    @property
    def mask_index(self) -> int | None:
        """The id of `<mask>`, None if there is none."""
        return self._indices.get(MASK)

    @property
    def bos_index(self) -> int:
        """The id that encoded sentences begin with; an overwritten `<s>` moves it (CamemBERT: 5)."""
        return self.index(BOS)

    @property
    def eos_index(self) -> int:
        """The id that encoded sentences end with; an overwritten `</s>` moves it (CamemBERT: 6)."""
        return self.index(EOS)

    @property
    def pad_index(self) -> int:
        """The id of `<pad>`, always 1: no line of a dict.txt moves fairseq's Dictionary.pad()."""
        return PAD_INDEX

    @property
    def unk_index(self) -> int:
        """The id of `<unk>`, always 3: no line of a dict.txt moves fairseq's Dictionary.unk()."""
        return UNK_INDEX

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._indices


def _text_of(data: bytes, *, name: str) -> str:
    """The text of a dict.txt. Raises InputError if it is not UTF-8, or far larger than any dictionary."""
    if len(data) > LARGEST_FILE:
        raise InputError(f"{name} has {len(data):,} bytes, as no dictionary does.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}, line {number}: not UTF-8; {_seems(data, '')}") from None
    if sum(map(data.count, (b"\n", b"\r"))) - data.count(b"\r\n") > MOST_LINES:
        raise InputError(f"{name} has more than {MOST_LINES:,} lines, as no dictionary does.")
    return text


def _usual_rows(data: bytes, text: str) -> tuple[list[str], list[int], set[int]] | None:
    r"""What `_rows` gives, many times faster, if every line is 'symbol count\n', as nearly always; else None."""
    if data.translate(None, NO_SEPARATOR) != b" \n" * data.count(b"\n") or not data.endswith(b"\n"):
        return None
    parts = text.replace("\n", " ").split(" ")
    symbols, counts = parts[:-1:2], parts[1::2]
    digits, lengths = "".join(counts), set(map(len, counts))
    if not (digits.isascii() and digits.isdecimal() and 0 < min(lengths) <= max(lengths) <= LONGEST_COUNT):
        return None
    return symbols, list(map(int, counts)), set()


def _rows(data: bytes, text: str, *, name: str) -> tuple[list[str], list[int], set[int]]:
    r"""The symbol of each line, its count, and the rows that overwrite. Raises InputError.

    Lines end only at \n, \r\n and \r, as in Python's text mode.
    """
    symbols, counts, overwriting = list[str](), list[int](), set[int]()
    for number, line in enumerate(io.StringIO(text, newline=None)):
        try:
            symbol, count, overwrites = _line(line)
        except ValueError:
            shown = line.rstrip("\n")[:60]
            raise InputError(
                f"{name}, line {number + 1}: {shown!r} is not 'symbol count'; {_seems(data, shown)} "
                "Give the dict.txt that the model was trained with."
            ) from None
        overwriting.update([number + len(SPECIAL_SYMBOLS)] if overwrites else ())
        symbols.append(symbol)
        counts.append(count)
    return symbols, counts, overwriting


def _line(text: str) -> tuple[str, int, bool]:
    """Parse one line in fairseq's order of steps: strip the right end, then split at the last space."""
    symbol, last = text.rstrip().rsplit(" ", 1)
    overwrites = last == OVERWRITE_FLAG
    if overwrites:
        symbol, last = symbol.rsplit(" ", 1)
    return symbol, int(last), overwrites


def _seems(data: bytes, line: str) -> str:
    """A sentence that says what a file that is not a dictionary looks like."""
    if data.startswith(b"\n") and b"<unk>" in data[:200]:
        return "the file seems to be a SentencePiece model."
    if "\t" in line:
        return "the file seems to be a SentencePiece .vocab file, which fairseq does not read either."
    for sign, kind in FILE_SIGNS:
        if data.startswith(sign):
            return f"the file seems to be {kind}."
    return "the file does not seem to be a fairseq dictionary."


def _raise_if_doubled(symbols: list[str], overwriting: set[int], *, expected_rows: int | None, name: str) -> None:
    seen: set[str] = set()
    for index, symbol in enumerate(symbols):
        if symbol in seen and index not in overwriting:
            names = len(symbols)
            counts = "" if expected_rows is None else f" So it has {names} names, but the model {expected_rows} rows."
            raise InputError(
                f"{name}, line {index - len(SPECIAL_SYMBOLS) + 1}: {symbol!r} comes a second time. fairseq 0.9.0 and "
                f"before gave it a new row; if this dictionary is that old, end the line with ' {OVERWRITE_FLAG}'."
                f"{counts}"
            )
        seen.add(symbol)
