"""Foreign code that waits for a network, done where Ctrl-C still arrives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from threading import Thread
from typing import Final, TypeVar

__all__ = ["interruptible"]

Result = TypeVar("Result")

HEARD_AFTER: Final = 0.2  # seconds; Windows hears Ctrl-C only between waits


def interruptible(work: Callable[[], Result]) -> Result:
    """What `work` gives or raises; KeyboardInterrupt is raised at once, also while it waits in compiled code.

    Python hears signals in its main thread alone, and there not before compiled code returns. After an interruption
    `work` may go on in its thread, which does not hold the program when it ends; what hf_xet sends is given up.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again where the result is waited for
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(HEARD_AFTER)
    except KeyboardInterrupt:
        # private: huggingface_hub gives up hf_xet where its own call is interrupted, in the main thread alone, which
        # hears nothing while compiled code runs; nothing public ends what hf_xet then tries again for minutes
        with suppress(ImportError, AttributeError):
            import_module("huggingface_hub.utils._xet").abort_xet_session()
        raise
    if errors:
        raise errors[0]
    return results[0]
