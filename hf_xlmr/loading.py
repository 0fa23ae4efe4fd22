"""From what a user names (a folder, a Hub id, a release, a fairseq source) to a model folder and what lies in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlmr.dictionary import MASK, SPECIAL_SYMBOLS, Dictionary
from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.sentencepiece_model import PieceType, SentencePieceModel
from hf_xlmr.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["ModelFiles", "find_model"]

FAMILIES = {
    "xlm-roberta": "XLMRoberta",
    "xlm-roberta-xl": "XLMRobertaXL",
    "roberta-prelayernorm": "RobertaPreLayerNorm",
}
DEFAULT_HEAD = "sentence_classification_head"  # of fairseq's sentence_prediction task
SENTENCEPIECE = "sentencepiece.bpe.model"
WANTED_FROM_HUB = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"),
    *("sentencepiece.bpe.model", "fairseq/*", "fairseq/*/*"),
)


def find_model(
    model: str | Path,
    *,
    checkpoint_file: str | None = None,
    data: str | Path | None = None,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> ModelFiles:
    """The model folder that `model` stands for; a fairseq source is converted into the cache first.

    `model` is a Transformers folder, a fairseq source (folder, `.pt` file, archive, release name or `demo`, with
    `checkpoint_file` inside a folder and `data` for its dictionaries), or the id of a repository on the Hub. Raises
    InputError, IntegrityError.
    """
    path = Path(model)
    if checkpoint_file is None and (path / "config.json").is_file():
        return ModelFiles(path)
    if path.exists() or _is_name_of_ours(str(model)):
        return _converted(path / checkpoint_file if checkpoint_file else model, data, progress)
    return ModelFiles(_from_hub(str(model), revision))


def _is_name_of_ours(model: str) -> bool:
    from hf_xlmr.conversion.releases import RELEASE_NAMES
    from hf_xlmr.conversion.sources import DEMO

    return model == DEMO or model in RELEASE_NAMES


def _converted(source: str | Path, data: str | Path | None, progress: Progress) -> ModelFiles:
    from hf_xlmr.conversion.cache import converted_once

    with told_plainly():
        cached = converted_once(source, data=data, progress=progress)
    return ModelFiles(cached.folder, heads_file=cached.heads)


def _from_hub(model: str, revision: str | None) -> Path:
    """The snapshot of a repository on the Hub. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(WANTED_FROM_HUB)))
    except HFValidationError:
        raise InputError(f"{model} is no file or folder, no release of fairseq's, and no id on the Hub.") from None
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{model} is no file or folder here, and the Hub cannot be reached for a repository of that name."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise InputError(
            f"{model} is no file or folder here, and the Hub does not give a repository of that name (status "
            f"{status}); where it is private, log in with `hf auth login`."
        ) from error
    if not (folder / "config.json").is_file():
        raise InputError(f"the repository {model} on the Hub holds no config.json: it is no Transformers model.")
    return folder


# ---- what lies in a model folder -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFiles:
    """A Transformers folder of one of the three families, converted by us or not, and what fairseq adds to it."""

    folder: Path
    heads_file: Path | None = None
    """All classification heads of the source, where the folder comes from the cache of conversions."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json. Raises InputError for a model of another type, IntegrityError."""
        config = _json(self.folder / "config.json")
        if config.get("model_type") not in FAMILIES:
            raise InputError(
                f"{self.folder} holds a model of the type {config.get('model_type')!r}; hf_xlmr takes those of "
                f"{', '.join(FAMILIES)}."
            )
        return config

    @property
    def class_name(self) -> str:
        """The Transformers class whose weights the folder holds. Raises InputError for one of another family."""
        family = FAMILIES[self.config["model_type"]]
        named = self.config.get("architectures") or [f"{family}ForMaskedLM"]
        if not str(named[0]).startswith(family):
            raise InputError(f"{self.folder}/config.json names {named[0]}, which is not of the family {family}.")
        return str(named[0])

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """What fairseq was told in training, as far as it matters; empty where nobody kept it."""
        path = self.folder / "fairseq" / "options.json"
        return _json(path) if path.is_file() else {}

    @property
    def head_name(self) -> str:
        """What the folder's own classification head was called in fairseq."""
        return str(self._record.get("head") or DEFAULT_HEAD)

    @cached_property
    def dictionary(self) -> Dictionary:
        """The rows of fairseq/dict.txt and `<mask>`, or what the tokenizer's files imply. Raises InputError."""
        path = self.folder / "fairseq" / "dict.txt"
        if not path.is_file():
            return _dictionary_of_tokenizer(self.folder, rows=int(self.config["vocab_size"]))
        rows = self.embedding_rows
        dictionary = Dictionary.parse(path.read_bytes(), expected_rows=rows, name=str(path))
        return dictionary if len(dictionary) == rows else dictionary.with_mask()

    @property
    def embedding_rows(self) -> int:
        """The rows of fairseq's embedding; what `convert` appended for pieces that the dictionary lacks comes after."""
        rows = self._record.get("embedding_rows")
        return rows if isinstance(rows, int) else int(self.config["vocab_size"])

    @cached_property
    def _record(self) -> Mapping[str, Any]:
        """What the conversion wrote down; empty for a folder of another origin."""
        path = self.folder / "fairseq" / "conversion.json"
        return _json(path) if path.is_file() else {}

    @cached_property
    def tokenizer(self) -> ExactTokenizer | None:
        """Fairseq's tokenization; None where the folder has no SentencePiece model."""
        paths = (self.folder / "fairseq" / SENTENCEPIECE, self.folder / SENTENCEPIECE)
        path = next((path for path in paths if path.is_file()), None)
        return None if path is None else ExactTokenizer(self.dictionary, path)

    @cached_property
    def labels(self) -> Dictionary | None:
        """The label dictionary, names from id 4 on; None where the classes have no names."""
        path = self.folder / "fairseq" / "label" / "dict.txt"
        if path.is_file():
            return Dictionary.parse(path.read_bytes(), name=str(path))
        names = _names_of_classes(self.config.get("id2label") or {})
        is_named = bool(names) and not all(name.startswith("LABEL_") for name in names)
        return Dictionary.of((*SPECIAL_SYMBOLS, *names)) if is_named else None

    def heads(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights of the source's classification heads, by head and part."""
        from safetensors.torch import load_file

        heads: dict[str, dict[str, torch.Tensor]] = {}
        for name, weight in load_file(self.heads_file).items() if self.heads_file else ():
            head, layer, part = name.rsplit(".", 2)
            heads.setdefault(head, {})[f"{layer}.{part}"] = weight
        return heads


def _names_of_classes(names: object) -> list[str]:
    """Names by class number, whatever order a file has them in. Raises InputError where a number is missing."""
    if not isinstance(names, dict):
        raise InputError(f"config.json: id2label is a {type(names).__name__}, not an object of numbers and names")
    try:
        return [str({int(number): name for number, name in names.items()}[number]) for number in range(len(names))]
    except (KeyError, ValueError):
        raise InputError(f"config.json: id2label does not number its names 0 to {len(names) - 1}") from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}.") from None
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} is damaged: it holds no JSON object")
    return content


def _dictionary_of_tokenizer(folder: Path, *, rows: int) -> Dictionary:
    """The dictionary that a tokenizer's files imply: tokenizer.json lists it, else XLM-R's rule gives it.

    Raises InputError where there is neither, or where there are more names than embedding `rows`.
    """
    if (folder / "tokenizer.json").is_file():
        symbols = _symbols_of_json(folder / "tokenizer.json")
    elif (folder / SENTENCEPIECE).is_file():
        model = SentencePieceModel.parse((folder / SENTENCEPIECE).read_bytes(), name=SENTENCEPIECE)
        symbols = [*SPECIAL_SYMBOLS, *model.pieces_of(PieceType.NORMAL)]
    else:
        raise InputError(f"{folder} has no dictionary: no fairseq/dict.txt, tokenizer.json or {SENTENCEPIECE}.")
    dictionary = Dictionary.of(symbols).with_mask()
    if len(dictionary) > rows:
        raise InputError(f"{folder}: the tokenizer has {len(dictionary)} names, but the embedding {rows} rows.")
    return dictionary


def _symbols_of_json(path: Path) -> list[str]:
    """The names of a Unigram tokenizer in the order of their ids, `<mask>` and other added ones at theirs.

    What stands after a space in a name is the converter's mark that no text can spell it (`madeupword0000 `). Raises
    InputError.
    """
    content = _json(path)
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    try:
        symbols = [str(piece).partition(" ")[0] or str(piece) for piece, _score in content["model"]["vocab"]]
        added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens", [])}
    except (KeyError, TypeError, ValueError) as error:
        what = "a BPE tokenizer, whose file lists" if kind == "BPE" else "not the tokenizer of an XLM-R: it lists"
        raise InputError(
            f"{path} is {what} no pieces with scores. Copy fairseq/ into this folder from the one that hf-xlmr "
            "convert wrote: the dictionary is there."
        ) from error
    for index in sorted(added):
        if index == len(symbols) and added[index] == MASK:
            symbols.append(MASK)
    return symbols
