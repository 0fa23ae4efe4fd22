"""Whether a difference is rounding: of the size that a lower precision gives, and evenly over all probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, sqrt
from typing import Final

import numpy as np

from hf_xlmr.conformance.diagnosis import Asked, Hypotheses, error_of
from hf_xlmr.conformance.own_network import PRECISIONS
from hf_xlmr.conformance.setting import Setting

__all__ = ["Rounding", "rounding_of"]

MOST_TIMES: Final = 4.0  # larger or smaller than that of the precision, in the middle
EVENLY: Final = 6.0  # times larger in a tenth of the texts than in another
ALIKE: Final = 0.9  # part of the difference that is left, for two roundings to be of one precision


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
    found.sort(key=lambda each: abs(log(each.times)))
    return replace(found[0], alike=tuple(each.precision for each in found))


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
                given.append(sqrt(error_of(values, right[kind], right[kind])))
                rounded.append(sqrt(error_of(low[kind], right[kind], right[kind])))
                both.append(error_of(values, low[kind], right[kind]))
    ratios = np.array(given) / np.maximum(rounded, 1e-12)
    low_tenth, times, high_tenth = np.quantile(ratios, (0.1, 0.5, 0.9))
    if not 1 / MOST_TIMES <= times <= MOST_TIMES or high_tenth > EVENLY * low_tenth:
        return None
    return Rounding(name, float(times), sqrt(float(np.sum(both)) / max(float(np.square(given).sum()), 1e-30)))
