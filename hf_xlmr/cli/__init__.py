"""The program `hf-xlmr`: one module per group of commands, and what they print."""

from __future__ import annotations

from hf_xlmr.cli.program import app, main, run

__all__ = ["app", "main", "run"]
