"""Waiting in tests: a watchdog stops a hang and is no measure, since any machine may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "until"]

PATIENCE = 600  # seconds: over ten times what the slowest process of the tests takes beside busy ones


def until(condition: Callable[[], object], *, otherwise: str) -> None:
    """Return as soon as `condition` holds; after PATIENCE it is an AssertionError."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)
