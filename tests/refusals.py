"""What a call says that refuses its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_xlmr.conversion.source.sources import open_source
from hf_xlmr.errors import InputError

__all__ = ["refusal", "told"]


def told(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The one sentence that is said."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal(source: str | Path) -> str:
    """What is said of a source that cannot be opened."""
    with pytest.raises(InputError) as caught, open_source(source):
        pass
    assert caught.value.exit_code == 2
    return str(caught.value)
