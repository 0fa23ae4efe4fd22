"""fairseq's dictionary, read-only."""

from __future__ import annotations

from hf_xlmr.tokenizer.dictionary import BOS, EOS, MASK, PAD, PAD_INDEX, SPECIAL_SYMBOLS, UNK, Dictionary

__all__ = ["BOS", "EOS", "MASK", "PAD", "PAD_INDEX", "SPECIAL_SYMBOLS", "UNK", "Dictionary"]
