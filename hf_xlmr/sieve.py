"""Which texts SentencePiece's releases may cut differently, told for a whole batch by its own ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hf_xlmr.piece_trie import BETWEEN, NOWHERE, PieceTrie, codes_of, ranges
from hf_xlmr.sentencepiece_model import PieceType, SentencePieceModel
from hf_xlmr.ties import CALM_MARGIN, ROUNDING, TieBreaker

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Sieve"]

HASH_BITS: Final = 22
HASH_FACTORS: Final = (2246822519, 2654435761)
APART: Final = -1e4  # what no detour over a seam that no piece crosses can be worth
SLACK: Final = 1e-6  # for sums in double precision


@dataclass(frozen=True)
class Sieve:
    """How far, at least, the best path of each text leads before any other: where by more than rounding, all is calm.

    Another path leaves the best one, takes pieces that cross its seams, and comes back. Up to the first such piece it
    scores no more than the best cut of the beginning of a piece of the best path (`before`), after the last one no
    more than the best cut of the end of one (`after`), and between two of them, over characters from v to w of one
    piece, no more than before[w] - before[v]. These are known for each piece of the vocabulary; what crosses a seam is
    found by walking over it. Arrays run over SentencePiece's ids, the last four over `codes`.
    """

    ties: TieBreaker = field(repr=False)
    pieces: tuple[str, ...] = field(repr=False)
    trie: PieceTrie = field(repr=False)
    unk_id: int
    scores: np.ndarray[Any, Any] = field(repr=False)
    sizes: np.ndarray[Any, Any] = field(repr=False)  # in characters
    places: np.ndarray[Any, Any] = field(repr=False)  # where in `codes` each piece begins
    heads: np.ndarray[Any, Any] = field(repr=False)  # a hash of the first character
    tails: np.ndarray[Any, Any] = field(repr=False)  # and of the last
    margins: np.ndarray[Any, Any] = field(repr=False)  # before the best other cut of the piece
    is_weighed: np.ndarray[Any, Any] = field(repr=False)  # whether the last three arrays tell of it
    crossed: np.ndarray[Any, Any] = field(repr=False)  # by head ^ tail: whether a piece may have these two inside
    codes: np.ndarray[Any, Any] = field(repr=False)  # the characters of all pieces
    before: np.ndarray[Any, Any] = field(repr=False)  # what leads from the beginning of the piece up to each of them
    after: np.ndarray[Any, Any] = field(repr=False)  # and from each of them to its end
    nodes: np.ndarray[Any, Any] = field(repr=False)  # of the characters from each to the end, where a piece begins so

    @classmethod
    def of(cls, model: SentencePieceModel, ties: TieBreaker) -> Sieve:
        """The sieve for `model`."""
        import numpy as np

        codes = codes_of(model.pieces)
        seams = np.flatnonzero(codes == BETWEEN)
        heads, tails = (codes * np.uint32(factor) >> (32 - HASH_BITS) for factor in HASH_FACTORS)
        crossed = np.zeros(2 << HASH_BITS, dtype=bool)
        crossed[(tails[:-1] ^ heads[1:])[(codes[:-1] != BETWEEN) & (codes[1:] != BETWEEN)]] = True
        heads, tails = heads[seams[:-1] + 1], tails[seams[1:] - 1]
        heads[model.unk_id] = tails[model.unk_id] = 1 << HASH_BITS  # never crossed
        trie = PieceTrie.of(ties.scores, unk_score=ties.unk_score)
        kinds = np.frombuffer(model.types, dtype=np.uint8)
        margins, scores = np.full(len(model), np.inf), np.array(model.scores, dtype=np.float64)
        margins[(kinds == PieceType.NORMAL) | (kinds == PieceType.USER_DEFINED)] = trie.margins
        margins[model.unk_id] = np.inf if ties.knows_by_character else -np.inf
        scores[model.unk_id] = ties.unk_score
        empty = np.full(len(codes), -np.inf)
        return cls(
            ties=ties,
            pieces=model.pieces,
            trie=trie,
            unk_id=model.unk_id,
            scores=scores,
            sizes=np.diff(seams) - 1,
            places=seams[:-1] + 1,
            heads=heads,
            tails=tails,
            margins=margins,
            is_weighed=np.zeros(len(model), dtype=bool),
            crossed=crossed,
            codes=codes,
            before=empty,
            after=empty.copy(),
            nodes=np.full(len(codes), NOWHERE),
        )

    def doubtful_texts(self, encoded: Sequence[Sequence[int]], joined: np.ndarray[Any, Any]) -> list[int]:
        """The indices of the texts that may need mending; `joined` holds all of `encoded` in one array.

        Where the unknown piece occurs, its characters may make a text too long besides: see TieBreaker.too_long.
        """
        import numpy as np

        counts = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        if not (len(joined) and self.ties.scores_fall):
            return [index for index, pieces in enumerate(encoded) if pieces]
        ends = np.cumsum(counts)
        is_crossed = self._is_crossed(joined, ends)
        self._weigh_new(joined[is_crossed | np.concatenate([[False], is_crossed[:-1]])])
        leads, parts = self._leads(joined, is_crossed)
        sizes = self._sizes_of_parts(joined, parts)
        rates = np.repeat(self._rates(joined, counts, ends), counts)
        doubts = sizes * (rates + sizes * (self.ties.largest_score * ROUNDING)) + SLACK
        places = np.flatnonzero(leads <= doubts)
        firsts = np.append(np.flatnonzero(~parts), len(joined))
        numbers, sample = np.unique(np.searchsorted(firsts, places, side="right"), return_index=True)
        close = [
            first
            for first, stop, doubt in zip(
                firsts[numbers - 1].tolist(), firsts[numbers].tolist(), doubts[places[sample]].tolist(), strict=True
            )
            if self._is_close(joined[first:stop].tolist(), doubt)
        ]
        found: list[int] = np.unique(np.searchsorted(ends, close, side="right")).tolist()
        return found

    def _is_close(self, ids: list[int], doubt: float) -> bool:
        """Whether that much decides about a part of a text, by its whole lattice."""
        return self.unk_id in ids or self.ties.is_close([self.pieces[each] for each in ids], doubt)

    def _is_crossed(self, joined: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """For each piece whether another may cross the seam after it."""
        import numpy as np

        is_crossed = np.zeros(len(joined), dtype=bool)
        is_crossed[:-1] = self.crossed[self.tails[joined[:-1]] ^ self.heads[joined[1:]]]
        is_crossed[ends[ends > 0] - 1] = False
        return is_crossed

    def _rates(
        self, joined: np.ndarray[Any, Any], counts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """For each text what rounding may change in a character's time; how long unknown pieces are is not known."""
        import numpy as np

        totals = np.concatenate([[0.0], np.cumsum(-self.scores[joined])])
        rates: np.ndarray[Any, Any] = (totals[ends] - totals[ends - counts]) * ROUNDING
        unknown = np.flatnonzero(joined == self.unk_id)
        if len(unknown):
            rates[np.searchsorted(ends, unknown, side="right")] = CALM_MARGIN
        return rates

    def _sizes_of_parts(self, joined: np.ndarray[Any, Any], is_joined: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """For each piece the characters of all that are joined with it, one to the next."""
        import numpy as np

        firsts = np.flatnonzero(~is_joined)  # never none: a part begins with one
        totals = np.add.reduceat(self.sizes[joined], firsts)
        return np.repeat(totals, np.diff(firsts, append=len(joined)))

    def _leads(
        self, joined: np.ndarray[Any, Any], is_crossed: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """By how much, at least, the best path leads at each piece's end; and which is joined to the one before."""
        import numpy as np

        apart, length = np.full(len(joined), APART), len(joined)
        detours, excess = (apart, apart.copy()), (apart.copy(), apart.copy())  # from a seam; from inside a piece
        for from_inside, pieces, at, value in self._walk(joined, np.flatnonzero(is_crossed), is_crossed, excess[1]):
            for kind in (False, True):
                some = np.flatnonzero(from_inside == kind)
                closed = value[some] + self.after[at[some]] - self.scores[joined[pieces[some]]]
                np.maximum.at(detours[kind], pieces[some], closed)
                inside = some[self.codes[at[some]] != BETWEEN]
                np.maximum.at(excess[kind], pieces[inside], value[inside] - self.before[at[inside]])
        is_joined = (np.maximum(*detours) > APART) | (excess[1] > APART)
        # What an arrival inside a piece is worth before its best cut: carried[i] = max(0, excess[0][i],
        # carried[i - 1] + excess[1][i]), Lindley's recursion.
        steps = np.cumsum(excess[1])
        carried = steps + np.maximum.accumulate(np.maximum(excess[0], 0.0) - steps)
        detours[1][1:] += carried[: length - 1]
        return np.minimum(self.margins[joined], -np.maximum(*detours)), is_joined

    def _walk(
        self,
        joined: np.ndarray[Any, Any],
        seams: np.ndarray[Any, Any],
        is_crossed: np.ndarray[Any, Any],
        excess: np.ndarray[Any, Any],
    ) -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
        """All pieces of the vocabulary that cross a seam, by their lengths; note in `excess` which pieces they pass.

        Told of each: whether it begins inside a piece, in which of `joined` it ends, at which of the `codes`, and
        what the path to there scores beside the best path to the beginning of that piece.
        """
        import numpy as np

        left = joined[seams]
        starts, owners = ranges(self.places[left], self.sizes[left])
        known = np.flatnonzero(self.nodes[starts] != NOWHERE)
        starts, owners = starts[known], owners[known]
        from_inside = starts > self.places[left[owners]]
        nodes, values = self.nodes[starts], self.before[starts] - self.scores[left[owners]]
        pieces = seams[owners] + 1
        at = self.places[joined[pieces]]
        while len(at):
            codes = self.codes[at]
            over = np.flatnonzero(codes == BETWEEN)
            if len(over):
                going = over[is_crossed[pieces[over]]]
                passed = pieces[going]
                excess[passed] = np.maximum(excess[passed], 0.0)  # so what was carried there is carried on
                values[going] -= self.scores[joined[passed]]
                pieces[going] += 1
                at[going] = self.places[joined[passed + 1]]
                codes[going] = self.codes[at[going]]
            nodes = self.trie.children(nodes, codes)
            alive = np.flatnonzero(nodes != NOWHERE)
            nodes, at, pieces, values = nodes[alive], at[alive] + 1, pieces[alive], values[alive]
            from_inside = from_inside[alive]
            scores = self.trie.scores[nodes]
            whole = np.flatnonzero(scores > -np.inf)
            yield from_inside[whole], pieces[whole], at[whole], values[whole] + scores[whole]

    def _weigh_new(self, joined: np.ndarray[Any, Any]) -> None:
        import numpy as np

        new = np.unique(joined[~self.is_weighed[joined]])
        if len(new):
            self._weigh(new)
            self.is_weighed[new] = True

    def _weigh(self, ids: np.ndarray[Any, Any]) -> None:
        """Fill in what all cuts of these pieces score."""
        import numpy as np

        firsts, sizes = self.places[ids], self.sizes[ids]
        starts, owners = ranges(firsts, sizes)
        edges, scores = self._edges(starts, firsts[owners] + sizes[owners])
        is_whole = (edges[0] == firsts[owners[edges[2]]]) & (edges[1] - edges[0] == sizes[owners[edges[2]]])
        begin, end, owner = (each[~is_whole] for each in edges)
        scores = scores[~is_whole]
        owner = firsts[owners[owner]]
        self.before[firsts], self.after[firsts + sizes] = 0.0, 0.0
        for some in _by_level(begin - owner):
            there = end[some]
            self.before[there] = np.maximum(self.before[there], self.before[begin[some]] + scores[some])
        for some in reversed(_by_level(end - owner)):
            there = begin[some]
            self.after[there] = np.maximum(self.after[there], self.after[end[some]] + scores[some])

    def _edges(
        self, starts: np.ndarray[Any, Any], stops: np.ndarray[Any, Any]
    ) -> tuple[tuple[np.ndarray[Any, Any], ...], np.ndarray[Any, Any]]:
        """Each piece that begins at one of `starts` and ends by its stop: begin, end, index of the start; its score.

        Notes besides which node the characters from each start to its stop lead to.
        """
        import numpy as np

        found: list[tuple[np.ndarray[Any, Any], ...]] = []
        index, nodes, length = np.arange(len(starts)), np.full(len(starts), self.trie.root), 0
        while len(index):
            nodes = self.trie.children(nodes, self.codes[starts[index] + length])
            length += 1
            scores = np.where(nodes != NOWHERE, self.trie.scores[nodes], -np.inf)
            if length == 1:
                scores[scores == -np.inf] = self.ties.unk_score
            whole = np.flatnonzero(scores > -np.inf)
            found.append((index[whole], np.full(len(whole), length), scores[whole]))
            alive = np.flatnonzero((nodes != NOWHERE) & self.trie.leads_on[nodes])
            index, nodes = index[alive], nodes[alive]
            is_over = starts[index] + length == stops[index]
            self.nodes[starts[index[is_over]]] = nodes[is_over]
            index, nodes = index[~is_over], nodes[~is_over]
        which, lengths, values = (np.concatenate(column) for column in zip(*found, strict=True))
        return (starts[which], starts[which] + lengths, which), values


def _by_level(levels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The indices of each level, the lowest first."""
    import numpy as np

    order = np.argsort(levels.astype(np.uint16), kind="stable")  # by radix
    return np.split(order, np.cumsum(np.bincount(levels))[:-1])
