"""Computes how long a tokenizer's rules can make a text, before any of them runs.

A hostile file could use all memory, which ends the process without an exception.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from hf_xlmr.errors import IntegrityError
from hf_xlmr.files.json_files import JsonObject, json_object

PATTERN: Final = "tokenizer.*json"  # also tokenizer.4.0.0.json, which Transformers prefers if it is listed
SETTINGS: Final = "tokenizer_config.json"
OTHER_SETTINGS: Final = "special_tokens_map.json"
NAMED_FILE: Final = "tokenizer_file"
MOST_GROWTH: Final = {"normalizer": 1 << 19, "pre_tokenizer": 16, "post_processor": 16}
"""The most that a text may grow by a factor; files that convert writes reach 300,000 with the longest charsmap."""
LARGEST_TOKEN: Final = 1 << 24  # bytes that an added token may become when a tokenizer is loaded
MOST_ADDED: Final = 1 << 20  # bytes or ids that are added to any text
MOST_STEPS: Final = 100  # convert writes up to twelve
LARGEST_NUMBER: Final = 1 << 13  # in tokenizer_config.json: T5's extra_ids are 100, and each becomes an object
LENGTHS: Final = ("max_length", "max_len", "vocab_size", "stride")  # names of numbers that allocate nothing


class _Bound(NamedTuple):
    """A text of n bytes has at most `times * n + more` bytes after a step, or as many ids."""

    times: float = 1.0
    more: float = 0.0

    def of(self, size: int) -> float:
        """The most bytes that `size` bytes can become."""
        return self.times * size + self.more

    def then(self, other: _Bound) -> _Bound:
        """The bound of both steps, one after the other."""
        return _Bound(self.times * other.times, self.more * other.times + other.more)


def raise_if_texts_explode(folder: Path) -> None:
    """Compare the rules and numbers of a folder's tokenizer with limits. Raises IntegrityError, OSError.

    No rule is run. For a file that is not a tokenizer at all, the later loading raises the error.
    """
    settings = {name: _object(folder / name) for name in (SETTINGS, OTHER_SETTINGS)}
    for name, number in _large_numbers(settings[SETTINGS]):
        raise IntegrityError(
            f"{folder / SETTINGS}: {name} is {number!r:.40}, which no tokenizer of text needs, and may take all memory"
        )
    for path in _files(folder, settings[SETTINGS]):
        content = _object(path)
        _raise_if_rules_explode(path, content, max(map(_longest_token, (content.get("added_tokens"), settings))))


def _object(path: Path) -> JsonObject:
    return json_object(path) if path.is_file() else {}


def _files(folder: Path, settings: Mapping[str, object]) -> Iterator[Path]:
    """The files that Transformers may read as tokenizer.json."""
    yield from sorted(path for path in folder.glob(PATTERN) if path.is_file())
    named = settings.get(NAMED_FILE)
    if isinstance(named, str) and "\0" not in named and Path(named).is_file():
        yield Path(named)


def _large_numbers(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the numbers in settings that are too large, each with the name of its field."""
    if isinstance(value, dict):
        yield from chain.from_iterable(_large_numbers(each, str(key)) for key, each in value.items())
    elif isinstance(value, list):
        yield from chain.from_iterable(_large_numbers(each, name) for each in value)
    elif isinstance(value, (int, float)) and value > LARGEST_NUMBER and not any(each in name for each in LENGTHS):
        yield name, value


def _longest_token(value: object) -> int:
    """The size in bytes of the longest added token, which the normalizer may make longer."""
    if isinstance(value, (dict, list)):
        own = value.get("content") if isinstance(value, dict) else None
        inner = value.values() if isinstance(value, dict) else value
        return max([_length(own) if isinstance(own, str) else 0, *map(_longest_token, inner)])
    return 0


def _raise_if_rules_explode(path: Path, content: Mapping[str, object], longest_token: int) -> None:
    bounds = dict.fromkeys(MOST_GROWTH, _Bound())
    for number, (part, step) in enumerate(_steps(content), start=1):
        bound_of = BOUNDS.get((part, str(step.get("type"))))  # other steps do not make a text longer
        bounds[part] = bound = bounds[part].then(bound_of(step) if bound_of else _Bound())
        if number > MOST_STEPS or bound.times > MOST_GROWTH[part] or bound.more > MOST_ADDED:
            raise IntegrityError(
                f"{path}: the {part} may make a text {_shown(bound.times)} times as long, plus {_shown(bound.more)} "
                f"bytes, in {number} steps, which no tokenizer needs and may take all memory: copy the tokenizer "
                "from the model that this one was trained from"
            )
    if bounds["normalizer"].of(longest_token) > LARGEST_TOKEN:
        raise IntegrityError(
            f"{path}: a token of {longest_token:,} bytes was added, which the normalizer may make as long as "
            f"{_shown(bounds['normalizer'].of(longest_token))}: remove it from the tokenizer"
        )


def _shown(number: float) -> str:
    return f"{number:,.0f}" if number < 10**12 else f"{number:.0e}"


def _steps(content: Mapping[str, object]) -> Iterator[tuple[str, JsonObject]]:
    """Yield the steps that change a text, as the tokenizers library reads them, which resolves older spellings."""
    from tokenizers import Tokenizer

    model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    rules = {name: content.get(name) for name in MOST_GROWTH}
    text = json.dumps({"version": "1.0", "added_tokens": [], **rules, "decoder": None, "model": model})
    try:
        read = json.loads(Tokenizer.from_str(text).to_str())
    except Exception:  # noqa: BLE001  # the library's only class; loading raises it again
        return
    for name in MOST_GROWTH:
        yield from ((name, step) for step in _flat(read[name]))


def _flat(step: object) -> Iterator[JsonObject]:
    if not isinstance(step, dict):
        return
    parts = next((step[name] for name in ("normalizers", "pretokenizers", "processors") if name in step), None)
    if parts is None:
        yield step
    else:
        yield from chain.from_iterable(map(_flat, parts))


def _of_replace(step: JsonObject) -> _Bound:
    """The bound of a replacement: a pattern matches a character at least, or inserts content between characters."""
    text, content = step["pattern"].get("String"), _length(step["content"])
    if text:
        return _Bound(max(1.0, content / _length(text)))
    return _Bound(1.0 + content, content)


def _of_charsmap(step: JsonObject) -> _Bound:
    """The bound of a charsmap: its longest replacement; the texts follow the table, each with a zero at its end."""
    data = base64.b64decode(step["precompiled_charsmap"] or "")
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return _Bound(max(1.0, *map(len, texts.split(b"\0"))))


def _of_template(step: JsonObject) -> _Bound:
    """The bound of a template: how often it repeats the text, and how many ids it adds."""
    ids = {name: len(each["ids"]) for name, each in step["special_tokens"].items()}
    templates = [_parts_of_template(step[name], ids) for name in ("single", "pair")]
    return _Bound(max(each.times for each in templates), max(each.more for each in templates))


def _parts_of_template(parts: Sequence[JsonObject], ids: Mapping[str, int]) -> _Bound:
    texts = Counter(part["Sequence"]["id"] for part in parts if "Sequence" in part)
    added = sum(ids.get(part["SpecialToken"]["id"], 0) for part in parts if "SpecialToken" in part)
    return _Bound(max([1, *texts.values()]), added)


def _of_metaspace(step: JsonObject) -> _Bound:
    width = _length(step["replacement"])
    return _Bound(width, width)


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _times(times: float, more: float = 0.0) -> Callable[[JsonObject], _Bound]:
    return lambda step: _Bound(times, more)


BOUNDS: Final[Mapping[tuple[str, str], Callable[[JsonObject], _Bound]]] = {
    ("normalizer", "Replace"): _of_replace,
    ("normalizer", "Prepend"): lambda step: _Bound(1.0, _length(step["prepend"])),
    ("normalizer", "Precompiled"): _of_charsmap,
    ("normalizer", "ByteLevel"): _times(2.0),
    ("normalizer", "BertNormalizer"): _times(3.0),  # spaces around Chinese characters
    ("normalizer", "NFD"): _times(4.0),
    ("normalizer", "NFKD"): _times(11.0),  # U+FDFA
    ("normalizer", "NFKC"): _times(11.0),
    ("normalizer", "NFC"): _times(3.0),
    ("normalizer", "Lowercase"): _times(1.5),
    ("pre_tokenizer", "ByteLevel"): _times(2.0, 1.0),
    ("pre_tokenizer", "Metaspace"): _of_metaspace,
    ("post_processor", "TemplateProcessing"): _of_template,
    ("post_processor", "RobertaProcessing"): _times(1.0, 4.0),
    ("post_processor", "BertProcessing"): _times(1.0, 3.0),
}
