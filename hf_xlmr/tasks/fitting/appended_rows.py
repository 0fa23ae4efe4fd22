"""Rows that `convert` appended to the embeddings, which stay what `<unk>` is when training has changed that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

from hf_xlmr.model.safetensors_files import read_header

EMBEDDING: Final = "embeddings.word_embeddings.weight"
UNKNOWN: Final = 3  # fairseq's id of <unk>, which no dictionary moves


def repeat_unknown_row(folder: Path, rows: range) -> None:
    """Write the embedding of `<unk>` over these `rows`, in the safetensors files of `folder`.

    fairseq knows no such rows, so training never meets them, while tokenizer.json gives their ids to pieces that are
    `<unk>` to fairseq. The files are changed in place, whatever the size of the model.
    """
    for file, unknown in _embeddings(folder, rows, "r+b"):
        for _ in rows:
            file.write(unknown)


def are_unknown(folder: Path, rows: range) -> bool:
    """Whether these `rows` hold the embedding of `<unk>`, in all safetensors files of `folder`."""
    found = _embeddings(folder, rows, "rb")
    return all(file.read(len(rows) * len(unknown)) == len(rows) * unknown for file, unknown in found)


def _embeddings(folder: Path, rows: range, mode: Literal["rb", "r+b"]) -> Iterator[tuple[BinaryIO, bytes]]:
    """The file of each embedding, at the first of its `rows`, and the embedding of `<unk>`."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open(mode) as file:
            for name, entry in read_header(file, path).items():
                if name.endswith(EMBEDDING):
                    width = entry.nbytes // entry.shape[0]
                    file.seek(entry.start + UNKNOWN * width)
                    unknown = file.read(width)
                    file.seek(entry.start + rows.start * width)
                    yield file, unknown
