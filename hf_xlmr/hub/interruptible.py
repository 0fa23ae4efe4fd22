"""Runs code of other libraries that waits for a network so that Ctrl-C still interrupts it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from threading import Thread
from typing import Final, TypeVar

Result = TypeVar("Result")

HEARD_AFTER: Final = 0.2  # seconds; Windows handles Ctrl-C only between waits


def interruptible(work: Callable[[], Result]) -> Result:
    """Return or raise what `work` does; Ctrl-C raises KeyboardInterrupt at once, also while compiled code waits.

    Python handles signals only in its main thread, and only after compiled code returns. After an interruption `work`
    may continue in its thread, which does not keep the program from ending; hf_xet's transfers are cancelled.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits for the result
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(HEARD_AFTER)
    except KeyboardInterrupt:
        # private: huggingface_hub cancels hf_xet only if its call is interrupted in the main thread, which handles no
        # signal while compiled code runs; no public function ends hf_xet's retries, which take minutes
        with suppress(ImportError, AttributeError):
            import_module("huggingface_hub.utils._xet").abort_xet_session()
        raise
    if errors:
        raise errors[0]
    return results[0]
