"""Tokenizes texts into sequences that fit the model, some thousand texts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import chain, compress
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from hf_xlmr.errors import InputError
from hf_xlmr.hub_interface.languages import Languages
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["SHORTEST", "BadText", "OnLong", "TextTooLong", "Window", "WindowMaker", "rejoined"]

TEXTS_PER_WINDOW: Final = 4096  # sorted by length together
FIRST_TEXTS: Final = 1024  # of the first window
CHARACTERS_AT_ONCE: Final = 1 << 20  # tokenized together
LONG: Final = 1 << 16  # characters from which on only the beginning of a text that is cut is tokenized
LARGE: Final = 1 << 20  # characters from which on the size of the normalized text is measured
SHORTEST: Final = 3  # tokens of a text that is not empty: <s>, a piece, </s>


class OnLong(Enum):
    """What happens to a text of more tokens than the model accepts."""

    truncate = "truncate"
    """Truncate the text; `</s>` stays."""
    split = "split"
    """Compute the text in pieces and pool their tokens together; `cls` is the first piece's."""
    error = "error"
    """Raise TextTooLong."""


class BadText(InputError, ValueError):
    """A text cannot be computed: `index` is its number from 0, or the row that it came with; `reason` says why."""

    def __init__(self, index: Any, reason: str, *, message: str | None = None) -> None:
        """Store `index` and `reason`; `message` replaces the usual message made from these."""
        self.index, self.reason = index, reason
        super().__init__(message or f"text {index}: {reason}")


class TextTooLong(BadText):
    """A text has more tokens than are allowed."""

    def __init__(self, index: object, tokens: int, most: int) -> None:
        """Store the text's index, its number of tokens, and the largest allowed number."""
        self.tokens, self.most = tokens, most
        super().__init__(
            index,
            f"{tokens} tokens, and at most {most} are allowed (on_long='truncate' or on_long='split' accepts it)",
            message=f"text {index} has {tokens} tokens, and at most {most} are allowed: truncate or split it (on_long)",
        )


Span: TypeAlias = tuple[int, int]
"""The first character of a token in its text, and the one after its last."""
NO_SPAN: Final[Span] = (0, 0)
_Portion: TypeAlias = tuple[list[Any], list[str], list[int]]
Text: TypeAlias = "tuple[Any, str] | tuple[Any, str, str | None]"
"""A row or number, which stays with the text's tokens, the text, and its language if it names one."""


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The tokens of some texts."""

    rows: list[Any]
    ids: np.ndarray
    """The ids of all texts, laid end to end, in int32."""
    lengths: np.ndarray
    """The number of each text's tokens."""
    spans: list[list[Span]] | None
    is_cut: np.ndarray
    """Whether each text was truncated."""
    languages: np.ndarray
    """The number of each text's language."""

    @cached_property
    def ends(self) -> np.ndarray:
        """The token after the last of each text."""
        return np.cumsum(self.lengths)

    def part(self, start: int, stop: int) -> _Encoded:
        """The texts from `start` to before `stop`."""
        first, last = (int(self.ends[each - 1]) if each else 0 for each in (start, stop))
        return _Encoded(
            rows=self.rows[start:stop],
            ids=self.ids[first:last],
            lengths=self.lengths[start:stop],
            spans=None if self.spans is None else self.spans[start:stop],
            is_cut=self.is_cut[start:stop],
            languages=self.languages[start:stop],
        )

    def of_tokens(self, kept: np.ndarray) -> _Encoded:
        """The same texts with only those tokens that `kept` marks."""
        if kept.all():
            return self
        counts = np.concatenate(([0], np.cumsum(kept)))
        starts = self.ends - self.lengths
        spans = self.spans and [
            list(compress(each, kept[start:end]))
            for each, start, end in zip(self.spans, starts, self.ends, strict=True)
        ]
        return replace(self, ids=self.ids[kept], lengths=counts[self.ends] - counts[starts], spans=spans)


@dataclass(frozen=True, eq=False)
class Window:
    """Texts as sequences of tokens; a text that was split has several."""

    rows: list[Any]
    """The row or number of each text."""
    ids: np.ndarray
    """The ids of all sequences, laid end to end, in int32."""
    lengths: np.ndarray
    """The number of each sequence's tokens."""
    owners: np.ndarray
    """The text of each sequence, by its number in the window."""
    languages: np.ndarray
    """The number of each sequence's language; 0 in a model without languages."""
    pieces: dict[int, range]
    """The sequences of each text that was split."""
    cut: list[Any]
    """The rows or numbers of the texts that were truncated."""
    spans: list[list[Span]] | None
    """The spans of each text's tokens, (0, 0) for `<s>` and `</s>`; None if not requested."""

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """The number of tokens of all sequences."""
        return len(self.ids)

    @property
    def starts(self) -> np.ndarray:
        """The first token of each sequence."""
        starts: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return starts

    @property
    def firsts(self) -> np.ndarray:
        """The first sequence of each text."""
        return np.flatnonzero(np.diff(self.owners, prepend=-1))

    def starts_within(self, sequence: int) -> bool:
        """Whether a sequence continues the text of the one before, so that its `<s>` is not the text's."""
        return sequence > self.pieces.get(self.owners[sequence], range(sequence, 0)).start

    def ends_within(self, sequence: int) -> bool:
        """Whether the next sequence continues its text, so that its `</s>` is not the text's."""
        return sequence < self.pieces.get(self.owners[sequence], range(sequence + 1)).stop - 1

    def has_pieces(self, sequences: np.ndarray) -> bool:
        """Whether one of these sequences belongs to a text that was split."""
        return bool(self.pieces) and any(owner in self.pieces for owner in self.owners[sequences].tolist())


@dataclass(frozen=True)
class WindowMaker:
    """Makes windows of at most `most_tokens` tokens, or of one text; `<s>` and `</s>` count."""

    tokenizer: ExactTokenizer
    max_length: int
    on_long: OnLong
    most_tokens: int
    with_spans: bool = False
    most_bytes: int | None = None
    """The largest normalized text that is tokenized as a whole, since SentencePiece needs some 50 times its memory."""
    most_kept: int | None = None
    """The most tokens of a text whose vectors are all kept."""
    threads: int = 1
    """The number of threads that tokenize together."""
    languages: Languages | None = None
    """Those of the model; None if it has none."""
    language: str | None = None
    """The language of texts that name none; None for the model's usual one."""

    def windows(self, texts: Iterable[Text]) -> Iterator[Window]:
        """Yield all texts in order; the same texts give the same windows. Raises BadText."""
        held: list[_Encoded] = []
        sizes = _growing()
        room, places = self.most_tokens, next(sizes)
        for encoded in map(self._encoded, self._portions(texts)):
            start = 0
            while start < len(encoded.rows):
                begun = encoded.ends[start] - encoded.lengths[start]
                stop = min(start + places, int(np.searchsorted(encoded.ends, begun + room, side="right")))
                if not held:
                    stop = max(stop, start + 1)
                if stop > start:
                    held.append(encoded.part(start, stop))
                    room, places = room - len(held[-1].ids), places - (stop - start)
                if stop < len(encoded.rows) or not places:
                    yield self._window(held)
                    held, room, places = [], self.most_tokens, next(sizes)
                start = stop
        if held:
            yield self._window(held)

    def _portions(self, texts: Iterable[Text]) -> Iterator[_Portion]:
        """Yield some rows and their texts at a time, few if they are long; later ones are read only after that."""
        sizes = _growing()
        rows: list[Any] = []
        some: list[str] = []
        languages: list[int] = []
        characters, most = 0, next(sizes)
        for row, text, *named in texts:
            length = len(text) if isinstance(text, str) else 0  # tokenizing refuses other types
            characters += length
            rows.append(row)
            some.append(text if length <= LONG else self._needed(text, row))
            languages.append(self._language_number(row, named[0] if named else None))
            if len(some) == most or characters >= CHARACTERS_AT_ONCE:
                yield rows, some, languages
                rows, some, languages, characters, most = [], [], [], 0, next(sizes)
        if some:
            yield rows, some, languages

    def _language_number(self, row: object, name: str | None) -> int:
        """The number of a text's language. Raises BadText."""
        if self.languages is None:
            if name is not None:
                raise BadText(row, f"it names the language {name!r:.40}, and the model has no languages")
            return 0
        if not isinstance(name, (str, NoneType)):
            raise BadText(row, f"the language is {name!r:.40}, not a string")
        try:
            return self.languages.number(self.language if name is None else name)
        except InputError as error:
            raise BadText(row, str(error)) from None

    def _encoded(self, some: _Portion) -> _Encoded:
        """The tokens of some rows' texts without `<pad>`, truncated if they are too many. Raises BadText."""
        rows, texts, languages = some
        ids, lengths = self._tokens(rows, texts)
        spans = [[NO_SPAN, *self.tokenizer.spans(text), NO_SPAN] for text in texts] if self.with_spans else None
        encoded = _Encoded(rows, ids, lengths, spans, np.zeros(len(rows), dtype=bool), np.array(languages))
        return self._cut(encoded.of_tokens(ids != self.tokenizer.dictionary.pad_index))

    def _cut(self, encoded: _Encoded) -> _Encoded:
        """`encoded`, its texts truncated if they have too many tokens. Raises BadText."""
        lengths = encoded.lengths
        is_long = lengths > self.max_length
        if not is_long.any():
            return encoded
        if self.on_long is OnLong.truncate:
            places = np.arange(len(encoded.ids)) - np.repeat(encoded.ends - lengths, lengths)
            kept = (places < self.max_length - 1) | (places == np.repeat(lengths - 1, lengths))
            return replace(encoded.of_tokens(kept), is_cut=is_long)
        most = self.max_length if self.on_long is OnLong.error else self.most_kept
        if most is not None and (lengths > most).any():
            first = int(np.argmax(lengths > most))
            row, tokens = encoded.rows[first], int(lengths[first])
            if self.on_long is OnLong.error:
                raise TextTooLong(row, tokens, most)
            raise BadText(row, f"the text has {tokens:,} tokens, and vectors of at most {most:,} are kept")
        return encoded

    def _needed(self, text: str, row: object) -> str:
        """The part of a long text that must be tokenized: a beginning if it is truncated. Raises BadText."""
        if self.on_long is OnLong.truncate:
            text = self.tokenizer.beginning(text, self.max_length)
        if self.most_bytes is not None and len(text) > LARGE:
            size = self.tokenizer.normalized_bytes(text)
            if size > self.most_bytes:
                raise BadText(
                    row, f"the normalized text has {size:,} bytes, and at most {self.most_bytes:,} are allowed"
                )
        return text

    def _tokens(self, rows: list[Any], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, end to end, and the number of each text's ids. Raises BadText."""
        try:
            return self.tokenizer.flat_ids(texts, threads=self.threads)
        except InputError:
            for row, text in zip(rows, texts, strict=True):
                try:
                    self.tokenizer.encode_batch([text])
                except InputError as error:
                    reason = f"cannot be encoded: {error}"
                    raise BadText(row, reason, message=f"text {row} {reason}") from None
            raise

    def _window(self, held: Sequence[_Encoded]) -> Window:
        columns = zip(*((one.ids, one.lengths, one.languages) for one in held), strict=True)
        ids, lengths, languages = (np.concatenate(each) for each in columns)
        rows = list(chain.from_iterable(each.rows for each in held))
        spans = list(chain.from_iterable(each.spans or () for each in held)) if self.with_spans else None
        cut = [each.rows[place] for each in held for place in np.flatnonzero(each.is_cut)]
        whole = Window(rows, ids, lengths, np.arange(len(rows)), languages, {}, cut, spans)
        return whole if (lengths <= self.max_length).all() else self._split(whole)

    def _split(self, whole: Window) -> Window:
        """A window with its texts in sequences that fit the model."""
        sequences: list[np.ndarray] = []
        pieces: dict[int, range] = {}
        counts = []
        for number, ids in enumerate(np.split(whole.ids, whole.starts[1:])):
            fitting = self._pieces(ids)
            if len(fitting) > 1:
                pieces[number] = range(len(sequences), len(sequences) + len(fitting))
            sequences += fitting
            counts.append(len(fitting))
        return replace(
            whole,
            ids=np.concatenate(sequences),
            lengths=np.array([len(each) for each in sequences]),
            owners=np.repeat(whole.owners, counts),
            languages=np.repeat(whole.languages, counts),
            pieces=pieces,
        )

    def _pieces(self, ids: np.ndarray) -> list[np.ndarray]:
        """The tokens of a text in sequences that fit the model."""
        if len(ids) <= self.max_length:
            return [ids]
        step = self.max_length - 2
        inner = np.split(ids[1:-1], range(step, len(ids) - 2, step))
        return [np.concatenate((ids[:1], each, ids[-1:])) for each in inner]


def _growing() -> Iterator[int]:
    """Yield the most texts of each window: few at first, so that the computation begins soon."""
    size = min(FIRST_TEXTS, TEXTS_PER_WINDOW)
    while True:
        yield size
        size = min(2 * size, TEXTS_PER_WINDOW)


def rejoined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """The vectors of a split text's tokens, (tokens, width), without the `</s>` and `<s>` between its pieces."""
    import torch

    last = len(pieces) - 1
    return torch.cat([each[number > 0 : len(each) - (number < last)] for number, each in enumerate(pieces)])
