"""The site has every guide, notebook and command, and its links lead somewhere; `make docs` builds it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import CHECKOUT

from hf_xlmr.cli.command_help import SUMMARIES

SITE = CHECKOUT / "notebooks" / "site"
sys.path.append(str(SITE))
import build_site  # noqa: E402 - scripts, not packages
import draw  # noqa: E402

sys.path.remove(str(SITE))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sources by name, without the outputs of commands and notebooks."""
    folder = tmp_path_factory.mktemp("site")
    build_site.assemble(folder, outputs=dict.fromkeys(SUMMARIES, "what it prints\n"), notebooks={})
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in names.items()}


def named(nav: Any) -> Iterator[str]:
    for entry in [nav] if isinstance(nav, str) else nav.values() if isinstance(nav, dict) else nav:
        yield from [entry] if isinstance(entry, str) else named(entry)


def test_the_navigation_names_every_page(pages: dict[str, str]) -> None:
    nav = [*named(yaml.safe_load((SITE / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])]
    assert sorted(nav) == sorted(name for name in pages if name.endswith(".md"))
    assert {f"commands/{command}.md" for command in SUMMARIES} < {*nav}
    assert {f"notebooks/{path.stem}.md" for path in (CHECKOUT / "notebooks").glob("*.ipynb")} < {*nav}
    guides = {path.stem for path in (CHECKOUT / "notebooks" / "guide").glob("*.md")} - {"start"}
    assert {f"guide/{name}.md" for name in guides} | {"index.md"} < {*nav}


def test_links_and_their_anchors_resolve(pages: dict[str, str]) -> None:
    links = 0
    for name, text in pages.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
        for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", prose):
            links += 1
            there = (Path("/", name).parent / target).resolve().relative_to("/").as_posix() if target else name
            assert there in pages, f"{name}: {target}"
            headings = re.findall(r"^#+ (.+)$", pages[there], flags=re.M)
            assert not anchor or anchor in map(slug, headings), f"{name}: {target}#{anchor}"
    assert links > 100


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_the_page_of_a_command_has_options_examples_and_an_output(pages: dict[str, str]) -> None:
    assert {*build_site.SHOWN} == {*SUMMARIES}
    for command in SUMMARIES:
        page = pages[f"commands/{command}.md"]
        assert page.startswith(f"# hf-xlmr {command}\n")
        assert "| option | default |" in page and "\n## Examples\n" in page
        assert "\\|" not in page, "in code in a table it would be shown as it is written"
        assert f"$ {build_site.SHOWN[command]}\nwhat it prints\n" in page


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    page = CHECKOUT / "notebooks" / "guide" / "jobs.md"
    with pytest.raises(ValueError, match=r"jobs\.md links to nowhere\.md"):
        build_site.write(tmp_path, "guide/jobs.md", "[x](nowhere.md)", page)


def test_the_pictures_are_what_planner_and_results_give() -> None:
    drawn = draw.pictures()
    assert {name: (draw.PICTURES / name).read_text(encoding="utf-8") for name in drawn} == drawn, "run: draw.py"
    for name, shown in {"placement.svg": "layers 0 to 20, embeddings", "throughput.svg": ">12.5<"}.items():
        assert shown in drawn[name]
    assert "OpenVINO" in drawn["throughput.svg"] and "matrix products" not in drawn["throughput.svg"]
