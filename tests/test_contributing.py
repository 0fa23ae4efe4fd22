"""CONTRIBUTING draws the floors as test_floors.py has them: `python tests/test_contributing.py` draws anew."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "CONTRIBUTING.md"
PICTURE = re.compile(r"(?<=<!-- floors -->\n).*?(?=<!-- /floors -->)", flags=re.S)
WIDTH = 116


def picture() -> str:
    """Floors from the roof down, each numbered, with the names of its modules."""
    from test_floors import FLOORS

    lines = ["```"]
    for number, floor in reversed(list(enumerate(FLOORS))):
        names = " ".join(sorted(short(module) for module in floor))
        lines += textwrap.wrap(names, WIDTH, initial_indent=f"{number:>2} | ", subsequent_indent="   | ")
    return "\n".join([*lines, "```\n"])


def short(module: str) -> str:
    """As a path below the checkout, without its ending."""
    inside = module.removeprefix("hf_xlmr.")
    return inside.replace("conversion.", "conversion/").replace("tasks.", "tasks/")


def test_the_picture_is_of_this_house() -> None:
    found = PICTURE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == picture(), "run: python tests/test_contributing.py"


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert set(re.findall(r"`make (\w+)`", text)) <= set(targets)
    for path in re.findall(r"`((?:tests|conversion|notebooks)/[\w./]*)`", text):
        assert (CHECKOUT / path).exists(), path


if __name__ == "__main__":
    PAGE.write_text(PICTURE.sub(lambda _: picture(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
