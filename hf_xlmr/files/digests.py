"""SHA-256 of large files, remembered in the cache until the file changes."""

from __future__ import annotations

import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.cache_folder import cache_folder, make_cache_folder

DIGESTS: Final = "digests"  # in the cache folder
BLOCK: Final = 1 << 20
REMEMBERED: Final = 1 << 20  # bytes from which on a file takes longer to read than a note on it
LENGTH: Final = 64  # of a digest in hexadecimal


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal; a large one is read again only when its place, size, inode or times change.

    Raises InputError, OSError.
    """
    status = path.stat()
    if status.st_size < REMEMBERED:
        return sha256(path.read_bytes()).hexdigest()
    facts = [str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memory = cache_folder() / DIGESTS / sha256(json.dumps(facts).encode()).hexdigest()
    try:
        remembered = memory.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        remembered = ""
    if len(remembered) == LENGTH:
        return remembered
    digest = read_sha256(path)
    with suppress(OSError):  # of a cache that cannot be written to
        make_cache_folder(DIGESTS)
        replace_content(memory, digest.encode())
    return digest


def read_sha256(path: Path) -> str:
    """The SHA-256 of what the file holds now, in hexadecimal. Raises OSError."""
    summed = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            summed.update(block)
    return summed.hexdigest()
