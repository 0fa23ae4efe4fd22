"""The pipeline made known to Transformers when that is imported, since importing it takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["register_with_transformers"]

PIPELINES = "transformers.pipelines"
PIPELINE = "hf_xlmr.pipeline"


def register_with_transformers() -> None:
    """Register `xlmr-feature-extraction` now where Transformers' pipelines are there, else as soon as they are."""
    if PIPELINES in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    _begin_anew()
    from hf_xlmr.pipeline import TASK, XLMRFeatureExtractionPipeline

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=XLMRFeatureExtractionPipeline, pt_model=AutoModel)


def _begin_anew() -> None:
    """Forget the pipeline's module where its own import of Transformers led here, before its class was there.

    Python gives the import in progress what then stands in `sys.modules`: the module that is imported next.
    """
    if PIPELINE in sys.modules and not hasattr(sys.modules[PIPELINE], "XLMRFeatureExtractionPipeline"):
        del sys.modules[PIPELINE]


class _AfterImport(MetaPathFinder):
    """Lets others find `transformers.pipelines`, and registers once it has run."""

    def __init__(self) -> None:
        self._is_asking_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that others give for the pipelines, with the registration behind it; None for all else."""
        if fullname != PIPELINES or self._is_asking_others:
            return None
        self._is_asking_others = True
        try:
            spec = find_spec(fullname)
        finally:
            self._is_asking_others = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
