"""Which dtype to compute in: bfloat16 if the hardware multiplies it natively, else float32."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from hf_xlmr.errors import InputError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NATIVE_ON_CPU: Final = {  # by torch.cpu.get_capabilities, x86 and ARM
    torch.bfloat16: ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
CPU_FACTS: Final = Path("/proc/cpuinfo")  # its flags have the same names
# Variables that make a processor do as if it had fewer instructions, or round sums otherwise: of oneDNN, which
# multiplies the half types, and of MKL. https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
ONEDNN_LIMITS: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
LIMITS: Final = (*ONEDNN_LIMITS, "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
WITHOUT_HALVES: Final = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
LIMITED_TO_OTHERS: Final = {torch.bfloat16: WITHOUT_HALVES, torch.float16: (*WITHOUT_HALVES, "avx512_core_bf16")}

_LOG: Final = logging.getLogger(__name__)


def wanted_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """The dtype of that name, "auto" being the native one of `device`. Raises InputError."""
    if dtype == "auto":
        return native_dtype(device)
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InputError(f"dtype={dtype!s:.40}: give one of auto, {', '.join(DTYPES)}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The name of the dtype, such as float32."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """What a device is, as far as rounding depends on it: its kind, its name, and a CPU's instructions as limited."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return device.type
    flags = [name for name in NATIVE_ON_CPU[torch.bfloat16] if _capabilities().get(name)]
    name = _capabilities().get("cpu_name") or platform.machine()
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    return ", ".join(["cpu", str(name), torch.backends.cpu.get_cpu_capability(), *flags, *limits])


def _capabilities() -> Mapping[str, object]:
    """The names of what the processor has, by PyTorch, or by Linux where PyTorch is too old to tell (2.10)."""
    if hasattr(torch.cpu, "get_capabilities"):
        found: Mapping[str, object] = torch.cpu.get_capabilities()
        return found
    try:
        return dict.fromkeys(CPU_FACTS.read_text(encoding="utf-8", errors="replace").split(), True)
    except OSError:
        return {}


def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if `device` has instructions for it (AVX-512 BF16, AMX, Ampere and newer), else float32."""
    has_it = device.type in ("cpu", "cuda") and is_native(torch.bfloat16, device)
    return torch.bfloat16 if has_it else torch.float32


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` has instructions that multiply `dtype`; devices other than CPUs and CUDA's are trusted."""
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or dtype not in NATIVE_ON_CPU:
        return True
    limit = next((os.environ[name].lower() for name in ONEDNN_LIMITS if os.environ.get(name)), "")
    return limit not in LIMITED_TO_OTHERS[dtype] and any(_capabilities().get(name) for name in NATIVE_ON_CPU[dtype])


def without_emulation(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype` if it is native to `device`, else float32, with a warning in the log."""
    if is_native(dtype, device):
        return dtype
    _LOG.warning(
        "the processor (%s) has no instructions for %s, which would take many times as long as float32: features are "
        "computed in float32 instead; emulate_dtype insists on %s",
        *(device_name(device), dtype_name(dtype), dtype_name(dtype)),
    )
    return torch.float32


def warn_of_emulation(dtype: torch.dtype, device: torch.device) -> None:
    """Log a warning if `dtype` is not native to `device`, which then emulates it."""
    if not is_native(dtype, device):
        _LOG.warning(
            "the processor (%s) has no instructions for %s: it takes many times as long as float32",
            *(device_name(device), dtype_name(dtype)),
        )
