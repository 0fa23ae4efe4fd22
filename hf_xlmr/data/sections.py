"""A part of a file; if its end is not known, in portions that grow: a look at its beginning costs little."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Final

__all__ = ["opened_part"]

FIRST_BYTES: Final = 1 << 10
BLOCK: Final = 1 << 20


def opened_part(file: IO[bytes], start: int = 0, end: int | None = None, *, most: int = BLOCK) -> IO[bytes]:
    """The bytes of an unbuffered `file` from `start` up to `end`, buffered; of the end of this, `file` is closed."""
    if start:
        file.seek(start)
    return io.BufferedReader(_Part(file.read, file.close, None if end is None else end - start, most), most)


class _Part(io.RawIOBase):
    """What `read` gives, up to so many bytes."""

    def __init__(self, read: Callable[[int], bytes], close: Callable[[], object], left: int | None, most: int) -> None:
        self._read, self._close, self._left, self._most = read, close, left, most
        self._portion = min(FIRST_BYTES if left is None else most, most)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._portion, len(buffer) if self._left is None else self._left)
        data = self._read(wanted) if wanted else b""
        buffer[: len(data)] = data
        self._portion = min(2 * self._portion, self._most)
        if self._left is not None:
            self._left -= len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()
