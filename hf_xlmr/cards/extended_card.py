"""A model's card with a section before all others and some fields changed; everything else stays, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from hf_xlmr.cards.markdown import as_yaml

METADATA: Final = re.compile(rb"\A---\r?\n.*?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
HEADING: Final = re.compile(rb"^## ", re.MULTILINE)
TAGS: Final = re.compile(rb"^tags:[ \t]*\r?\n((?:[ \t]*- [^\r\n]*\r?\n)*)", re.MULTILINE)


def extended_card(card: bytes | None, *, title: str, section: str, fields: Mapping[str, str], tag: str) -> bytes:
    """The card with `section` before all others, `fields` and `tag` in its metadata, and the rest as it is.

    `card` is None if the model has none; it then gets the `title`.
    """
    text = card or f"---\n---\n\n# {title}\n\n".encode()
    line_end = b"\r\n" if b"\r\n" in text else b"\n"
    found = METADATA.match(text)
    metadata = found[0] if found else b"---\n---\n"
    body = text[found.end() :] if found else text
    heading = HEADING.search(body)
    place = heading.start() if heading else len(body)
    gap = line_end if body and not heading and not body.endswith(line_end) else b""
    return (
        _with_metadata(metadata.replace(b"\r\n", b"\n"), fields, tag).replace(b"\n", line_end)
        + body[:place]
        + gap
        + section.encode().replace(b"\n", line_end)
        + body[place:]
    )


def _with_metadata(metadata: bytes, fields: Mapping[str, str], tag: str) -> bytes:
    import yaml

    block = metadata[4 : metadata.rindex(b"---")]
    edited = _edited(block, fields, tag)
    try:
        before, after = yaml.safe_load(block) or {}, yaml.safe_load(edited)
    except (yaml.YAMLError, ValueError, RecursionError):
        return b"---\n" + edited + b"---\n"  # `doctor` and `push` report that it cannot be read
    if not isinstance(before, dict):
        return b"---\n" + edited + b"---\n"
    tags = before.get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    wanted = {**before, **fields, "tags": tags if tag in tags else [*tags, tag]}
    return b"---\n" + (edited if after == wanted else as_yaml(wanted).encode()) + b"---\n"


def _edited(block: bytes, fields: Mapping[str, str], tag: str) -> bytes:
    """The metadata with the fields changed, if they are written in the usual form; all other bytes stay."""
    for name, value in fields.items():
        line = f"{name}: {value}\n".encode()
        block, changed = re.subn(rb"^" + name.encode() + rb":[^\n]*\n", line, block, flags=re.MULTILINE)
        block += b"" if changed else line
    listed, line = TAGS.search(block), f"- {tag}\n".encode()
    if listed is not None and tag.encode() not in listed[1]:
        indent = re.match(rb"[ \t]*", listed[1])
        block = block[: listed.end()] + (indent[0] if indent else b"") + line + block[listed.end() :]
    elif not re.search(rb"^tags:", block, flags=re.MULTILINE):
        block += b"tags:\n" + line
    return block
