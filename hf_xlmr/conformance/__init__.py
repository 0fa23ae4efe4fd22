"""Compares runtimes with the answers that fairseq gives, and finds out what they get wrong."""

from __future__ import annotations

from hf_xlmr.conformance.comparing import compare
from hf_xlmr.conformance.report import Conformance, ProbeClass

__all__ = ["Conformance", "ProbeClass", "compare"]
