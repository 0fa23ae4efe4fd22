"""Configurations for `accelerate launch` that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError

__all__ = ["LAUNCH_CONFIGS", "launch_config"]

LAUNCH_CONFIGS: Final = ("xl", "xxl")
"""The configurations by model; they distribute weights, gradients and optimizer states over the GPUs (FSDP)."""


def launch_config(name: str) -> Path:
    """The file for `--config_file`. Raises InputError for a name that is none of LAUNCH_CONFIGS."""
    if name not in LAUNCH_CONFIGS:
        raise InputError(f"there is no configuration {name!r:.40}; there are {', '.join(LAUNCH_CONFIGS)}")
    return Path(str(files("hf_xlmr.tasks") / "configs" / f"{name}.yaml"))
