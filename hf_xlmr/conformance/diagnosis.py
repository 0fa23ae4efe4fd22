"""Finds the known fault, the faults together, or the rounding whose answers are those that a runtime gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import log, sqrt
from typing import Final, TypeAlias

import numpy as np

from hf_xlmr.conformance.faults import Fault
from hf_xlmr.conformance.own_network import TOKENS, VECTOR, Answer, OwnNetwork, Row
from hf_xlmr.conformance.precisions import PRECISIONS, SATURATING
from hf_xlmr.conformance.probes import Probe
from hf_xlmr.conformance.setting import Ids, Setting
from hf_xlmr.conformance.targets import Given, finished

__all__ = ["Asked", "Explanation", "Hypotheses", "Rounding", "Suspect", "rounding_of"]

Rights: TypeAlias = Sequence[Sequence[Answer]]
EXPLAINED: Final = 0.1  # of the difference may be left
CLEARLY: Final = 3.0  # times as much is left by faults that are not meant
ADDS: Final = 5.0  # times less is left with a fault more, if it is there
MOST_FAULTS: Final = 3  # at once
KEPT: Final = 4  # combinations that are tried with one more fault
MOST_CONFIRMED: Final = 12
PROMISING: Final = 0.9  # of the difference is left at most, for a fault to be tried with another
SAMPLE_TOKENS: Final = 1200
LONGEST_SHORT: Final = 70  # tokens of a probe of which several are sampled
MOST_TIMES: Final = 4.0  # larger or smaller than that of the precision, in the middle
EVENLY: Final = 6.0  # times larger in a tenth of the texts than in another
ALIKE: Final = 0.9  # part of the difference that is left, for two roundings to be of one precision


@dataclass(frozen=True)
class Asked:
    """One probe, and what the runtime gave for each of its texts; None if it refused."""

    probe: Probe
    given: tuple[Given | None, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """What the runtime gives."""
        return frozenset(kind for each in self.given if each is not None for kind in each.answer)


@dataclass(frozen=True)
class Suspect:
    """Faults that were tried together, and the part of the difference that they leave."""

    faults: tuple[Fault, ...]
    left: float

    @property
    def changes(self) -> dict[str, object]:
        """The fields of the setting that they change."""
        return {name: value for fault in self.faults for name, value in fault.changes.items()}

    @property
    def kinds(self) -> frozenset[str]:
        """What they are about."""
        return frozenset(fault.kind for fault in self.faults)


@dataclass(frozen=True)
class Explanation:
    """What was tried on all probes, the best first."""

    suspects: tuple[Suspect, ...]
    enough: float

    @property
    def best(self) -> Suspect | None:
        """The fewest faults to which a further one adds nothing that matters; None if they leave too much."""
        found: Suspect | None = None
        for count in range(1, MOST_FAULTS + 1):
            of_count = [each for each in self.suspects if len(each.faults) == count]
            most = EXPLAINED if found is None else max(found.left, self.enough) / ADDS
            if of_count and of_count[0].left <= most:
                found = of_count[0]
        return found

    @property
    def others(self) -> list[Suspect]:
        """What fits as well as the best, of as many faults: the probes do not tell them apart."""
        best = self.best
        if best is None:
            return []
        alike = max(best.left, self.enough) * CLEARLY
        return [
            each
            for each in self.suspects
            if each.faults != best.faults and len(each.faults) == len(best.faults) and each.left <= alike
        ]


class Hypotheses:
    """Computes the answers of settings for probes, and compares them with those that a runtime gave."""

    def __init__(self, own: OwnNetwork, ids: Ids, right: Setting) -> None:
        self.own, self.ids, self.right = own, ids, right
        self._held: dict[tuple[object, ...], list[Answer]] = {}

    def answers(self, asked: Sequence[Asked], setting: Setting) -> list[list[Answer]]:
        """The answers of `setting` for the texts of each probe."""
        with_head = any(each.kinds - {TOKENS, VECTOR} for each in asked)
        rows = [self.rows(each, setting) for each in asked]
        of_network = setting.of_network
        keys = [(of_network, with_head, tuple(map(tuple, some))) for some in rows]
        missing = {key: some for key, some in zip(keys, rows, strict=True) if key not in self._held}
        made = self.own.answers([Row.batch(some) for some in missing.values()], setting, with_head=with_head)
        held = self._held | dict(zip(missing, made, strict=True))
        if of_network == self.right.of_network:  # what all others are compared with
            self._held = held
        return [
            [finished(answer, max(len(row), 1), setting) for answer, row in zip(held[key], some, strict=True)]
            for key, some in zip(keys, rows, strict=True)
        ]

    def rows(self, asked: Asked, setting: Setting) -> list[list[int]]:
        """The ids of the texts of a probe."""
        given = zip(asked.probe.texts, asked.given, strict=True)
        return [self.ids.of(text, setting, each.ids if each is not None else None) for text, each in given]

    def error(self, asked: Sequence[Asked], setting: Setting, rights: Rights, kinds: frozenset[str]) -> float:
        """How far the answers of `setting` are from those of the runtime, over all texts; `rights` are the right ones.

        One text's difference is a part of its right answer's square, for each of `kinds`.
        """
        total = 0.0
        found = zip(asked, self.answers(asked, setting), rights, strict=True)
        for each, computed, of_probe in found:
            for given, one, right in zip(each.given, computed, of_probe, strict=True):
                if given is not None:
                    total += sum(
                        _error_of(given.answer[kind], one.get(kind), right[kind])
                        for kind in kinds & given.answer.keys() & right.keys()
                    )
        return total

    # ---- the search --------------------------------------------------------------------------------------------------

    def left_by(self, asked: Sequence[Asked], kinds: frozenset[str]) -> Callable[[tuple[Fault, ...]], Suspect]:
        """A function that says which part of the difference some faults leave."""
        rights = self.answers(asked, self.right)
        whole = self.error(asked, self.right, rights, kinds)

        def left(faults: tuple[Fault, ...]) -> Suspect:
            suspect = Suspect(faults, 0.0)
            error = self.error(asked, self.right.having(suspect.changes), rights, kinds)
            return replace(suspect, left=sqrt(error / whole) if whole else 0.0)

        return left

    def explanation(
        self,
        asked: Sequence[Asked],
        differing: Sequence[Asked],
        faults: Sequence[Fault],
        kinds: frozenset[str],
        *,
        enough: float,
    ) -> Explanation:
        """The faults, or the faults together, that explain the answers best.

        A sample of the `differing` probes shows which are worth being tried on all that was `asked`. No fault is
        added to those that leave a part of the difference below `enough`, which is rounding.
        """
        sample = _sample(differing, lambda each: sum(map(len, self.rows(each, self.right))))
        ranked = self._ranked(sample, faults, kinds, enough)
        alike = max(ranked[0].left, enough) * CLEARLY * 2 if ranked else 0.0
        chosen: list[Suspect] = []
        for count in range(1, MOST_FAULTS):  # first, however many others are alike: fewer faults may do as well
            chosen += [each for each in ranked if len(each.faults) == count][:1]
        chosen += [each for number, each in enumerate(ranked) if number < KEPT or each.left < alike]
        left_by = self.left_by(asked, kinds)
        confirmed = [left_by(each.faults) for each in dict.fromkeys(chosen[:MOST_CONFIRMED])]
        return Explanation(tuple(sorted(confirmed, key=_order)), enough)

    def _ranked(
        self, sample: Sequence[Asked], faults: Sequence[Fault], kinds: frozenset[str], enough: float
    ) -> list[Suspect]:
        """All that was tried on a sample, the best first."""
        tried: dict[frozenset[str], Suspect] = {}
        left_by = self.left_by(sample, kinds)
        beam = [Suspect((), 1.0)]
        for _ in range(MOST_FAULTS):
            for more in (more for suspect in beam for more in _extended(suspect, faults)):
                key = frozenset(fault.name for fault in more)
                if key not in tried:
                    tried[key] = left_by(more)
            ranked = sorted(tried.values(), key=_order)
            beam = [each for each in ranked if each.left < PROMISING][:KEPT]
            if not beam or ranked[0].left <= enough:
                break
        return ranked


def _order(suspect: Suspect) -> tuple[float, int]:
    return round(suspect.left, 6), len(suspect.faults)


def _extended(suspect: Suspect, faults: Sequence[Fault]) -> Iterable[tuple[Fault, ...]]:
    """The suspect's faults with each further one that can be there, too."""
    taken = {name for fault in suspect.faults for name in fault.changes}
    for fault in faults:
        if fault.kind not in suspect.kinds and not taken & fault.changes.keys():
            yield (*suspect.faults, fault)


def _error_of(given: np.ndarray, computed: np.ndarray | None, right: np.ndarray) -> float:
    """The squared difference of two answers, as a part of the right one's square; of another shape, twice all of it."""
    if computed is None or given.shape != computed.shape or not np.isfinite(given).all():
        return 2.0
    scale = max(float(np.square(right, dtype=np.float64).mean()), 1e-24)
    return float(np.square(given.astype(np.float64) - computed).mean() / scale)


def _sample(asked: Sequence[Asked], tokens: Callable[[Asked], int]) -> list[Asked]:
    """The probes with the fewest tokens, of each class two at most if they are short, else one."""
    ranked = sorted(asked, key=lambda each: each.probe.kind)
    taken: list[Asked] = []
    for _, some in groupby(ranked, key=lambda each: each.probe.kind):
        shortest = sorted(some, key=tokens)
        taken += shortest[:1] + [each for each in shortest[1:3] if tokens(each) <= LONGEST_SHORT]
    total = 0
    kept: list[Asked] = []
    for each in sorted(taken, key=tokens):
        total += tokens(each)
        if total <= SAMPLE_TOKENS or not kept:
            kept.append(each)
    return kept


# ---- rounding: of the size that a lower precision gives, and evenly over all probes ----------------------------------


@dataclass(frozen=True)
class Rounding:
    """A precision whose rounding is like the difference."""

    precision: str
    """What such a runtime does, a key of PRECISIONS."""
    times: float
    """How many times its rounding the difference is, in the middle of all texts."""
    left: float
    """The part of the difference that answers in this precision leave; near 1.4 for rounding of another kind."""
    alike: tuple[str, ...] = ()
    """All precisions that round about as much."""

    @property
    def is_known(self) -> bool:
        """Whether it is rounding, and not only as large."""
        return self.left < ALIKE

    @property
    def kinds(self) -> tuple[str, ...]:
        """The types whose rounding is as large."""
        return tuple(dict.fromkeys(name.partition(" with ")[0].rpartition(" ")[2] for name in self.alike))


def rounding_of(
    hypotheses: Hypotheses, asked: Sequence[Asked], setting: Setting, kinds: frozenset[str]
) -> Rounding | None:
    """The precision whose rounding is most like what differs from `setting`; None if it is not rounding."""
    found = [each for name in PRECISIONS if (each := _compared(hypotheses, asked, setting, kinds, name)) is not None]
    nearest = min(found, key=lambda each: each.left, default=None)
    if nearest is None or nearest.left < ALIKE:
        return nearest
    found = sorted((each for each in found if each.precision not in SATURATING), key=lambda each: abs(log(each.times)))
    return replace(found[0], alike=tuple(each.precision for each in found)) if found else None


def _compared(
    hypotheses: Hypotheses, asked: Sequence[Asked], setting: Setting, kinds: frozenset[str], name: str
) -> Rounding | None:
    lower = setting.having({"precision": name})
    given, rounded, both = [], [], []
    found = zip(asked, hypotheses.answers(asked, setting), hypotheses.answers(asked, lower), strict=True)
    for each, rights, lows in found:
        for one, right, low in zip(each.given, rights, lows, strict=True):
            for kind in sorted(kinds & one.answer.keys() & right.keys()) if one is not None else ():
                values = one.answer[kind] if one is not None else right[kind]
                given.append(sqrt(_error_of(values, right[kind], right[kind])))
                rounded.append(sqrt(_error_of(low[kind], right[kind], right[kind])))
                both.append(_error_of(values, low[kind], right[kind]))
    ratios = np.array(given) / np.maximum(rounded, 1e-12)
    low_tenth, times, high_tenth = np.quantile(ratios, (0.1, 0.5, 0.9))
    if not 1 / MOST_TIMES <= times <= MOST_TIMES or high_tenth > EVENLY * low_tenth:
        return None
    return Rounding(name, float(times), sqrt(float(np.sum(both)) / max(float(np.square(given).sum()), 1e-30)))
