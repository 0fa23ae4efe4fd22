"""fairseq's exact tokenization as a tokenizer of Transformers."""

from __future__ import annotations

from hf_xlmr.tokenizer.transformers_tokenizer import XLMRTokenizer

__all__ = ["XLMRTokenizer"]
