"""Low-rank adapters by peft: added to the attention of a network, and merged into a plain network at the end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr.errors import InputError
from hf_xlmr.model.model_shape import ModelShape
from hf_xlmr.tasks.kinds.task import Recipe

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Hu et al. 2021, RoBERTa large on MNLI: these three numbers, on query and value; dropout is peft's customary one
LORA_RANK: Final = 8
LORA_ALPHA: Final = 16
LORA_RATE: Final = 3e-4
DROPOUT: Final = 0.05
TARGETS: Final = ("query", "value")  # in all families; peft has no default for xlm-roberta-xl
FILES: Final = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def check_peft() -> None:
    """Raise InputError if peft is not installed."""
    if find_spec("peft") is None:
        raise InputError("lora=True needs peft: pip install 'hf-xlmr[train]'")


def check_rank(rank: int, shape: ModelShape) -> None:
    """Raise InputError for a rank that no adapter of a network of this shape can have."""
    if rank > shape.hidden:
        raise InputError(
            f"lora_rank={rank!s:.40}: the weights that adapters are added to have {shape.hidden} rows and columns, and "
            "no higher rank: give a lower one"
        )


def with_adapters(network: PreTrainedModel, recipe: Recipe, *, rank: int) -> PeftModel:
    """`network` with adapters of `rank` at each query and value, which are trained with the head alone."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=LORA_ALPHA * rank // LORA_RANK or 1,
        lora_dropout=DROPOUT,
        target_modules=list(TARGETS),
        modules_to_save=[recipe.head],
    )
    with _old_name_allowed():
        return get_peft_model(network, config)


def merged(network: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`network`, as it was before training, with the adapters in `folder` added to its weights and the trained head.

    The adapters' files are removed: what is left is a plain model.
    """
    from peft import PeftModel

    with _old_name_allowed():
        plain: PreTrainedModel = PeftModel.from_pretrained(network, folder).merge_and_unload()
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    return plain


@contextmanager
def _old_name_allowed() -> Iterator[None]:
    """Without Transformers' warning of an old name, which peft uses: no user can do anything about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
