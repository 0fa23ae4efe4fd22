"""The parts of tokenizer.json around its model: what makes them cut texts as SentencePiece and fairseq do."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress

from hf_xlmr.conversion.tokenizer_json.charsmap import Charsmap, Rule, char_class
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.tokenizer.sentencepiece_model import ModelType, PieceType, SentencePieceModel

__all__ = ["SPACE", "WHITE_SPACE", "Coverage", "Seams", "decoder", "normalizer", "pre_tokenizer"]

SPACE = "▁"  # SentencePiece writes every space as U+2581
# What Python's \s matches: fairseq.tokenizer cuts SentencePiece's output at these.
WHITE_SPACE = frozenset(
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
SEAM, GAP, BLANK = "\ufdd0", "\ufdd1", "\ufdd4"  # noncharacters: Unicode keeps them out of texts
STAND_INS = "\ufffd\ufdd2\ufdd3"  # for unknown runs that the dictionary does not hold either


@dataclass(frozen=True)
class Coverage:
    """What a SentencePiece model can cut texts into.

    `chars` are pieces themselves, `spelled` occur in some piece. After any training the two differ by user-defined
    pieces only: then the model is `trained`, and the characters outside `spelled` are unknown on every path.
    """

    scores: dict[str, float] = field(repr=False)
    byte_pieces: frozenset[str] = field(repr=False)
    chars: frozenset[str] = field(repr=False)
    spelled: frozenset[str] = field(repr=False)
    trained: bool
    is_unigram: bool

    @classmethod
    def of(cls, model: SentencePieceModel) -> Coverage:
        """The coverage of `model`."""
        is_unigram = model.model_type is ModelType.UNIGRAM
        scores = model.reachable_scores()
        if not is_unigram:  # BPE keeps single unused pieces
            scores |= {piece: 0.0 for piece in model.pieces_of(PieceType.UNUSED) if len(piece) == 1}
        chars = frozenset(compress(scores, map((1).__eq__, map(len, scores))))
        spelled = frozenset("".join(scores))
        return cls(
            scores=scores,
            byte_pieces=frozenset(model.pieces_of(PieceType.BYTE) if model.byte_fallback else ()),
            chars=chars,
            spelled=spelled,
            trained=chars.issuperset(spelled) or chars.issuperset("".join(model.pieces_of(PieceType.NORMAL))),
            is_unigram=is_unigram,
        )

    def is_unknown_run(self, symbol: str) -> bool:
        """Whether SentencePiece can hand `symbol` to fairseq as a run of unknown characters.

        It gives such a run as one piece with the text's own characters, which fairseq looks up like any other;
        dictionaries built from SentencePiece's output hold such runs.
        """
        if self.byte_pieces or not self.trained or not symbol:
            return False
        strange = self.spelled.isdisjoint(symbol) and WHITE_SPACE.isdisjoint(symbol)
        return strange and (self.is_unigram or len(symbol) == 1)

    def is_spelled(self, symbol: str) -> bool:
        """Whether `symbol` always has another way to be cut, one that a low score loses to.

        A low score also lowers what an unknown character costs, which is of no importance only where all paths
        through a text have as many of them.
        """
        return self.spelled == self.chars and self.chars.issuperset(symbol)


@dataclass(frozen=True)
class Seams:
    """Patterns for taking a text apart into characters (see `hf_xlmr.conversion.tokenizer_json.charsmap`)."""

    seam: str = field(repr=False)
    gap: str = field(repr=False)
    joins: bool
    exceptions: tuple[Rule, ...] = field(repr=False)
    """The rules that are not followed."""
    deleted: frozenset[str] = field(repr=False)
    """Characters that the rules take away."""
    spaces: frozenset[str] = field(repr=False)
    """Characters that are or become a space."""
    changed: frozenset[str] = field(repr=False)
    """Characters that the rules change, each by itself."""

    @classmethod
    def of(cls, model: SentencePieceModel, coverage: Coverage) -> Seams | None:
        """The seams for the model's rules, None if tokenizers cannot apply them all or there are none.

        Raises IntegrityError.
        """
        rules = model.normalization.precompiled_charsmap
        try:
            seams = _seams_of(rules) if rules else None
        except IntegrityError as error:
            raise IntegrityError(f"{model.name} is a damaged SentencePiece model: {error}") from None
        return seams if coverage.spelled.isdisjoint({SEAM, GAP, BLANK}) else None


@lru_cache(maxsize=4)  # most models have the same rules, and these take more than a second
def _seams_of(rules: bytes) -> Seams | None:
    """The seams for a precompiled charsmap, None if tokenizers cannot apply it. Raises IntegrityError."""
    charsmap = Charsmap.parse(rules)
    if not charsmap.singles.keys().isdisjoint({SEAM, GAP, BLANK}) or not charsmap.splits_into_characters():
        return None
    gap = rf"(?!\A)(?<!{SEAM})(?=[{charsmap.joining_class()}])"
    made = {value: {char for char, own in charsmap.singles.items() if own == value} for value in ("", " ")}
    return Seams(
        seam=charsmap.seam_pattern(),
        gap=gap,
        joins=bool(charsmap.branches),
        exceptions=charsmap.exceptions,
        deleted=frozenset(made[""]),
        spaces=frozenset({" ", *made[" "]}),
        changed=frozenset(char for char, value in charsmap.singles.items() if value != char),
    )


def normalizer(
    model: SentencePieceModel, coverage: Coverage, *, seams: Seams | None, runs: Sequence[str]
) -> dict[str, object]:
    r"""SentencePiece's Normalizer::Normalize, with unknown `runs` apart from others.

    Not Metaspace, which adds no prefix where a text begins with a literal U+2581; and `\A`, `\z` for `^`, `$`, which
    match at every line.
    """
    spec, suffixed = model.normalization, model.treat_whitespace_as_suffix
    steps = _rule_steps(spec.precompiled_charsmap, seams)
    keeps_blank = spec.add_dummy_prefix and (suffixed or not spec.remove_extra_whitespaces)
    blank = _blank_text(seams, trims=spec.remove_extra_whitespaces) if seams and seams.deleted and keeps_blank else None
    if blank:
        steps.insert(0, _replace_regex(blank, BLANK))
    if spec.remove_extra_whitespaces:
        steps += [_replace_regex(r"\A +", ""), _replace_regex(" {2,}", " ")]
    if spec.add_dummy_prefix and not suffixed:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append(_replace(" ", SPACE))
    if spec.remove_extra_whitespaces and not (spec.add_dummy_prefix and suffixed):
        steps.append(_replace_regex(rf"{SPACE}+\z", ""))
    elif spec.add_dummy_prefix and suffixed:  # in one step, as nothing can be added to a text that has become empty
        steps.append(_replace_regex(rf"(?<!{SPACE}){SPACE}*\z" if spec.remove_extra_whitespaces else r"\z", SPACE))
    if blank:
        steps.append(_replace(BLANK, ""))
    if runs:
        steps.append(_unlisted_runs(coverage, runs))
    return {"type": "Sequence", "normalizers": steps}


def _blank_text(seams: Seams, *, trims: bool) -> str:
    """A pattern for texts of which the rules leave nothing: SentencePiece adds its space to them, as to any other.

    It adds none if it has trimmed the whole text already: to spaces alone.
    """
    deleted = char_class(seams.deleted)
    blank = char_class(seams.deleted | seams.spaces)
    return rf"\A[{blank}]*[{deleted}][{blank}]*\z" if trims else rf"\A[{deleted}]+\z"


def _rule_steps(charsmap: bytes, seams: Seams | None) -> list[dict[str, object]]:
    """The normalisation rules: as they are, or applied character by character if `seams` are given."""
    if not charsmap:
        return []
    rules: dict[str, object] = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii"),
    }
    if seams is None:
        return [rules]
    apart = [_replace_regex(seams.seam, SEAM), _replace_regex(seams.gap, GAP), rules, _replace(GAP, "")]
    joined: list[dict[str, object]] = [{"type": "NFC"}] if seams.joins else []
    return [*apart, *joined, _replace(SEAM, "")]


def _unlisted_runs(coverage: Coverage, runs: Sequence[str]) -> dict[str, object]:
    """Put a stand-in for each whole run of unknown characters that is not one of `runs`."""
    known = char_class(coverage.spelled | WHITE_SPACE)
    listed = "|".join("".join(f"[{char_class(char)}]" for char in run) for run in sorted(runs))
    stand_in = next((char for char in STAND_INS if char not in coverage.spelled and char not in runs), None)
    if stand_in is None:
        raise InputError("the SentencePiece model and the dictionary use every character that could mark unknown runs")
    return _replace_regex(f"(?<![^{known}])(?!(?:{listed})(?![^{known}]))[^{known}]+", stand_in)


def pre_tokenizer(coverage: Coverage, *, suffixed: bool) -> dict[str, object] | None:
    """What cuts the normalised text before the model sees it.

    Pieces of white space vanish in fairseq, and runs of unknown characters are cut at it. Cutting at U+2581 changes
    nothing if it only begins pieces, and lets tokenizers remember words.
    """
    splits = []
    removed = WHITE_SPACE & coverage.chars if coverage.byte_pieces else WHITE_SPACE
    if removed:
        splits.append(_split({"Regex": f"[{char_class(removed)}]"}, behavior="Removed"))
    inner = re.compile(f"{SPACE}[^\0]" if suffixed else f"{SPACE}(?<=[^\0].)", re.DOTALL)
    if SPACE in coverage.chars and inner.search("\0".join(coverage.scores)) is None:  # no piece holds U+0000
        splits.append(_split({"String": SPACE}, behavior="MergedWithPrevious" if suffixed else "MergedWithNext"))
    return {"type": "Sequence", "pretokenizers": splits} if splits else None


def decoder(model: SentencePieceModel) -> dict[str, object]:
    """Pieces back to readable text: U+2581 is a space, and the one added is taken away."""
    steps: list[dict[str, object]] = [_replace(SPACE, " ")]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.normalization.add_dummy_prefix:
        suffixed = model.treat_whitespace_as_suffix
        steps.append({"type": "Strip", "content": " ", "start": int(not suffixed), "stop": int(suffixed)})
    return {"type": "Sequence", "decoders": steps}


def _replace(text: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _replace_regex(pattern: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: dict[str, str], *, behavior: str) -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}
