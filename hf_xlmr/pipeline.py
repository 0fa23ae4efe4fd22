"""The Transformers pipeline `xlmr-feature-extraction`: layers and pooled vectors, rows without padding.

This file is copied into folders that the pipeline is saved to, so it needs nothing but Transformers and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Pipeline

__all__ = ["TASK", "XLMRFeatureExtractionPipeline"]

TASK = "xlmr-feature-extraction"
FIRST_POSITION = 2  # a table of 514 positions holds texts of 512 tokens


def _mean(rows: torch.Tensor) -> torch.Tensor:
    return rows.float().mean(dim=0)


POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda rows: rows,
    "mean": _mean,
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.amax(dim=0),
}


class XLMRFeatureExtractionPipeline(Pipeline):
    """Hidden states of texts, each row without padding whatever the batch size.

    `pipeline("xlmr-feature-extraction", model=FOLDER)(texts, layers=-1, pool="none", truncation=False, batch_size=1)`
    takes a text, a pair (a tuple of two), or a list of them. `layers` is one hidden state by index (0 is the
    embeddings, -1 the features, which come after the final norm where there is one) or a list of them; `pool` is none,
    mean, cls or max over a text's tokens, `<s>` and `</s>` included. A text of more tokens than the model has
    positions for is an error unless `truncation=True`, which may be given a `max_length`. Gives a tensor (tokens,
    width) or (width,) per text, with `return_tensors=False` nested lists; for several layers a list of those.
    """

    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = True  # type: ignore[assignment]
    _pipeline_calls_generate = False

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = (("truncation", "max_length"), ("layers",), ("pool", "return_tensors", "layers"))
        if odd := sorted(set(given) - {name for names in known for name in names}):
            raise TypeError(
                f"{TASK} takes truncation, max_length, layers, pool and return_tensors, not {', '.join(odd)}"
            )
        if given.get("pool", "none") not in POOLINGS:
            raise ValueError(f"pool={given['pool']!r}: give one of {', '.join(POOLINGS)}")
        steps = [{name: given[name] for name in names if name in given} for names in known]
        return steps[0], steps[1], steps[2]

    @property
    def longest(self) -> int:
        """The most tokens a text may have, `<s>` and `</s>` included."""
        return int(self.model.config.max_position_embeddings) - FIRST_POSITION

    def preprocess(  # type: ignore[override]
        self, input_: Any, truncation: bool = False, max_length: int | None = None
    ) -> Any:
        """The tokens of one text or pair. Raises ValueError for one that is too long."""
        texts = tuple(input_.values()) if isinstance(input_, dict) else input_
        pair = texts if isinstance(texts, tuple) else (texts,)
        most = min(max_length or self.longest, self.longest)
        tokenizer: Any = self.tokenizer
        encoded = tokenizer(*pair, truncation=truncation, max_length=most, return_tensors="pt")
        length = encoded["input_ids"].shape[1]
        if length > most:
            raise ValueError(
                f"a text has {length} tokens, and {most} are the most; pass truncation=True to have it cut, or split "
                f"it: {pair[0][:60]!r}"
            )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def _forward(  # type: ignore[override]
        self, input_tensors: Any, layers: int | Sequence[int] = -1
    ) -> Any:
        """The wanted hidden states, (batch, layers, tokens, width), and which tokens are real."""
        output = self.model(**input_tensors, output_hidden_states=True)
        wanted = [layers] if isinstance(layers, int) else list(layers)
        count = len(output.hidden_states)
        if odd := [layer for layer in wanted if not -count <= layer < count]:
            raise ValueError(
                f"there is no layer {odd[0]}: the hidden states are numbered 0 (embeddings) to {count - 1}"
            )
        places = [layer % count for layer in wanted]
        hidden = [output.last_hidden_state if at == count - 1 else output.hidden_states[at] for at in places]
        return {"hidden": torch.stack(hidden, dim=1), "attention_mask": input_tensors["attention_mask"]}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: Any,
        pool: str = "none",
        return_tensors: bool = True,
        layers: int | Sequence[int] = -1,
    ) -> Any:
        """One text's vectors, padding left out."""
        is_real = model_outputs["attention_mask"][0].bool()
        rows = [POOLINGS[pool](layer[is_real]) for layer in model_outputs["hidden"][0]]
        found = rows if return_tensors else [row.tolist() for row in rows]
        return found[0] if isinstance(layers, int) else found
