"""Texts as sequences of tokens that the model takes, some thousand texts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Final

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


@dataclass(frozen=True)
class Window:
    """Texts as sequences of tokens, of which a text that was split has several."""

    texts: tuple[str, ...]
    sequences: list[list[int]]
    owners: list[int]
    """The text of each sequence, by its number in the window."""
    pieces: dict[int, range]
    """The sequences of each text that was split."""
    truncated: int
    """Texts that were cut off."""

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

    def windows(self, texts: Iterable[str], *, texts_per_block: int | None = None) -> Iterator[Window]:
        """All texts in order; the same texts give the same windows. Raises InputError, TextTooLong.

        No window has texts of two blocks of `texts_per_block`.
        """
        held: list[tuple[str, list[int]]] = []
        first = tokens = 0
        for text, ids in self._encoded(texts, texts_per_block):
            if held and tokens + len(ids) > self.most_tokens:
                yield self._window(held, first)
                first, held, tokens = first + len(held), [], 0
            held.append((text, ids))
            tokens += len(ids)
            ends_block = texts_per_block is not None and (first + len(held)) % texts_per_block == 0
            if len(held) == TEXTS_PER_WINDOW or ends_block:
                yield self._window(held, first)
                first, held, tokens = first + len(held), [], 0
        if held:
            yield self._window(held, first)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in `text` each of its tokens comes from, as far as it is not cut off; (0, 0) for `<s>` and `</s>`."""
        ids, spans = self.tokenizer.ids(text), self.tokenizer.spans(text)
        kept = [span for token, span in zip(ids, spans, strict=True) if token != self._pad]
        if self.on_long is not OnLong.split:
            kept = kept[: self.max_length - 2]
        return [(0, 0), *kept, (0, 0)]

    @property
    def _pad(self) -> int:
        return self.tokenizer.dictionary.pad_index

    def _encoded(self, texts: Iterable[str], texts_per_block: int | None) -> Iterator[tuple[str, list[int]]]:
        """Each text and its tokens; `<pad>`, which no token attends to, is left out.

        A block is given out before the next one is read, whose texts may be in error.
        """
        source, first, pad = iter(texts), 0, self._pad
        left = texts_per_block or TEXTS_AT_ONCE
        while some := list(islice(source, min(TEXTS_AT_ONCE, left))):
            for text, ids in zip(some, self._tokens(some, first), strict=True):
                yield text, [token for token in ids if token != pad] if pad in ids else ids
            first += len(some)
            left = texts_per_block - first % texts_per_block if texts_per_block else TEXTS_AT_ONCE

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

    def _window(self, held: Sequence[tuple[str, list[int]]], first: int) -> Window:
        sequences: list[list[int]] = []
        pieces: dict[int, range] = {}
        owners: list[int] = []
        truncated = 0
        for number, (_text, ids) in enumerate(held):
            fitting = self._fitting(ids, first + number)
            truncated += self.on_long is OnLong.truncate and len(fitting[0]) < len(ids)
            if len(fitting) > 1:
                pieces[number] = range(len(sequences), len(sequences) + len(fitting))
            sequences += fitting
            owners += [number] * len(fitting)
        return Window(tuple(text for text, _ids in held), sequences, owners, pieces, truncated)

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
