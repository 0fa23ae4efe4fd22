"""Memory: sizes in words, budgets per device, and what this machine has free."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

from hf_xlmr.errors import InputError

Device: TypeAlias = int | str
"""The number of a GPU, `cpu` or `disk`."""
MaxMemory: TypeAlias = Mapping[Device, int | str | None]
"""What each device may hold: bytes, or a size in words, None if there is no limit."""

CPU: Final = "cpu"
DISK: Final = "disk"
UNLIMITED: Final = "unlimited"
UNITS: Final = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
SIZE: Final = re.compile(r"(?P<amount>[0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?P<unit>[A-Za-z]*)")
PLAIN_NUMBER: Final = 1024  # below this, a number without a unit was surely not meant in bytes
MOST_DEVICES: Final = 1024
GPU: Final = re.compile(r"(?:cuda:)?(?P<number>[0-9]{1,4})")
SHARE_TO_USE: Final = 0.95  # the rest is for what fragments, and for the workspaces of the libraries
SIGNS_OF_A_GPU: Final = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
NO_LIMIT_BYTES: Final = 1 << 60  # what a container without a limit says is beyond this
CGROUPS: Final = (  # a container's folder, and in it the files of its limit, its use, and what of its use is cache
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
EXAMPLE: Final = "such as 0=24GiB,1=24GiB,cpu=64GiB"


def parse_size(text: str | int) -> int:
    """Bytes in a size such as `24GiB`, `500MB` or a plain number of bytes: 1 GiB is 2**30 bytes, 1 GB is 10**9.

    Raises InputError.
    """
    found = SIZE.fullmatch(str(text).strip())
    if found is None:
        raise InputError(f"{text!s:.40} is not a size; write one such as 24GiB, 500MB or 8000000000 (bytes)")
    units = {unit.lower(): count for unit, count in UNITS.items()}
    amount, unit = found["amount"], found["unit"].lower()
    if not unit and ("." in amount or 0 < int(amount) < PLAIN_NUMBER):
        raise InputError(f"{text!s:.40} has no unit; write {amount}GiB, {amount}MB or the like")
    if unit and unit not in units:
        raise InputError(f"{found['unit']:.20} is not a unit of memory; hf-xlmr knows {', '.join(UNITS)}")
    return int(float(amount) * units[unit]) if unit else int(amount)


def parse_max_memory(text: str) -> dict[Device, int | None]:
    """The budgets in a text such as `0=24GiB,1=24GiB,cpu=64GiB,disk=unlimited`, GPUs first, in the order of the text.

    Raises InputError if a device is unknown or named twice, or a size is none.
    """
    budgets: dict[Device, int | None] = {}
    for part in text.split(","):
        name, equals, size = part.strip().partition("=")
        if not equals:
            raise InputError(f"{part.strip()!r:.40} is not a device with its memory; write {EXAMPLE}")
        device = _device(name.strip())
        if device in budgets:
            raise InputError(f"the memory of {device_label(device)} is given twice")
        budgets[device] = None if size.strip() == UNLIMITED else parse_size(size)
    return in_order(budgets)


def in_order(budgets: MaxMemory) -> dict[Device, int | None]:
    """The budgets in bytes, with GPUs first, then the CPU, then the disk; sizes may be words, as in Transformers.

    Raises InputError if a device is unknown, a size is none, or a GPU has no limit.
    """
    known: dict[Device, int | None] = {}
    for name, size in budgets.items():
        device = _device(name)
        known[device] = parse_size(size) if isinstance(size, str) else size
        if size is None and device not in (CPU, DISK):
            raise InputError(f"{device_label(device)} has a limit; write how much of it may be used, such as 24GiB")
        if (known[device] or 0) < 0:
            raise InputError(f"the memory of {device_label(device)} is negative ({size})")
    if not known:
        raise InputError(f"no device is given; write {EXAMPLE}")
    rank = {CPU: 1, DISK: 2}
    return dict(sorted(known.items(), key=lambda pair: rank.get(str(pair[0]), 0)))


def _device(name: Device) -> Device:
    if name in (CPU, DISK):
        return name
    found = GPU.fullmatch(str(name))
    if found is None or int(found["number"]) >= MOST_DEVICES:
        raise InputError(f"{name!s:.40} is not a device; hf-xlmr knows GPUs by number (0, 1, ...), {CPU} and {DISK}")
    return int(found["number"])


def device_label(device: Device) -> str:
    """A device as people call it: `GPU 0`, `CPU`, `disk`."""
    return f"GPU {device}" if isinstance(device, int) else {CPU: "CPU"}.get(device, device)


def format_size(count: int | None) -> str:
    """Bytes as people read them, in powers of 1024; None means no limit."""
    if count is None:
        return UNLIMITED
    unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if abs(count) >= UNITS[unit]), "B")
    return f"{count} B" if unit == "B" else f"{count / UNITS[unit]:.2f} {unit}"


def available_memory() -> dict[Device, int | None]:
    """What this machine has free now: each GPU, the CPU, and the disk without a limit, as weights stay in their files.

    A twentieth of each is left alone, for what fragments. PyTorch is asked, and imported, only where there may be a
    GPU. Raises InputError if the system does not say its memory.
    """
    return {**_free_on_gpus(), CPU: int(_free_on_cpu() * SHARE_TO_USE), DISK: None}


def _free_on_gpus() -> dict[Device, int | None]:
    """Bytes that are free on each GPU, counting what PyTorch holds and does not use."""
    if "torch" not in sys.modules and not any(Path(sign).exists() for sign in SIGNS_OF_A_GPU):
        return {}  # importing PyTorch takes longer than all else here
    import torch

    if not torch.cuda.is_available():
        return {}
    free: dict[Device, int | None] = {}
    for number in range(torch.cuda.device_count()):
        unused = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
        free[number] = int((torch.cuda.mem_get_info(number)[0] + unused) * SHARE_TO_USE)
    return free


def _free_on_cpu() -> int:
    """Bytes that can be had without swapping, within the limit of the container if there is one."""
    import psutil  # accelerate brings it

    free = int(psutil.virtual_memory().available)
    for folder, limit, usage, cached in CGROUPS:
        most = _number_in(Path(folder) / limit)
        if most is not None and most < NO_LIMIT_BYTES:
            used = (_number_in(Path(folder) / usage) or 0) - _cached_in(Path(folder) / "memory.stat", cached)
            free = min(free, max(0, most - used))
    return free


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or the word max
        return None


def _cached_in(path: Path, name: str) -> int:
    """Bytes of files that a container holds in memory and gives back when asked."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
