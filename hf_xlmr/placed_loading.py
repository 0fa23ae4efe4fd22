"""A model folder on one device, or on the devices of a plan."""

from __future__ import annotations

from hf_xlmr.placement.placed_loading import load_placed

__all__ = ["load_placed"]
