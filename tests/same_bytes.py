"""Prints a hash of what each checkpoint converts to, so that environments can be compared.

python tests/same_bytes.py
"""

from __future__ import annotations

import json
import tempfile
from hashlib import sha256
from pathlib import Path

from hf_xlmr.conversion import convert

FIXTURES = Path(__file__).resolve().parent / "fixtures"
SOURCES = ("demo", "v090", "v0102", "v0122", "v0122cls", "v0122bpe", "v0122prenorm", "v0122ranking")
WAYS = {"": {}, " in float16 and shards": {"dtype": "float16", "max_shard_size": "100KB"}}


def hash_of(folder: Path) -> str:
    """One hash over the names and contents of all files in `folder`."""
    digest = sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def converted_hashes() -> dict[str, str]:
    """By checkpoint and way of converting; nothing is proved, since a proof records rounding of this processor."""
    hashes = {}
    for name in SOURCES:
        for way, options in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                source = name if name == "demo" else FIXTURES / name
                hashes[name + way] = hash_of(convert(source, Path(folder) / "out", verify=False, **options).output)
    return hashes


if __name__ == "__main__":
    print(json.dumps(converted_hashes(), indent=1))
