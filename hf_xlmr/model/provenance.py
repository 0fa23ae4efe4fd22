"""What a conversion recorded of the files that it wrote, and whether a folder still holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Final

from hf_xlmr.errors import IntegrityError
from hf_xlmr.files.json_files import json_object
from hf_xlmr.model.families import family_of
from hf_xlmr.model.folder_records import ADOPTED, CONVERSION, FINETUNING
from hf_xlmr.model.opened_folder import CONFIG, OpenedFolder

KEPT: Final = "fairseq/"
OF_CLASSES: Final = "fairseq/label/"
DECIDING: Final = (
    *("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps", "max_position_embeddings", "type_vocab_size", "vocab_size"),
    *("tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "is_decoder", "add_cross_attention"),
    *("position_embedding_type", "pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter"),
    *("adapter_reduction_factor", "languages", "default_language", "quantization_config", "auto_map"),
)
"""What answers rest on in config.json; names of classes, dropout and the like are the user's to change."""
OF_ANY_TRAINING: Final[Mapping[str, Mapping[str, str] | None]] = {
    "hidden_act": {"gelu_accurate": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"},
    "num_attention_heads": {},
    "layer_norm_eps": None,
    "position_embedding_type": None,
    "pre_norm": None,
    "adapter_reuse_layer_norm": None,
    "ln_before_adapter": None,
}
"""Fields that no training changes and that no size of a weight shows, with fairseq's names of their values."""
OPTIONS: Final = "fairseq/options.json"
OF_OPTIONS: Final = {
    "hidden_act": "activation_fn",
    "num_attention_heads": "encoder_attention_heads",
    "pre_norm": "encoder_normalize_before",
    "adapter_reuse_layer_norm": "adapter_reuse_layer_norm",
    "ln_before_adapter": "ln_before_adapter",
}
SILENT: Final = (None, False, "absolute")  # values that mean what an absent field does
OTHERWISE: Final = (
    "copy it again, or convert the checkpoint again; if the change is meant, delete fairseq/conversion.json, which "
    "describes others, and say so in README.md"
)
SHOWN: Final = 3


class Standing(str, Enum):
    """What is known of the weights of a folder."""

    verified = "verified when converted, and unchanged since"
    unverified = "converted without the proof"
    finetuned = "fine-tuned"
    unrecorded = "no record of a conversion"


def standing_of(folder: OpenedFolder) -> Standing:
    """What the folder's records say of its weights, which are not read for it.

    Raises IntegrityError, InputError for a record of a newer hf_xlmr, OSError.
    """
    if folder.has(FINETUNING):
        _ = folder.training  # one that cannot be read is not published
        return Standing.finetuned
    if not folder.record.is_there:
        return Standing.unrecorded
    return Standing.verified if folder.record.is_verified else Standing.unverified


def held_to_record(folder: OpenedFolder, hashes: Mapping[str, str], *, with_config: bool = True) -> tuple[str, ...]:
    """The names among `hashes` (SHA-256 by name) of files that are as the conversion of the folder recorded them.

    Of config.json the fields that answers rest on are compared, unless `with_config` is False; of a fine-tuned folder
    what it keeps for fairseq.
    Raises IntegrityError if a file is lost or another, OSError.
    """
    standing, record = standing_of(folder), folder.record
    if not record.is_there:
        return ()
    recorded = record.written
    if standing is Standing.verified:
        _raise_if_other_weights(folder.path, hashes, record.weights)
    _raise_if_trained_on(folder, hashes)
    if standing is Standing.finetuned:
        recorded = {
            name: known for name, known in recorded.items() if name.startswith(KEPT) and not name.startswith(OF_CLASSES)
        }
    _raise_if_other_files(folder.path, hashes, recorded)
    held = [name for name in hashes if name in recorded or (standing is Standing.verified and _is_shard(name))]
    if with_config and standing is not Standing.finetuned and record.config is not None:
        if told := list(deciding_differences(folder.config, record.config)):
            shown = "; ".join(told[:SHOWN])
            raise IntegrityError(f"{folder.path / CONFIG} is not what the conversion wrote ({shown}): {OTHERWISE}")
        held.append(CONFIG)
    return tuple(held)


def holds_recorded_weights(folder: OpenedFolder) -> bool:
    """Whether the weights are known to be those that the conversion of the folder verified; they are read for it.

    Raises IntegrityError, InputError, OSError.
    """
    return standing_of(folder) is Standing.verified and bool(folder.record.weights) and not changed_weights(folder)


def changed_weights(folder: OpenedFolder) -> tuple[str, ...]:
    """The files of weights that are not as the conversion verified them; none if it did not, or after `finetune`.

    They are read for it. Raises IntegrityError, InputError, OSError.
    """
    if standing_of(folder) is not Standing.verified:
        return ()
    recorded = folder.record.weights
    held = {path.name for path in folder.path.glob("model*.safetensors")}
    if other := tuple(sorted(held ^ recorded.keys())):
        return other
    return tuple(name for name in sorted(held) if folder.sha256(name) != recorded[name])


def other_network(
    folder: OpenedFolder, config: Mapping[str, object], *, without: Collection[str] = ()
) -> tuple[str, ...]:
    """The fields of `config` by which the network computes otherwise than the one that fairseq trained, in words.

    Those in `without` are not compared. A field that `config` lacks has the default of its class.

    It is held against the record of the conversion, else against fairseq's options. Raises IntegrityError, InputError.
    """
    recorded, source = folder.record.config, CONVERSION
    if recorded is None:
        recorded, source = _of_options(folder.path), OPTIONS
    return tuple(
        f"{name} is {_said(config, name)}, and {recorded[name]!r:.60} by {source}"
        for name in OF_ANY_TRAINING
        if name in recorded and name not in without and _meant(config, name) not in (None, recorded[name])
    )


def _of_options(folder: Path) -> dict[str, object]:
    """The options of fairseq's training about the network, by the names of config.json."""
    path = folder / OPTIONS
    options = json_object(path, has_paths=True) if path.is_file() else {}
    told = {name: options[theirs] for name, theirs in OF_OPTIONS.items() if options.get(theirs) is not None}
    return {name: (OF_ANY_TRAINING[name] or {}).get(str(value), value) for name, value in told.items()}


def _raise_if_other_weights(folder: Path, hashes: Mapping[str, str], recorded: Mapping[str, object]) -> None:
    held = {name: known for name, known in hashes.items() if _is_shard(name)}
    if changed := sorted(name for name in held.keys() | recorded.keys() if held.get(name) != recorded.get(name)):
        told = ", ".join(map(str, changed[:SHOWN]))
        raise IntegrityError(f"{folder} holds other weights than those that were verified ({told}): {OTHERWISE}")


def _raise_if_trained_on(folder: OpenedFolder, hashes: Mapping[str, str]) -> None:
    """Raise IntegrityError if the weights are others than those that `adopt` recorded."""
    told = folder.training.get(ADOPTED)
    recorded = told.get("weights_sha256") if isinstance(told, dict) else None
    held = {name: known for name, known in hashes.items() if _is_shard(name)}
    if isinstance(recorded, dict) and recorded != held:
        raise IntegrityError(f"{folder.path} holds other weights than those that adopt recorded: adopt it once more")


def _is_shard(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name


def _raise_if_other_files(folder: Path, hashes: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    if lost := [name for name in recorded if name not in hashes]:
        raise IntegrityError(f"{folder} lacks {', '.join(lost[:SHOWN])}, which the conversion wrote: {OTHERWISE}")
    if changed := [name for name, known in recorded.items() if hashes[name] != known]:
        told = ", ".join(changed[:SHOWN])
        raise IntegrityError(f"{folder} holds other files than the conversion wrote ({told}): {OTHERWISE}")


def deciding_differences(
    given: Mapping[str, object], recorded: Mapping[str, object], *, without: Collection[str] = ()
) -> Iterator[str]:
    """The fields of `DECIDING`, but for those in `without`, that `given` has otherwise than `recorded`, in words.

    A field that either lacks has the default of its class.
    """
    for name in DECIDING:
        now, then = _meant(given, name), _meant(recorded, name)
        if name not in without and now != then and not (now in SILENT and then in SILENT):
            yield f"{name} is {_said(given, name)}, and was {then!r:.60}"


def _meant(config: Mapping[str, object], name: str) -> object:
    """What Transformers takes a field for: its value, or the default of the class if there is one."""
    family = family_of(config)
    return config.get(name, None if family is None else family.defaults.get(name))


def _said(config: Mapping[str, object], name: str) -> str:
    return f"{_meant(config, name)!r:.60}{'' if name in config else ' (the file lacks it)'}"
