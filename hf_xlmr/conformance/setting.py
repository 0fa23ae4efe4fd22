"""What an answer depends on, as one value: fairseq's way, and each way in which a runtime can depart from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final, TypeAlias
from unicodedata import combining, normalize

from hf_xlmr.tokenizer.tokenization import ExactTokenizer

__all__ = ["FRAMINGS", "OWN_POOLS", "SPELLINGS", "Ids", "Setting", "Text"]

OWN_POOLS: Final = ("mean", "cls", "max")  # of `extract`, and of graphs that hf_xlmr makes

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair of texts."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How answers are computed; the defaults are fairseq's way, and each field is one thing that can be wrong."""

    tokenizer: str = "fairseq"
    """Or tokenizer.json (of the model's folder), or target (the ids that the runtime itself used)."""
    spelling: str = "as it is"
    """What happens to a text before it is tokenized, a key of SPELLINGS."""
    shift: int = 0
    """What is added to the id of each piece."""
    framing: str = "one"
    """Which special tokens are around a text, a key of FRAMINGS."""
    longest: int | None = None
    """The tokens of a text, special ones included; None for the model's limit."""
    truncated: str = "before </s>"
    """Or with </s>: the last token is lost like any other; or at the front."""
    first_position: int | None = None
    """None for the first position that XLM-R uses."""
    positions: str = "in each text"
    """Or over the batch (they go on from one text to the next), or after padding (padding on the left counts)."""
    activation: str | None = None
    """None for the model's own."""
    eps: float | None = None
    """Of layer norms; None for the model's own."""
    final_norm: str = "once"
    """Or never, or twice."""
    embedding_norm: str = "once"
    """Or never."""
    token_types: str = "first"
    """Or none, second, or pairs (the second text of a pair has the second type)."""
    skipped_layers: int = 0
    """Of the last layers."""
    batching: str = "alone"
    """Or padded, attended (padding is), attended and counted (it has positions, too), packed (texts attend to all)."""
    precision: str = "float32"
    """Or a lower one, a key of `PRECISIONS`."""
    pool: str = "mean"
    """Or cls, max, last, sum, mean without special tokens."""
    pools_padding: bool = False
    normalized: bool = False

    def having(self, changes: Mapping[str, object]) -> Setting:
        """The setting with other values in some fields."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def of_network(self) -> tuple[object, ...]:
        """All that hidden states depend on: all fields but how they become one vector."""
        return tuple(getattr(self, each.name) for each in fields(self) if each.name not in OF_VECTORS)


OF_VECTORS: Final = ("pool", "pools_padding", "normalized")


def _without_accents(text: str) -> str:
    return normalize("NFC", "".join(each for each in normalize("NFD", text) if not combining(each)))


SPELLINGS: Final[Mapping[str, Callable[[str], str]]] = {
    "as it is": lambda text: text,
    "in lower case": str.lower,
    "without accents": _without_accents,
    "in lower case without accents": lambda text: _without_accents(text.lower()),
    "with a space in front": lambda text: f" {text}",
    "without white space": lambda text: "".join(text.split()),
}
PAIR: Final = 2
FRAMINGS: Final[Mapping[str, tuple[int, int]]] = {  # how often <s> and </s>
    "one": (1, 1),
    "no <s>": (0, 1),
    "no </s>": (1, 0),
    "neither": (0, 0),
    "two <s>": (2, 1),
    "two </s>": (1, 2),
    "two of each": (2, 2),
}


@dataclass(frozen=True)
class Ids:
    """The ids of texts in any setting."""

    exact: ExactTokenizer
    plain: Callable[[str], Sequence[int]] | None
    """The ids of the folder's tokenizer.json, without special tokens; None if it has none."""
    limit: int
    """The most tokens of a text."""
    _held: dict[tuple[str, bool], tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, text: Text, setting: Setting, used: Sequence[int] | None = None) -> list[int]:
        """The ids of a text with its special tokens; `used` are those that the runtime used, if it gives them."""
        if setting.tokenizer == "target" and used is not None:
            return list(used)
        parts = [self._part(each, setting) for each in ([text] if isinstance(text, str) else text)]
        starts, ends = FRAMINGS[setting.framing]
        longest, dictionary = setting.longest or self.limit, self.exact.dictionary
        if len(parts) == PAIR and setting.truncated == "before </s>":
            parts = _evenly(parts, longest - starts - ends - 2)
        start, end = [dictionary.bos_index] * starts, [dictionary.eos_index] * ends
        row = [*start, *self.exact.framed(parts)[1:-1], *end]
        return _truncated(row, longest, setting.truncated, starts, ends)

    def _part(self, text: str, setting: Setting) -> list[int]:
        spelled = SPELLINGS[setting.spelling](text)
        key = (spelled, setting.tokenizer == "tokenizer.json")
        if key not in self._held:
            self._held[key] = tuple(self._cut(*key))
        ids, last = self._held[key], len(self.exact.dictionary) - 1
        return [min(max(each + setting.shift, 0), last) for each in ids] if setting.shift else list(ids)

    def _cut(self, text: str, is_plain: bool) -> Iterable[int]:
        if is_plain and self.plain is not None:
            return self.plain(text)
        return (each for each in self.exact.ids(text) if each != self.exact.dictionary.pad_index)


def _evenly(parts: list[list[int]], most: int) -> list[list[int]]:
    """The two parts of a pair as tokenizers cut them off: the longer one first, then both."""
    if sum(map(len, parts)) <= most:
        return parts
    kept = min(*map(len, parts), max(most, 0) // 2)
    sizes = (kept, max(most - kept, 0)) if len(parts[0]) <= len(parts[1]) else (max(most - kept, 0), kept)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def _truncated(row: list[int], longest: int, how: str, starts: int, ends: int) -> list[int]:
    if len(row) <= longest:
        return row
    if how == "with </s>":
        return row[:longest]
    if how == "at the front":
        return [*row[:starts], *row[len(row) - longest + starts :]]
    return [*row[: longest - ends], *row[len(row) - ends :]] if ends else row[:longest]
