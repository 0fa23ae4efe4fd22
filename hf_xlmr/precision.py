"""Which dtype to compute in: bfloat16 where the hardware multiplies it natively, float32 elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Final

import torch

from hf_xlmr.errors import InputError

__all__ = ["DTYPES", "device_name", "dtype_name", "native_dtype", "wanted_dtype"]

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


def dtype_name(dtype: torch.dtype) -> str:
    """Such as float32."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """What a device is, as far as rounding depends on it: its kind, its name, and a CPU's instructions."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return device.type
    flags = [name for name in NATIVE_ON_CPU if _capabilities().get(name)]
    name = _capabilities().get("cpu_name") or platform.machine()
    return ", ".join(["cpu", str(name), torch.backends.cpu.get_cpu_capability(), *flags])


def _capabilities() -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` has instructions for it (AVX-512 BF16, AMX, Ampere and newer), else float32."""
    if device.type == "cuda":
        has_it = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        has_it = any(_capabilities().get(name) for name in NATIVE_ON_CPU)
    else:
        has_it = False
    return torch.bfloat16 if has_it else torch.float32
