"""Where the tests find their files."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CHECKOUT = TESTS.parent
FIXTURES = TESTS / "fixtures"
SHARED = CHECKOUT.parent / "shared"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared, with larger samples, is absent")
SHARED_XMOD = SHARED / "fairseq" / "v12xmod"
SHARED_CHECKPOINTS = tuple(path for path in sorted((SHARED / "fairseq").glob("v*")) if path != SHARED_XMOD)
"""Checkpoints that fairseq trained, with its answers, of networks that are XLM-R's (X-MOD's are another class)."""

RUNS_RANKERS = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 14)
"""Transformers 5.0 to 5.13 build XLMRobertaForMultipleChoice without the pooler that it runs: hf_xlmr refuses it."""
