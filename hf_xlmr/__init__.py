"""XLM-R out of fairseq and into Transformers, exactly.

>>> from hf_xlmr import XLMR
>>> xlmr = XLMR.from_pretrained("demo").eval()
>>> xlmr.extract_features(xlmr.encode("Hello world!")).shape
torch.Size([1, 11, 64])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_xlmr.features.extraction import FeatureExtractor
    from hf_xlmr.hub_interface.batching import collate_tokens
    from hf_xlmr.hub_interface.xlmr import XLMR
    from hf_xlmr.tokenizer.tokenization import ExactTokenizer
    from hf_xlmr.tokenizer.transformers_tokenizer import XLMRTokenizer

__all__ = ["XLMR", "ExactTokenizer", "FeatureExtractor", "XLMRTokenizer", "__version__", "collate_tokens"]

__version__ = "0.1.0"

_HOMES = {
    "XLMR": "hub_interface.xlmr",
    "ExactTokenizer": "tokenizer.tokenization",
    "FeatureExtractor": "features.extraction",
    "XLMRTokenizer": "tokenizer.transformers_tokenizer",
    "collate_tokens": "hub_interface.batching",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
