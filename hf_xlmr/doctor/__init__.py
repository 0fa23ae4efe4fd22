"""Finds the faults of a model folder, and fixes those that can be fixed safely."""

from __future__ import annotations

from hf_xlmr.doctor.examination import CHECKS, Check, Diagnosis, Finding, examine

__all__ = ["CHECKS", "Check", "Diagnosis", "Finding", "examine"]
