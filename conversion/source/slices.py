"""A run of bytes in a file: a whole file, or a member of an uncompressed tar archive where it is."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileSlice", "SliceReader"]


@dataclass(frozen=True)
class FileSlice:
    """`length` bytes of the file `path`, from `offset` on; `name` is what messages call it."""

    path: Path
    offset: int
    length: int
    name: str

    @classmethod
    def whole(cls, path: Path) -> FileSlice:
        """All bytes of the file at `path`. Raises OSError."""
        return cls(path=path, offset=0, length=path.stat().st_size, name=str(path))

    def read(self, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start` on (to the end for None), fewer if the slice ends. Raises OSError."""
        wanted = self.length - start if length is None else min(length, self.length - start)
        if wanted <= 0 or start < 0:
            return b""
        parts: list[bytes] = []
        with self.path.open("rb", buffering=0) as file:
            while wanted > 0 and (part := os.pread(file.fileno(), wanted, self.offset + start)):
                parts.append(part)  # one call of the system gives 2 GiB at most
                start, wanted = start + len(part), wanted - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def blocks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """All bytes in order, `size` at a time. Raises OSError."""
        with self.open() as reader:
            while block := reader.read(size):
                yield block

    def open(self) -> SliceReader:
        """A seekable binary reader that sees only this slice. Raises OSError."""
        return SliceReader(self)


class SliceReader(io.RawIOBase):
    """A read-only file over a FileSlice; wrap it in io.BufferedReader for small reads."""

    def __init__(self, part: FileSlice) -> None:
        """Open the file under `part`. Raises OSError."""
        super().__init__()
        self._part = part
        self._file = part.path.open("rb", buffering=0)
        self._position = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the slice; positions count from its start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._part.length}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """The position within the slice."""
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer
        """Fill `buffer` with what is left of the slice, at most."""
        wanted = min(len(buffer), max(self._part.length - self._position, 0))
        if wanted == 0:
            return 0
        count = os.preadv(self._file.fileno(), [memoryview(buffer)[:wanted]], self._part.offset + self._position)
        self._position += count
        return count

    def close(self) -> None:
        """Close the file beneath."""
        if not self.closed:
            self._file.close()
        super().close()
