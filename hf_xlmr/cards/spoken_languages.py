"""What a card says of the languages of an X-MOD, and the code that names one."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hf_xlmr.cards.markdown import as_code


def spoken_by(config: Mapping[str, object]) -> tuple[str, ...]:
    """The languages that an X-MOD has adapters for; none for other models."""
    languages = config.get("languages")
    return tuple(map(str, languages)) if isinstance(languages, list) else ()


def example_language(config: Mapping[str, object]) -> str | None:
    """A language to show how it is given; None where nothing takes one."""
    languages = spoken_by(config)
    return str(config.get("default_language") or languages[0]) if languages else None


def language_number(language: str) -> str:
    """The line of code that makes `language`, the tensor that Transformers takes as `lang_ids`."""
    return f"language = torch.tensor([model.config.languages.index({json.dumps(language)})])"


def about_languages(config: Mapping[str, object]) -> str:
    """A paragraph about the languages of an X-MOD, after an empty line; empty for other models."""
    if not (languages := spoken_by(config)):
        return ""
    default, count = config.get("default_language"), len(languages)
    unsaid = f"If none is given, it is {as_code(default)}." if default else "There is no default: it has to be given."
    return (
        f"\n\nIt is an X-MOD: in every layer, it has an adapter for each of {count:,} language{'s' * (count != 1)}. A\n"
        f"text goes through those of its own, whose number is `lang_ids` in Transformers. {unsaid}\n"
        f"In the order of their numbers, they are {', '.join(map(as_code, languages))}."
    )
