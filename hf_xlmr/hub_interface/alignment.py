"""Features of words: which pieces make which word, and how their vectors are shared out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]


@dataclass(frozen=True)
class AlignedFeatures:
    """The words of a sentence with `<s>` before and `</s>` after them, and a vector for each."""

    words: tuple[str, ...]
    vectors: torch.Tensor
    """(words, width); of all hidden states (layers + 1, words, width)."""


def split_words(sentence: str) -> list[str]:
    """Runs of letters and digits with the marks on them, and each other sign that is not white space by itself."""
    words: list[str] = []
    is_open = False
    for character in sentence:
        kind = unicodedata.category(character)
        belongs = character == "_" or kind[0] in "LNM"
        if kind == "Cf":  # joiners and byte order marks: part of a word inside it, nothing outside
            belongs = is_open
        if belongs and is_open:
            words[-1] += character
        elif belongs or not (character.isspace() or kind in ("Cf", "Cc")):
            words.append(character)
        is_open = belongs
    return words


def align_pieces(tokenizer: ExactTokenizer, sentence: str, words: Sequence[str]) -> list[list[int]]:
    """For each word the places, from 1 on, of the tokens that hold a part of it.

    A word is found where it is in the text, so normalization (fullwidth letters, ligatures) does not matter. Raises
    InputError where the words do not come one after the other in the sentence, or where one is in no token.
    """
    spans = tokenizer.spans(sentence)
    alignment = []
    for word, (first, last) in zip(words, _spans_of_words(sentence, words), strict=True):
        places = [place for place, (start, stop) in enumerate(spans, start=1) if start < last and first < stop]
        if not places:
            raise InputError(f"the word {word!r} is in no token of the sentence: the model does not see it")
        alignment.append(places)
    return _with_unclaimed(alignment, len(spans))


def _spans_of_words(sentence: str, words: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    end = 0
    for word in words:
        start = sentence.find(word.strip(), end) if word.strip() else -1
        if start < 0 or _seen(sentence[end:start]):
            raise InputError(f"the words are not those of the sentence: {word!r} is not at {sentence[end:][:40]!r}")
        end = start + len(word.strip())
        spans.append((start, end))
    if _seen(sentence[end:]):
        raise InputError(f"the words are not those of the sentence: {sentence[end:][:40]!r} is left over")
    return spans


def _seen(text: str) -> bool:
    """Whether there is anything in `text` but white space, control and format characters."""
    return any(not (each.isspace() or unicodedata.category(each) in ("Cf", "Cc")) for each in text)


def _with_unclaimed(alignment: list[list[int]], count: int) -> list[list[int]]:
    """Give each token that is in no word (a lone word boundary) to the word after it, or to the last one."""
    claimed = {place for places in alignment for place in places}
    completed = [list(places) for places in alignment]
    for place in range(1, count + 1):
        if place not in claimed and completed:
            owner = next((places for places in completed if max(places) > place), completed[-1])
            owner.append(place)
    return [sorted(places) for places in completed]


def align_features(features: torch.Tensor, alignment: Sequence[Sequence[int]]) -> torch.Tensor:
    """Vectors for `<s>`, each word and `</s>`, (words + 2, width), of `features` (tokens, width).

    A token's vector is divided by the number of words it is a part of, and summed into each, so that all vectors
    together stay the same: fairseq.models.roberta.alignment_utils.align_features_to_words.
    """
    import torch

    uses = Counter(place for places in alignment for place in places)
    shares = features.new_tensor([max(1, uses[place]) for place in range(len(features))])
    weighted = features / shares.unsqueeze(-1)
    words = [weighted[list(places)].sum(dim=0) for places in alignment]
    return torch.stack([weighted[0], *words, weighted[-1]])
