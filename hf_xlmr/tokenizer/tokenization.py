"""Exact fairseq tokenization: SentencePiece splits the text into pieces, the dictionary gives the ids."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, InputIndexError
from hf_xlmr.tokenizer.added_tokens import AddedTokens, CutText
from hf_xlmr.tokenizer.dictionary import BOS_INDEX, EOS_INDEX, UNK, UNK_INDEX, Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import ALL_BYTES, PieceType, SentencePieceModel, import_sentencepiece

if TYPE_CHECKING:
    import numpy as np

TEXTS_AT_ONCE: Final = 1024  # texts of a batch whose pieces are in memory together
TEXTS_PER_THREAD: Final = 64  # fewer take less time than starting a thread does
LAST_SPACE: Final = 0x3000  # the highest code of white space in Unicode
CHARACTERS_PER_TOKEN: Final = 16  # the first guess for the beginning of a long text
LONGEST_RULE: Final = 64  # characters that a rule of normalization can replace together
SLICE: Final = 1 << 16  # characters that are normalized together to count the resulting bytes
SPACE: Final = "\u2581"  # SentencePiece's character for white space


class ExactTokenizer:
    """A tokenizer with the ids of fairseq's hub interface, id for id; special strings in a text are plain text."""

    def __init__(
        self, dictionary: Dictionary, model: bytes | str | os.PathLike[str], *, added: AddedTokens | None = None
    ) -> None:
        """Join `dictionary` and a SentencePiece `model`, its bytes or its path.

        Raises OSError, InputError if the file is not such a model, IntegrityError if it is damaged.
        """
        if isinstance(model, bytes):
            read = SentencePieceModel.parse(model, name="the SentencePiece model")
        else:
            read = SentencePieceModel.parse(Path(model).read_bytes(), name=str(model))
        self.dictionary, self.added = dictionary, added
        self._as_read, self._has_bytes = read.as_read, read.byte_fallback
        crosses_words = any(SPACE in piece[1:] for piece in read.pieces)
        self._keeps_words = not (crosses_words or read.treat_whitespace_as_suffix)
        ids = PieceIds.of(read, dictionary)
        self._numbered = read.processor(ids.of_pieces)
        self._unsure = UnsureIds.of(read, dictionary, ids, self._numbered)

    @cached_property
    def processor(self) -> Any:
        """A SentencePieceProcessor with the ids of its own model."""
        return import_sentencepiece().SentencePieceProcessor(model_proto=self._as_read)

    def normalized(self, text: str) -> str:
        """`text` after SentencePiece's normalization."""
        return str(self._numbered.normalize(text))

    def pieces(self, text: str) -> list[str]:
        """The pieces of `text` that are looked up in the dictionary. Raises InputError.

        fairseq.data.encoders.sentencepiece_bpe joins SentencePiece's pieces with spaces and fairseq.tokenizer splits
        them again at white space: a piece like U+0085 vanishes here.
        """
        cut = self._cut_with_added(text)
        return " ".join(self.segments(text)).split() if cut is None else [self._symbol(each) for each in cut.ids]

    def segments(self, text: str) -> list[str]:
        """SentencePiece's pieces of `text` with white space, before fairseq splits them there. Raises InputError."""
        _raise_if_not_texts([text])
        found: list[str] = self._numbered.encode(text, out_type=str)  # a list of one would start a thread
        return found

    def ids(self, text: str) -> list[int]:
        """The ids of `text` alone, without `<s>` and `</s>`."""
        cut = self._cut_with_added(text)
        return self.dictionary.indices(" ".join(self.segments(text)).split()) if cut is None else self._known(cut.ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The first character and the end in `text` of each of its `pieces`, with the white space before it."""
        if (cut := self._cut_with_added(text)) is not None:
            return cut.spans
        segments = self.segments(text)
        _normalized, origins = self._numbered.normalize(text, with_offsets=True)
        spans: list[tuple[int, int]] = []
        start, span = 0, (0, 0)
        for segment in segments:
            if width := self._width(segment):
                span = (origins[start], origins[start + width])
            spans += [span] * len(segment.split())
            start += width
        return spans

    def _width(self, segment: str) -> int:
        """The number of characters of a segment; of a character's byte pieces the first one counts as 1, others 0."""
        if not self._has_bytes or segment not in ALL_BYTES:
            return len(segment)
        return 0 if 0x80 <= int(segment[1:-1], 16) < 0xC0 else 1

    def beginning(self, text: str, tokens: int) -> str:
        """A beginning of a long `text` with the same first `tokens` ids, without `<pad>`; all of it if needed.

        No piece crosses the white space after it, so that SentencePiece splits it as it does in the whole text.
        """
        length = tokens * CHARACTERS_PER_TOKEN
        while self.added is None and self._keeps_words and length < len(text):
            end = max(text.rfind(space, 1, length) for space in " \n")
            if end > 0 and self._ends_a_word(text, end):
                pad, found = self.dictionary.pad_index, self.encode_batch([text[:end]])[0][1:-1]
                if len(found) - found.count(pad) >= tokens:
                    return text[:end]
            length *= 4
        return text

    def _ends_a_word(self, text: str, end: int) -> bool:
        """Whether the normalized text begins with the normalized `text[:end]`, and white space follows there."""
        begun, more = self._numbered.normalize([text[:end], text[: end + LONGEST_RULE]])
        return bool(more.startswith(f"{begun}{SPACE}"))

    def normalized_bytes(self, text: str) -> int:
        """The approximate size in bytes of the normalized `text`, which can be eleven times its own."""
        slices = [text[start : start + SLICE] for start in range(0, len(text), SLICE)]
        return sum(len(self._numbered.normalize(each).encode()) for each in slices)

    def encode(self, sentence: str, *more: str, no_separator: bool = False) -> list[int]:
        """The ids of `<s> sentence </s>`, and for each further sentence of `</s> sentence </s>`.

        `no_separator` leaves the first `</s>` of further sentences out. Equals fairseq's
        fairseq.models.roberta.hub_interface.RobertaHubInterface.encode.
        """
        return self.framed(map(self.ids, (sentence, *more)), no_separator=no_separator)

    def encode_batch(
        self, sentences: Sequence[str], *more: Sequence[str], no_separator: bool = False
    ) -> list[list[int]]:
        """The ids that `encode` gives for the first sentence of each sequence, for the second of each, and so on.

        It is many times faster than a loop over `encode`, on one thread. Raises InputError.
        """
        if not more:
            return self._rows(sentences, start=[self.dictionary.bos_index], stop=[self.dictionary.eos_index])
        columns = [self._rows(column) for column in (sentences, *more)]
        for column in columns:
            if len(column) != len(sentences):
                raise InputError(f"Give as many further sentences as first: {len(column)} are not {len(sentences)}.")
        return [self.framed(row, no_separator=no_separator) for row in zip(*columns, strict=True)]

    def flat_ids(self, texts: list[str], *, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `encode_batch` end to end, in int32, and the number of each text's ids, all at once.

        Up to `threads` threads work together. Raises InputError.
        """
        import numpy as np

        rows = self._some_rows(texts, 0, threads=threads)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + 2
        framed = zip(repeat((self.dictionary.bos_index,)), rows, repeat((self.dictionary.eos_index,)))
        ids = chain.from_iterable(chain.from_iterable(framed))
        return np.fromiter(ids, np.int32, int(lengths.sum())), lengths

    def digest(self) -> str:
        """A SHA-256 over all that ids depend on, SentencePiece's release too."""
        total = sha256(json.dumps([import_sentencepiece().__version__, self.dictionary.symbols]).encode())
        total.update(sha256(self._as_read).digest())
        total.update(b"" if self.added is None else self.added.as_json().encode())
        return total.hexdigest()

    def decode(self, ids: Sequence[int]) -> str | list[str]:
        """The text of `ids`, by `text_of_ids`. Raises InputIndexError."""
        return text_of_ids(self.dictionary, ids, {} if self.added is None else self.added.spelled)

    def framed(self, parts: Iterable[Sequence[int]], *, no_separator: bool = False) -> list[int]:
        """The ids of all sentences, with `<s>` and `</s>` as in `encode`."""
        bos, eos = self.dictionary.bos_index, self.dictionary.eos_index
        framed, seam = [bos], [eos] if no_separator else [eos, eos]
        for number, part in enumerate(parts):
            if number:
                framed += seam
            framed += part
        framed.append(eos)
        return framed

    def _cut_with_added(self, text: str) -> CutText | None:
        """The tokenization of a text with an added token, None for any other text. Raises InputError."""
        if self.added is None:
            return None
        _raise_if_not_texts([text])
        return next((cut for _number, cut in self.added.cut([text], self._numbered.normalize)), None)

    def _known(self, ids: Iterable[int]) -> list[int]:
        """`ids` with `<unk>` in place of those that are neither fairseq's nor an added token's."""
        names, end = self.added.names if self.added is not None else {}, len(self.dictionary)
        return [each if each < end or each in names else self.dictionary.unk_index for each in ids]

    def _symbol(self, index: int) -> str:
        names = self.added.names if self.added is not None else {}
        if index in names:
            return names[index]
        return self.dictionary.symbols[index] if index < len(self.dictionary) else UNK

    def _rows(self, texts: Sequence[str], *, start: Sequence[int] = (), stop: Sequence[int] = ()) -> list[list[int]]:
        """The ids of each text, as `ids` gives them, with `start` before and `stop` after. Raises InputError."""
        if isinstance(texts, (str, bytes)):
            raise InputError("Give a list of texts, or use encode for one.")
        rows: list[list[int]] = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = self._some_rows(list(texts[first : first + TEXTS_AT_ONCE]), first)
            rows += [[*start, *row, *stop] for row in some] if start or stop else some
        return rows

    def _some_rows(self, texts: list[str], first: int, *, threads: int = 1) -> list[list[int]]:
        """The ids of some texts, by SentencePiece's numbers, which are fast; by strings if a text needs them."""
        used = max(1, min(threads, len(texts) // TEXTS_PER_THREAD))
        try:
            "".join(texts)  # raises TypeError for bytes, which SentencePiece would accept
            rows: list[list[int]] = self._numbered.encode(texts, out_type=int, num_threads=used)
        except TypeError:
            _raise_if_not_texts(texts, first)
            raise
        for number in self._unsure.settle(rows, texts):
            rows[number] = self.dictionary.indices(" ".join(self.segments(texts[number])).split())
        for number, cut in () if self.added is None else self.added.cut(texts, self._numbered.normalize):
            rows[number] = self._known(cut.ids)
        return rows


@dataclass(frozen=True)
class PieceIds:
    """An id for each of SentencePiece's pieces: the dictionary's own, or one after its `end`.

    Ids from `end` on are for pieces that the dictionary lacks, from `vanishing` on for pieces of white space only,
    since fairseq splits SentencePiece's output there, and from `splitting` on for pieces with white space inside.
    """

    of_pieces: list[int]
    end: int
    vanishing: int
    splitting: int

    @classmethod
    def of(cls, model: SentencePieceModel, dictionary: Dictionary) -> PieceIds:
        """The ids of a model's pieces."""
        ids, end, unk = dictionary.indices(model.pieces), len(dictionary), model.unk_id
        spaces = [char for char in set("".join(model.pieces)) if char.isspace()]
        spaced = {piece for space in spaces for piece in model.pieces if space in piece}
        odd = {number: piece for number, piece in enumerate(model.pieces) if piece in spaced and number != unk}
        lacking = [number for number, index in enumerate(ids) if index == UNK_INDEX and number not in {unk, *odd}]
        vanish = [number for number, piece in odd.items() if not piece.split()]
        split = [number for number, piece in odd.items() if piece.split()]
        for index, number in enumerate((*lacking, *vanish, *split), start=end):
            ids[number] = index
        ids[unk] = UNK_INDEX
        return cls(ids, end, end + len(lacking), end + len(lacking) + len(vanish))

    def in_dictionary(self, row: list[int]) -> list[int]:
        """`row` with `<unk>` for pieces that the dictionary lacks, and without pieces of white space only."""
        return [each if each < self.end else UNK_INDEX for each in row if not self.vanishing <= each < self.splitting]


@dataclass(frozen=True)
class UnsureIds:
    """Finds the texts with ids of pieces that the dictionary lacks."""

    ids: PieceIds
    characters: str | None
    """Only a text with one of these characters can have an unsure id; None if any text can."""
    unknown_spaces: str | None
    """Only in a text with one of these can unknown text be more than one `<unk>`; None if it can in any text."""

    @classmethod
    def of(cls, model: SentencePieceModel, dictionary: Dictionary, ids: PieceIds, processor: object) -> UnsureIds:
        """Derive the characters from the model's unknown text and its normalization of white space."""
        known, spaces = _known_characters(model), _white_space_left(processor, model)
        looked_up = (
            not model.joins_only_unknown_characters
            or model.normalization.makes_white_space
            or not model.normalization.escape_whitespaces  # normalization then makes spaces that no text need hold
            or any(symbol and known.isdisjoint(symbol) for symbol in dictionary.symbols)
        )
        lacking = {each for each, index in enumerate(ids.of_pieces) if ids.end <= index < ids.vanishing}
        lacks_some = any(model.types[each] != PieceType.CONTROL for each in lacking)
        unknown = "".join(space for space in spaces if space not in known)
        return cls(ids, None if looked_up or lacks_some else spaces, None if looked_up else unknown)

    def settle(self, rows: list[list[int]], texts: Sequence[str]) -> list[int]:
        """Put the dictionary's ids into the `rows` of `texts`, and return the numbers of texts that need strings."""
        again = []
        for number in _that_hold(self.characters, texts):
            row, text = rows[number], texts[number]
            highest = max(row, default=0)
            if highest >= self.ids.splitting or (UNK_INDEX in row and _that_hold(self.unknown_spaces, [text])):
                again.append(number)
            elif highest >= self.ids.end:
                rows[number] = self.ids.in_dictionary(row)
        return again


def _that_hold(characters: str | None, texts: Sequence[str]) -> Sequence[int]:
    """The numbers of the texts with one of the `characters`; all numbers for None."""
    if characters is None:
        return range(len(texts))
    joined = "".join(texts)
    held = [each for each in characters if each in joined]
    return [number for number, text in enumerate(texts) if any(each in text for each in held)] if held else []


def _known_characters(model: SentencePieceModel) -> set[str]:
    """The characters that SentencePiece never returns as unknown."""
    real = (PieceType.NORMAL, PieceType.USER_DEFINED)
    return {piece for piece, kind in zip(model.pieces, model.types, strict=True) if len(piece) == 1 and kind in real}


def _white_space_left(processor: Any, model: SentencePieceModel) -> str:
    """The white space characters that normalization does not change, or not inside a user-defined piece."""
    spaces = [chr(code) for code in range(LAST_SPACE + 1) if chr(code).isspace()]
    left = {space for space, text in zip(spaces, processor.normalize(spaces), strict=True) if space in text}
    kept = {each for each in "".join(model.pieces_of(PieceType.USER_DEFINED)) if each.isspace()} - {" "}
    return "".join(sorted(left | kept))


def text_of_ids(
    dictionary: Dictionary, ids: Sequence[int], spelled: Mapping[int, str] = MappingProxyType({})
) -> str | list[str]:
    """The text of `ids` from `encode`: a list of texts if two `</s>` in a row separate them.

    It equals fairseq.models.roberta.hub_interface.RobertaHubInterface.decode: every id is accepted, one that the
    dictionary lacks is `<unk>`. Added tokens give their texts in `spelled`. Raises InputIndexError if there are no ids,
    and for an id far below 0.
    """
    if not len(ids):
        raise InputIndexError("There is nothing to decode: give at least one id.")
    parts = _parts([int(each) for each in ids])
    texts = [text_of_symbols(" ".join(_symbols(dictionary, part, spelled))) for part in parts]
    return texts[0] if len(texts) == 1 else texts


def _symbols(dictionary: Dictionary, ids: Sequence[int], spelled: Mapping[int, str]) -> Iterator[str]:
    """The symbols of `ids`, joined by spaces; a space inside an added token stays a space of the text."""
    if spelled.keys().isdisjoint(ids):
        yield dictionary.string(ids)
        return
    for index in ids:
        yield spelled[index].replace(" ", "\u2581") if index in spelled else dictionary.string([index])


def text_of_symbols(symbols: str) -> str:
    """Join symbols to a text, as fairseq.data.encoders.sentencepiece_bpe.SentencepieceBPE.decode does."""
    return symbols.replace(" ", "").replace("\u2581", " ").strip()


def _parts(ids: list[int]) -> Iterator[list[int]]:
    """`ids` without the first 0 (`<s>`), split between each two 2 (`</s>`) in a row, whatever names dict.txt gives."""
    first = int(ids[0] == BOS_INDEX)
    for index in range(first + 1, len(ids)):
        if ids[index - 1] == ids[index] == EOS_INDEX:
            yield ids[first:index]
            first = index
    yield ids[first:]


def _raise_if_not_texts(texts: Sequence[object], first: int = 0) -> None:
    """Raise InputError if one of `texts` is not a valid text; `first` is the index of the first one."""
    for index, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise InputError(f"Text {index} is not a str but {type(text).__name__}: {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"Text {index} holds half of a surrogate pair, {text[error.start]!r} at character {error.start}: "
                "it was decoded wrongly. Fix the code that reads it."
            ) from None
