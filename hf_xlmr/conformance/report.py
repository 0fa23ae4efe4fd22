"""How a runtime compares with fairseq's answers: as one value, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10
from pathlib import Path
from string import Template
from typing import Final

from hf_xlmr.cards.html_page import definitions, escape, style, table, time_of_writing
from hf_xlmr.files.atomic_write import replace_content

__all__ = ["Conformance", "ProbeClass", "write_page"]

WIDTH, ROW, LEFT, RIGHT, TOP = 860, 32, 250, 150, 26
SMALLEST: Final = -9  # decades of the plot
LARGEST: Final = 1
COLUMNS: Final = ("texts of", "texts", "differ", "as tokenizer.json", "refused", "largest difference", "lowest cosine")


@dataclass(frozen=True)
class ProbeClass:
    """The probes of a class, and how far the runtime is from the right answers."""

    name: str
    texts: int
    different: int
    """Texts beyond the tolerance."""
    as_tokenizer_json: int
    """Texts whose answer is right for the ids of the folder's tokenizer.json, which are not fairseq's."""
    refused: int
    largest: float | None
    """The largest difference, as a share of the largest value; None if it is not finite, or shapes differ."""
    cosine: float | None
    """The lowest cosine of a vector."""


@dataclass(frozen=True)
class Conformance:
    """How a runtime compares with fairseq's answers."""

    model: Path
    target: str
    """The folder or address, without credentials."""
    runtime: str
    compared: tuple[str, ...]
    """What the runtime gives: tokens, vector, logits."""
    pool: str
    normalized: bool
    """Whether vectors should have the length 1."""
    tolerance: float
    agrees: bool
    verdict: str
    """One sentence."""
    faults: tuple[str, ...]
    """What the runtime does otherwise, if that is known."""
    left: float | None
    """The part of the difference that these faults do not explain; None without any, or for rounding by its size."""
    classes: tuple[ProbeClass, ...]
    tried: Mapping[str, float]
    """The hypotheses that fit best, each with the part of the difference that it leaves."""
    notes: tuple[str, ...]


def write_page(found: Conformance, path: Path) -> None:
    """Write the page, which loads nothing from anywhere. Raises OSError."""
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    page = template.substitute(
        style=style(),
        title=escape(f"{Path(found.target).name or found.target} beside {found.model.resolve().name}"),
        state="" if found.agrees else "differs",
        verdict=escape(f"It {found.verdict}."),
        facts=definitions(_facts(found)),
        tolerance=f"{found.tolerance:g}",
        plot=_plot(found),
        classes=table(COLUMNS, map(_row, found.classes)),
        tried=_tried(found),
        notes=notes or "<li>none</li>",
    )
    replace_content(path, page.encode())


def _facts(found: Conformance) -> dict[str, str]:
    pooled = f"vectors pooled by {found.pool}{', of the length 1' if found.normalized else ''}"
    return {
        "runtime": found.runtime,
        "compared": ", ".join(pooled if each == "vector" else each for each in found.compared),
        "texts": f"{sum(each.texts for each in found.classes)}",
        "faults": "; ".join(found.faults) or ("none" if found.agrees else "none that is known"),
        **({} if found.left is None else {"left unexplained": f"{found.left:.2g} of the difference"}),
        "compared at": time_of_writing(),
    }


def _row(each: ProbeClass) -> tuple[object, ...]:
    largest = "other shape" if each.largest is None and each.refused < each.texts else f"{each.largest or 0:.1e}"
    cosine = "" if each.cosine is None else f"{each.cosine:.7f}"
    return (each.name, each.texts, each.different, each.as_tokenizer_json, each.refused, largest, cosine)


def _tried(found: Conformance) -> str:
    if not found.tried:
        return "<p>None was needed.</p>"
    return table(
        ("the runtime", "leaves of the difference (1: all of it)"),
        [(name, f"{left:.2g}") for name, left in found.tried.items()],
    )


def _plot(found: Conformance) -> str:
    """A bar for each class, on a logarithmic axis, with the tolerance as a line."""
    height = TOP + ROW * len(found.classes) + 8
    bars = "".join(_bar(each, number, found.tolerance) for number, each in enumerate(found.classes))
    decades = "".join(_decade(power, height) for power in range(SMALLEST, LARGEST + 1, 2))
    x = _place(found.tolerance)
    return (
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="largest difference of each class of texts">{decades}{bars}'
        f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 8}"/></svg></div>'
    )


def _place(value: float) -> float:
    power = max(SMALLEST, min(LARGEST, log10(value))) if value > 0 else SMALLEST
    return LEFT + (WIDTH - LEFT - RIGHT) * (power - SMALLEST) / (LARGEST - SMALLEST)


def _bar(each: ProbeClass, number: int, tolerance: float) -> str:
    value = 10.0**LARGEST if each.largest is None else each.largest
    top, end = TOP + ROW * number, _place(value)
    colour = ' class="far"' if value > tolerance else ""
    said = "other shape" if each.largest is None else f"{value:.1e}"
    return (
        f'<text class="tick" x="{LEFT - 8}" y="{top + 21}" text-anchor="end">{escape(each.name)}</text>'
        f'<rect x="{LEFT}" y="{top + 6}" width="{max(1.5, end - LEFT):.1f}" height="{ROW - 12}"{colour}>'
        f"<title>{escape(each.name)}: {said}</title></rect>"
        f'<text class="tick" x="{end + 6:.1f}" y="{top + 21}">{said}</text>'
    )


def _decade(power: int, height: int) -> str:
    x = _place(10.0**power)
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 8}"/>'
        f'<text class="tick" x="{x:.1f}" y="{TOP - 5}" text-anchor="middle">1e{power}</text>'
    )
