"""Checks whether the ids of a tokenizer.json equal those of a dictionary, name for name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.tokenizer.dictionary import PAD, PAD_INDEX, UNK, UNK_INDEX, Dictionary
from hf_xlmr.tokenizer.dictionary_kinds import FILLER_NAME

FIXED: Final = {PAD: PAD_INDEX, UNK: UNK_INDEX}  # no line of a dictionary moves these two
SHOWN: Final = 3


def ids_of_tokenizer(content: JsonObject, path: Path) -> dict[str, int]:
    """The id of each name in the `content` of a tokenizer.json; added tokens replace those of the vocabulary.

    Raises IntegrityError, which names the file at `path`.
    """
    try:
        listed, added = content["model"]["vocab"], content.get("added_tokens") or []
        is_named = isinstance(listed, dict)  # else a list of pieces with scores
        pairs = listed.items() if is_named else ((name, number) for number, (name, _score) in enumerate(listed))
        ids = {str(name): int(number) for name, number in pairs}
        return {**ids, **{str(each["content"]): int(each["id"]) for each in added}}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged: it lists no vocabulary of names and ids") from error


def raise_if_ids_differ(path: Path, content: Mapping[str, object], dictionary: Dictionary) -> None:
    """Compare every name and id in the `content` of the tokenizer.json at `path` with the dictionary.

    The space and number that convert puts after some names keep texts from containing them. Raises InputError for
    differences, IntegrityError.
    """
    ids = ids_of_tokenizer(content, path)
    names = {number: name for name, number in ids.items()}
    differences = [
        f"{name!r:.60} is {number} there and {right} in the dictionary"
        for name, number in ids.items()
        if name in dictionary and (right := FIXED.get(name, dictionary.index(name))) != number
    ]
    differences += [
        f"{number} is {names[number]!r:.60} there and {symbol!r:.60} in the dictionary"
        for number, symbol in enumerate(dictionary.symbols)
        if number in names and not _is_name_of(symbol, names[number]) and names[number] not in dictionary
    ]
    if differences:
        raise InputError(
            f"the dictionary is not that of {path}: {', '.join(differences[:SHOWN])} ({len(differences)} ids differ)"
        )


def _is_name_of(symbol: str, name: str) -> bool:
    """Whether `name` is a valid name of the symbol; any name is for a filler, whose id an appended row may have."""
    return name == symbol or name.startswith(f"{symbol} ") or FILLER_NAME.fullmatch(symbol) is not None
