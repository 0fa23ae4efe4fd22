"""Which model a folder holds, as a checksum that does not need to read all its gigabytes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from hf_xlmr.errors import told_plainly
from hf_xlmr.model.safetensors_files import read_header

SMALL: Final = 1 << 20  # bytes of a tensor that is read in whole: every bias and norm, which some train alone
SAMPLES: Final = 16  # of each larger tensor, evenly spread from its first byte to its last: training changes all of it
SAMPLE_BYTES: Final = 4096
WHOLE: Final = (
    *("config.json", "tokenizer.json", "sentencepiece.bpe.model"),
    *("fairseq/dict.txt", "fairseq/sentencepiece.bpe.model"),
)


def fingerprint(folder: Path) -> str:
    """A SHA-256 over what the features of a Transformers folder depend on. Raises InputError, IntegrityError.

    Config, dictionary and tokenizer count in whole; of each file of weights its size, its header, every tensor of up to
    1 MiB, and samples of each larger one: a few numbers in one of those may be changed unnoticed.
    """
    total = hashlib.sha256()
    with told_plainly():
        for name in WHOLE:
            content = (folder / name).read_bytes() if (folder / name).is_file() else b""
            total.update(hashlib.sha256(content).digest())
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                _add_weights(total.update, file, path)
    return total.hexdigest()


def _add_weights(add: Callable[[bytes], None], file: BinaryIO, path: Path) -> None:
    entries = read_header(file, path).values()
    data = min((entry.start for entry in entries), default=path.stat().st_size)
    file.seek(0)
    add(struct.pack("<Q", path.stat().st_size) + file.read(data))
    for entry in entries:
        for at, length in _parts(entry.start, entry.start + entry.nbytes):
            file.seek(at)
            add(file.read(length))


def _parts(first: int, end: int) -> Iterator[tuple[int, int]]:
    if end - first <= SMALL:
        yield first, end - first
        return
    for number in range(SAMPLES):
        yield first + (end - first - SAMPLE_BYTES) * number // (SAMPLES - 1), SAMPLE_BYTES
