"""What Trainer takes of a machine: one GPU for a process, and bfloat16 if there is a device for it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from hf_xlmr.errors import InputError

if TYPE_CHECKING:
    from transformers import TrainingArguments

NO_BFLOAT16: Final = (
    "bf16=True: this machine has no GPU that computes in bfloat16; leave it out, or give cpu=True as well, which "
    "computes in bfloat16 on the CPU"
)


def check_bfloat16(*, bf16: bool, cpu: bool) -> None:
    """Raise InputError if bfloat16 is wanted, without `cpu`, and no device computes in it.

    Trainer refuses that too, once the data are read and the model is found. A processor that only emulates it is named
    in the log.
    """
    if bf16 and not cpu:
        from transformers.utils.import_utils import is_torch_bf16_gpu_available

        if not is_torch_bf16_gpu_available():
            raise InputError(NO_BFLOAT16)
    if bf16:
        _warn_once(cpu=cpu)


@lru_cache
def _warn_once(*, cpu: bool) -> None:
    """A training and its scoring both ask."""
    import torch

    from hf_xlmr.model.precision import warn_of_emulation

    if cpu or torch.cuda.is_available():
        warn_of_emulation(torch.bfloat16, torch.device("cpu" if cpu else "cuda"))


def on_one_device(arguments: TrainingArguments) -> None:
    """Let a process use one GPU at most: Trainer would wrap in DataParallel, and multiply the batch by all it sees."""
    # private: `n_gpu` only reads it, and CUDA_VISIBLE_DEVICES would speak for all of the process
    arguments._n_gpu = min(arguments.n_gpu, 1)
