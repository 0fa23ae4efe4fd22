"""Text of any origin reads in a card, on a page, in a table, in metadata and in a figure as it is, and does nothing."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from factory import Checkpoint, add_head
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from places import FIXTURES

from hf_xlmr.cards.card_check import check_card
from hf_xlmr.cards.markdown import as_code, as_text, as_yaml, linked_files
from hf_xlmr.conversion import convert, verify
from hf_xlmr.conversion.output.sentence_transformers_card import sentence_transformers_card
from hf_xlmr.errors import printable
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.tasks.fitting.finetuned_card import finetuned_card
from hf_xlmr.tasks.fitting.finetuned_folder import FinetuningReport
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_card import put_results_in_card
from hf_xlmr.tasks.results_plot import figure_of, plot_results

HOSTILE = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](http://x/y.png)"),
    *(
        "`a` ``b``",
        "`",
        " a ",
        "| b |",
        "a\\|b",
        "*a* _b_ ~~c~~",
        "&lt;b&gt; &amp;",
        "$x^2$",
        "# a",
        "- a",
        "1. a",
        "> a",
    ),
    *(
        "a\n---\nlicense: x",
        "a\r\n\r\nb",
        "{{ x }} ${x} %s {0}",
        "<!-- a -->",
        "--> a",
        "]]>",
        "\x1b[31m",
        "a\u202eb",
        "\u2028",
    ),
    *("---", "___", "===", "+ a", "2) a", "```", "~~~", "\\", "a  ", "=x", "'a\" b", "$\\frac$", "_x"),
)
YAML_WORDS = (
    "no",
    "null",
    "~",
    "1e3",
    "0o17",
    "0x1f",
    "1_000",
    ".inf",
    "2020-01-01",
    "12:30",
    "- a",
    "a: b",
    "#a",
    "@a",
    "",
)


def text_of(markdown: str) -> str:
    """What a reader of one line of Markdown sees; no markup may come of it."""
    tokens = MarkdownIt().enable(["table", "strikethrough"]).parse(markdown)
    assert [each.type for each in tokens] == ["paragraph_open", "inline", "paragraph_close"], markdown
    children = tokens[1].children or []
    assert {each.type for each in children} <= {"text", "text_special", "code_inline"}, markdown
    return "".join(each.content for each in children)


@pytest.mark.parametrize("value", HOSTILE)
def test_text_reads_as_it_is(value: str) -> None:
    assert text_of(f"{as_text(value)}.") in (f"{printable(value)}.", f"{printable(value).lstrip()}.")
    assert text_of(f"a {as_code(value)} b") == f"a {printable(value)} b"
    assert text_of(f"{as_code(value)}{as_text(value)}").startswith(printable(value))


@pytest.mark.parametrize("value", HOSTILE)
def test_a_cell_of_a_table_stays_one(value: str) -> None:
    table = f"| a | b |\n|---|---|\n| {as_text(value)} | {as_code(value, in_table=True)} |\n"
    tokens = MarkdownIt().enable("table").parse(table)
    cells = [each for each in tokens if each.type == "inline"][2:]
    assert len(cells) == 2 and "".join(each.content for each in cells[1].children or []) == printable(value)


@pytest.mark.parametrize("value", [*HOSTILE, *YAML_WORDS])
def test_metadata_hold_the_value(value: str) -> None:
    written = as_yaml({"a": value, "b": [value], "c": {"d": value}, "e": 33.3333, "f": 5, "g": True})
    read = yaml.safe_load(written)
    assert read == {"a": value, "b": [value], "c": {"d": value}, "e": 33.3333, "f": 5, "g": True}
    if value in ("1e3", "0o17", "0x1f", "1_000", ".inf"):  # what YAML 1.1 and 1.2 read otherwise
        assert f"a: '{value}'" in written
    assert "e: 33.3333" in written and "f: 5" in written


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_card_of_a_conversion_names_any_label(tmp_path: Path) -> None:
    labels = tuple(value for value in HOSTILE if value.strip() == value and value and " " not in value)
    checkpoint = Checkpoint()
    add_head(checkpoint.model, "x|<b>`y`", labels=len(labels))
    source = checkpoint.write(tmp_path / "<i>name|`")
    (source / "label").mkdir()
    lines = "".join(f"{printable(label)} 1\n" for label in labels)
    (source / "label" / "dict.txt").write_text(lines, encoding="utf-8")
    folder = convert(source, tmp_path / "model", head="x|<b>`y`", verify=False).output
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"].values()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(as_code(name) in card for name in [*names][:20])
    tokens = MarkdownIt().enable("table").parse(ModelCard(card).text)
    inline = [child for each in tokens for child in each.children or ()]
    assert not [each for each in [*tokens, *inline] if "html" in each.type or each.type == "image"]
    assert check_card(OpenedFolder(folder)) and (tmp_path / "model" / "README.md").is_file()
    verify(source, folder, report=tmp_path / "report.html")
    seen = Tags()
    seen.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not seen.seen & {"script", "img", "b", "i", "a"} and "<i>name|`" in seen.text
    assert not [name for name in seen.attributes if name.startswith("on")]


@pytest.mark.parametrize("value", HOSTILE)
def test_results_and_their_card_hold_any_name(value: str, tmp_path: Path) -> None:
    scores = {"en": {"accuracy": 50.0}, value: {"accuracy": 40.0}}
    results = TaskResults("xnli", value, ("accuracy",), scores, {"en": 2, value: 5}, settings={value: value})
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n\n# Card\n", encoding="utf-8")
    put_results_in_card(card, results, dataset=value)
    before = card.read_bytes()
    put_results_in_card(card, results, dataset=value)
    assert card.read_bytes() == before
    data = ModelCard.load(card).data
    assert data.license == "mit" and [each.metric_value for each in data.eval_results or ()] == [45.0, 50.0, 40.0]
    tokens = MarkdownIt().enable("table").parse(ModelCard.load(card).text)
    html = [
        each for each in [*tokens, *(child for one in tokens for child in one.children or ())] if "html" in each.type
    ]
    assert all(each.content.startswith("<!-- ") for each in html) and len(html) == 2
    assert [each.tag for each in tokens if each.type == "heading_open"] == ["h1", "h2"]


def test_a_figure_shows_any_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    several = []
    for value in ("a $\\frac$ b$", "$x$", "_hidden", "two\nlines", "<b>&"):
        scores = {"en": {"accuracy": 50.0}, value: {"accuracy": 40.0}}
        several.append(TaskResults("xnli", value, ("accuracy",), scores, {"en": 2, value: 5}))
    plot_results(several, tmp_path / "a.svg", title="$\\frac$")
    legend = figure_of(several).legends[0]
    shown = [each.get_text().replace("\\$", "$").strip() for each in legend.get_texts()]
    assert shown[:5] == [printable(each.model) for each in several]


CARDS = {
    "usual": "---\nlanguage:\n- de\nlibrary_name: transformers\ntags:\n- a\n---\n# Card\n",
    "flow": "---\ntags: [a, b]  # mine\nlibrary_name: transformers\n---\n# Card\n",
    "one tag": "---\ntags: a\n---\n# Card\n",
    "quoted": '---\n"library_name": transformers\n"tags": ["a"]\n---\n# Card\n',
    "on the next line": "---\nlibrary_name:\n  transformers\npipeline_tag: >\n  fill-mask\n---\n# Card\n",
    "nested": "---\nx:\n  library_name: y\n  tags:\n  - z\n---\n# Card\n",
    "no tags": "---\ntags:\n---\n# Card\n",
    "none": "# Card\n",
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_for_sentence_transformers_keeps_what_metadata_say(name: str) -> None:
    card = sentence_transformers_card(CARDS[name].encode(), pool="mean", width=8, longest=9).decode()
    before: dict[str, Any] = (yaml.safe_load(CARDS[name].split("---\n")[1]) if "---" in CARDS[name] else None) or {}
    after = yaml.safe_load(card.split("---\n")[1])
    tags = before.get("tags") or []
    assert after == {
        **before,
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [*([tags] if isinstance(tags, str) else tags), "sentence-transformers"],
    }


def test_a_fine_tuned_card_names_any_label_and_setting(tmp_path: Path) -> None:
    folder = FIXTURES / "earlier" / "fine-tuned"
    draft = tmp_path / "model"
    draft.mkdir()
    named = {str(number): value for number, value in enumerate(HOSTILE)}
    config = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), "id2label": named}
    (draft / "config.json").write_text(json.dumps(config), encoding="utf-8")
    report = FinetuningReport(
        output=draft,
        parameters=1,
        trainable=1,
        task="xnli",
        model="<b>|`x`",
        class_name="XLMRobertaForSequenceClassification",
        mode="zero-shot",
        steps=3,
        trained_on=dict.fromkeys(HOSTILE, 2),
        settings=dict(zip(HOSTILE, HOSTILE, strict=True)),
    )
    card = finetuned_card(draft, folder, report)
    tokens = MarkdownIt().enable("table").parse(ModelCard(card).text)
    inline = [child for each in tokens for child in each.children or ()]
    assert not [
        each for each in [*tokens, *inline] if "html" in each.type or each.type in ("image", "link_open", "em_open")
    ]
    assert [each.tag for each in tokens if each.type == "heading_open"] == ["h1", "h2"]
    assert len([each for each in tokens if each.type == "tr_open"]) == len(HOSTILE) + 1


LINKED = {
    "![](banana.png)": {"banana.png"},
    "![a b](<loss curve.png> 'title') ![](loss%20two.png)": {"loss curve.png", "loss two.png"},
    "[![](a.png)](b.svg)": {"a.png", "b.svg"},
    "![x][one]\n\n[one]: ./figures/../a.png 'title'": {"a.png"},
    '<p align="center">\n  <img\n   alt=x SRC="figures/a.png?raw=true">\n</p>': {"figures/a.png"},
    "text <img src=a&amp;b.png> more": {"a&b.png"},
    "<picture><source srcset=\"a.webp 1x, b.webp 2x\"><img src='c.png'></picture>": {"a.webp", "b.webp", "c.png"},
    "| a |\n|---|\n| ![](cell.png) |": {"cell.png"},
    "- see [it](other.png#part)": {"other.png"},
    "a.png `![](b.png)`\n\n```\n![](c.png)\n```\n\n    ![](d.png)\n\n<!-- <img src=e.png> -->\n": set(),
    "![](https://host.org/a.png) ![](//h.org/b.png) ![](/c.png) ![](data:image/png;base64,AAAA) ![](http://[a)": set(),
    "---\ntags:\n- '![](a.png)'\n---\n\\![](b.png)": {"b.png"},
}


@pytest.mark.parametrize("card", LINKED)
def test_the_files_that_a_card_leads_to_are_those_of_its_links(card: str) -> None:
    assert linked_files(card) == LINKED[card]
