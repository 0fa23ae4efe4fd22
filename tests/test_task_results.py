"""Results are printed, drawn and kept as the papers order them, and a card keeps everything else it says."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from refusals import told

from hf_xlmr.cli.console import show_results
from hf_xlmr.cli.task_commands import finetune
from hf_xlmr.conversion import convert
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Task
from hf_xlmr.tasks.metrics import MLQA_RULES
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_card import card_section, eval_results, put_results_in_card
from hf_xlmr.tasks.results_plot import figure_of, plot_results
from hf_xlmr.tasks.results_table import tables_of
from hf_xlmr.tasks.xnli import XNLI_LANGUAGES

PAPERS_XNLI = "en fr es de el bg ru tr ar vi th zh hi sw ur"
PAPERS_MLQA = "en es de ar hi vi zh"
MLQA_PAIRS = [f"{context}-{question}" for context in ("zh", "en", "de") for question in ("de", "zh", "en")]


def results_of(task: str, languages: Iterable[str], *, model: str = "my-model", first: float = 50.0) -> TaskResults:
    """Scores that count up by one from language to language, and by a tenth from metric to metric, all a bit apart."""
    metrics = TASKS[task].scoring.metrics
    scores = {
        language: {metric: first + number - place / 10 for place, metric in enumerate(metrics)}
        for number, language in enumerate(languages)
    }
    return TaskResults(task, model, metrics, scores, dict.fromkeys(scores, 100))


# ---- what tasks say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_task_gives_every_fact(name: str) -> None:
    task = TASKS[name]
    assert task.name == name and not [fact for fact in Task.__annotations__ if not hasattr(task, fact)]
    assert set(task.scoring.in_a_cell) <= set(task.scoring.metrics) and task.scoring.orders


@pytest.mark.parametrize("fact", ["learning_rate", "epochs", "batch_size", "warmup", "weight_decay", "max_length"])
def test_the_help_of_the_program_has_the_numbers_of_the_recipes(fact: str) -> None:
    hint = get_type_hints(finetune, include_extras=True)[fact]
    numbers = {f"{getattr(task.recipe, fact):g}" for task in TASKS.values()}
    assert numbers <= set(re.findall(r"[\d.e-]*\d", hint.__metadata__[0].show_default))


# ---- order and averages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "given", "ordered"),
    [
        ("xnli", sorted(XNLI_LANGUAGES), PAPERS_XNLI),
        ("xnli", ["zh", "qu", "sw", "en", "eo"], "en zh sw eo qu"),
        ("mlqa", sorted(MLQA_RULES), PAPERS_MLQA),
        ("mlqa", ["zh", "pt", "de"], "de zh pt"),
        ("ner", ["de", "es", "nl", "en"], "en nl es de"),
        ("ner", ["nl", "en"], "en nl"),
        ("ner", ["zh", "de", "nl", "la", "en", "es", "ar"], "en ar de es nl zh la"),
        ("mlqa", MLQA_PAIRS, "en-en en-de en-zh de-en de-de de-zh zh-en zh-de zh-zh"),
    ],
)
def test_languages_stand_as_in_the_papers(task: str, given: list[str], ordered: str) -> None:
    """CoNLL's four as XLM-R's paper has them, with others as XTREME; those that no paper has come last."""
    results = results_of(task, given)
    assert " ".join(results.languages) == " ".join(results.counts) == ordered
    assert results.scores[given[0]][results.metrics[0]] == 50.0


def test_every_language_counts_alike_in_the_average() -> None:
    scores = {"en": {"f1": 80.0, "exact_match": 60.0}, "zh": {"f1": 50.0, "exact_match": 25.0}}
    results = TaskResults("mlqa", "m", ("f1", "exact_match"), scores, {"en": 11_590, "zh": 10})
    assert results.average == {"f1": 65.0, "exact_match": 42.5}


def test_published_averages_are_those_of_the_published_languages() -> None:
    """What is copied from the papers adds up: a mistyped cell would not."""
    assert [each.average for each in TASKS["xnli"].scoring.published] == [(83.6,), (85.4,), (86.0,)]
    assert [each.average for each in TASKS["mlqa"].scoring.published] == [(70.7, 52.7), (73.4, 55.3), (74.8, 56.6)]
    for task, languages in (("xnli", PAPERS_XNLI), ("mlqa", PAPERS_MLQA)):
        for each in TASKS[task].scoring.published:
            if each.scores:
                assert " ".join(each.scores) == languages
                means = [sum(cells) / len(each.scores) for cells in zip(*each.scores.values(), strict=True)]
                assert means == pytest.approx(each.average, abs=0.1)


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_results_are_read_back_as_they_were(task: str, tmp_path: Path) -> None:
    results = replace(
        results_of(task, ["de", "en"], model="модель"),
        skipped={"de": 2},
        settings={"seed": 1, "bf16": True, "lr": 1e-5},
    )
    path = tmp_path / "results.json"
    path.write_text(results.to_json(), encoding="utf-8")
    assert TaskResults.read(path) == results == TaskResults.from_json(results.to_json())
    assert list(TaskResults.read(path).languages) == list(results.languages)
    assert json.loads(results.to_json())["average"] == results.average


GOOD = json.loads(results_of("mlqa", ["en", "de"]).to_json())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[]", "an object is expected, not a list"),
        ({**GOOD, "scores": None}, "'scores' is null, not an object"),
        ({name: value for name, value in GOOD.items() if name != "counts"}, "there is no 'counts'"),
        ({**GOOD, "task": "squad"}, "the task 'squad' is unknown; there are xnli, mlqa, ner"),
        ({**GOOD, "metrics": ["accuracy"]}, "mlqa has the metrics f1, exact_match, not ('accuracy',)"),
        ({**GOOD, "metrics": [["f1"], {}]}, "mlqa has the metrics"),
        ({**GOOD, "scores": {}, "counts": {}}, "no language has scores"),
        ({**GOOD, "counts": {"en": 1}}, "scores are of en, de, counts of en"),
        ({**GOOD, "scores": {"en": {"f1": 1.0}, "de": {"f1": 1.0}}}, "where f1 and exact_match are expected"),
        ({**GOOD, "scores": {"en": 3, "de": 3}}, "'en' has 3 where f1 and exact_match are expected"),
        (
            {**GOOD, "scores": {each: {"f1": 101.0, "exact_match": 1} for each in ("en", "de")}},
            "101.0, which is not a p",
        ),
        ({**GOOD, "scores": {each: {"f1": True, "exact_match": 1} for each in ("en", "de")}}, "True, which is not a p"),
        (
            {**GOOD, "scores": {each: {"f1": float("nan"), "exact_match": 1} for each in ("en", "de")}},
            "nan, which is not",
        ),
        ({**GOOD, "counts": {"en": 1, "de": 1.5}}, "the number of examples of 'de' that were scored is 1.5"),
        ({**GOOD, "skipped": {"en": -1}}, "the number of examples of 'en' that were skipped is -1"),
        ({**GOOD, "settings": {"lr": [1]}}, "the setting 'lr' is a list"),
        (
            {**GOOD, "scores": dict.fromkeys(("en", "en-en"), GOOD["scores"]["en"]), "counts": {"en": 1, "en-en": 1}},
            "two of the pairs en, en-en are the same",
        ),
    ],
)
def test_damaged_files_are_refused_by_one_sentence(content: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    message = told(TaskResults.read, path)
    assert message.startswith(f"{path} ") and sentence in message and "\n" not in message


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    assert told(TaskResults.read, tmp_path / "x.json").endswith("this is not UTF-8")
    assert "No such file" in told(TaskResults.read, tmp_path / "none.json")


# ---- tables ----------------------------------------------------------------------------------------------------------


def markdown_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.split("\n") if line[:1] == "|"]


def test_a_row_for_each_model_and_a_column_for_each_language() -> None:
    one, other = results_of("xnli", ["zh", "en", "qu"]), results_of("xnli", ["en", "fr"], model="other|*", first=70)
    (table,) = tables_of([one, other])
    assert table.columns == ("model", "en", "fr", "zh", "qu", "Avg")
    assert table.rows == (
        ("my-model", "51.0", "-", "50.0", "52.0", "51.0"),
        ("other|*", "70.0", "71.0", "-", "-", "70.5"),
    )
    assert any("averages are over different languages" in note for note in table.notes)
    heading, rule, first, second = markdown_rows(table.as_markdown())
    assert heading == list(table.columns) and rule == ["---", *["---:"] * 5]
    assert first == list(table.rows[0]) and second[0] == "other\\|\\*"


def test_text_has_its_columns_below_each_other() -> None:
    (table,) = tables_of([results_of("mlqa", ["en", "de"], model="a long name"), results_of("mlqa", ["de"], first=5)])
    _, heading, *rows = table.as_text().split("\n")[:4]
    assert heading.split() == ["model", "en", "de", "Avg"]
    assert rows[0].split("  ")[0] == "a long name" and "50.0 / 49.9" in rows[0]
    assert len(rows[0]) == len(rows[1]) == len(heading), "numbers end below each other"


def test_precision_and_recall_are_shown_of_one_model() -> None:
    (table,) = tables_of(results_of("ner", ["en", "de"]))
    assert [row[0] for row in table.rows] == ["my-model", "  precision", "  recall"]
    assert table.rows[2] == ("  recall", "49.8", "50.8", "50.3")
    (several,) = tables_of([results_of("ner", ["en", "de"]), results_of("ner", ["en", "de"], model="other")])
    assert [row[0] for row in several.rows] == ["my-model", "other"]


def test_pairs_of_languages_are_a_matrix() -> None:
    (table,) = tables_of(results_of("mlqa", ["zh-en", "zh-zh", "en-en"]))
    assert table.columns == ("context \\ question", "en", "zh", "Avg")
    assert table.rows == (
        ("en", "52.0 / 51.9", "-", "52.0 / 51.9"),
        ("zh", "50.0 / 49.9", "51.0 / 50.9", "50.5 / 50.4"),
        ("Avg", "51.0 / 50.9", "51.0 / 50.9", "51.0 / 50.9"),
    )
    assert "Context and question in the same language: 51.5 / 51.4 on average." in table.notes
    (of_same,) = tables_of(results_of("mlqa", ["zh-zh", "en-en"]))
    assert of_same.columns == ("model", "en", "zh", "Avg"), "nothing is crossed"


@pytest.mark.parametrize("task", ["xnli", "mlqa"])
def test_what_was_published_is_never_among_what_was_measured(task: str) -> None:
    results = results_of(task, ["en", "zh", "qu"])
    (without,), (table,) = tables_of(results), tables_of(results, references=True)
    assert not without.published and table.rows == without.rows
    assert [row[0].split(" (")[0] for row in table.published] == ["XLM-R large", "XLM-R XL", "XLM-R XXL"]
    assert [row[-1] for row in table.published] == [
        " / ".join(f"{value:.1f}" for value in each.average) for each in TASKS[task].scoring.published
    ]
    assert all(row[3] == "-" for row in table.published), "no paper has Quechua"
    text = table.as_text()
    assert text.index("my-model") < text.index("published:") < text.index("XLM-R large")
    assert "arXiv:1911.02116" in text and "arXiv:2105.00572" in text
    published = [row for row in markdown_rows(table.as_markdown()) if "published" in row[0]]
    assert len(published) == 3 and all(cell[0] == cell[-1] == "*" for row in published for cell in row)
    assert all("published" in heading for heading in table.turned.columns[2:])


def test_published_averages_are_over_the_languages_of_the_table_where_the_papers_have_them_all() -> None:
    (few,) = tables_of(results_of("xnli", ["en", "sw"]), references=True)
    assert [row[1:] for row in few.published] == [
        ("89.1", "78.0", "83.5"),  # (89.1 + 78.0) / 2, rounded to even
        ("91.1", "79.8", "85.4"),
        ("91.5", "81.7", "86.6"),
    ]
    assert few.notes[-1].endswith("their averages are over the languages shown.")
    (every,) = tables_of(results_of("xnli", PAPERS_XNLI.split()), references=True)
    assert [row[-1] for row in every.published] == ["83.6", "85.4", "86.0"]
    assert every.notes[-1].endswith("their averages are over all languages of the paper.")
    (mixed,) = tables_of(results_of("mlqa", ["en", "ar"]), references=True)
    assert [row[-1] for row in mixed.published][1:] == ["73.4 / 55.3", "74.8 / 56.6"], "known as averages alone"
    assert mixed.notes[-1].endswith("over all languages of the paper, of XLM-R large over the languages shown.")


def test_published_figures_stand_apart_from_a_matrix() -> None:
    matrix, published = tables_of(results_of("mlqa", MLQA_PAIRS), references=True)
    assert matrix.rows == tables_of(results_of("mlqa", MLQA_PAIRS))[0].rows
    assert "published (context and question in the same language)" in published.title
    assert published.columns == ("model", "en", "de", "zh", "Avg")
    assert len(tables_of(results_of("ner", ["en"]), references=True)) == 1


def test_examples_are_counted_and_those_left_out_are_told() -> None:
    (table,) = tables_of(replace(results_of("mlqa", ["en", "de"]), skipped={"de": 3, "en": 0}))
    assert table.notes == (
        "Examples: 100 in each of 2.",
        "Left out, for answers that are not where they should be: de 3.",
    )
    one, other = results_of("xnli", ["en"]), replace(results_of("xnli", ["en"], model="b"), counts={"en": 7})
    assert tables_of([one, other])[0].notes == ("Examples of my-model: en 100.", "Examples of b: en 7.")


def test_results_of_several_tasks_are_not_compared(tmp_path: Path) -> None:
    both = [results_of("xnli", ["en"]), results_of("ner", ["en"])]
    for call in (lambda: tables_of(both), lambda: plot_results(both, tmp_path / "x.svg"), lambda: tables_of([])):
        assert "results of one task are compared, not of " in told(call)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_no_number_is_cut_off(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is too wide for it has a language in each row."""
    monkeypatch.setenv("COLUMNS", str(width))
    results = results_of("mlqa", MLQA_RULES, model="[bold]model[/bold]\x1b[31m")
    show_results(tables_of(results))
    lines = capsys.readouterr().out.split("\n")
    heading, *rows = lines[1:]
    is_turned = width < 110
    assert heading.split()[0] == ("language" if is_turned else "model")
    assert "[bold]model[/bold]\\x1b[31m" in (heading if is_turned else rows[0])
    assert all(f"{score['f1']:.1f} / {score['exact_match']:.1f}" in "".join(rows) for score in results.scores.values())
    assert "\x1b" not in "".join(lines) and "…" not in "".join(lines)


# ---- bars ------------------------------------------------------------------------------------------------------------

SEVERAL = [results_of("xnli", XNLI_LANGUAGES, model="zero-shot"), results_of("xnli", ["en", "qu"], model="b", first=70)]


DRAWN = [(ending, references) for ending in ("svg", "png") for references in (True, False)]
DRAW = """
import sys
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_plot import plot_results
for ending, references in {drawn}:
    plot_results([TaskResults.read(each) for each in sys.argv[1:]], f"{{references}}.{{ending}}", references=references)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bars as another process draws them, with another home and other hashes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    files = [folder / f"{number}.json" for number in range(len(SEVERAL))]
    for path, each in zip(files, SEVERAL, strict=True):
        path.write_text(each.to_json(), encoding="utf-8")
    environment = {"PYTHONHASHSEED": "7", "HOME": str(folder)}
    command = [sys.executable, "-c", DRAW.format(drawn=DRAWN), *files]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return folder


@pytest.mark.parametrize(("ending", "references"), DRAWN)
def test_the_same_results_give_the_same_bytes(ending: str, references: bool, elsewhere: Path, tmp_path: Path) -> None:
    here, other = tmp_path / f"here.{ending}", tmp_path / f"other.{ending}"
    plot_results(SEVERAL, here, references=references)
    assert here.read_bytes() == (elsewhere / f"{references}.{ending}").read_bytes()
    plot_results(SEVERAL[:1], other, references=references)
    assert here.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(("task", "n_bars"), [("xnli", 2 + 1), ("ner", 2 + 1), ("mlqa", 2 * (2 + 1))])
def test_bars_are_as_high_as_scores(task: str, n_bars: int) -> None:
    """A bar for each language and the average; those of MLQA hold the exact matches in those of F1."""
    results = results_of(task, ["en", "de"])
    (axes,) = figure_of(results).axes
    heights = [patch.get_height() for patch in axes.patches]
    expected = [
        scores[metric]
        for metric in (results.metrics if task == "mlqa" else results.metrics[:1])
        for scores in (*results.scores.values(), results.average)
    ]
    assert heights == pytest.approx(expected) and len(heights) == n_bars
    assert [label.get_text() for label in axes.get_xticklabels()] == ["en", "de", "Avg"]


def test_published_scores_are_marks_and_no_bars() -> None:
    plain, marked = (figure_of(SEVERAL, references=each).axes[0] for each in (False, True))
    assert len(plain.patches) == len(marked.patches)
    marks = [line for line in marked.lines if "published" in str(line.get_label())]
    assert [list(line.get_ydata()) for line in marks] == [
        [*(scores[0] for scores in each.scores.values()), each.average[0]] for each in TASKS["xnli"].scoring.published
    ]


def test_published_scores_of_pairs_stand_at_their_own_language() -> None:
    """And no published average beside one over all pairs."""
    (axes,) = figure_of(results_of("mlqa", MLQA_PAIRS), references=True).axes
    (marks,) = [line for line in axes.lines if "published" in str(line.get_label())]
    published = TASKS["mlqa"].scoring.published[0].scores
    assert list(marks.get_ydata()) == [published[language][0] for language in ("en", "de", "zh")]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[:4] == ["en\non en", "de\non en", "zh\non en", "en\non de"] and labels[-1] == "Avg"
    (of_same,) = figure_of([results_of("mlqa", ["en-en", "de"]), results_of("mlqa", ["en"])]).axes
    assert [label.get_text() for label in of_same.get_xticklabels()] == ["en", "de", "Avg"]


def test_no_bar_and_no_number_overlaps_another() -> None:
    """Also where there are many: the figure grows."""
    figure = figure_of([replace(SEVERAL[0], model=str(number)) for number in range(4)], references=True)
    figure.canvas.draw()
    (axes,) = figure.axes
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.x0)
    apart = [left.x1 <= right.x0 or not left.overlaps(right) for left, right in itertools.pairwise(boxes)]
    assert len(boxes) == 4 * 16 and all(apart)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """As WCAG 2 counts it."""

    def light(colour: tuple[float, ...]) -> float:
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
        return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    brighter, darker = sorted((light(one), light(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_colours_are_seen_on_white_and_on_dark() -> None:
    from matplotlib.colors import to_rgb

    from hf_xlmr.tasks.results_plot import COLOURS, INK

    for colour in (INK, *COLOURS):
        for background in ("#ffffff", "#0d1117"):
            assert contrast(to_rgb(colour), to_rgb(background)) >= 3, (colour, background)


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "x.pdf ends neither with .svg nor .png" in told(plot_results, SEVERAL, tmp_path / "x.pdf")
    assert "No such file" in told(plot_results, SEVERAL, tmp_path / "none" / "x.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert told(plot_results, SEVERAL, tmp_path / "x.svg") == "drawing needs matplotlib: pip install 'hf-xlmr[train]'"


# ---- the card --------------------------------------------------------------------------------------------------------

CARD = """---
license: mit   # ours
tags: [a,
  b]
# a comment
language:
- en
---

# Title

Text with  trailing blanks.  \t
<!-- results: not ours -->
"""
THEIRS = """model-index:
- name: theirs
  extra: kept
  results:
  - task: {type: text-classification}
    dataset: {type: imdb, name: IMDb}
    metrics:
    - {type: accuracy, value: 0.5, verified: true}
"""


def card_in(folder: Path, text: str) -> Path:
    path = folder / "README.md"
    path.write_bytes(text.encode())
    return path


def less_results(text: str, results: TaskResults, **options: Any) -> str:
    """The card without the section and the index."""
    section = card_section(results, **options)
    if "\r\n" in text:
        section = section.replace("\n", "\r\n")
    assert text.count(section) == 1
    start = text.index("model-index:")
    end = text.index("\n---", start) + 1
    return text[:start] + text[end:].replace(section, "")


def index_of(path: Path) -> list[dict[str, Any]]:
    _, metadata, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    return list(yaml.safe_load(metadata)["model-index"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_card_keeps_everything_else(task: str, line_end: str, tmp_path: Path) -> None:
    before = CARD.replace("\n", line_end)
    path = card_in(tmp_path, before)
    results = results_of(task, ["en", "de"])
    put_results_in_card(tmp_path, results)
    once = path.read_bytes()
    put_results_in_card(path, results)
    assert path.read_bytes() == once
    put_results_in_card(path, results_of(task, ["en", "fr"], first=10))
    assert path.read_bytes() != once and b"60" not in path.read_bytes()
    put_results_in_card(path, results)
    assert path.read_bytes() == once
    assert less_results(once.decode(), results) == before + 2 * line_end


def test_the_hub_reads_the_results_of_a_card(tmp_path: Path) -> None:
    convert("demo", tmp_path / "model", verify=False)
    path = tmp_path / "model" / "README.md"
    before = path.read_text(encoding="utf-8")
    results = replace(results_of("mlqa", ["en-de", "en"]), settings={"data": "facebook/mlqa", "split": "test"})
    put_results_in_card(tmp_path / "model", results)
    card = ModelCard.load(path)
    assert card.data.model_name == "model" and card.data.library_name == "transformers"
    assert card.data.eval_results == eval_results(results)
    found = {(each.dataset_config, each.metric_type): each.metric_value for each in card.data.eval_results}
    assert found == {
        (language, metric): round(scores[metric], 4)
        for language, scores in ((None, results.average), *results.scores.items())
        for metric in results.metrics
    }
    (first, *_) = card.data.eval_results
    assert (first.task_type, first.dataset_type, first.dataset_split) == ("question-answering", "facebook/mlqa", "test")
    assert less_results(path.read_text(encoding="utf-8"), results) == before + "\n\n"
    assert "my-model" in path.read_text(encoding="utf-8") and "`split` test" in path.read_text(encoding="utf-8")


def test_results_of_others_stay(tmp_path: Path) -> None:
    """Those of another data set, of another task, and what an index says that is not ours."""
    path = card_in(tmp_path, CARD.replace("language:\n", f"{THEIRS}language:\n"))
    (theirs,) = index_of(path)
    xnli, ner = results_of("xnli", ["en"]), results_of("ner", ["en"])
    for each, data in ((xnli, "one"), (xnli, "two"), (ner, "one")):
        put_results_in_card(path, each, dataset=data)
    whole = path.read_bytes()
    put_results_in_card(path, xnli, dataset="one")
    assert path.read_bytes() == whole, "renewed in its place"
    (index,) = index_of(path)
    assert (index["name"], index["extra"], index["results"][0]) == ("theirs", "kept", theirs["results"][0])
    kinds = [(each["task"]["type"], each["dataset"]["type"]) for each in index["results"][1:]]
    assert list(dict.fromkeys(kinds)) == [
        ("text-classification", "one"),
        ("text-classification", "two"),
        ("token-classification", "one"),
    ]
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- results: xnli on ") == 2 and text.count("<!-- results: ner on one -->") == 1
    assert "license: mit   # ours\ntags: [a,\n  b]\n# a comment\n" in text and "\nlanguage:\n- en\n---\n" in text


def test_a_card_without_metadata_gains_them(tmp_path: Path) -> None:
    path = card_in(tmp_path, "# Only text")
    put_results_in_card(path, results_of("xnli", ["en"]))
    assert len(ModelCard.load(path).data.eval_results) == 2
    assert ModelCard.load(path).text.startswith("\n# Only text\n\n<!-- results: xnli on xnli -->\n## Natural language")


def test_files_are_named_without_where_they_lay(tmp_path: Path) -> None:
    data = tmp_path / "mine.tsv"
    data.touch()
    for given, name in ((str(data), "mine.tsv"), (f"{tmp_path}/*.tsv", "*.tsv"), ("facebook/xnli", "facebook/xnli")):
        results = replace(results_of("xnli", ["en"]), settings={"data": given})
        assert eval_results(results)[0].dataset_type == name
        shown = name.replace("*", "\\*")
        assert f"## Natural language inference: {shown}\n" in card_section(results)


def test_names_cannot_break_out_of_a_section(tmp_path: Path) -> None:
    path = card_in(tmp_path, CARD)
    hostile = "x --> <script>\n---\nw\n===\n# y | `z`\n<!-- end of results: xnli on xnli -->"
    results = replace(results_of("xnli", ["en"], model=hostile), settings={hostile: hostile})
    for _ in range(2):
        put_results_in_card(path, results, dataset=hostile)
    text = path.read_text(encoding="utf-8").split("---\n", 2)[2]  # below the metadata, which are YAML
    assert text.count("## Natural language inference") == 1
    markup = [each for each in MarkdownIt().enable("table").parse(text) if each.type in ("html_block", "heading_open")]
    markup += [each for several in MarkdownIt().parse(text) for each in several.children or () if "html" in each.type]
    assert {each.content.partition(" ")[0] for each in markup if "html" in each.type} == {"<!--"}
    assert [each.markup for each in markup if each.type == "heading_open"] == ["#", "##"], "none by - or ="


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ("a: [", "are not YAML"),
        ("- a", "hold a model-index that cannot be understood"),
        ("model-index: 3", "hold a model-index that cannot be understood"),
        ("model-index:\n- name: x", "hold a model-index that cannot be understood"),
        ('"model-index": [{name: x, results: []}]', "hold a model-index that cannot be understood"),
    ],
)
def test_a_card_that_cannot_be_understood_is_left_alone(metadata: str, sentence: str, tmp_path: Path) -> None:
    path = card_in(tmp_path, f"---\n{metadata}\n---\ntext\n")
    before = path.read_bytes()
    message = told(put_results_in_card, path, results_of("xnli", ["en"]))
    assert sentence in message and str(path) in message and "\n" not in message
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["README.md"]


def test_there_is_no_card(tmp_path: Path) -> None:
    assert "No such file" in told(put_results_in_card, tmp_path, results_of("xnli", ["en"]))
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert "it is not UTF-8" in told(put_results_in_card, tmp_path, results_of("xnli", ["en"]))


def test_settings_are_told_in_the_card() -> None:
    settings: Mapping[str, Any] = {"seed": 1, "mode": "zero-shot"}
    section = card_section(replace(results_of("xnli", ["en"]), settings=settings), references=True)
    assert "Evaluated with hf_xlmr: `seed` 1, `mode` zero-shot." in section
    assert "*XLM-R XXL (translate-train-all), published*" in section
