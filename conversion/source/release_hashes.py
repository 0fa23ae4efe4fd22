"""The SHA-256 that a user knows of releases, from HF_XLMR_RELEASES_SHA256."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from hf_xlmr.errors import InputError
from hf_xlmr.files.own_names import RELEASE_NAMES

__all__ = ["HASHES_VARIABLE", "known_sha256"]

HASHES_VARIABLE: Final = "HF_XLMR_RELEASES_SHA256"
DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
ENDING: Final = ".tar.gz"
OTHER_NAMES: Final = {"xmod.base.81.1M": "xmod.base", "xmod.large.prenorm.81.500k": "xmod.large.prenorm"}
"""Releases whose archive has another name, by that."""
LARGEST_LIST: Final = 1 << 20
FORMS: Final = (
    f"{HASHES_VARIABLE} is a list such as xlmr.base=DIGEST,xlmr.large=DIGEST (64 hexadecimal digits each), or the path "
    "of a file with the lines that sha256sum prints"
)


def known_sha256(name: str) -> str | None:
    """The SHA-256 that the archive of release `name` must have, None if nobody said. Raises InputError."""
    value = os.environ.get(HASHES_VARIABLE, "")
    if not value:
        return None
    is_list = "=" in value and not os.path.lexists(value)
    try:
        return dict(_listed(value) if is_list else _summed(value)).get(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{FORMS}; it is {value!r:.200} ({error})") from error


def _listed(value: str) -> Iterator[tuple[str, str]]:
    """The pairs of `NAME=DIGEST,...`. Raises ValueError."""
    for item in filter(None, re.split(r"[,\s]+", value)):
        name, _, digest = item.partition("=")
        if name not in RELEASE_NAMES:
            raise ValueError(f"{name!r:.80} is not a release")
        yield name, _checked(digest)


def _summed(path: str) -> Iterator[tuple[str, str]]:
    """The releases among the lines `DIGEST  FILE` of a file. Raises ValueError, OSError."""
    with Path(path).open(encoding="utf-8") as file:
        lines = file.read(LARGEST_LIST).splitlines()
    for line in filter(str.strip, lines):
        digest, _, file_name = line.strip().partition(" ")
        stem = PurePosixPath(file_name.strip().removeprefix("*")).name.removesuffix(ENDING)
        name = OTHER_NAMES.get(stem, stem)
        if name in RELEASE_NAMES:
            yield name, _checked(digest)


def _checked(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r:.80} is not a SHA-256")
    return digest.lower()
