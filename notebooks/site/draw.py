"""Draw the pictures of the guides: `python notebooks/site/draw.py` writes notebooks/pictures/*.svg.

The map comes from the planner, the bars from the table in tests/benchmarks/RESULTS.md: the same facts, the same bytes.
Pictures have a background of their own, light or dark as the reader's system is, and words that stay legible at 390 px.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PICTURES = CHECKOUT / "notebooks" / "pictures"
RESULTS = CHECKOUT / "tests" / "benchmarks" / "RESULTS.md"
WIDTH, MARGIN = 560, 16
STYLE = """
  text { font: 15px system-ui, "Segoe UI", "Noto Sans", sans-serif; fill: #1c2430; }
  .strong { font-weight: 600; } .soft { fill: #5b6675; } .paper { fill: #fbfbf9; stroke: #dfe4ea; }
  .box, .free { fill: #eef2f6; stroke: #c3ccd6; } .ours { fill: #2f6f8f; } .peer { fill: #9fb4c3; }
  .room { fill: #d9a441; } .arrow { stroke: #5b6675; stroke-width: 1.5; fill: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e8ee; } .soft { fill: #a0abb9; } .paper { fill: #161a20; stroke: #343c47; }
    .box, .free { fill: #232a33; stroke: #414b57; } .ours { fill: #3d86ab; } .peer { fill: #566573; }
    .room { fill: #a87a24; } .arrow { stroke: #a0abb9; }
  }
"""

STEPS = (
    ("A checkpoint of fairseq", "model.pt, archive, partitions or shards: read in place"),
    ("Pickle", "read as data; nothing in it runs"),
    ("Names", "brought to the newest spelling, parts joined"),
    ("Plan", "class, configuration, where each weight's bytes go"),
    ("Folder next to OUTPUT", "bytes copied to safetensors; tokenizer.json, card"),
    ("Proof", "every weight bit for bit, every layer's outputs"),
    ("OUTPUT", "appears in one rename, complete"),
)


def main() -> None:
    """Write every picture."""
    PICTURES.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (PICTURES / name).write_text(svg, encoding="utf-8")


def pictures() -> dict[str, str]:
    """The pictures by the names of their files."""
    return {
        "convert.svg": way_of_a_checkpoint(),
        "placement.svg": map_of_xxl(),
        "throughput.svg": compared_with_peers(),
    }


def way_of_a_checkpoint() -> str:
    """The steps of `convert`, one below the other."""
    parts = []
    for number, (name, what) in enumerate(STEPS):
        y = MARGIN + number * 60
        parts += [box("box", MARGIN, y, WIDTH - 2 * MARGIN, 44), words(MARGIN + 12, y + 19, name, "strong")]
        parts.append(words(MARGIN + 12, y + 37, what, "soft"))
        if number:
            parts.append(f'<path class="arrow" d="M{WIDTH // 2} {y - 15}v12m-5 -5l5 5l5 -5"/>')
    return drawing("The way of a checkpoint through convert", MARGIN + len(STEPS) * 60, parts)


def map_of_xxl() -> str:
    """What goes where of XXL in bfloat16 on two GPUs of 24 GiB, as the planner says."""
    from hf_xlmr.model_shape import shape_of
    from hf_xlmr.sharding import plan_placement

    memory = {0: "24GiB", 1: "24GiB", "cpu": "64GiB"}
    plan = plan_placement(shape_of("xlmr.xxl"), max_memory=memory, dtype="bfloat16", tokens=8192)
    parts, full = [], WIDTH - 2 * MARGIN
    for number, share in enumerate(each for each in plan.shares if each.modules):
        y = MARGIN + number * 118
        others = [name.rsplit(".", 1)[-1] for name in share.modules if not re.search(r"\.\d+$", name)]
        held = f"layers {share.layers[0]} to {share.layers[-1]}, {', '.join(others)}"
        parts.append(words(MARGIN, y + 15, f"GPU {share.device}: {held}", "strong"))
        x: float = MARGIN
        parts.append(box("free", x, y + 26, full, 40))
        for kind, size in (("ours", share.weights), ("room", share.activations)):
            width = full * size / (share.budget or size)
            parts.append(box(kind, x, y + 26, width, 40))
            x += width
        sizes = (share.weights, share.activations, share.headroom or 0)
        label = "weights {:.1f} GiB, room for 8,192 tokens {:.1f}, free {:.1f} of 24".format(
            *(n / 2**30 for n in sizes)
        )
        parts.append(words(MARGIN, y + 88, label, "soft"))
    return drawing("XLM-R XXL in bfloat16 on two GPUs", MARGIN + len(plan.shares[:2]) * 118 - 14, parts)


def compared_with_peers() -> str:
    """Seconds for 512 texts compared with other libraries, in float32 and int8, in the newest run of RESULTS.md."""
    groups = measured(RESULTS.read_text(encoding="utf-8"))
    longest = max(seconds for rows in groups.values() for _, seconds in rows)
    parts, y = [], MARGIN
    for dtype, rows in groups.items():
        parts.append(words(MARGIN, y + 15, f"{dtype}: seconds for 512 texts, less is better", "strong"))
        y += 26
        for name, seconds in rows:
            width = (WIDTH - 2 * MARGIN - 56) * seconds / longest
            parts.append(box("ours" if name == "hf_xlmr" else "peer", MARGIN, y + 20, width, 14))
            parts += [words(MARGIN, y + 14, name, "soft"), words(MARGIN + width + 8, y + 32, f"{seconds:.1f}")]
            y += 42
        y += 10
    return drawing("Seconds for 512 texts, compared with other libraries", y, parts)


def measured(text: str) -> dict[str, list[tuple[str, float]]]:
    """The rows of the table below "Beside fused graphs and other int8", by dtype."""
    section = text.split("### Beside fused graphs and other int8\n")[1].split("\n##")[0]
    found: dict[str, list[tuple[str, float]]] = {"float32": [], "int8": []}
    for cells, seconds in re.findall(r"^\| ([^|]+) \| ([\d.]+)(?: \([^|]*\))? \|", section, flags=re.M):
        if "matrix products" not in cells:
            dtype = "int8" if "int8" in cells else "float32"
            found[dtype].append((_short(cells, dtype), float(seconds)))
    return found


def _short(cells: str, dtype: str) -> str:
    """The name of a peer, without the dtype that stands above it."""
    name = re.sub(rf",? (?:dynamic )?{dtype}\b", "", cells).strip()
    return name.replace(", its optimizer's fused graph", ", fused graph")


# ---- SVG -------------------------------------------------------------------------------------------------------------


def drawing(title: str, height: float, parts: Iterable[str]) -> str:
    """An SVG of `parts`, on a background."""
    return "\n".join(_lines(title, height, [*parts])) + "\n"


def _lines(title: str, height: float, parts: Sequence[str]) -> Iterator[str]:
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    yield f"<title>{escape(title)}</title><style>{STYLE}</style>"
    yield f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:.0f}" rx="8"/>'
    yield from parts
    yield "</svg>"


def box(kind: str, x: float, y: float, width: float, height: float) -> str:
    """A rectangle."""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="4"/>'


def words(x: float, y: float, text: str, kind: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes({"class": kind})}>{escape(text)}</text>'


def attributes(given: Mapping[str, str]) -> str:
    """Those that have a value."""
    return "".join(f' {name}="{value}"' for name, value in given.items() if value)


if __name__ == "__main__":
    main()
