"""One comparison: asks a runtime, compares its answers with the right ones, and looks for the cause of a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Final

import numpy as np

from hf_xlmr.conformance.diagnosis import Asked, Hypotheses, Rounding, Suspect, rounding_of
from hf_xlmr.conformance.faults import LIMITS, Fault, known_faults, truncations
from hf_xlmr.conformance.own_network import TOKENS, VECTOR, Answer, OwnNetwork
from hf_xlmr.conformance.precisions import SATURATING
from hf_xlmr.conformance.probes import BEYOND, OF_THE_TOKENIZER, PAIRS, Probe, probes_of, texts_given
from hf_xlmr.conformance.report import Conformance, ProbeClass
from hf_xlmr.conformance.setting import Ids, Setting, Text
from hf_xlmr.conformance.targets import Distance, Given, Refused, Target, distance
from hf_xlmr.errors import InputError, first_of
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.progress import Progress
from hf_xlmr.tokenizer.plain_tokenizer import plain_tokenizer

__all__ = ["Comparison"]

UNSTEADY: Final = 0.1  # of the largest difference, if an answer moves less something else is wrong
FEW: Final = 8  # short probes, of which a runtime that works answers one
OF_DROPOUT: Final = 0.01  # moves answers more than this
MOST_LIMITS: Final = 80  # lengths of truncation that are tried one by one
OF_VECTORS: Final = frozenset({"pooling", "normalization"})
OF_IDS: Final = frozenset({"special tokens", "truncation", "spelling", "ids", "tokenizer"})


@dataclass(frozen=True)
class _Result:
    """What became of one text of a probe."""

    probe: Probe
    text: Text
    given: Given | None
    distance: Distance | None
    """None if the runtime refused the text."""
    as_plain: bool = False
    is_clear: bool = True
    """Whether tokenizer.json cuts the text as fairseq does."""

    def differs(self, tolerance: float) -> bool:
        return self.distance is not None and self.distance.largest > tolerance


class Comparison:
    """One comparison: it asks, compares, and if something differs looks for the cause."""

    def __init__(self, files: ModelFiles, target: Target, right: Setting, tolerance: float) -> None:
        self.files, self.target, self.right, self.tolerance = files, target, right, tolerance
        self.ids = Ids(files.needed_tokenizer(), _plain_ids(files), files.shape.longest_text)
        self.hypotheses = Hypotheses(OwnNetwork(files), self.ids, right)
        self._plain = right.having({"tokenizer": "tokenizer.json"})
        self.reasons: dict[str, str] = {}
        """Of refusals, by class of probes."""

    def found(self, texts: Sequence[str], progress: Progress) -> Conformance:
        """Ask, compare and conclude. Raises InputError."""
        probes = [each for each in probes_of(self.ids) if each.kind != PAIRS or self.target.takes_pairs]
        probes += texts_given(texts)
        with progress.task("asking the runtime", total=len(probes), unit="probes") as task:
            asked = []
            for probe in probes:
                asked.append(self._asked(probe))
                if len(asked) == (1 if asked[0].kinds else FEW):
                    self._kinds(asked)  # another model, or a runtime that answers nothing, shows at once
                task.advance(1)
        kinds = self._kinds(asked)
        self.hypotheses.answers(asked, self.right)  # all at once, which is faster
        results = [result for each in asked for result in self._compared(each, kinds)]
        classes = _by_class(results, self.tolerance)
        conclusion = self._conclusion(asked, results, kinds)
        return Conformance(
            model=self.files.folder,
            target="",
            runtime=self.target.runtime,
            compared=tuple(sorted(kinds)),
            pool=self.right.pool,
            normalized=self.right.normalized,
            tolerance=self.tolerance,
            agrees=conclusion.agrees,
            verdict=conclusion.verdict,
            faults=conclusion.faults,
            left=conclusion.left,
            classes=classes,
            tried=conclusion.tried,
            notes=(*self.target.notes, *self._notes(classes)),
        )

    # ---- asking and comparing ----------------------------------------------------------------------------------------

    def _asked(self, probe: Probe) -> Asked:
        given = self.target.ask(probe.texts)
        for each in given:
            if isinstance(each, Refused):
                self.reasons.setdefault(probe.kind, each.reason)
        return Asked(probe, tuple(each if isinstance(each, Given) else None for each in given))

    def _kinds(self, asked: Sequence[Asked]) -> frozenset[str]:
        """What the runtime gives and can be compared. Raises InputError."""
        kinds: frozenset[str] = frozenset().union(*(each.kinds for each in asked))
        if not kinds:
            raise InputError(f"{self.target.runtime} gives no answer: {next(iter(self.reasons.values()), 'nothing')}")
        first = next(each for each in asked if each.kinds)
        ours = self.hypotheses.answers([first], self.right)[0][0]
        if not (shared := kinds & ours.keys()):
            raise InputError(
                f"{self.target.runtime} gives {', '.join(sorted(kinds))}, and a {self.files.class_name} "
                f"{', '.join(sorted(ours))}: there is nothing to compare"
            )
        answers = [each.answer for each in first.given if each is not None]
        given = {kind: _shape_of(each[kind]) for each in answers for kind in shared & each.keys()}
        other = [kind for kind in sorted(shared) if given[kind] != _shape_of(ours[kind])]
        told = ", ".join(f"{kind} {given[kind]}, and the model {_shape_of(ours[kind])}" for kind in other)
        if {TOKENS, VECTOR} & {*other} or {*other} == shared:
            raise InputError(f"{self.target.runtime} gives {told}: it is another model")
        if other and (note := f"the heads are not compared: it gives {told}") not in self.target.notes:
            self.target.notes.append(note)
        return shared - {*other}

    def _compared(self, asked: Asked, kinds: frozenset[str]) -> Iterator[_Result]:
        rights = self.hypotheses.answers([asked], self.right)[0]
        is_plain = [self.ids.of(each, self._plain) != self.ids.of(each, self.right) for each in asked.probe.texts]
        plains = self.hypotheses.answers([asked], self._plain)[0] if any(is_plain) else rights
        for number, (text, given) in enumerate(zip(asked.probe.texts, asked.given, strict=True)):
            if given is None:
                yield _Result(asked.probe, text, None, None)
                continue
            found = _farthest(given.answer, rights[number], kinds)
            as_plain = False
            if found.largest > self.tolerance and is_plain[number]:
                other = _farthest(given.answer, plains[number], kinds)
                as_plain = other.largest < found.largest / 2
                found = other if as_plain else found
            yield _Result(asked.probe, text, given, found, as_plain, not is_plain[number])

    # ---- the cause ---------------------------------------------------------------------------------------------------

    def _conclusion(self, asked: Sequence[Asked], results: Sequence[_Result], kinds: frozenset[str]) -> _Conclusion:
        refused = self._refusals(results)
        differing = [each for each in results if each.differs(self.tolerance)]
        if not differing:
            if refused:
                return _Conclusion(f"differs: it {_joined(refused)}", tuple(refused))
            has_own_head = any("logits" in each.kinds - kinds for each in asked)
            without = " (what its head gives is not compared)" if has_own_head else ""
            verdict = f"agrees with fairseq: every answer is within {self.tolerance:g}{without}"
            return _Conclusion(agrees=True, verdict=verdict)
        for simple in (self._not_finite, self._unsteady, self._reordered):
            if told := simple(asked, results, kinds):
                return _Conclusion(f"differs: it {told}", (told, *refused))
        found = self._diagnosed(asked, differing, kinds)
        if refused:
            found = replace(
                found, faults=(*found.faults, *refused), verdict=f"{found.verdict}; it also {_joined(refused)}"
            )
        return found

    def _refusals(self, results: Sequence[_Result]) -> list[str]:
        """What the runtime refuses and should not."""
        refused = [each for each in results if each.given is None and each.probe.kind != BEYOND]
        if not refused:
            return []
        lengths = {each: len(self.ids.of(each.text, self.right)) for each in refused}
        taken = [len(self.ids.of(each.text, self.right)) for each in results if each.given is not None]
        reason = self.reasons[refused[0].probe.kind]
        if min(lengths.values()) > max(taken, default=0):
            return [f"refuses texts of {min(lengths.values())} tokens, below the limit of {self.ids.limit} ({reason})"]
        names = first_of(list(dict.fromkeys(each.probe.kind for each in refused)), 4)
        return [f"refuses {len(refused)} of {len(results)} texts ({names}: {reason})"]

    def _unsteady(self, asked: Sequence[Asked], results: Sequence[_Result], kinds: frozenset[str]) -> str | None:
        """Whether the same texts get other answers when they come again, and that is what differs, as with dropout."""
        first = next((each for each in asked if None not in each.given), asked[0])
        again = zip(first.given, self._asked(first.probe).given, strict=True)
        moved = max(
            (_farthest(other.answer, one.answer, kinds).largest for one, other in again if one and other), default=0.0
        )
        far = [each.distance.largest for each in results if each.distance is not None]
        if moved <= max(self.tolerance, UNSTEADY * max((each for each in far if np.isfinite(each)), default=0.0)):
            return None
        told = "gives other answers when the same text comes again"
        return f"{told}, as a network does that is in training" if moved > OF_DROPOUT else f"{told} (by {moved:.0e})"

    def _reordered(self, asked: Sequence[Asked], results: Sequence[_Result], kinds: frozenset[str]) -> str | None:
        """Whether the texts of a batch get each other's answers."""
        wrong: list[list[int | None]] = []
        for each in asked:
            rights = self.hypotheses.answers([each], self.right)[0]
            if len(rights) < 2 or None in each.given:
                continue
            own = [
                next(
                    (
                        number
                        for number, right in enumerate(rights)
                        if given is not None and _farthest(given.answer, right, kinds).largest <= self.tolerance
                    ),
                    None,
                )
                for given in each.given
            ]
            if None in own:
                return None
            if own != list(range(len(own))):
                wrong.append(own)
        if not wrong:
            return None
        told = "returns the answers of a batch in another order"
        if any(len(set(own)) < len(own) for own in wrong):
            told = "gives texts of a batch the same answer"
        is_alone = any(each.differs(self.tolerance) and len(each.probe.texts) == 1 for each in results)
        return f"{told} (and something else, too: single texts differ)" if is_alone else told

    def _not_finite(self, _asked: object, results: Sequence[_Result], kinds: frozenset[str]) -> str | None:
        odd = [
            each
            for each in results
            if each.given is not None and not all(np.isfinite(each.given.answer[kind]).all() for kind in kinds)
        ]
        if not odd:
            return None
        return f"gives values that are not finite for {len(odd)} of {len(results)} texts, as float16 does beyond 65,504"

    def _diagnosed(self, asked: Sequence[Asked], differing: Sequence[_Result], kinds: frozenset[str]) -> _Conclusion:
        clear = [self._clear(each) for each in asked]
        clear = [each for each in clear if any(each.given)]
        wrong = {id(each.given) for each in differing}
        wanted = [each for each in clear if any(id(given) in wrong for given in each.given)]
        if not wanted:  # only texts that tokenizer.json cuts otherwise
            clear = wanted = [each for each in asked if any(id(given) in wrong for given in each.given)]
        faults = self._faults(differing, asked, kinds)
        rights = self.hypotheses.answers(clear, self.right)
        size = self.hypotheses.error(clear, self.right, rights, kinds) / max(1, sum(len(each.given) for each in clear))
        enough = min(0.05, 5e-6 / max(sqrt(size), 1e-12))
        explained = self.hypotheses.explanation(clear, wanted, faults, kinds, enough=enough)
        best = explained.best
        if best is None and self._shows_ids(asked):
            fault = Fault("tokenizer", "has another tokenizer, which gives other ids", {"tokenizer": "target"})
            explained = self.hypotheses.explanation(clear, wanted, [fault, *_of_vectors(faults)], kinds, enough=enough)
            best = explained.best
        tried = {" and ".join(fault.name for fault in each.faults): each.left for each in explained.suspects[:8]}
        setting = self.right if best is None else self.right.having(best.changes)
        short = [each for each in clear if sum(len(self.ids.of(text, setting)) for text in each.probe.texts) <= 150]
        rounding = None
        has_more = best is None or best.left > 4 * enough
        if has_more:
            rounding = rounding_of(self.hypotheses, short or clear, setting, kinds)
        if best is not None:
            return _Conclusion(*_told(best, explained.others, rounding, has_more=has_more), best.left, tried)
        says = self.target.precision
        if rounding is not None and (rounding.is_known or says in rounding.kinds):
            name = rounding.precision if rounding.is_known else f"is quantized to {says}"
            left = rounding.left if rounding.is_known else None
            return _Conclusion(_told_rounding(name, differing), (name,), left, tried)
        has_other_ids = not any(
            self._has_ids(each, self._plain) or self._has_ids(each, self.right) for each in differing
        )
        if has_other_ids and {each.probe.kind for each in differing} <= OF_THE_TOKENIZER:
            told = "probably has another tokenizer: all texts of usual words agree"
            return _Conclusion(f"differs: it {told}", (told,), None, tried)
        nearest = explained.suspects[0].left if explained.suspects else 1.0
        told = f"differs, and the cause is unknown (the nearest known fault leaves {nearest:.0%} of the difference)"
        if rounding is not None:
            told += f"; the difference is evenly as large as rounding to {' or '.join(rounding.kinds)} would be"
        return _Conclusion(told, (), None, tried)

    def _clear(self, asked: Asked) -> Asked:
        """A probe without the texts that tokenizer.json cuts otherwise than fairseq."""
        given = (
            each if self.ids.of(text, self._plain) == self.ids.of(text, self.right) else None
            for text, each in zip(asked.probe.texts, asked.given, strict=True)
        )
        return Asked(asked.probe, tuple(given))

    def _has_ids(self, each: _Result, setting: Setting) -> bool:
        return each.given is not None and list(each.given.ids or ()) == self.ids.of(each.text, setting)

    def _shows_ids(self, asked: Sequence[Asked]) -> bool:
        return any(given is not None and given.ids is not None for each in asked for given in each.given)

    def _faults(self, differing: Sequence[_Result], asked: Sequence[Asked], kinds: frozenset[str]) -> list[Fault]:
        """The faults that can be meant: none of the ids if the runtime shows that it has the right ones."""
        faults = [
            each
            for each in known_faults(self.hypotheses.own, self.right)
            if VECTOR in kinds or each not in _of_vectors([each])
        ]
        if all(self._has_ids(each, self.right) for each in differing):  # what is cut off later shows in no ids
            kept = frozenset() if self.target.shows_used_ids else frozenset({"truncation"})
            faults = [fault for fault in faults if fault.kind not in OF_IDS - kept]
            if self.target.shows_used_ids:
                return faults
        return [*faults, *truncations(self._limits(differing, asked), self.ids.limit)]

    def _limits(self, differing: Sequence[_Result], asked: Sequence[Asked]) -> list[int]:
        """The lengths at which texts may be cut off, by which differ and by how many tokens the runtime gives."""
        limit = self.ids.limit
        found = {*LIMITS, limit - 2, limit - 1, limit + 1, limit + 2}
        for each in asked:
            for given in each.given:
                if given is not None and TOKENS in given.answer:
                    found.add(len(given.answer[TOKENS]))
        wrong = {each.text for each in differing}
        plain = [text for each in asked if each.probe.kind in ("lengths", BEYOND) for text in each.probe.texts]
        lengths = {text: len(self.ids.of(text, self.right.having({"longest": 10**6}))) for text in plain}
        fine = max((lengths[text] for text in plain if text not in wrong), default=0)
        first = min((lengths[text] for text in plain if text in wrong), default=0)
        if first - MOST_LIMITS <= fine < first:
            found |= set(range(max(fine, 3), first))
        return sorted(each for each in found if each != limit and 3 <= each <= limit + 2)

    def _notes(self, classes: Sequence[ProbeClass]) -> Iterator[str]:
        if count := sum(each.as_tokenizer_json for each in classes):
            yield (
                f"{count} texts are cut as tokenizer.json cuts them, which fairseq cuts otherwise; XLMRTokenizer gives "
                "fairseq's ids"
            )
        if BEYOND in self.reasons:
            yield f"texts beyond the limit are refused: {self.reasons[BEYOND]}"


@dataclass(frozen=True)
class _Conclusion:
    verdict: str
    faults: tuple[str, ...] = ()
    left: float | None = None
    tried: Mapping[str, float] = field(default_factory=dict)
    agrees: bool = False


def _plain_ids(files: ModelFiles) -> Callable[[str], list[int]] | None:
    """The ids by the folder's tokenizer.json; None if there is none."""
    if not (files.folder / "tokenizer.json").is_file():
        return None
    tokenizer = plain_tokenizer(files.folder)
    return lambda text: list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _shape_of(values: np.ndarray) -> str:
    return f"of the width {values.shape[-1]}{' for each token' * (values.ndim > 1)}"


def _farthest(given: Answer, right: Answer, kinds: Iterable[str]) -> Distance:
    """The largest difference and the lowest cosine of what both have."""
    found = [distance(given[kind], right[kind]) for kind in kinds if kind in given and kind in right]
    if not found:
        return Distance(0.0, 1.0)
    return Distance(max(each.largest for each in found), min(each.cosine for each in found))


def _by_class(results: Sequence[_Result], tolerance: float) -> tuple[ProbeClass, ...]:
    found = []
    for name in dict.fromkeys(each.probe.kind for each in results):
        some = [each for each in results if each.probe.kind == name]
        far = [each.distance for each in some if each.distance is not None]
        largest = max((each.largest for each in far), default=0.0)
        found.append(
            ProbeClass(
                name=name,
                texts=len(some),
                different=sum(each.differs(tolerance) for each in some),
                as_tokenizer_json=sum(each.as_plain for each in some),
                refused=sum(each.given is None for each in some),
                largest=largest if far and np.isfinite(largest) else None,
                cosine=min(each.cosine for each in far) if far and np.isfinite(largest) else None,
            )
        )
    return tuple(found)


def _of_vectors(faults: Sequence[Fault]) -> list[Fault]:
    return [fault for fault in faults if fault.kind in OF_VECTORS]


def _joined(parts: Sequence[str]) -> str:
    return ", and ".join(parts)


def _told(
    best: Suspect, others: Sequence[Suspect], rounding: Rounding | None, *, has_more: bool
) -> tuple[str, tuple[str, ...]]:
    """The verdict and the faults of an explained difference, of which more than float32's rounding may be left."""
    names = tuple(fault.name for fault in best.faults)
    told = f"differs: it {_joined(names)}"
    if others:
        alike = " or ".join(_joined([fault.name for fault in each.faults]) for each in others[:2])
        told += f" (or it {alike}: these probes do not tell them apart)"
    if rounding is None:
        return f"{told}; the cause of what is left is unknown" if has_more else told, names
    if not rounding.is_known:
        return f"{told}; what is left is as large as rounding to {' or '.join(rounding.kinds)}", names
    return f"{told}; what is left is rounding: it {rounding.precision}", (*names, rounding.precision)


def _told_rounding(name: str, differing: Sequence[_Result]) -> str:
    if name in SATURATING:
        return (
            f"differs: it {name}, as processors without VNNI do: quantize weights to 7 bits, which ONNX Runtime's "
            "quantizers call reduce_range"
        )
    far = [each.distance.largest for each in differing if each.distance is not None and each.is_clear]
    accepted = float(f"{max(far, default=1.0) * 2:.0e}")
    return f"differs by rounding alone: it {name} (a tolerance of {accepted:g} accepts that)"
