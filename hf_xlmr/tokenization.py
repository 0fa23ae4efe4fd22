"""Exact fairseq tokenization: SentencePiece cuts the text, the dictionary gives the ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.dictionary import BOS_INDEX, EOS_INDEX, Dictionary
from hf_xlmr.errors import InputError, InputIndexError
from hf_xlmr.sentencepiece_model import ModelType, PieceType, SentencePieceModel

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ExactTokenizer", "text_of_ids", "text_of_symbols"]

TEXTS_AT_ONCE: Final = 1024  # of a batch: their pieces, as strings, are in memory together


class ExactTokenizer:
    """What fairseq's hub interface answers to `encode`, id for id; special strings in a text are plain text."""

    def __init__(self, dictionary: Dictionary, model: bytes | str | os.PathLike[str]) -> None:
        """Join `dictionary` and a SentencePiece `model`, its bytes or its path.

        Raises OSError, InputError where the file is no such model, IntegrityError where it is damaged.
        """
        if isinstance(model, bytes):
            read = SentencePieceModel.parse(model, name="the SentencePiece model")
        else:
            read = SentencePieceModel.parse(Path(model).read_bytes(), name=str(model))
        self.dictionary = dictionary
        self.processor = read.processor()
        self._table = PieceTable.of(read, dictionary)

    def pieces(self, text: str) -> list[str]:
        """The strings that are looked up in the dictionary.

        fairseq.data.encoders.sentencepiece_bpe joins SentencePiece's pieces with spaces and fairseq.tokenizer splits
        them again at white space: a piece like U+0085 vanishes here.
        """
        return " ".join(self.segments(text)).split()

    def segments(self, text: str) -> list[str]:
        """What SentencePiece cuts `text` into, white space kept, before anything splits it. Raises InputError."""
        _raise_if_not_texts([text])
        return self._cut([text])[0]

    def ids(self, text: str) -> list[int]:
        """The ids of `text` alone, without `<s>` and `</s>`."""
        return self.dictionary.indices(self.pieces(text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in `text` each of `pieces` comes from, the white space before it included: first character, and end."""
        segments = self._cut([text])[0]
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

    def _cut(self, texts: list[str]) -> list[list[str]]:
        found: list[list[str]] = self.processor.encode(texts, out_type=str, num_threads=1)
        return found

    def _ids_of_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as `ids` gives them. Raises InputError."""
        _raise_if_not_texts(texts)
        found: list[list[int]] = []
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            found += self._ids_of_some(list(texts[first : first + TEXTS_AT_ONCE]))
        return found

    def _ids_of_some(self, texts: list[str]) -> list[list[int]]:
        """By SentencePiece's own ids, which are cheaper than strings; by strings for the texts that need them."""
        import numpy as np

        encoded = self.processor.encode(texts, out_type="numpy", num_threads=1)
        joined = np.concatenate(encoded)
        ends = [0, *accumulate(map(len, encoded))]
        ids = self._table.ids[joined].tolist()
        found = [ids[start:end] for start, end in pairwise(ends)]
        odd = np.searchsorted(ends, np.flatnonzero(self._table.is_odd[joined]), side="right") - 1
        again = [number for number in np.unique(odd).tolist() if self._table.needs_strings(texts[number])]
        for number, segments in zip(again, self._cut([texts[number] for number in again]), strict=True):
            found[number] = self.dictionary.indices(" ".join(segments).split())
        return found


@dataclass(frozen=True)
class PieceTable:
    """For each of SentencePiece's own ids the dictionary's id of its piece, and whether the piece `is_odd`.

    Two pieces are odd: the unknown one, whose text is looked up in the dictionary, and one that holds white space,
    where the text is split.
    """

    ids: np.ndarray[Any, Any] = field(repr=False)
    is_odd: np.ndarray[Any, Any] = field(repr=False)
    always_needs_strings: bool
    space: re.Pattern[str]

    @classmethod
    def of(cls, model: SentencePieceModel, dictionary: Dictionary) -> PieceTable:
        """The table of a SentencePiece model."""
        import numpy as np

        is_odd = np.array([piece.split() != [piece] for piece in model.pieces])
        is_odd[model.unk_id] = True
        ids = np.array(dictionary.indices(model.pieces), dtype=np.int32)
        ids[model.unk_id] = dictionary.unk_index
        return cls(
            ids=ids,
            is_odd=is_odd,
            always_needs_strings=_may_look_up_unknown_text(model, dictionary) or model.normalization.makes_white_space,
            space=re.compile(r"[^\S ]" if model.normalization.escape_whitespaces else r"\s"),
        )

    def needs_strings(self, text: str) -> bool:
        """Whether a text with an odd piece can have other ids than those of the table."""
        return self.always_needs_strings or self.space.search(text) is not None


def _may_look_up_unknown_text(model: SentencePieceModel, dictionary: Dictionary) -> bool:
    """Whether a text that SentencePiece gives back as unknown can be a symbol of the dictionary.

    Unigram and BPE give back runs of characters that are not pieces by themselves.
    """
    if model.model_type not in (ModelType.UNIGRAM, ModelType.BPE):
        return True
    real = (PieceType.NORMAL, PieceType.USER_DEFINED)
    known = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in real and len(piece) == 1}
    return any(symbol and known.isdisjoint(symbol) for symbol in dictionary.symbols)


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
