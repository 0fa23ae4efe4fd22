"""Completes a folder of one's own Trainer with what the converted model that it was trained from has."""

from __future__ import annotations

from hf_xlmr.tasks.fitting.adopting import Adoption, adopt, adopting_callback

__all__ = ["Adoption", "adopt", "adopting_callback"]
