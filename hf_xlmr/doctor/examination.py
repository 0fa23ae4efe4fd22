"""The table of checks for the faults that published XLM-R folders have, each with its fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Flag, auto
from functools import partial, reduce
from operator import or_
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final, NamedTuple, TypeAlias

from hf_xlmr.doctor.folder_facts import TOKENIZER_CONFIG, FolderFacts, refusal_of
from hf_xlmr.doctor.other_loaders import ADAPTER, missing_of_adapter, missing_of_modules
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError, WeightsMismatch, told_plainly
from hf_xlmr.files.atomic_write import replace_keeping
from hf_xlmr.files.fsync import room_told
from hf_xlmr.files.json_edits import with_fields
from hf_xlmr.model.adapters import ENGLISH, are_languages
from hf_xlmr.model.families import FAMILIES, XMOD, Task
from hf_xlmr.model.folder_records import CONVERSION, FINETUNING
from hf_xlmr.model.model_shape import POSITION_OFFSET
from hf_xlmr.model.opened_folder import CARD, CONFIG
from hf_xlmr.model.plain_config import plain_config, reaching_fields
from hf_xlmr.model.provenance import changed_weights, other_network
from hf_xlmr.model.stored_weights import opened
from hf_xlmr.placement.placed_loading import STORED_DTYPES, check_weights, is_left_in_the_file
from hf_xlmr.tokenizer.added_tokens import AddedTokens
from hf_xlmr.tokenizer.dictionary import FILLER, MASK, PAD_INDEX, SPECIAL_SYMBOLS
from hf_xlmr.tokenizer.label_names import label_lines
from hf_xlmr.tokenizer.sentencepiece_model import check_models_of
from hf_xlmr.tokenizer.tokenizer_agreement import disagreement_of

__all__ = ["CHECKS", "Check", "Diagnosis", "Finding", "examine", "findings_of"]

Edits: TypeAlias = Mapping[str, Mapping[str, object]]
"""Fields to set, by file."""

BERT_LIKE: Final = "xlm-roberta"  # whose defaults RoBERTa has too
FAIRSEQ_EPS: Final = 1e-5  # torch.nn.LayerNorm's default, which fairseq never changes
BERT_EPS: Final = 1e-12
EXACT_GELU: Final = "gelu"
XLMR_NAMES: Final = 250002
XLMR_MASK: Final = 250001
PADDED_TO: Final = 8  # tables are padded to a multiple of so many rows for speed (resize_token_embeddings)
MOST_PADDING: Final = 128
LONGEST_ID: Final = 10  # digits
LARGEST_SHARD: Final = 10 * 10**9  # bytes; convert writes 5 GB, and save_pretrained without a size up to 50
SENTENCEPIECE: Final = "sentencepiece.bpe.model"
KEPT_SENTENCEPIECE: Final = f"fairseq/{SENTENCEPIECE}"
CLASS: Final = "tokenizer_class"
PLAIN_TOKENIZER: Final = "PreTrainedTokenizerFast"  # which reads all of tokenizer.json, as convert writes it
XLMR_TOKENIZER: Final = "XLMRobertaTokenizer"  # which makes one of a SentencePiece model
SHOWN: Final = 6
WITHOUT_POOLER: Final = "add_pooling_layer=False"
TIED_BIAS, OTHER_BIAS = "lm_head.bias", "lm_head.decoder.bias"
WITH_LM_HEAD: Final = ("ForMaskedLM", "ForCausalLM")


class Later(Flag):
    """Groups of checks that an earlier fault would fail too, with a message about the wrong cause."""

    configuration = auto()
    training = auto()
    ids = auto()
    vocabulary = auto()
    weights = auto()


NETWORK: Final = Later.configuration | Later.weights
ALL: Final = NETWORK | Later.ids
TOKENIZER: Final = Later.ids | Later.vocabulary


class Check(NamedTuple):
    """A fault that a folder can have."""

    name: str
    look: Callable[[FolderFacts], str | None]
    """Returns a sentence that says what is wrong, None if nothing is."""
    mend: str
    """What the user can do about the fault."""
    edits: Callable[[FolderFacts], Edits] | None = None
    """Returns what `fix` changes, if that is safe: fields of JSON files, never weights."""
    is_of_fairseq: bool = False
    """Whether it is a fault only if fairseq trained the model, and not if Transformers did."""
    is_mild: bool = False
    """Whether a model with this fault still loads and gives the right outputs."""
    hides: Later = Later(0)
    """The groups of checks that are skipped if this fault is found."""
    own: Later = Later(0)
    """The group of this check, empty if no other fault can hide it."""


_CHECKS: Final[list[Check]] = []
Look: TypeAlias = Callable[[FolderFacts], str | None]


def _severe(name: str, mend: str, **fields: Any) -> Callable[[Look], Look]:
    """Add a function to `CHECKS`, in the order of this file; a model with this fault does not load, or is wrong."""

    def added(look: Look) -> Look:
        _CHECKS.append(Check(name, look, mend, **fields))
        return look

    return added


_mild: Final = partial(_severe, is_mild=True)
"""The same for a fault with which a model still loads and gives the right outputs."""


@dataclass(frozen=True)
class Finding:
    """A fault that a folder has."""

    name: str
    told: str
    mend: str
    is_safe: bool
    is_mild: bool = False
    """Whether the model still loads and gives the right outputs, so that it may be published."""


@dataclass(frozen=True)
class Diagnosis:
    """The faults that a folder has, and those that were fixed; a folder without faults is healthy."""

    folder: Path
    findings: tuple[Finding, ...]
    """The faults that are still to be fixed."""
    mended: tuple[Finding, ...] = ()
    """The faults that were fixed."""
    kept: tuple[Path, ...] = ()
    """Copies of the changed files from before the fixes, next to these files."""
    notes: tuple[str, ...] = ()
    """Remarks on properties that are not faults."""

    @property
    def is_healthy(self) -> bool:
        """Whether no fault is left."""
        return not self.findings


def examine(folder: str | Path, *, fix: bool = False, from_fairseq: bool = False) -> Diagnosis:
    """Look for every fault of `CHECKS` in a Transformers folder; `fix` fixes what is safe, and never changes weights.

    A fault of fairseq's models only is fixed if `fairseq/` shows that fairseq trained this one, or if `from_fairseq`
    says so. A copy of each changed file stays next to it, with `.before-fix` after its name. Nothing is changed unless
    the folder loads with the changes and the faults are gone.

    Raises InputError for a folder that is not XLM-R and for files that cannot be replaced, IntegrityError for damaged
    files and for fixes that do not work.
    """
    folder = Path(folder)
    with told_plainly():
        facts = FolderFacts(folder, from_fairseq)
        found = _found(facts)
        safe = [each for each in found if each.edits]
        if not fix or not safe:
            return Diagnosis(folder, _findings(facts, found), notes=(*facts.notes, *_notes(facts)))
        contents = _edited(facts, safe)
        _raise_if_not_replaceable(folder, contents)
        _prove(facts, contents, found)
        kept = tuple(replace_keeping(folder / name, content) for name, content in contents.items())
        mended, facts = _findings(facts, safe), FolderFacts(folder, from_fairseq)
        return Diagnosis(folder, findings_of(facts), mended, kept, (*facts.notes, *_notes(facts)))


def findings_of(facts: FolderFacts) -> tuple[Finding, ...]:
    """The faults of an opened folder. Raises the errors of `examine`."""
    return _findings(facts, _found(facts))


TRAINED: Final = tuple(
    task.value for task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.QUESTION_ANSWERING)
)
UNRECORDED: Final = (
    "no record says what the model was trained from: if that is a converted folder, adopt adds the record, fairseq's "
    "dictionary and a card"
)


def _notes(facts: FolderFacts) -> Iterator[str]:
    """Yield remarks: on a model without a record, an activation that some servers approximate, and added tokens."""
    if not any(map(facts.has, (FINETUNING, CONVERSION))) and facts.class_name.endswith(TRAINED):
        yield UNRECORDED
    if facts.config.get("hidden_act", _silent(facts, "hidden_act")) == EXACT_GELU:
        yield (
            f"hidden_act is {EXACT_GELU}, which Transformers computes exactly and some servers by tanh "
            "(text-embeddings-inference): their vectors differ slightly"
        )
    with suppress(HfXlmrError):  # a check reports it
        added = AddedTokens.of(facts.path, rows=facts.rows or 0)
        if added is not None:
            yield (
                f"{len(added.names)} tokens were added to the tokenizer ({_listed([*added.names.values()])}): hf_xlmr "
                "gives the same ids as AutoTokenizer, and exports the names; fairseq's own encode treats them as text"
            )


class _Found(NamedTuple):
    """A fault, its message, and the safe edits that fix it."""

    check: Check
    message: str
    edits: Edits


def _found(facts: FolderFacts) -> list[_Found]:
    if facts.model_type != "roberta" and facts.model_type not in FAMILIES:
        raise InputError(f"{facts.path} has a model of the type {facts.model_type:.40}, which is not XLM-R")
    if facts.model_type == "roberta" and not facts.has_sentencepiece:
        raise InputError(f"{facts.path} has a RoBERTa with RoBERTa's own tokenizer, which is not XLM-R")
    found: list[_Found] = []
    for check in CHECKS:
        message = None if check.own & _hidden(found) else check.look(facts)
        if message is not None:
            found.append(_Found(check, message, _safe_edits(check, facts)))
    return found


def _hidden(found: Iterable[_Found]) -> Later:
    """The groups of checks that are skipped because of these faults."""
    return reduce(or_, (each.check.hides for each in found), Later(0))


def _safe_edits(check: Check, facts: FolderFacts) -> Edits:
    """The edits with which `fix` fixes a fault; it never changes the outputs of a model of unknown origin."""
    is_safe = check.edits is not None and (facts.is_from_fairseq or not check.is_of_fairseq)
    edits = check.edits(facts) if check.edits is not None and is_safe else {}
    return {} if CONFIG in edits and facts.class_names is None else edits


def _findings(facts: FolderFacts, found: list[_Found]) -> tuple[Finding, ...]:
    return tuple(_finding(facts, *each) for each in found)


def _finding(facts: FolderFacts, check: Check, message: str, edits: Edits) -> Finding:
    condition = "if fairseq trained it, " if check.is_of_fairseq and not facts.is_from_fairseq else ""
    return Finding(check.name, message, f"{condition}{check.mend}", bool(edits), check.is_mild)


# ---- fixes -----------------------------------------------------------------------------------------------------------


def _edited(facts: FolderFacts, safe: list[_Found]) -> dict[str, bytes]:
    """The new content of each file that the fixes change."""
    fields: dict[str, dict[str, object]] = {}
    for _check, _message, edits in safe:
        for name, changes in edits.items():
            fields.setdefault(name, {}).update(changes)
    return _with_edits(facts, fields)


def _with_edits(facts: FolderFacts, fields: Edits) -> dict[str, bytes]:
    return {
        name: with_fields((facts.path / name).read_bytes().decode("utf-8"), changes).encode("utf-8")
        for name, changes in fields.items()
    }


def _raise_if_not_replaceable(folder: Path, names: Iterable[str]) -> None:
    """Raise InputError for a file that others may use under another name, and for one of another user or group."""
    for path in (folder / name for name in names):
        status = path.stat()
        if path.is_symlink() or status.st_nlink > 1:  # as in the Hub's cache, whose files several models share
            kind = "is a link to a file" if path.is_symlink() else "has another name (a hard link)"
            raise InputError(f"{path} {kind} that others may use: fix a copy of the folder (cp -rL makes one)")
        if os.geteuid() and (status.st_uid != os.geteuid() or status.st_gid not in {os.getegid(), *os.getgroups()}):
            raise InputError(
                f"{path} belongs to another user or group, and a new file would not: run the fix as that user"
            )


def _prove(facts: FolderFacts, contents: Mapping[str, bytes], found: list[_Found]) -> None:
    """Check the folder with the new `contents`. Raises IntegrityError if it does not load, or has other faults."""
    with _draft_of(facts.path, contents) as draft:
        try:
            after = FolderFacts(draft, facts.is_from_fairseq)
            left = _found(after)
            if CONFIG in contents:
                _raise_if_not_loaded(after, left)
        except HfXlmrError as error:
            raise IntegrityError(_unchanged(facts, str(error).replace(str(draft), str(facts.path)))) from error
        if CONFIG in contents and not after.is_pickled and (sizes := _wrong_sizes(draft)):
            raise IntegrityError(_unchanged(facts, f"the weights have other sizes than the configuration: {sizes}"))
    known, hidden = [each.check for each in found if not each.edits], _hidden(found)
    for each in left:
        if each.check not in known and not each.check.own & hidden:
            raise IntegrityError(_unchanged(facts, f"{each.check.name} would fail after it: {each.message}"))


def _raise_if_not_loaded(facts: FolderFacts, found: list[_Found]) -> None:
    """Raise IntegrityError if no network can be built from the configuration, even if that check was skipped."""
    plain_config(facts.path, read=facts.config)
    if not _hidden(found) & Later.configuration and (message := _look_at_config(facts)) is not None:
        raise IntegrityError(message)


@contextmanager
def _draft_of(folder: Path, contents: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder of links to the files of `folder`, with new `contents` for some of them."""
    with TemporaryDirectory() as name, room_told(Path(gettempdir())):
        draft = Path(name)
        for path in folder.resolve().iterdir():
            if path.name in contents:
                (draft / path.name).write_bytes(contents[path.name])
            else:
                (draft / path.name).symlink_to(path)
        yield draft


def _wrong_sizes(folder: Path) -> str:
    """A list, in words, of the weights whose sizes differ from the configuration."""
    try:
        check_weights(folder)
    except WeightsMismatch as error:
        return ", ".join(error.wrong_shape)
    except HfXlmrError:
        return ""  # the check of the weights reports it
    return ""


def _unchanged(facts: FolderFacts, reason: str) -> str:
    return f"{facts.path} was not changed, since the fix does not work: {reason}"


# ---- the configuration -----------------------------------------------------------------------------------------------


@_severe("architectures", 'set it to a list of one class name, such as ["XLMRobertaForMaskedLM"]', hides=ALL)
def _look_at_classes(facts: FolderFacts) -> str | None:
    if facts.class_names is not None:
        return None
    return f"architectures in config.json is {facts.config['architectures']!r:.60}, which is not a list of names"


@_severe(
    "code of others",
    "remove these fields; to use such an attention, pass attn_implementation= when loading",
    hides=NETWORK,
)
def _look_at_code(facts: FolderFacts) -> str | None:
    files = {CONFIG: facts.config, TOKENIZER_CONFIG: facts.tokenizer_config or {}}
    fields = [
        f"{field} in {name} {does}"
        for name, content in files.items()
        for field, does in reaching_fields(content).items()
    ]
    return "; ".join(fields) or None


@_severe(
    "model type",
    "set model_type to xlm-roberta and the class to XLMRoberta's in config.json",
    edits=lambda facts: _set_type(facts),
    hides=ALL,
)
def _look_at_type(facts: FolderFacts) -> str | None:
    if facts.model_type != "roberta":
        return None
    if named := str((facts.tokenizer_config or {}).get("tokenizer_class", "")):
        return f"config.json says RoBERTa, but the tokenizer is XLM-R's: ids are right only by the class {named:.40}"
    return "config.json says RoBERTa, but the tokenizer is XLM-R's: Transformers uses RoBERTa's, and ids are wrong"


def _set_type(facts: FolderFacts) -> Edits:
    classes = [f"XLM{name}" if name.startswith("Roberta") else name for name in facts.class_names or ()]
    return {CONFIG: {"model_type": "xlm-roberta", **({"architectures": classes} if classes else {})}}


@_severe(
    "layer_norm_eps",
    f"set layer_norm_eps to {FAIRSEQ_EPS} in config.json",
    edits=lambda facts: {CONFIG: {"layer_norm_eps": FAIRSEQ_EPS}},
    is_of_fairseq=True,
)
def _look_at_eps(facts: FolderFacts) -> str | None:
    eps = facts.config.get("layer_norm_eps", _silent(facts, "layer_norm_eps"))
    if eps != BERT_EPS:
        return None
    said = "has" if "layer_norm_eps" in facts.config else "lacks the field, which means"
    return f"config.json {said} layer_norm_eps {BERT_EPS}, BERT's; fairseq trains XLM-R with {FAIRSEQ_EPS}"


def _silent(facts: FolderFacts, name: str) -> object:
    """The default that the configuration class uses if config.json lacks a field."""
    return FAMILIES.get(facts.model_type, FAMILIES[BERT_LIKE]).defaults[name]


@_severe(
    "pad_token_id",
    f"set pad_token_id to {PAD_INDEX} in config.json",
    edits=lambda facts: {CONFIG: {"pad_token_id": PAD_INDEX}},
    is_of_fairseq=True,
    hides=ALL,
)
def _look_at_padding(facts: FolderFacts) -> str | None:
    padding = facts.config.get("pad_token_id", PAD_INDEX)
    if padding == PAD_INDEX:
        return None
    return f"config.json has pad_token_id {padding!r}; positions are counted from it, and XLM-R's is {PAD_INDEX}"


@_mild(
    "missing pad_token_id",
    f"set pad_token_id to {PAD_INDEX} in config.json",
    edits=lambda facts: {CONFIG: {"pad_token_id": PAD_INDEX}},
)
def _look_at_silent_padding(facts: FolderFacts) -> str | None:
    if "pad_token_id" in facts.config:
        return None
    return (
        f"config.json lacks pad_token_id: Transformers takes {PAD_INDEX} for it, but servers that count positions from "
        "the field (text-embeddings-inference) get other vectors"
    )


@_mild(
    "bos_token_id, eos_token_id",
    "set bos_token_id and eos_token_id in config.json to those of the conversion",
    edits=lambda facts: {CONFIG: _ids_of_ends(facts)},
)
def _look_at_ends(facts: FolderFacts) -> str | None:
    right = _ids_of_ends(facts)
    wrong = [f"{name} {facts.config[name]!r:.40}" for name, index in right.items() if facts.config[name] != index]
    if not wrong:
        return None
    return f"config.json has {', '.join(wrong)}; texts begin and end with {', '.join(map(str, right.values()))}"


def _ids_of_ends(facts: FolderFacts) -> dict[str, object]:
    """The ids that the conversion wrote for the ends of a text, for those fields that config.json has now."""
    recorded = facts.record.config or {}
    names = ("bos_token_id", "eos_token_id")
    return {name: recorded[name] for name in names if name in recorded and name in facts.config}


@_mild(
    "SentencePiece model",
    f"copy {KEPT_SENTENCEPIECE} over {SENTENCEPIECE}",
)
def _look_at_sentencepiece(facts: FolderFacts) -> str | None:
    own, kept = (facts.path / name for name in (SENTENCEPIECE, KEPT_SENTENCEPIECE))
    if not (own.is_file() and kept.is_file()) or own.read_bytes() == kept.read_bytes():
        return None
    if refusal_of(lambda: check_models_of(facts.path)):  # another check reports a damaged one
        return None
    return f"{SENTENCEPIECE} is another than {KEPT_SENTENCEPIECE}: programs that read it get other ids"


@_mild(
    "default_language",
    f"set default_language to {ENGLISH} in config.json (set_default_language does)",
    edits=lambda facts: {CONFIG: {"default_language": ENGLISH}},
    is_of_fairseq=True,
)
def _look_at_default_language(facts: FolderFacts) -> str | None:
    languages = facts.config.get("languages")
    if facts.model_type != XMOD.model_type or not are_languages(languages) or ENGLISH not in languages:  # type: ignore[operator]
        return None
    if facts.config.get("default_language") is not None:
        return None
    return f"default_language is not set, so Transformers computes nothing without lang_ids; fairseq takes {ENGLISH}"


@_severe(
    "languages",
    "set languages in config.json to the order of the conversion",
    edits=lambda facts: {CONFIG: {"languages": _recorded_languages(facts)}},
    is_of_fairseq=True,
)
def _look_at_order_of_languages(facts: FolderFacts) -> str | None:
    """Languages that were added or left out are another model; reordered ones only have other numbers."""
    languages, recorded = facts.config.get("languages"), _recorded_languages(facts)
    if not isinstance(languages, list) or not isinstance(recorded, list) or languages == recorded:
        return None
    if not (are_languages(languages) and are_languages(recorded) and set(languages) == set(recorded)):
        return None
    moved = [name for name, before in zip(languages, recorded, strict=True) if name != before]
    return f"languages has another order than when it was converted, so lang_ids run other adapters ({_listed(moved)})"


def _recorded_languages(facts: FolderFacts) -> object:
    return (facts.record.config or {}).get("languages")


@_severe(
    "positions",
    "set it in config.json to the number of rows of the weights, 514 for the releases",
    edits=lambda facts: {CONFIG: {"max_position_embeddings": facts.position_rows}},
    hides=ALL,
)
def _look_at_positions(facts: FolderFacts) -> str | None:
    said = facts.config.get("max_position_embeddings", _silent(facts, "max_position_embeddings"))
    rows = facts.position_rows
    if rows is None or said == rows:
        return None
    return f"max_position_embeddings is {said!r}, but the weights have {rows} rows (two more than the longest text)"


@_severe(
    "vocab_size",
    "set it in config.json to the number of rows of the embedding",
    edits=lambda facts: {CONFIG: {"vocab_size": facts.rows}},
    hides=ALL,
)
def _look_at_rows(facts: FolderFacts) -> str | None:
    said, rows = facts.config.get("vocab_size"), facts.rows
    if rows is None or said == rows:
        return None
    return f"vocab_size is {'missing' if said is None else repr(said)}, but the embedding has {rows} rows"


@_mild(
    "dtype",
    "set it in config.json to the dtype that the weights are stored in",
    edits=lambda facts: {CONFIG: {_dtype_field(facts): _only_dtype(facts)}},
)
def _look_at_dtype(facts: FolderFacts) -> str | None:
    said, stored = facts.config.get(_dtype_field(facts)), _only_dtype(facts)
    if stored is None or said is None or said == stored:
        return None
    return f"config.json says {said}, to which Transformers casts when it loads, but the weights are {stored}"


def _dtype_field(facts: FolderFacts) -> str:
    return "dtype" if "dtype" in facts.config else "torch_dtype"


def _only_dtype(facts: FolderFacts) -> str | None:
    """The dtype that all weights are stored in; None if they differ, since nobody knows which is intended."""
    stored = {tensor.dtype for name, tensor in facts.own.items() if not is_left_in_the_file(name)}
    return stored.pop() if len(stored) == 1 and stored <= {*STORED_DTYPES.values()} else None


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


@_mild(
    "model_max_length",
    "set it in tokenizer_config.json to the length of the longest text, 512 for the releases",
    edits=lambda facts: {TOKENIZER_CONFIG: {"model_max_length": _longest(facts)}},
)
def _look_at_length(facts: FolderFacts) -> str | None:
    longest, said = _longest(facts), (facts.tokenizer_config or {}).get("model_max_length")
    if facts.tokenizer_config is None or longest is None:
        return None
    if isinstance(said, (int, float)) and 1 <= said <= longest and said is not True:
        return None
    shown = "unset" if said is None else _shortly(said)
    return f"model_max_length is {shown}: truncation=True does nothing, and a text of over {longest} tokens fails"


def _shortly(value: object) -> str:
    try:
        return f"{value:g}" if isinstance(value, (int, float)) else repr(value)[:40]
    except OverflowError:
        return "more than any number of tokens"


def _longest(facts: FolderFacts) -> int | None:
    """The number of tokens of the longest text, by the weights, else by the configuration."""
    rows = facts.position_rows or facts.config.get("max_position_embeddings")
    return rows - POSITION_OFFSET if isinstance(rows, int) and rows > POSITION_OFFSET else None


@_severe("tokenizer", "copy the tokenizer's files from the model that this one was trained from", hides=TOKENIZER)
def _look_at_tokenizer(facts: FolderFacts) -> str | None:
    if facts.tokenizer is not None:
        return None
    if facts.is_converted and facts.has_sentencepiece:
        return "tokenizer.json is missing, without which Transformers cannot load its tokenizer"
    if facts.has_sentencepiece or facts.is_converted:  # Transformers makes one, or the checkpoint came without a model
        return None
    return "there is no tokenizer, and without one the model cannot read texts"


_severe(
    "sentencepiece",
    "copy the tokenizer's files from the model that this one was trained from, or convert the model again",
    hides=TOKENIZER,
)(lambda facts: refusal_of(lambda: check_models_of(facts.path)))


@_mild(
    TOKENIZER_CONFIG,
    "copy it from the model that tokenizer.json is from, or convert the model again (save_pretrained would write "
    "another tokenizer.json, with other ids for some texts)",
    hides=Later.ids,
)
def _look_at_settings(facts: FolderFacts) -> str | None:
    if facts.tokenizer is None or facts.tokenizer_config is not None:
        return None
    return f"{TOKENIZER_CONFIG} is missing: texts are never truncated, and those of over {_longest(facts)} tokens fail"


@_severe("tokenizer size", "use the tokenizer with which the model was trained", hides=TOKENIZER)
def _look_at_names(facts: FolderFacts) -> str | None:
    names, rows = facts.names, facts.rows
    if not names or rows is None or names == rows:
        return None
    if names > rows:
        return f"the tokenizer gives {names} ids, but the embedding has {rows} rows: the last ids make the model fail"
    if facts.model_type == "xlm-roberta-xl" and names == XLMR_NAMES:  # its releases have 878 rows that nothing uses
        return None
    if rows % PADDED_TO == 0 and rows - names < MOST_PADDING:
        return None
    return f"the tokenizer gives {names} ids, but the embedding has {rows} rows: it is another model's, or ids are lost"


@_severe("<mask>", "use the tokenizer with which the model was trained, or convert the model again", hides=TOKENIZER)
def _look_at_mask(facts: FolderFacts) -> str | None:
    if not facts.ids:
        return None
    mask = facts.ids.get(MASK)
    expected, why = _expected_mask(facts)
    if mask is None:
        has_none = facts.fairseqs_dictionary is not None and facts.fairseqs_dictionary.mask_index is None
        return None if has_none else f"tokenizer.json has no {MASK}"
    if expected is not None and mask != expected:
        return f"{MASK} has the id {mask} in the tokenizer, but {expected} {why}"
    return None


def _expected_mask(facts: FolderFacts) -> tuple[int | None, str]:
    """The id that `<mask>` must have (None if unknown), and which file or model says so."""
    if facts.fairseqs_dictionary is not None and facts.fairseqs_dictionary.mask_index is not None:
        return facts.fairseqs_dictionary.mask_index, "in fairseq/dict.txt"
    decoder = (facts.tokenizer_config or {}).get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        is_id = number.isdecimal() and number.isascii() and len(number) <= LONGEST_ID
        if is_id and isinstance(token, dict) and token.get("content") == MASK:
            return int(number), f"in {TOKENIZER_CONFIG}"
    return (XLMR_MASK, "in XLM-R") if facts.names == XLMR_NAMES else (None, "")


@_severe(
    "vocabulary",
    "copy the tokenizer's files and fairseq/ from the model that this one was trained from, or convert it again",
    hides=Later.ids,
    own=Later.vocabulary,
)
def _look_at_vocabulary(facts: FolderFacts) -> str | None:
    try:
        facts.raise_if_ids_differ()
    except InputError as error:
        return str(error)
    return None


# ---- the weights -----------------------------------------------------------------------------------------------------


@_severe("pickle", "load the model if you trust it, and save it with save_pretrained as safetensors", hides=NETWORK)
def _look_at_pickles(facts: FolderFacts) -> str | None:
    return "the weights are only in a pickle, which can run any code when it is loaded" if facts.is_pickled else None


@_mild("pooler", f"write in README.md that users should pass {WITHOUT_POOLER}")
def _look_at_pooler(facts: FolderFacts) -> str | None:
    is_encoder = facts.class_name.endswith("Model")
    if not is_encoder or not facts.weights or any(name.startswith("pooler.") for name in facts.own):
        return None
    if facts.has(CARD) and WITHOUT_POOLER in facts.read(CARD).decode("utf-8", errors="replace"):
        return None
    return f"{facts.class_name} expects a pooler that the weights lack: Transformers fills it with random numbers"


@_severe("tied bias", f"store the head's bias as {TIED_BIAS}, or convert the model again", hides=NETWORK)
def _look_at_tied_bias(facts: FolderFacts) -> str | None:
    if not facts.class_name.endswith(WITH_LM_HEAD) or not facts.weights:
        return None
    if TIED_BIAS not in facts.weights:
        if OTHER_BIAS in facts.weights:
            return f"the weights have {OTHER_BIAS}, not {TIED_BIAS}: Transformers 5 ties them, other readers find none"
        return f"the weights lack {TIED_BIAS}: Transformers fills it with zeros"
    if OTHER_BIAS in facts.weights and facts.config.get("tie_word_embeddings", True) and not _are_equal(facts):
        return f"{TIED_BIAS} and {OTHER_BIAS} are one weight, but have different values in the files"
    return None


def _are_equal(facts: FolderFacts) -> bool:
    import torch

    values = []
    for name in (TIED_BIAS, OTHER_BIAS):
        with opened(facts.weights[name].file) as stored:
            values.append(stored.get_tensor(name))
    return torch.equal(*values)


# ---- what else is in the folder --------------------------------------------------------------------------------------


_severe("adapter", "remove adapter_config.json, or put the adapter's weights next to it", hides=NETWORK)(
    lambda facts: missing_of_adapter(facts.path)
)


@_mild(
    "adapter beside a model",
    "merge the adapter into the weights (merge_and_unload, then save_pretrained), or publish it by itself",
)
def _look_at_whole_adapter(facts: FolderFacts) -> str | None:
    if not (facts.path / ADAPTER).is_file() or missing_of_adapter(facts.path) is not None:
        return None
    return f"{ADAPTER} is next to a whole model: Transformers adds the adapter only if peft is installed"


_severe("modules", "write the folder again with `hf-xlmr to-sentence-transformers`, or copy what is missing")(
    lambda facts: missing_of_modules(facts.path)
)


@_mild("shard size", 'save the model again with save_pretrained(..., max_shard_size="5GB")')
def _look_at_shards(facts: FolderFacts) -> str | None:
    sizes = {tensor.file: tensor.file.stat().st_size for tensor in facts.weights.values()}
    large = [f"{file.name} has {size / 10**9:.0f} GB" for file, size in sizes.items() if size > LARGEST_SHARD]
    return f"{', '.join(large)}: an interrupted download starts again from the beginning" if large else None


@_mild(
    "labels",
    "put the names into id2label in the order of training; delete fairseq/label/ if it is from another training",
)
def _look_at_labels(facts: FolderFacts) -> str | None:
    if not facts.class_name.endswith("ForSequenceClassification"):
        return None
    files = facts.files
    if not files.labels_disagree or files.kept_labels is None:
        return _unwritable_labels(facts) if files.kept_labels is None else None
    kept = [name for name in files.kept_labels.symbols[len(SPECIAL_SYMBOLS) :] if not name.startswith(FILLER)]
    said = list((facts.config.get("id2label") or {}).values())
    return f"fairseq/label/dict.txt names the classes {_listed(kept)}, but id2label of config.json {_listed(said)}"


def _unwritable_labels(facts: FolderFacts) -> str | None:
    """Why fairseq's label dictionary, which the folder lacks, cannot be written from id2label, None if it can."""
    names = facts.config.get("id2label")
    if not isinstance(names, dict) or len(names) < 2 or facts.config.get("problem_type") == "regression":
        return None
    try:
        label_lines([str(names[str(number)]) for number in range(len(names))], place=CONFIG)
    except KeyError:
        return f"id2label in {CONFIG} does not number its names 0 to {len(names) - 1}"
    except InputError as error:
        return f"{error} (`hf-xlmr export` refuses the model until then)"
    return None


def _listed(names: Sequence[object]) -> str:
    return ", ".join(f"{name!s:.40}" for name in names[:SHOWN]) + ", ..." * (len(names) > SHOWN) or "none"


@_mild(
    "record",
    "delete fairseq/conversion.json if the model was trained since; if not, copy the weights again",
)
def _look_at_record(facts: FolderFacts) -> str | None:
    changed = changed_weights(facts)
    if not changed:
        return None
    return f"fairseq/conversion.json does not describe the weights of {_listed(changed)}: push will refuse the folder"


# ---- the last checks, since an earlier fault may be the cause --------------------------------------------------------


@_severe(
    "configuration",
    "correct the fields that are named, or convert again",
    hides=Later.training | Later.ids | Later.weights,
    own=Later.configuration,
)
def _look_at_config(facts: FolderFacts) -> str | None:
    """Build the network as loading does, if the weights have its sizes; another check reports wrong sizes."""
    from hf_xlmr.hub_interface.network import check_loading

    if facts.model_type not in FAMILIES:
        return None
    return (
        refusal_of(lambda: facts.files.shape)
        or refusal_of(lambda: plain_config(facts.path, read=facts.config))
        or (None if facts.fault_of_weights else refusal_of(lambda: check_loading(facts.files)))
    )


@_severe(
    "training",
    "correct the fields that are named, or convert again; if the change is intended, delete fairseq/",
    own=Later.training,
)
def _look_at_training(facts: FolderFacts) -> str | None:
    others = other_network(facts, facts.config, without=("layer_norm_eps",) if _look_at_eps(facts) else ())
    return f"config.json does not describe the network that fairseq trained: {'; '.join(others)}" if others else None


@_severe(
    "tokenizer ids",
    "set tokenizer_class in tokenizer_config.json to a class that gives fairseq's ids, or copy the tokenizer's files "
    "from the model that this one was trained from",
    edits=lambda facts: _set_tokenizer_class(facts),
    own=Later.ids,
)
def _look_at_ids(facts: FolderFacts) -> str | None:
    if facts.tokenizer is None and not (facts.path / SENTENCEPIECE).is_file():
        return None
    files = facts.files
    if refusal_of(lambda: files.shape):  # the check of the configuration reports it, once no fault hides it
        return None
    return refusal_of(lambda: files.tokenizer) or disagreement_of(facts.path, files.tokenizer)


def _set_tokenizer_class(facts: FolderFacts) -> Edits:
    """The edit of tokenizer_class that makes the ids right; empty if none does."""
    named = PLAIN_TOKENIZER if facts.tokenizer is not None else XLMR_TOKENIZER
    files = {CONFIG: facts.config, TOKENIZER_CONFIG: facts.tokenizer_config or {}}
    edits = {name: {CLASS: named} for name, content in files.items() if CLASS in content or name == TOKENIZER_CONFIG}
    if facts.tokenizer_config is None:
        return {}
    with _draft_of(facts.path, _with_edits(facts, edits)) as draft:
        return edits if _look_at_ids(FolderFacts(draft, facts.is_from_fairseq)) is None else {}


_severe("weights", "copy the folder again, or convert or save the model again", own=Later.weights)(
    lambda facts: facts.fault_of_weights
)


CHECKS: Final = tuple(_CHECKS)
