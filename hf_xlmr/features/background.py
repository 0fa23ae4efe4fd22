"""Work that goes on in a thread of its own: ahead of where its results are used, or behind where they are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["handed_over", "prefetched"]

Item = TypeVar("Item")
POLL_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 2.0  # with a thread that is unwanted: it may wait for a pipe that says nothing


class _Last(NamedTuple):
    """The end of the items, and the error that ended them early."""

    error: BaseException | None


def prefetched(items: Iterable[Item], *, depth: int) -> Generator[Item, None, None]:
    """The same items in order, made by a thread that is at most `depth` of them ahead.

    An error comes after the items before it. Closing the generator ends the thread, when its item is made.
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
        thread.join(PATIENCE_SECONDS)


class _Abandoned(Exception):
    """Whoever made the items will make no more."""


@contextmanager
def handed_over(consume: Callable[[Iterator[Item]], None], *, depth: int) -> Iterator[Callable[[Item], None]]:
    """A function that hands items to `consume`, which works in a thread, at most `depth` of them behind.

    Leaving the block waits for it. Where the block ends with an error, so do the items that `consume` is given, after
    those that were handed over. Its own errors are raised by the function, or when the block ends.
    """
    consumer = _Consumer(consume, depth)
    try:
        yield consumer.take
    except BaseException:
        consumer.end(_Abandoned())
        raise
    consumer.end(None)
    consumer.raise_if_failed()


class _Consumer(Generic[Item]):
    """A thread with a queue before it."""

    def __init__(self, consume: Callable[[Iterator[Item]], None], depth: int) -> None:
        self._consume = consume
        self._items: queue.Queue[Item | _Last] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="hand over", daemon=True)
        self._thread.start()

    def take(self, item: Item) -> None:
        """Put an item into the queue. Raises what the consumer raised."""
        self._put(item)
        self.raise_if_failed()

    def end(self, error: BaseException | None) -> None:
        """Tell that this was all, and wait for the thread."""
        self._put(_Last(error))
        self._thread.join()

    def raise_if_failed(self) -> None:
        """Raise what the consumer raised."""
        if self._error is not None:
            raise self._error

    def _put(self, item: Item | _Last) -> None:
        while self._thread.is_alive():
            try:
                self._items.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return

    def _received(self) -> Iterator[Item]:
        while not isinstance(item := self._items.get(), _Last):
            yield item
        if item.error is not None:
            raise item.error

    def _work(self) -> None:
        try:
            self._consume(self._received())
        except _Abandoned:
            pass
        except BaseException as caught:  # noqa: BLE001 - it is raised again where the items are made
            self._error = caught
