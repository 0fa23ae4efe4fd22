"""Publishes a model folder on the Hub: checks it, plans the push, and sends it so that no repository is half filled."""

from __future__ import annotations

from hf_xlmr.model.provenance import Standing
from hf_xlmr.publishing.pushing import PushPlan, PushReport, plan_push, push

__all__ = ["PushPlan", "PushReport", "Standing", "plan_push", "push"]
