"""Several GPUs on a machine that has none: tensors carry the device that they would be on.

What runs under `VirtualGPUs` sees `count` CUDA devices. Values are computed on the CPU, so that they are the CPU's bit
for bit, while `.to("cuda:1")`, `device=` and `.device` speak of the device that each tensor would be on, and an
operation on tensors of two devices is refused as CUDA refuses it. `moves` counts what crosses from one device to
another: by `.to()` and its like, `copy_`, `tolist`, `torch.tensor` and `as_tensor` of a tensor, and as an index.
It holds for every layer that is written in Python: accelerate's hooks, Transformers' networks, and ours.

A label belongs to a storage, so that views, parameters and detached tensors have the one of the memory that they show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
GIB = 1 << 30
DIFFERENT = "Expected all tensors to be on the same device, but found at least two devices, {} and {}!"
MAY_MIX = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.set_}
MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu}
READS = {torch.Tensor.tolist}
REMADE = {torch.tensor, torch.as_tensor, torch.asarray}
MAY_INDEX = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
"""Those whose index may be on another device than what is indexed: it is moved there."""
IS_CUDA, DEVICE, DATA = (getattr(torch.Tensor, name) for name in ("is_cuda", "device", "data"))
FRESH = {  # functions that make a tensor on `device=`, or on the CPU
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.linspace, torch.eye, torch.rand),
    *(torch.randn, torch.randint, torch.randperm, torch.tensor, torch.as_tensor, torch.scalar_tensor),
    *(torch.empty_strided, torch.from_numpy),
}


class VirtualGPUs(TorchFunctionMode):
    """`count` CUDA devices with `memory` bytes each, for all that runs inside the block."""

    waits: ClassVar = 0
    """How many times the host waited for what was copied, whichever GPUs: streams outlive a block."""

    def __init__(self, count: int, *, memory: int = GIB) -> None:
        super().__init__()
        self.count, self.memory = count, memory
        self.moves: Counter[tuple[str, str]] = Counter()
        """How many tensors went from one device to another, without those of no dimension."""
        self.pinned = 0
        """How many times memory of the host was pinned."""
        self._labels: dict[int, tuple[torch.UntypedStorage, int]] = {}

    @classmethod
    def wait(cls) -> None:
        """What an event's `synchronize` does."""
        cls.waits += 1

    # ---- the mode

    def __enter__(self) -> VirtualGPUs:
        self._patches = list(_patches(self))
        for patch in self._patches:
            patch.start()
        super().__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        for patch in reversed(self._patches):
            patch.stop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What PyTorch calls in place of each of its functions."""
        options = dict(kwargs or {})
        if func is torch.device:
            return _device(*args, **options)
        if func == DEVICE.__get__:
            return self.device_of(args[0])
        if func == IS_CUDA.__get__:
            return self.device_of(args[0]).type == "cuda"
        if func is torch.Tensor.pin_memory:
            self.pinned += 1
            return args[0]
        if func is torch.Tensor.is_pinned:
            return False
        if func in MOVES:
            return self._moved(func, *args, **options)
        if func in REMADE and isinstance(args[0], torch.Tensor):
            return self._remade(func, *args, **options)
        if func is torch.Tensor.numpy or func is torch.Tensor.__array__:
            self._raise_if_not_on_cpu(args[0])
        if func in READS and args[0].dim():
            self._count(self.device_of(args[0]), CPU)
        if func is torch._has_compatible_shallow_copy_type and self.device_of(args[0]) != self.device_of(args[1]):
            return False
        self.pinned += bool(options.pop("pin_memory", False))
        return self._computed(func, args, options)

    # ---- labels

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """The device that a tensor would be on."""
        with torch._C.DisableTorchFunction():
            real = tensor.device
            if real.type != "cpu" or tensor.layout != torch.strided:
                return real
            held = self._labels.get(tensor.untyped_storage()._cdata)
            return CPU if held is None else torch.device("cuda", held[1])

    def _label(self, tensor: torch.Tensor, device: torch.device) -> None:
        """The storage is kept, so that no other one comes to lie where it was and is taken for it."""
        with torch._C.DisableTorchFunction():
            if device.type == "cuda" and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                self._labels[storage._cdata] = (storage, self._number(device))

    def _number(self, device: torch.device) -> int:
        number = 0 if device.index is None else device.index
        if not 0 <= number < self.count:
            raise RuntimeError(f"CUDA error: invalid device ordinal {number}")
        return number

    # ---- what functions do

    def _moved(self, func: Any, tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """`.to()`, `.cuda()` and `.cpu()`: a copy where the device is another one."""
        if func is torch.Tensor.cpu:
            target: Any = CPU
        elif func is torch.Tensor.cuda:
            target, args = _device(args[0] if args else options.pop("device", 0) or 0), ()
            options.pop("non_blocking", None)
        else:
            target, args = self._target(args, options)
        before = self.device_of(tensor)
        wanted = (
            before if target is None else torch.device("cuda", self._number(target)) if _is_cuda(target) else target
        )
        if "meta" in (before.type, wanted.type):
            return tensor.to(wanted, *args, **options)
        if wanted == before:
            moved = tensor.to(*args, **options) if args or options else tensor
        else:
            moved = tensor.to(*args, **{**options, "copy": True}) if args or options else tensor.clone()
            if tensor.dim():
                self._count(before, wanted)
        self._label(moved, wanted)
        return moved

    def _count(self, before: torch.device, after: torch.device) -> None:
        if before != after and "meta" not in (before.type, after.type):
            self.moves[str(before), str(after)] += 1

    def _remade(self, func: Any, tensor: torch.Tensor, *, device: Any = None, dtype: Any = None) -> torch.Tensor:
        """`torch.tensor()` and its like of a tensor: on its own device where no other is said."""
        place = self.device_of(tensor) if device is None else _device(device)
        moved = self._moved(torch.Tensor.to, tensor.detach() if func is torch.tensor else tensor, place, dtype)
        if func is torch.tensor:
            moved = moved.clone()
            self._label(moved, place)
        return moved

    def _target(self, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[torch.device | None, tuple[Any, ...]]:
        """The device that `.to()` is asked for, and its other arguments."""
        options.pop("non_blocking", None)
        device = options.pop("device", None)
        if args and isinstance(args[0], torch.Tensor):
            return self.device_of(args[0]), (args[0].dtype, *args[2:])
        if args and isinstance(args[0], (str, int, torch.device)):
            device, args = args[0], args[1:]
        args = tuple(each for each in args if each is not None)
        if args and isinstance(args[-1], bool):  # non_blocking by position
            args = args[:-1]
        return None if device is None else _device(device), args

    def _computed(self, func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run on the CPU; what comes out is where what went in is, or on `device=`."""
        given = [each for each in tree_leaves((args, options)) if isinstance(each, torch.Tensor)]
        wanted = None if options.get("device") is None else _device(options["device"])
        if wanted is not None and _is_cuda(wanted):
            options["device"] = CPU
        place = self._place(func, given)
        if func is torch.Tensor.copy_ and args[1].dim():
            self._count(self.device_of(args[1]), self.device_of(args[0]))
        if func is torch.Tensor.__setitem__ and isinstance(args[2], torch.Tensor) and args[2].dim():
            self._count(self.device_of(args[2]), self.device_of(args[0]))
        if func in MAY_INDEX:
            for index in tree_leaves(args[1]):
                if isinstance(index, torch.Tensor) and index.dim():
                    self._count(self.device_of(index), self.device_of(args[0]))
        found = func(*args, **options)
        if wanted is None and func in FRESH and func is not torch.as_tensor:
            wanted = CPU
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and not any(each is other for other in given):
                self._label(each, place if wanted is None else wanted)
        return found

    def _place(self, func: Any, given: Iterable[torch.Tensor]) -> torch.device:
        """The one device of all these tensors. Raises RuntimeError for several, as CUDA does."""
        devices = [self.device_of(each) for each in given]
        counted = {
            str(device): device
            for device, each in zip(devices, given, strict=True)
            if device.type != "meta" and (each.dim() or device.type == "cuda")
        }
        if len(counted) > 1 and func not in MAY_MIX and func != DATA.__set__:
            raise RuntimeError(DIFFERENT.format(*sorted(counted)[:2]))
        return devices[0] if func in MAY_MIX and devices else next(iter(counted.values()), CPU)

    def _raise_if_not_on_cpu(self, tensor: torch.Tensor) -> None:
        if self.device_of(tensor).type == "cuda":
            raise TypeError(
                f"can't convert {self.device_of(tensor)} device type tensor to numpy. Use Tensor.cpu() first."
            )


def _device(device: Any, *index: int, **options: Any) -> torch.device:
    """A number is a GPU, as it is to PyTorch where there is one."""
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device, *index, **options)


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _patches(gpus: VirtualGPUs) -> Iterator[Any]:
    """What asks the driver, not a tensor."""

    class Stream:
        def __init__(self, *_device: object) -> None:
            """Nothing is done later."""

        def record_event(self) -> Any:
            return SimpleNamespace(synchronize=VirtualGPUs.wait)

        def wait_stream(self, _other: Stream) -> None:
            """What the other does is done."""

    total = SimpleNamespace(total_memory=gpus.memory, name="virtual", major=7, minor=5)
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: gpus.count,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "synchronize": lambda *_device: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_device: (gpus.memory, gpus.memory),
        "memory_reserved": lambda *_device: 0,
        "memory_allocated": lambda *_device: 0,
        "get_device_capability": lambda *_device: (7, 5),
        "get_device_name": lambda *_device: "virtual",
        "get_device_properties": lambda *_device: total,
        "is_bf16_supported": lambda *_any, **_options: False,
        "current_stream": lambda *_device: Stream(),
        "Stream": Stream,
        "stream": lambda _stream: nullcontext(),
    }
    for name, answer in answers.items():
        yield mock.patch.object(torch.cuda, name, answer)
    yield mock.patch.object(torch.Tensor, "record_stream", lambda _values, _stream: None)
