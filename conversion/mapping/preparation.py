"""From an opened checkpoint to all that is to be written: architecture, vocabulary, plan of weights, configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint
from hf_xlmr.conversion.checkpoint.weights import main_dtype
from hf_xlmr.conversion.mapping.architecture import Architecture, Wanted, decide
from hf_xlmr.conversion.mapping.config import SpecialIds, config_of
from hf_xlmr.conversion.mapping.plan import WeightPlan, plan_weights
from hf_xlmr.conversion.source.sources import LABELS_NAME
from hf_xlmr.conversion.tokenizer_json.vocabulary import Vocabulary, build_vocabulary
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.model.families import Task
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel

__all__ = ["Prepared", "labels_of", "prepare", "read_vocabulary"]

DTYPES: Final = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a byte is written."""

    checkpoint: FairseqCheckpoint
    wanted: Wanted
    architecture: Architecture
    vocabulary: Vocabulary
    plan: WeightPlan
    config: Mapping[str, object]
    unread_labels: str | None = None
    """Why the labels next to the checkpoint were left out, if they were."""


def prepare(checkpoint: FairseqCheckpoint, wanted: Wanted) -> Prepared:
    """Decide on everything about the output. Raises InputError, WeightsMismatch."""
    if wanted.dtype not in DTYPES:
        raise InputError(f"{wanted.dtype} is none of the dtypes {', '.join(DTYPES)}")
    architecture = decide(checkpoint, wanted)
    unread = _why_unread(checkpoint, architecture)
    if unread is not None:
        checkpoint = replace(checkpoint, files=replace(checkpoint.files, labels=None))
    vocabulary = read_vocabulary(checkpoint, architecture.vocabulary)
    extra = vocabulary.extra_unk_rows
    dtype = None if wanted.dtype == "auto" else wanted.dtype
    plan = plan_weights(checkpoint, architecture, extra_rows=extra, dtype=dtype)
    config = config_of(
        architecture,
        vocabulary=architecture.vocabulary + extra,
        ids=SpecialIds(bos=vocabulary.bos_index, pad=vocabulary.pad_index, eos=vocabulary.eos_index),
        dtype=main_dtype(plan.weights.values()),
        labels=labels_of(checkpoint, architecture),
    )
    return Prepared(checkpoint, wanted, architecture, vocabulary, plan, config, unread)


def read_vocabulary(checkpoint: FairseqCheckpoint, rows: int) -> Vocabulary:
    """The vocabulary of an embedding of `rows`. Raises InputError if the dictionary is missing or another's."""
    files = checkpoint.files
    if files.dictionary is None:
        raise InputError(
            f"there is no dict.txt next to {files.checkpoint[0].name}, which names its {rows} embedding rows; put it "
            "there, or name its folder (data=FOLDER)"
        )
    pieces, name = files.sentencepiece, files.dictionary.name
    model = None if pieces is None else SentencePieceModel.parse(pieces.read(), name=pieces.name)
    like = () if model is None else model.pieces[3:]
    dictionary = Dictionary.parse(files.dictionary.read(), expected_rows=rows, like=like, name=name)
    return build_vocabulary(dictionary, model, rows=rows, bpe=checkpoint.options.get("bpe"))


def labels_of(checkpoint: FairseqCheckpoint, architecture: Architecture) -> tuple[str, ...]:
    """The classes' names, from `label/dict.txt`: its first lines, in order (fairseq/tasks/sentence_prediction.py).

    Raises InputError if it has fewer than the head has classes.
    """
    file = checkpoint.files.labels
    if file is None or not _has_named_classes(architecture):
        return ()
    names = Dictionary.parse(file.read(), name=file.name).symbols[4:]
    if len(names) < architecture.labels:
        raise InputError(f"{file.name} names {len(names)} labels, but the head has {architecture.labels} classes")
    return names[: architecture.labels]


def _has_named_classes(architecture: Architecture) -> bool:
    return architecture.task is Task.SEQUENCE_CLASSIFICATION and not architecture.is_regression


def _why_unread(checkpoint: FairseqCheckpoint, architecture: Architecture) -> str | None:
    """Why labels are left out: nothing reads them, and they cannot be read. Raises InputError, IntegrityError."""
    labels = checkpoint.files.labels
    if labels is None or _has_named_classes(architecture):
        return None
    name = labels.name if checkpoint.heads else LABELS_NAME  # a note tells no path
    try:
        Dictionary.parse(labels.read(), name=name)
    except (InputError, IntegrityError) as error:
        if checkpoint.heads:  # their classes have these names, also beside what is converted
            raise
        return re.split(r"[;.] ", str(error))[0]
    return None
