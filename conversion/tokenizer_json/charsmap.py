"""SentencePiece's normalisation rules, and how tokenizers can be brought to apply them to decomposed text too.

SentencePiece replaces the longest run of characters that has a rule (normalizer.cc, NormalizePrefix). The Precompiled
step of tokenizers looks at one grapheme at a time, takes the shortest rule it finds there, and drops the rest: `e` with
two marks loses one, a full-width letter loses its mark, Hangul jamo stay apart. It is right only where every character
is its own grapheme. So the text is taken apart first (a mark goes in front of every character that could join the
one before), Precompiled maps the characters one by one, and NFC joins what belongs together. A second mark stays
between characters that NFC would join and SentencePiece does not.
"""

from __future__ import annotations

import struct
import sys
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from hf_xlmr.errors import IntegrityError
from hf_xlmr.tokenizer.sentencepiece_model import LARGEST_CHARSMAP, LONGEST_VALUE

__all__ = ["Charsmap", "Rule", "char_class"]

TOLERATED = (
    0.005  # rules of scripts younger than the Unicode tables of Python or tokenizers; polytonic Greek case-folded
)
# What joins the character before it in a grapheme besides marks (UAX 29): line feed after carriage return, joiners, two
# vowels, emoji modifiers, tags.
JOINING = "\n\u200c\u200d\u0e33\u0eb3" + "".join(map(chr, (*range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080))))
JAMO = "".join(map(chr, (*range(0x1160, 0x1200), *range(0xD7B0, 0xD7FC))))  # vowels and finals


MOST_STEPS: Final = 2_000_000  # of reading the rules; nfkc_cf takes 350,000


@dataclass(frozen=True, slots=True)
class Rule:
    """`tail`, after any of the characters `firsts`, makes `value`; `base` is what the firsts become alone."""

    firsts: frozenset[str]
    tail: str
    base: str
    value: str


@dataclass(frozen=True, slots=True)
class Branch:
    """The rules of runs that begin with any of `firsts`: what each tail makes; `base` is as in Rule."""

    firsts: frozenset[str]
    base: str
    tails: dict[str, str]
    """Shared by branches that lead to the same place."""

    def rules(self) -> Iterator[Rule]:
        """The same rules, each by itself."""
        return (Rule(self.firsts, tail, self.base, value) for tail, value in self.tails.items())


@dataclass(frozen=True)
class Charsmap:
    """The rules of a precompiled charsmap: for single characters, and for longer runs."""

    singles: dict[str, str] = field(repr=False)
    branches: tuple[Branch, ...] = field(repr=False)

    @classmethod
    def parse(cls, data: bytes) -> Charsmap:
        """Read NormalizerSpec.precompiled_charsmap. Raises IntegrityError, which names no file."""
        try:
            trie = Trie(data)
            singles, branches = trie.roots()
            return cls(singles=singles, branches=tuple(_branches(trie, singles, branches)))
        except (IndexError, ValueError, struct.error, RecursionError):
            raise IntegrityError("its normalisation rules do not parse.") from None

    @property
    def runs(self) -> tuple[Rule, ...]:
        """All rules for longer runs, which are many."""
        return tuple(rule for branch in self.branches for rule in branch.rules())

    def splits_into_characters(self) -> bool:
        """Whether mapping single characters and then joining by NFC gives what the rules give."""
        shared = {id(branch.tails): branch.tails for branch in self.branches}.values()
        closed = all(tail[:-1] in tails for tails in shared for tail in tails if len(tail) > 1)
        count = sum(len(branch.tails) for branch in self.branches)
        return closed and len(self.exceptions) <= TOLERATED * count and not self._is_changed_by_nfc()

    @cached_property
    def exceptions(self) -> tuple[Rule, ...]:
        """The rules for runs that NFC does not follow."""
        normalize, find = unicodedata.normalize, self.singles.get
        tails = {tail for branch in self.branches for tail in branch.tails}
        mapped = {tail: "".join(find(char, char) for char in tail) for tail in tails}
        return tuple(
            Rule(branch.firsts, tail, branch.base, value)
            for branch in self.branches
            for tail, value in branch.tails.items()
            if normalize("NFC", branch.base + mapped[tail]) != value
        )

    def joining_class(self) -> str:
        """The inside of a character class: what can join the character before it, in a grapheme or by a rule."""
        marks = {char for char, value in self.singles.items() if value and unicodedata.combining(value[0])}
        tails = {char for branch in self.branches for char in "".join(branch.tails)}
        return r"\p{M}" + char_class({*JOINING, *JAMO, *marks, *tails})

    def seam_pattern(self) -> str:
        """A pattern for the places where no rule joins a joining character with what precedes it.

        Never at the start of a text: there is nothing to join there, and NFC in tokenizers fails on it.
        """
        unjoined = f"(?!{'|'.join(_alternatives(self.branches))})" if self.branches else ""
        return rf"(?!\A)(?=[{self.joining_class()}]){unjoined}"

    def _is_changed_by_nfc(self) -> bool:
        """Whether NFC would change a character after it has been mapped."""
        chars = map(chr, range(0x80, 0x30000))
        return not all(unicodedata.is_normalized("NFC", self.singles.get(char, char)) for char in chars)


class Trie:
    """The double array of darts-clone (include/darts.h) with the strings it points to; equal branches are shared."""

    def __init__(self, data: bytes) -> None:
        """Take a precompiled charsmap: size of the array, array, strings. Raises struct.error, ValueError."""
        if len(data) > LARGEST_CHARSMAP:
            raise ValueError("a charsmap of megabytes")
        self.left = MOST_STEPS
        (size,) = struct.unpack_from("<I", data)
        self.units: array[int] = array("I", struct.unpack_from(f"<{size // 4}I", data, 4))
        self.strings = data[4 + size :]
        self.known_tails: dict[int, dict[str, str]] = {}
        self.children: dict[int, list[int]] = defaultdict(list)
        for place, unit in enumerate(self.units):
            label = unit & 0x800000FF
            if 0 < label < 0x100:
                self.children[place ^ label].append(place)

    def spend(self, steps: int) -> None:
        """Count steps of reading. Raises ValueError after too many: a few branches can lead to each other forever."""
        self.left -= steps
        if self.left < 0:
            raise ValueError("rules without end")

    def roots(self) -> tuple[dict[str, str], dict[int, list[str]]]:
        """The single characters with a rule, and for each branch the characters that lead to it."""
        singles, branches = {}, defaultdict(list)
        for char, place in self.characters(self.branch(0)):
            value = self.value(place)
            if value is not None:
                singles[char] = value
            if self.branch(place) in self.children:
                branches[self.branch(place)].append(char)
        return singles, branches

    def tails(self, branch: int) -> dict[str, str]:
        """All runs below a branch, with what they become. Raises RecursionError if one leads to itself."""
        if branch not in self.known_tails:
            self.known_tails[branch] = dict(self._tails(branch))
        return self.known_tails[branch]

    def _tails(self, branch: int) -> Iterator[tuple[str, str]]:
        for char, place in self.characters(branch):
            value = self.value(place)
            if value is not None:
                yield sys.intern(char), value
            below = self.branch(place)
            if below in self.children:
                tails = self.tails(below)
                self.spend(len(tails))
                yield from [(sys.intern(char + tail), below_value) for tail, below_value in tails.items()]

    def characters(self, branch: int) -> Iterator[tuple[str, int]]:
        """The next characters below a branch, byte by byte, and where each ends."""
        waiting = [(b"", branch)]
        while waiting:
            head, start = waiting.pop()
            for place in self.children.get(start, ()):
                text = head + _BYTES[self.units[place] & 0xFF]
                if len(text) == _LENGTHS[text[0]]:
                    self.spend(1)
                    yield text.decode("utf-8"), place
                else:
                    waiting.append((text, self.branch(place)))

    def branch(self, place: int) -> int:
        """Where the children of a place are counted from."""
        unit = self.units[place]
        return place ^ (unit >> 10) << (8 if unit & 0x200 else 0)

    def value(self, place: int) -> str | None:
        """What the run that ends here becomes, None if no rule ends."""
        if not self.units[place] & 0x100:
            return None
        start = self.units[self.branch(place)] & 0x7FFFFFFF
        return self.strings[start : self.strings.index(b"\0", start, start + LONGEST_VALUE + 1)].decode("utf-8")


_BYTES = [bytes([value]) for value in range(256)]
_LENGTHS = [1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 for lead in range(256)]  # of UTF-8


def _branches(trie: Trie, singles: dict[str, str], branches: dict[int, list[str]]) -> Iterator[Branch]:
    """The rules for runs, those with the same branch and the same base together."""
    for branch, chars in branches.items():
        tails = trie.tails(branch)
        bases = defaultdict(set)
        for char in chars:
            bases[singles.get(char, char)].add(char)
        for base, firsts in bases.items():
            trie.spend(len(tails))
            yield Branch(frozenset(firsts), base, tails)


def _alternatives(branches: Iterable[Branch]) -> list[str]:
    """What is around a place inside a run: a look back and the next character; few patterns for many rules."""
    firsts: dict[str, set[str]] = defaultdict(set)  # by tail
    for branch in branches:
        for tail in branch.tails:
            firsts[tail] |= branch.firsts
    lasts: dict[tuple[str, frozenset[str]], set[str]] = defaultdict(set)
    for tail, chars in firsts.items():
        lasts[tail[:-1], frozenset(chars)].add(tail[-1])
    betweens: dict[tuple[frozenset[str], frozenset[str]], set[str]] = defaultdict(set)
    for (between, starts), ends in lasts.items():
        betweens[starts, frozenset(ends)].add(between)
    return sorted(
        f"(?<=[{char_class(starts)}]{middle})[{char_class(ends)}]"
        for (starts, ends), between in betweens.items()
        for middle in _middles(between)
    )


def _middles(betweens: set[str]) -> list[str]:
    """Patterns for the characters between; the single ones share a class."""
    single = [f"[{char_class(between for between in betweens if len(between) == 1)}]"]
    longer = ["".join(f"[{char_class(char)}]" for char in between) for between in betweens if len(between) != 1]
    return (single if any(len(between) == 1 for between in betweens) else []) + longer


def char_class(chars: Iterable[str]) -> str:
    """The inside of a character class for Oniguruma, as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if ranges and code <= ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(_range(first, last) for first, last in ranges)


def _range(first: int, last: int) -> str:
    ends = [rf"\x{{{code:x}}}" if code < 0x80 else chr(code) for code in (first, last)]
    return ends[0] if first == last else "-".join(ends)
