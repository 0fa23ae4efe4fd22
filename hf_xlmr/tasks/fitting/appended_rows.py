"""Rows that `convert` appended to the embeddings, which stay what `<unk>` is when training has changed that."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

from hf_xlmr.model.safetensors_files import TensorEntry, read_header

__all__ = ["are_unknown", "repeat_unknown_row"]

EMBEDDING: Final = "embeddings.word_embeddings.weight"
UNKNOWN: Final = 3  # fairseq's id of <unk>, which no dictionary moves


def repeat_unknown_row(folder: Path, rows: range) -> None:
    """Write the embedding of `<unk>` over these `rows`, in the safetensors files of `folder`.

    fairseq knows no such rows, so training never meets them, while tokenizer.json gives their ids to pieces that are
    `<unk>` to fairseq. The files are changed in place, whatever the size of the model.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("r+b") as file:
            for name, entry in read_header(file, path).items():
                if name.endswith(EMBEDDING):
                    _repeat(file, entry, rows)


def are_unknown(folder: Path, rows: range) -> bool:
    """Whether these `rows` hold the embedding of `<unk>`, in all safetensors files of `folder`."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            for name, entry in read_header(file, path).items():
                if name.endswith(EMBEDDING) and not _is_repeated(file, entry, rows):
                    return False
    return True


def _is_repeated(file: BinaryIO, entry: TensorEntry, rows: range) -> bool:
    width = entry.nbytes // entry.shape[0]
    file.seek(entry.start + UNKNOWN * width)
    unknown = file.read(width)
    file.seek(entry.start + rows.start * width)
    return file.read(len(rows) * width) == len(rows) * unknown


def _repeat(file: BinaryIO, entry: TensorEntry, rows: range) -> None:
    width = entry.nbytes // entry.shape[0]
    file.seek(entry.start + UNKNOWN * width)
    unknown = file.read(width)
    file.seek(entry.start + rows.start * width)
    for _ in rows:
        file.write(unknown)
