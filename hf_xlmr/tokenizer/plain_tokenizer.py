"""Loads a folder's tokenizer with AutoTokenizer, without a download and without running code of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_xlmr.errors import HfXlmrError, IntegrityError
from hf_xlmr.tokenizer.tokenizer_growth import raise_if_texts_explode


def plain_tokenizer(folder: Path, *, is_checked: bool = False) -> Any:
    """Load the tokenizer of `folder` with AutoTokenizer, after a check of its rules against limits.

    `is_checked` is for whoever has made this check (`raise_if_texts_explode`).

    Raises IntegrityError if AutoTokenizer cannot load it, or if its rules may make a text too long.
    """
    from transformers import AutoTokenizer

    if not is_checked:
        raise_if_texts_explode(folder)
    with tokenizer_damage_told(folder), quiet_transformers():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def tokenizer_damage_told(folder: Path) -> Iterator[None]:
    """Raise IntegrityError, which names the folder, for any error of tokenizers, which raises Exception or panics."""
    try:
        yield
    except (HfXlmrError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())
        raise IntegrityError(f"AutoTokenizer cannot use the tokenizer of {folder} ({reason:.300})") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers without its advice and progress bars; hf_xlmr makes the checks that matter itself."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
