"""What is wrong with a model folder, and its fixes."""

from __future__ import annotations

from hf_xlmr.doctor.examination import CHECKS, Check, Diagnosis, Finding, examine

__all__ = ["CHECKS", "Check", "Diagnosis", "Finding", "examine"]
