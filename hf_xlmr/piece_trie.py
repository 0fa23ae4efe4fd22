"""All pieces of a vocabulary and what they begin with, to be looked up for thousands of places at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BETWEEN", "NOWHERE", "PieceTrie", "codes_of", "ranges"]

Level: TypeAlias = "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]"
"""Nodes of one depth, the last character of each, and the index of its parent in the level before."""

SEAM: Final = "\ud800"  # between pieces: none holds half a surrogate pair
BETWEEN: Final = 0xD800
CODE_BITS: Final = 21  # of a character
SPREAD: Final = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, as in Fibonacci hashing
NOWHERE: Final = -1


def codes_of(texts: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The characters of all texts as numbers, BETWEEN before, between and after the texts."""
    import numpy as np

    return np.frombuffer(SEAM.join(["", *texts, ""]).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@dataclass(frozen=True)
class PieceTrie:
    """A trie whose nodes are slots of one hash table: `keys` has for each its parent and its character, exactly."""

    keys: np.ndarray[Any, Any] = field(repr=False)
    scores: np.ndarray[Any, Any] = field(repr=False)  # by node; -inf where no piece ends
    leads_on: np.ndarray[Any, Any] = field(repr=False)  # by node: whether it has children
    margins: np.ndarray[Any, Any] = field(repr=False)  # by piece: what its best cut into others scores less

    @classmethod
    def of(cls, scores: Mapping[str, float], *, unk_score: float) -> PieceTrie:
        """The trie of pieces with their scores; `unk_score` is that of a character which is none."""
        import numpy as np

        codes = codes_of(tuple(scores))
        slots = 1 << (5 * len(codes) // 4).bit_length()
        values = np.fromiter(scores.values(), dtype=np.float64, count=len(scores))
        trie = cls(
            keys=np.zeros(slots, dtype=np.int64),
            scores=np.full(slots, -np.inf),
            leads_on=np.zeros(slots, dtype=bool),
            margins=np.empty(len(scores)),
        )
        ends, levels = trie._grow(codes, values)
        trie.margins[:] = values - trie._best_cuts(levels, unk_score)[ends]
        return trie

    @property
    def root(self) -> int:
        """The node of the empty text."""
        return len(self.keys)

    def children(self, nodes: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The node that each character leads to from each node, or NOWHERE."""
        import numpy as np

        wanted = self._keys_of(nodes, codes)
        slots = self._first_slots(wanted)
        there = self.keys[slots]
        found = there == wanted
        slots[there == 0] = NOWHERE
        open_ones = np.flatnonzero(~found & (there != 0))
        while len(open_ones):
            nexts = (slots[open_ones] + 1) & (len(self.keys) - 1)
            there = self.keys[nexts]
            slots[open_ones] = np.where(there == 0, NOWHERE, nexts)
            open_ones = open_ones[(there != 0) & (there != wanted[open_ones])]
        return slots

    def _added(self, nodes: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """As `children`, with the nodes that are not there yet."""
        import numpy as np

        wanted = self._keys_of(nodes, codes)
        slots = self._first_slots(wanted)
        open_ones = np.arange(len(slots))
        while len(open_ones):
            tried, keys = slots[open_ones], wanted[open_ones]
            free = self.keys[tried] == 0
            self.keys[tried[free]] = keys[free]  # of several that want one slot, the last gets it
            open_ones = open_ones[self.keys[tried] != keys]
            slots[open_ones] = (slots[open_ones] + 1) & (len(self.keys) - 1)
        return slots

    def _grow(
        self, codes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], list[Level]]:
        """Add all pieces. Returns where each ends, and the nodes level by level."""
        import numpy as np

        places = np.flatnonzero(codes == BETWEEN)
        at, stops, owners = places[:-1] + 1, places[1:], np.arange(len(values))
        nodes, index = np.full(len(at), self.root, dtype=np.int64), np.zeros(len(at), dtype=np.int64)
        numbers, ends = np.empty(len(self.keys), dtype=np.int64), np.empty(len(values), dtype=np.int64)
        levels: list[Level] = []
        while len(at):
            nodes, parents, order = self._added(nodes, codes[at]), index, np.arange(len(at))
            numbers[nodes] = order
            news = np.flatnonzero(numbers[nodes] == order)  # one of each
            levels.append((nodes[news], codes[at[news]], parents[news]))
            numbers[nodes[news]] = np.arange(len(news))
            index, at = numbers[nodes], at + 1
            is_whole = at == stops
            ends[owners[is_whole]] = nodes[is_whole]
            self.scores[nodes[is_whole]] = values[owners[is_whole]]
            at, stops, nodes, index, owners = (each[~is_whole] for each in (at, stops, nodes, index, owners))
            self.leads_on[nodes] = True
        return ends, levels

    def _best_cuts(self, levels: list[Level], unk_score: float) -> np.ndarray[Any, Any]:
        """For each node what the best cut of its text into at least two pieces scores."""
        import numpy as np

        found = np.full(len(self.keys), -np.inf)
        root = np.full(1, self.root)
        best, counts = np.zeros(1), np.zeros(1, dtype=np.int64)  # by node of one level: the best cut of its text,
        ends, values = root[:0], best[:0]  # and last pieces begun in it: their nodes, what the text before them scores
        for depth, (nodes, codes, parents) in enumerate(levels):
            sizes = counts[parents] + (depth > 0)
            sources, owners = ranges((np.cumsum(counts) - counts)[parents], sizes)
            begun, before = np.append(ends, 0)[sources], np.append(values, 0.0)[sources]
            if depth:
                news = np.cumsum(sizes) - 1
                begun[news], before[news] = self.root, best[parents]
            ends = self.children(begun, codes[owners])
            scores = np.where(ends == NOWHERE, -np.inf, self.scores[ends])
            if depth:
                scores[news[scores[news] == -np.inf]] = unk_score
                found[nodes] = np.maximum.reduceat(before + scores, news - sizes + 1)
            best = np.maximum(found[nodes], self.scores[nodes])
            if not depth:
                best[best == -np.inf] = unk_score
            alive = np.flatnonzero((ends != NOWHERE) & self.leads_on[ends])
            ends, values = ends[alive], before[alive]
            counts = np.bincount(owners[alive], minlength=len(nodes))
        return found

    def _keys_of(self, nodes: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        keys: np.ndarray[Any, Any] = (nodes + 1) << CODE_BITS | codes  # never 0, which is a free slot
        return keys

    def _first_slots(self, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import numpy as np

        shift = np.uint64(64 - (len(self.keys).bit_length() - 1))
        slots: np.ndarray[Any, Any] = (keys.view(np.uint64) * np.uint64(SPREAD) >> shift).view(np.int64)
        return slots


def ranges(firsts: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """The numbers from each of `firsts` on, `sizes` of them, and for each number whose it is."""
    import numpy as np

    owners = np.repeat(np.arange(len(firsts)), sizes)
    shifts = firsts - (np.cumsum(sizes) - sizes)
    return np.arange(len(owners)) + shifts[owners], owners
