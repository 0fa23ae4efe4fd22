"""Which dtype to compute in: bfloat16 where the hardware multiplies it natively, float32 elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from hf_xlmr.errors import InputError

__all__ = ["DTYPES", "native_dtype", "wanted_dtype"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NATIVE_ON_CPU: Final = ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")  # by torch.cpu.get_capabilities, x86 and ARM


def wanted_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """The dtype of that name, "auto" being the native one of `device`. Raises InputError."""
    if dtype == "auto":
        return native_dtype(device)
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InputError(f"dtype={dtype!s:.40}: give one of auto, {', '.join(DTYPES)}")
    return found


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` has instructions for it (AVX-512 BF16, AMX, Ampere and newer), else float32."""
    if device.type == "cuda":
        has_it = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        has_it = any(capabilities.get(name) for name in NATIVE_ON_CPU)
    else:
        has_it = False
    return torch.bfloat16 if has_it else torch.float32
