"""Which model a folder holds, told by a checksum that takes no reading of all its gigabytes."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import IO, Any, Final

from hf_xlmr.errors import told_plainly

__all__ = ["fingerprint"]

SAMPLES: Final = 256  # of a file of weights, evenly spread: training changes them all
SAMPLE_BYTES: Final = 4096
LONGEST_HEADER: Final = 100 << 20
WHOLE: Final = (
    *("config.json", "tokenizer.json", "sentencepiece.bpe.model"),
    *("fairseq/dict.txt", "fairseq/sentencepiece.bpe.model"),
)


def fingerprint(folder: Path) -> str:
    """A SHA-256 over what the features of a Transformers folder depend on. Raises InputError.

    Config, dictionary and tokenizer count in whole; of each file of weights its size, its header and samples.
    """
    total = hashlib.sha256()
    with told_plainly():
        for name in WHOLE:
            content = (folder / name).read_bytes() if (folder / name).is_file() else b""
            total.update(hashlib.sha256(content).digest())
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                _add_samples(total, file, path.stat().st_size)
    return total.hexdigest()


def _add_samples(total: Any, file: IO[bytes], size: int) -> None:
    start = file.read(8)
    header = file.read(min(struct.unpack("<Q", start)[0], LONGEST_HEADER)) if len(start) == 8 else b""
    total.update(struct.pack("<Q", size) + start + header)
    first = 8 + len(header)
    for number in range(SAMPLES):
        file.seek(first + (size - first) * number // SAMPLES)
        total.update(file.read(SAMPLE_BYTES))
