"""The verification as one self-contained HTML page: what was converted, how near it is, and what was left behind."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from math import log10
from pathlib import Path
from string import Template
from typing import Final

from hf_xlmr.cards.html_page import definitions, escape, style, table, time_of_writing
from hf_xlmr.conversion.mapping.preparation import Prepared
from hf_xlmr.conversion.proof.parity import ParityReport, StepDifference

__all__ = ["page_of"]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 860, 300, 64, 16, 84
SMALLEST: Final = -9  # decades of the plot: equality is drawn at its foot
LARGEST: Final = -3
COMPARED_BY: Final = ("hf-xlmr", "torch", "transformers", "tokenizers", "sentencepiece")


def page_of(prepared: Prepared, report: ParityReport, folder: Path) -> str:
    """The page's HTML; it loads nothing from anywhere. `folder` is the Transformers folder.

    It has the time of writing: SOURCE_DATE_EPOCH, if that is set, so that the same proof can give the same bytes.
    """
    template = Template((files("hf_xlmr.conversion") / "templates" / "report.html").read_text(encoding="utf-8"))
    return template.substitute(
        style=style(),
        title=escape(f"{prepared.checkpoint.files.name} and {folder.resolve().name}"),
        ids=escape(_ids(report)),
        facts=definitions({**_made(prepared, folder), **_facts(prepared, report)}),
        plot=_plot(report.steps, report.tolerance),
        steps=table(("step", "absolute difference", "relative difference", "cosine"), map(_step_row, report.steps)),
        tokenizer=_tokenizer(report),
        dropped=table(("left behind", "names", "for example"), _grouped(prepared.plan.dropped)),
        made=table(("made", "what it holds"), sorted(prepared.plan.made.items())),
        notes="".join(f"<li>{escape(note)}</li>" for note in prepared.vocabulary.notes) or "<li>none</li>",
        hashes=table(("file", "sha256"), [*report.source_sha256.items(), *report.output_sha256.items()]),
    )


def _made(prepared: Prepared, folder: Path) -> dict[str, str]:
    """What was compared, when, and by which versions; without the folder's place on this machine."""
    versions = [f"{name} {version(name)}" for name in COMPARED_BY]
    return {
        "checkpoint": prepared.checkpoint.files.name,
        "folder": folder.resolve().name,
        "verified": time_of_writing(),
        "by": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }


def _facts(prepared: Prepared, report: ParityReport) -> dict[str, str]:
    architecture, checkpoint = prepared.architecture, prepared.checkpoint
    return {
        "became": architecture.class_name,
        "network": f"{len(architecture.layers)} layers of width {architecture.hidden}, "
        f"{architecture.attention_heads} heads, {architecture.vocabulary:,} embedding rows",
        "read from": f"{checkpoint.format} container, options kept as {checkpoint.era}",
        "precision": str(prepared.config["dtype"]),
        "weights": f"{report.weights_compared} compared bit for bit, {report.bytes_compared:,} bytes",
        "outputs": f"{len(report.steps)} steps on {report.tokens} tokens, relative difference at most "
        f"{report.largest:.1e} (allowed {report.tolerance:.0e})",
        **_languages(report),
    }


def _languages(report: ParityReport) -> dict[str, str]:
    """The languages of an X-MOD, each with its largest difference."""
    told = ", ".join(f"{language} {relative:.1e}" for language, relative in report.languages.items())
    return {"languages": f"{len(report.languages)}, each within: {told}"} if told else {}


def _step_row(step: StepDifference) -> tuple[str, str, str, str]:
    return step.name, f"{step.largest:.2e}", f"{step.relative:.2e}", f"{step.cosine:.9f}"


def _grouped(dropped: Mapping[str, str]) -> list[tuple[str, int, str]]:
    examples: dict[str, str] = {}
    for name, reason in dropped.items():
        examples.setdefault(reason, name)
    return [(reason, count, examples[reason]) for reason, count in Counter(dropped.values()).most_common()]


def _ids(report: ParityReport) -> str:
    """What the comparison of the tokenizers came to, in a sentence."""
    if not report.tokenizer:
        return "No tokenizer was compared."
    other, texts = sum(each.different for each in report.tokenizer), sum(each.texts for each in report.tokenizer)
    if not other:
        return f"The tokenizer gives fairseq's ids for all of {texts:,} generated texts."
    named = ", ".join(each.name for each in report.tokenizer if each.different)
    return (
        f"The tokenizer gives other ids than fairseq for {other:,} of {texts:,} generated texts: see below ({named})."
    )


def _tokenizer(report: ParityReport) -> str:
    if not report.tokenizer:
        return "<p>No tokenizer was compared.</p>"
    rows = [
        (each.name, each.texts, each.different, each.equal_score, each.limited, each.example or "")
        for each in report.tokenizer
    ]
    reasons = ("of equal score", "not expressible")
    return table(("class of texts", "texts", "other ids than fairseq", *reasons, "for example"), rows)


def _plot(steps: Sequence[StepDifference], tolerance: float) -> str:
    """Bars of the relative difference at each step, on a logarithmic axis, with the tolerance as a line."""
    room = (WIDTH - LEFT - 8) / max(1, len(steps))
    bars = "".join(_bar(step, LEFT + index * room, room) for index, step in enumerate(steps))
    decades = "".join(_decade(power) for power in range(SMALLEST, LARGEST + 1))
    line = _height(tolerance)
    return (
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="relative difference at each step">{decades}{bars}'
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH}" y1="{line:.1f}" y2="{line:.1f}"/>'
        f'<text class="limit" x="{WIDTH - 4}" y="{line - 5:.1f}" text-anchor="end">tolerance</text></svg></div>'
    )


def _height(value: float) -> float:
    """Where a value is; 0 is drawn at the foot."""
    power = max(SMALLEST, min(LARGEST, log10(value))) if value > 0 else SMALLEST
    return TOP + (HEIGHT - TOP - BOTTOM) * (LARGEST - power) / (LARGEST - SMALLEST)


def _bar(step: StepDifference, left: float, room: float) -> str:
    top, foot, middle = _height(step.relative), _height(0), left + room / 2
    return (
        f'<rect x="{left + room * 0.15:.1f}" y="{top:.1f}" width="{room * 0.7:.1f}" '
        f'height="{max(1.5, foot - top):.1f}">'
        f"<title>{escape(step.name)}: {step.relative:.2e}</title></rect>"
        f'<text class="name" transform="translate({middle:.1f} {foot + 10:.1f}) rotate(60)">{escape(step.name)}</text>'
    )


def _decade(power: int) -> str:
    y = _height(10.0**power)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
    )
