"""Features of any number of texts, in order."""

from __future__ import annotations

from hf_xlmr.features.extraction import FeatureExtractor, Features

__all__ = ["FeatureExtractor", "Features"]
