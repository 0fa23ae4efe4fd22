"""Weights in safetensors files: mapped if aligned, else read into aligned memory, so that products round alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.memory import CPU
from hf_xlmr.model.safetensors_files import LFS_POINTER, POINTER_TOLD, raise_if_not_text

if TYPE_CHECKING:
    import torch

# Of a weight's first byte. From other places MKL adds up in another order: the last bits of a product differ.
ALIGNMENT: Final = 64
# What Transformers 5.0 to 5.7 saves a LayerNorm's weight and bias as (TensorFlow's BERT); each release reads both.
FORMER_NAMES: Final = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
BAND_BYTES: Final = 1 << 26  # read at a time, so that no weight is in memory twice


def present_name(name: str) -> str:
    """The name of a weight in its class, for one under which some release of Transformers saves it."""
    for former, present in FORMER_NAMES.items():
        if name == former or name.endswith(f".{former}"):
            return name.removesuffix(former) + present
    return name


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The weights of `file`, mapped. Raises InputError for a Git LFS pointer, IntegrityError for damage."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device=CPU) as weights:
            yield weights
    except SafetensorError as error:
        with file.open("rb") as start:
            if start.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(POINTER_TOLD.format(file)) from error
        raise_if_not_text(file.parent)
        raise IntegrityError(f"{file} is damaged: {error}") from error


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight is: a safetensors file, and its name there."""

    file: Path
    name: str

    def mapped(self) -> torch.Tensor:
        """The weight, mapped from its file, which is opened again so that what was read before can leave memory."""
        with opened(self.file) as weights:
            tensor: torch.Tensor = weights.get_tensor(self.name)
        return tensor

    def on_cpu(self, dtype: torch.dtype, *, is_own: bool = False) -> torch.Tensor:
        """The weight in `dtype`, aligned; `is_own` if it may not stay mapped from its file.

        Its bits are those of a cast of the whole. Raises IntegrityError.
        """
        import torch

        mapped = self.mapped()
        if not is_own and mapped.dtype == dtype and mapped.data_ptr() % ALIGNMENT == 0:
            return mapped
        if not mapped.shape:
            return mapped.to(dtype, copy=True)
        read = torch.empty(mapped.shape, dtype=dtype)
        rows = max(1, BAND_BYTES // max(1, mapped[:1].nbytes))
        if rows >= len(read):
            return read.copy_(mapped)
        del mapped
        for start in range(0, len(read), rows):
            read[start : start + rows] = self.mapped()[start : start + rows]
        return read


class OffloadedWeights(Mapping[str, "torch.Tensor"]):
    """What accelerate's hooks fetch when a module's turn comes: weights kept on the CPU, and weights on disk."""

    def __init__(
        self,
        kept: Mapping[str, torch.Tensor],
        on_disk: Mapping[str, StoredWeight],
        *,
        dtype: torch.dtype,
        is_for_cpu: bool,
    ) -> None:
        """Give weights in `dtype`; what is moved to another device than the CPU needs no alignment."""
        self._kept, self._on_disk = kept, on_disk
        self._dtype, self._is_for_cpu = dtype, is_for_cpu

    def __getitem__(self, name: str) -> torch.Tensor:
        """The weight of that name, read again if it is on disk. Raises KeyError, IntegrityError."""
        if name in self._kept:
            return self._kept[name]
        weight = self._on_disk[name]
        return weight.on_cpu(self._dtype) if self._is_for_cpu else weight.mapped().to(self._dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._kept or name in self._on_disk

    def __iter__(self) -> Iterator[str]:
        yield from self._kept
        yield from self._on_disk

    def __len__(self) -> int:
        return len(self._kept) + len(self._on_disk)
