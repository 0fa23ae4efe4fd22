"""CONTRIBUTING lists the packages as test_packages.py has them: `python tests/test_contributing.py` writes the list."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PAGE = CHECKOUT / "CONTRIBUTING.md"
PICTURE = re.compile(r"(?<=<!-- packages -->\n).*?(?=<!-- /packages -->)", flags=re.S)


def picture() -> str:
    """The packages from the bottom up, each with its sentence and its modules."""
    from test_packages import DOORS, PACKAGES, SOURCES, package_of, tree_of

    modules: dict[str, list[str]] = {package: [] for package in PACKAGES}
    for module in sorted(set(SOURCES) - DOORS):
        modules[package_of(module)].append(module.removeprefix("hf_xlmr."))
    lines = ["| package | what it is for | modules |", "|---|---|---|"]
    for package, names in modules.items():
        sentence = (ast.get_docstring(tree_of(f"hf_xlmr.{package}")) or "").splitlines()[0]
        inside = [name.removeprefix(f"{package}.") for name in names if name != package and "." in name]
        lines.append(f"| `{package.replace('.', '/')}` | {sentence} | {' '.join(sorted(inside))} |")
    return "\n".join([*lines, ""])


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


CLOCKS = {"monotonic", "perf_counter", "time", "monotonic_ns", "perf_counter_ns", "time_ns"}
MAY_LOOK_AT_THE_CLOCK = {  # to stop a hang, to choose when to kill, and to tell how long it took
    "patience.py",
    "kills.py",
    "matrix.py",
    "test_feature_store.py",
    "run.py",
}


def test_no_test_compares_seconds() -> None:
    """A busy machine would fail it. Benchmarks measure; they do not run with the tests."""
    found = set()
    for path in Path(__file__).parent.rglob("*.py"):
        if "benchmarks" in path.parts:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        if any(ast.unparse(call.func) in {f"time.{clock}" for clock in CLOCKS} | CLOCKS - {"time"} for call in calls):
            found.add(path.name)
    assert found <= MAY_LOOK_AT_THE_CLOCK, "count what is meant, or wait with `until` of patience.py"


if __name__ == "__main__":
    PAGE.write_text(PICTURE.sub(lambda _: picture(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
