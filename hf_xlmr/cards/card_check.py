"""Checks a model card for what the Hub would refuse or misread, without a request to the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hf_xlmr.errors import InputError, one_line
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.hub.hub_errors import quiet_hub
from hf_xlmr.hub.licences import LICENCES, OTHER
from hf_xlmr.model.opened_folder import CARD, OpenedFolder

TEXTS: Final = ("license", "license_name", "library_name", "pipeline_tag")
LISTS: Final = ("language", "tags", "datasets", "metrics", "base_model")
LANGUAGE: Final = re.compile(r"[a-z]{2,3}|multilingual|code")
NAME_OF_OTHER: Final = "license_name"
ODD_LANGUAGE: Final = (
    "language has {!r:.60}: the Hub accepts codes of ISO 639 without script or country, such as de, zh or deu, "
    "multilingual and code"
)
ODD_LICENCE: Final = (
    "license has {!r:.60}, which is not in the Hub's list: give one such as mit, apache-2.0 or cc-by-4.0, or "
    "other with its name as license_name"
)
UNNAMED: Final = "license is other, and there is no license_name"
CARRIED: Final = ("language", "license", NAME_OF_OTHER, "license_link", "base_model")
NO_CARD: Final = (
    "{folder} has no README.md, which the Hub shows as the model's page: write one that begins with the lines ---, "
    "license: ..., library_name: transformers, ---; convert and finetune write one, and for a model that you trained "
    "yourself from a converted folder, adopt does"
)

NO_LICENCE: Final = (
    f"{CARD} names no license, so nobody knows what they may do with it: add a line such as license: mit to the fields "
    "at its top"
)


def check_card(folder: OpenedFolder) -> tuple[str, ...]:
    """Notes for the user on the card in `folder`. Raises InputError if the card cannot be published, OSError."""
    is_licensed = _checked(folder).get("license")
    return () if is_licensed else (NO_LICENCE,)


def _checked(folder: OpenedFolder) -> JsonObject:
    """The fields of the card. Raises InputError if it cannot be published, OSError."""
    if not folder.has(CARD):
        raise InputError(NO_CARD.format(folder=folder.path))
    metadata = _metadata(folder.path / CARD, folder.read(CARD))
    if odd := faults_of_metadata(metadata):
        raise InputError(f"{folder.path / CARD}: {'; '.join(odd)}")
    return metadata


def faults_of_metadata(metadata: Mapping[str, object]) -> list[str]:
    """The faults for which the Hub would refuse the fields of a card, each in a sentence."""
    odd = [fault for name in TEXTS for fault in _faults(name, metadata.get(name), _is_text)]
    odd += [fault for name in LISTS for fault in _faults(name, metadata.get(name), _is_text_or_texts)]
    if odd:
        return odd
    given = metadata.get("language") or []
    languages = given if isinstance(given, list) else [str(given)]
    odd = [ODD_LANGUAGE.format(each) for each in languages if not LANGUAGE.fullmatch(each)][:1]
    licence = metadata.get("license")
    if licence is not None and licence not in LICENCES:
        odd.append(ODD_LICENCE.format(licence))
    return [*odd, UNNAMED] if licence == OTHER and not metadata.get(NAME_OF_OTHER) else odd


def card_fields(folder: Path) -> JsonObject:
    """The fields of the card in `folder` that hold for any model made from it: languages, licence, base model.

    Empty if there is no card, or if the Hub would refuse it.
    """
    try:
        metadata = _checked(OpenedFolder(folder))
    except InputError:
        return {}
    return {name: metadata[name] for name in CARRIED if metadata.get(name)}


def _metadata(path: Path, card: bytes) -> JsonObject:
    """The fields of the card as the Hub's own library reads them; none if it has no metadata."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        with quiet_hub():
            data: Any = ModelCard(card.decode("utf-8")).data
            fields: JsonObject = data.to_dict()
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{path} begins with metadata that the Hub cannot read ({one_line(error)}): fix it") from error
    return fields


def _faults(name: str, value: object, is_sound: Callable[[object], bool]) -> list[str]:
    if value is None or is_sound(value):
        return []
    odd = next((each for each in value if not _is_text(each)), value) if isinstance(value, list) else value
    hint = ' (YAML reads a bare no as false: write "no")' if odd is False else ""
    return [f"{name} has {odd!r:.60}, which is not a text{hint}"]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_text_or_texts(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))
