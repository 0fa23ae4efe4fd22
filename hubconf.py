"""The names that torch.hub.load finds here: fairseq's releases, and a demo.

import torch
xlmr = torch.hub.load("/path/to/checkout", "xlmr.large", source="local")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

dependencies = ["torch", "transformers", "sentencepiece", "safetensors", "accelerate"]

_CHECKOUT = Path(__file__).resolve().parent


def _entry_point(name: str) -> Callable[..., Any]:
    def load(*args: Any, **options: Any) -> Any:
        import hf_xlmr

        if Path(hf_xlmr.__path__[0]).resolve() == _CHECKOUT / "hf_xlmr":  # not installed, or hidden by this checkout
            hf_xlmr.__path__[:] = [str(_CHECKOUT / "hf_xlmr"), str(_CHECKOUT)]  # conversion/ is next to it here
        return hf_xlmr.XLMR.from_pretrained(name, *args, **options)

    load.__doc__ = f"XLMR.from_pretrained({name!r}, ...)"
    return load


for _name in (
    *("xlmr.base", "xlmr.large", "xlmr.xl", "xlmr.xxl", "xlmr.base.v0", "xlmr.large.v0", "demo"),
    *("xmod.base", "xmod.large.prenorm", "xmod.base.13.125k", "xmod.base.30.125k", "xmod.base.30.195k"),
    *("xmod.base.60.125k", "xmod.base.60.265k", "xmod.base.75.125k", "xmod.base.75.269k"),
):
    globals()[_name] = _entry_point(_name)
