"""What is done between Trainer's steps: a progress is advanced, and checkpoints are recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TypeAlias

from transformers import TrainerCallback, TrainerState

from hf_xlmr.progress import Progress, ProgressTask

Logs: TypeAlias = Mapping[str, float] | None


class ProgressCallback(TrainerCallback):
    """Steps and losses as a Progress shows them; the first process's alone."""

    def __init__(self, progress: Progress) -> None:
        """Tell `progress`."""
        self._progress = progress
        self._stack = ExitStack()
        self._bar: ProgressTask | None = None
        self._loss = ""
        self._done = 0

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        """Begin a bar."""
        if state.is_world_process_zero:
            self._bar = self._stack.enter_context(self._progress.task("training", total=state.max_steps, unit="steps"))

    def on_log(self, args: object, state: object, control: object, logs: Logs = None, **_: object) -> None:
        """Remember the loss."""
        if logs and "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.4f}"

    def on_step_end(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        """Move the bar on, at first over all that an earlier run did."""
        if self._bar is not None:
            self._bar.advance(state.global_step - self._done, note=self._loss)
            self._done = state.global_step

    def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
        """End the bar."""
        self._stack.close()


class CheckpointCallback(TrainerCallback):
    """Calls `record` with the number of steps when a checkpoint was written."""

    def __init__(self, record: Callable[[int], None]) -> None:
        """Keep what is called."""
        self._record = record

    def on_save(self, args: object, state: TrainerState, control: object, **_: object) -> None:
        """Record the checkpoint."""
        self._record(state.global_step)
