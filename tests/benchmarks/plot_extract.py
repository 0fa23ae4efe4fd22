"""The figure of extract.py's results: texts per second of hf_xlmr and its peers, beside the machine's limit.

    pip install -e '.[benchmarks]'
    python tests/benchmarks/extract.py --json results.json
    python tests/benchmarks/plot_extract.py results.json notebooks/throughput.svg [--conditions "two cores of ..."]

One panel for each dtype and each set of texts, each with a scale of its own: within a panel bars can be compared, from
panel to panel the numbers. A bar is the median of the rounds, the thin line in it their range. The dashed line is what
the model's matrix products alone would allow. The background is transparent, and the colours are legible on white and
on dark grey. The same results give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from extract import PEERS, TEXT_COUNTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DTYPES = ("float32", "bfloat16")
OURS, LIMIT = "hf_xlmr", "rate"
INK = "#7a7a7a"  # as far from white as from GitHub's dark background: 4.3 to 1
OUR_COLOUR = "#d9660a"
TITLES = {"short": "short texts (median 22 tokens)", "long": "long texts (some 400 tokens)"}
STYLE = {"font.size": 11, "text.color": INK, "axes.labelcolor": INK, "ytick.color": INK, "svg.hashsalt": "throughput"}
BAR_INCHES = 0.34
GAP, LABEL_WIDTH = 0.015, 0.15  # of a panel's longest bar


@dataclass(frozen=True)
class Speed:
    """Texts per second: the median of the rounds, the slowest and the fastest."""

    median: float
    slowest: float
    fastest: float


Panel = dict[str, Speed]  # by name of the peer, or LIMIT


def panels_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Panel]:
    """What is drawn, by set of texts and dtype."""
    panels: dict[tuple[str, str], Panel] = {}
    for row in rows:
        name, _, dtype = row["case"].rpartition(" ")
        count, (least, most) = TEXT_COUNTS[row["texts"]], map(float, row["range"].split("-"))
        speed = Speed(count / row["seconds"], count / most, count / least)
        panels.setdefault((row["texts"], dtype), {})[name] = speed
    return panels


def figure_of(rows: Sequence[dict[str, Any]], *, conditions: str | None = None) -> Figure:
    """A row of panels for each set of texts, a column for each dtype."""
    from matplotlib.figure import Figure

    panels = panels_of(rows)
    kinds = [kind for kind in TEXT_COUNTS if any(kind == each for each, _ in panels)]
    dtypes = [dtype for dtype in DTYPES if any(dtype == each for _, each in panels)]
    names = [name for name in PEERS if any(name in panel for panel in panels.values())]
    height = len(kinds) * (BAR_INCHES * len(names) + 0.9) + 0.5
    figure = Figure(figsize=(4.6 * len(dtypes) + 1.2, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.06)
    grid = figure.subplots(len(kinds), len(dtypes), squeeze=False, sharey=True)
    for axes_of_kind, kind in zip(grid, kinds, strict=True):
        for axes, dtype in zip(axes_of_kind, dtypes, strict=True):
            draw(axes, panels.get((kind, dtype), {}), names, dtype=dtype)
        for label, name in zip(axes_of_kind[0].get_yticklabels(), names, strict=True):
            label.set_fontweight(weight_of(name))
        axes_of_kind[0].annotate(
            f"{TITLES[kind]}, texts per second",
            (0, 1),
            (0, 28),
            xycoords="axes fraction",
            textcoords="offset points",
            fontweight="bold",
        )
    if conditions:
        figure.supxlabel(conditions, fontsize=9, color=INK)
    return figure


def draw(axes: Axes, panel: Panel, names: Sequence[str], *, dtype: str) -> None:
    """One panel: bars with their numbers, and the limit."""
    end = max((speed.fastest for speed in panel.values()), default=1.0)
    limit = panel.get(LIMIT)
    for place, name in enumerate(names):
        if speed := panel.get(name):
            draw_bar(axes, place, speed, is_ours=name == OURS)
            start = label_start(speed, end, limit)
            axes.text(start, place, f"{speed.median:,.1f}", va="center", fontweight=weight_of(name))
        else:
            axes.text(end * GAP, place, "not measured", va="center", fontstyle="italic", fontsize=9)
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "baseline"}
    axes.annotate(dtype, (0, 1), (0, 6), **above)
    if limit:
        axes.axvline(limit.median, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        note = f"matrix products alone: {limit.median:,.1f}"
        axes.annotate(note, (limit.median, 1), (0, 6), ha="right", fontsize=10, **above)
    axes.set_xlim(0, end * 1.16)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)


def draw_bar(axes: Axes, place: int, speed: Speed, *, is_ours: bool) -> None:
    """The median as a bar, half transparent, that the line of the range is seen in it on any background."""
    colour = OUR_COLOUR if is_ours else INK
    axes.barh(place, speed.median, height=0.68, color=colour, alpha=0.75 if is_ours else 0.45, linewidth=0)
    axes.plot([speed.slowest, speed.fastest], [place, place], color=colour, linewidth=1.5, solid_capstyle="butt")


def label_start(speed: Speed, end: float, limit: Speed | None) -> float:
    """Where a bar's number begins: behind its bar, and behind the limit rather than across it."""
    start = max(speed.median, speed.fastest) + end * GAP
    is_across = limit is not None and start <= limit.median + end * GAP < start + end * LABEL_WIDTH
    return limit.median + end * GAP if limit is not None and is_across else start


def weight_of(name: str) -> str:
    return "bold" if name == OURS else "normal"


def main() -> None:
    """Read the rows, write the figure."""
    from matplotlib import rc_context

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what extract.py --json wrote")
    parser.add_argument("output", type=Path, help="a .svg or .png file")
    parser.add_argument("--conditions", help="a line below the figure: processor, threads, versions, date")
    options = parser.parse_args()
    rows = json.loads(options.results.read_text(encoding="utf-8"))
    metadata = {"Date": None} if options.output.suffix == ".svg" else None
    with rc_context(STYLE):
        figure = figure_of(rows, conditions=options.conditions)
        figure.savefig(options.output, dpi=150, transparent=True, metadata=metadata)


if __name__ == "__main__":
    main()
