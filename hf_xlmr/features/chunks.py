"""Tokenizes texts into sequences that fit the model, some thousand texts at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["SHORTEST", "BadText", "OnLong", "TextTooLong", "Window", "WindowMaker", "rejoined"]

TEXTS_PER_WINDOW: Final = 4096  # sorted by length together
TEXTS_AT_ONCE: Final = 256  # tokenized together
CHARACTERS_AT_ONCE: Final = 1 << 20
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
Text: TypeAlias = tuple[Any, str]
"""A row or number, which stays with the text's tokens, and the text."""


class _Encoded(NamedTuple):
    """The tokens of a text, and their spans in it."""

    ids: Sequence[int]
    spans: list[Span] | None
    is_cut: bool = False


@dataclass(frozen=True)
class Window:
    """Texts as sequences of tokens; a text that was split has several."""

    rows: list[Any]
    """The row or number of each text."""
    sequences: list[Sequence[int]]
    owners: list[int]
    """The text of each sequence, by its number in the window."""
    pieces: dict[int, range]
    """The sequences of each text that was split."""
    truncated: int
    """The number of texts that were truncated."""
    spans: list[list[Span]] | None
    """The spans of each text's tokens, (0, 0) for `<s>` and `</s>`; None if not requested."""

    @property
    def texts(self) -> int:
        """The number of texts."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """The number of tokens of all sequences."""
        return sum(map(len, self.sequences))

    def starts_within(self, sequence: int) -> bool:
        """Whether a sequence continues the text of the one before, so that its `<s>` is not the text's."""
        return sequence > self.pieces.get(self.owners[sequence], range(sequence, 0)).start

    def ends_within(self, sequence: int) -> bool:
        """Whether the next sequence continues its text, so that its `</s>` is not the text's."""
        return sequence < self.pieces.get(self.owners[sequence], range(sequence + 1)).stop - 1

    def has_pieces(self, sequences: Iterable[int]) -> bool:
        """Whether one of these sequences belongs to a text that was split."""
        return bool(self.pieces) and any(self.owners[sequence] in self.pieces for sequence in sequences)


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

    def windows(self, texts: Iterable[Text]) -> Iterator[Window]:
        """Yield all texts in order; the same texts give the same windows. Raises BadText."""
        held: list[tuple[Any, _Encoded]] = []
        tokens = 0
        for row, each in chain.from_iterable(map(self._encoded, _portions(texts))):
            if held and tokens + len(each.ids) > self.most_tokens:
                yield self._window(held)
                held, tokens = [], 0
            held.append((row, each))
            tokens += len(each.ids)
            if len(held) == TEXTS_PER_WINDOW:
                yield self._window(held)
                held, tokens = [], 0
        if held:
            yield self._window(held)

    def _encoded(self, some: list[Text]) -> Iterator[tuple[Any, _Encoded]]:
        """Yield the tokens of some texts without `<pad>`; nothing of them is kept when the next texts are read."""
        needed = [(row, self._needed(text, row)) for row, text in some]
        for (row, text), ids in zip(needed, self._tokens(needed), strict=True):
            spans = [NO_SPAN, *self.tokenizer.spans(text), NO_SPAN] if self.with_spans else None
            yield row, self._cut(self._without_padding(ids, spans), row)

    def _cut(self, encoded: _Encoded, row: object) -> _Encoded:
        """`encoded`, truncated if it has too many tokens. Raises BadText."""
        ids, spans = encoded.ids, encoded.spans
        if len(ids) <= self.max_length:
            return encoded
        if self.on_long is OnLong.error:
            raise TextTooLong(row, len(ids), self.max_length)
        if self.on_long is OnLong.truncate:
            end = self.max_length - 1
            return _Encoded([*ids[:end], ids[-1]], spans and [*spans[:end], NO_SPAN], is_cut=True)
        if self.most_kept is not None and len(ids) > self.most_kept:
            raise BadText(row, f"the text has {len(ids):,} tokens, and vectors of at most {self.most_kept:,} are kept")
        return _Encoded(array("i", ids), spans)

    def _needed(self, text: str, row: object) -> str:
        """The part of a text that must be tokenized: a beginning if a long text is truncated. Raises BadText."""
        if not isinstance(text, str) or len(text) <= LONG:
            return text
        if self.on_long is OnLong.truncate:
            text = self.tokenizer.beginning(text, self.max_length)
        if self.most_bytes is not None and len(text) > LARGE:
            size = self.tokenizer.normalized_bytes(text)
            if size > self.most_bytes:
                raise BadText(
                    row, f"the normalized text has {size:,} bytes, and at most {self.most_bytes:,} are allowed"
                )
        return text

    def _without_padding(self, ids: list[int], spans: list[Span] | None) -> _Encoded:
        pad = self.tokenizer.dictionary.pad_index
        if pad not in ids:
            return _Encoded(ids, spans)
        kept = [place for place, token in enumerate(ids) if token != pad]
        return _Encoded([ids[place] for place in kept], None if spans is None else [spans[place] for place in kept])

    def _tokens(self, texts: list[Text]) -> list[list[int]]:
        """The ids of each text. Raises BadText."""
        try:
            return self.tokenizer.encode_batch([text for _row, text in texts])
        except InputError:
            for row, text in texts:
                try:
                    self.tokenizer.encode_batch([text])
                except InputError as error:
                    reason = f"cannot be encoded: {error}"
                    raise BadText(row, reason, message=f"text {row} {reason}") from None
            raise

    def _window(self, held: Sequence[tuple[object, _Encoded]]) -> Window:
        sequences: list[Sequence[int]] = []
        pieces: dict[int, range] = {}
        owners: list[int] = []
        spans: list[list[Span]] = []
        truncated = 0
        for number, (_row, each) in enumerate(held):
            fitting = self._pieces(each.ids)
            truncated += each.is_cut
            if each.spans is not None:
                spans.append(each.spans)
            if len(fitting) > 1:
                pieces[number] = range(len(sequences), len(sequences) + len(fitting))
            sequences += fitting
            owners += [number] * len(fitting)
        return Window(
            [row for row, _each in held], sequences, owners, pieces, truncated, spans if self.with_spans else None
        )

    def _pieces(self, ids: Sequence[int]) -> list[Sequence[int]]:
        """The tokens of a text in sequences that fit the model."""
        if len(ids) <= self.max_length:
            return [ids]
        last, step = len(ids) - 1, self.max_length - 2
        starts = range(1, last, step)
        return [array("i", [ids[0], *ids[start : min(start + step, last)], ids[-1]]) for start in starts]


def _portions(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Yield some texts at a time, few if they are long; later texts are read only after that."""
    some: list[Text] = []
    characters = 0
    for row, text in texts:
        some.append((row, text))
        characters += len(text) if isinstance(text, str) else 0  # tokenizing refuses other types
        if len(some) == TEXTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def rejoined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """The vectors of a split text's tokens, (tokens, width), without the `</s>` and `<s>` between its pieces."""
    import torch

    last = len(pieces) - 1
    return torch.cat([each[number > 0 : len(each) - (number < last)] for number, each in enumerate(pieces)])
