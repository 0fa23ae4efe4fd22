"""All pieces of a vocabulary and what they begin with, to be looked up for thousands of places at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BETWEEN", "PieceTrie", "codes_of"]

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

    @classmethod
    def of(cls, scores: Mapping[str, float]) -> PieceTrie:
        """The trie of all pieces that have a score."""
        import numpy as np

        codes = codes_of(tuple(scores))
        places = np.flatnonzero(codes == BETWEEN)
        values = np.fromiter(scores.values(), dtype=np.float64, count=len(scores))
        slots = 1 << (5 * len(codes) // 4).bit_length()
        trie = cls(np.zeros(slots, dtype=np.int64), np.full(slots, -np.inf), np.zeros(slots, dtype=bool))
        at, stops = places[:-1] + 1, places[1:]
        nodes = np.full(len(at), trie.root, dtype=np.int64)
        while len(at):
            nodes = trie._added(nodes, codes[at])
            at = at + 1
            is_whole = at == stops
            trie.scores[nodes[is_whole]] = values[is_whole]
            at, stops, nodes, values = (each[~is_whole] for each in (at, stops, nodes, values))
            trie.leads_on[nodes] = True
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

    def _keys_of(self, nodes: np.ndarray[Any, Any], codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (nodes + 1) << CODE_BITS | codes  # never 0, which is a free slot

    def _first_slots(self, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        import numpy as np

        shift = np.uint64(64 - (len(self.keys).bit_length() - 1))
        return (keys.view(np.uint64) * np.uint64(SPREAD) >> shift).view(np.int64)
