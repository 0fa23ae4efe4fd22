"""The program with FSDP over processes on CPUs, which accelerate shares weights out among for GPUs alone.

`accelerate launch --config_file FSDP.yaml tests/fsdp_on_cpu.py finetune ...`; all else is as with GPUs.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_xlmr.cli.program import main


def _backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    """Gloo, which moves tensors between CPUs, under the name of a kind for which accelerate knows FSDP."""
    return "gloo", DistributedType.MULTI_GPU


def _set_device(state: PartialState) -> None:
    state.device = torch.device("cpu")


PartialState._prepare_backend = _backend
PartialState.set_device = _set_device

if __name__ == "__main__":
    sys.exit(main())
