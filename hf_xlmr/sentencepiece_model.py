"""What a SentencePiece model file says: its pieces and how it normalises text."""

from __future__ import annotations

import functools
import math
import re
from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from importlib import import_module
from typing import Any, ClassVar

from hf_xlmr.errors import InputError, IntegrityError

LONGEST_PIECE = 1000  # trained ones have 16 at most
MOST_PIECES = 2_000_000
SMALL_FILE = 6 << 20  # that of XLM-R, with 250,000 pieces, has 5 MB
LARGEST_FILE = 64 << 20
FLOAT_MIN = 2.0**-126  # C++'s FLT_MIN: what SentencePiece starts its search for the highest score from

__all__ = ["ModelType", "Normalization", "PieceType", "SentencePieceModel"]


class ModelType(IntEnum):
    """TrainerSpec.ModelType of sentencepiece_model.proto."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Normalization:
    """NormalizerSpec of sentencepiece_model.proto."""

    precompiled_charsmap: bytes = field(repr=False)
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    @property
    def makes_white_space(self) -> bool:
        """Whether a rule of the charsmap gives white space other than U+0020, to a text that may have none."""
        size = int.from_bytes(self.precompiled_charsmap[:4], "little")  # of the trie, before what the rules give
        given = self.precompiled_charsmap[4 + size :].decode("utf-8", errors="replace")
        return any(space != " " for space in re.findall(r"\s", given))


@dataclass(frozen=True)
class SentencePieceModel:
    """The columns `pieces`, `scores` and `types` (PieceType values) run over SentencePiece's own ids."""

    UNK_PENALTY: ClassVar[float] = 10.0  # kUnkPenalty in unigram_model.h

    pieces: tuple[str, ...] = field(repr=False)
    scores: array[float] = field(repr=False)
    types: bytes = field(repr=False)
    model_type: ModelType
    normalization: Normalization
    treat_whitespace_as_suffix: bool
    byte_fallback: bool

    @classmethod
    def parse(cls, data: bytes, *, name: str) -> SentencePieceModel:
        """Read a `.model` file; `name` is what messages call it.

        Raises InputError where it is something else, IntegrityError where it is damaged.
        """
        message = _message(data, name=name)
        model = cls(
            pieces=_texts(message, name=name),
            scores=array("f", (piece.score for piece in message.pieces)),
            types=_types(message, name=name),
            model_type=_model_type(message, name=name),
            normalization=_normalization(message.normalizer_spec),
            treat_whitespace_as_suffix=message.trainer_spec.treat_whitespace_as_suffix,
            byte_fallback=message.trainer_spec.byte_fallback,
        )
        _check(model, name=name)
        return model

    @property
    def unk_id(self) -> int:
        """SentencePiece's own id of the unknown piece."""
        return self.types.index(PieceType.UNKNOWN)

    @property
    def lowest_score(self) -> float:
        """The lowest score of a normal piece (min_score_ in unigram_model.cc)."""
        return min(self._normal_scores(), default=0.0)

    def pieces_of(self, kind: PieceType) -> tuple[str, ...]:
        """The pieces of one type, in order."""
        return tuple(piece for piece, own in zip(self.pieces, self.types, strict=True) if own == kind)

    def reachable_scores(self) -> dict[str, float]:
        """Every piece that a text can be cut into, byte pieces aside, with the score it competes with.

        Raw scores of user-defined pieces are 0; Model::EncodeOptimized gives them almost nothing to pay instead.
        """
        scores = dict(zip(self.pieces, self.scores, strict=True))
        odd = [index for index, kind in enumerate(self.types) if kind != PieceType.NORMAL]
        if any(self.types[index] == PieceType.USER_DEFINED for index in odd):
            highest = max((FLOAT_MIN, *self._normal_scores()))
        for index in odd:
            piece = self.pieces[index]
            if self.types[index] == PieceType.USER_DEFINED:
                scores[piece] = len(piece.encode()) * highest - 0.1
            else:
                del scores[piece]
        return scores

    def _normal_scores(self) -> list[float]:
        return [score for score, kind in zip(self.scores, self.types, strict=True) if kind == PieceType.NORMAL]

    def __len__(self) -> int:
        return len(self.pieces)


def _types(message: Any, *, name: str) -> bytes:
    """The types of all pieces. Raises IntegrityError."""
    try:
        return bytes(piece.type for piece in message.pieces)
    except ValueError:
        raise IntegrityError(
            f"{name} is a damaged SentencePiece model: a piece of a type that does not exist."
        ) from None


def _model_type(message: Any, *, name: str) -> ModelType:
    """The type of the model. Raises IntegrityError."""
    try:
        return ModelType(message.trainer_spec.model_type)
    except ValueError:
        raise IntegrityError(f"{name} is a damaged SentencePiece model: its type does not exist.") from None


def _raise_if_endless(data: bytes, *, name: str) -> None:
    """Refuse a file that protobuf would turn into fifty times its size: a piece of two bytes is an object to it."""
    if len(data) > LARGEST_FILE or (len(data) > SMALL_FILE and _count_fields(data) > MOST_PIECES):
        raise IntegrityError(f"{name} is no SentencePiece model: it is too large for one.")


def _count_fields(data: bytes) -> int:
    """The fields of a message, up to MOST_PIECES; up to the first one that is not told by its length."""
    place, number = 0, 0
    while place < len(data) and data[place] & 7 == 2 and number <= MOST_PIECES:
        place, size, shift = place + 1, 0, 0
        while place < len(data) and shift < 35:
            size, shift, place = size | (data[place] & 0x7F) << shift, shift + 7, place + 1
            if data[place - 1] < 0x80:
                break
        place, number = place + size, number + 1
    return number if place >= len(data) else MOST_PIECES + 1


def _message(data: bytes, *, name: str) -> Any:
    """The parsed message. Raises InputError, IntegrityError."""
    if not (data[:1] == b"\n" and data[2:3] == b"\n"):  # field 1, a piece, whose field 1 is its text
        raise InputError(f"{name} is not a SentencePiece model.")
    _raise_if_endless(data, name=name)
    message = _message_class()()
    try:
        message.ParseFromString(data)
    except import_module("google.protobuf.message").DecodeError:
        raise IntegrityError(f"{name} is a damaged SentencePiece model: it does not parse to its end.") from None
    if not (message.HasField("trainer_spec") and message.HasField("normalizer_spec")):
        raise IntegrityError(
            f"{name} is a damaged SentencePiece model: it is cut off after {len(message.pieces)} pieces."
        )
    return message


def _texts(message: Any, *, name: str) -> tuple[str, ...]:
    """The texts of all pieces. Raises IntegrityError."""
    try:
        return tuple(piece.piece.decode("utf-8") for piece in message.pieces)
    except UnicodeDecodeError:
        raise IntegrityError(f"{name} is a damaged SentencePiece model: a piece is not UTF-8.") from None


def _normalization(spec: Any) -> Normalization:
    return Normalization(
        precompiled_charsmap=spec.precompiled_charsmap,
        add_dummy_prefix=spec.add_dummy_prefix,
        remove_extra_whitespaces=spec.remove_extra_whitespaces,
        escape_whitespaces=spec.escape_whitespaces,
    )


def _check(model: SentencePieceModel, *, name: str) -> None:
    """What SentencePiece itself checks on loading, and finite scores. Raises IntegrityError."""
    faults = {
        "a piece is empty": "" in model.pieces,
        f"a piece has more than {LONGEST_PIECE} characters": max(map(len, model.pieces), default=0) > LONGEST_PIECE,
        "a piece comes twice": len(set(model.pieces)) < len(model.pieces),
        "it does not have exactly one unknown piece": model.types.count(PieceType.UNKNOWN) != 1,
        "a piece has a type that does not exist": not set(model.types) <= set(PieceType),
        "a score is not a finite number": not all(map(math.isfinite, model.scores)),
    }
    for fault, found in faults.items():
        if found:
            raise IntegrityError(f"{name} is a damaged SentencePiece model: {fault}.")


# Name, number in sentencepiece_model.proto, protobuf type and default of each field that is read.
PIECE_FIELDS = (("piece", 1, "BYTES", ""), ("score", 2, "FLOAT", ""), ("type", 3, "INT32", "1"))
TRAINER_FIELDS = (
    ("model_type", 3, "INT32", "1"),
    ("treat_whitespace_as_suffix", 24, "BOOL", "false"),
    ("byte_fallback", 35, "BOOL", "false"),
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
    """A message class in a descriptor pool of its own.

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
    """Add the scalar `fields` to a message descriptor."""
    for name, number, kind, default in fields:
        added = message.field.add(name=name, number=number, label="LABEL_OPTIONAL", type=f"TYPE_{kind}")
        if default:
            added.default_value = default
