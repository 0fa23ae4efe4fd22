"""The sizes of a model before it is converted: from a folder, a release's name, or a source's names and shapes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.checkpoint.weights import main_dtype
from hf_xlmr.conversion.mapping.architecture import Architecture, Wanted, beside_heads, decide
from hf_xlmr.conversion.mapping.config import SpecialIds, config_of
from hf_xlmr.errors import InputError, UnsupportedCheckpoint, WeightsMismatch, printable, told_plainly
from hf_xlmr.files.own_names import own_name
from hf_xlmr.model.model_shape import RELEASE_CONFIGS, ModelShape, config_file, shape_of_config, shape_of_folder
from hf_xlmr.progress import SILENT, Progress

__all__ = ["preview_config", "shape_of"]

logger = logging.getLogger(__name__)

WITHOUT_HEAD: Final = "the sizes are those of %s, which XLMR loads of %s without the heads that convert refuses: %s"


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a Transformers folder, a release by its name, or any source that `convert` reads; no weight is read.

    A dictionary that lacks pieces gets a few more embedding rows when it is converted, which are not counted here.
    Raises InputError, IntegrityError.
    """
    if (name := own_name(model)) is not None and name in RELEASE_CONFIGS:
        return shape_of_config(RELEASE_CONFIGS[name])
    with told_plainly():
        if config_file(model).is_file():
            return shape_of_folder(model)
    return shape_of_config(preview_config(model))


def preview_config(source: str | Path, *, progress: Progress = SILENT) -> dict[str, object]:
    """The sizes, class and dtype that `convert` would write for `source`; no tensor is read.

    Where only its heads keep it from being converted, what `XLMR` loads of it is meant, and a warning says so. The
    dictionary is not read: embedding rows are those of the file, labels have no names. Raises InputError
    (UnsupportedCheckpoint with every reason), IntegrityError.
    """
    with told_plainly(), open_checkpoint(source, progress=progress) as checkpoint:
        architecture = _architecture(checkpoint, str(source))
        return config_of(
            architecture,
            vocabulary=architecture.vocabulary,
            ids=SpecialIds(),
            dtype=main_dtype(checkpoint.weights.values()),
        )


def _architecture(checkpoint: FairseqCheckpoint, source: str) -> Architecture:
    """The shape with the head that was trained, or without any. Raises InputError, WeightsMismatch."""
    try:
        return decide(checkpoint, Wanted(), reads_weights=False)
    except (InputError, WeightsMismatch) as refusal:
        try:
            found = decide(checkpoint, beside_heads(checkpoint), reads_weights=False)
        except (InputError, WeightsMismatch):
            raise refusal from None  # it has the reasons of all
        why = "; ".join(refusal.reasons) if isinstance(refusal, UnsupportedCheckpoint) else str(refusal)
        logger.warning(WITHOUT_HEAD, found.class_name, source, printable(why))
        return found
