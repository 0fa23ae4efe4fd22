"""The task XNLI: whether the second of two sentences follows from the first."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from hf_xlmr.tasks.encoding.encoding import Row, encode_pairs
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tasks.kinds.task import SOURCES, ByKey, CardFacts, Coding, Network, Published, Recipe, Scoring, Task
from hf_xlmr.tasks.metrics import accuracy
from hf_xlmr.tasks.xnli import XNLI_LABELS, XNLI_LANGUAGES, Unlabelled, XnliExample, check_order, open_xnli

LABELS: Final = "labels.tsv"
CONFUSION: Final = "confusion.tsv"


def _published(model: str, average: float, scores: str, year: int) -> Published:
    values = {language: (float(each),) for language, each in zip(XNLI_LANGUAGES, scores.split(), strict=True)}
    return Published(model, "translate-train-all", values, (average,), SOURCES[year])


LARGE: Final = "89.1 85.1 86.6 85.7 85.3 85.9 83.5 83.2 83.1 83.7 81.5 83.7 81.6 78.0 78.1"
XL: Final = "91.1 87.2 88.1 87.0 87.4 87.8 85.3 85.2 85.3 86.2 83.8 85.3 83.1 79.8 78.2"
XXL: Final = "91.5 87.6 88.7 87.8 87.4 88.2 85.6 85.1 85.8 86.3 83.9 85.6 84.6 81.7 80.6"


class Xnli(Task[XnliExample, str]):
    """A label for a premise and a hypothesis."""

    name = "xnli"
    example_files = "xnli.train.tsv", "xnli.test.tsv"
    options = frozenset({"unlabelled", "head", "labels"})
    recipe = Recipe(
        class_ending="ForSequenceClassification",
        is_fairseqs=True,
        has_a_row_per_token=False,
        labels=XNLI_LABELS,
        learning_rate=2e-5,
        learning_rate_of_wide=5e-6,
        epochs=5,
        warmup=0.06,
        weight_decay=0.0,
        max_length=128,
    )
    scoring = Scoring(
        metrics=("accuracy",),
        in_a_cell=("accuracy",),
        orders=(XNLI_LANGUAGES,),
        left_out="for labels on which the annotators did not agree",
        title="XNLI, accuracy",
        plot_title="XNLI accuracy, percent",
        chance=100 / 3,  # of guessing one of three labels
        published=(
            _published("XLM-R large", 83.6, LARGE, 2020),
            _published("XLM-R XL", 85.4, XL, 2021),
            _published("XLM-R XXL", 86.0, XXL, 2021),
        ),
    )
    card = CardFacts(
        name="XNLI",
        heading="Natural language inference",
        pipeline_tag="text-classification",
        texts='"The train leaves at night.", "Nothing leaves at night."',
        shown="print(model.config.id2label[output.logits.argmax().item()])",
    )
    predictions_readme = (
        f"`{LABELS}` has a line for each pair of sentences; `index` is its number in its language, from 0.\n"
        f"`{CONFUSION}` counts, in each language, how many pairs of a gold label were given which label.\n"
    )

    def read(self, source: DataSource, reading: Reading, gathered: Gathered) -> None:
        """Pairs of sentences; those without a label are counted."""
        opened = open_xnli(
            source.source,
            language=source.language,
            unlabelled=reading.unlabelled,
            labels=reading.labels,
            split=reading.split,
            config=source.config,
        )
        for each in opened.rows():
            if isinstance(each, Unlabelled):
                gathered.skipped[each.language] += 1
            else:
                gathered.add(each.language, each)

    def check_label_names(self, labels: Sequence[str] | None) -> None:
        """They are the three of XNLI."""
        check_order(labels)

    def encode(self, examples: Sequence[XnliExample], coding: Coding) -> Iterable[Row]:
        """A row for each pair."""
        return encode_pairs(examples, coding.tokenizer, labels=coding.labels, max_length=coding.max_length)

    def predict(self, examples: Sequence[XnliExample], coding: Coding, network: Network) -> list[str]:
        """The label with the highest logit."""
        (logits,) = network(self.encode(examples, coding))
        return [coding.labels[int(each.argmax())] for each in logits]

    def score(self, key: str, examples: Sequence[XnliExample], predictions: Sequence[str]) -> dict[str, float]:
        """The accuracy."""
        return {"accuracy": accuracy(predictions, [each.label for each in examples])}

    def check_writable(self, examples: ByKey[XnliExample]) -> None:
        """All languages are in one file."""
        return

    def write(self, folder: Path, examples: ByKey[XnliExample], predictions: ByKey[str]) -> None:
        """Write a table of all pairs with their labels and those predicted."""
        with (folder / LABELS).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
            table.writerow(("language", "index", "gold_label", "predicted_label"))
            for language, several in examples.items():
                for index, (each, predicted) in enumerate(zip(several, predictions[language], strict=True)):
                    table.writerow((language, index, each.label, predicted))
        if find_spec("sklearn") is not None:
            _write_confusion(folder / CONFUSION, examples, predictions)


def _write_confusion(path: Path, examples: ByKey[XnliExample], predictions: ByKey[str]) -> None:
    from sklearn.metrics import confusion_matrix

    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        table.writerow(("language", "gold_label", *XNLI_LABELS))
        for language, several in examples.items():
            counts = confusion_matrix([each.label for each in several], predictions[language], labels=XNLI_LABELS)
            table.writerows((language, label, *row) for label, row in zip(XNLI_LABELS, counts.tolist(), strict=True))


TASK: Final = Xnli()
