"""Examples as the numbers that a network takes, by fairseq's exact tokenization, and batches of them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.ner import NerExample
from hf_xlmr.tasks.xnli import XnliExample
from hf_xlmr.tokenizer.dictionary import PAD_INDEX
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

__all__ = [
    "IGNORED",
    "PAIR_MARKS",
    "Features",
    "Row",
    "TaggedSpan",
    "collate",
    "encode_pairs",
    "encode_words",
    "label_ids",
    "tag_ids",
]

T = TypeVar("T")
Row: TypeAlias = Mapping[str, "list[int] | int"]
"""`input_ids`, and the labels: a number, or one for each token."""

IGNORED: Final = -100  # the label that Transformers' losses leave out
PAIR_MARKS: Final = 4  # <s> A </s></s> B </s>
MARKS: Final = 2  # <s> A </s>
TEXTS_AT_ONCE: Final = 1024


class Features:
    """Rows of numbers, laid end to end: some 250 bytes for a pair of sentences; lists would take thousands."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Keep all `rows`, which have the same names."""
        self._columns: dict[str, array[int]] = {}
        self._ends: dict[str, array[int]] = {}
        self._scalars: set[str] = set()
        for row in rows:
            for name, value in row.items():
                self._append(name, value)

    def _append(self, name: str, value: list[int] | int) -> None:
        column = self._columns.setdefault(name, array("i"))
        ends = self._ends.setdefault(name, array("q", [0]))
        if isinstance(value, int):
            self._scalars.add(name)
            column.append(value)
        else:
            column.extend(value)
        ends.append(len(column))

    def __len__(self) -> int:
        return max(len(self._ends.get("input_ids", ())) - 1, 0)

    def __getitem__(self, index: int) -> dict[str, list[int] | int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        found: dict[str, list[int] | int] = {}
        for name, column in self._columns.items():
            ends = self._ends[name]
            values = column[ends[index] : ends[index + 1]].tolist()
            found[name] = values[0] if name in self._scalars else values
        return found

    def length(self, index: int) -> int:
        """The tokens of a row."""
        ends = self._ends["input_ids"]
        return ends[index + 1] - ends[index]

    def digest(self) -> str:
        """A SHA-256 over all numbers."""
        total = hashlib.sha256()
        for name, column in self._columns.items():
            for part in (name.encode(), self._ends[name].tobytes(), column.tobytes()):
                total.update(hashlib.sha256(part).digest())
        return total.hexdigest()


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """A batch: ids padded on the right with `<pad>`, its mask, and labels padded with what losses leave out.

    `input_ids` and `attention_mask` are (rows, longest), labels that or (rows,).
    """
    import torch

    batch: dict[str, torch.Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], int):
            batch[name] = torch.tensor(values)
            continue
        several = [torch.tensor(value) for value in values]
        filler = PAD_INDEX if name == "input_ids" else IGNORED
        batch[name] = torch.nn.utils.rnn.pad_sequence(several, batch_first=True, padding_value=filler)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])  # type: ignore[arg-type]
    batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def label_ids(labels: Sequence[str]) -> dict[str, int]:
    """The number of each label."""
    return {label: number for number, label in enumerate(labels)}


# ---- sentence pairs --------------------------------------------------------------------------------------------------


def encode_pairs(
    examples: Iterable[XnliExample], tokenizer: ExactTokenizer, *, labels: Sequence[str], max_length: int
) -> Iterator[Row]:
    """`<s> premise </s></s> hypothesis </s>` of each example, the longer text cut first. Raises InputError."""
    numbers = label_ids(labels)
    for chunk in _chunks(examples, TEXTS_AT_ONCE):
        columns = [[each.premise for each in chunk], [each.hypothesis for each in chunk]]
        firsts, seconds = ([ids[1:-1] for ids in tokenizer.encode_batch(column)] for column in columns)
        for example, first, second in zip(chunk, firsts, seconds, strict=True):
            if example.label not in numbers:
                raise InputError(f"{example.place}: the label {example.label!r} is none of {', '.join(labels)}")
            kept = _shortened(len(first), len(second), max_length - PAIR_MARKS)
            parts = (first[: kept[0]], second[: kept[1]])
            yield {"input_ids": tokenizer.framed(parts), "labels": numbers[example.label]}


def _shortened(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two texts is kept when the longer one is cut until both fit."""
    if first + second <= room:
        return first, second
    longest = max(room - min(first, second), (room + 1) // 2)  # of the longer one
    if first >= second:
        return longest, min(second, room - longest)
    return min(first, room - longest), longest


# ---- words with tags -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaggedSpan:
    """Which words of which sentence a row holds, and at which of its tokens each begins."""

    sentence: int
    first_word: int
    places: tuple[int, ...] = field(repr=False)


def encode_words(
    examples: Iterable[NerExample], tokenizer: ExactTokenizer, *, labels: Sequence[str], max_length: int
) -> Iterator[tuple[TaggedSpan, Row]]:
    """The words of each sentence, each cut by itself; its first piece has its label, what follows none.

    A sentence of more tokens than `max_length` makes several rows, so that each word has a prediction. Raises
    InputError for a tag that is none of `labels`.
    """
    numbers = label_ids(labels)
    for index, example in enumerate(examples):
        tags = tag_ids(example, numbers)
        words = [ids[1:-1] or [tokenizer.dictionary.unk_index] for ids in tokenizer.encode_batch(example.tokens)]
        for first, last in _runs([len(word) for word in words], max_length - MARKS):
            pieces: list[int] = []
            places: list[int] = []
            targets = [IGNORED]
            for word, tag in zip(words[first:last], tags[first:last], strict=True):
                cut = word[: max_length - MARKS]
                places.append(1 + len(pieces))
                targets += [tag, *[IGNORED] * (len(cut) - 1)]
                pieces += cut
            row: Row = {"input_ids": tokenizer.framed([pieces]), "labels": [*targets, IGNORED]}
            yield TaggedSpan(index, first, tuple(places)), row


def tag_ids(example: NerExample, numbers: Mapping[str, int]) -> list[int]:
    """The numbers of the tags of a sentence. Raises InputError for the first tag that has none."""
    if unknown := [tag for tag in example.tags if tag not in numbers]:
        known = ", ".join(numbers)
        raise InputError(f"{example.place}: the label {unknown[0]!r} is unknown to the model; it has {known}")
    return [numbers[tag] for tag in example.tags]


def _runs(lengths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Runs of words that fit, first and end; a word that does not fit is a run by itself."""
    first, used = 0, 0
    for index, length in enumerate(lengths):
        if index > first and used + length > room:
            yield first, index
            first, used = index, 0
        used += length
    if first < len(lengths):
        yield first, len(lengths)


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
