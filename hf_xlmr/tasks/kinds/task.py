"""The class of a fine-tuning task: everything in which one task differs from the others."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from hf_xlmr.errors import InputError
from hf_xlmr.hub_interface.languages import Languages
from hf_xlmr.tasks.encoding.encoding import Row
from hf_xlmr.tasks.encoding.question_answering import QuestionOptions
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

if TYPE_CHECKING:
    import numpy as np

Setting = str | int | float | bool
Example = TypeVar("Example")
Prediction = TypeVar("Prediction")
Logits: TypeAlias = "list[np.ndarray]"
Network: TypeAlias = "Callable[[Iterable[Row]], list[Logits]]"
"""Each output of a network for each row, padding cut off if it has one for each token."""
ByKey: TypeAlias = Mapping[str, Sequence[Example]]
"""Examples, or what a network says of each, by the key of their scores."""
FILE_NAME: Final = re.compile(r"[\w-]+")
SOURCES: Final = {2020: "Conneau et al. 2020, arXiv:1911.02116", 2021: "Goyal et al. 2021, arXiv:2105.00572"}
"""The papers with published scores of XLM-R, by year."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The network of a task, and how it is trained unless the user says otherwise.

    The papers of XLM-R (Conneau et al. 2020; Goyal et al. 2021) print no table of hyperparameters. The tasks have what
    XTREME (Hu et al. 2020) trains XLM-R base with, in scripts/train_xnli.sh, train_qa.sh and train_panx.sh of its
    repository; for XLM-R large it differs in one number, 3e-5 for XNLI. Two kinds of numbers have another source: the
    warmup of 6 % is that of RoBERTa's recipe for MNLI (XTREME's scripts for XNLI and WikiANN have none), and the rates
    of models of the XL kind are not published: 5e-6 is customary in scripts of fairseq's users for XNLI, 1e-5 is the
    lowest of RoBERTa's.
    """

    class_ending: str
    """The end of the name of the Transformers class."""
    head: str = "classifier"
    """The module of the network that is new."""
    has_classes: bool = True
    """Whether the outputs of the head have names."""
    is_fairseqs: bool = False
    """Whether a classification head in a checkpoint of fairseq's is one for this task."""
    has_a_row_per_token: bool = True
    """Whether the network answers for each token, and not for a text."""
    labels: tuple[str, ...] | None = None
    """The labels of a new head; None if they are in the data, or there are none."""
    label_columns: tuple[str, ...] = ("labels",)
    learning_rate: float
    learning_rate_of_wide: float
    """The learning rate for models of the XL kind."""
    epochs: float
    batch_size: int = 32
    warmup: float
    """Below 1 a share of all steps, else their number."""
    weight_decay: float
    max_length: int
    """Tokens of a text, or of a window of it."""


@dataclass(frozen=True)
class Published:
    """A model's scores in percent, as their source prints them."""

    model: str
    trained_on: str
    scores: Mapping[str, tuple[float, ...]]
    """The scores by language, in the order of a table's cells: accuracy, or F1 and exact match; empty if unknown."""
    average: tuple[float, ...]
    """Over all languages of the source."""
    source: str

    def average_over(self, languages: Collection[str]) -> tuple[float, ...]:
        """The mean over `languages`, so that it compares with another's; the source's own if it lacks one of them."""
        if not languages or not set(languages) < self.scores.keys():
            return self.average
        return tuple(mean(values) for values in zip(*(self.scores[each] for each in languages), strict=True))


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The scores of a task, and how tables and bars show them."""

    metrics: tuple[str, ...]
    """The first is the one that models are compared by."""
    in_a_cell: tuple[str, ...]
    """The metrics that papers print in one cell of their tables."""
    orders: tuple[tuple[str, ...], ...]
    """Languages as papers order them; the first order that has all languages counts, else the last."""
    left_out: str
    """Why examples are left out, after a number."""
    title: str
    """The title of a table."""
    plot_title: str
    plot_title_of_pairs: str = ""
    """If a score is of two languages."""
    chance: float | None = None
    """What guessing scores, if that is known."""
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a class of Transformers is used, for the example of a card."""

    pipeline_tag: str
    """What the Hub calls the kind of task."""
    texts: str
    """The arguments of the tokenizer in the example."""
    shown: str
    """The lines of the example that print its output."""


@dataclass(frozen=True, kw_only=True)
class CardFacts(Use):
    """What model cards say about a task."""

    name: str
    heading: str
    """Above the scores; also the name of the task in their metadata."""


class Task(ABC, Generic[Example, Prediction]):
    """A task; a subclass for each gives all facts, and defines at least the abstract methods."""

    name: str
    example_files: tuple[str, str]
    """The small data of the package to train on and to test with, for which a pattern of files may stand."""
    options: frozenset[str]
    """The options of `EvaluationOptions` and `FinetuningOptions` for this task and not for all."""
    recipe: Recipe
    scoring: Scoring
    card: CardFacts
    predictions_readme: str
    """What the files of `write` are, for a file next to them."""

    @abstractmethod
    def read(self, source: DataSource, reading: Reading, gathered: Gathered) -> None:
        """Add the examples of an input to those that are `gathered`. Raises InputError."""

    def check_label_names(self, labels: Sequence[str] | None) -> None:
        """Raise InputError for names of labels that the task cannot have."""
        return

    def languages_of(self, key: str) -> tuple[str, ...]:
        """The languages of a key of scores: one, unless the task has scores of several languages together."""
        return (key,)

    def language_numbers(self, keys: Iterable[str], languages: Languages | None) -> dict[str, int | None]:
        """By key the number of the language whose adapters an X-MOD with these languages runs; else None.

        If a key has several languages, it is that of the first, in MLQA of the contexts. Raises InputError naming all
        languages that the model lacks.
        """
        codes = {key: self.languages_of(key)[0] for key in keys}
        if languages is None:
            return dict.fromkeys(codes)
        if missing := [code for code in dict.fromkeys(codes.values()) if not languages.has_code(code)]:
            raise InputError(
                f"the model has no adapters for {', '.join(map(repr, missing))}, only {', '.join(languages.names)}: "
                "leave the others out (languages=)"
            )
        return {key: languages.number(languages.of_code(code)) for key, code in codes.items()}

    def key_of(self, language: str) -> str:
        """The key of scores that a user asks for as `language`."""
        return language.lower()

    def check_scorable(self, examples: ByKey[Example]) -> None:
        """Raise InputError for examples, by key, that can never be scored, before anything is computed."""
        return

    def check_known(self, examples: Sequence[Example], labels: Sequence[str]) -> None:
        """Raise InputError for an example whose labels a model with `labels` does not have."""
        return

    def labels_in(self, examples: Sequence[Example], known: Iterable[str] = ()) -> tuple[str, ...] | None:
        """The labels of a new head, from the examples and those `known`; None if the recipe has them, or has none."""
        return None

    @abstractmethod
    def encode(self, examples: Sequence[Example], coding: Coding) -> Iterable[Row]:
        """What is trained on; of many examples it is called for some at a time."""

    @abstractmethod
    def predict(self, examples: Sequence[Example], coding: Coding, network: Network) -> Sequence[Prediction]:
        """What a network says of each example: a label, an answer, or a tag for each word."""

    @abstractmethod
    def score(self, key: str, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics of predictions in a language, in percent. Raises InputError."""

    def settings(self, coding: Coding) -> Mapping[str, Setting]:
        """What matters for repeating the scores, besides what all tasks have."""
        return {}

    def check_writable(self, examples: ByKey[Example]) -> None:
        """Raise InputError for examples whose predictions cannot be kept apart in files that are named by the keys.

        A key can be any text of the data.
        """
        if odd := [key for key in examples if not FILE_NAME.fullmatch(key)]:
            raise InputError(f"{odd[0]!r:.80} is not a language by which a file of predictions can be called")

    @abstractmethod
    def write(self, folder: Path, examples: ByKey[Example], predictions: ByKey[Prediction]) -> None:
        """Write predictions into a folder, as the official scripts read them."""


AnyTask: TypeAlias = Task[Any, Any]
"""A task with examples and predictions of any type."""


@dataclass(frozen=True)
class Coding:
    """How texts become numbers for one network, and its answers predictions."""

    tokenizer: ExactTokenizer
    labels: tuple[str, ...]
    """The labels by number; empty if the task has none."""
    max_length: int
    questions: QuestionOptions
    languages: Languages | None = None
    """Those of an X-MOD."""
