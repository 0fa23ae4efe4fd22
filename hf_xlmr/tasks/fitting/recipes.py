"""What differs between the tasks: the head of the network, and the hyperparameters, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.xnli import XNLI_LABELS

__all__ = [
    "LORA",
    "MODES",
    "RECIPES",
    "SOURCE_LANGUAGE",
    "WIDE",
    "LoraRecipe",
    "Recipe",
    "check_options_of_task",
    "has_option",
    "recipe_of",
]

SOURCE_LANGUAGE: Final = "en"
MODES: Final = ("zero-shot", "translate-train-all")
WIDE: Final = 2048  # from this width on a model is one of the XL kind: XL has 2560, XXL 4096, large 1024


@dataclass(frozen=True)
class Recipe:
    """How a task is trained unless the user says otherwise."""

    task: str
    class_ending: str
    """Of the name of the Transformers class."""
    head: str
    """The module of the network that is made anew."""
    label_columns: tuple[str, ...]
    learning_rate: float
    learning_rate_of_wide: float
    """For models of the XL kind."""
    epochs: float
    batch_size: int
    warmup: float
    """Below 1 a share of all steps, else their number."""
    weight_decay: float
    max_length: int
    """Tokens of a text, or of a window of it."""
    labels: tuple[str, ...] | None = None
    """Of a new head; None where the data tell them, or there are none."""


# The papers of XLM-R (Conneau et al. 2020; Goyal et al. 2021) print no table of these. What stands here is what XTREME
# (Hu et al. 2020) trains XLM-R base with, in scripts/train_xnli.sh, train_qa.sh and train_panx.sh of its repository;
# for XLM-R large it differs in one number, 3e-5 for XNLI. Two kinds of numbers are from elsewhere: the warmup of 6 % is
# that of RoBERTa's recipe for MNLI (XTREME's scripts for XNLI and WikiANN name none), and the rates of models of the XL
# kind are in no publication: 5e-6 is customary in scripts of fairseq's users for XNLI, 1e-5 the lowest of RoBERTa's.
RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {
        "xnli": Recipe(
            task="xnli",
            class_ending="ForSequenceClassification",
            head="classifier",
            label_columns=("labels",),
            learning_rate=2e-5,
            learning_rate_of_wide=5e-6,
            epochs=5,
            batch_size=32,
            warmup=0.06,
            weight_decay=0.0,
            max_length=128,
            labels=XNLI_LABELS,
        ),
        "mlqa": Recipe(
            task="mlqa",
            class_ending="ForQuestionAnswering",
            head="qa_outputs",
            label_columns=("start_positions", "end_positions"),
            learning_rate=3e-5,
            learning_rate_of_wide=1e-5,
            epochs=3,
            batch_size=32,
            warmup=500,
            weight_decay=0.0001,
            max_length=384,
        ),
        "ner": Recipe(
            task="ner",
            class_ending="ForTokenClassification",
            head="classifier",
            label_columns=("labels",),
            learning_rate=2e-5,
            learning_rate_of_wide=1e-5,
            epochs=10,
            batch_size=32,
            warmup=0.06,
            weight_decay=0.0,
            max_length=128,
        ),
    }
)


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters, as peft makes them."""

    rank: int
    alpha: int
    dropout: float
    learning_rate: float
    target_modules: tuple[str, ...]


# Hu et al. 2021, RoBERTa large on MNLI: rank 8, alpha 16, 3e-4, on query and value; dropout is peft's customary one.
# peft has no default targets for xlm-roberta-xl; these are the names in all three families.
LORA: Final = LoraRecipe(rank=8, alpha=16, dropout=0.05, learning_rate=3e-4, target_modules=("query", "value"))


def recipe_of(task: str) -> Recipe:
    """The recipe of a task. Raises InputError."""
    if task not in RECIPES:
        raise InputError(f"the task {task!r:.40} is unknown; there are {', '.join(RECIPES)}")
    return RECIPES[task]


# ---- options that mean something in some tasks alone -----------------------------------------------------------------

TASKS_OF_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "stride": ("mlqa",),
    "max_answer": ("mlqa",),
    "null_threshold": ("mlqa",),
    "misaligned": ("mlqa",),
    "unlabelled": ("xnli",),
    "head": ("xnli",),
    "labels": ("xnli", "ner"),
}
FLAGS: Final[Mapping[str, str]] = {"misaligned": "--on-misaligned", "unlabelled": "--on-unlabelled"}


def has_option(task: str, name: str) -> bool:
    """Whether an option means something in a task."""
    return task in TASKS_OF_OPTIONS.get(name, (task,))


def check_options_of_task(options: Any, task: str) -> None:
    """Raise InputError for the first of the `options`, a dataclass, that was given and means nothing in `task`."""
    for each in fields(options):
        if not has_option(task, each.name) and getattr(options, each.name) != each.default:
            flag = FLAGS.get(each.name, f"--{each.name.replace('_', '-')}")
            told = " and ".join(TASKS_OF_OPTIONS[each.name])
            raise InputError(f"{flag} is an option of {told} and means nothing in {task}: leave it out")
