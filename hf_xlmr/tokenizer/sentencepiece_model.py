"""Reads and checks a SentencePiece model file: its pieces and its rules of normalization."""

from __future__ import annotations

import functools
import math
import re
import sys
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from hashlib import sha256
from importlib import import_module
from itertools import compress, count, islice
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

from hf_xlmr.errors import InputError, IntegrityError

LONGEST_PIECE = 1000  # trained ones have 16 at most
MOST_PIECES = 2_000_000
PIECES_AT_ONCE: Final = 512  # protobuf makes an object of each, and 700 new ones start a garbage collection
MOST_TEXT = 16 << 20  # bytes of all pieces, which take a microsecond each to load; a million have some 10 MB
SMALL_FILE = 6 << 20  # XLM-R's, with 250,000 pieces, has 5 MB
LARGEST_FILE = 64 << 20
FLOAT_MIN = 2.0**-126  # C++'s FLT_MIN, with which SentencePiece starts its search for the highest score
LARGEST_CHARSMAP: Final = 1 << 20  # bytes; nmt_nfkc_cf, the largest known, has 243,000
LONGEST_VALUE: Final = 256  # bytes that one rule of a charsmap makes; U+FDFA becomes 33
ALL_BYTES: Final = frozenset(f"<0x{value:02X}>" for value in range(256))
GAP: Final = "<gap%d>"
PIECE_TAG: Final = b"\n"  # of field 1 of a model, before the length of a piece
NOT_NORMAL: Final = re.compile(rb"[^\x01]")  # the types of all pieces that are not PieceType.NORMAL
SILENT: Final = 4  # a level of absl's logging above FATAL, the highest level of a message

FILE_NAME: Final = "sentencepiece.bpe.model"
PLACES: Final = ("fairseq", "")  # subfolders of a Transformers folder that may have one, in order of priority


class ModelType(IntEnum):
    """The type of a model: TrainerSpec.ModelType of sentencepiece_model.proto."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class PieceType(IntEnum):
    """The type of a piece: ModelProto.SentencePiece.Type of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Normalization:
    """The rules of normalization: NormalizerSpec of sentencepiece_model.proto."""

    precompiled_charsmap: bytes = field(repr=False)
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    @property
    def makes_white_space(self) -> bool:
        """Whether a rule of the charsmap makes white space other than U+0020, even from a text without any."""
        size = int.from_bytes(self.precompiled_charsmap[:4], "little")  # of the trie; the rules' texts follow it
        given = self.precompiled_charsmap[4 + size :].decode("utf-8", errors="replace")
        return any(space != " " for space in re.findall(r"\s", given))


@dataclass(frozen=True)
class SentencePieceModel:
    """A checked model; `pieces`, `scores` and `types` (PieceType values) are indexed by SentencePiece's own ids."""

    UNK_PENALTY: ClassVar[float] = 10.0  # kUnkPenalty in unigram_model.h

    pieces: tuple[str, ...] = field(repr=False)
    scores: array[float] = field(repr=False)
    types: bytes = field(repr=False)
    model_type: ModelType
    normalization: Normalization
    treat_whitespace_as_suffix: bool
    byte_fallback: bool
    name: str
    as_read: bytes = field(repr=False)
    """A model file with only the fields that are read here, and without the self-tests that SentencePiece would run."""

    @classmethod
    def parse(cls, data: bytes, *, name: str) -> SentencePieceModel:
        """Read a `.model` file; messages call it `name`.

        SentencePiece loads every model that is accepted here. Raises InputError if the file is something else,
        IntegrityError if it is damaged.
        """
        digest = sha256(data).digest()
        known = _KNOWN.get(digest)
        if known is None:
            known = _KNOWN[digest] = cls._parsed(data, name=name)
        return known if known.name == name else replace(known, name=name)

    @classmethod
    def _parsed(cls, data: bytes, *, name: str) -> SentencePieceModel:
        message = _message(data, name=name)
        message.DiscardUnknownFields()
        texts, scores, types = list[bytes](), array("f"), bytearray()
        try:
            model_type = ModelType(message.trainer_spec.model_type)
            for start in range(0, len(message.pieces), PIECES_AT_ONCE):
                some = message.pieces[start : start + PIECES_AT_ONCE]
                texts += map(attrgetter("piece"), some)
                scores.extend(map(attrgetter("score"), some))
                types += bytes(map(attrgetter("type"), some))
        except ValueError:
            raise _damage(name, "a piece's type or its own type does not exist") from None
        model = cls(
            pieces=_texts(texts, name=name),
            scores=scores,
            types=bytes(types),
            model_type=model_type,
            normalization=Normalization(
                **{name: getattr(message.normalizer_spec, name) for name, *_ in NORMALIZER_FIELDS}
            ),
            treat_whitespace_as_suffix=message.trainer_spec.treat_whitespace_as_suffix,
            byte_fallback=message.trainer_spec.byte_fallback,
            name=name,
            as_read=message.SerializeToString(),
        )
        _check(model, name=name)
        return model

    def processor(self, ids: Sequence[int] | None = None) -> Any:
        """A SentencePieceProcessor that loads `as_read` instead of the original file. Raises IntegrityError.

        With `ids`, which must be all different, it gives `ids[n]` for piece n.
        """
        proto = self.as_read if ids is None else self._renumbered(ids)
        try:
            return import_sentencepiece().SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise IntegrityError(f"{self.name} is a damaged SentencePiece model: {error}") from None

    def _renumbered(self, ids: Sequence[int]) -> bytes:
        """The model with its pieces in the order of `ids`; a piece that occurs in no text fills each unused id."""
        fields = [self.as_read[start:stop] for start, stop in _fields(self.as_read)]
        pieces = [field for field in fields if field[:1] == PIECE_TAG]
        others = [field for field in fields if field[:1] != PIECE_TAG]
        taken = {piece for piece in self.pieces if piece.startswith("<gap")}
        names = (name for number in count() if (name := GAP % number) not in taken)
        ordered: list[bytes] = [b""] * (max(ids) + 1)
        for index, piece in zip(ids, pieces, strict=True):
            ordered[index] = piece
        for index in (index for index, piece in enumerate(ordered) if not piece):
            ordered[index] = _gap(next(names))
        return b"".join((*ordered, *others))

    @property
    def unk_id(self) -> int:
        """SentencePiece's own id of the unknown piece."""
        return self.types.index(PieceType.UNKNOWN)

    @property
    def chooses_by_score(self) -> bool:
        """Whether scores say how a text is cut; a character that training has not seen has the score -inf otherwise."""
        return self.model_type in (ModelType.UNIGRAM, ModelType.BPE)

    @property
    def joins_only_unknown_characters(self) -> bool:
        """Whether an unknown piece consists only of characters that are not pieces, as in Unigram and BPE."""
        return self.chooses_by_score

    def pieces_of(self, kind: PieceType) -> tuple[str, ...]:
        """The pieces of one type, in order."""
        return tuple(compress(self.pieces, map(kind.__eq__, self.types))) if kind in self.types else ()

    def reachable_scores(self) -> dict[str, float]:
        """Every piece that can occur in a tokenized text, except byte pieces, with its score in the search.

        Raw scores of user-defined pieces are 0; Model::EncodeOptimized derives theirs from the highest normal score.
        """
        scores = dict(zip(self.pieces, self.scores, strict=True))
        odd = [found.start() for found in NOT_NORMAL.finditer(self.types)]
        if any(self.types[index] == PieceType.USER_DEFINED for index in odd):
            kinds = zip(self.scores, self.types, strict=True)
            highest = max((FLOAT_MIN, *(score for score, kind in kinds if kind == PieceType.NORMAL)))
        for index in odd:
            piece = self.pieces[index]
            if self.types[index] == PieceType.USER_DEFINED:
                scores[piece] = len(piece.encode()) * highest - 0.1
            else:
                del scores[piece]
        return scores

    def __len__(self) -> int:
        return len(self.pieces)


_KNOWN: Final[WeakValueDictionary[bytes, SentencePieceModel]] = WeakValueDictionary()  # by the SHA-256 of the file


def check_models_of(folder: Path) -> None:
    """Read every SentencePiece model of a Transformers folder. Raises InputError, IntegrityError, OSError."""
    for path in (folder / place / FILE_NAME for place in PLACES):
        if path.is_file():
            SentencePieceModel.parse(path.read_bytes(), name=str(path))


def import_sentencepiece() -> ModuleType:
    """Import the module `sentencepiece` silently, also if the user turned warnings into errors.

    Its start-up code does not handle a warning that becomes an exception: before 0.2.2 that ends the process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = import_module("sentencepiece")
    module.set_min_log_level(SILENT)
    return module


def _damage(name: str, fault: str) -> IntegrityError:
    return IntegrityError(f"{name} is a damaged SentencePiece model: {fault}.")


def _count_fields(data: bytes) -> int:
    """The number of fields of a message; MOST_PIECES + 1 if there are more, or if one is not length-delimited."""
    number, end = 0, 0
    for number, (_start, end) in enumerate(islice(_fields(data), MOST_PIECES + 1), start=1):  # noqa: B007 - the last end is read below
        pass
    return number if end >= len(data) else MOST_PIECES + 1


def _fields(data: bytes) -> Iterator[tuple[int, int]]:
    """The beginning and the end of each field of a message, up to one that is not length-delimited."""
    place, end = 0, len(data)
    while place < end and data[place] & 7 == 2:
        start, place, size, shift = place, place + 1, 0, 0
        while place < end and shift < 35:
            byte, place = data[place], place + 1
            if byte < 0x80:
                size |= byte << shift
                break
            size, shift = size | (byte & 0x7F) << shift, shift + 7
        place += size
        yield start, place


def _gap(name: str) -> bytes:
    message = _message_class()()
    message.pieces.add(piece=name.encode(), score=0, type=PieceType.CONTROL)
    return bytes(message.SerializeToString())


def _message(data: bytes, *, name: str) -> Any:
    if not (data[:1] == b"\n" and data[2:3] == b"\n"):  # field 1, a piece, whose field 1 is its text
        raise InputError(f"{name} is not a SentencePiece model.")
    if len(data) > LARGEST_FILE or (len(data) > SMALL_FILE and _count_fields(data) > MOST_PIECES):
        # protobuf would parse it into fifty times its size: one object per piece
        raise IntegrityError(f"{name} is not a SentencePiece model: it is too large for one.")
    message = _message_class()()
    try:
        message.ParseFromString(data)
    except import_module("google.protobuf.message").DecodeError:
        raise _damage(name, "it does not parse to its end") from None
    if not (message.HasField("trainer_spec") and message.HasField("normalizer_spec")):
        raise _damage(name, f"it is cut off after {len(message.pieces)} pieces")
    return message


def _texts(pieces: list[bytes], *, name: str) -> tuple[str, ...]:
    together = b"\0".join(pieces)
    if len(together) - len(pieces) >= MOST_TEXT:
        raise IntegrityError(f"{name} is not a SentencePiece model: its pieces are too long for one.")
    if together.count(b"\0") >= max(1, len(pieces)):
        raise _damage(name, "a piece holds U+0000")
    try:
        return tuple(together.decode("utf-8").split("\0"))
    except UnicodeDecodeError:
        raise _damage(name, "a piece is not UTF-8") from None


def _check(model: SentencePieceModel, *, name: str) -> None:
    """Raise IntegrityError for a model that SentencePiece (0.2.2 and 0.2.3) could not load or could not run."""
    charsmap = model.normalization.precompiled_charsmap
    faults = {
        "a piece is empty": "" in model.pieces,
        f"a piece has more than {LONGEST_PIECE} characters": max(map(len, model.pieces), default=0) > LONGEST_PIECE,
        "a piece comes twice": len(set(model.pieces)) < len(model.pieces),
        "it does not have exactly one unknown piece": model.types.count(PieceType.UNKNOWN) != 1,
        "a piece has a type that does not exist": not set(model.types) <= set(PieceType),
        "none of its pieces can occur in a text": set(model.types).isdisjoint(CUT_INTO),
        "a score is not a finite number": model.chooses_by_score and not all(map(math.isfinite, model.scores)),
        "its pieces for bytes are not <0x00> to <0xFF>, or byte_fallback is off": not _bytes_are_right(model),
        "its normalisation rules do not parse": bool(charsmap) and not _is_sound(charsmap),
    }
    for fault, found in faults.items():
        if found:
            raise _damage(name, fault)


CUT_INTO: Final = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


def _bytes_are_right(model: SentencePieceModel) -> bool:
    """Whether there is a piece for each byte, or no such piece if the model does not use them."""
    if not model.byte_fallback:
        return PieceType.BYTE not in model.types
    return set(model.pieces_of(PieceType.BYTE)) == ALL_BYTES


@functools.lru_cache(maxsize=1)  # nearly all models have the same rules, and each is opened several times
def _is_sound(charsmap: bytes) -> bool:
    """Whether all offsets of a precompiled charsmap are inside of it, and every rule makes a short text.

    The check equals SentencePiece's Normalizer::DecodePrecompiledCharsMap and Darts::DoubleArray::validate, and also
    demands UTF-8.
    """
    size, values = int.from_bytes(charsmap[:4], "little"), charsmap[4:]
    if size < 1024 or size % 1024 or size >= len(values) or len(charsmap) > LARGEST_CHARSMAP:
        return False
    units = array("I", values[:size])
    if sys.byteorder == "big":
        units.byteswap()
    return _are_sound(units, values[size:])


def _are_sound(units: array[int], texts: bytes) -> bool:
    """Whether the units of a double array refer to each other and to the beginnings of characters in `texts`."""
    if texts[-1] or max(map(len, texts.split(b"\0"))) > LONGEST_VALUE:
        return False
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if units[0] & 0x800001FF or not units[0] >> 10:
        return False
    for place, unit in enumerate(units):
        if unit & 0x80000000:  # the offset of the text that a rule makes
            value = unit & 0x7FFFFFFF
            if value >= len(texts) or texts[value] & 0xC0 == 0x80:
                return False
            continue
        below = place ^ (unit >> 10) << (8 if unit & 0x200 else 0)
        if below | 0xFF >= len(units) or (unit & 0x100 and not units[below] & 0x80000000):
            return False
    return True


# Name, number in sentencepiece_model.proto, protobuf type and default of each field that is read.
PIECE_FIELDS = (("piece", 1, "BYTES", ""), ("score", 2, "FLOAT", ""), ("type", 3, "INT32", "1"))
TRAINER_FIELDS = (
    ("model_type", 3, "INT32", "1"),
    ("treat_whitespace_as_suffix", 24, "BOOL", "false"),
    ("byte_fallback", 35, "BOOL", "false"),
    ("unk_surface", 44, "BYTES", ""),
    ("unk_piece", 45, "BYTES", ""),
    ("bos_piece", 46, "BYTES", ""),
    ("eos_piece", 47, "BYTES", ""),
    ("pad_piece", 48, "BYTES", ""),
)
NORMALIZER_FIELDS = (
    ("precompiled_charsmap", 2, "BYTES", ""),
    ("add_dummy_prefix", 3, "BOOL", "true"),
    ("remove_extra_whitespaces", 4, "BOOL", "true"),
    ("escape_whitespaces", 5, "BOOL", "true"),
)
PACKAGE = "hf_xlmr.sentencepiece"


@functools.cache
def _message_class() -> Any:
    """A message class in its own descriptor pool.

    sentencepiece's and transformers' generated modules register the same file in protobuf's default pool, and
    whichever of them is imported second fails; so neither can be used here.
    """
    descriptor_pb2 = import_module("google.protobuf.descriptor_pb2")
    file = descriptor_pb2.FileDescriptorProto(
        name="hf_xlmr/sentencepiece_model.proto", package=PACKAGE, syntax="proto2"
    )
    for message, fields in (("Piece", PIECE_FIELDS), ("Trainer", TRAINER_FIELDS), ("Normalizer", NORMALIZER_FIELDS)):
        _declare(file.message_type.add(name=message), fields)
    model = file.message_type.add(name="Model")
    for name, number, label, kind in (
        ("pieces", 1, "LABEL_REPEATED", "Piece"),
        ("trainer_spec", 2, "LABEL_OPTIONAL", "Trainer"),
        ("normalizer_spec", 3, "LABEL_OPTIONAL", "Normalizer"),
    ):
        model.field.add(name=name, number=number, label=label, type="TYPE_MESSAGE", type_name=f".{PACKAGE}.{kind}")
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName(f"{PACKAGE}.Model")
    return import_module("google.protobuf.message_factory").GetMessageClass(descriptor)


def _declare(message: Any, fields: tuple[tuple[str, int, str, str], ...]) -> None:
    for name, number, kind, default in fields:
        added = message.field.add(name=name, number=number, label="LABEL_OPTIONAL", type=f"TYPE_{kind}")
        if default:
            added.default_value = default
