"""From a file of texts to a folder of features."""

from __future__ import annotations

from hf_xlmr.features.bulk_extraction import ExtractionReport, extract
from hf_xlmr.features.on_ray import RayCluster, extract_on_ray

__all__ = ["ExtractionReport", "RayCluster", "extract", "extract_on_ray"]
