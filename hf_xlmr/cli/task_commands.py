"""The sub-commands that train and score models: `hf-xlmr finetune` and `hf-xlmr evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_xlmr.cli.command_output import AsJson, Quiet, print_json, progress_of_command
from hf_xlmr.features.processes import is_first_of_all
from hf_xlmr.tasks.kinds.registry import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_xlmr.tasks.mlqa import Misalignment
    from hf_xlmr.tasks.xnli import WithoutLabel

__all__ = ["register"]


TaskName = Enum("TaskName", {name: name for name in TASKS}, type=str)  # type: ignore[misc]


class Mode(str, Enum):
    """The values of --mode."""

    zero_shot = "zero-shot"
    translate_train_all = "translate-train-all"


class OnUnlabelled(str, Enum):
    """The values of --on-unlabelled."""

    skip = "skip"
    error = "error"


class OnMisaligned(str, Enum):
    """The values of --on-misaligned in training."""

    error = "error"
    skip = "skip"


class OnMisalignedInScores(str, Enum):
    """The values of --on-misaligned in evaluation."""

    score = "score"
    skip = "skip"
    error = "error"


MISALIGNMENTS: Mapping[str, Misalignment] = {"error": "refuse", "skip": "skip", "score": "keep"}
UNLABELLED: Mapping[str, WithoutLabel] = {"error": "refuse", "skip": "skip"}
MODEL_HELP = "A Transformers folder, an id on the Hub, or what convert takes as SOURCE."
DATA_HELP = (
    "A file, a 'pattern*', a saved data set, or owner/name (or owner/name@config) on the Hub; may be said several "
    "times. de=FILE tells the language, en-de=FILE those of contexts and questions, where nothing in the data does. "
    "demo is small data that comes with the program. Files: xnli .tsv, .csv, .txt (with a header, or three columns as "
    "XTREME writes; CSV's quotes or none, as the content shows), .jsonl; mlqa SQuAD's .json, .jsonl; ner a word and "
    "its tag on each line, .jsonl; all .parquet, and .gz but for that."
)
LIST_HELP = "Such as en,de,zh; in MLQA also pairs such as en-de (context, question). By default all there are."

Task = Annotated[TaskName, typer.Argument(metavar="|".join(TASKS), help="The task.")]
Model = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
Languages = Annotated[str | None, typer.Option("--languages", metavar="LIST", help=f"To score. {LIST_HELP}")]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", help="Of a text or window, in tokens: 128, 384 for mlqa; to evaluate, as trained."),
]
Stride = Annotated[
    int | None,
    typer.Option("--stride", min=1, help="mlqa: a window of a long text begins every so many tokens: 128."),
]
NullThreshold = Annotated[
    float | None,
    typer.Option(help="mlqa: questions may have no answer; the score by which that must beat the best one, such as 0."),
]
Unlabelled = Annotated[
    OnUnlabelled,
    typer.Option(help="xnli: what becomes of pairs on whose label the annotators did not agree, marked - or -1."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="LIST",
        help="ner, xnli: all tags or labels by their numbers, where the data have numbers alone.",
    ),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 where that keeps precision (autocast).")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there is a GPU.")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands to the program."""
    app.command()(finetune)
    app.command()(evaluate)


def finetune(
    task: Task,
    model: Model,
    train: Annotated[list[str], typer.Option("--train", metavar="DATA", help=DATA_HELP)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            metavar="DIR",
            help="The folder to make. It holds checkpoints/ while training runs; the finished model comes last.",
        ),
    ],
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", metavar="DATA", help="To score in the end, by language; as --train.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Train on English alone, or on every language of --train.")
    ] = Mode.zero_shot,
    train_split: Annotated[str | None, typer.Option(metavar="NAME", help="Of data sets; train.")] = None,
    eval_split: Annotated[str | None, typer.Option(metavar="NAME", help="Of data sets; test.")] = None,
    languages: Languages = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="2e-5, 3e-5 for mlqa, less for XL and XXL, 3e-4 with --lora.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="5 for xnli, 3 for mlqa, 10 for ner.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Updates, in place of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per update over all devices: 32.")] = None,
    accumulate: Annotated[int, typer.Option(help="Compute a device's share of them in so many parts.")] = 1,
    warmup: Annotated[
        float | None, typer.Option(help="Updates, or a share of all if below 1: 0.06, and 500 for mlqa.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="0, and 0.0001 for mlqa.")] = None,
    max_length: MaxLength = None,
    stride: Stride = None,
    null_threshold: NullThreshold = None,
    on_misaligned: Annotated[
        OnMisaligned, typer.Option(help="mlqa: what becomes of training data whose answer is not where it says.")
    ] = OnMisaligned.error,
    on_unlabelled: Unlabelled = OnUnlabelled.skip,
    labels: Labels = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train low-rank adapters and the head alone; merged in the end.")
    ] = False,
    lora_rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 8,
    freeze_embeddings: Annotated[
        bool | None,
        typer.Option("--freeze-embeddings/--no-freeze-embeddings", help="By default for XL and XXL alone."),
    ] = None,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Compute activations twice and keep few: less memory.")
    ] = False,
    bf16: Bf16 = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the new head, the order of examples, and dropout.")] = 1,
    save_steps: Annotated[int, typer.Option(help="Updates between checkpoints; the last two are kept.")] = 500,
    cpu: Cpu = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a DIR that was begun.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew in a DIR of an earlier training.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model for a task; run it under accelerate launch to use many devices."""
    from hf_xlmr.tasks.evaluation import EvaluationOptions
    from hf_xlmr.tasks.training import FinetuningOptions
    from hf_xlmr.tasks.training import finetune as run

    options = FinetuningOptions(
        mode=mode.value,
        split=train_split,
        misaligned=MISALIGNMENTS[on_misaligned.value],
        unlabelled=UNLABELLED[on_unlabelled.value],
        labels=_listed(labels),
        learning_rate=learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        accumulate=accumulate,
        warmup=warmup,
        weight_decay=weight_decay,
        max_length=max_length,
        stride=stride,
        lora=lora,
        lora_rank=lora_rank,
        freeze_embeddings=freeze_embeddings,
        activation_checkpointing=activation_checkpointing,
        bf16=bf16,
        seed=seed,
        save_steps=save_steps,
        cpu=cpu,
    )
    scoring = EvaluationOptions(
        split=eval_split,
        languages=_listed(languages),
        max_length=max_length,
        stride=stride,
        null_threshold=null_threshold,
        unlabelled=UNLABELLED[on_unlabelled.value],
        labels=_listed(labels),
        bf16=bf16,
        cpu=cpu,
    )
    report = run(
        task.value,
        model,
        train,
        output,
        evaluation=evaluation or (),
        options=options,
        evaluation_options=scoring,
        resume=resume,
        overwrite=overwrite,
        progress=progress_of_command(shown=not quiet and is_first_of_all()),
    )
    if as_json and is_first_of_all():
        print_json({**asdict(report), "results": None if report.results is None else _as_object(report.results)})
    elif not quiet and is_first_of_all():
        from hf_xlmr.cli.console import show_finetuning, show_results
        from hf_xlmr.tasks.results_table import tables_of

        show_finetuning(report)
        if report.results is not None:
            show_results(tables_of(report.results))


def evaluate(
    task: Task,
    model: Model,
    data: Annotated[list[str], typer.Option("--data", metavar="DATA", help=DATA_HELP)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="A folder to make, of the scores (results.json, .md, .svg) and of predictions for official scripts.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Of data sets; test.")] = None,
    languages: Languages = None,
    head: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a checkpoint of fairseq's with several heads.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts or windows at once on a device.")] = 32,
    max_length: MaxLength = None,
    stride: Stride = None,
    null_threshold: NullThreshold = None,
    on_misaligned: Annotated[
        OnMisalignedInScores, typer.Option(help="mlqa: scores know no positions, so such questions are scored.")
    ] = OnMisalignedInScores.score,
    on_unlabelled: Unlabelled = OnUnlabelled.skip,
    labels: Labels = None,
    bf16: Bf16 = False,
    cpu: Cpu = False,
    references: Annotated[bool, typer.Option("--references", help="Show what the papers published, too.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a DIR of an earlier evaluation, after all has gone well.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Tell what a fine-tuned model scores in each language, ours or a checkpoint that fairseq fine-tuned."""
    from hf_xlmr.tasks.evaluation import EvaluationOptions
    from hf_xlmr.tasks.evaluation import evaluate as run
    from hf_xlmr.tasks.results_table import published_scores, tables_of

    options = EvaluationOptions(
        split=split,
        languages=_listed(languages),
        misaligned=MISALIGNMENTS[on_misaligned.value],
        unlabelled=UNLABELLED[on_unlabelled.value],
        labels=_listed(labels),
        head=head,
        batch_size=batch_size,
        max_length=max_length,
        stride=stride,
        null_threshold=null_threshold,
        bf16=bf16,
        cpu=cpu,
    )
    results = run(
        task.value,
        model,
        data,
        output=output,
        overwrite=overwrite,
        references=references,
        options=options,
        progress=progress_of_command(shown=not quiet and is_first_of_all()),
    )
    if as_json and is_first_of_all():
        published = {"published": published_scores(task.value)} if references else {}
        print_json({**_as_object(results), **published})
    elif not quiet and is_first_of_all():
        from hf_xlmr.cli.console import show_results

        show_results(tables_of(results, references=references))


def _listed(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(each.strip() for each in names.split(","))


def _as_object(results: Any) -> Any:
    return json.loads(results.to_json())
