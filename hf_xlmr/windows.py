"""Texts as sequences of tokens that the model takes, some thousand texts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from hf_xlmr.errors import InputError
from hf_xlmr.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["SHORTEST", "OnLong", "TextTooLong", "Window", "WindowMaker", "rejoined"]

TEXTS_PER_WINDOW: Final = 4096  # are sorted by length together
TEXTS_AT_ONCE: Final = 256  # are tokenized together
SHORTEST: Final = 3  # tokens of a text that says something: <s>, a piece, </s>


class OnLong(Enum):
    """What happens to a text of more tokens than the model takes."""

    truncate = "truncate"
    """It is cut off; `</s>` stays."""
    split = "split"
    """It is computed in pieces, whose tokens are pooled together; `cls` is that of the first."""
    error = "error"
    """TextTooLong is raised."""


class TextTooLong(InputError, ValueError):
    """A text that does not fit; `index` counts the texts from 0."""

    def __init__(self, index: int, tokens: int, most: int) -> None:
        """Carry which text it is, how many tokens it has, and how many are allowed."""
        self.index, self.tokens, self.most = index, tokens, most
        super().__init__(f"text {index} has {tokens} tokens, and {most} are the most; let it be cut or split (on_long)")


Span: TypeAlias = tuple[int, int]
"""The first character of a token in its text, and the end."""
NO_SPAN: Final[Span] = (0, 0)


class _Encoded(NamedTuple):
    """The tokens of a text, and where they come from."""

    ids: list[int]
    spans: list[Span] | None


@dataclass(frozen=True)
class Window:
    """Texts as sequences of tokens, of which a text that was split has several."""

    texts: int
    sequences: list[list[int]]
    owners: list[int]
    """The text of each sequence, by its number in the window."""
    pieces: dict[int, range]
    """The sequences of each text that was split."""
    truncated: int
    """Texts that were cut off."""
    spans: list[list[Span]] | None
    """Where in its text each token comes from, for each text, where asked for; (0, 0) for `<s>` and `</s>`."""

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return sum(map(len, self.sequences))

    def has_pieces(self, sequences: Iterable[int]) -> bool:
        """Whether one of these sequences belongs to a text that was split."""
        return bool(self.pieces) and any(self.owners[sequence] in self.pieces for sequence in sequences)


@dataclass(frozen=True)
class WindowMaker:
    """From any number of texts to windows of at most `most_tokens` tokens, or one text; `<s>` and `</s>` count."""

    tokenizer: ExactTokenizer
    max_length: int
    on_long: OnLong
    most_tokens: int
    with_spans: bool = False

    def windows(self, texts: Iterable[str], *, texts_per_block: int | None = None) -> Iterator[Window]:
        """All texts in order; the same texts give the same windows. Raises InputError, TextTooLong.

        No window has texts of two blocks of `texts_per_block`.
        """
        held: list[_Encoded] = []
        first = tokens = 0
        for each in self._encoded(texts, texts_per_block):
            if held and tokens + len(each.ids) > self.most_tokens:
                yield self._window(held, first)
                first, held, tokens = first + len(held), [], 0
            held.append(each)
            tokens += len(each.ids)
            ends_block = texts_per_block is not None and (first + len(held)) % texts_per_block == 0
            if len(held) == TEXTS_PER_WINDOW or ends_block:
                yield self._window(held, first)
                first, held, tokens = first + len(held), [], 0
        if held:
            yield self._window(held, first)

    def _encoded(self, texts: Iterable[str], texts_per_block: int | None) -> Iterator[_Encoded]:
        """Each text and its tokens; `<pad>`, which no token attends to, is left out.

        A block is given out before the next one is read, whose texts may be in error.
        """
        source, first = iter(texts), 0
        left = texts_per_block or TEXTS_AT_ONCE
        while some := list(islice(source, min(TEXTS_AT_ONCE, left))):
            for text, ids in zip(some, self._tokens(some, first), strict=True):
                spans = [NO_SPAN, *self.tokenizer.spans(text), NO_SPAN] if self.with_spans else None
                yield self._without_padding(ids, spans)
            first += len(some)
            left = texts_per_block - first % texts_per_block if texts_per_block else TEXTS_AT_ONCE

    def _without_padding(self, ids: list[int], spans: list[Span] | None) -> _Encoded:
        pad = self.tokenizer.dictionary.pad_index
        if pad not in ids:
            return _Encoded(ids, spans)
        kept = [place for place, token in enumerate(ids) if token != pad]
        return _Encoded([ids[place] for place in kept], None if spans is None else [spans[place] for place in kept])

    def _tokens(self, texts: list[str], first: int) -> list[list[int]]:
        try:
            return self.tokenizer.encode_batch(texts)
        except InputError:
            for number, text in enumerate(texts, first):
                try:
                    self.tokenizer.encode_batch([text])
                except InputError as error:
                    raise InputError(f"text {number} cannot be encoded: {error}") from None
            raise

    def _window(self, held: Sequence[_Encoded], first: int) -> Window:
        sequences: list[list[int]] = []
        pieces: dict[int, range] = {}
        owners: list[int] = []
        spans: list[list[Span]] = []
        truncated = 0
        for number, (ids, places) in enumerate(held):
            fitting = self._fitting(ids, first + number)
            is_cut = self.on_long is OnLong.truncate and len(fitting[0]) < len(ids)
            truncated += is_cut
            if places is not None:
                spans.append([*places[: self.max_length - 1], NO_SPAN] if is_cut else places)
            if len(fitting) > 1:
                pieces[number] = range(len(sequences), len(sequences) + len(fitting))
            sequences += fitting
            owners += [number] * len(fitting)
        return Window(len(held), sequences, owners, pieces, truncated, spans if self.with_spans else None)

    def _fitting(self, ids: list[int], number: int) -> list[list[int]]:
        """The tokens of a text, cut off or in pieces where they are too many. Raises TextTooLong."""
        if len(ids) <= self.max_length:
            return [ids]
        if self.on_long is OnLong.error:
            raise TextTooLong(number, len(ids), self.max_length)
        if self.on_long is OnLong.truncate:
            return [[*ids[: self.max_length - 1], ids[-1]]]
        inner, step = ids[1:-1], self.max_length - 2
        return [[ids[0], *inner[start : start + step], ids[-1]] for start in range(0, len(inner), step)]


def rejoined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tokens of a text that was split, (tokens, width), without the `</s>` and `<s>` between its pieces."""
    import torch

    last = len(pieces) - 1
    return torch.cat([each[number > 0 : len(each) - (number < last)] for number, each in enumerate(pieces)])
