"""The small files next to an exported checkpoint: fairseq's dictionary, the SentencePiece model, the labels."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.model_folder import ModelFolder, read_json
from hf_xlmr.conversion.mapping.architecture import Architecture
from hf_xlmr.conversion.tokenizer_json.vocabulary import is_padding
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.model.families import Task
from hf_xlmr.model.folder_records import ConversionRecord
from hf_xlmr.tokenizer.added_tokens import AddedTokens
from hf_xlmr.tokenizer.dictionary import BOS, EOS, MASK, OVERWRITE_FLAG, SPECIAL_SYMBOLS, UNK, Dictionary, fillers
from hf_xlmr.tokenizer.label_names import label_lines
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel, check_models_of
from hf_xlmr.tokenizer.vocabulary_agreement import raise_if_ids_differ

__all__ = ["DICTIONARY", "KEPT", "LABELS", "Companions", "companions_of"]

KEPT: Final = "fairseq"  # where convert keeps what fairseq needs again
DICTIONARY: Final = "dict.txt"
SENTENCEPIECE: Final = "sentencepiece.bpe.model"
TOKENIZER: Final = "tokenizer.json"
CONFIG: Final = "config.json"
LABELS: Final = "label/dict.txt"
FIRST_INPUT: Final = "input0/dict.txt"  # where sentence_prediction and sentence_ranking look for the dictionary
MOST_SPARE: Final = 1 << 20  # rows without a name
SHOWN: Final = 3


@dataclass(frozen=True)
class Companions:
    """What is next to the checkpoint; `rows` are those of the embedding that have a name in the dictionary."""

    rows: int
    files: Mapping[str, bytes]
    notes: tuple[str, ...]


def companions_of(folder: ModelFolder, network: Architecture, record: ConversionRecord) -> Companions:
    """The files for fairseq, from the folder's `fairseq/` or, if there is none, from its SentencePiece model.

    `record` is that of the conversion. Raises InputError if a file is missing or another model's.
    """
    kept = folder.path / KEPT / DICTIONARY
    data = kept.read_bytes() if kept.is_file() else _derived(folder.path)
    added = _names_of_added(folder.path, network.vocabulary)
    appended = _appended_rows(record, network.vocabulary, added) if kept.is_file() else 0
    rows = network.vocabulary - appended
    own = (record.embedding_rows if kept.is_file() else None) or rows
    dictionary = Dictionary.parse(data, expected_rows=own, name=str(kept))
    spare = _spare_rows(dictionary, rows, appended, is_without_mask=own == len(dictionary))
    named = _flagged(data + _fillers(dictionary, spare, added))
    _raise_if_not_at_their_ids(named, added, rows)
    tokenizer = read_json(folder.path / TOKENIZER)
    if tokenizer is not None:
        names = Dictionary.parse(named, expected_rows=own, name=DICTIONARY).with_mask()
        raise_if_ids_differ(folder.path / TOKENIZER, tokenizer, names)
    spare -= sum(index >= rows - spare for index in added)
    files = {DICTIONARY: named, **_pieces(folder.path)}
    if network.head is not None:
        files |= {FIRST_INPUT: files[DICTIONARY], **_labels(folder, network)}
    return Companions(rows=rows, files=files, notes=tuple(_notes(files, spare, added)))


def _notes(files: Mapping[str, bytes], spare: int, added: Mapping[int, str]) -> Iterator[str]:
    if SENTENCEPIECE not in files:
        yield f"There is no {SENTENCEPIECE}, so fairseq cannot encode texts."
    if spare:
        yield f"{spare} rows at the end of the embeddings have no name: the dictionary calls them madeupword0000, ..."
    if added:
        told = ", ".join(map(repr, [*added.values()][:SHOWN])) + ", ..." * (len(added) > SHOWN)
        yield (
            f"The tokens that were added to the tokenizer ({told}) have their names in {DICTIONARY}, and fairseq's "
            "encode never gives their ids: it cuts them as any text."
        )
    names = _label_names(files[LABELS]) if LABELS in files else ()
    if any(name.split() != [name] for name in names):
        yield "Some labels hold white space, at which fairseq-preprocess cuts labels: rename them before training on."


# ---- the dictionary --------------------------------------------------------------------------------------------------


def _derived(path: Path) -> bytes:
    """The dictionary that XLM-R's rule gives: SentencePiece's pieces from id 3 on. Raises InputError."""
    pieces = path / SENTENCEPIECE
    if not pieces.is_file():
        raise InputError(
            f"{path} has neither {KEPT}/{DICTIONARY} nor {SENTENCEPIECE}, which say what the ids mean: copy "
            f"{KEPT}/, or that file, from the folder that the model was fine-tuned from"
        )
    model = SentencePieceModel.parse(pieces.read_bytes(), name=str(pieces))
    if model.pieces[:3] != (UNK, BOS, EOS):
        raise InputError(f"{pieces} is not in XLM-R's order: it begins with {', '.join(model.pieces[:3])}")
    data = "".join(f"{piece} 1\n" for piece in model.pieces[3:]).encode()
    if Dictionary.parse(data, name=str(pieces)).symbols != (*SPECIAL_SYMBOLS, *model.pieces[3:]):
        raise InputError(f"{pieces} has pieces that a {DICTIONARY} of fairseq's cannot hold")
    return data


def _names_of_added(path: Path, rows: int) -> Mapping[int, str]:
    """The tokens that were added to the folder's tokenizer, by their ids. Raises InputError, IntegrityError."""
    added = AddedTokens.of(path, rows=rows)
    return {} if added is None else added.names


def _appended_rows(record: ConversionRecord, rows: int, added: Mapping[int, str]) -> int:
    """The rows at the end of the embeddings that convert appended; none if later ones follow them."""
    own, appended = record.embedding_rows, record.appended_rows(rows)
    is_last = own is not None and rows == own + appended and not any(index >= own for index in added)
    return appended if is_last else 0


def _spare_rows(dictionary: Dictionary, rows: int, appended: int, *, is_without_mask: bool) -> int:
    """The rows that follow the dictionary's names. Raises InputError if the names are not theirs."""
    names = len(dictionary.with_mask())
    spare = rows - names
    if MASK not in dictionary and is_without_mask:
        raise InputError(f"the embedding has no row for {MASK}, which every task of fairseq's adds to the dictionary")
    if not 0 <= spare <= MOST_SPARE or (appended and spare and not is_padding(rows, spare)):
        raise InputError(
            f"the dictionary has {names} names (4 specials, its lines and {MASK}), but the embedding has {rows} rows "
            f"and convert appended {appended}: they do not belong together"
        )
    return spare


def _fillers(dictionary: Dictionary, spare: int, added: Mapping[int, str]) -> bytes:
    """Lines that name `spare` rows after the others, `<mask>` before them: the task would add it at the end."""
    if not spare:
        return b""
    mask = [] if MASK in dictionary else [f"{MASK} 1\n"]
    taken, first = set(added.values()), len(dictionary.with_mask())
    free = (name for name in fillers(dictionary) if name not in taken)
    lines = (added.get(index) or next(free) for index in range(first, first + spare))
    return "".join([*mask, *(f"{name} 0\n" for name in lines)]).encode()


def _raise_if_not_at_their_ids(data: bytes, added: Mapping[int, str], rows: int) -> None:
    """Raise InputError for an added token that the lines of a dictionary do not give its id."""
    try:
        symbols = Dictionary.parse(data, expected_rows=rows, name=DICTIONARY).symbols if added else ()
    except InputError:
        symbols = ()
    for index, name in added.items():
        if symbols[index : index + 1] != (name,):
            raise InputError(
                f"the tokenizer has the added token {name!r:.60} with the id {index}, which a {DICTIONARY} of "
                "fairseq's cannot hold there: take it out of the tokenizer, or rename it, before the export"
            )


def _flagged(data: bytes) -> bytes:
    """A dictionary that every fairseq reads alike: before March 2020 a second line for a symbol needed no flag."""
    lines, seen, is_changed = [], set(SPECIAL_SYMBOLS), not data.endswith(b"\n")
    for line in io.StringIO(data.decode(), newline=None):
        text = line.rstrip()
        symbol = text.removesuffix(f" {OVERWRITE_FLAG}").rsplit(" ", 1)[0]
        if symbol in seen and not text.endswith(OVERWRITE_FLAG):
            text, is_changed = f"{text} {OVERWRITE_FLAG}", True
        seen.add(symbol)
        lines.append(text)
    return "".join(f"{line}\n" for line in lines).encode() if is_changed else data


def _pieces(path: Path) -> dict[str, bytes]:
    """The SentencePiece model, if there is one. Raises InputError, IntegrityError."""
    check_models_of(path)
    places = (path / KEPT / SENTENCEPIECE, path / SENTENCEPIECE)
    return next(({SENTENCEPIECE: place.read_bytes()} for place in places if place.is_file()), {})


# ---- the labels ------------------------------------------------------------------------------------------------------


def _labels(folder: ModelFolder, network: Architecture) -> dict[str, bytes]:
    """The label dictionary of a classifier: the one that training had, if its names are still those of the folder.

    Raises InputError if the names cannot be lines of a dictionary.
    """
    if network.task is not Task.SEQUENCE_CLASSIFICATION or network.is_regression:
        return {}
    names, kept = _names_of_classes(folder.config, network.labels), folder.path / KEPT / LABELS
    if kept.is_file() and _label_names(kept.read_bytes(), str(kept))[: len(names)] == names:
        return {LABELS: kept.read_bytes()}
    return {LABELS: label_lines(names, place=str(folder.path / CONFIG))}


def _label_names(data: bytes, name: str = LABELS) -> tuple[str, ...]:
    return Dictionary.parse(data, name=name).symbols[len(SPECIAL_SYMBOLS) :]


def _names_of_classes(config: JsonObject, labels: int) -> tuple[str, ...]:
    """The names of the classes in the order of their ids. Raises IntegrityError."""
    names = config.get("id2label") or {str(number): f"LABEL_{number}" for number in range(labels)}
    try:
        return tuple(str(names[str(number)]) for number in range(labels))
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"config.json is damaged: id2label does not name the {labels} classes") from error
