"""What `config.json` a source would get, told from the names and shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.mapping.architecture import Wanted, decide
from hf_xlmr.conversion.mapping.config import SpecialIds, config_of
from hf_xlmr.errors import told_plainly
from hf_xlmr.progress import SILENT, Progress

__all__ = ["preview_config"]


def preview_config(source: str | Path, *, progress: Progress = SILENT) -> dict[str, object]:
    """The sizes, class and dtype that `convert` would write for `source`; no tensor is read.

    Neither the dictionary is: embedding rows are those of the file, labels have no names. Raises InputError
    (UnsupportedCheckpoint with every reason), IntegrityError.
    """
    with told_plainly(), open_checkpoint(source, progress=progress) as checkpoint:
        architecture = decide(checkpoint, Wanted(), reads_weights=False)
        return config_of(
            architecture, vocabulary=architecture.vocabulary, ids=SpecialIds(), dtype=_main_dtype(checkpoint)
        )


def _main_dtype(checkpoint: FairseqCheckpoint) -> str:
    """The dtype that most bytes have."""
    sizes: Counter[str] = Counter()
    for weight in checkpoint.weights.values():
        sizes[weight.dtype] += weight.nbytes
    return sizes.most_common(1)[0][0]
