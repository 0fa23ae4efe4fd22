"""Chooses the kernel that a machine multiplies with: measures once, and reuses the choice, so that bytes stay equal."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch

from hf_xlmr.features.packed.linear_kernels import PLAIN, fastest_kernel, offered_kernels
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.files.cache_folder import cache_folder, make_cache_folder
from hf_xlmr.files.json_files import strict_json
from hf_xlmr.model.precision import device_name

__all__ = ["remembered_kernel"]

KERNELS: Final = "kernels"  # in the cache folder
MEASURED: Final = 16384  # tokens at most: larger batches rank the kernels the same way, and would need more memory
TOO_SMALL: Final = 1 << 30  # multiplications in a layer, below which no kernel saves much

_LOG: Final = logging.getLogger(__name__)


def remembered_kernel(
    hidden: int, intermediate: int, *, tokens: int, dtype: torch.dtype, device: torch.device, activation: str
) -> str:
    """The name of the kernel for layers of these sizes: `fastest_kernel`'s first answer on this machine.

    The cache folder keeps it by processor, PyTorch release, sizes and dtype; if the cache cannot be written, each run
    measures again. Small networks get the plain kernel without a measurement.
    """
    tokens = min(tokens, MEASURED)
    if device.type != "cpu" or hidden * intermediate * tokens < TOO_SMALL:
        return PLAIN
    offered = offered_kernels(dtype, device)
    facts = [device_name(device), torch.__version__, hidden, intermediate, tokens, str(dtype), activation, offered]
    path = cache_folder() / KERNELS / sha256(json.dumps(facts).encode()).hexdigest()
    try:
        kernel = str(strict_json(path.read_bytes())["kernel"])
        if kernel in offered:
            return kernel
    except (OSError, ValueError, KeyError, TypeError):
        pass
    kernel = fastest_kernel(hidden, intermediate, tokens=tokens, dtype=dtype, device=device, activation=activation)
    _remember(path, {"kernel": kernel, "measured for": facts})
    return kernel


def _remember(path: Path, content: dict[str, object]) -> None:
    try:
        make_cache_folder(KERNELS)
        replace_content(path, json.dumps(content).encode())
    except OSError as error:
        _LOG.info("the choice of a kernel cannot be remembered: %s", error)
