"""Texts of unequal lengths in one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_xlmr.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["collate_tokens"]


def collate_tokens(
    values: Sequence[torch.Tensor],
    pad_idx: int = 1,
    eos_idx: int | None = None,
    left_pad: bool = False,
    move_eos_to_beginning: bool = False,
    pad_to_length: int | None = None,
    pad_to_multiple: int = 1,
    pad_to_bsz: int | None = None,
) -> torch.Tensor:
    """One tensor (batch, longest) of 1-D token tensors, padded on the right: fairseq.data.data_utils.collate_tokens.

    `pad_to_length` and `pad_to_bsz` are least sizes, `pad_to_multiple` rounds the length up. `move_eos_to_beginning`
    puts `eos_idx` (or each text's last token) first, for the input of a decoder. Raises InputError.
    """
    if not values or any(value.dim() != 1 for value in values):
        raise InputError("collate_tokens takes 1-D tensors, at least one")
    length = max(pad_to_length or 0, *(len(value) for value in values))
    length += -length % pad_to_multiple
    padded = values[0].new_full((max(pad_to_bsz or 0, len(values)), length), pad_idx)
    for row, value in zip(padded, values, strict=False):
        text = _eos_first(value, eos_idx) if move_eos_to_beginning else value
        row[length - len(text) :].copy_(text) if left_pad else row[: len(text)].copy_(text)
    return padded


def _eos_first(value: torch.Tensor, eos_idx: int | None) -> torch.Tensor:
    moved = value.roll(1)
    if eos_idx is not None:
        moved[0] = eos_idx
    return moved
