"""The Transformers pipeline `xlmr-feature-extraction`: layers and pooled vectors, rows without padding.

Importing hf_xlmr.pipeline makes it known to `transformers.pipeline`. This file is copied into folders that the pipeline
is saved to, so it needs nothing but Transformers and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

__all__ = ["TASK", "XLMRFeatureExtractionPipeline", "register"]

TASK = "xlmr-feature-extraction"
PAIR = ("text", "text_pair")
LANGUAGE = "language"
USUAL = "en_XX"  # fairseq's language of texts that name none
VARIANTS = ("_rom", "_zaw")  # which have the adapter of their language
FEWEST = 2  # tokens: `<s>` and `</s>`
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
    takes a text, a pair (a tuple of two, or a dictionary of `text` and `text_pair`), or a list of them. `language` is
    that of all texts for an X-MOD, such as sw_KE, by default the model's or en_XX; a dictionary may name its own.
    `layers` is one hidden state by index (0 is the embeddings, -1 the features, which come after the final norm if
    there is one) or a list of them; `pool` is none, mean, cls or max over a text's tokens, `<s>` and `</s>` included. A
    text of more tokens than the model has positions for is an error unless `truncation=True`, which may be given a
    `max_length`. Gives a tensor (tokens, width) or (width,) per text, with `return_tensors=False` nested lists; for
    several layers a list of those.
    """

    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = True  # type: ignore[assignment]
    _pipeline_calls_generate = False
    modelcard = None  # Transformers 5.0 reads it as it saves, and sets it nowhere

    def _sanitize_parameters(self, **given: object) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
        known = (("truncation", "max_length", LANGUAGE), ("layers",), ("pool", "return_tensors", "layers"))
        if odd := sorted(set(given) - {name for names in known for name in names}):
            raise TypeError(
                f"{TASK} takes truncation, max_length, language, layers, pool and return_tensors, not {', '.join(odd)}"
            )
        if given.get("pool", "none") not in POOLINGS:
            raise ValueError(f"pool={given['pool']!r}: give one of {', '.join(POOLINGS)}")
        _raise_if_no_layers(given.get("layers", -1))
        _raise_if_no_length(given.get("max_length"))
        steps = [{name: given[name] for name in names if name in given} for names in known]
        return steps[0], steps[1], steps[2]

    @property
    def longest(self) -> int:
        """The most tokens a text may have, `<s>` and `</s>` included."""
        return int(self.model.config.max_position_embeddings) - FIRST_POSITION

    def preprocess(  # type: ignore[override]
        self, input_: object, truncation: bool = False, max_length: int | None = None, language: str | None = None
    ) -> dict[str, torch.Tensor]:
        """The tokens of one text or pair, and its language. Raises ValueError for one that is too long or neither."""
        pair, named = _pair(input_), input_.get(LANGUAGE) if isinstance(input_, dict) else None
        languages = self._language_ids(language if named is None else named)
        most = min(max_length or self.longest, self.longest)
        tokenizer: Any = self.tokenizer
        encoded = tokenizer(*pair, truncation=truncation, max_length=most, return_tensors="pt")
        length = encoded["input_ids"].shape[1]
        if length > most:
            raise ValueError(
                f"a text has {length} tokens, and {most} are the most; pass truncation=True to have it cut, or split "
                f"it: {pair[0][:60]!r}"
            )
        return {**{name: encoded[name] for name in ("input_ids", "attention_mask")}, **languages}

    def _language_ids(self, name: object) -> dict[str, torch.Tensor]:
        """What an X-MOD takes for a language. Raises ValueError for one that the model lacks."""
        names = getattr(self.model.config, "languages", None)
        if names is None:
            if name is not None:
                raise ValueError(f"language={name!r:.40}: the model has no languages, which only X-MOD has")
            return {}
        usual = self.model.config.default_language or USUAL
        if name is None and usual not in names:
            raise ValueError(f"the model has no usual language, so each text must name its own: {', '.join(names)}")
        known = str(usual if name is None else name)
        for ending in VARIANTS:
            known = known.replace(ending, "")
        if known not in names:
            raise ValueError(f"the model has no language {known!r:.40}; it has {', '.join(names)}")
        return {"lang_ids": torch.tensor([list(names).index(known)])}

    def _forward(  # type: ignore[override]
        self, input_tensors: dict[str, torch.Tensor], layers: int | Sequence[int] = -1
    ) -> dict[str, torch.Tensor]:
        """The wanted hidden states, (batch, layers, tokens, width), and which tokens are real."""
        output = self.model(**input_tensors, output_hidden_states=True)
        wanted = [layers] if isinstance(layers, int) else list(layers)
        count = len(output.hidden_states)
        if odd := [layer for layer in wanted if not -count <= layer < count]:
            raise ValueError(
                f"there is no layer {odd[0]}: the hidden states are numbered 0 (embeddings) to {count - 1}"
            )
        places = [layer % count for layer in wanted]
        device = output.last_hidden_state.device  # each layer's are on its own if the model is spread over several
        hidden = [
            (output.last_hidden_state if at == count - 1 else output.hidden_states[at]).to(device) for at in places
        ]
        return {"hidden": torch.stack(hidden, dim=1), "attention_mask": input_tensors["attention_mask"]}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, torch.Tensor],
        pool: str = "none",
        return_tensors: bool = True,
        layers: int | Sequence[int] = -1,
    ) -> object:
        """One text's vectors, padding left out."""
        is_real = model_outputs["attention_mask"][0].bool()
        rows = [POOLINGS[pool](layer[is_real]) for layer in model_outputs["hidden"][0]]
        found = rows if return_tensors else [row.tolist() for row in rows]
        return found[0] if isinstance(layers, int) else found

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the model, the tokenizer and this file, which Transformers writes only if hf_xlmr is imported."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(__file__).name).write_bytes(Path(__file__).read_bytes())
        super().save_pretrained(save_directory, **kwargs)


def _pair(given: object) -> tuple[str, ...]:
    """A text, or a text and its pair. Raises ValueError."""
    if isinstance(given, dict):
        if odd := [repr(name) for name in given if name not in (*PAIR, LANGUAGE)]:
            raise ValueError(
                f"a text is given as 'text', with its pair as 'text_pair' and its 'language', not as {', '.join(odd)}"
            )
        given = (given.get("text"), given["text_pair"]) if given.get("text_pair") is not None else given.get("text")
    pair = given if isinstance(given, tuple) else (given,)
    if not 0 < len(pair) <= len(PAIR) or not all(isinstance(text, str) for text in pair):
        raise ValueError(f"give a text, a pair of texts, or a list of them, not {given!r:.80}")
    return pair


def _raise_if_no_layers(layers: object) -> None:
    """Raise ValueError for what is not a number of a hidden state, and no list of such numbers."""
    numbers = list(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    if not numbers or not all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"layers={layers!r:.80}: give a number such as -1, or a list of numbers such as [0, -1]")


def _raise_if_no_length(max_length: object) -> None:
    """Raise ValueError."""
    if max_length is not None and (type(max_length) is not int or max_length < FEWEST):
        raise ValueError(f"max_length={max_length!r:.80}: give the most tokens of a text, {FEWEST} or more")


def register() -> None:
    """Make `transformers.pipeline` know the task `xlmr-feature-extraction`, unless it does already."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=XLMRFeatureExtractionPipeline, pt_model=AutoModel)


if __name__ == "hf_xlmr.pipeline":  # and not in the copies that saved folders hold
    register()
