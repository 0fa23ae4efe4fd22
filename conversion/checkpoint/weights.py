"""Weights that are described, not held: each gives its bytes in blocks when asked, so memory stays small."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from hf_xlmr.conversion.checkpoint.containers import ITEM_SIZES, StorageRecord
from hf_xlmr.errors import InputError, IntegrityError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FLOAT_DTYPES",
    "Cast",
    "Computed",
    "Constant",
    "JoinedColumns",
    "JoinedRows",
    "Stored",
    "Weight",
    "main_dtype",
    "read_array",
    "read_rows",
]

BLOCK_BYTES: Final = 1 << 20
GATHERED_BYTES: Final = 8 << 20  # so that each row of a transposed matrix gives a run of some length
SPARSEST: Final = 2  # so many times the elements themselves are read to have them all at once
SHORT_READ: Final = 1 << 16  # takes no longer than two of one page
MOST_REPEATED: Final = 1 << 26  # an expanded tensor is larger than its storage; one of a model is never much so
FLOAT_DTYPES: Final = ("float32", "float16", "bfloat16", "float64")


class Weight(ABC):
    """A tensor to be: its dtype, its shape, and its bytes in row-major order on demand."""

    dtype: str
    shape: tuple[int, ...]

    @abstractmethod
    def blocks(self) -> Iterator[memoryview]:
        """The bytes in order, in blocks of whole elements; each block is valid until the next is asked for.

        Raises IntegrityError if the bytes are damaged, OSError if they cannot be read.
        """

    @property
    def count(self) -> int:
        """The number of elements."""
        return int(math.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """The number of bytes of all blocks together."""
        return self.count * ITEM_SIZES[self.dtype]


def main_dtype(weights: Iterable[Weight]) -> str:
    """The dtype that most bytes have."""
    sizes: Counter[str] = Counter()
    for weight in weights:
        sizes[weight.dtype] += weight.nbytes
    return sizes.most_common(1)[0][0]


@dataclass(frozen=True)
class Stored(Weight):
    """A strided view of a storage in a file: `offset` and `stride` count elements."""

    record: StorageRecord
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @classmethod
    def view(
        cls, name: str, record: StorageRecord, dtype: str, geometry: tuple[Sequence[int], Sequence[int], int]
    ) -> Stored:
        """The weight `name` of `geometry`: shape, stride, offset. Raises IntegrityError if it leaves its storage."""
        shape, stride, offset = geometry
        weight = cls(record=record, dtype=dtype, shape=tuple(shape), stride=tuple(stride), offset=offset)
        if weight.nbytes > max(record.where.length, MOST_REPEATED):
            raise IntegrityError(f"{record.where.name} is damaged: {name} repeats its storage beyond reason")
        if weight.end > record.where.length:
            raise IntegrityError(
                f"{record.where.name} is damaged: {name} needs {weight.end} bytes of storage {record.key}, "
                f"which has {record.where.length}"
            )
        return weight

    @property
    def end(self) -> int:
        """One past the last byte of the storage that the view reaches."""
        if 0 in self.shape:
            return 0
        last: int = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (self.offset + last + 1) * ITEM_SIZES[self.dtype]

    @cached_property
    def is_contiguous(self) -> bool:
        """Whether the elements follow each other in row-major order."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def confirm(self) -> None:
        """Compare the storage's checksum, unless that was done. Raises IntegrityError."""
        _check(self.record)

    def rows(self, start: int, stop: int) -> Stored:
        """The rows from `start` to before `stop`."""
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + start * self.stride[0])

    @property
    def whole_crc32(self) -> int | None:
        """The container's checksum, if this is all of the storage in its order; else None."""
        is_whole = self.offset == 0 and self.is_contiguous and self.nbytes == self.record.where.length
        return self.record.crc32 if is_whole else None

    def same_place(self, other: Weight) -> bool:
        """Whether `other` is the very same view of the same storage."""
        if not isinstance(other, Stored) or self.record is not other.record:
            return False
        return (self.offset, self.shape, self.stride) == (other.offset, other.shape, other.stride)

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in order; the storage's checksum is compared before the last block is through."""
        if self.nbytes == 0:
            return iter(())
        return self._contiguous_blocks() if self.is_contiguous else self._gathered_blocks()

    def _contiguous_blocks(self) -> Iterator[memoryview]:
        start, record = self.offset * ITEM_SIZES[self.dtype], self.record
        if start == 0 and self.nbytes == record.where.length:
            return _read_blocks(record, 0, self.nbytes, confirm=not record.checked)
        _check(record)
        return _read_blocks(record, start, self.nbytes, confirm=False)

    def _gathered_blocks(self) -> Iterator[memoryview]:
        """The elements brought into order some at a time; read and not mapped, since a page that is gone would kill."""
        import numpy as np

        _check(self.record)
        where = self.record.where
        with where.path.open("rb", buffering=0) as file:
            for part in self._parts():
                gathered = np.empty(part.shape, dtype=f"V{ITEM_SIZES[self.dtype]}")
                _gather(file.fileno(), part, gathered)
                data = gathered.reshape(-1).view("u1").data
                for position in range(0, len(data), BLOCK_BYTES):
                    yield data[position : position + BLOCK_BYTES]

    def _parts(self) -> Iterator[Stored]:
        """Runs of rows in order, about as many as are gathered at once, also if a row is larger than that."""
        step = GATHERED_BYTES * self.shape[0] // self.nbytes
        for first in range(0, self.shape[0], max(1, step)):
            if step or len(self.shape) == 1:
                yield self.rows(first, min(first + max(1, step), self.shape[0]))
            else:
                start = self.offset + first * self.stride[0]
                yield from replace(self, shape=self.shape[1:], stride=self.stride[1:], offset=start)._parts()


def _gather(descriptor: int, view: Stored, into: np.ndarray) -> None:
    """The elements of a view, read at once if they are close together, else in halves of the widest axis."""
    import numpy as np

    size, where = ITEM_SIZES[view.dtype], view.record.where
    start = view.offset * size
    if view.end - start <= max(SPARSEST * into.nbytes, SHORT_READ):
        data = bytearray(view.end - start)
        _fill(descriptor, memoryview(data), where.offset + start, where.name)
        strides = tuple(step * size for step in view.stride)
        into[...] = np.lib.stride_tricks.as_strided(np.frombuffer(data, dtype=into.dtype), view.shape, strides)
        return
    widths = [(count - 1) * step for count, step in zip(view.shape, view.stride, strict=True)]
    axis = widths.index(max(widths))
    half = view.shape[axis] // 2
    for first, last in ((0, half), (half, view.shape[axis])):
        shape = (*view.shape[:axis], last - first, *view.shape[axis + 1 :])
        part = replace(view, shape=shape, offset=view.offset + first * view.stride[axis])
        half_of_it = (*[slice(None)] * axis, slice(first, last))
        _gather(descriptor, part, into[half_of_it])


def _check(record: StorageRecord) -> None:
    """Compare the checksum of a storage that is only read in part, once."""
    with record.lock:
        if not record.checked and record.crc32 is not None:
            for _block in _read_blocks(record, 0, record.where.length, confirm=True):
                pass


def _read_blocks(record: StorageRecord, start: int, length: int, *, confirm: bool) -> Iterator[memoryview]:
    from isal.isal_zlib import crc32

    where, checksum = record.where, 0
    summed = confirm and record.crc32 is not None
    buffer = memoryview(bytearray(min(BLOCK_BYTES, length)))
    with where.path.open("rb", buffering=0) as file:
        for position in range(start, start + length, BLOCK_BYTES):
            block = buffer[: min(BLOCK_BYTES, start + length - position)]
            _fill(file.fileno(), block, where.offset + position, where.name)
            checksum = crc32(block, checksum) if summed else 0
            yield block
    if summed:
        record.confirm(checksum)


def _fill(descriptor: int, block: memoryview, position: int, name: str) -> None:
    done = 0
    while done < len(block):
        count = os.preadv(descriptor, [block[done:]], position + done)
        if count == 0:
            raise IntegrityError(f"{name} became shorter while it was read")
        done += count


@dataclass(frozen=True)
class JoinedRows(Weight):
    """Parts laid one after the other: concatenation on the first axis, or flat runs that together make `shape`."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Weight, ...]

    @classmethod
    def of(cls, parts: Sequence[Weight]) -> JoinedRows:
        """`parts` of equal width, stacked."""
        height = sum(part.shape[0] for part in parts)
        return cls(dtype=parts[0].dtype, shape=(height, *parts[0].shape[1:]), parts=tuple(parts))

    def blocks(self) -> Iterator[memoryview]:
        """The parts' bytes, one part after the other."""
        for part in self.parts:
            yield from part.blocks()


@dataclass(frozen=True)
class JoinedColumns(Weight):
    """Matrices of equal height side by side: concatenation on the second axis."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Stored, ...]

    @classmethod
    def of(cls, parts: Sequence[Stored]) -> JoinedColumns:
        """`parts` of equal height, side by side."""
        width = sum(part.shape[1] for part in parts)
        return cls(dtype=parts[0].dtype, shape=(parts[0].shape[0], width), parts=tuple(parts))

    def blocks(self) -> Iterator[memoryview]:
        """Some rows of each part at a time."""
        import numpy as np

        rows, columns = self.shape
        step = max(1, BLOCK_BYTES // max(1, columns * ITEM_SIZES[self.dtype]))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            bands = [_raw_array(part.rows(first, last)) for part in self.parts]
            yield memoryview(np.concatenate(bands, axis=1).tobytes())


@dataclass(frozen=True)
class Constant(Weight):
    """One value in every place."""

    dtype: str
    shape: tuple[int, ...]
    value: float = 0.0

    def blocks(self) -> Iterator[memoryview]:
        """The value's bytes, repeated."""
        element = bytes(ITEM_SIZES[self.dtype]) if str(self.value) == "0.0" else self._element()
        left, block = self.nbytes, element * (BLOCK_BYTES // len(element))
        while left > 0:
            yield memoryview(block)[: min(left, len(block))]
            left -= len(block)

    def _element(self) -> bytes:
        import numpy as np

        return _from_float32(np.full(1, self.value, dtype=np.float32), self.dtype).tobytes()


@dataclass(frozen=True)
class Computed(Weight):
    """The result of arithmetic in float32, a band of rows at a time: `rows(first, last)` gives those rows."""

    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]

    def blocks(self) -> Iterator[memoryview]:
        """The rows, computed some at a time and rounded to the dtype."""
        step = max(1, BLOCK_BYTES * self.shape[0] // max(1, self.nbytes))
        for first in range(0, self.shape[0], step):
            band = self.rows(first, min(first + step, self.shape[0]))
            yield memoryview(_from_float32(band, self.dtype).tobytes())


@dataclass(frozen=True)
class Cast(Weight):
    """Another weight, rounded to `dtype` as PyTorch rounds (to nearest, ties to even)."""

    dtype: str
    shape: tuple[int, ...]
    name: str
    of: Weight

    @classmethod
    def to(cls, dtype: str, weight: Weight, *, name: str) -> Weight:
        """`weight` itself if it has the dtype already, else its cast; messages call it `name`."""
        return weight if weight.dtype == dtype else cls(dtype=dtype, shape=weight.shape, name=name, of=weight)

    def blocks(self) -> Iterator[memoryview]:
        """The blocks of the weight, rounded. Raises InputError if a finite value does not fit the dtype."""
        import numpy as np

        for block in self.of.blocks():
            values = _as_float(np.frombuffer(block, dtype=_NUMPY_DTYPES[self.of.dtype]), self.of.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                rounded = _from_float32(values, self.dtype)
            infinite = _are_infinite(rounded, self.dtype)
            if infinite.any() and (infinite & np.isfinite(values)).any():
                raise InputError(
                    f"{self.name} holds values beyond {_LARGEST[self.dtype]}; use another dtype, or dtype='auto'"
                )
            yield memoryview(rounded.data).cast("B")


_NUMPY_DTYPES: Final = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "bfloat16": "<u2"}
_LARGEST: Final = {
    "float16": "float16's largest, 65504",
    "bfloat16": "bfloat16's largest, 3.39e38",
    "float32": "float32's largest, 3.40e38",
}


def _are_infinite(values: np.ndarray, dtype: str) -> np.ndarray:
    """Which values are infinite; bfloat16 is tested by its bits."""
    import numpy as np

    infinite: np.ndarray = np.isinf(values) if dtype != "bfloat16" else (values & 0x7FFF) == 0x7F80
    return infinite


def _as_float(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as NumPy floats; bfloat16, which NumPy lacks, is the upper half of a float32."""
    if dtype != "bfloat16":
        return values
    widened: np.ndarray = values.astype("<u4") << 16
    return widened.view("<f4")


def _from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values rounded to `dtype`, to nearest with ties to even; bfloat16 as its 16 bits.

    Half of a double goes by way of float32, and so may round twice, because PyTorch does.
    """
    if dtype != "bfloat16":
        by_way = values.astype("<f4", copy=False) if dtype == "float16" else values
        plain: np.ndarray = by_way.astype(_NUMPY_DTYPES[dtype], copy=False)
        return plain
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded: np.ndarray = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2")
    nans = np.isnan(values)
    if nans.any():  # rounding up could turn a NaN into an infinity
        rounded[nans] = 0x7FC0
    return rounded


def _joined(weight: Weight) -> np.ndarray:
    """All bytes of a weight; a run of a file is read to where it stays, blocks are copied one after another."""
    import numpy as np

    data = np.empty(weight.nbytes, dtype="u1")
    if isinstance(weight, Stored) and weight.is_contiguous:
        _check(weight.record)
        where = weight.record.where
        with where.path.open("rb", buffering=0) as file:
            _fill(file.fileno(), data.data, where.offset + weight.offset * ITEM_SIZES[weight.dtype], where.name)
        return data
    filled = 0
    for block in weight.blocks():
        data[filled : filled + len(block)] = np.frombuffer(block, dtype="u1")
        filled += len(block)
    return data


def _raw_array(weight: Stored) -> np.ndarray:
    return _joined(weight).view(f"V{ITEM_SIZES[weight.dtype]}").reshape(weight.shape)


def read_array(weight: Weight) -> np.ndarray:
    """All of a weight as a float array (bfloat16 widened to float32); for small weights and for bands of large ones.

    Raises IntegrityError, OSError.
    """
    return _as_float(_joined(weight).view(_NUMPY_DTYPES[weight.dtype]), weight.dtype).reshape(weight.shape)


def read_rows(weight: Weight, first: int, last: int) -> np.ndarray:
    """The rows from `first` to before `last`, as `read_array` gives them, without reading the others if possible."""
    import numpy as np

    if isinstance(weight, Stored):
        return read_array(weight.rows(first, last))
    if isinstance(weight, Computed):
        rounded = _from_float32(weight.rows(first, last), weight.dtype)
        return _as_float(rounded, weight.dtype)
    if isinstance(weight, Cast) and isinstance(weight.of, Stored):
        return read_array(Cast.to(weight.dtype, weight.of.rows(first, last), name=weight.name))
    if isinstance(weight, JoinedRows) and len(weight.parts[0].shape) == len(weight.shape):
        bands, start = [], 0
        for part in weight.parts:
            low, high = max(first - start, 0), min(last - start, part.shape[0])
            bands += [read_rows(part, low, high)] if low < high else []
            start += part.shape[0]
        return np.concatenate(bands)
    band: np.ndarray = read_array(weight)[first:last]
    return band
