"""Where downloads, conversions and measurements of this machine are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["CACHE_VARIABLE", "cache_folder"]

CACHE_VARIABLE: Final = "HF_XLMR_CACHE"


def cache_folder() -> Path:
    """HF_XLMR_CACHE, else hf_xlmr in the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(shared) if Path(shared).is_absolute() else Path.home() / ".cache") / "hf_xlmr"
