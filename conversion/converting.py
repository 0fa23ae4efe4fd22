"""`convert`: the whole way from a fairseq source to a Transformers folder, each step a verb."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

from hf_xlmr import __version__
from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.checkpoint.options import Options
from hf_xlmr.conversion.mapping.architecture import Wanted, unclear_head
from hf_xlmr.conversion.mapping.language_adapters import FoundAdapters
from hf_xlmr.conversion.mapping.plan import Difference, WeightPlan
from hf_xlmr.conversion.mapping.preparation import Prepared, prepare
from hf_xlmr.conversion.output.card import CardMetadata, card_of, checked_metadata
from hf_xlmr.conversion.output.safetensors_writer import parse_size, write_weights
from hf_xlmr.conversion.tokenizer_json.vocabulary import write_tokenizer
from hf_xlmr.errors import InputError, IntegrityError, told_plainly
from hf_xlmr.files.staging import sizes_in, staged_folder
from hf_xlmr.model.families import Task
from hf_xlmr.model.folder_records import CONVERSION, conversion_record_text
from hf_xlmr.model.safetensors_files import raise_if_not_text
from hf_xlmr.progress import SILENT, Progress

__all__ = ["ConversionReport", "card_text", "convert", "kept_options", "record_of"]

SPARE_BYTES: Final = 64 << 20  # tokenizer, dictionary and records
MOST_GROWTH: Final = 4  # from half to single precision, and as much for rows of missing pieces
SENTENCEPIECE: Final = "sentencepiece.bpe.model"
EDITED: Final = ("config.json", "tokenizer_config.json")  # what people and doctor may change
WEIGHTS: Final = ".safetensors"
KEPT_OPTIONS: Final = (
    *("arch", "task", "criterion", "bpe", "activation_fn", "pooler_activation_fn", "attention_dropout", "dropout"),
    *("encoder_attention_heads", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_layers"),
    *("encoder_layers_to_keep", "encoder_normalize_before", "layernorm_embedding", "max_positions"),
    *("max_source_positions", "no_scale_embedding", "encoder_learned_pos", "no_token_positional_embeddings"),
    *("untie_weights_roberta", "pooler_dropout", "classification_head_name", "ranking_head_name", "num_classes"),
    *("tagging_head_name", "classify_per_token", "per_token", "sequence_tagging", "token_classification"),
    *("token_level", "multilabel", "multi_label", "is_multilabel"),
    *("adapter_modules", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter", "bottleneck"),
    "languages",
    *("regression_target", "spectral_norm_classification_head", "quant_noise_pq", "tokens_per_sample"),
)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did; `fairseq/conversion.json` in the folder has the same facts."""

    output: Path
    source: str
    class_name: str
    dtype: str
    parameters: int
    """The numbers of the output."""
    source_parameters: int
    """The numbers of the network in the checkpoint, a tied matrix once."""
    differences: tuple[Difference, ...]
    """What makes the one number of the other: what was made, and what was left behind."""
    files: Mapping[str, int]
    """Names and bytes of what was written."""
    mapped: Mapping[str, str]
    """fairseq's names to Transformers'."""
    dropped: Mapping[str, str]
    """Names in the file that were left behind, each with its reason."""
    made: Mapping[str, str]
    """Transformers' names that fairseq has no weight for, each with what they hold."""
    notes: tuple[str, ...]
    """Sentences that a person should read."""
    parity: Mapping[str, object] | None
    """What the verification measured, None if it was not asked for."""


def convert(
    source: str | Path,
    output: str | Path,
    *,
    data: str | Path | None = None,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    head: str | None = None,
    encoder_only: bool = False,
    attention_heads: int | None = None,
    ema: bool = False,
    languages: Sequence[str] = (),
    licence: str | None = None,
    overwrite: bool = False,
    verify: bool = True,
    progress: Progress = SILENT,
) -> ConversionReport:
    """Convert a fairseq XLM-R checkpoint into the folder `output`, which Transformers loads without hf_xlmr.

    `source` is a folder, a `.pt` file, an archive, a release name or `demo`; `data` a folder with its dictionaries,
    if they are not next to it (fairseq's data-bin). `dtype` auto keeps each weight as stored.
    `head` names the classification head to convert, "none" the masked LM. `attention_heads` is needed if the
    options do not say. `languages` and `licence` are for the model card, as the Hub spells them. The folder appears
    under its name only when it is whole. Raises InputError for what the user can fix (UnsupportedCheckpoint with every
    reason), IntegrityError for damage and where the verification fails.
    """
    raise_if_not_text(Path(output))
    shard_bytes, told = parse_size(max_shard_size), checked_metadata(languages, licence)
    wanted = Wanted(head=head, encoder_only=encoder_only, attention_heads=attention_heads, dtype=dtype, ema=ema)
    with (
        told_plainly(),
        staged_folder(Path(output), overwrite=overwrite) as draft,
        open_checkpoint(source, data=data, ema=ema, scratch=draft.parent, progress=progress) as checkpoint,
    ):
        _raise_if_inside(Path(output), source, checkpoint)
        prepared = prepare(checkpoint, wanted)
        _raise_if_out_of_proportion(prepared)
        _raise_if_no_room(prepared.plan, draft)
        rest = partial(_write_tokenizer, prepared, draft)
        write_weights(prepared.plan.weights, draft, max_shard_size=shard_bytes, progress=progress, meanwhile=rest)
        _write_json(draft / "config.json", prepared.config)
        report = _report(prepared, Path(output))
        if verify:
            report = replace(report, parity=_verified(prepared, draft, progress))
        _write_records(prepared, report, draft, told)
        return replace(report, files=sizes_in(draft))


# ---- refusals --------------------------------------------------------------------------------------------------------


def _raise_if_inside(output: Path, source: str | Path, checkpoint: FairseqCheckpoint) -> None:
    """Refuse to replace the folder that the checkpoint is read from, or that holds the archive or links to it."""
    paths = [part.path for part in checkpoint.files.checkpoint]
    paths += [Path(source)] if checkpoint.files.kind == "archive" else []
    targets = [target for path in paths for target in (path.resolve(), path.parent.resolve() / path.name)]
    if any(output.resolve() in target.parents for target in targets):
        raise InputError(f"{output} holds the checkpoint itself; choose another folder")


def _raise_if_out_of_proportion(prepared: Prepared) -> None:
    """Refuse a file whose views and options blow up what it holds."""
    size, held = prepared.plan.nbytes, sum(part.length for part in prepared.checkpoint.files.checkpoint)
    if size > MOST_GROWTH * held + SPARE_BYTES:
        raise IntegrityError(f"{prepared.checkpoint.files.name} of {held:,} bytes would become {size:,}: it is damaged")


def _raise_if_no_room(plan: WeightPlan, draft: Path) -> None:
    free, needed = shutil.disk_usage(draft).free, plan.nbytes + SPARE_BYTES
    if free < needed:
        raise InputError(f"the output needs {needed:,} bytes, and {free:,} are free")


# ---- what is written next to the weights -----------------------------------------------------------------------------


def kept_options(options: Options) -> dict[str, object]:
    """The options that a folder keeps; JSON has no infinity and no NaN, so such a one is kept as text."""
    return {key: _spelled_out(options[key]) for key in KEPT_OPTIONS if key in options}


def _spelled_out(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_spelled_out(item) for item in value]
    return {key: _spelled_out(item) for key, item in value.items()} if isinstance(value, dict) else value


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object of JSON, the same bytes for the same content."""
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Write UTF-8; what is not a text, as in the name of a file, is spelled out (as JSON also spells it)."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_tokenizer(prepared: Prepared, draft: Path) -> None:
    """The tokenizer, and the SentencePiece model if a tokenizer built from it would give the same ids."""
    vocabulary, pieces = prepared.vocabulary, prepared.checkpoint.files.sentencepiece
    if vocabulary.tokenizer is not None:
        write_tokenizer(vocabulary, draft, model_max_length=prepared.architecture.longest_text)
    if vocabulary.agrees_with_sentencepiece and pieces is not None:
        (draft / SENTENCEPIECE).write_bytes(pieces.read())


def _write_records(prepared: Prepared, report: ConversionReport, draft: Path, told: CardMetadata) -> None:
    """What fairseq needs again, what was done, and the model card."""
    kept = draft / "fairseq"
    for name, part in prepared.checkpoint.files.companions.items():
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        (kept / name).write_bytes(part.read())
    _write_json(kept / "options.json", kept_options(prepared.checkpoint.options))
    facts = {**record_of(prepared), "parity": report.parity, "written": _hashes(draft)}
    record = conversion_record_text(facts)
    _write_text(draft / CONVERSION, record)
    _write_text(draft / "README.md", card_text(prepared, json.loads(record), told))


def card_text(prepared: Prepared, record: Mapping[str, object], stated: CardMetadata) -> str:
    """The model card of a conversion; `record` is what conversion.json holds."""
    return card_of(record, prepared.config, vocabulary=prepared.vocabulary, stated=stated)


def record_of(prepared: Prepared) -> dict[str, object]:
    """The content of conversion.json before a proof, without path and time: the same input gives the same bytes."""
    checkpoint, architecture, report = prepared.checkpoint, prepared.architecture, _report(prepared, Path())
    archive = checkpoint.files.archive_sha256
    return {
        "hf_xlmr": __version__,
        "source": {
            **({} if archive is None else {"archive_sha256": archive}),
            "name": checkpoint.files.name,
            "kind": checkpoint.files.kind,
            "container": checkpoint.format,
            "options_kept_as": checkpoint.era,
            "files": _described(checkpoint),
        },
        "asked": asdict(prepared.wanted),
        "class": report.class_name,
        "head": architecture.head,
        "layers": list(architecture.layers),
        "embedding_rows": architecture.vocabulary,
        "dtype": report.dtype,
        "parameters": report.parameters,
        "mapped": dict(report.mapped),
        "dropped": dict(report.dropped),
        "made": dict(report.made),
        "notes": list(report.notes),
        "parity": None,
        "config": dict(prepared.config),
    }


def _hashes(draft: Path) -> dict[str, str]:
    """The SHA-256 of what nobody edits; the verification has those of the weights."""
    names = (name for name in sizes_in(draft) if name not in EDITED and not name.endswith(WEIGHTS))
    return {name: sha256((draft / name).read_bytes()).hexdigest() for name in names}


def _described(checkpoint: FairseqCheckpoint) -> dict[str, object]:
    files = checkpoint.files
    described: dict[str, object] = {Path(part.name).name: {"bytes": part.length} for part in files.checkpoint}
    return described | {
        name: {"bytes": part.length, "sha256": sha256(part.read()).hexdigest()}
        for name, part in files.companions.items()
    }


# ---- the report ------------------------------------------------------------------------------------------------------


def _report(prepared: Prepared, output: Path) -> ConversionReport:
    plan = prepared.plan
    return ConversionReport(
        output=output,
        source=prepared.checkpoint.files.name,
        class_name=prepared.architecture.class_name,
        dtype=str(prepared.config["dtype"]),
        parameters=plan.parameters,
        source_parameters=plan.source_parameters,
        differences=plan.differences,
        files={},
        mapped=plan.mapped,
        dropped=plan.dropped,
        made=plan.made,
        notes=(*prepared.vocabulary.notes, *_notes(prepared)),
        parity=None,
    )


def _notes(prepared: Prepared) -> Iterator[str]:
    architecture, checkpoint = prepared.architecture, prepared.checkpoint
    if checkpoint.files.archive_sha256 is not None:
        yield f"The archive of {checkpoint.files.name} has the SHA-256 {checkpoint.files.archive_sha256}."
    if architecture.task is Task.ENCODER:
        yield "The encoder alone was converted; AutoModel adds a pooler that fairseq never had, with random weights."
    if architecture.class_name == "XLMRobertaForMultipleChoice":
        yield (
            "Transformers 5.0 to 5.13 build XLMRobertaForMultipleChoice without its pooler, and do not run it: "
            "install transformers 5.14 or newer."
        )
    if (
        architecture.task is Task.SEQUENCE_CLASSIFICATION
        and checkpoint.files.labels is None
        and not architecture.is_regression
    ):
        yield "There is no label/dict.txt, so the classes are called LABEL_0, LABEL_1, ..."
    yield from _notes_of_losses(prepared)
    if len(checkpoint.heads) > 1 and architecture.head is not None:
        others = ", ".join(head for head in checkpoint.heads if head != architecture.head)
        yield f"The head {architecture.head} was converted; head= chooses another ({others})."
    if architecture.head is not None and (reason := unclear_head(checkpoint, architecture.head)):
        yield f"The head {architecture.head} was taken to read the first token, as asked ({reason})."
    if architecture.is_multi_label:
        yield "A text can have several of the classes: each has its own probability, the sigmoid of its logit."
    yield from FoundAdapters(checkpoint.weights, checkpoint.options, architecture.hidden).notes()
    for contradiction in checkpoint.contradictions:
        yield f"The options were left out, since they are those of another network: {contradiction}."


def _notes_of_losses(prepared: Prepared) -> Iterator[str]:
    if rounded := prepared.plan.rounded:
        dtype = prepared.plan.weights[rounded[0]].dtype
        yield (
            f"fairseq computes {', '.join(rounded)} in float32 as it runs, and here it is rounded to {dtype}: outputs "
            "differ from fairseq's by more than rounding (a hundredth of the largest value is allowed); "
            "dtype='float32' keeps these numbers."
        )
    if prepared.unread_labels is not None:
        yield f"The file of labels was left out: this network has no classes, and {prepared.unread_labels}."


def _verified(prepared: Prepared, draft: Path, progress: Progress) -> Mapping[str, object]:
    """Prove the draft against the source; torch is imported here and not before. Raises IntegrityError."""
    from hf_xlmr.conversion.proof.parity import verify_folder

    return asdict(verify_folder(prepared, draft, progress=progress))
