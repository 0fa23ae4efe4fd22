"""fairseq's exact tokenization. Tokenizers that earlier versions saved import it from here."""

from __future__ import annotations

from hf_xlmr.tokenizer.tokenization import ExactTokenizer, text_of_ids, text_of_symbols

__all__ = ["ExactTokenizer", "text_of_ids", "text_of_symbols"]
