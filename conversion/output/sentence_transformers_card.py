"""The card of a folder for sentence-transformers: the card of its model, and how texts become vectors."""

from __future__ import annotations

from typing import Final

from hf_xlmr.cards.extended_card import extended_card
from hf_xlmr.cards.markdown import as_code

__all__ = ["sentence_transformers_card"]

LIBRARY: Final = "sentence-transformers"
FIELDS: Final = {"library_name": LIBRARY, "pipeline_tag": "sentence-similarity"}
SECTION: Final = """## In sentence-transformers

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
vectors = model.encode(["The train leaves.", "Der Zug fährt ab."])
print(vectors.shape)
```

{pool}, over at most {longest} tokens, `<s>` and `</s>` included; longer texts are truncated. A vector has {width}
float32 numbers. XLM-R was not trained to measure similarity: unless this model was, use its vectors as
features to train on.{spoken}

"""
SPOKEN: Final = (
    " sentence-transformers names no language: every text goes through the\nadapters of {}, the "
    "default_language of config.json."
)
POOLED: Final = {
    "mean": "The vector of a text is the mean of those of its tokens",
    "cls": "The vector of a text is that of `<s>`",
    "max": "The vector of a text is the largest value of each component",
}


def sentence_transformers_card(
    card: bytes | None, *, pool: str, width: int, longest: int, language: str | None = None
) -> bytes:
    """The card of a model with the metadata for sentence-transformers, and a section on its use before all others.

    `card` is None if the model has none; everything else in it stays as it is, byte for byte. `language` is the default
    of an X-MOD.
    """
    spoken = "" if language is None else SPOKEN.format(as_code(language))
    section = SECTION.format(pool=POOLED[pool], longest=longest, width=width, spoken=spoken)
    return extended_card(card, title="A model for sentence-transformers", section=section, fields=FIELDS, tag=LIBRARY)
