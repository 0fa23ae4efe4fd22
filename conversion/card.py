"""The model card that a converted folder carries, from the facts of its conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_xlmr.conversion.recipe import ConversionReport

__all__ = ["card_of"]

_PIPELINES = {"MaskedLM": "fill-mask", "SequenceClassification": "text-classification", "Model": "feature-extraction"}


def card_of(report: ConversionReport, config: Mapping[str, object]) -> str:
    """The text of `README.md`."""
    template = Template((files(__package__) / "templates" / "card.md").read_text(encoding="utf-8"))
    return template.substitute(
        source=report.source,
        class_name=report.class_name,
        pipeline=next((tag for ending, tag in _PIPELINES.items() if report.class_name.endswith(ending)), ""),
        model_type=config["model_type"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        parameters=f"{report.parameters:,}",
        dtype=report.dtype,
        parity=_parity(report.parity),
        dropped=_listed(
            {reason: name for name, reason in report.dropped.items()}, "Every weight of the file was used."
        ),
        notes=_bullets(report.notes, "Nothing unusual."),
    )


def _parity(parity: Mapping[str, object] | None) -> str:
    if parity is None:
        return "The conversion was not verified (`--no-verify`)."
    return (
        f"All {parity['weights_compared']} weights equal the source's bit for bit. The outputs of plain Transformers\n"
        "were compared with those of a second implementation of fairseq's network: they differ by at most\n"
        f"{parity['largest']:.1e} of the largest value."
    )


def _listed(reasons: Mapping[str, str], otherwise: str) -> str:
    return _bullets([f"{reason} (for example `{name}`)" for reason, name in sorted(reasons.items())], otherwise)


def _bullets(lines: Sequence[str], otherwise: str) -> str:
    return "\n".join(f"- {line}" for line in lines) if lines else otherwise
