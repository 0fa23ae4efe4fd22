"""Exact fairseq tokenization: SentencePiece cuts the text, the dictionary gives the ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.dictionary import BOS_INDEX, EOS_INDEX, Dictionary
from hf_xlmr.errors import InputError, InputIndexError, IntegrityError
from hf_xlmr.sentencepiece_model import SentencePieceModel
from hf_xlmr.sieve import Sieve
from hf_xlmr.ties import TieBreaker

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ExactTokenizer", "text_of_ids", "text_of_symbols"]

TEXTS_AT_ONCE: Final = 1024  # of a batch: their pieces, as strings, are in memory together
LAST_OF_FAIRSEQS: Final = (0, 2, 1)  # the SentencePiece that decides between cuts of equal score as fairseq's did


class ExactTokenizer:
    """What fairseq's hub interface answers to `encode`, id for id; special strings in a text are plain text."""

    def __init__(self, dictionary: Dictionary, model: bytes | str | os.PathLike[str]) -> None:
        """Join `dictionary` and a SentencePiece `model`, its bytes or its path. Raises OSError, IntegrityError."""
        self.dictionary = dictionary
        self.processor = _processor(model if isinstance(model, bytes) else Path(model).read_bytes())

    def pieces(self, text: str) -> list[str]:
        """The strings that are looked up in the dictionary.

        fairseq.data.encoders.sentencepiece_bpe joins SentencePiece's pieces with spaces and fairseq.tokenizer splits
        them again at white space: a piece like U+0085 vanishes here.
        """
        return " ".join(self.segments(text)).split()

    def segments(self, text: str) -> list[str]:
        """What SentencePiece cuts `text` into, white space kept, before anything splits it. Raises InputError."""
        _raise_if_not_texts([text])
        return self._mended(self.processor.encode(text, out_type=str))

    def ids(self, text: str) -> list[int]:
        """The ids of `text` alone, without `<s>` and `</s>`."""
        return self.dictionary.indices(self.pieces(text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in `text` each of `pieces` comes from, the white space before it included: first character, and end."""
        segments = self._mended(self.processor.encode(text, out_type=str))
        _normalized, origins = self.processor.normalize(text, with_offsets=True)
        spans: list[tuple[int, int]] = []
        start = 0
        for segment in segments:
            span = (origins[start], origins[start + len(segment)])
            spans += [span] * len(segment.split())
            start += len(segment)
        return spans

    def encode(self, sentence: str, *more: str, no_separator: bool = False) -> list[int]:
        """`<s> sentence </s>`, and for each further sentence `</s> sentence </s>` (without the first `</s>` on demand).

        As fairseq.models.roberta.hub_interface.RobertaHubInterface.encode.
        """
        return self.framed(map(self.ids, (sentence, *more)), no_separator=no_separator)

    def encode_batch(
        self, sentences: Sequence[str], *more: Sequence[str], no_separator: bool = False
    ) -> list[list[int]]:
        """What `encode` gives for each row: for the first of each sequence, for the second of each, and so on.

        Many times faster than a loop over `encode`, on one thread. Raises InputError.
        """
        columns = [self._ids_of_all(column) for column in (sentences, *more)]
        for column in columns:
            if len(column) != len(sentences):
                raise InputError(
                    f"Give as many further sentences as first ones: {len(column)} are not {len(sentences)}."
                )
        if not more:
            bos, eos = self.dictionary.bos_index, self.dictionary.eos_index
            return [[bos, *ids, eos] for ids in columns[0]]
        return [self.framed(row, no_separator=no_separator) for row in zip(*columns, strict=True)]

    def decode(self, ids: Sequence[int]) -> str | list[str]:
        """The text of `ids`, as `text_of_ids`. Raises InputIndexError."""
        return text_of_ids(self.dictionary, ids)

    @cached_property
    def _model(self) -> SentencePieceModel:
        return SentencePieceModel.parse(self.processor.serialized_model_proto(), name="the SentencePiece model")

    @cached_property
    def _ties(self) -> TieBreaker:
        return TieBreaker(self._model)

    @cached_property
    def _sieve(self) -> Sieve:
        return Sieve.of(self._model, self._ties)

    @cached_property
    def _mends(self) -> bool:
        """Whether the installed SentencePiece can cut otherwise than fairseq's."""
        return _sentencepiece_version() > LAST_OF_FAIRSEQS and self._ties.applies

    def _mended(self, segments: list[str]) -> list[str]:
        return self._ties.mended(segments) if self._mends else segments

    def framed(self, parts: Iterable[Sequence[int]], *, no_separator: bool = False) -> list[int]:
        """The ids of each sentence between `<s>` and `</s>`, as `encode` puts them."""
        bos, eos = self.dictionary.bos_index, self.dictionary.eos_index
        framed, seam = [bos], [eos] if no_separator else [eos, eos]
        for number, part in enumerate(parts):
            if number:
                framed += seam
            framed += part
        framed.append(eos)
        return framed

    @cached_property
    def _table(self) -> PieceTable:
        return PieceTable.of(self.processor, self.dictionary)

    def _ids_of_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as `ids` gives them. Raises InputError."""
        _raise_if_not_texts(texts)
        found: list[list[int]] = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            found += self._ids_of_some(list(texts[first : first + TEXTS_AT_ONCE]))
        return found

    def _ids_of_some(self, texts: list[str]) -> list[list[int]]:
        """By SentencePiece's own ids, which take no strings; anew for texts where these do not tell the pieces."""
        encoded: list[list[int]] = self.processor.encode(texts, out_type=int, num_threads=1)
        joined = _joined(encoded)
        found = self._table.translated(encoded, joined)
        ties, table = self._ties, self._table
        doubtful = set(self._sieve.doubtful_texts(encoded, joined) if self._mends else ())
        again = set(doubtful)
        odd = table.odd_ones(encoded, joined)
        for index, text in zip(odd, self.processor.normalize([texts[index] for index in odd]), strict=True):
            if self._mends and ties.too_long(len(text)):
                doubtful.add(index)
            if index in doubtful or not (ties.applies and table.unknown_is_unknown) or text.split() != [text]:
                again.add(index)
        segmented = self.processor.encode([texts[index] for index in again], out_type=str, num_threads=1)
        for index, segments in zip(again, segmented, strict=True):
            cut = ties.mended(segments) if index in doubtful else segments
            found[index] = self.dictionary.indices(" ".join(cut).split())
        return found


@dataclass(frozen=True)
class PieceTable:
    """For each of SentencePiece's own ids its piece, fairseq's id, and whether it `is_odd`.

    Odd are the unknown piece, whose text fairseq looks up, and pieces with white space, where fairseq cuts.
    """

    pieces: tuple[str, ...] = field(repr=False)
    ids: np.ndarray[Any, Any] = field(repr=False)
    is_odd: np.ndarray[Any, Any] = field(repr=False)
    unknown_is_unknown: bool  # whether what SentencePiece does not know is never in the dictionary

    @classmethod
    def of(cls, processor: Any, dictionary: Dictionary) -> PieceTable:
        """The table of a SentencePieceProcessor."""
        import numpy as np

        pieces = tuple(processor.id_to_piece(list(range(len(processor)))))
        is_odd = np.array([piece.split() != [piece] for piece in pieces])
        is_odd[processor.unk_id()] = True
        ids = np.array(dictionary.indices(pieces), dtype=np.int32)
        ids[processor.unk_id()] = dictionary.unk_index
        others = set(dictionary.symbols).difference(pieces)
        return cls(pieces, ids, is_odd, not any(_is_unknown(processor, other) for other in others if other))

    def odd_ones(self, encoded: Sequence[Sequence[int]], joined: np.ndarray[Any, Any]) -> list[int]:
        """Which of the texts hold an odd piece; `joined` holds all of them in one array."""
        import numpy as np

        places = np.flatnonzero(self.is_odd[joined])
        ends = np.cumsum([len(pieces) for pieces in encoded])
        odd: list[int] = np.unique(np.searchsorted(ends, places, side="right")).tolist()
        return odd

    def translated(self, encoded: Sequence[Sequence[int]], joined: np.ndarray[Any, Any]) -> list[list[int]]:
        """SentencePiece's ids as fairseq's; `joined` holds all of them in one array."""
        ids: list[int] = self.ids[joined].tolist()
        ends = [0, *accumulate(map(len, encoded))]
        return [ids[start:end] for start, end in pairwise(ends)]


def _is_unknown(processor: Any, text: str) -> bool:
    """Whether no character of `text` is a piece: SentencePiece may give it back as one unknown piece."""
    return all(processor.piece_to_id(character) == processor.unk_id() for character in text)


def _joined(encoded: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.fromiter(chain.from_iterable(encoded), dtype=np.int32)


def text_of_ids(dictionary: Dictionary, ids: Sequence[int]) -> str | list[str]:
    """The text of `ids` as encode gives them: a list of texts where two `</s>` in a row part them.

    As fairseq.models.roberta.hub_interface.RobertaHubInterface.decode: no id is refused, one that the dictionary
    lacks is `<unk>`. Raises InputIndexError for no ids at all, and for one that is far below 0.
    """
    if not len(ids):
        raise InputIndexError("There is nothing to decode: give at least one id.")
    texts = [text_of_symbols(dictionary.string(part)) for part in _parts([int(each) for each in ids])]
    return texts[0] if len(texts) == 1 else texts


def text_of_symbols(symbols: str) -> str:
    """Symbols joined by spaces as a text, as fairseq.data.encoders.sentencepiece_bpe.SentencepieceBPE.decode."""
    return symbols.replace(" ", "").replace("\u2581", " ").strip()


def _parts(ids: list[int]) -> Iterator[list[int]]:
    """`ids` without the first `<s>`, cut between each two `</s>` in a row; ids 0 and 2, whatever dict.txt names so."""
    first = int(ids[0] == BOS_INDEX)
    for index in range(first + 1, len(ids)):
        if ids[index - 1] == ids[index] == EOS_INDEX:
            yield ids[first:index]
            first = index
    yield ids[first:]


def _raise_if_not_texts(texts: Sequence[str]) -> None:
    """Raise InputError for what is no sequence of texts, with the index of the first that is none."""
    if isinstance(texts, (str, bytes)):
        raise InputError("Give a list of texts, or use encode for one.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"Text {index} is not a str but {type(text).__name__}: {text!r:.60}")
        if not text.isascii():
            _raise_if_half_a_pair(text, index)


def _raise_if_half_a_pair(text: str, index: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"Text {index} holds half of a surrogate pair, {text[error.start]!r} at character {error.start}: "
            "it was not decoded right. Mend it where it is read."
        ) from None


def _sentencepiece_version() -> tuple[int, ...]:
    import sentencepiece

    return _release(sentencepiece.__version__)


def _release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, whatever comes after each: (0, 2, 2) of 0.2.2rc1."""
    parts = (re.match(r"\d+", part) for part in version.split(".")[:3])
    return tuple(int(part[0]) for part in parts if part)


def _processor(model: bytes) -> Any:
    """A SentencePiece processor. Raises IntegrityError."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise IntegrityError(f"SentencePiece does not accept the model: {error}") from None
