"""Tables of results as the papers print them: a language per column, a model per row; as text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final

from hf_xlmr.cards.markdown import as_text
from hf_xlmr.errors import InputError
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Published
from hf_xlmr.tasks.mlqa import told_ids
from hf_xlmr.tasks.results import TaskResults, paper_order

__all__ = ["ResultsTable", "check_same_task", "is_cross_lingual", "published_scores", "tables_of"]

AVERAGE: Final = "Avg"
NOTHING: Final = "-"
MODELS, PAIRS = "model", "context \\ question"  # what the first column holds
TURNED: Final = {MODELS: "language", PAIRS: "question \\ context"}


@dataclass(frozen=True)
class ResultsTable:
    """A table that is ready to be printed."""

    title: str
    columns: tuple[str, ...]
    """The first heads the names of the rows."""
    rows: tuple[tuple[str, ...], ...]
    published: tuple[tuple[str, ...], ...] = ()
    """Rows of others, kept apart from those that were measured."""
    notes: tuple[str, ...] = ()
    """What must be known to read it, a sentence each."""

    @property
    def turned(self) -> ResultsTable:
        """The table with rows as columns, for narrow terminals; published scores are marked."""
        names = [row[0] for row in self.rows] + [f"{row[0]}, published" for row in self.published]
        bodies = [row[1:] for row in (*self.rows, *self.published)]
        rows = tuple(zip(self.columns[1:], *bodies, strict=True))
        return replace(self, columns=(TURNED[self.columns[0]], *names), rows=rows, published=())

    def as_text(self) -> str:
        """Columns that are aligned by blanks."""
        everything = (self.columns, *self.rows, *self.published)
        widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
        lines = [self.title, _line(self.columns, widths), *(_line(row, widths) for row in self.rows)]
        if self.published:
            lines += ["published:", *(_line(row, widths) for row in self.published)]
        return "\n".join((*lines, *self.notes)) + "\n"

    def as_markdown(self) -> str:
        """A table of GitHub's Markdown below its title; what was published is in italics."""
        measured = [[as_text(cell) for cell in row] for row in self.rows]
        others = [[f"*{as_text(cell)}*" for cell in (f"{row[0]}, published", *row[1:])] for row in self.published]
        heads = [as_text(cell) for cell in self.columns]
        rule = ["---", *["---:"] * (len(heads) - 1)]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *measured, *others))
        notes = " ".join(map(as_text, self.notes))
        return f"**{as_text(self.title)}**\n\n{lines}\n" + (f"\n{notes}\n" if notes else "")


def tables_of(results: TaskResults | Sequence[TaskResults], *, references: bool = False) -> tuple[ResultsTable, ...]:
    """One table for all models; one for each if questions are in other languages than their contexts.

    The columns are the languages of the papers in their order, those that were scored alone, then all others, then the
    average. With `references`, what was published is below. Raises InputError for results of several tasks.
    """
    several = (results,) if isinstance(results, TaskResults) else tuple(results)
    task = check_same_task(several)
    if any(map(is_cross_lingual, several)):
        tables = tuple(map(_matrix, several))
        found = {each: 0 for one in several for key in one.scores for each in TASKS[task].languages_of(key)}
        is_shown = references and TASKS[task].scoring.published
        return (*tables, _published_alone(task, paper_order(task, found))) if is_shown else tables
    return (_models(several, references=references),)


def published_scores(task: str) -> list[dict[str, object]]:
    """What was published of a task, for JSON: as `Published`, with scores by metric as in TaskResults."""
    scoring = TASKS[task].scoring
    named = partial(zip, scoring.in_a_cell, strict=True)
    return [
        {
            **asdict(each),
            "scores": {language: dict(named(values)) for language, values in each.scores.items()},
            "average": dict(named(each.average)),
        }
        for each in scoring.published
    ]


def check_same_task(results: Sequence[TaskResults]) -> str:
    """The task that all results are of. Raises InputError."""
    tasks = list(dict.fromkeys(each.task for each in results))
    if len(tasks) != 1:
        raise InputError(f"results of one task are compared, not of {' and '.join(tasks) or 'none'}")
    return tasks[0]


def is_cross_lingual(results: TaskResults) -> bool:
    """Whether some questions are in another language than their contexts."""
    return any(len(set(TASKS[results.task].languages_of(key))) > 1 for key in results.scores)


def _models(several: Sequence[TaskResults], *, references: bool) -> ResultsTable:
    task = several[0].task
    languages_of = TASKS[task].languages_of
    by_language = [{languages_of(key)[0]: scores for key, scores in each.scores.items()} for each in several]
    languages = paper_order(task, {language: 0 for scores in by_language for language in scores})
    rows = [
        (each.model, *(_cell(task, scores.get(language)) for language in languages), _cell(task, each.average))
        for each, scores in zip(several, by_language, strict=True)
    ]
    if len(several) == 1:
        rows += _other_metrics(several[0], languages)
    published = [_published_row(each, languages) for each in TASKS[task].scoring.published] if references else []
    return ResultsTable(
        title=f"{TASKS[task].scoring.title} in percent",
        columns=(MODELS, *languages, AVERAGE),
        rows=tuple(rows),
        published=tuple(published),
        notes=(*_notes(several), *(_sources(task, languages) if published else ())),
    )


def _cell(task: str, scores: Mapping[str, float] | None) -> str:
    return NOTHING if scores is None else _percent(scores[metric] for metric in TASKS[task].scoring.in_a_cell)


def _percent(values: Iterable[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)


def _other_metrics(results: TaskResults, languages: Sequence[str]) -> list[tuple[str, ...]]:
    """The metrics that the papers do not print, such as precision and recall."""
    others = [metric for metric in results.metrics if metric not in TASKS[results.task].scoring.in_a_cell]
    every = [*(results.scores[language] for language in languages), results.average] if others else []
    return [(f"  {metric}", *(f"{scores[metric]:.1f}" for scores in every)) for metric in others]


def _published_row(published: Published, languages: Sequence[str]) -> tuple[str, ...]:
    cells = (_percent(published.scores[each]) if each in published.scores else NOTHING for each in languages)
    return f"{published.model} ({published.trained_on})", *cells, _percent(published.average_over(languages))


def _matrix(results: TaskResults) -> ResultsTable:
    """A row for each language of contexts, a column for each of questions, and the means of both."""
    task, languages_of = results.task, TASKS[results.task].languages_of
    scores = {languages_of(key): values for key, values in results.scores.items()}
    contexts = paper_order(task, {context: 0 for context, _ in scores})
    questions = paper_order(task, {question: 0 for _, question in scores})
    rows = [
        (context, *(_cell(task, scores.get((context, question))) for question in questions), mean)
        for context in contexts
        for mean in (_mean(task, [values for (each, _), values in scores.items() if each == context]),)
    ]
    means = (_mean(task, [each for (_, asked), each in scores.items() if asked == question]) for question in questions)
    same = [values for (context, question), values in scores.items() if context == question]
    return ResultsTable(
        title=f"{TASKS[task].scoring.title} in percent, {results.model}",
        columns=(PAIRS, *questions, AVERAGE),
        rows=(*rows, (AVERAGE, *means, _cell(task, results.average))),
        notes=(
            *([f"Context and question in the same language: {_mean(task, same)} on average."] if same else []),
            *_notes([results]),
        ),
    )


def _mean(task: str, scores: Sequence[Mapping[str, float]]) -> str:
    return _percent(sum(each[metric] for each in scores) / len(scores) for metric in TASKS[task].scoring.in_a_cell)


def _published_alone(task: str, languages: Sequence[str]) -> ResultsTable:
    scoring = TASKS[task].scoring
    return ResultsTable(
        title=f"{scoring.title} in percent, published (context and question in the same language)",
        columns=(MODELS, *languages, AVERAGE),
        rows=tuple(_published_row(each, languages) for each in scoring.published),
        notes=_sources(task, languages),
    )


def _notes(several: Sequence[TaskResults]) -> list[str]:
    notes = []
    are_alike = all(each.counts == several[0].counts for each in several)
    for each in several:
        whose = f" of {each.model}" if len(several) > 1 else ""
        if not are_alike or each is several[0]:
            notes.append(f"Examples{'' if are_alike else whose}: {_per_language(each.counts)}.")
        if any(each.skipped.values()):
            why = TASKS[each.task].scoring.left_out
            notes.append(f"Left out{whose}, {why}: {_with_ids(each.skipped, each.misaligned)}.")
        scored = {key: len(ids) for key, ids in each.misaligned.items() if not each.skipped.get(key)}
        if scored:
            told = _with_ids(scored, each.misaligned)
            notes.append(f"Scored{whose} though the answers are not where they should be: {told}.")
    if not all(each.scores.keys() == several[0].scores.keys() for each in several):
        notes.append("The averages are over different languages, each over those of its own row.")
    return notes


def _with_ids(counts: Mapping[str, int], ids: Mapping[str, Sequence[str]]) -> str:
    """How many in each language, and the first of them if they have ids."""
    told = ((key, count, told_ids(ids.get(key, ()))) for key, count in counts.items() if count)
    return ", ".join(f"{key} {count:,}{f' ({first})' if first else ''}" for key, count, first in told)


def _per_language(counts: Mapping[str, int]) -> str:
    if len(set(counts.values())) == 1 and len(counts) > 1:
        return f"{next(iter(counts.values())):,} in each of {len(counts)}"
    return ", ".join(f"{key} {count:,}" for key, count in counts.items() if count)


def _sources(task: str, languages: Sequence[str]) -> tuple[str, ...]:
    published = TASKS[task].scoring.published
    sources: dict[str, list[str]] = {}
    for each in published:
        sources.setdefault(each.source, []).append(each.model)
    told = "; ".join(f"{', '.join(models)}: {source}" for source, models in sources.items())
    cut = [each.model for each in published if each.average_over(languages) != each.average]
    over = "the languages shown" if len(cut) == len(published) else "all languages of the paper"
    of_some = f", of {', '.join(cut)} over the languages shown" if 0 < len(cut) < len(published) else ""
    return (f"Published figures were not measured here ({told}); their averages are over {over}{of_some}.",)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join((first.ljust(widths[0]), *aligned)).rstrip()
