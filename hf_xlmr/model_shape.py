"""The weights of an XLM-R by name, shape and block, from its configuration."""

from __future__ import annotations

from hf_xlmr.conversion.preview import shape_of
from hf_xlmr.model.families import FAMILIES, Task
from hf_xlmr.model.model_shape import (
    DTYPE_BYTES,
    HEAD_PARTS,
    POSITION_OFFSET,
    Block,
    ModelShape,
    Tensor,
    shape_of_config,
)

__all__ = [
    "DTYPE_BYTES",
    "FAMILIES",
    "HEAD_PARTS",
    "POSITION_OFFSET",
    "Block",
    "ModelShape",
    "Task",
    "Tensor",
    "shape_of",
    "shape_of_config",
]
