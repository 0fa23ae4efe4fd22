"""Work that goes on in a thread of its own while its results are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Final, NamedTuple, TypeVar

__all__ = ["prefetched"]

Item = TypeVar("Item")
POLL_SECONDS: Final = 0.1


class _Last(NamedTuple):
    """The end of the items, and the error that ended them early."""

    error: BaseException | None


def prefetched(items: Iterable[Item], *, depth: int) -> Generator[Item, None, None]:
    """The same items in order, made by a thread that is at most `depth` of them ahead.

    An error comes after the items before it. Closing the generator ends the thread.
    """
    made: queue.Queue[Item | _Last] = queue.Queue(maxsize=depth)
    is_unwanted = threading.Event()

    def put(item: Item | _Last) -> bool:
        while not is_unwanted.is_set():
            try:
                made.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as caught:  # noqa: BLE001 - it is raised again where the items are used
            error = caught
        put(_Last(error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _Last):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        is_unwanted.set()
        thread.join()
