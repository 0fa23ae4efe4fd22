"""Checks the files next to a model that sentence-transformers and peft read, and finds what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hf_xlmr.files.json_files import strict_json

__all__ = ["ADAPTER", "MODULES", "missing_of_adapter", "missing_of_modules"]

ADAPTER: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
MODULES: Final = "modules.json"
WITHOUT_FILES: Final = "Normalize"  # git keeps no empty folder
WITH_CONFIG: Final = ("Pooling", "Dense")


def missing_of_adapter(folder: Path) -> str | None:
    """A sentence that says what an adapter's folder lacks, None if nothing or not an adapter. Raises OSError."""
    if not (folder / ADAPTER).is_file() or (folder / ADAPTER_WEIGHTS).is_file():
        return None
    return f"{ADAPTER} makes Transformers look for {ADAPTER_WEIGHTS}, which is missing: the folder does not load"


def missing_of_modules(folder: Path) -> str | None:
    """A sentence that says what sentence-transformers would miss, None if nothing or not its folder. Raises OSError."""
    path = folder / MODULES
    if not path.is_file():
        return None
    try:
        missing = next(_missing(folder, strict_json(path.read_bytes())), None)
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MODULES} is damaged: it lists no modules, and sentence-transformers cannot load the folder"
    if missing is None:
        return None
    return f"{MODULES} names {missing:.80}, which is missing: sentence-transformers cannot load the folder"


def _missing(folder: Path, modules: object) -> Iterator[str]:
    if not isinstance(modules, list) or not modules:
        raise TypeError(modules)
    for each in modules:
        place, name = str(each["path"]), str(each["type"]).rpartition(".")[2]
        needed = f"{place}/config.json" if name in WITH_CONFIG else place
        if name != WITHOUT_FILES and not (folder / needed).exists():
            yield needed
