"""Dictionary and SentencePiece model -> tokenizer.json, with fairseq's own ids."""

from __future__ import annotations

import json
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, compress, count, filterfalse, islice, repeat
from json.encoder import encode_basestring
from operator import not_
from pathlib import Path
from typing import TextIO

from hf_xlmr.conversion.tokenizer_json.tokenizer_parts import (
    SPACE,
    WHITE_SPACE,
    Coverage,
    Seams,
    decoder,
    normalizer,
    pre_tokenizer,
)
from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.dictionary import BOS, EOS, MASK, PAD, PAD_INDEX, SPECIAL_SYMBOLS, UNK, UNK_INDEX, Dictionary
from hf_xlmr.tokenizer.dictionary_kinds import DictionaryKind, kind_of_dictionary
from hf_xlmr.tokenizer.sentencepiece_model import ModelType, PieceType, SentencePieceModel

__all__ = ["TokenizerPlan", "Vocabulary", "build_vocabulary", "is_padding", "write_tokenizer"]

RELEASED_MASK_INDEX = 250001  # XLM-R as released
# Model-parallel training pads the embedding to a multiple of 8 for each rank (fairseq/model_parallel/models/roberta);
# XL and XXL have 250880 rows. Any other surplus means that the dictionary is another model's.
PADDING_FACTORS = (8, 16, 32, 64, 128, 256, 512, 1024)
KEPT_DICTIONARY = "fairseq/dict.txt"  # in the output
LINES_AT_ONCE = 4096
SPECIALS = frozenset((*SPECIAL_SYMBOLS, MASK))


def build_vocabulary(
    dictionary: Dictionary, model: SentencePieceModel | None, *, rows: int, bpe: object = None
) -> Vocabulary:
    """Decide which text each of the embedding's `rows` stands for, and how a tokenizer finds it.

    `bpe` is fairseq's option of that name. Raises InputError if the dictionary cannot belong to these rows, or the
    SentencePiece model to the dictionary.
    """
    names = _fit(dictionary, rows=rows)
    kind = _kind(names, model, bpe)
    vocabulary = Vocabulary(
        rows=rows,
        bos_index=names.bos_index,
        eos_index=names.eos_index,
        mask_index=names.mask_index,
        names=names,
        row_notes=tuple(_row_notes(names, kind, rows=rows)),
    )
    obstacle = _obstacle(model)
    if kind is not None and not kind.has_sentencepiece:
        return vocabulary
    if model is None or obstacle:
        return replace(vocabulary, row_notes=(*vocabulary.row_notes, f"No tokenizer was written: {obstacle}."))
    return _with_tokenizer(vocabulary, names, model)


def _fit(dictionary: Dictionary, *, rows: int) -> Dictionary:
    """The dictionary as the model's task completed it. Raises InputError."""
    with_mask = dictionary.with_mask()
    spare = rows - len(with_mask)
    if spare == 0 or is_padding(rows, spare):
        return with_mask
    if rows == len(dictionary):
        return dictionary  # a task that added no <mask>
    raise InputError(
        f"the dictionary has {len(with_mask)} names (4 specials, its lines and {MASK}), but the embedding has {rows} "
        "rows: they do not belong together."
    )


def is_padding(rows: int, spare: int) -> bool:
    """Whether model-parallel training can have added `spare` rows, to a multiple of 8 for each of 1, 2, 4 ... ranks."""
    return spare > 0 and any(spare < factor and rows % factor == 0 for factor in PADDING_FACTORS)


def _kind(names: Dictionary, model: SentencePieceModel | None, bpe: object) -> DictionaryKind | None:
    """What the dictionary is, if it is not XLM-R's. Raises InputError if `model` cannot belong to it."""
    kind = kind_of_dictionary(names, bpe=bpe)
    if kind is None or kind.has_sentencepiece or model is None:
        return kind
    pieces = model.pieces_of(PieceType.NORMAL)
    if not kind.is_of_letters and sum(piece in names for piece in pieces) > len(pieces) / 2:
        return None
    raise InputError(f"the SentencePiece model is not this checkpoint's: {kind.told('dict.txt')} Take the model away.")


def _row_notes(names: Dictionary, kind: DictionaryKind | None, *, rows: int) -> Iterator[str]:
    """What is remarkable about the rows."""
    if kind is not None:
        yield kind.told(KEPT_DICTIONARY)
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
    """Why there cannot be a tokenizer.json; empty if there can."""
    if model is None:
        return "no SentencePiece model was given"
    if model.model_type not in {ModelType.UNIGRAM, ModelType.BPE}:
        return f"a SentencePiece model of type {model.model_type.name} has no counterpart in tokenizers"
    if not model.normalization.escape_whitespaces:
        return "the SentencePiece model keeps spaces as they are inside its pieces"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Which slot gets which name


@dataclass
class Slots:
    """Names under way; `low` holds the slots that real text must never win with, `runs` the unknown runs."""

    dictionary: Dictionary
    coverage: Coverage
    names: list[str] = field(default_factory=list)
    low: list[int] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    fillers: set[str] = field(default_factory=set)

    def add(self, symbol: str, *, owned: bool) -> None:
        """The next slot; `owned` says whether `symbol` is this row's name rather than a later row's."""
        if owned and symbol in self.coverage.scores:
            return self.names.append(symbol)
        if owned and (symbol in SPECIALS or symbol in self.coverage.byte_pieces):
            return self.put_unwanted(symbol)
        if owned and self.coverage.is_unknown_run(symbol):
            self.runs.append(symbol)
            return self.names.append(symbol)
        if owned:
            self.unreachable.append(symbol)
        spelled = len(symbol) > 1 and self.coverage.is_spelled(symbol)
        return self.put_unwanted(symbol) if owned and spelled else self.fill(symbol)

    def fill(self, symbol: str) -> None:
        """A slot with a name that no text holds: normalised text has no plain space."""
        name = f"{symbol} "
        if name in self.dictionary or name in self.fillers:
            name = f"{symbol} {len(self.names)}"
        while name in self.dictionary or name in self.fillers:
            name += " "
        self.fillers.add(name)
        self.names.append(name)

    def put_unwanted(self, symbol: str) -> None:
        """A slot that keeps its name, though text that spells it must be cut another way."""
        if self.coverage.is_spelled(symbol):
            self.low.append(len(self.names))
        self.names.append(symbol)

    def scores(self) -> array[float]:
        """The Unigram score of each slot: SentencePiece's, or one that changes nothing."""
        known = self.coverage.scores
        floor = min(known.values(), default=0.0)
        scores = array("d", map(known.get, self.names, repeat(floor)))
        # Worse than any way to spell the name in single characters, so that it never wins.
        longest = max((len(self.names[slot]) for slot in self.low), default=0)
        for slot in self.low:
            scores[slot] = min(floor, -1.0) * (longest + 1) - 1.0
        return scores


@dataclass(frozen=True)
class Limit:
    """What tokenizer.json cannot express: only a text that holds one of the `strings` can differ."""

    note: str
    """A sentence; empty if nobody needs to read it."""
    strings: frozenset[str] = field(repr=False)


LAST_OF_PLANE_0 = "\uffff"
ANY_TEXT = frozenset({""})  # a string that every text holds


@dataclass(frozen=True)
class TokenizerPlan:
    """What tokenizer.json is to hold; its patterns take a while and are made when they are asked for."""

    slots: Slots = field(repr=False)
    model: SentencePieceModel = field(repr=False)
    missing: tuple[str, ...] = field(repr=False)

    @property
    def names(self) -> Sequence[str]:
        """Slot i is id i; ids from the embedding's rows on mean `<unk>`."""
        return self.slots.names

    @cached_property
    def scores(self) -> array[float] | None:
        """The Unigram score of each slot, None for BPE."""
        return self.slots.scores() if self.slots.coverage.is_unigram else None

    @cached_property
    def merges(self) -> tuple[str, ...] | None:
        """The merges of BPE, as "left right", None for Unigram."""
        coverage = self.slots.coverage
        return None if coverage.is_unigram else tuple(_merges(self.model, coverage, without=self._spaced_and_missing))

    @property
    def _spaced_and_missing(self) -> set[str]:
        """The pieces that hold white space and have no slot: no text is cut into them, nor into what they make."""
        return set(filterfalse(WHITE_SPACE.isdisjoint, self.slots.coverage.scores)).difference(self.names)

    @cached_property
    def seams(self) -> Seams | None:
        """How texts are taken apart for the normalisation rules. Raises IntegrityError."""
        return Seams.of(self.model, self.slots.coverage)

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """What tokenizer.json cannot express. Raises IntegrityError."""
        return tuple(limit for limit in _limits(self.slots, self.model, self.seams) if limit.strings)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is remarkable about the tokenizer. Raises IntegrityError."""
        return (*_tokenizer_notes(self.slots, self.missing), *(limit.note for limit in self.limits if limit.note))


@dataclass(frozen=True)
class Vocabulary:
    """The ids of an embedding's `rows`, and the tokenizer that gives them, None if there can be none.

    After the embedding's own rows come `extra_unk_rows` copies of the `<unk>` row: pieces that SentencePiece needs to
    cut texts as fairseq did, and that fairseq's dictionary does not know.
    """

    rows: int
    bos_index: int
    eos_index: int
    mask_index: int | None
    names: Dictionary = field(repr=False)
    """The dictionary as the model's task completed it, with `<mask>` if the embedding has a row for it."""
    extra_unk_rows: int = 0
    agrees_with_sentencepiece: bool = False
    missing_pieces: tuple[str, ...] = field(default=(), repr=False)
    unreachable_symbols: tuple[str, ...] = field(default=(), repr=False)
    tokenizer: TokenizerPlan | None = None
    row_notes: tuple[str, ...] = ()
    pad_index: int = PAD_INDEX
    unk_index: int = UNK_INDEX

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a person to read. Raises IntegrityError if the SentencePiece model's rules do not parse."""
        return (*self.row_notes, *(self.tokenizer.notes if self.tokenizer else ()))


def _name_slots(names: Dictionary, coverage: Coverage) -> Slots:
    """The slots of the dictionary's rows."""
    owners = {PAD: PAD_INDEX, UNK: UNK_INDEX}  # the two that no overwrite moves
    slots = Slots(dictionary=names, coverage=coverage)
    symbols = names.symbols
    odd = {*compress(count(), map(not_, map(coverage.scores.__contains__, symbols))), *map(names.index, owners)}
    if len(names.rows) < len(symbols):
        odd.update(row for row, symbol in enumerate(symbols) if names.index(symbol) != row)
    for row in sorted(odd):
        symbol = symbols[row]
        slots.names += symbols[len(slots.names) : row]  # these keep their names, as nearly all rows do
        slots.add(symbol, owned=owners.get(symbol, names.index(symbol)) == row)
    slots.names += symbols[len(slots.names) :]
    return slots


def _with_tokenizer(vocabulary: Vocabulary, names: Dictionary, model: SentencePieceModel) -> Vocabulary:
    """`vocabulary` with a tokenizer for `model`."""
    coverage = Coverage.of(model)
    slots = _name_slots(names, coverage)
    agrees = _agrees(names, model)
    missing = () if agrees else _missing(names, coverage)
    if missing:
        for index in range(len(names), vocabulary.rows):
            slots.fill(f"<row {index}>")
        for piece in missing:
            slots.add(piece, owned=True)
    return replace(
        vocabulary,
        extra_unk_rows=len(missing),
        agrees_with_sentencepiece=agrees,
        missing_pieces=missing,
        unreachable_symbols=tuple(slots.unreachable),
        tokenizer=TokenizerPlan(slots=slots, model=model, missing=missing),
    )


def _missing(names: Dictionary, coverage: Coverage) -> tuple[str, ...]:
    """The pieces that texts are cut into and that the dictionary lacks.

    Pieces with white space inside are left out: texts are cut at it first (see `pre_tokenizer`).
    """
    candidates = chain(coverage.scores, sorted(coverage.byte_pieces))
    return tuple(filter(WHITE_SPACE.isdisjoint, filterfalse(names.rows.__contains__, candidates)))


def _agrees(names: Dictionary, model: SentencePieceModel) -> bool:
    """Whether the rule of Transformers' XLMRobertaTokenizer, SentencePiece's id plus one, gives these very ids."""
    return (
        model.model_type is ModelType.UNIGRAM
        and model.pieces[:3] == (UNK, BOS, EOS)
        and names.symbols == (*SPECIAL_SYMBOLS, *model.pieces[3:], MASK)
    )


def _merges(model: SentencePieceModel, coverage: Coverage, *, without: Collection[str]) -> Iterator[str]:
    """Every pair of pieces that SentencePiece joins (bpe_model.cc), best piece first; longest left part first.

    Pairs of which a part, or the whole, is in `without` are left out.
    """
    known = coverage.scores.keys() - without if without else coverage.scores
    ranked = zip(model.pieces, model.scores, model.types, strict=True)
    joined = [(-score, piece) for piece, score, kind in ranked if kind == PieceType.NORMAL and len(piece) > 1]
    joined.sort(key=lambda pair: pair[0])
    for _, piece in joined:
        for cut in range(len(piece) - 1, 0, -1):
            if piece in known and piece[:cut] in known and piece[cut:] in known:
                yield f"{piece[:cut]} {piece[cut:]}"


def _tokenizer_notes(slots: Slots, missing: Sequence[str]) -> Iterator[str]:
    """What is remarkable about the tokenizer."""
    if missing:
        yield (
            f"{len(missing)} SentencePiece pieces are not in the dictionary (such as {_shown(missing)}): they get "
            "ids after the embedding's rows, and those rows are copies of that of <unk>."
        )
    if slots.unreachable:
        yield f"{len(slots.unreachable)} dictionary symbols come from no text (such as {_shown(slots.unreachable)})."


def _limits(slots: Slots, model: SentencePieceModel, seams: Seams | None) -> Iterator[Limit]:
    """Where the tokenizer cannot be exact; one without strings is none."""
    coverage = slots.coverage
    if model.normalization.precompiled_charsmap and seams is None:
        yield Limit(
            "Decomposed text (NFD) can be tokenized differently: tokenizers normalises some of it wrongly.", ANY_TEXT
        )
    elif seams is not None:
        yield _limit_of_rules(coverage, seams)
    if slots.runs or not coverage.trained:
        yield Limit(
            "Some characters occur only inside longer pieces: unknown characters can be tokenized differently.",
            coverage.spelled - coverage.chars,
        )
    spaces = WHITE_SPACE & coverage.spelled
    holding = {piece for space in spaces for piece in coverage.scores if space in piece and len(piece) > 1}
    mixed = [piece for piece in coverage.scores if piece in holding] if holding else []
    yield Limit(
        f"{len(mixed)} pieces hold white space (such as {_shown(mixed)}): texts with it can be cut differently.",
        frozenset(mixed),
    )
    runs = [symbol for symbol in slots.unreachable if not coverage.byte_pieces and coverage.chars.isdisjoint(symbol)]
    yield Limit(
        f"{len(runs)} dictionary symbols are runs of characters that SentencePiece does not know (such as "
        f"{_shown(runs)}): fairseq finds them in a text, and the tokenizer does not.",
        frozenset(runs),
    )
    symbols = model.pieces_of(PieceType.USER_DEFINED)
    changed = {symbol for symbol in symbols if _is_normalized_elsewhere(symbol, model, seams)}
    yield from _limits_of_unigram(coverage, changed) if coverage.is_unigram else _limits_of_bpe(symbols, changed, model)


def _limit_of_rules(coverage: Coverage, seams: Seams) -> Limit:
    """The rules of normalisation that are not followed, those that concern what the pieces spell."""
    runs = [
        first + rule.tail
        for rule in seams.exceptions
        if not coverage.spelled.isdisjoint(rule.value + rule.base + rule.tail)
        for first in sorted(rule.firsts)
    ]
    old = [run for run in runs if max(run) <= LAST_OF_PLANE_0]  # the others come and go with Python's Unicode tables
    told = f"{len(old)} runs of characters (such as {_shown(old)}) are normalised differently by tokenizers."
    return Limit(told if old else "", frozenset(runs))


def _is_normalized_elsewhere(symbol: str, model: SentencePieceModel, seams: Seams | None) -> bool:
    """Whether tokenizers change a user-defined symbol, which SentencePiece finds before it normalizes a text."""
    by_rule = seams is not None and not seams.changed.isdisjoint(symbol)
    by_suffix = model.treat_whitespace_as_suffix and SPACE in symbol
    return by_rule or by_suffix or unicodedata.normalize("NFKC", symbol) != symbol or not WHITE_SPACE.isdisjoint(symbol)


def _limits_of_unigram(coverage: Coverage, changed: Set[str]) -> Iterator[Limit]:
    """What the pieces of tokenizers cannot express."""
    spelled = [piece for piece in sorted(coverage.byte_pieces) if not coverage.is_spelled(piece)]
    yield Limit(f"Texts that spell a byte piece (such as {_shown(spelled)}) get its id.", frozenset(spelled))
    yield Limit(
        f"Tokenizers normalize some user-defined symbols (such as {_shown(sorted(changed))}), and SentencePiece does "
        "not: texts that hold one are tokenized differently.",
        frozenset(changed),
    )


def _limits_of_bpe(symbols: Sequence[str], changed: Set[str], model: SentencePieceModel) -> Iterator[Limit]:
    """What the merges of tokenizers cannot express."""
    symbols = [symbol for symbol in symbols if len(symbol) > 1 or symbol in changed]
    yield Limit(
        f"Texts that hold a user-defined symbol (such as {_shown(symbols)}) are tokenized differently.",
        frozenset(symbols),
    )
    yield Limit(
        "Unused pieces of a BPE model cannot be expressed: texts that hold one can be tokenized differently.",
        frozenset(piece for piece in model.pieces_of(PieceType.UNUSED) if len(piece) > 1),
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3]))


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_tokenizer(vocabulary: Vocabulary, folder: Path, *, model_max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`; the same input gives the same bytes.

    Raises OSError, and InputError if the vocabulary has no tokenizer.
    """
    plan = vocabulary.tokenizer
    if plan is None:
        raise InputError("this vocabulary has no tokenizer to write: " + " ".join(vocabulary.notes))
    coverage = plan.slots.coverage
    with (folder / "tokenizer.json").open("w", encoding="utf-8", newline="\n") as file:
        head = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(vocabulary),
            "normalizer": normalizer(plan.model, coverage, seams=plan.seams, runs=plan.slots.runs),
            "pre_tokenizer": pre_tokenizer(coverage, suffixed=plan.model.treat_whitespace_as_suffix),
            "post_processor": _post_processor(vocabulary),
            "decoder": decoder(plan.model),
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
        file.write(f'"byte_fallback": {_json(plan.model.byte_fallback)}, "vocab": [\n')
        pairs = zip(map(encode_basestring, plan.names), _numbers(plan.scores), strict=True)
        _write_lines(file, map(",".join, pairs), around="[]")
        file.write("]}\n")
        return
    file.write('"model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, ')
    file.write('"end_of_word_suffix": null, "fuse_unk": true, ')
    file.write(f'"byte_fallback": {_json(plan.model.byte_fallback)}, "ignore_merges": false, "vocab": {{\n')
    _write_lines(file, map("{}: {}".format, map(encode_basestring, plan.names), count()))
    file.write('}, "merges": [\n')
    _write_lines(file, map(encode_basestring, plan.merges or ()))
    file.write("]}\n")


def _write_lines(file: TextIO, entries: Iterable[str], *, around: Sequence[str] = ("", "")) -> None:
    """The entries with commas between them, each between the two strings `around`."""
    waiting, (opened, closed), separator = iter(entries), around, ""
    while some := f"{closed},\n{opened}".join(islice(waiting, LINES_AT_ONCE)):
        file.write(f"{separator}{opened}{some}{closed}")
        separator = ",\n"
    file.write("\n")


def _numbers(scores: array[float]) -> Iterator[str]:
    """The scores as JSON has them; equal ones, of which trained models have many, are written once for some lines."""
    for start in range(0, len(scores), LINES_AT_ONCE):
        some = scores[start : start + LINES_AT_ONCE]
        spelled = {score: repr(score) for score in set(some)}
        yield from map(repr if 0.0 in spelled else spelled.__getitem__, some)  # -0.0 equals 0.0


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, object]]:
    """The specials, in the order of their ids."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_index = {index: symbol for symbol, index in _special_indices(vocabulary).items()}
    return [{"id": index, "content": by_index[index], **flags} for index in sorted(by_index)]


def _special_indices(vocabulary: Vocabulary) -> dict[str, int]:
    indices = {BOS: vocabulary.bos_index, PAD: vocabulary.pad_index, EOS: vocabulary.eos_index}
    indices[UNK] = vocabulary.unk_index
    return indices if vocabulary.mask_index is None else {**indices, MASK: vocabulary.mask_index}


def _post_processor(vocabulary: Vocabulary) -> dict[str, object]:
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


def _tokenizer_config(vocabulary: Vocabulary, *, model_max_length: int) -> dict[str, object]:
    """tokenizer_config.json.

    Not "XLMRobertaTokenizer": Transformers 5 builds that class again from the vocabulary and drops the rest.
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
