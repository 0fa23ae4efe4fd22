"""Texts of unequal lengths in one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_xlmr.errors import (
    InputAssertionError,
    InputAttributeError,
    InputError,
    InputIndexError,
    InputTypeError,
    InputValueError,
)

if TYPE_CHECKING:
    import torch


class NoMultiple(InputError, ZeroDivisionError):
    """A length that is to be a multiple of 0."""


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
    puts `eos_idx` (or each text's last token) first, for the input of a decoder. Raises InputError, of the kind that
    fairseq raises: ValueError for no texts at all, AssertionError for 2-D tensors.
    """
    _raise_if_not_texts(values)
    if pad_to_multiple == 0:
        raise NoMultiple("pad_to_multiple=0: every length is rounded up to a multiple of it; 1 leaves it as it is")
    if move_eos_to_beginning and not all(map(len, values)):
        raise InputIndexError("move_eos_to_beginning=True needs texts of at least one token, and one is empty")
    length = max(pad_to_length or 0, *(len(value) for value in values))
    length += -length % pad_to_multiple
    padded = values[0].new_full((max(pad_to_bsz or 0, len(values)), length), pad_idx)
    for row, value in zip(padded, values, strict=False):
        text = value.roll(1) if move_eos_to_beginning else value
        if move_eos_to_beginning and eos_idx is not None:
            text[0] = eos_idx
        row[length - len(text) :].copy_(text) if left_pad else row[: len(text)].copy_(text)
    return padded


def _raise_if_not_texts(values: Sequence[torch.Tensor]) -> None:
    """Raise InputError, of the kind that fairseq raises, for what is not a sequence of 1-D tensors."""
    if not hasattr(values, "__len__"):
        raise InputTypeError(f"collate_tokens takes a list of 1-D tensors, not {type(values).__name__}")
    if not len(values):
        raise InputValueError("collate_tokens takes 1-D tensors, at least one: the list is empty")
    for index, value in enumerate(values):
        if not hasattr(value, "dim"):
            raise InputAttributeError(f"collate_tokens takes 1-D tensors; text {index} is {type(value).__name__}")
        if value.dim() != 1:
            kind = InputAssertionError if value.dim() else InputIndexError
            raise kind(f"collate_tokens takes 1-D tensors; text {index} has the shape {list(value.shape)}")
