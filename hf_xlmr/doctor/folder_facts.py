"""Reads what the files of a Transformers folder say and contain, whether they agree or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from hf_xlmr.errors import HfXlmrError
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.families import FAMILIES
from hf_xlmr.model.folder_records import CONVERSION
from hf_xlmr.model.model_shape import shape_of_config
from hf_xlmr.model.opened_folder import CONFIG, OpenedFolder
from hf_xlmr.model.safetensors_files import file_header
from hf_xlmr.placement.placed_loading import STORED_DTYPES, check_weights, files_of_weights
from hf_xlmr.tokenizer.dictionary import BOS, EOS, MASK, SPECIAL_SYMBOLS, UNK, Dictionary
from hf_xlmr.tokenizer.dictionary_kinds import kind_of_dictionary
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel
from hf_xlmr.tokenizer.vocabulary_agreement import ids_of_tokenizer, raise_if_ids_differ

__all__ = ["TOKENIZER_CONFIG", "FolderFacts", "StoredTensor", "refusal_of"]

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SENTENCEPIECE: Final = "sentencepiece.bpe.model"
DICTIONARY: Final = "fairseq/dict.txt"
OPTIONS: Final = "fairseq/options.json"
WORDS: Final = "embeddings.word_embeddings.weight"
POSITIONS: Final = "embeddings.position_embeddings.weight"
XLMR_ORDER: Final = (UNK, BOS, EOS)  # the first pieces of XLM-R's SentencePiece model
ROBERTA: Final = "xlm-roberta"  # the right type of a folder whose config.json says roberta
PARTS: Final = (  # prefixes of the weights of an encoder and its heads
    *("embeddings.", "encoder.", "pooler.", "LayerNorm."),
    *("lm_head.", "classifier.", "qa_outputs."),
)


class StoredTensor(NamedTuple):
    """A tensor as the header of its file describes it."""

    file: Path
    sizes: tuple[int, ...]
    dtype: str
    """The name of the dtype, such as float32, or safetensors' code for a type that is not a float."""


@dataclass(frozen=True)
class FolderFacts(OpenedFolder):
    """The facts of one folder, each read when it is needed; only unreadable files raise errors."""

    is_known_to_be_fairseqs: bool = False
    """Whether the caller says that fairseq trained the model."""

    @cached_property
    def files(self) -> ModelFiles:
        """The folder as loading reads it, with all of loading's checks."""
        return ModelFiles(self.path, given=self)

    @cached_property
    def tokenizer_config(self) -> JsonObject | None:
        """The content of tokenizer_config.json, None if there is none. Raises IntegrityError."""
        return _object(self.path / TOKENIZER_CONFIG)

    @cached_property
    def tokenizer(self) -> JsonObject | None:
        """The content of tokenizer.json, None if there is none. Raises IntegrityError."""
        return _object(self.path / TOKENIZER)

    @property
    def is_converted(self) -> bool:
        """Whether the folder has files of fairseq, as a converted folder and models trained from it have."""
        return any((self.path / name).is_file() for name in (DICTIONARY, CONVERSION))

    @property
    def is_from_fairseq(self) -> bool:
        """Whether fairseq trained the model, by the folder's files or by what the caller says."""
        return self.is_converted or self.is_known_to_be_fairseqs

    @property
    def model_type(self) -> str:
        """The model type that config.json names."""
        return str(self.config.get("model_type"))

    @property
    def class_name(self) -> str:
        """The first class that config.json names, empty if it names none."""
        return next(iter(self.class_names or ()), "")

    @property
    def class_names(self) -> list[str] | None:
        """The classes that config.json names, None if `architectures` is not a list of names."""
        named = self.config.get("architectures") or []
        is_list = isinstance(named, list) and all(isinstance(name, str) for name in named)
        return list(named) if is_list else None

    @property
    def has_sentencepiece(self) -> bool:
        """Whether the tokenizer is a SentencePiece one, as XLM-R's is and RoBERTa's is not."""
        model = (self.tokenizer or {}).get("model")
        is_unigram = isinstance(model, dict) and model.get("type") == "Unigram"
        return is_unigram or any((self.path / place / SENTENCEPIECE).is_file() for place in ("", "fairseq"))

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The ids of tokenizer.json; those of added tokens replace those of the vocabulary.

        Without tokenizer.json, the ids that Transformers makes from a SentencePiece model; empty without either file.

        Raises IntegrityError.
        """
        if self.tokenizer is None:
            return self._ids_of_sentencepiece
        return ids_of_tokenizer(self.tokenizer, self.path / TOKENIZER)

    def raise_if_ids_differ(self) -> None:
        """Compare tokenizer.json with fairseq's names, if the folder has both.

        Raises InputError if an id has another name, IntegrityError.
        """
        names = self._names_of_fairseq
        if self.tokenizer is not None and names is not None:
            raise_if_ids_differ(self.path / TOKENIZER, self.tokenizer, names)

    @property
    def _names_of_fairseq(self) -> Dictionary | None:
        """The dictionary of fairseq, else the one that a SentencePiece model in XLM-R's order implies, else None."""
        if self.fairseqs_dictionary is not None:
            return self.fairseqs_dictionary
        path = self.path / SENTENCEPIECE
        model = SentencePieceModel.parse(path.read_bytes(), name=str(path)) if path.is_file() else None
        is_xlmr = model is not None and model.pieces[: len(XLMR_ORDER)] == XLMR_ORDER
        return Dictionary.of(self._ids_of_sentencepiece) if is_xlmr else None

    @property
    def _ids_of_sentencepiece(self) -> Mapping[str, int]:
        """The ids of four special symbols in fairseq's order, of the pieces from the fourth on, and of `<mask>`."""
        path = self.path / SENTENCEPIECE
        if not path.is_file():
            return {}
        pieces = SentencePieceModel.parse(path.read_bytes(), name=str(path)).pieces
        names = [*SPECIAL_SYMBOLS, *pieces[len(SPECIAL_SYMBOLS) - 1 :], MASK]
        return {name: number for number, name in enumerate(names)}

    @property
    def names(self) -> int:
        """The number of ids of the tokenizer: its highest id plus one."""
        return max(self.ids.values(), default=-1) + 1

    @property
    def notes(self) -> tuple[str, ...]:
        """A remark on the ids of a converted folder, if no tokenizer of XLM-R's kind gives them.

        Raises InputError, IntegrityError.
        """
        if self.fairseqs_dictionary is None:
            return ()
        kind = kind_of_dictionary(self.fairseqs_dictionary, bpe=(_object(self.path / OPTIONS) or {}).get("bpe"))
        return () if kind is None else (kind.told(DICTIONARY),)

    @cached_property
    def fairseqs_dictionary(self) -> Dictionary | None:
        """fairseq/dict.txt as fairseq's task completes it, None if missing. Raises InputError, IntegrityError."""
        if not self.has(DICTIONARY):
            return None
        path, rows = self.path / DICTIONARY, self.record.embedding_rows
        dictionary = Dictionary.parse(path.read_bytes(), expected_rows=rows, name=str(path))
        return dictionary if len(dictionary) == rows else dictionary.with_mask()

    @cached_property
    def is_pickled(self) -> bool:
        """Whether the weights are only in pickles."""
        return not any(self.path.glob("model*.safetensors*")) and any(self.path.glob("pytorch_model*.bin*"))

    @cached_property
    def fault_of_weights(self) -> str | None:
        """Why the weights do not fit the class of the configuration, None if they do."""
        return refusal_of(lambda: check_weights(self.path, shape_of_config(self.config, name=str(self.path / CONFIG))))

    @cached_property
    def weights(self) -> Mapping[str, StoredTensor]:
        """The tensors by name; empty if they are pickled. Raises InputError, IntegrityError."""
        if self.is_pickled:
            return {}
        files = files_of_weights(self.path)
        found: dict[str, StoredTensor] = {}
        for file in dict.fromkeys(files.values()):
            for name, held in file_header(file).items():
                found[name] = StoredTensor(file, held.shape, STORED_DTYPES.get(held.dtype, held.dtype))
        return found

    @cached_property
    def own(self) -> Mapping[str, StoredTensor]:
        """The tensors of the model, by their names without the prefix that the family's heads give the encoder.

        Other tensors of a file, such as averaged weights under another name, are left out.

        Raises InputError, IntegrityError.
        """
        base = f"{FAMILIES.get(self.model_type, FAMILIES[ROBERTA]).base}."
        bases = ("", base) if self.class_name.endswith("Model") else (base, "")
        found: dict[str, StoredTensor] = {}
        for start in bases:
            for name, stored in self.weights.items():
                if name.startswith(start) and name.removeprefix(start).startswith(PARTS):
                    found.setdefault(name.removeprefix(start), stored)
        return found

    @property
    def rows(self) -> int | None:
        """The number of rows of the embedding, None if the weights are not read."""
        return self._rows_of(WORDS)

    @property
    def position_rows(self) -> int | None:
        """The number of rows of the position table, None if the weights are not read."""
        return self._rows_of(POSITIONS)

    def _rows_of(self, name: str) -> int | None:
        sizes = self.own[name].sizes if name in self.own else ()
        return sizes[0] if sizes else None


def refusal_of(look: Callable[[], object]) -> str | None:
    """The sentence with which `look` raises one of hf_xlmr's errors, None if it raises none."""
    try:
        look()
    except HfXlmrError as error:
        return str(error)
    return None


def _object(path: Path) -> JsonObject | None:
    return json_object(path) if path.is_file() else None
