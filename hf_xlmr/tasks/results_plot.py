"""Results as bars: a group for each language, a bar for each model, and what was published as marks above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.errors import InputError, printable, told_plainly
from hf_xlmr.files.atomic_write import replace_content
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Scoring
from hf_xlmr.tasks.results import TaskResults, languages_of_pair, paper_order
from hf_xlmr.tasks.results_table import AVERAGE, check_same_task, is_cross_lingual

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure_of", "plot_results"]

ENDINGS: Final = (".svg", ".png")
# each at least 3 to 1 against white and against GitHub's dark grey
INK: Final = "#7a7a7a"
COLOURS: Final = ("#d9660a", "#3a7fc4", "#2f9070", "#a663c4", "#c2518a", "#8a7d2c")
MARKS: Final = ("o", "D", "s")
STYLE: Final[Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "results",
}
HEADING: Final[Mapping[str, object]] = {"x": 0.01, "ha": "left", "fontsize": 11, "fontweight": "bold"}
BAR_INCHES: Final = 0.27  # wide enough for its number
GAP: Final = 0.9  # between groups, in bars; twice before the average
MARK_STEP: Final = 0.32  # from mark to mark, in bars
LEGEND_INCHES: Final = 3.6  # of one entry
LABEL_HEIGHT: Final = 8.0  # of a number above a bar, in percent
HEIGHT: Final = 3.6


def plot_results(
    results: TaskResults | Sequence[TaskResults],
    path: str | Path,
    *,
    references: bool = False,
    title: str | None = None,
) -> None:
    """Draw the results of one or several models side by side, as a `.svg` or `.png` file.

    The same results give the same bytes. The background is transparent. With `references`, what was published is
    marked next to the bars.
    Raises InputError for results of several tasks, another ending, and without the pip extra `train`.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise InputError(f"{target.name} ends neither with {' nor '.join(ENDINGS)}, which are what is drawn")
    figure = figure_of(results, references=references, title=title)
    from matplotlib import rc_context

    metadata = {"Date": None} if target.suffix.lower() == ".svg" else {"Software": None}
    drawn = BytesIO()
    with rc_context(STYLE):
        figure.savefig(drawn, format=target.suffix[1:].lower(), dpi=150, transparent=True, metadata=metadata)
    with told_plainly():
        replace_content(target, drawn.getvalue())


def figure_of(
    results: TaskResults | Sequence[TaskResults], *, references: bool = False, title: str | None = None
) -> Figure:
    """The figure that `plot_results` draws, for those who draw on. Raises InputError as it does."""
    several = (results,) if isinstance(results, TaskResults) else tuple(results)
    task = check_same_task(several)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'hf-xlmr[train]'") from None
    is_of_pairs = any(map(is_cross_lingual, several))
    several = tuple(_with_keys(each, is_of_pairs=is_of_pairs) for each in several)
    keys = paper_order(task, {key: 0 for each in several for key in each.scores})
    scoring = TASKS[task].scoring
    n_marks = len(scoring.published) if references else 0
    step = len(several) + GAP + n_marks * MARK_STEP
    places = _places(keys, step, is_of_pairs=is_of_pairs)
    width = max(4.6, BAR_INCHES * (max(places.values()) + len(several) + n_marks * MARK_STEP) + 0.8)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, HEIGHT), layout="constrained")
        axes = figure.subplots()
        _frame(axes, places, n_bars=len(several), n_marks=n_marks, is_of_pairs=is_of_pairs)
        # to the figure's edge, which a title of the axes overflows where these are narrow
        usual = scoring.plot_title_of_pairs if is_of_pairs else scoring.plot_title
        figure.suptitle(_plain(title) if title else usual, **HEADING)
        for number, each in enumerate(several):
            _draw_bars(axes, each, places, offset=number, colour=COLOURS[number % len(COLOURS)])
        if references:
            _draw_published(axes, scoring, places, n_bars=len(several), is_of_pairs=is_of_pairs)
        if scoring.chance is not None:
            axes.axhline(scoring.chance, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3, label="guessing")
        _add_legend(figure, axes)
    return figure


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Below the figure, models first, in as many columns as its width holds."""
    from matplotlib.container import BarContainer

    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda number: not isinstance(handles[number], BarContainer))
    figure.legend(
        [handles[number] for number in order],
        [labels[number] for number in order],
        loc="outside lower left",
        ncols=max(1, min(len(handles), int(figure.get_figwidth() / LEGEND_INCHES))),
        frameon=False,
        fontsize=10,
    )


def _with_keys(results: TaskResults, *, is_of_pairs: bool) -> TaskResults:
    """The same with keys spelled alike: all of them pairs, or all of them languages."""
    found = {key: TASKS[results.task].languages_of(key) for key in results.scores}
    spelled = {key: "-".join(languages) if is_of_pairs else languages[0] for key, languages in found.items()}
    scores = {spelled[key]: each for key, each in results.scores.items()}
    return replace(results, scores=scores, counts={spelled[key]: count for key, count in results.counts.items()})


def _places(keys: Sequence[str], step: float, *, is_of_pairs: bool) -> dict[str, float]:
    """Where the first bar of each group is, counted in bars; contexts of MLQA are apart from each other."""
    places: dict[str, float] = {}
    at, last = 0.0, ""
    for key in keys:
        context, _ = languages_of_pair(key)
        at += GAP if is_of_pairs and last not in ("", context) else 0.0
        places[key] = at
        at, last = at + step, context
    return {**places, AVERAGE: at + GAP}


def _frame(axes: Axes, places: Mapping[str, float], *, n_bars: int, n_marks: int, is_of_pairs: bool) -> None:
    labels = [_label(key) if is_of_pairs and key != AVERAGE else _plain(key) for key in places]
    axes.set_xticks([at + (n_bars - 1) / 2 for at in places.values()], labels)
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.set_xlim(-1, max(places.values()) + n_bars + n_marks * MARK_STEP)
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "left", "right"]].set_visible(False)


def _label(key: str) -> str:
    """The language of the question above that of the context."""
    context, question = languages_of_pair(key)
    return f"{_plain(question)}\non {_plain(context)}"


def _plain(name: str) -> str:
    """A name as it reads: matplotlib takes what is between dollars for a formula."""
    return printable(name).replace("$", "\\$")


def _in_legend(name: str) -> str:
    """A name for the legend, which leaves out those that begin with an underscore."""
    return f" {_plain(name)}" if name.startswith("_") else _plain(name)


def _draw_bars(axes: Axes, results: TaskResults, places: Mapping[str, float], *, offset: int, colour: str) -> None:
    """A bar and its number for each group; exact match fills the pale bar of F1."""
    scores = {**results.scores, AVERAGE: results.average}
    at = [places[key] + offset for key in scores]
    heights = [each[results.metrics[0]] for each in scores.values()]
    if "exact_match" in results.metrics:
        exact = [each["exact_match"] for each in scores.values()]
        axes.bar(at, heights, width=0.86, color=colour, alpha=0.4)
        axes.bar(at, exact, width=0.86, color=colour, label=_in_legend(results.model))
        _number(axes, list(zip(scores, at, exact, strict=True)), is_inside=True)
    else:
        axes.bar(at, heights, width=0.86, color=colour, label=_in_legend(results.model))
    _number(axes, list(zip(scores, at, heights, strict=True)), chance=TASKS[results.task].scoring.chance)


def _number(
    axes: Axes, bars: Sequence[tuple[str, float, float]], *, is_inside: bool = False, chance: float | None = None
) -> None:
    """The number of each bar, above it, above the line of chance if that would cross it, or inside its end."""
    for key, place, height in bars:
        if is_inside and height < LABEL_HEIGHT:
            continue
        base = chance if chance and chance - LABEL_HEIGHT < height < chance else height
        axes.annotate(
            f"{height:.0f}",
            (place, base),
            (0, -2 if is_inside else 2),
            textcoords="offset points",
            ha="center",
            va="top" if is_inside else "bottom",
            fontsize=8.5,
            color="white" if is_inside else INK,
            weight="bold" if key == AVERAGE else "normal",
        )


def _draw_published(
    axes: Axes, scoring: Scoring, places: Mapping[str, float], *, n_bars: int, is_of_pairs: bool
) -> None:
    """A hollow mark for each published score, right of the bars of its language."""
    for number, (published, mark) in enumerate(zip(scoring.published, MARKS, strict=False)):
        known = {**published.scores, AVERAGE: published.average_over([key for key in places if key != AVERAGE])}
        if is_of_pairs:  # the published average is not that of all pairs
            known = {f"{language}-{language}": scores for language, scores in published.scores.items()}
        right = n_bars - 0.5 + MARK_STEP * (number + 0.5)
        marks = {places[key] + right: known[key][0] for key in places if key in known}
        if not marks:
            continue
        axes.plot(
            list(marks),
            list(marks.values()),
            linestyle="none",
            marker=mark,
            markersize=4.5,
            markerfacecolor="none",
            markeredgecolor=INK,
            label=f"{published.model} ({published.trained_on}), published",
        )
