"""`export`: the whole way back from a Transformers folder to a checkpoint that fairseq loads, each step a verb."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hf_xlmr.conversion.checkpoint.model_folder import ModelFolder, open_model_folder, read_json
from hf_xlmr.conversion.checkpoint.weights import main_dtype
from hf_xlmr.conversion.mapping.architecture import Architecture
from hf_xlmr.conversion.mapping.export_plan import ReversePlan, network_of, plan_export
from hf_xlmr.conversion.output.export_files import KEPT, Companions, companions_of
from hf_xlmr.conversion.output.torch_writer import write_checkpoint
from hf_xlmr.errors import InputError, told_plainly
from hf_xlmr.files.json_files import JsonObject
from hf_xlmr.files.staging import sizes_in, staged_folder
from hf_xlmr.model.families import POST_NORM, PRE_NORM, Task
from hf_xlmr.model.folder_records import ConversionRecord
from hf_xlmr.progress import SILENT, Progress

__all__ = ["ExportReport", "export", "network_of_folder"]

CHECKPOINT: Final = "model.pt"
OPTIONS: Final = "options.json"  # under fairseq/: what convert kept of those of the training
SPARE_BYTES: Final = 64 << 20  # dictionary, SentencePiece model and labels
DEFAULT_HEAD: Final = "sentence_classification_head"  # fairseq/criterions/sentence_prediction.py
HEAD_OPTIONS: Final = {
    Task.SEQUENCE_CLASSIFICATION: "classification_head_name",
    Task.MULTIPLE_CHOICE: "ranking_head_name",
}
TASKS: Final = {  # fairseq's tasks, each with the criterion of the same name
    Task.ENCODER: "masked_lm",
    Task.MASKED_LM: "masked_lm",
    Task.SEQUENCE_CLASSIFICATION: "sentence_prediction",
    Task.MULTIPLE_CHOICE: "sentence_ranking",
}
XMOD_TASKS: Final = {Task.SEQUENCE_CLASSIFICATION: "sentence_prediction_adapters"}  # where X-MOD has its own
LARGE: Final = (24, 1024, 4096, 16)  # layers, width, inner width and heads of roberta_large


@dataclass(frozen=True)
class ExportReport:
    """What an export did."""

    output: Path
    source: Path
    class_name: str
    arch: str
    task: str
    dtype: str
    parameters: int
    loaded_by: tuple[str, ...]
    """The releases of fairseq that load the checkpoint."""
    files: Mapping[str, int]
    """Names and bytes of what was written."""
    mapped: Mapping[str, str]
    """Transformers' names to fairseq's."""
    dropped: Mapping[str, str]
    """Names in the folder that were left behind, each with its reason."""
    made: Mapping[str, str]
    """fairseq's names that the folder has no weight for, each with what they hold."""
    notes: tuple[str, ...]
    """Sentences that a person should read."""


def export(
    model_dir: str | Path, output: str | Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> ExportReport:
    """Export a Transformers folder of XLM-R's families into the folder `output`, which fairseq loads.

    `model_dir` may have been converted by hf_xlmr, fine-tuned since, or made by others. `output` gets `model.pt`, the
    dictionary, the SentencePiece model and, for classifiers, the labels; it appears under its name only when it is
    whole. Raises InputError for what the user can fix, IntegrityError for damage (WeightsMismatch with every name).
    """
    with told_plainly():
        folder = open_model_folder(Path(model_dir))
        record, options = ConversionRecord.of(folder.path), _options(folder)
        network = network_of_folder(folder, record)
        companions = companions_of(folder, network, record)
        plan = plan_export(folder, network, rows=companions.rows)
        arguments = _arguments(network, options)
        with staged_folder(Path(output), overwrite=overwrite, mark=CHECKPOINT) as draft:
            _raise_if_inside(Path(output), folder)
            _raise_if_no_room(plan, draft)
            write_checkpoint(draft / CHECKPOINT, _state(plan, arguments), progress=progress)
            _write_companions(companions, draft)
            report = _report(folder, network, plan, companions, arguments)
            return replace(report, output=Path(output), files=sizes_in(draft))


def _options(folder: ModelFolder) -> JsonObject:
    """What convert kept of the training's options. Raises IntegrityError."""
    return read_json(folder.path / KEPT / OPTIONS, has_paths=True) or {}


def network_of_folder(folder: ModelFolder, record: ConversionRecord) -> Architecture:
    """The network of a folder, its head called as in fairseq. Raises InputError, IntegrityError."""
    return network_of(folder.config, head=_head_name(folder, record, _options(folder)))


def _head_name(folder: ModelFolder, record: ConversionRecord, options: Mapping[str, object]) -> str:
    """The name that the head had in fairseq, or the one that fairseq gives by default."""
    is_same = folder.config.get("architectures") == [record.class_name]
    for name in (record.head if is_same else None, *map(options.get, HEAD_OPTIONS.values())):
        if isinstance(name, str) and name and "." not in name:
            return name
    return DEFAULT_HEAD


# ---- fairseq's options -----------------------------------------------------------------------------------------------


def _arguments(network: Architecture, options: Mapping[str, object]) -> dict[str, object]:
    """The flat arguments of a training with this network: those that convert kept, then what the folder says."""
    task, longest = _task(network), network.longest_text
    return {
        "seed": 1,
        "tokens_per_sample": longest,
        **{name: value for name, value in options.items() if name != "bpe"},  # not an argument of a model
        "arch": _arch(network),
        "task": task,
        "criterion": task,
        "activation_dropout": 0.0,
        "activation_fn": network.activation,
        "attention_dropout": network.attention_dropout,
        "dropout": network.dropout,
        "encoder_attention_heads": network.attention_heads,
        "encoder_embed_dim": network.hidden,
        "encoder_ffn_embed_dim": network.intermediate,
        "encoder_layerdrop": 0.0,
        "encoder_layers": len(network.layers),
        "encoder_layers_to_keep": None,
        "encoder_learned_pos": True,
        "encoder_normalize_before": network.family.norms_first,
        "layernorm_embedding": network.family.embedding_norm is not None,
        "max_positions": longest,
        "max_source_positions": longest,
        "no_scale_embedding": True,
        "no_token_positional_embeddings": False,
        "pooler_activation_fn": "tanh",
        "pooler_dropout": network.head_dropout if network.head else options.get("pooler_dropout", 0.0),
        "quant_noise_pq": 0.0,
        "quant_noise_scalar": 0.0,
        "spectral_norm_classification_head": False,
        "untie_weights_roberta": not network.is_tied,
        **_head_arguments(network),
        **_adapter_arguments(network),
    }


def _task(network: Architecture) -> str:
    """The name of fairseq's task and of its criterion."""
    return (XMOD_TASKS if network.adapters else {}).get(network.task, TASKS[network.task])


def _arch(network: Architecture) -> str:
    """The name of fairseq's architecture; the options also state every size."""
    if network.adapters is not None:
        return "xmod_large_prenorm" if network.family.norms_first else "xmod_base"
    if network.family is PRE_NORM:
        return "roberta_prenorm"
    sizes = (len(network.layers), network.hidden, network.intermediate, network.attention_heads)
    return "roberta_large" if sizes == LARGE else "roberta_base"


def _head_arguments(network: Architecture) -> dict[str, object]:
    """What the head's task wants; texts begin with `<s>` and are joined by `</s>`, as everywhere in XLM-R."""
    if network.head is None:
        return {}
    given = {HEAD_OPTIONS[network.task]: network.head, "init_token": 0, "separator_token": 2}
    if network.task is Task.SEQUENCE_CLASSIFICATION:
        given |= {"num_classes": network.labels, "regression_target": network.is_regression}
    return given


def _adapter_arguments(network: Architecture) -> dict[str, object]:
    """What fairseq's X-MOD asks about its language adapters."""
    if (adapters := network.adapters) is None:
        return {}
    return {
        "adapter_modules": True,
        "adapter_layer_norm": adapters.has_own_norm,
        "adapter_reuse_layer_norm": adapters.reuses_norm,
        "bottleneck": adapters.reduction,
        "ffn_modules": False,
        "languages": list(adapters.languages),
        "ln_before_adapter": adapters.adds_to_normalized,
    }


def _state(plan: ReversePlan, arguments: Mapping[str, object]) -> dict[str, object]:
    """The top level of a checkpoint, as fairseq up to 0.10.2 wrote it and later ones upgrade it."""
    return {
        "args": Namespace(**arguments),
        "model": plan.weights,
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0},
        ],
        "extra_state": {
            "epoch": 1,
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 0},
            "val_loss": None,
        },
    }


# ---- refusals, files, report -----------------------------------------------------------------------------------------


def _raise_if_inside(output: Path, folder: ModelFolder) -> None:
    """Refuse to replace the folder that is exported, or one that it is in."""
    source = folder.path.resolve()
    if output.resolve() in (source, *source.parents):
        raise InputError(f"{output} holds the model itself; choose another folder")


def _raise_if_no_room(plan: ReversePlan, draft: Path) -> None:
    free, needed = shutil.disk_usage(draft).free, sum(each.nbytes for each in plan.storages) + SPARE_BYTES
    if free < needed:
        raise InputError(f"the output needs {needed:,} bytes, and {free:,} are free")


def _write_companions(companions: Companions, draft: Path) -> None:
    for name, data in companions.files.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes(data)


def _report(
    folder: ModelFolder,
    network: Architecture,
    plan: ReversePlan,
    companions: Companions,
    arguments: Mapping[str, object],
) -> ExportReport:
    return ExportReport(
        output=Path(),
        source=folder.path,
        class_name=network.class_name,
        arch=str(arguments["arch"]),
        task=str(arguments["task"]),
        dtype=main_dtype(plan.storages),
        parameters=sum(weight.count for weight in plan.storages),
        loaded_by=("0.10.2", "0.12.2") if network.family is POST_NORM else ("0.12.2",),
        files={},
        mapped=plan.mapped,
        dropped=plan.dropped,
        made=plan.made,
        notes=(*plan.notes, *companions.notes),
    )
