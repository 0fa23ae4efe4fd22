"""A folder's tokenizer as AutoTokenizer makes it, with nothing fetched and no code of the folder run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_xlmr.errors import IntegrityError

__all__ = ["plain_tokenizer"]


def plain_tokenizer(folder: Path) -> Any:
    """What AutoTokenizer gives for `folder`. Raises IntegrityError where it gives nothing."""
    from transformers import AutoTokenizer

    with _damage_told(folder), _quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    """Name the folder where its tokenizer does not load: tokenizers raises Exception, and panics beside it."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        reason = " ".join(str(error).split())
        raise IntegrityError(f"AutoTokenizer does not load the tokenizer of {folder} ({reason:.300})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without advice; what matters of it is looked at here."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
