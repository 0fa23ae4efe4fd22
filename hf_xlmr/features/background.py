"""Runs work in its own thread: ahead of the code that uses its results, or behind the code that makes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, NamedTuple, TypeVar

__all__ = ["handed_over", "prefetched"]

Item = TypeVar("Item")
POLL_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 2.0  # for a thread that is no longer needed, which may wait for a silent pipe


class _Last(NamedTuple):
    """The mark after the last item, and the error that ended the items early, if any."""

    error: BaseException | None


class _Channel(Generic[Item]):
    """A queue between two threads: one puts items in, the other iterates over them, and may close it before the end."""

    def __init__(self, depth: int, *, idle: Callable[[], None] | None = None) -> None:
        self._items: queue.Queue[Item | _Last] = queue.Queue(maxsize=depth)
        self._is_closed = threading.Event()
        self._idle = idle

    def put(self, item: Item | _Last) -> bool:
        """Put `item` in as soon as there is room; return False if the other thread closed the queue before that."""
        while not self._is_closed.is_set():
            try:
                self._items.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def close(self) -> None:
        """Make `put` refuse further items."""
        self._is_closed.set()

    def __iter__(self) -> Iterator[Item]:
        while not isinstance(item := self._next(), _Last):
            yield item
        if item.error is not None:
            raise item.error

    def _next(self) -> Item | _Last:
        while True:
            try:
                return self._items.get(timeout=None if self._idle is None else POLL_SECONDS)
            except queue.Empty:
                if self._idle is not None:
                    self._idle()


def prefetched(
    items: Iterable[Item], *, depth: int, idle: Callable[[], None] | None = None
) -> Generator[Item, None, None]:
    """Yield the same items in order, made by a thread that is at most `depth` items ahead.

    An error is raised after the items before it. Closing the generator ends the thread after its current item. While
    an item is not there yet, `idle` is called again and again.
    """
    channel = _Channel[Item](depth, idle=idle)

    def work() -> None:
        try:
            last = _Last(None) if all(map(channel.put, items)) else None
        except BaseException as caught:  # noqa: BLE001 - raised again in the thread that uses the items
            last = _Last(caught)
        if last is not None:
            channel.put(last)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        yield from channel
    finally:
        channel.close()
        thread.join(PATIENCE_SECONDS)


class _Abandoned(Exception):
    """The code that makes the items ended with an error."""


@contextmanager
def handed_over(consume: Callable[[Iterator[Item]], None], *, depth: int) -> Iterator[Callable[[Item], None]]:
    """A function that hands items to `consume`, which works in a thread, at most `depth` items behind.

    Leaving the block waits for `consume`. If the block ends with an error, the items of `consume` also end with one,
    after those that were handed over. The function, or the end of the block, raises the errors of `consume`.
    """
    channel, failures = _Channel[Item](depth), queue.SimpleQueue[BaseException]()

    def work() -> None:
        try:
            consume(iter(channel))
        except _Abandoned:
            pass
        except BaseException as caught:  # noqa: BLE001 - raised again in the thread that makes the items
            failures.put(caught)
        finally:
            channel.close()

    def hand_over(item: Item) -> None:
        channel.put(item)
        if not failures.empty():
            raise failures.get()

    thread = threading.Thread(target=work, name="hand over", daemon=True)
    thread.start()
    try:
        yield hand_over
    except BaseException:
        channel.put(_Last(_Abandoned()))
        thread.join()
        raise
    channel.put(_Last(None))
    thread.join()
    if not failures.empty():
        raise failures.get()
