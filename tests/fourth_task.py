"""A task that hf_xlmr does not have, in the one file that a task is: whether a text is glad or sad."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hf_xlmr.tasks.encoding.encoding import Row, label_ids
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tasks.kinds.task import ByKey, CardFacts, Coding, Network, Recipe, Scoring, Task
from hf_xlmr.tasks.metrics import accuracy


class Text(NamedTuple):
    text: str
    label: str


class Moods(Task[Text, str]):
    """A line has a language, a label and a text, between tabs."""

    name = "moods"
    example_files = ("moods.train.tsv", "moods.test.tsv")
    options = frozenset({"unlabelled"})
    recipe = Recipe(
        class_ending="ForSequenceClassification",
        has_a_row_per_token=False,
        labels=("glad", "sad"),
        learning_rate=2e-5,
        learning_rate_of_wide=5e-6,
        epochs=1,
        warmup=0.06,
        weight_decay=0.0,
        max_length=64,
    )
    scoring = Scoring(
        metrics=("accuracy",),
        in_a_cell=("accuracy",),
        orders=(("en", "de"),),
        left_out="for want of a label",
        title="Moods, accuracy",
        plot_title="Moods",
        chance=50.0,
    )
    card = CardFacts(
        name="moods",
        heading="Moods of texts",
        pipeline_tag="text-classification",
        texts='"What a day!"',
        shown="print(output.logits)",
    )
    predictions_readme = "A label on each line.\n"

    def read(self, source: DataSource, reading: Reading, gathered: Gathered) -> None:
        for line in Path(source.source).read_text(encoding="utf-8").splitlines():
            language, label, text = line.split("\t")
            gathered.add(language, Text(text, label))

    def encode(self, examples: Sequence[Text], coding: Coding) -> Iterable[Row]:
        numbers = label_ids(coding.labels)
        rows = coding.tokenizer.encode_batch([each.text for each in examples])
        return [{"input_ids": ids, "labels": numbers[each.label]} for ids, each in zip(rows, examples, strict=True)]

    def predict(self, examples: Sequence[Text], coding: Coding, network: Network) -> list[str]:
        (logits,) = network(self.encode(examples, coding))
        return [coding.labels[int(each.argmax())] for each in logits]

    def score(self, key: str, examples: Sequence[Text], predictions: Sequence[str]) -> dict[str, float]:
        return {"accuracy": accuracy(predictions, [each.label for each in examples])}

    def write(self, folder: Path, examples: ByKey[Text], predictions: ByKey[str]) -> None:
        for language in examples:
            (folder / f"{language}.txt").write_text("\n".join(predictions[language]) + "\n", encoding="utf-8")


TASK = Moods()
