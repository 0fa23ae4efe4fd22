"""The texts that a runtime is asked for: a fixed set for a model, in classes of what each can bring to light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

from hf_xlmr.conformance.setting import Ids, Text

__all__ = ["BEYOND", "OF_THE_TOKENIZER", "PAIRS", "YOURS", "Probe", "probes_of", "texts_given"]

LENGTHS: Final = (3, 4, 5, 8, 13, 16, 17, 31, 33, 48, 64, 65, 100, 127, 129, 192, 255, 257, 320, 383, 385, 448)
BEYOND: Final = "beyond the limit"
PAIRS: Final = "pairs"
YOURS: Final = "your texts"
TEXTS_AT_ONCE: Final = 4
CONTEXT: Final = 8  # words before one, on which its tokens can depend

SCRIPTS: Final = (
    "The train leaves at night.",
    "Wo ist der Bahnhof? Über die Brücke, dann links.",
    "Le train part à l'heure, dit-elle.",
    "Поезд отправляется ночью.",
    "Το τρένο φεύγει τη νύχτα.",
    "القطار يغادر ليلا.",
    "הרכבת יוצאת בלילה.",
    "ट्रेन रात में निकलती है।",
    "รถไฟออกเดินทางตอนกลางคืน",
    "列车在夜间出发。",
    "電車は夜に出発します。",
    "기차는 밤에 출발합니다.",
    "Tàu hoả khởi hành vào ban đêm.",
    "Treni inaondoka usiku.",
    "🚆 🌙 👩‍👩‍👧 ✓",
)
DECOMPOSED: Final = (
    "Cafe\u0301 u\u0308ber",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "ﬁn ① Ⅳ ｆｕｌｌ",
    "a\u00a0b\u3000c  d\te",
)
EMPHATIC: Final = ("!!!!!!!", "hahahahaha", "sooooooo good......", "?!?!?!?!", "ааааааа")
SPECIAL_LOOKING: Final = ("The <mask> leaves.", "<s> a </s> b", "x <unk> y", "[CLS] a [SEP]", "Read THIS, Ana!")
OF_THE_TOKENIZER: Final = frozenset({"scripts", "decomposed text", "emphatic repeats", "special-looking text", YOURS})
"""Classes in which runtimes differ through their tokenizer alone, if all others agree."""


@dataclass(frozen=True)
class Probe:
    """Texts that a runtime is asked for at once."""

    kind: str
    """The class of the probe."""
    texts: tuple[Text, ...]


def probes_of(ids: Ids) -> list[Probe]:
    """The fixed probes for a tokenizer, each of the given number of tokens as near as its pieces allow."""
    writer = _Writer(ids)
    last = [ids.limit - 2, ids.limit - 1, ids.limit]
    lengths = [*(each for each in LENGTHS if each < last[0]), *last]
    unequal = [(5, 9, 21, 3), (40, 4), (12, 3, 30, 6)]
    pairs = (SCRIPTS[:2], SCRIPTS[3:5], (SCRIPTS[9], SCRIPTS[0]))
    return [
        *_alone("one token", writer.single_tokens(3)),
        *_alone("lengths", [writer.text(each, first=number) for number, each in enumerate(lengths)]),
        *_alone(BEYOND, [writer.text(ids.limit + more, first=more) for more in (1, 2, 20)]),
        *(
            Probe("batches", tuple(writer.text(min(each, ids.limit), first=7 * number + each) for each in some))
            for number, some in enumerate(unequal)
        ),
        *_alone(PAIRS, [(one, other) for one, other in pairs]),
        *_alone("scripts", SCRIPTS),
        *_alone("decomposed text", DECOMPOSED),
        *_alone("emphatic repeats", EMPHATIC),
        *_alone("special-looking text", SPECIAL_LOOKING),
    ]


def texts_given(texts: Iterable[str]) -> Iterator[Probe]:
    """The user's own texts, some at once."""
    rest = iter(texts)
    while some := tuple(islice(rest, TEXTS_AT_ONCE)):
        yield Probe(YOURS, some)


def _alone(kind: str, texts: Iterable[Text]) -> list[Probe]:
    return [Probe(kind, (text,)) for text in texts]


class _Writer:
    """Writes texts of any number of tokens, out of words that have one token or few."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        words = dict.fromkeys(word for text in SCRIPTS[:6] for word in text.split())
        self._words = sorted(words, key=lambda word: self._count([word]))

    def _count(self, words: Sequence[str]) -> int:
        return len(self._ids.exact.ids(" ".join(words)))

    def single_tokens(self, most: int) -> list[str]:
        """Words of one token each, or if there are none the shortest."""
        single = [word for word in self._words if self._count([word]) == 1]
        return (single or self._words)[:most]

    def text(self, tokens: int, *, first: int) -> str:
        """A text of so many tokens, the special ones included, or a few fewer if no words give that number."""
        wanted = max(tokens - 2, 1)
        order: Sequence[str] = self._words[first % len(self._words) :] + self._words[: first % len(self._words)]
        held: list[str] = []
        count = 0
        for word in cycle(order):
            more = len(self._ids.exact.ids(" ".join([*held[-8:], word]))) - len(
                self._ids.exact.ids(" ".join(held[-8:]))
            )
            if count + more > wanted:
                break
            held.append(word)
            count += more
        for word in self._words:  # the shortest fill what is left
            more = self._count([word])
            while more and count + more <= wanted:
                held.append(word)
                count += more
        return " ".join(held) or self._words[0]
