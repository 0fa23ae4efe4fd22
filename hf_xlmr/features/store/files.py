"""The files of one shard of features: rows appended group by group, as Parquet or as NumPy arrays."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from hf_xlmr.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray
    from pyarrow.parquet import ParquetWriter

__all__ = [
    *("FORMATS", "GROUP_BYTES", "FeatureGroup", "ShardFiles", "StoreLayout", "Vectors", "is_shard_name"),
    "open_shard_files",
]

GROUP_BYTES: Final = 1 << 25  # of features in a row group of Parquet, which is kept in memory until it is full
MOST_ROWS: Final = 10**9  # in a shard, which begins again after an interruption
DTYPE_BYTES: Final = {"float32": 4, "float16": 2}
SUFFIXES: Final = {"parquet": (".parquet",), "npy": (".npy", ".jsonl")}

SHARD_NAME: Final = re.compile(r"(?:part|ids|offsets|spans|features(?:_\d+)?)-\d{5,}\.(?:parquet|npy|jsonl)")

Vectors: TypeAlias = "NDArray[np.floating[Any]]"
OpenFile = Callable[[str], IO[bytes]]  # opens a temporary file that will get this name


def is_shard_name(name: str) -> bool:
    """Whether a file with this name can be part of a shard of any layout."""
    return SHARD_NAME.fullmatch(name) is not None


def column_names(layers: Sequence[int]) -> dict[int, str]:
    """The name of each layer's features: `features` for a single one, else such as `features_0`, `features_12`."""
    return {layer: "features" if len(layers) == 1 else f"features_{layer}" for layer in layers}


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """The format and contents of the files of features. Raises InputError for invalid values."""

    layers: tuple[int, ...]
    width: int
    """The number of components of a feature vector."""
    per_token: bool = False
    """Whether a row has a vector, and a span of characters, for every token rather than one for the text."""
    has_ids: bool = False
    format: str = "parquet"
    dtype: str = "float32"
    rows_per_shard: int

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise InputError(f"{self.format:.40} is none of the formats {', '.join(SUFFIXES)}")
        if self.dtype not in DTYPE_BYTES:
            raise InputError(
                f"{self.dtype:.40} is none of the dtypes {', '.join(DTYPE_BYTES)} that features are kept in"
            )
        if not 1 <= self.rows_per_shard <= MOST_ROWS:
            raise InputError(f"a shard has from 1 to {MOST_ROWS:,} rows, not {self.rows_per_shard!s:.40}")
        if not self.layers or len({*self.layers}) != len(self.layers) or self.width < 1:
            raise InputError(f"features need different layers and a width, not {self.layers} and {self.width}")

    @cached_property
    def columns(self) -> dict[int, str]:
        """The name of each layer's column, by `column_names`."""
        return column_names(self.layers)

    @cached_property
    def vectors_per_group(self) -> int:
        """The number of vectors of each layer in a full group, which alone decides where groups end."""
        return max(1, GROUP_BYTES // (len(self.layers) * self.width * DTYPE_BYTES[self.dtype]))

    def is_shard_file(self, name: str) -> bool:
        """Whether a file with this name can only be part of a shard of this layout."""
        stem, _, suffix = name.partition(".")
        column, _, number = stem.rpartition("-")
        known = {"part", "ids", "offsets", "spans", *self.columns.values()}
        is_number = number.isdecimal() and f"{int(number):05d}" == number
        return column in known and is_number and f".{suffix}" in SUFFIXES[self.format]


@dataclass(frozen=True)
class FeatureGroup:
    """Consecutive rows with their features, the vectors of all rows one after another."""

    first_row: int
    lengths: NDArray[np.int64]
    """The number of vectors of each row: 1 if each text has one vector."""
    features: Mapping[int, Vectors]
    """The vectors of each layer, (vectors, width)."""
    spans: NDArray[np.int32] | None
    """The spans of tokens, (vectors, 2); None if each text has one vector."""
    ids: Sequence[object] | None

    @cached_property
    def id_sizes(self) -> NDArray[np.int64]:
        """The number of characters of each row's id."""
        import numpy as np

        if self.ids is None:
            return np.zeros(len(self.lengths), np.int64)
        return np.array([len(each) if isinstance(each, str) else 0 for each in self.ids], np.int64)

    def split(self, rows: int) -> tuple[FeatureGroup, FeatureGroup]:
        """Split the group into its first `rows` rows and the rest."""
        cut = int(self.lengths[:rows].sum())
        first = self._part(slice(None, rows), slice(None, cut), self.first_row)
        return first, self._part(slice(rows, None), slice(cut, None), self.first_row + rows)

    def _part(self, rows: slice, vectors: slice, first_row: int) -> FeatureGroup:
        return FeatureGroup(
            first_row,
            self.lengths[rows],
            {layer: each[vectors] for layer, each in self.features.items()},
            None if self.spans is None else self.spans[vectors],
            None if self.ids is None else self.ids[rows],
        )

    @classmethod
    def joined(cls, groups: Sequence[FeatureGroup]) -> FeatureGroup:
        """Join consecutive groups to one."""
        import numpy as np

        first = groups[0]
        if len(groups) == 1:
            return first
        return cls(
            first.first_row,
            np.concatenate([group.lengths for group in groups]),
            {layer: np.concatenate([group.features[layer] for group in groups]) for layer in first.features},
            None
            if first.spans is None
            else np.concatenate([group.spans for group in groups if group.spans is not None]),
            None if first.ids is None else [each for group in groups for each in group.ids or ()],
        )


class ShardFiles(Protocol):
    """The files of a shard while they are written; the code that opened them closes them."""

    def append(self, group: FeatureGroup) -> None:
        """Write the next rows. Raises OSError."""

    def finish(self) -> None:
        """Write the end of the files. Raises OSError."""

    def abandon(self) -> None:
        """Release files that will be removed."""


def open_shard_files(number: int, layout: StoreLayout, open_file: OpenFile) -> ShardFiles:
    """Open the files of shard `number` with `open_file`."""
    return FORMATS[layout.format](number, layout, open_file)


# ---- Parquet ---------------------------------------------------------------------------------------------------------


class _ParquetShard:
    """A shard in `part-00000.parquet`, with the columns `row`, `id`, one for each layer, and `spans`."""

    def __init__(self, number: int, layout: StoreLayout, open_file: OpenFile) -> None:
        self._layout = layout
        self._file = open_file(f"part-{number:05d}.parquet")
        self._writer: ParquetWriter | None = None

    def append(self, group: FeatureGroup) -> None:
        """Write a row group. Raises OSError."""
        table = self._table(group)
        if self._writer is None:
            self._writer = self._new_writer(table.schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def finish(self) -> None:
        """Write the footer. Raises OSError."""
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        """Close the writer and ignore its error about data that it could not write."""
        from pyarrow import ArrowException

        if self._writer is not None:
            try:
                self._writer.close()
            except (OSError, ValueError, ArrowException):
                self._writer.is_open = False  # otherwise it would write again when it is garbage-collected

    def _new_writer(self, schema: pyarrow.Schema) -> ParquetWriter:
        """A Parquet writer that groups the bytes of floats by significance, without which compression gains little."""
        from pyarrow.parquet import ParquetWriter

        leaf = "list.element.list.element" if self._layout.per_token else "list.element"
        return ParquetWriter(
            self._file,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=["row"],
            use_byte_stream_split=[f"{column}.{leaf}" for column in self._layout.columns.values()],
        )

    def _table(self, group: FeatureGroup) -> pyarrow.Table:
        import numpy as np
        import pyarrow as pa

        rows = np.arange(group.first_row, group.first_row + len(group.lengths))
        columns = {"row": _arrow(rows)}
        if group.ids is not None:
            columns["id"] = pa.array(group.ids, pa.string() if isinstance(group.ids[0], str) else pa.int64())
        for layer, name in self._layout.columns.items():
            columns[name] = self._vectors(group, group.features[layer])
        if group.spans is not None:
            columns["spans"] = self._vectors(group, group.spans)
        return pa.table(columns)

    def _vectors(self, group: FeatureGroup, vectors: Vectors | NDArray[np.int32]) -> pyarrow.Array:
        import numpy as np
        import pyarrow as pa

        array = pa.FixedSizeListArray.from_arrays(_arrow(vectors.reshape(-1)), vectors.shape[1])
        if not self._layout.per_token:
            return array
        offsets = np.zeros(len(group.lengths) + 1, np.int32)
        np.cumsum(group.lengths, out=offsets[1:])
        return pa.ListArray.from_arrays(_arrow(offsets), array)


def _arrow(values: NDArray[np.generic]) -> pyarrow.Array:
    """The same numbers for Arrow: `pyarrow.array` would import pandas, if it is installed, which takes a second."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values.tobytes())])


# ---- NumPy -----------------------------------------------------------------------------------------------------------


class _NpyShard:
    """A shard in `features-00000.npy`, `ids-00000.jsonl`, and for tokens `offsets-00000.npy` and `spans-00000.npy`."""

    def __init__(self, number: int, layout: StoreLayout, open_file: OpenFile) -> None:
        dtype = {"float32": "<f4", "float16": "<f2"}[layout.dtype]
        self._features = {
            layer: _NpyFile(open_file(f"{name}-{number:05d}.npy"), dtype, (layout.width,))
            for layer, name in layout.columns.items()
        }
        self._offsets = self._spans = None
        if layout.per_token:
            self._offsets = _NpyFile(open_file(f"offsets-{number:05d}.npy"), "<i8", ())
            self._spans = _NpyFile(open_file(f"spans-{number:05d}.npy"), "<i4", (2,))
            self._offsets.append([0])
        self._ids = open_file(f"ids-{number:05d}.jsonl") if layout.has_ids else None
        self._vectors = 0

    def append(self, group: FeatureGroup) -> None:
        """Write the next rows. Raises OSError."""
        for layer, file in self._features.items():
            file.append(group.features[layer])
        if self._offsets is not None and self._spans is not None:
            self._offsets.append(self._vectors + group.lengths.cumsum())
            self._spans.append(group.spans)
        if self._ids is not None:
            self._ids.writelines(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in group.ids or ())
        self._vectors += int(group.lengths.sum())

    def finish(self) -> None:
        """Write the headers again, now that the numbers of rows are known. Raises OSError."""
        for file in (*self._features.values(), self._offsets, self._spans):
            if file is not None:
                file.finish()

    def abandon(self) -> None:
        """Do nothing: only the files themselves are open."""


class _NpyFile:
    """A file of an array that grows along its first axis."""

    def __init__(self, file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
        self._file = file
        self._dtype = dtype
        self._shape = shape
        self._rows = 0
        file.write(self._header())

    def append(self, rows: object) -> None:
        """Write more rows. Raises OSError."""
        import numpy as np

        array = np.ascontiguousarray(rows, self._dtype)
        self._file.write(array.data)
        self._rows += len(array)

    def finish(self) -> None:
        """Overwrite the header, which keeps its length: NumPy leaves room for the first axis to grow."""
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        from numpy.lib.format import write_array_header_1_0

        facts = {"descr": self._dtype, "fortran_order": False, "shape": (self._rows, *self._shape)}
        held = io.BytesIO()
        write_array_header_1_0(held, facts)
        return held.getvalue()


FORMATS: Final[Mapping[str, Callable[[int, StoreLayout, OpenFile], ShardFiles]]] = {
    "parquet": _ParquetShard,
    "npy": _NpyShard,
}
