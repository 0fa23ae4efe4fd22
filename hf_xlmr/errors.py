"""Every error that hf_xlmr raises on purpose, grouped by who can fix the cause."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "NO_ROOM",
    "HfXlmrError",
    "InputAssertionError",
    "InputAttributeError",
    "InputError",
    "InputIndexError",
    "InputKeyError",
    "InputNotImplementedError",
    "InputRuntimeError",
    "InputTypeError",
    "InputValueError",
    "IntegrityError",
    "UnsupportedCheckpoint",
    "WeightsMismatch",
    "as_named",
    "first_of",
    "in_words",
    "one_line",
    "printable",
    "told_plainly",
]

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # of a disk, a user's share of it, or a process
LONGEST_SHOWN = 20_000  # characters of a message: a name in a file can be as long as the file


class HfXlmrError(Exception):
    """The root of the error tree; `exit_code` is what the program ends with."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the message and the fields, whatever `__init__` takes: errors come from other processes, too."""
        return _restored, (type(self), self.args, self.__dict__)


class InputError(HfXlmrError):
    """A fault that the user can fix: a wrong path, dictionary or option."""

    exit_code = 2


class InputAssertionError(InputError, AssertionError):
    """One that fairseq raises as AssertionError, so that code written for it catches it."""


class InputAttributeError(InputError, AttributeError):
    """One that fairseq raises as AttributeError."""


class InputIndexError(InputError, IndexError):
    """One that fairseq raises as IndexError."""


class InputKeyError(InputError, KeyError):
    """One that fairseq raises as KeyError."""

    __str__ = Exception.__str__  # KeyError would show the sentence in quotes


class InputNotImplementedError(InputError, NotImplementedError):
    """One that fairseq raises as NotImplementedError."""


class InputRuntimeError(InputError, RuntimeError):
    """One that fairseq raises as RuntimeError."""


class InputTypeError(InputError, TypeError):
    """One that fairseq raises as TypeError."""


class InputValueError(InputError, ValueError):
    """One that fairseq raises as ValueError."""


class IntegrityError(HfXlmrError):
    """Damage, or a result that must not be trusted."""

    exit_code = 1


class UnsupportedCheckpoint(InputError):
    """A checkpoint that Transformers cannot express; `reasons` holds every one of them."""

    def __init__(self, reasons: Sequence[str], *, hint: str = "") -> None:
        """Carry all `reasons`, and a `hint` for what would work instead."""
        self.reasons = tuple(reasons)
        self.hint = hint
        listed = "; ".join(self.reasons)
        super().__init__(f"Transformers cannot express this checkpoint: {listed}.{' ' + hint if hint else ''}")


class WeightsMismatch(IntegrityError):
    """Names or shapes that do not add up; every one is listed in the fields."""

    def __init__(
        self,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        wrong_shape: Sequence[str] = (),
    ) -> None:
        """Carry the names of weights that are missing, unexpected or of the wrong shape."""
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.wrong_shape = tuple(wrong_shape)
        groups = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.wrong_shape))
        told = [f"{label}: {', '.join(names)}" for label, names in groups if names]
        super().__init__(f"the weights do not add up ({'; '.join(told)})")


def _restored(kind: type[HfXlmrError], args: tuple[object, ...], fields: dict[str, object]) -> HfXlmrError:
    """An error as it was pickled."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def printable(text: str) -> str:
    """`text` with what a terminal would obey or cannot show spelled out, line ends too: names come out of files."""
    cut = f" ... ({len(text):,} characters)" if len(text) > LONGEST_SHOWN else ""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:LONGEST_SHOWN]) + cut


def one_line(error: Exception) -> str:
    """The beginning of what an error of others' code says, on one line; the name of its class if it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def first_of(names: Sequence[object], most: int) -> str:
    """The first `most` of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


@contextmanager
def as_named(place: Path | str, name: str) -> Iterator[None]:
    """Say `name` for a `place` that the user has never seen (a cache, a draft) in our errors and the system's."""
    try:
        yield
    except (HfXlmrError, OSError) as error:
        hidden = str(place)
        error.args = tuple(each.replace(hidden, name) if isinstance(each, str) else each for each in error.args)
        if isinstance(error, OSError):
            for field in ("filename", "filename2"):
                path = getattr(error, field)
                if isinstance(path, (str, os.PathLike)):
                    setattr(error, field, str(path).replace(hidden, name))
        raise


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn the system's errors into errors of hf_xlmr, as `in_words` does."""
    try:
        yield
    except OSError as error:
        raise in_words(error) from error


def in_words(error: OSError) -> InputError | IntegrityError:
    """The system's error as an error of hf_xlmr: a bad block is damage, everything else the user can fix."""
    place = (error.filename2 if error.errno in NO_ROOM else None) or error.filename  # of a copy the second is written
    where = f" ({place})" if place else ""
    if error.errno == errno.EIO:
        return IntegrityError(f"the disk could not be read{where}: {error.strerror}")
    return InputError(f"{error.strerror or error}{where}")
