"""The card of a folder for another runtime: how to run its graph, before the card of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_xlmr.cards.extended_card import extended_card
from hf_xlmr.errors import InputError

__all__ = ["RuntimeReport", "Wanted", "runtime_card"]

CHOICES: Final = {"dtype": ("float32", "float16", "int8"), "pool": ("mean", "cls", "max", "none")}
SECTION: Final = """## In {runtime}

```python
import {module}
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
texts = tokenizer(["The train leaves.", "Der Zug fährt ab."], padding=True, truncation=True, return_tensors="np")
{code}
```

`{graph}` computes {what} in texts of up to {longest} tokens, `<s>` and `</s>` included; longer ones have to be
truncated, as here. It takes `input_ids` and `attention_mask`, int64 of {sizes}, and answers with {outputs}.
{precision}

What follows is the card of the Transformers folder that the graph was made from; code in it is for that folder.

"""
CODE: Final[Mapping[str, tuple[str, str, str]]] = {
    "ONNX": (
        *("onnxruntime", "model.onnx"),
        'session = onnxruntime.InferenceSession("{graph}")\n'
        "outputs = dict(zip([each.name for each in session.get_outputs()], session.run(None, {feed})))\n"
        "print({{name: value.shape for name, value in outputs.items()}})",
    ),
    "OpenVINO": (
        *("openvino", "openvino_model.xml"),
        'model = openvino.Core().compile_model("{graph}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})\n'
        "outputs = model({feed})\n"
        "print({{output.any_name: value.shape for output, value in outputs.items()}})",
    ),
}
"""By the runtime: its package, the file of its graphs, and the code that runs one."""
PRECISION: Final[Mapping[str, str]] = {
    "ONNX float32": "All is float32.",
    "ONNX float16": "All is float16, but for pooled vectors, which are float32.",
    "ONNX int8": "Products with weights are computed in int8; the embeddings are float32.",
}
OF_OPENVINO: Final = "Its weights are {}. Without the hint, OpenVINO computes in bfloat16 where the processor has it."
POOLED: Final[Mapping[str, str]] = {
    "mean": "the mean of the vectors of all tokens",
    "cls": "the vector of `<s>`",
    "max": "the largest value of each component of the tokens' vectors",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a graph computes. Raises InputError for what cannot be meant."""

    dtype: str
    pool: str
    """How it pools the vectors of a text's tokens; `none` if it does not."""
    normalize: bool
    """Whether each pooled vector has the length 1."""
    encoder_only: bool

    def __post_init__(self) -> None:
        """Refuse values that are not among `CHOICES`."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r:.40} is not one of {', '.join(known)}")
        if self.normalize and self.pool == "none":
            raise InputError("normalize=True is for pooled vectors: give pool='mean' or another with it")


@dataclass(frozen=True, kw_only=True)
class RuntimeReport(Wanted):
    """What was made, with the `dtype`, `pool`, `normalize` and `encoder_only` that were asked for."""

    output: Path
    source: Path
    class_name: str
    """The Transformers class that the graph computes."""
    runtime: str
    outputs: tuple[str, ...]
    """The names of what the graph answers with."""
    max_length: int
    """Tokens of a text, `<s>` and `</s>` included."""
    difference: float
    """The largest difference to Transformers in float32, as a share of the largest value."""
    files: Mapping[str, int]
    """Names and bytes of what was written."""


def runtime_card(card: bytes | None, report: RuntimeReport) -> bytes:
    """The card of a model (None if it has none) with a section on its graph before all others."""
    module, graph, code = CODE[report.runtime]
    has_choices = report.class_name.endswith("ForMultipleChoice")
    feed = "{name: ids[None] for name, ids in texts.items()}" if has_choices else "dict(texts)"
    section = SECTION.format(
        runtime="ONNX Runtime" if report.runtime == "ONNX" else report.runtime,
        module=module,
        code=code.format(graph=graph, feed=feed),
        graph=graph,
        what=POOLED.get(report.pool, f"what `{report.class_name}` does")
        + " (divided by its length)" * report.normalize,
        longest=report.max_length,
        sizes="(questions, choices, tokens)" if has_choices else "(texts, tokens)",
        outputs=", ".join(f"`{name}`" for name in report.outputs),
        precision=PRECISION.get(f"{report.runtime} {report.dtype}", OF_OPENVINO.format(report.dtype)),
    )
    fields = {"library_name": module, **({"pipeline_tag": "feature-extraction"} if report.pool in POOLED else {})}
    name = report.runtime
    return extended_card(card, title=f"A model for {name}", section=section, fields=fields, tag=name.lower())
