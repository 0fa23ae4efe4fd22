"""A step for pipelines of datatrove that gives every document its vector."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from datatrove.pipeline.base import PipelineStep

from hf_xlmr.features.chunks import BadText
from hf_xlmr.features.store.files import column_names

if TYPE_CHECKING:
    from pathlib import Path

    from datatrove.data import Document
    from typing_extensions import Unpack

    from hf_xlmr.features.extraction import ExtractorOptions, FeatureExtractor, Features

__all__ = ["XLMRFeatures"]


class XLMRFeatures(PipelineStep):  # type: ignore[misc]  # which has no types
    """Adds `metadata["features"]` to each document: its vector, or unpooled a list of its tokens' vectors.

    Several layers add `features_0`, `features_12` and so on, unpooled `features_spans` holds the characters of each
    token. Documents keep their order, and some thousand are held at once. Each task loads the model once, when its
    first document comes.
    """

    name = "XLM-R"
    type = "FEATURES"

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "float32",
        device: str | None = None,
        key: str = "features",
        as_lists: bool = False,
        **options: Unpack[ExtractorOptions],
    ) -> None:
        """Store the arguments of `FeatureExtractor.from_pretrained`, and the `key` of the vectors in the metadata.

        Vectors are NumPy arrays, which become float32 in Parquet; `as_lists` makes them lists, which JSON needs.
        """
        super().__init__()
        self.model, self.dtype, self.device, self.options = str(model), dtype, device, options
        self.key, self.as_lists = key, as_lists
        self._extractor: FeatureExtractor | None = None

    def __getstate__(self) -> dict[str, object]:
        """Everything but the model, which each process loads itself."""
        return {**vars(self), "_extractor": None}

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents with their vectors. Raises InputError, BadText with the id of a document."""
        documents = iter(data or ())
        first = next(documents, None)
        if first is None:  # nothing to load a model for
            return
        with closing(self._computed(chain([first], documents))) as windows:
            while (features := self._timed(windows)) is not None:
                self.stat_update("tokens", value=features.tokens, unit="batch")
                self.stat_update("truncated", value=features.truncated, unit="batch")
                for index, document in enumerate(features.rows):
                    document.metadata.update(self._metadata(features, index))
                    self.update_doc_stats(document)
                    yield document

    def _timed(self, windows: Iterator[Features]) -> Features | None:
        with self.track_time("batch"):
            return next(windows, None)

    def _computed(self, documents: Iterator[Document]) -> Generator[Features, None, None]:
        from hf_xlmr.features.extraction import FeatureExtractor

        if self._extractor is None:
            self._extractor = FeatureExtractor.from_pretrained(
                self.model, dtype=self.dtype, device=self.device, **self.options
            )
        windows = self._extractor.texts.windows((each, each.text, self._language(each)) for each in documents)
        try:
            yield from self._extractor.computed(windows)
        except BadText as error:
            raise BadText(error.index.id, error.reason) from None

    def _language(self, document: Document) -> str | None:
        """What the metadata of a document name, if they are to. Raises BadText."""
        column = self.options.get("language_column")
        if column is not None and column not in document.metadata:
            raise BadText(document, f"its metadata have no {column!r} (language_column)")
        return None if column is None else document.metadata[column]

    def _metadata(self, features: Features, index: int) -> dict[str, object]:
        """What a document of a window gets."""
        names = column_names(tuple(features.layers))
        found: dict[str, object] = {}
        for layer, vectors in features.layers.items():
            value = vectors[index]
            found[self.key + names[layer].removeprefix("features")] = (
                value.tolist() if self.as_lists else value if features.spans is None else list(value)
            )
        if features.spans is not None:
            found[f"{self.key}_spans"] = features.spans[index].tolist()
        return found
