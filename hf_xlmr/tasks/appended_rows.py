"""Rows that `convert` appended to the embeddings, which stay what `<unk>` is when training has changed that."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import IO, Final

__all__ = ["repeat_unknown_row"]

EMBEDDING: Final = "embeddings.word_embeddings.weight"
UNKNOWN: Final = 3  # fairseq's id of <unk>, which no dictionary moves


def repeat_unknown_row(folder: Path, *, first: int) -> None:
    """Write the embedding of `<unk>` over all rows from `first` on, in the safetensors files of `folder`.

    fairseq knows no such rows, so training never meets them, while tokenizer.json gives their ids to pieces that are
    `<unk>` to fairseq. The files are changed in place, whatever the size of the model.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for name, tensor in json.loads(file.read(length)).items():
                if name.endswith(EMBEDDING):
                    _repeat(file, tensor["shape"][0], 8 + length, tensor["data_offsets"], first)


def _repeat(file: IO[bytes], rows: int, data: int, offsets: tuple[int, int], first: int) -> None:
    begin, end = (data + offset for offset in offsets)
    width = (end - begin) // rows
    file.seek(begin + UNKNOWN * width)
    unknown = file.read(width)
    file.seek(begin + first * width)
    for _ in range(first, rows):
        file.write(unknown)
