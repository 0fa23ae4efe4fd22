"""Examples as the numbers that a network takes, by fairseq's exact tokenization, and batches of them."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.ner import NerExample
from hf_xlmr.tasks.xnli import XnliExample
from hf_xlmr.tokenizer.dictionary import PAD_INDEX
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import pyarrow
    import torch

T = TypeVar("T")
Row: TypeAlias = Mapping[str, "list[int] | int"]
"""`input_ids`, the labels (a number, or one for each token), and for an X-MOD the number of the language."""

NOT_LABELS: Final = ("input_ids", "lang_ids")  # by the names of Transformers' arguments
IGNORED: Final = -100  # the label that Transformers' losses leave out
PAIR_MARKS: Final = 4  # <s> A </s></s> B </s>
MARKS: Final = 2  # <s> A </s>
TEXTS_AT_ONCE: Final = 1024


class Features:
    """Rows of numbers in Arrow's record batches, which may be a file that is mapped: it takes no memory of its own."""

    def __init__(self, batches: Iterable[pyarrow.RecordBatch]) -> None:
        """Look at all `batches`, which have the same columns: numbers, or lists of them."""
        self._batches = list(batches)
        self._starts: list[int] = list(accumulate((each.num_rows for each in self._batches), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, list[int] | int]:
        batch, row = self._place(index)
        names = batch.schema.names
        return {name: column[row].as_py() for name, column in zip(names, batch.columns, strict=True)}

    def length(self, index: int) -> int:
        """The tokens of a row."""
        batch, row = self._place(index)
        return len(batch.column("input_ids")[row])

    def _place(self, index: int) -> tuple[pyarrow.RecordBatch, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        return self._batches[number], index - self._starts[number]


def batches_of(rows: Iterable[Row]) -> Iterator[pyarrow.RecordBatch]:
    """Record batches of `rows` with the same names, in int32: some 250 bytes for a pair of sentences."""
    import pyarrow

    for chunk in _chunks(rows, TEXTS_AT_ONCE):
        number = pyarrow.int32()
        kinds = {name: number if isinstance(value, int) else pyarrow.list_(number) for name, value in chunk[0].items()}
        yield pyarrow.RecordBatch.from_pylist(chunk, schema=pyarrow.schema(kinds))


def digest_of(batches: Iterable[pyarrow.RecordBatch]) -> str:
    """A SHA-256 over all numbers, however they are shared out among `batches`, which are read once."""
    import numpy as np

    names: list[str] = []
    sums: dict[str, tuple[Any, Any]] = {}
    ends: Counter[str] = Counter()
    for batch in batches:
        names = batch.schema.names
        for name, column in zip(names, batch.columns, strict=True):
            of_ends, of_values = sums.setdefault(name, (hashlib.sha256(np.int64(0)), hashlib.sha256()))
            is_list = hasattr(column, "value_lengths")
            lengths = column.value_lengths().to_numpy() if is_list else np.ones(len(column))
            of_ends.update(ends[name] + np.cumsum(lengths, dtype=np.int64))
            ends[name] += int(lengths.sum())
            of_values.update((column.flatten() if is_list else column).to_numpy())
    total = hashlib.sha256()
    for name in names:
        for part in (hashlib.sha256(name.encode()), *sums[name]):
            total.update(part.digest())
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


def in_language(rows: Iterable[Row], number: int | None) -> Iterable[Row]:
    """`rows` with the number of their language, where a model has languages."""
    return rows if number is None else ({**row, "lang_ids": number} for row in rows)


def without_labels(row: Row) -> Row:
    """What a network needs of a row to answer."""
    return {name: row[name] for name in NOT_LABELS if name in row}


def label_ids(labels: Sequence[str]) -> dict[str, int]:
    """The number of each label."""
    return {label: number for number, label in enumerate(labels)}


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


@dataclass(frozen=True)
class TaggedSpan:
    """Which sentence a row holds words of, and at which of its tokens each begins."""

    sentence: int
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
            yield TaggedSpan(index, tuple(places)), row


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
