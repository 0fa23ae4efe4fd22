"""From a file of texts to a folder of features."""

from __future__ import annotations

from hf_xlmr.features.bulk_extraction import ExtractionReport, extract

__all__ = ["ExtractionReport", "extract"]
