"""Which layer goes on which device, decided before anything is read."""

from __future__ import annotations

from hf_xlmr.placement.planner import (
    DEFAULT_TOKENS,
    DeviceShare,
    DoesNotFit,
    Placement,
    activation_bytes,
    check_device_map,
    lay_out,
    place_of,
    plan_placement,
)

__all__ = [
    "DEFAULT_TOKENS",
    "DeviceShare",
    "DoesNotFit",
    "Placement",
    "activation_bytes",
    "check_device_map",
    "lay_out",
    "place_of",
    "plan_placement",
]
