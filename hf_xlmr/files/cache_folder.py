"""Where downloads, conversions and measurements of this machine are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError

CACHE_VARIABLE: Final = "HF_XLMR_CACHE"
OWN: Final = 0o700  # other users could read what was converted, or replace what is loaded again


def cache_folder() -> Path:
    """HF_XLMR_CACHE, else hf_xlmr in the user's cache folder. Raises InputError if a user's home is unknown."""
    chosen, shared = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen:
            return Path(chosen).expanduser()
        # The XDG specification has relative paths ignored.
        return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "hf_xlmr"
    except RuntimeError as error:
        told = f"{CACHE_VARIABLE} is {chosen}, and" if chosen else f"{CACHE_VARIABLE} is not set, and"
        raise InputError(f"{told} there is no home folder of that user: set it to the path of a folder") from error


def make_cache_folder(name: str = "") -> Path:
    """The cache folder, made for this user alone if it is not there yet, or the folder `name` in it.

    Raises InputError, OSError.
    """
    folder = cache_folder()
    folder.mkdir(mode=OWN, parents=True, exist_ok=True)
    inner = folder / name
    inner.mkdir(parents=True, exist_ok=True)
    return inner
