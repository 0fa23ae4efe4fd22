"""From what a user names (a folder, a Hub id, a release, a fairseq source) to a model folder and what is in it."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hf_xlmr.errors import InputError, IntegrityError, as_named, told_plainly
from hf_xlmr.files.json_files import JsonObject, json_object
from hf_xlmr.files.own_names import is_there, own_name
from hf_xlmr.model.families import FAMILIES
from hf_xlmr.model.folder_records import FINETUNING, ConversionRecord, read_kept
from hf_xlmr.model.model_shape import ModelShape, shape_of_config
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.model.provenance import holds_recorded_weights
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tokenizer.added_tokens import AddedTokens
from hf_xlmr.tokenizer.dictionary import MASK, SPECIAL_SYMBOLS, Dictionary
from hf_xlmr.tokenizer.dictionary_kinds import DictionaryKind, kind_of_dictionary
from hf_xlmr.tokenizer.sentencepiece_model import PieceType, SentencePieceModel
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import torch

FIXED: Mapping[str, tuple[object, ...]] = {  # fields of config.json that change the answers, or break the calls
    "pad_token_id": (1,),
    "is_decoder": (False,),
    "return_dict": (True,),
    "output_hidden_states": (False, True, None),
    "chunk_size_feed_forward": (0,),
    "quantization_config": (None,),
}
FAIRSEQS_DEFAULT = "model.pt"  # what its from_pretrained takes for checkpoint_file, so that callers say it of anything
DEFAULT_HEAD = "sentence_classification_head"  # of fairseq's sentence_prediction task
SENTENCEPIECE = "sentencepiece.bpe.model"
LABELS = "label/dict.txt"
CHECKPOINTS = (".pt",)  # the other files of a source are next to one of these
OF_THE_HEAD = frozenset(  # options that speak of the head that fairseq trained, and of no other
    {"task", "criterion", "num_classes", "regression_target", "classification_head_name", "ranking_head_name"}
)
WANTED_FROM_HUB = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"),
    *("sentencepiece.bpe.model", "fairseq/*", "fairseq/*/*", FINETUNING),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),  # where tokens are added
)
OF_THE_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT")


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
    `checkpoint_file` inside a folder and `data` for its dictionaries), or the id of a repository on the Hub. For
    anything but a fairseq folder `checkpoint_file` may be `model.pt`, fairseq's default, which then says nothing, and
    the dictionary in `data` must be the model's where that is converted already. Raises InputError, IntegrityError.
    """
    raise_if_no_path(model=model)
    path, name = Path(model), own_name(model)
    with told_plainly():
        picked = None if checkpoint_file is None else _picked(path, checkpoint_file)
        if picked is None and (path / "config.json").is_file():
            return _with_the_dictionary(ModelFiles(path), data)
        if picked is not None or name is not None or is_there(str(model)):
            from hf_xlmr.conversion.cache import converted_once

            cached = converted_once(picked or model, data=data, progress=progress)
            return ModelFiles(cached.folder, cached.heads, asked_for=str(model), origin=cached.origin)
        return _with_the_dictionary(ModelFiles(_from_hub(str(model), revision), asked_for=str(model)), data)


def raise_if_no_path(**paths: object) -> None:
    """Raise InputError for an argument that is not a text and no path, or says nothing."""
    for name, path in paths.items():
        if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
            raise InputError(f"{name}={path!r:.80}: give a path or a name")


def _picked(model: Path, checkpoint_file: str | Path) -> Path | None:
    """The file that `checkpoint_file` picks in a fairseq folder, None if it says nothing. Raises InputError."""
    raise_if_no_path(checkpoint_file=checkpoint_file)
    name = str(checkpoint_file)
    if os.pathsep in name:
        raise InputError(
            f"checkpoint_file={name!r} names several checkpoints: fairseq makes an ensemble of them, which is not one "
            "model; name one of them, or average them with fairseq's scripts/average_checkpoints.py first"
        )
    if model.is_dir() and (found := _in_folder(model, name)):
        return found
    is_fairseqs = model.is_dir() and not (model / "config.json").is_file()
    if name == FAIRSEQS_DEFAULT and not is_fairseqs:
        return None
    if not model.is_dir():
        raise InputError(
            f"checkpoint_file={name!r} picks a file in a folder, and {model} is none: leave it out (of an archive with "
            "several checkpoints, unpack it and name the folder)"
        )
    there = ", ".join(sorted(path.name for path in model.glob("*.pt"))[:8])
    raise InputError(f"{model} holds no {name} (checkpoint_file=); it has {there or 'no .pt file'}")


def _in_folder(folder: Path, name: str) -> Path | None:
    """The checkpoint of that name, or the first of the parts that were written under it."""
    from hf_xlmr.conversion.source.sources import PART

    if (folder / name).is_file():
        return folder / name
    parts = ((path, PART.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return next((path for path, part in parts if part and part["stem"] == Path(name).stem), None)


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    with _told_of_the_hub(model):
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=list(WANTED_FROM_HUB)))
    if not (folder / "config.json").is_file():
        raise InputError(f"the repository {model} on the Hub holds no config.json: it is not a Transformers model.")
    return folder


@contextmanager
def _told_of_the_hub(model: str) -> Iterator[None]:
    """Raise InputError for what is not on the Hub, or a Hub that cannot be asked."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError:
        raise InputError(f"{model} is not a file or folder, no release of fairseq's, and no id on the Hub.") from None
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{model} is not a file or folder here, and the Hub cannot be reached for a repository of that name."
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise InputError(
            f"{model} is not a file or folder here, and the Hub does not give a repository of that name (status "
            f"{status}); if it is private, log in with `hf auth login`."
        ) from error
    except (ImportError, ValueError, ssl.SSLError, FileNotFoundError) as error:
        if getattr(error, "filename", None):  # of this machine's disk
            raise
        given = ", ".join(sorted(name for name in os.environ if name.upper() in OF_THE_NETWORK))
        raise InputError(
            f"the Hub cannot be asked for {model} ({' '.join(str(error).split()):.200}): look at the proxies and "
            f"certificates in your environment ({given or 'none is set'})"
        ) from error


def _with_the_dictionary(files: ModelFiles, data: str | Path | None) -> ModelFiles:
    """`files`, whose dictionary is the one in the folder `data`. Raises InputError if that is another."""
    if data is None:
        return files
    places = [Path(data) / name for name in ("dict.txt", "input0/dict.txt", "fairseq/dict.txt")]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        kind = "holds no dict.txt" if Path(data).is_dir() else "is not a folder"
        raise InputError(f"data_name_or_path: {data} {kind}; the dictionary of {files.name} is in it, leave it out")
    given = Dictionary.parse(path.read_bytes(), expected_rows=files.embedding_rows, name=str(path))
    if given.with_mask().symbols != files.dictionary.with_mask().symbols:
        raise InputError(
            f"data_name_or_path: {path} is another dictionary than that of {files.name}, which was converted with "
            "its own: leave it out, or convert the checkpoint again with data=FOLDER"
        )
    return files


# ---- what is in a model folder -------------------------------------------------------------------------------------

Read = TypeVar("Read")


def _with_names(read: Callable[[ModelFiles], Read]) -> Callable[[ModelFiles], Read]:
    """`read`, whose errors name what the user asked for."""

    @wraps(read)
    def reading(files: ModelFiles) -> Read:
        with files.named():
            return read(files)

    return reading


class _Named(cached_property[Read]):
    """A `cached_property` whose errors name what the user asked for."""

    def __init__(self, read: Callable[[ModelFiles], Read]) -> None:
        super().__init__(_with_names(read))


@dataclass(frozen=True)
class ModelFiles:
    """A Transformers folder of one of XLM-R's families, converted by us or not, and what fairseq adds to it."""

    folder: Path
    heads_file: Path | None = None
    """All classification heads of the source, if the folder comes from the cache of conversions."""
    asked_for: str | None = None
    """What the user named, if a cache holds it as this folder."""
    origin: Path | None = None
    """The checkpoint or archive of which the folder is a cached conversion."""
    given: OpenedFolder | None = field(default=None, repr=False, compare=False)
    """The folder, where it is open already."""

    @cached_property
    def opened(self) -> OpenedFolder:
        """The folder, of which config.json and the records are read once."""
        return self.given or OpenedFolder(self.folder)

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.asked_for or str(self.folder)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let errors name what the user asked for in place of a folder in a cache."""
        if self.asked_for is None:
            yield
            return
        if self.heads_file is None:
            with as_named(self.folder, self.asked_for):
                yield
            return
        kept = f"{self.folder}/fairseq/"  # of the source's own files and options
        with as_named(self.folder, f"{self.asked_for} (as converted)"), as_named(kept, f"{self.asked_for}: "):
            yield

    @_Named
    def config(self) -> JsonObject:
        """config.json. Raises InputError for a model of another type, IntegrityError."""
        if not self.opened.has("config.json"):
            raise InputError(f"{self.folder} holds no config.json.")
        config = self.opened.config
        if str(config.get("model_type")) not in FAMILIES:
            raise InputError(
                f"{self.folder} holds a model of the type {config.get('model_type')!r}; hf_xlmr takes those of "
                f"{', '.join(FAMILIES)}."
            )
        odd = [name for name, values in FIXED.items() if name in config and config[name] not in values]
        if odd:
            told = "; ".join(f"{name} is {config[name]!r:.40}, and must be {FIXED[name][0]!r}" for name in odd)
            raise InputError(f"{self.folder}/config.json is not that of an XLM-R: {told}.")
        return config

    @property
    @_with_names
    def class_name(self) -> str:
        """The Transformers class whose weights the folder holds. Raises InputError for one of another family."""
        family = FAMILIES[self.config["model_type"]].class_prefix
        named = self.config.get("architectures") or [f"{family}ForMaskedLM"]
        first = named[0] if isinstance(named, list) else named
        if not str(first).startswith(family):
            raise InputError(f"{self.folder}/config.json names {first!s:.60}, which is not of the family {family}.")
        return str(first)

    @_Named
    def shape(self) -> ModelShape:
        """The sizes of the class that the folder holds. Raises InputError, IntegrityError."""
        config = {**self.config, "architectures": [self.class_name]}
        return shape_of_config(config, name=str(self.folder / "config.json"))

    @_Named
    def options(self) -> JsonObject:
        """The options of fairseq's training that matter; empty if the folder does not keep them.

        Raises IntegrityError, also for those of a model of another width.
        """
        path = self.folder / "fairseq" / "options.json"
        options = json_object(path, has_paths=True) if path.is_file() else {}
        width = options.get("encoder_embed_dim")
        if type(width) is int and width != self.shape.hidden:
            raise IntegrityError(f"{path} is of a model of the width {width}, and this one's is {self.shape.hidden}")
        is_stale = not self._head_is_of_the_record
        return {name: value for name, value in options.items() if not (is_stale and name in OF_THE_HEAD)}

    @_Named
    def training(self) -> JsonObject:
        """The report of `hf-xlmr finetune`; empty in a folder that it did not make. Raises IntegrityError."""
        return self.opened.training

    @property
    def head_name(self) -> str:
        """What the folder's own classification head was called in fairseq."""
        return self._record.head or DEFAULT_HEAD

    def why_left_behind(self, head: str) -> str:
        """Why a head of fairseq's checkpoint is not in the folder; empty if it had none of that name."""
        parts = [name for name in self._record.left_behind if head in name.split(".")[:-1]]
        if not parts:
            return ""
        if self.heads_file is None:
            return f"the checkpoint has it ({', '.join(parts[:8])}), and the conversion left it behind"
        return f"the checkpoint has it, and it is not of fairseq's class ({', '.join(parts[:8])})"

    @_Named
    def dictionary(self) -> Dictionary:
        """The names of the rows: fairseq's, and after them the tokens that were added to the tokenizer.

        Raises InputError, IntegrityError for a dict.txt that is not the model's.
        """
        return self.fairseqs_dictionary if self.added is None else self.added.extended(self.fairseqs_dictionary)

    @_Named
    def added(self) -> AddedTokens | None:
        """The tokens that the folder's tokenizer has beyond fairseq's, None without any. Raises InputError."""
        return AddedTokens.of(self.folder, rows=self.shape.vocabulary)

    @_Named
    def fairseqs_dictionary(self) -> Dictionary:
        """The rows of fairseq/dict.txt and `<mask>`, or what the tokenizer's files imply.

        Raises InputError, IntegrityError for a dict.txt that is not the model's.
        """
        path = self.folder / "fairseq" / "dict.txt"
        if not path.is_file():
            return _dictionary_of_tokenizer(self.folder, rows=self.shape.vocabulary)
        rows = self._record.embedding_rows or self.shape.vocabulary
        dictionary = Dictionary.parse(self._read_kept(path.name), expected_rows=rows, name=str(path))
        if len(dictionary) > self.embedding_rows:
            raise IntegrityError(
                f"{path} has {len(dictionary)} names (4 specials and its lines), but the embedding "
                f"{self.embedding_rows} rows: it is "
                "the dictionary of another model"
            )
        return dictionary if len(dictionary) == rows else dictionary.with_mask()

    @property
    @_with_names
    def embedding_rows(self) -> int:
        """The rows of fairseq's embedding; what `convert` appended for pieces that the dictionary lacks comes after.

        Raises IntegrityError.
        """
        rows, held = self._record.embedding_rows, self.shape.vocabulary
        written = (self._record.config or {}).get("vocab_size", held)
        if rows is not None and rows > held and not (type(written) is int and rows <= written):
            raise IntegrityError(f"{self._record.path} is damaged: embedding_rows is {rows}, and there are {held} rows")
        return held if rows is None else min(rows, held)  # resize_token_embeddings may have made it smaller

    @property
    def rows(self) -> int:
        """The rows that have an id: fairseq's, and those up to the last added token's. Raises InputError."""
        return max(self.embedding_rows, 0 if self.added is None else max(self.added.names) + 1)

    @property
    def appended_rows(self) -> range:
        """The rows that `convert` appended, which stay what `<unk>` is."""
        first = self.embedding_rows
        end = min(first + self._record.appended_rows(self.shape.vocabulary), self.shape.vocabulary)
        added = () if self.added is None else self.added.names
        return range(first, min([end, *(index for index in added if index >= first)]))

    @_Named
    def _record(self) -> ConversionRecord:
        """What the conversion wrote down; empty for a folder of another origin."""
        return self.opened.record

    @_Named
    def tokenizer(self) -> ExactTokenizer | None:
        """Fairseq's tokenization; None if the folder has no SentencePiece model."""
        kept = self.folder / "fairseq"
        if (kept / SENTENCEPIECE).is_file():
            return ExactTokenizer(self.fairseqs_dictionary, self._read_kept(SENTENCEPIECE), added=self.added)
        path = self.folder / SENTENCEPIECE
        return ExactTokenizer(self.fairseqs_dictionary, path, added=self.added) if path.is_file() else None

    def _read_kept(self, name: str) -> bytes:
        return read_kept(self.folder / "fairseq", name, record=self._record)

    def needed_tokenizer(self) -> ExactTokenizer:
        """Fairseq's tokenization. Raises InputError, which says what to put if if there is none, IntegrityError."""
        if self.tokenizer is not None:
            return self.tokenizer
        if (kind := self._dictionary_kind()) is not None:
            raise InputError(f"{self.name} can encode no text: {kind.told('its dict.txt')}")
        raise InputError(f"{self.name} has no SentencePiece model, so no text can be encoded: {self._way_on()}")

    def _way_on(self) -> str:
        if self.origin is not None:
            where = "into" if self.origin.suffix not in CHECKPOINTS else "next to"
            return f"put {SENTENCEPIECE} {where} {self.origin}"
        if self._record.is_there and SENTENCEPIECE not in self._record.source_files:
            return f"convert it again, with {SENTENCEPIECE} next to the checkpoint"
        return (
            f"copy fairseq/ (or {SENTENCEPIECE}) into it from the folder that `convert` wrote, since "
            "Transformers does not save them"
        )

    def _dictionary_kind(self) -> DictionaryKind | None:
        """What the dictionary is, if no SentencePiece model belongs to it."""
        if not (self.folder / "fairseq" / "dict.txt").is_file():
            return None
        kind = kind_of_dictionary(self.dictionary, bpe=self.options.get("bpe"))
        return None if kind is None or kind.has_sentencepiece else kind

    @_Named
    def labels(self) -> Dictionary | None:
        """The label dictionary, names from id 4 on; None if the classes have no names."""
        kept, names = self.kept_labels, self._names_of_classes
        if kept is not None and (self._are_named_so(kept) or self._record_is_of_the_weights):
            return kept
        is_named = bool(names) and not all(name.startswith("LABEL_") for name in names)
        return Dictionary.of((*SPECIAL_SYMBOLS, *names)) if is_named else None

    @_Named
    def kept_labels(self) -> Dictionary | None:
        """The label dictionary under fairseq/, which may be that of the model before training; None without one."""
        kept = self.folder / "fairseq"
        return Dictionary.parse(self._read_kept(LABELS), name=str(kept / LABELS)) if (kept / LABELS).is_file() else None

    @property
    def labels_disagree(self) -> bool:
        """Whether id2label in config.json names other classes than the label dictionary under fairseq/."""
        return self.kept_labels is not None and not self._are_named_so(self.kept_labels)

    @property
    def _names_of_classes(self) -> list[str]:
        """Names by class number, whatever order a file has them in. Raises InputError if a number is missing."""
        names = self.config.get("id2label") or {}
        if not isinstance(names, dict):
            raise InputError(f"config.json: id2label is a {type(names).__name__}, not an object of numbers and names")
        try:
            numbered = {int(number): str(name) for number, name in names.items()}
            return [numbered[number] for number in range(len(names))]
        except (KeyError, ValueError):
            raise InputError(f"config.json: id2label does not number its names 0 to {len(names) - 1}") from None

    def _are_named_so(self, labels: Dictionary) -> bool:
        names = self._names_of_classes
        return bool(names) and list(labels.symbols[len(SPECIAL_SYMBOLS) :][: len(names)]) == names

    @cached_property
    def _head_is_of_the_record(self) -> bool:
        """Whether the folder has the head that was converted, by its record, or in doubt by its weights."""
        if not self._record.is_there:
            return not self.labels_disagree
        if self._record.class_name not in (None, self.class_name):
            return False
        written = self._record.config
        is_named_so = written is None or written.get("id2label") == self.config.get("id2label")
        return (is_named_so and not self.labels_disagree) or self._record_is_of_the_weights

    @cached_property
    def _record_is_of_the_weights(self) -> bool:
        return holds_recorded_weights(self.opened)

    def heads(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights of the source's classification heads, by head and part. Raises IntegrityError."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        heads: dict[str, dict[str, torch.Tensor]] = {}
        try:
            stored = load_file(self.heads_file) if self.heads_file else {}
        except SafetensorError as error:
            raise IntegrityError(
                f"the conversion of {self.name} that is kept is damaged ({error}): delete {self.folder.parent}, and it "
                "is made again"
            ) from error
        for name, weight in stored.items():
            head, layer, part = name.rsplit(".", 2)
            heads.setdefault(head, {})[f"{layer}.{part}"] = weight
        return heads


def _dictionary_of_tokenizer(folder: Path, *, rows: int) -> Dictionary:
    """The dictionary that a tokenizer's files imply: tokenizer.json lists it, else XLM-R's rule gives it.

    Raises InputError if there is neither, or if there are more names than embedding `rows`.
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

    What is after a space in a name is the converter's mark that no text can spell it (`madeupword0000 `). Raises
    InputError.
    """
    content = json_object(path)
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    try:
        symbols = [str(piece).partition(" ")[0] or str(piece) for piece, _score in content["model"]["vocab"]]
        added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens", [])}
    except (KeyError, TypeError, ValueError) as error:
        what = "a BPE tokenizer, whose file lists" if kind == "BPE" else "not the tokenizer of an XLM-R: it lists"
        raise InputError(
            f"{path} is {what} no pieces with scores. Copy fairseq/ into this folder from the one that `convert` "
            "wrote: the dictionary is there."
        ) from error
    for index in sorted(added):
        if index == len(symbols) and added[index] == MASK:
            symbols.append(MASK)
    return symbols
