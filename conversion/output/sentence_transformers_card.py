"""The card of a folder for sentence-transformers: the card of its model, and how texts become vectors."""

from __future__ import annotations

import re
from typing import Final

from hf_xlmr.cards.markdown import as_yaml

__all__ = ["sentence_transformers_card"]

METADATA: Final = re.compile(rb"\A---\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
HEADING: Final = re.compile(rb"^## ", re.MULTILINE)
TAGS: Final = re.compile(rb"^tags:[ \t]*\r?\n((?:[ \t]*- [^\r\n]*\r?\n)*)", re.MULTILINE)
LIBRARY: Final = "sentence-transformers"
REPLACED: Final = {"library_name": LIBRARY, "pipeline_tag": "sentence-similarity"}
TAG: Final = f"- {LIBRARY}\n"
BARE: Final = b"---\n---\n\n# A model for sentence-transformers\n\n"
SECTION: Final = """## In sentence-transformers

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
vectors = model.encode(["The train leaves.", "Der Zug fährt ab."])
print(vectors.shape)
```

{pool}, over at most {longest} tokens, `<s>` and `</s>` included; longer texts are truncated. A vector has {width}
float32 numbers. XLM-R was not trained to measure similarity: unless this model was, use its vectors as
features to train on.

"""
POOLED: Final = {
    "mean": "The vector of a text is the mean of those of its tokens",
    "cls": "The vector of a text is that of `<s>`",
    "max": "The vector of a text is the largest value of each component",
}


def sentence_transformers_card(card: bytes | None, *, pool: str, width: int, longest: int) -> bytes:
    """The card of a model with the metadata for sentence-transformers, and a section on its use before all others.

    `card` is None if the model has none; everything else in it stays as it is, byte for byte.
    """
    text = card or BARE
    line_end = b"\r\n" if b"\r\n" in text else b"\n"
    found = METADATA.match(text)
    metadata = found[0] if found else b"---\n---\n"
    body = text[found.end() :] if found else text
    section = SECTION.format(pool=POOLED[pool], longest=longest, width=width).encode().replace(b"\n", line_end)
    heading = HEADING.search(body)
    place = heading.start() if heading else len(body)
    gap = line_end if body and not heading and not body.endswith(line_end) else b""
    return (
        _with_metadata(metadata.replace(b"\r\n", b"\n")).replace(b"\n", line_end)
        + body[:place]
        + gap
        + section
        + body[place:]
    )


def _with_metadata(metadata: bytes) -> bytes:
    """The metadata with the fields that differ for sentence-transformers, in their places or last."""
    import yaml

    block = metadata[4 : metadata.rindex(b"---")]
    edited = _edited(block)
    try:
        before, after = yaml.safe_load(block) or {}, yaml.safe_load(edited)
    except (yaml.YAMLError, ValueError, RecursionError):
        return b"---\n" + edited + b"---\n"  # `doctor` and `push` report that it cannot be read
    if not isinstance(before, dict):
        return b"---\n" + edited + b"---\n"
    tags = before.get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    wanted = {**before, **REPLACED, "tags": tags if LIBRARY in tags else [*tags, LIBRARY]}
    return b"---\n" + (edited if after == wanted else as_yaml(wanted).encode()) + b"---\n"


def _edited(block: bytes) -> bytes:
    """The metadata with the fields changed, if they are written in the usual form; all other bytes stay."""
    for name, value in REPLACED.items():
        line = f"{name}: {value}\n".encode()
        block, changed = re.subn(rb"^" + name.encode() + rb":[^\n]*\n", line, block, flags=re.MULTILINE)
        block += b"" if changed else line
    listed = TAGS.search(block)
    if listed is not None and LIBRARY.encode() not in listed[1]:
        indent = re.match(rb"[ \t]*", listed[1])
        block = block[: listed.end()] + (indent[0] if indent else b"") + TAG.encode() + block[listed.end() :]
    elif not re.search(rb"^tags:", block, flags=re.MULTILINE):
        block += b"tags:\n" + TAG.encode()
    return block
