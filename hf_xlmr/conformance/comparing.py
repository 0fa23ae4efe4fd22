"""Compares what a runtime gives with fairseq's answers, and says what it does otherwise."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hf_xlmr.conformance.report import Conformance, write_page
from hf_xlmr.conformance.setting import OWN_POOLS, Setting
from hf_xlmr.data.remote_files import without_credentials
from hf_xlmr.data.text_files import open_texts
from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.hub_interface.loading import find_model
from hf_xlmr.progress import SILENT, Progress

if TYPE_CHECKING:
    from hf_xlmr.conformance.targets import Target

__all__ = ["TOLERANCE", "compare"]

TOLERANCE: Final = 1e-5
LOWEST: Final = 1e-7  # at which float32 rounds
MOST_SECONDS: Final = 86_400.0
ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def compare(
    model_dir: str | Path,
    target: str | Path,
    *,
    texts: str | Path | None = None,
    pool: str | None = None,
    normalize: bool | None = None,
    tolerance: float = TOLERANCE,
    timeout: float = 60.0,
    report: str | Path | None = None,
    progress: Progress = SILENT,
) -> Conformance:
    """Compare a runtime with the answers that fairseq gives, and name the known fault that explains a difference.

    `model_dir` is the model as hf_xlmr converts it; `target` a folder or file of ONNX, OpenVINO, CTranslate2,
    sentence-transformers or Transformers, or the http address of a server with TEI's or OpenAI's interface. Probes are
    a fixed set of texts, and those in the file `texts`. Vectors of tokens are compared if the target gives them, and
    its pooled vectors with those by `pool` (mean, cls or max), scaled to the length 1 if `normalize`. By default both
    are what the target says that it does, as graphs of `to_onnx` do, or else mean, and scaled only by OpenAI's
    interface. A difference is wrong above `tolerance`, a share of the answer's largest value. A request to a server
    ends after `timeout` seconds, and its key is read from the variable HF_XLMR_RUNTIME_KEY. `report` is written as an
    HTML page. Raises InputError, IntegrityError.
    """
    from hf_xlmr.conformance.comparison import Comparison

    if pool not in (None, *OWN_POOLS):
        raise InputError(f"pool={pool!r:.40} is not one of {', '.join(OWN_POOLS)}")
    if not LOWEST <= tolerance <= 1:
        raise InputError(f"tolerance={tolerance!r:.40}: give a share of the largest value from {LOWEST} to 1")
    if not 0 < timeout < MOST_SECONDS:
        raise InputError(f"timeout={timeout!r:.40}: give seconds, such as 60")
    files = find_model(model_dir, progress=progress)
    with told_plainly(), closing(_open_target(target, files.folder, timeout=timeout)) as opened:
        is_normalized = opened.is_normalized if normalize is None else normalize
        right = Setting(pool=pool or opened.pool or "mean", normalized=is_normalized)
        own_texts = [row.text for row in open_texts(texts)] if texts is not None else []
        found = Comparison(files, opened, right, tolerance).found(own_texts, progress)
        found = replace(found, target=without_credentials(str(target)))
        if report is not None:
            write_page(found, Path(report))
    return found


def _open_target(target: str | Path, model_dir: Path, *, timeout: float) -> Target:
    """The runtime behind a path or an address. Raises InputError, IntegrityError."""
    name = str(target)
    if ADDRESS.match(name):
        from hf_xlmr.conformance.servers import open_server

        return open_server(name, timeout=timeout)
    path = Path(target)
    if not path.exists():
        raise InputError(f"{path} is not a folder or file, nor an address such as http://localhost:8080")
    from hf_xlmr.conformance.runtimes import open_folder

    return open_folder(path, model_dir)
