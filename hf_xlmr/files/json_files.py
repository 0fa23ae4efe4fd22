"""JSON read strictly: what Python's reader takes and other readers do not, or cannot compute with, is damage."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from hf_xlmr.errors import IntegrityError

JsonObject: TypeAlias = Mapping[str, Any]
"""An object of a JSON file, such as config.json: nobody knows the types of its values before looking."""

LARGEST: Final = 256 << 20  # bytes; a tokenizer.json has 17 MB for XLM-R, and some 70 for a million pieces
MOST_VALUES: Final = 8_000_000  # such a tokenizer.json has four million
DEEPEST: Final = 100  # objects and lists in each other; a tokenizer.json has ten
LONGEST_NUMBER: Final = 1000  # digits; Transformers writes 31 if there is no limit
NOT_PLAIN: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
HALF_A_PAIR: Final = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def json_object(path: Path, *, has_paths: bool = False) -> dict[str, Any]:
    """The object in a JSON file of UTF-8; of several fields of one name the last counts, as for Transformers.

    In a file that `has_paths` strings may hold the halves of surrogate pairs by which Python writes names of files
    that are not UTF-8. Raises IntegrityError, OSError.
    """
    with path.open("rb") as file:
        return object_of(file.read(LARGEST + 1), path, has_paths=has_paths)


def object_of(data: bytes, path: Path, *, has_paths: bool = False) -> dict[str, Any]:
    """As `json_object`, of `data` that was read from `path`. Raises IntegrityError."""
    try:
        content = strict_json(data, has_paths=has_paths)
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} is damaged: it holds no object")
    return content


def strict_json(data: bytes, *, has_paths: bool = False, is_unique: bool = False) -> Any:
    """The value that `data` holds as JSON; no field of an object may come twice if `is_unique`.

    Raises ValueError, whose text says why: for another encoding, numbers that are infinite or endless, halves of
    surrogate pairs, more than DEEPEST levels, or more values than any file of a model has.
    """
    text = _text(data)
    if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    try:
        content = json.loads(
            text,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
            object_pairs_hook=_object if is_unique else None,
        )
    except RecursionError:
        content = None
        raise ValueError(TOO_DEEP) from None
    if not _is_shallow(content):
        raise ValueError(TOO_DEEP)
    if not has_paths and HALF_A_PAIR.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds half of a surrogate pair, {error.object[error.start]!r}") from None
    return content


TOO_DEEP: Final = f"it is more than {DEEPEST} levels deep"


def _text(data: bytes) -> str:
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MB")
    if data.startswith(NOT_PLAIN) or b"\0" in data[:2]:
        raise ValueError("it is not plain UTF-8, which Transformers cannot read: save it so, without a mark")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} (0x{data[error.start]:02X}) is not UTF-8") from error


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _number(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {written:.40}, which is too large")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not a number of JSON")


def _object(fields: list[tuple[str, object]]) -> dict[str, Any]:
    made = dict(fields)
    if len(made) < len(fields):
        names = [name for name, _value in fields]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"{twice:.80} comes twice")
    return made


def _is_shallow(content: object) -> bool:
    level = [content]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return True
    return False
