"""The sub-commands about training: `hf-xlmr finetune`, `hf-xlmr evaluate` and `hf-xlmr adopt`."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hf_xlmr.cli.command_help import add_command
from hf_xlmr.cli.command_output import (
    AsJson,
    Quiet,
    Verbose,
    called_with,
    print_json,
    print_result,
    progress_of_command,
)
from hf_xlmr.cli.values import argument_of, decimal, one_of, whole
from hf_xlmr.errors import InputError
from hf_xlmr.features.processes import is_first_of_all
from hf_xlmr.tasks.encoding.question_answering import QuestionOptions
from hf_xlmr.tasks.fitting.adapters import LORA_RATE
from hf_xlmr.tasks.kinds.registry import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_xlmr.files.json_files import JsonObject
    from hf_xlmr.tasks.fitting.finetuned_folder import FinetuningReport
    from hf_xlmr.tasks.mlqa import Misalignment
    from hf_xlmr.tasks.results import TaskResults
    from hf_xlmr.tasks.xnli import WithoutLabel

__all__ = ["register"]


MISALIGNMENTS: Mapping[object, Misalignment] = {"error": "refuse", "skip": "skip", "score": "keep"}
UNLABELLED: Mapping[object, WithoutLabel] = {"error": "refuse", "skip": "skip"}
MODEL_HELP = "A Transformers folder, an id on the Hub, or what convert takes as SOURCE."
DATA_HELP = (
    "A file, a 'pattern*', a saved data set, or owner/name (or owner/name@config) on the Hub. May be given several "
    "times. If the data do not name their language, write de=FILE, or en-de=FILE for the languages of contexts and "
    "questions. demo is small data that comes with the program. Formats: xnli .tsv, .csv, .txt (with a header, or "
    "three columns as XTREME writes; with CSV's quotes or without, as the content shows), .jsonl; mlqa SQuAD's .json, "
    ".jsonl; ner a word and its tag on each line, .jsonl; every task .parquet. All but .parquet may be "
    "compressed (.gz, .zst)."
)
GPU = re.compile(r"cuda(?::(?P<number>\d{1,3}))?")


def _usual(name: str) -> str:
    """What the recipes say of `name`: one value, or that of each task."""
    values = {task: f"{getattr(each.recipe, name):g}" for task, each in TASKS.items()}
    several = ", ".join(f"{task} {value}" for task, value in values.items())
    return several if len(set(values.values())) > 1 else next(iter(values.values()))


WIDE_RATES: Final = _usual("learning_rate_of_wide")

Task = Annotated[str, argument_of(*TASKS, about="The task.")]
Model = Annotated[str, typer.Option("--model", metavar="MODEL", help=MODEL_HELP)]
Languages = Annotated[
    str | None,
    typer.Option(
        "--languages",
        metavar="LIST",
        help="The languages to score, such as en,de,zh; for mlqa also pairs such as en-de (context, question).",
        show_default="all in the data",
    ),
]
LENGTH_HELP = "Tokens of a text, in mlqa of a window."
TrainingLength = Annotated[int | None, whole("--max-length", about=LENGTH_HELP, usual=_usual("max_length"))]
ScoringLength = Annotated[
    int | None, whole("--max-length", about=LENGTH_HELP, usual=f"that of the training, else {_usual('max_length')}")
]
Stride = Annotated[
    int | None,
    whole(
        "--stride",
        least=1,
        about="mlqa: the distance between the windows over a long text, in tokens.",
        usual=f"{QuestionOptions.stride}, or half a window",
    ),
]
NullThreshold = Annotated[
    float | None,
    decimal(
        about="mlqa: allow no answer if its score is higher than the best answer's by more than this, such as 0.",
        usual="an answer to every question",
    ),
]
Unlabelled = Annotated[
    str,
    one_of("skip", "error", about="xnli: skip pairs without an agreed label (marked - or -1), or refuse the data."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="LIST",
        help="ner, xnli: all tags or labels in the order of their numbers, if the data have only numbers.",
    ),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16 (autocast).")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The device to compute on: cpu, cuda or one GPU such as cuda:1.",
        show_default="the GPUs, if there are any",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the sub-commands to the program."""
    add_command(app, finetune)
    add_command(app, evaluate)
    add_command(app, adopt)


Train = Annotated[list[str], typer.Option("--train", metavar="DATA", help=DATA_HELP)]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        metavar="DIR",
        help="The folder to create. It holds checkpoints/ during training, and the finished model at the end.",
    ),
]
Evaluation = Annotated[
    list[str] | None,
    typer.Option(
        "--eval", metavar="DATA", help="The data to score after training, by language; formats as for --train."
    ),
]
TrainingMode = Annotated[
    str, one_of("zero-shot", "translate-train-all", about="Train on English only, or on every language of --train.")
]
TrainSplit = Annotated[
    str | None, typer.Option(metavar="NAME", help="The split of data sets to train on.", show_default="train")
]
EvalSplit = Annotated[
    str | None, typer.Option(metavar="NAME", help="The split of data sets to score.", show_default="test")
]
LearningRate = Annotated[
    float | None,
    decimal(
        about="The learning rate after the warmup.",
        usual=f"{_usual('learning_rate')}; of XL and XXL {WIDE_RATES}; with --lora {LORA_RATE:g}",
    ),
]
Epochs = Annotated[float | None, decimal(about="How often each example is seen.", usual=_usual("epochs"))]
MaxSteps = Annotated[int | None, whole(about="The number of updates, in place of --epochs.")]
BatchSize = Annotated[int | None, whole(about="Examples of an update, over all devices.", usual=_usual("batch_size"))]
Accumulate = Annotated[
    int,
    whole(about="The number of steps in which a device computes its share of a batch (gradient accumulation)."),
]
Warmup = Annotated[
    float | None,
    decimal(about="The number of warmup updates, or below 1 their share of all updates.", usual=_usual("warmup")),
]
WeightDecay = Annotated[float | None, decimal(about="The weight decay of AdamW.", usual=_usual("weight_decay"))]
MisalignedTraining = Annotated[
    str,
    one_of("error", "skip", about="mlqa: refuse or skip training questions whose answer is not at its answer_start."),
]
Lora = Annotated[
    bool,
    typer.Option("--lora", help="Train only low-rank adapters and the head; the adapters are merged at the end."),
]
LoraRank = Annotated[int, whole(least=1, about="The rank of the adapters.")]
FreezeEmbeddings = Annotated[
    bool | None,
    typer.Option(
        "--freeze-embeddings/--no-freeze-embeddings",
        help="Do not train the embeddings.",
        show_default="frozen for XL, XXL and X-MOD, or with --lora",
    ),
]
FreezeLanguageAdapters = Annotated[
    bool | None,
    typer.Option(
        "--freeze-language-adapters/--no-freeze-language-adapters",
        help="X-MOD: do not train the adapters of languages, so that all languages share what is trained.",
        show_default="frozen",
    ),
]
ActivationCheckpointing = Annotated[
    bool,
    typer.Option(
        "--activation-checkpointing", help="Compute activations again in the backward pass: less memory, more time."
    ),
]
Seed = Annotated[int, whole(least=0, about="The random seed of the new head, the order of examples, and dropout.")]
SaveSteps = Annotated[int, whole(about="The number of updates between checkpoints; the last two are kept.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a training that is not finished.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier training in DIR.")]


def finetune(
    task: Task,
    model: Model,
    train: Train,
    output: Output,
    evaluation: Evaluation = None,
    mode: TrainingMode = "zero-shot",
    train_split: TrainSplit = None,
    eval_split: EvalSplit = None,
    languages: Languages = None,
    learning_rate: LearningRate = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = 1,
    warmup: Warmup = None,
    weight_decay: WeightDecay = None,
    max_length: TrainingLength = None,
    stride: Stride = None,
    null_threshold: NullThreshold = None,
    on_misaligned: MisalignedTraining = "error",
    on_unlabelled: Unlabelled = "skip",
    labels: Labels = None,
    lora: Lora = False,
    lora_rank: LoraRank = 8,
    freeze_embeddings: FreezeEmbeddings = None,
    freeze_language_adapters: FreezeLanguageAdapters = None,
    activation_checkpointing: ActivationCheckpointing = False,
    bf16: Bf16 = False,
    seed: Seed = 1,
    save_steps: SaveSteps = 500,
    cpu: Cpu = False,
    device: Device = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a model for a task; runs on many devices under accelerate launch."""
    given = _as_in_the_library(locals())
    from hf_xlmr.tasks.evaluation import EvaluationOptions
    from hf_xlmr.tasks.training import FinetuningOptions
    from hf_xlmr.tasks.training import finetune as run

    options = called_with(FinetuningOptions, given, split=train_split)
    usual = {"misaligned": EvaluationOptions.misaligned, "batch_size": EvaluationOptions.batch_size}
    scoring = called_with(EvaluationOptions, given, split=eval_split, **usual)
    report = run(
        task,
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
    if is_first_of_all():
        _show(report, as_json=as_json, quiet=quiet)


def _show(report: FinetuningReport, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({**asdict(report), "results": None if report.results is None else _as_object(report.results)})
    elif not quiet:
        from hf_xlmr.cli.console import show_finetuning, show_results
        from hf_xlmr.tasks.results_table import tables_of

        show_finetuning(report)
        if report.results is not None:
            show_results(tables_of(report.results))


Data = Annotated[list[str], typer.Option("--data", metavar="DATA", help=DATA_HELP)]
ResultsDir = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="DIR",
        help="A folder to create: scores (results.json, .md, .svg), and predictions for the official scripts.",
    ),
]
Split = EvalSplit
Head = Annotated[
    str | None, typer.Option(metavar="NAME", help="The head to score, if the fairseq checkpoint has several.")
]
ScoringBatchSize = Annotated[int, whole(least=1, about="Texts or windows that a device computes at once.")]
MisalignedScoring = Annotated[
    str,
    one_of(
        "score", "skip", "error", about="mlqa: score, skip or refuse questions whose answer is not at its answer_start."
    ),
]
References = Annotated[bool, typer.Option("--references", help="Also show the scores that the papers published.")]
OverwriteResults = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier evaluation in DIR once the new one is complete.")
]


def evaluate(
    task: Task,
    model: Model,
    data: Data,
    output: ResultsDir = None,
    split: Split = None,
    languages: Languages = None,
    head: Head = None,
    batch_size: ScoringBatchSize = 32,
    max_length: ScoringLength = None,
    stride: Stride = None,
    null_threshold: NullThreshold = None,
    on_misaligned: MisalignedScoring = "score",
    on_unlabelled: Unlabelled = "skip",
    labels: Labels = None,
    bf16: Bf16 = False,
    cpu: Cpu = False,
    device: Device = None,
    references: References = False,
    overwrite: OverwriteResults = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a fine-tuned model in each language; the model may be a checkpoint that fairseq fine-tuned."""
    given = _as_in_the_library(locals())
    from hf_xlmr.tasks.evaluation import EvaluationOptions
    from hf_xlmr.tasks.evaluation import evaluate as run
    from hf_xlmr.tasks.results_table import published_scores, tables_of

    results = run(
        task,
        model,
        data,
        output=output,
        overwrite=overwrite,
        references=references,
        options=called_with(EvaluationOptions, given),
        progress=progress_of_command(shown=not quiet and is_first_of_all()),
    )
    if as_json and is_first_of_all():
        published = {"published": published_scores(task)} if references else {}
        print_json({**_as_object(results), **published})
    elif not quiet and is_first_of_all():
        from hf_xlmr.cli.console import show_results

        show_results(tables_of(results, references=references))


OwnFolder = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="The folder that your Trainer saved (save_model, save_pretrained).")
]
TrainedFrom = Annotated[
    str, typer.Option("--from", metavar="MODEL", help=f"The converted model that it was trained from. {MODEL_HELP}")
]


ResetRows = Annotated[
    bool,
    typer.Option(
        "--reset-appended-rows",
        help="Make rows that convert appended to the embedding what <unk> is, if your training changed them.",
    ),
]


def adopt(
    model_dir: OwnFolder,
    converted: TrainedFrom,
    reset_appended_rows: ResetRows = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Complete a folder of your own Trainer with what the converted model has: dictionary, tokenizer, record, card.

    Weights and config.json stay as they are. Then doctor, export, to-sentence-transformers and push take the folder.
    """
    from hf_xlmr.cli.console import show_adoption
    from hf_xlmr.tasks.fitting.adopting import adopt as run

    report = run(
        model_dir,
        converted,
        reset_appended_rows=reset_appended_rows,
        progress=progress_of_command(shown=not quiet),
    )
    print_result(report, show_adoption, as_json=as_json, quiet=quiet)


def _as_in_the_library(given: Mapping[str, object]) -> dict[str, object]:
    """The options of a command, also those that the library names otherwise, or takes as a list."""
    lists = {name: _listed(given[name]) for name in ("languages", "labels")}
    return {
        **given,
        **lists,
        "cpu": not _uses_gpu(given["device"], cpu=given["cpu"] is True),
        "misaligned": MISALIGNMENTS[given["on_misaligned"]],
        "unlabelled": UNLABELLED[given["on_unlabelled"]],
    }


def _uses_gpu(device: object, *, cpu: bool = False) -> bool:
    """Let this process see only the GPU `device`, and say whether it is one; None is what the machine has.

    Trainer and accelerate take the first GPU that they see. Raises InputError.
    """
    if device is None or device == "cpu":
        return device is None and not cpu
    if cpu:
        raise InputError(f"--device {device!s:.40} and --cpu exclude each other")
    found = GPU.fullmatch(str(device))
    if found is None:
        raise InputError(f"--device {device!s:.40}: give cpu, cuda or one GPU such as cuda:1")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(f"--device {device}: of several processes each has its own GPU; leave it out")
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    number = int(found["number"] or 0)
    if seen and number >= len(seen):
        raise InputError(f"--device {device}: CUDA_VISIBLE_DEVICES names {len(seen)} of them, counted from 0")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[number] if seen else str(number)
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"--device {device}: this machine has no such GPU")
    return True


def _listed(names: object) -> tuple[str, ...] | None:
    return None if names is None else tuple(each.strip() for each in str(names).split(","))


def _as_object(results: TaskResults) -> JsonObject:
    found: JsonObject = json.loads(results.to_json())
    return found
