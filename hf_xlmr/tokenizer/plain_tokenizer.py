"""A folder's tokenizer as AutoTokenizer makes it, with nothing fetched and no code of the folder run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_xlmr.errors import HfXlmrError, IntegrityError
from hf_xlmr.tokenizer.tokenizer_growth import raise_if_texts_explode

__all__ = ["plain_tokenizer", "tokenizer_damage_told"]


def plain_tokenizer(folder: Path) -> Any:
    """What AutoTokenizer gives for `folder`, whose rules are held against bounds before any of them runs.

    Raises IntegrityError if it gives nothing, or may make a text long without measure.
    """
    from transformers import AutoTokenizer

    raise_if_texts_explode(folder)
    with tokenizer_damage_told(folder), _quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def tokenizer_damage_told(folder: Path) -> Iterator[None]:
    """Name the folder whose tokenizer cannot be used: tokenizers raises Exception, or panics."""
    try:
        yield
    except (HfXlmrError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(f"AutoTokenizer does not take the tokenizer of {folder} ({reason:.300})") from error


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
