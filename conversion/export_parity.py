"""The proof of an export: a fairseq checkpoint holds and computes what its Transformers folder does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.legacy_names import canonical
from hf_xlmr.conversion.checkpoint.model_folder import ModelFolder, open_model_folder
from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.conversion.checkpoint.weights import Weight
from hf_xlmr.conversion.exporting import network_of_folder
from hf_xlmr.conversion.mapping.architecture import Architecture, Wanted
from hf_xlmr.conversion.mapping.export_plan import ReversePlan, plan_export
from hf_xlmr.conversion.mapping.preparation import Prepared, prepare
from hf_xlmr.conversion.output.export_files import DICTIONARY, LABELS, Companions, companions_of
from hf_xlmr.conversion.proof.parity import (
    Behaviour,
    FileHashes,
    ParityError,
    ParityReport,
    compare_behaviour,
    exact_tokenizer,
)
from hf_xlmr.model.families import Task
from hf_xlmr.model.folder_records import ConversionRecord
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tokenizer.dictionary import MASK, Dictionary

__all__ = ["verify_export"]

POOLER: Final = "pooler."


def verify_export(
    checkpoint: FairseqCheckpoint, path: Path, *, hashes: FileHashes, progress: Progress = SILENT
) -> tuple[Prepared, ParityReport]:
    """Prove that `checkpoint` is what an export of the Transformers folder `path` writes, and computes the same.

    Also returns what the checkpoint would become; `hashes` are those of both. Raises ParityError, which names the
    first weight, file or step that departs, InputError where the folder cannot be exported, IntegrityError for damage.
    """
    folder, record = open_model_folder(path), ConversionRecord.of(path)
    network = network_of_folder(folder, record)
    companions = companions_of(folder, network, record)
    plan = plan_export(folder, network, rows=companions.rows)
    _compare_files(checkpoint, companions, rows=companions.rows)
    expected = _of_both(plan, checkpoint)
    size = sum(weight.nbytes for weight in expected.values())
    with progress.task("comparing bytes", total=size) as task:
        for name, weight in expected.items():
            _raise_if_other(name, checkpoint.weights[name], weight)
            task.advance(weight.nbytes)
    prepared = prepare(checkpoint, _wanted(network))
    behaviour = _behaviour(prepared, folder, progress)
    return prepared, ParityReport(
        weights_compared=len(expected),
        bytes_compared=size,
        tokens=behaviour.tokens,
        largest=behaviour.largest,
        tolerance=behaviour.tolerance,
        steps=behaviour.steps,
        tokenizer=(),
        source_sha256=hashes.source,
        output_sha256=hashes.output,
        languages=behaviour.languages,
    )


def _wanted(network: Architecture) -> Wanted:
    """The conversion that makes this network again."""
    head = network.head if network.head is not None else "none" if network.task is Task.MASKED_LM else None
    return Wanted(head=head, encoder_only=network.task is Task.ENCODER, attention_heads=network.attention_heads)


# ---- files -----------------------------------------------------------------------------------------------------------


def _compare_files(checkpoint: FairseqCheckpoint, companions: Companions, *, rows: int) -> None:
    """Compare the small files, dictionaries by the names and their order. Raises ParityError, InputError."""
    given = checkpoint.files.companions
    for name, data in companions.files.items():
        if name not in (DICTIONARY, LABELS) and name not in given:
            continue  # such as input0/dict.txt, of which the source has one
        found = given[name].read() if name in given else b""
        expected_rows = rows if name == DICTIONARY else None
        is_same = found == data or (
            name in (DICTIONARY, LABELS) and _names(found, name, expected_rows) == _names(data, name, expected_rows)
        )
        if not is_same:
            raise ParityError(name, f"{name} next to the checkpoint is not what an export of the folder writes")


def _names(data: bytes, name: str, rows: int | None) -> tuple[str, ...]:
    dictionary = Dictionary.parse(data, expected_rows=rows, name=name)
    has_all = rows in (None, len(dictionary)) or MASK in dictionary
    return dictionary.symbols if has_all else dictionary.with_mask().symbols


# ---- weights ---------------------------------------------------------------------------------------------------------


def _of_both(plan: ReversePlan, checkpoint: FairseqCheckpoint) -> Mapping[str, Weight]:
    """What an export takes from the folder, by fairseq's newest names, which must be those of the checkpoint.

    What an export only makes up (an LM head of zeros, a format stamp) may be there or not. Raises ParityError.
    """
    made = set(plan.made)
    expected = {name: weight for name, weight in canonical(plan.weights).weights.items() if name not in made}
    missing = [name for name in expected if name not in checkpoint.weights]
    unknown = [name for name in checkpoint.weights if name not in expected and name not in made]
    for names, told in ((missing, "the checkpoint lacks {}"), (unknown, "the folder does not explain {}")):
        if names:
            raise ParityError(names[0], told.format(names[0]))
    return expected


def _raise_if_other(name: str, given: Weight, expected: Weight) -> None:
    told = [f"{weight.dtype} of shape {list(weight.shape)}" for weight in (given, expected)]
    if told[0] != told[1]:
        raise ParityError(name, f"{name} is {told[0]} in the checkpoint, and an export of the folder writes {told[1]}")
    if not same_bytes(given, expected):
        raise ParityError(name, f"{name} differs from the folder's")


# ---- behaviour -------------------------------------------------------------------------------------------------------


def _behaviour(prepared: Prepared, folder: ModelFolder, progress: Progress) -> Behaviour:
    has_pooler = any(POOLER in name for name in folder.weights)
    return compare_behaviour(
        prepared, folder.path, exact_tokenizer(prepared), progress=progress, has_pooler=has_pooler, has_rows=False
    )
