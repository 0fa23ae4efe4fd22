"""What of a model card the Hub would refuse or misread, as far as that shows without asking it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hf_xlmr.errors import InputError
from hf_xlmr.hub_errors import quiet_hub

__all__ = ["CARD", "check_card"]

CARD: Final = "README.md"
TEXTS: Final = ("license", "license_name", "library_name", "pipeline_tag")
LISTS: Final = ("language", "tags", "datasets", "metrics", "base_model")
NO_CARD: Final = (
    "{folder} has no README.md, from which the Hub draws the model's page: write one that begins with the lines ---, "
    "license: ..., library_name: transformers, --- (convert and finetune write one)"
)


def check_card(folder: Path) -> tuple[str, ...]:
    """What a person should know of the card in `folder`. Raises InputError for what cannot be published, OSError."""
    path = folder / CARD
    if not path.is_file():
        raise InputError(NO_CARD.format(folder=folder))
    metadata = _metadata(path)
    odd = [told for name in TEXTS for told in _told(name, metadata.get(name), _is_text)]
    odd += [told for name in LISTS for told in _told(name, metadata.get(name), _is_text_or_texts)]
    if odd:
        raise InputError(f"{path}: {'; '.join(odd)}")
    return () if metadata.get("license") else (f"{CARD} names no license, so nobody knows what they may do with it",)


def _metadata(path: Path) -> Mapping[str, Any]:
    """The fields of the card as the Hub's own library reads them; none where it has no block of them."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        with quiet_hub():
            data: Any = ModelCard(path.read_bytes().decode("utf-8")).data
            fields: Mapping[str, Any] = data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError) as error:  # UnicodeDecodeError is a ValueError
        told = " ".join(str(error).split())[:300]
        raise InputError(f"{path} begins with metadata that the Hub cannot read ({told}): mend them") from error
    return fields


def _told(name: str, value: object, is_sound: Callable[[object], bool]) -> list[str]:
    if value is None or is_sound(value):
        return []
    odd = next((each for each in value if not _is_text(each)), value) if isinstance(value, list) else value
    hint = ' (YAML reads a bare no as false: write "no")' if odd is False else ""
    return [f"{name} has {odd!r:.60}, which is no text{hint}"]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_text_or_texts(value: object) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))
