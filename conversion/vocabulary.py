"""Dictionary and SentencePiece model -> tokenizer.json, with fairseq's own ids."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from hf_xlmr.dictionary import BOS, EOS, MASK, PAD, PAD_INDEX, SPECIAL_SYMBOLS, UNK, UNK_INDEX, Dictionary
from hf_xlmr.errors import InputError
from hf_xlmr.sentencepiece_model import ModelType, PieceType, SentencePieceModel

__all__ = ["TokenizerPlan", "Vocabulary", "build_vocabulary", "write_tokenizer"]

SPACE = "▁"  # SentencePiece writes every space as U+2581
RELEASED_MASK_INDEX = 250001  # XLM-R as released
SPECIALS = frozenset((*SPECIAL_SYMBOLS, MASK))
# What Python's \s matches besides the plain space: fairseq.tokenizer cuts SentencePiece's output at these.
WHITE_SPACE = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
STAND_INS = "\ufffd\ufdd0\ufdd1"  # for unknown runs that the dictionary does not hold either


@dataclass(frozen=True)
class TokenizerPlan:
    """What tokenizer.json is to hold: slot i of `names` is id i, ids from the embedding's rows on mean `<unk>`."""

    names: tuple[str, ...] = field(repr=False)
    scores: array[float] | None = field(repr=False)  # Unigram
    merges: tuple[str, ...] | None = field(repr=False)  # BPE: "left right"
    byte_fallback: bool
    normalizer: dict[str, Any] = field(repr=False)
    pre_tokenizer: dict[str, Any] | None = field(repr=False)
    decoder: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of an embedding's `rows`, and the tokenizer that gives them, None where there can be none.

    After the embedding's own rows come `extra_unk_rows` copies of the `<unk>` row: pieces that SentencePiece needs to
    cut texts as fairseq did, and that fairseq's dictionary does not know. `notes` are sentences for a person to read.
    """

    rows: int
    bos_index: int
    eos_index: int
    mask_index: int | None
    extra_unk_rows: int = 0
    agrees_with_sentencepiece: bool = False
    missing_pieces: tuple[str, ...] = field(default=(), repr=False)
    unreachable_symbols: tuple[str, ...] = field(default=(), repr=False)
    tokenizer: TokenizerPlan | None = None
    notes: tuple[str, ...] = ()
    pad_index: int = PAD_INDEX
    unk_index: int = UNK_INDEX


def build_vocabulary(dictionary: Dictionary, model: SentencePieceModel | None, *, rows: int) -> Vocabulary:
    """Decide which text each of the embedding's `rows` stands for, and how a tokenizer finds it.

    Raises InputError where the dictionary cannot belong to so many rows.
    """
    names = _fit(dictionary, rows=rows)
    vocabulary = Vocabulary(
        rows=rows,
        bos_index=names.bos_index,
        eos_index=names.eos_index,
        mask_index=names.mask_index,
        notes=tuple(_row_notes(names, rows=rows)),
    )
    obstacle = _obstacle(model)
    if model is None or obstacle:
        return replace(vocabulary, notes=(*vocabulary.notes, f"No tokenizer was written: {obstacle}."))
    return _with_tokenizer(vocabulary, names, model)


def _fit(dictionary: Dictionary, *, rows: int) -> Dictionary:
    """The dictionary as the model's task completed it. Raises InputError."""
    with_mask = dictionary.with_mask()
    if rows >= len(with_mask):
        return with_mask
    if rows == len(dictionary):
        return dictionary  # a task that added no <mask>
    raise InputError(
        f"the dictionary has {len(with_mask)} names (4 specials, its lines and {MASK}), but the embedding only "
        f"{rows} rows: they do not belong together."
    )


def _row_notes(names: Dictionary, *, rows: int) -> Iterator[str]:
    """What is remarkable about the rows."""
    if names.mask_index is None:
        yield f"The embedding has no row for {MASK}: the tokenizer has no mask token."
    elif names.mask_index != RELEASED_MASK_INDEX:
        yield f"{MASK} has the id {names.mask_index}, not {RELEASED_MASK_INDEX} as in the released XLM-R."
    if rows > len(names):
        yield (
            f"The embedding has {rows} rows for {len(names)} names: the last {rows - len(names)} are taken for "
            "padding. Make sure that this dictionary belongs to this model."
        )
    moved = [symbol for symbol in (BOS, EOS) if names.symbols.index(symbol) != names.index(symbol)]
    if moved:
        yield f"The dictionary overwrites {' and '.join(moved)}: the tokenizer uses the later ids, as fairseq does."


def _obstacle(model: SentencePieceModel | None) -> str:
    """Why there can be no tokenizer.json, an empty string where there can."""
    if model is None:
        return "no SentencePiece model was given"
    if model.model_type not in {ModelType.UNIGRAM, ModelType.BPE}:
        return f"a SentencePiece model of type {model.model_type.name} has no counterpart in tokenizers"
    if not model.normalization.escape_whitespaces:
        return "the SentencePiece model keeps spaces as they are inside its pieces"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Which slot gets which name


@dataclass(frozen=True)
class Coverage:
    """What a SentencePiece model can cut texts into.

    `chars` are pieces of their own, `spelled` occur in some piece. After any training the two differ by user-defined
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
        chars = frozenset(piece for piece in scores if len(piece) == 1)
        return cls(
            scores=scores,
            byte_pieces=frozenset(model.pieces_of(PieceType.BYTE) if model.byte_fallback else ()),
            chars=chars,
            spelled=frozenset("".join(scores)),
            trained=chars.issuperset("".join(model.pieces_of(PieceType.NORMAL))),
            is_unigram=is_unigram,
        )

    def is_unknown_run(self, symbol: str) -> bool:
        """Whether SentencePiece can hand `symbol` to fairseq as a run of unknown characters.

        It gives such a run as one piece with the text's own characters, which fairseq looks up like any other;
        dictionaries built from SentencePiece's output hold such runs.
        """
        if self.byte_pieces or not self.trained or not symbol:
            return False
        strange = self.spelled.isdisjoint(symbol) and not any(char.isspace() for char in symbol)
        return strange and (self.is_unigram or len(symbol) == 1)

    def is_spelled(self, symbol: str) -> bool:
        """Whether `symbol` always has another way to be cut, one that a low score loses to.

        A low score also lowers what an unknown character costs, which is of no importance only where all paths
        through a text have as many of them.
        """
        return self.spelled == self.chars and self.chars.issuperset(symbol)


@dataclass
class Slots:
    """Names under way; `low` holds the slots that real text must never win with, `runs` the unknown runs."""

    coverage: Coverage
    names: list[str] = field(default_factory=list)
    low: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def add(self, symbol: str, *, owned: bool) -> None:
        """The next slot; `owned` says whether `symbol` is this row's name rather than a later row's."""
        if owned and symbol in self.coverage.scores:
            return self._put(symbol)
        if owned and (symbol in SPECIALS or symbol in self.coverage.byte_pieces):
            return self.put_unwanted(symbol)
        if owned and self.coverage.is_unknown_run(symbol):
            self.runs.append(symbol)
            return self._put(symbol)
        if owned:
            self.unreachable.append(symbol)
        spelled = len(symbol) > 1 and self.coverage.is_spelled(symbol)
        return self.put_unwanted(symbol) if owned and spelled else self.fill(symbol)

    def fill(self, symbol: str) -> None:
        """A slot with a name that no text holds: normalised text has no plain space."""
        name = f"{symbol} "
        while name in self.taken:
            name += " "
        self._put(name)

    def put_unwanted(self, symbol: str) -> None:
        """A slot that keeps its name, though text that spells it must be cut another way."""
        if self.coverage.is_spelled(symbol):
            self.low.append(len(self.names))
        self._put(symbol)

    def scores(self) -> array[float]:
        """The Unigram score of each slot: SentencePiece's, or one that changes nothing."""
        known = self.coverage.scores
        floor = min(known.values(), default=0.0)
        scores = array("d", (known.get(name, floor) for name in self.names))
        # Worse than any way to spell the name in single characters, so that it never wins.
        longest = max((len(self.names[slot]) for slot in self.low), default=0)
        for slot in self.low:
            scores[slot] = min(floor, -1.0) * (longest + 1) - 1.0
        return scores

    def _put(self, name: str) -> None:
        self.names.append(name)
        self.taken.add(name)


def _name_slots(names: Dictionary, coverage: Coverage) -> Slots:
    """The slots of the dictionary's rows."""
    owners = {PAD: PAD_INDEX, UNK: UNK_INDEX}  # the two that no overwrite moves
    slots = Slots(coverage=coverage)
    slots.taken.update(names.symbols)
    for index, symbol in enumerate(names.symbols):
        slots.add(symbol, owned=owners.get(symbol, names.index(symbol)) == index)
    return slots


def _with_tokenizer(vocabulary: Vocabulary, names: Dictionary, model: SentencePieceModel) -> Vocabulary:
    """`vocabulary` with a tokenizer for `model`."""
    coverage = Coverage.of(model)
    slots = _name_slots(names, coverage)
    missing = _missing(names, coverage)
    if missing:
        for index in range(len(names), vocabulary.rows):
            slots.fill(f"<row {index}>")
        for piece in missing:
            slots.add(piece, owned=True)
    return replace(
        vocabulary,
        extra_unk_rows=len(missing),
        agrees_with_sentencepiece=_agrees(names, model),
        missing_pieces=missing,
        unreachable_symbols=tuple(slots.unreachable),
        tokenizer=_plan(slots, model),
        notes=(*vocabulary.notes, *_tokenizer_notes(slots, model, missing=missing)),
    )


def _missing(names: Dictionary, coverage: Coverage) -> tuple[str, ...]:
    """The pieces that texts are cut into and that the dictionary lacks.

    Pieces with white space inside are left out: nothing can be cut into them (see `_pre_tokenizer`).
    """
    candidates = (*coverage.scores, *sorted(coverage.byte_pieces))
    return tuple(piece for piece in candidates if piece not in names and not any(char.isspace() for char in piece))


def _agrees(names: Dictionary, model: SentencePieceModel) -> bool:
    """Whether the rule of Transformers' XLMRobertaTokenizer, SentencePiece's id plus one, gives these very ids."""
    return (
        model.model_type is ModelType.UNIGRAM
        and model.pieces[:3] == (UNK, BOS, EOS)
        and names.symbols == (*SPECIAL_SYMBOLS, *model.pieces[3:], MASK)
    )


def _plan(slots: Slots, model: SentencePieceModel) -> TokenizerPlan:
    is_unigram = slots.coverage.is_unigram
    return TokenizerPlan(
        names=tuple(slots.names),
        scores=slots.scores() if is_unigram else None,
        merges=None if is_unigram else tuple(_merges(model, slots.coverage)),
        byte_fallback=model.byte_fallback,
        normalizer=_normalizer(model, slots),
        pre_tokenizer=_pre_tokenizer(slots.coverage, suffixed=model.treat_whitespace_as_suffix),
        decoder=_decoder(model),
    )


def _merges(model: SentencePieceModel, coverage: Coverage) -> Iterator[str]:
    """Every pair of pieces that SentencePiece joins (bpe_model.cc), best piece first; longest left part first."""
    ranked = zip(model.pieces, model.scores, model.types, strict=True)
    joined = [(-score, piece) for piece, score, kind in ranked if kind == PieceType.NORMAL and len(piece) > 1]
    joined.sort(key=lambda pair: pair[0])
    for _, piece in joined:
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in coverage.scores and piece[cut:] in coverage.scores:
                yield f"{piece[:cut]} {piece[cut:]}"


def _tokenizer_notes(slots: Slots, model: SentencePieceModel, *, missing: Sequence[str]) -> Iterator[str]:
    """What is remarkable about the tokenizer, and where it cannot be exact."""
    coverage = slots.coverage
    if missing:
        yield (
            f"{len(missing)} SentencePiece pieces are not in the dictionary (such as {_shown(missing)}): they get "
            "ids after the embedding's rows, and those rows are copies of that of <unk>."
        )
    if slots.unreachable:
        yield f"{len(slots.unreachable)} dictionary symbols come from no text (such as {_shown(slots.unreachable)})."
    if model.normalization.precompiled_charsmap:
        yield "Decomposed text (NFD) can be tokenized differently: tokenizers normalises some of it wrongly."
    if not coverage.trained:
        yield "Some characters occur only inside longer pieces: unknown characters can be tokenized differently."
    mixed = [piece for piece in coverage.scores if len(piece) > 1 and any(char.isspace() for char in piece)]
    if mixed:
        yield f"{len(mixed)} pieces hold white space (such as {_shown(mixed)}): texts with it can be cut differently."
    symbols = [piece for piece in model.pieces_of(PieceType.USER_DEFINED) if len(piece) > 1]
    if symbols and not coverage.is_unigram:
        yield f"Texts that hold a user-defined symbol ({_shown(symbols)}) are tokenized differently."
    if not coverage.is_unigram and any(len(piece) > 1 for piece in model.pieces_of(PieceType.UNUSED)):
        yield "Unused pieces of a BPE model cannot be expressed: texts that hold one can be tokenized differently."


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3]))


# ---------------------------------------------------------------------------------------------------------------------
# The parts of tokenizer.json


def _normalizer(model: SentencePieceModel, slots: Slots) -> dict[str, Any]:
    r"""SentencePiece's Normalizer::Normalize, and unknown runs brought under one roof.

    Not Metaspace, which adds no prefix where a text begins with a literal U+2581; and `\A`, `\z` for `^`, `$`, which
    match at every line.
    """
    spec, suffixed = model.normalization, model.treat_whitespace_as_suffix
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps += [_replace_regex(r"\A +", ""), _replace_regex(" {2,}", " ")]
    if spec.add_dummy_prefix and not suffixed:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if spec.remove_extra_whitespaces:
        steps.append(_replace_regex(rf"{SPACE}+\z", ""))
    if spec.add_dummy_prefix and suffixed:
        steps.append(_replace_regex(r"\z", SPACE))
    if slots.runs:
        steps.append(_replace_regex(_unlisted_runs(slots), _stand_in(slots)))
    return {"type": "Sequence", "normalizers": steps}


def _unlisted_runs(slots: Slots) -> str:
    """A pattern for each whole run of unknown characters that is not a symbol of the dictionary."""
    known = _char_class({*slots.coverage.spelled, *WHITE_SPACE, " "})
    listed = "|".join(map(_escaped, sorted(slots.runs)))
    return f"(?<![^{known}])(?!(?:{listed})(?![^{known}]))[^{known}]+"


def _stand_in(slots: Slots) -> str:
    """A character that stands for an unknown run."""
    return next(char for char in STAND_INS if char not in slots.coverage.spelled and char not in slots.runs)


def _char_class(chars: Iterable[str]) -> str:
    """The inside of a character class, as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, chars)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{_escaped(chr(first))}-{_escaped(chr(last))}" for first, last in ranges)


def _escaped(text: str) -> str:
    """`text` for Oniguruma, letter by letter."""
    return "".join(rf"\x{{{ord(char):x}}}" for char in text)


def _pre_tokenizer(coverage: Coverage, *, suffixed: bool) -> dict[str, Any] | None:
    """What cuts the normalised text before the model sees it.

    Pieces of white space vanish in fairseq, and runs of unknown characters are cut at it. Cutting at U+2581 changes
    nothing where it only begins pieces, and lets tokenizers remember words.
    """
    splits = []
    removed = [char for char in WHITE_SPACE if char in coverage.chars or not coverage.byte_pieces]
    if removed:
        splits.append(_split({"Regex": f"[{_char_class(removed)}]"}, behavior="Removed"))
    inner = "".join(piece[:-1] if suffixed else piece[1:] for piece in coverage.scores)
    if SPACE in coverage.chars and SPACE not in inner:
        splits.append(_split({"String": SPACE}, behavior="MergedWithPrevious" if suffixed else "MergedWithNext"))
    return {"type": "Sequence", "pretokenizers": splits} if splits else None


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    """Pieces back to readable text: U+2581 is a space, and the one added is taken away."""
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.normalization.add_dummy_prefix:
        suffixed = model.treat_whitespace_as_suffix
        steps.append({"type": "Strip", "content": " ", "start": int(not suffixed), "stop": int(suffixed)})
    return {"type": "Sequence", "decoders": steps}


def _replace_regex(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: dict[str, str], *, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_tokenizer(vocabulary: Vocabulary, folder: Path, *, model_max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`; the same input gives the same bytes.

    Raises OSError, and InputError where the vocabulary has no tokenizer.
    """
    plan = vocabulary.tokenizer
    if plan is None:
        raise InputError("this vocabulary has no tokenizer to write: " + " ".join(vocabulary.notes))
    with (folder / "tokenizer.json").open("w", encoding="utf-8", newline="\n") as file:
        head = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(vocabulary),
            "normalizer": plan.normalizer,
            "pre_tokenizer": plan.pre_tokenizer,
            "post_processor": _post_processor(vocabulary),
            "decoder": plan.decoder,
        }
        file.write("{\n")
        for key, value in head.items():
            file.write(f"{_json(key)}: {_json(value)},\n")
        _write_model(file, plan, unk_index=vocabulary.unk_index)
        file.write("}\n")
    config = json.dumps(_tokenizer_config(vocabulary, model_max_length=model_max_length), indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8", newline="\n")


def _write_model(file: TextIO, plan: TokenizerPlan, *, unk_index: int) -> None:
    """Stream the model, one entry per line."""
    if plan.scores is not None:
        file.write(f'"model": {{"type": "Unigram", "unk_id": {unk_index}, ')
        file.write(f'"byte_fallback": {_json(plan.byte_fallback)}, "vocab": [\n')
        pairs = zip(plan.names, plan.scores, strict=True)
        _write_lines(file, (f"[{_json(name)},{_decimal(score)}]" for name, score in pairs))
        file.write("]}\n")
        return
    file.write('"model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, ')
    file.write('"end_of_word_suffix": null, "fuse_unk": true, ')
    file.write(f'"byte_fallback": {_json(plan.byte_fallback)}, "ignore_merges": false, "vocab": {{\n')
    _write_lines(file, (f"{_json(name)}: {index}" for index, name in enumerate(plan.names)))
    file.write('}, "merges": [\n')
    _write_lines(file, map(_json, plan.merges or ()))
    file.write("]}\n")


def _write_lines(file: TextIO, entries: Iterable[str]) -> None:
    """The entries with commas between them."""
    separator = ""
    for entry in entries:
        file.write(separator + entry)
        separator = ",\n"
    file.write("\n")


def _decimal(score: float) -> str:
    """Digits that tokenizers reads back as this very number.

    Its parser takes the digits as one integer, rounds that, and divides by a power of ten; a zero more at the end can
    make the difference. With exact scores, paths of equal score tie exactly.
    """
    text = repr(score)
    whole, point, fraction = text.partition(".")
    if not point or "e" in text:
        return text
    for zeros in range(4):
        digits = int(whole.lstrip("-") + fraction + "0" * zeros)
        if digits < 2**64 and digits / 10.0 ** (len(fraction) + zeros) == abs(score):
            return text + "0" * zeros
    return text


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The specials, in the order of their ids."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_index = {index: symbol for symbol, index in _special_indices(vocabulary).items()}
    return [{"id": index, "content": by_index[index], **flags} for index in sorted(by_index)]


def _special_indices(vocabulary: Vocabulary) -> dict[str, int]:
    indices = {BOS: vocabulary.bos_index, PAD: vocabulary.pad_index, EOS: vocabulary.eos_index}
    indices[UNK] = vocabulary.unk_index
    return indices if vocabulary.mask_index is None else {**indices, MASK: vocabulary.mask_index}


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any]:
    """`<s> A </s>` and `<s> A </s> </s> B </s>`, as fairseq's hub interface joins sentences."""
    bos, eos = ({"SpecialToken": {"id": symbol, "type_id": 0}} for symbol in (BOS, EOS))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    ids = {BOS: vocabulary.bos_index, EOS: vocabulary.eos_index}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first, eos],
        "pair": [bos, first, eos, eos, second, eos],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]} for name, index in ids.items()},
    }


def _tokenizer_config(vocabulary: Vocabulary, *, model_max_length: int) -> dict[str, Any]:
    """tokenizer_config.json.

    Not "XLMRobertaTokenizer": Transformers 5 builds that class anew from the vocabulary and drops the rest.
    """
    mask = {} if vocabulary.mask_index is None else {"mask_token": MASK}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "sep_token": EOS,
        "pad_token": PAD,
        "cls_token": BOS,
        **mask,
        "model_max_length": model_max_length,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
