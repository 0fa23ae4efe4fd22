"""A model folder onto the Hub: checked, planned, then sent so that a repository is never half filled."""

from __future__ import annotations

from hf_xlmr.publishing.pushing import PushPlan, PushReport, Standing, plan_push, push

__all__ = ["PushPlan", "PushReport", "Standing", "plan_push", "push"]
