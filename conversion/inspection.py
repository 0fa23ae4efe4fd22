"""`inspect`: what a source holds and what it would become, without reading its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_xlmr.conversion.checkpoint.opened_checkpoint import FairseqCheckpoint, open_checkpoint
from hf_xlmr.conversion.converting import kept_options
from hf_xlmr.conversion.mapping.architecture import EMBEDDING, Architecture, Wanted, decide
from hf_xlmr.conversion.mapping.plan import Difference, WeightPlan, parameters_of, plan_weights
from hf_xlmr.conversion.mapping.preparation import labels_of, read_vocabulary
from hf_xlmr.errors import HfXlmrError, UnsupportedCheckpoint, told_plainly
from hf_xlmr.progress import SILENT, Progress
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.dictionary_kinds import kind_of_dictionary

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """What a source holds, and the Transformers class it would become."""

    source: str
    kind: str
    """folder, file, archive, release or demo."""
    files: Mapping[str, int]
    """Names and bytes of what belongs to it."""
    container: str
    """zip or legacy."""
    options_kept_as: str
    """args, cfg, omegaconf or none."""
    class_name: str | None
    """The Transformers class, None if there is none; `reasons` then says why."""
    reasons: tuple[str, ...]
    layers: int
    hidden_size: int
    attention_heads: int
    longest_text: int
    """In tokens."""
    weights: int
    parameters: int
    """The numbers of the network in the checkpoint, a tied matrix once."""
    output_parameters: int | None
    """The numbers of what `convert` would write, None if it would write nothing."""
    differences: tuple[Difference, ...]
    """What makes the one number of the other: what is made, and what is left behind."""
    dtypes: Mapping[str, int]
    """Weights per dtype."""
    languages: tuple[str, ...]
    """Those that an X-MOD has adapters for, in the order of their numbers; none of other models."""
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    has_moving_average: bool
    embedding_rows: int
    dictionary_symbols: int | None
    mask_id: int | None
    dictionary_kind: str | None
    """What the dictionary holds that no tokenizer of XLM-R's kind belongs to; None if it is as XLM-R's."""
    dropped: Mapping[str, str]
    options: Mapping[str, object]


def inspect(
    source: str | Path,
    *,
    data: str | Path | None = None,
    ema: bool = False,
    attention_heads: int | None = None,
    progress: Progress = SILENT,
) -> Inspection:
    """Report what a source holds and what `convert` would make of it.

    `data` is a folder with its dictionaries, where they are not next to it; `ema` looks at the moving average that
    training kept. Raises InputError if the source is not a checkpoint of fairseq's, IntegrityError if it is damaged;
    what Transformers cannot express is reported in the result.
    """
    with told_plainly(), open_checkpoint(source, data=data, ema=ema, progress=progress) as checkpoint:
        try:
            architecture = decide(checkpoint, Wanted(attention_heads=attention_heads), reads_weights=False)
            plan = plan_weights(checkpoint, architecture, extra_rows=_extra_rows(checkpoint, architecture))
        except HfXlmrError as error:
            reasons = error.reasons if isinstance(error, UnsupportedCheckpoint) else (str(error),)
            return _inspection(checkpoint, None, None, reasons)
        return _inspection(checkpoint, architecture, plan, ())


def _extra_rows(checkpoint: FairseqCheckpoint, architecture: Architecture) -> int:
    """The rows that `convert` appends for pieces that the dictionary lacks; none if there is no dictionary."""
    if checkpoint.files.dictionary is None:
        return 0
    return read_vocabulary(checkpoint, architecture.vocabulary).extra_unk_rows


def _inspection(
    checkpoint: FairseqCheckpoint,
    architecture: Architecture | None,
    plan: WeightPlan | None,
    reasons: tuple[str, ...],
) -> Inspection:
    files = checkpoint.files
    embedding = checkpoint.weights.get(EMBEDDING)
    rows = embedding.shape[0] if embedding is not None and embedding.shape else 0
    dictionary = _dictionary(checkpoint, rows)
    kind = kind_of_dictionary(dictionary, bpe=checkpoint.options.get("bpe")) if dictionary else None
    return Inspection(
        source=files.name,
        kind=files.kind,
        files=_sizes(checkpoint),
        container=checkpoint.format,
        options_kept_as=checkpoint.era,
        class_name=architecture.class_name if architecture else None,
        reasons=reasons,
        layers=len(architecture.layers) if architecture else 0,
        hidden_size=architecture.hidden if architecture else 0,
        attention_heads=architecture.attention_heads if architecture else 0,
        longest_text=architecture.longest_text if architecture else 0,
        weights=len(checkpoint.weights),
        parameters=parameters_of(checkpoint),
        output_parameters=plan.parameters if plan else None,
        differences=plan.differences if plan else (),
        dtypes=dict(Counter(weight.dtype for weight in checkpoint.weights.values())),
        languages=architecture.languages if architecture else (),
        heads=checkpoint.heads,
        labels=labels_of(checkpoint, architecture) if architecture else (),
        has_moving_average=checkpoint.has_ema,
        embedding_rows=rows,
        dictionary_symbols=len(dictionary) if dictionary else None,
        mask_id=dictionary.mask_index if dictionary else None,
        dictionary_kind=kind.told("dict.txt") if kind else None,
        dropped=plan.dropped if plan else checkpoint.dropped,
        options=kept_options(checkpoint.options),
    )


def _sizes(checkpoint: FairseqCheckpoint) -> dict[str, int]:
    files = checkpoint.files
    present = [*files.checkpoint, files.dictionary, files.sentencepiece, files.labels]
    return {part.name: part.length for part in present if part is not None}


def _dictionary(checkpoint: FairseqCheckpoint, rows: int) -> Dictionary | None:
    """The dictionary as the model's task completes it: with `<mask>` if there is a row for it."""
    file = checkpoint.files.dictionary
    if file is None:
        return None
    dictionary = Dictionary.parse(file.read(), expected_rows=rows, name=file.name)
    return dictionary if rows == len(dictionary) else dictionary.with_mask()
