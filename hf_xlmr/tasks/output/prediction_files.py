"""What a model said of each example, in the forms that the official scripts and other people's read."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hf_xlmr.errors import InputError, printable
from hf_xlmr.tasks.encoding.task_data import TaskData
from hf_xlmr.tasks.mlqa import told_ids
from hf_xlmr.tasks.results import languages_of_pair
from hf_xlmr.tasks.xnli import XNLI_LABELS

__all__ = ["READMES", "check_ids", "check_names", "write_answers", "write_columns", "write_labels"]

LABELS: Final = "labels.tsv"
CONFUSION: Final = "confusion.tsv"
LABEL_COLUMNS: Final = ("language", "index", "gold_label", "predicted_label")
READMES: Final[Mapping[str, str]] = {
    "xnli": (
        f"`{LABELS}` has a line for each pair of sentences; `index` is its number in its language, from 0.\n"
        f"`{CONFUSION}` counts, in each language, how many pairs of a gold label were given which label.\n"
    ),
    "mlqa": (
        'A file for each pair of languages has the answer to each question by its id, `""` for none, as MLQA\'s and\n'
        "SQuAD's official scripts read it; the last argument is the language of the contexts:\n\n"
        "    python mlqa_evaluation_v1.py test-context-en-question-de.json context-en-question-de.json en\n"
    ),
    "ner": (
        "A file for each language has a word, its tag and the predicted tag per line, as conlleval reads them; white\n"
        "space within a word is written as `_`:\n\n    perl conlleval < en.conll\n"
    ),
}
"""What each task's files are, for a file beside them."""
NAME: Final = re.compile(r"[\w-]+")


def write_labels(folder: Path, examples: Mapping[str, Sequence[Any]], predictions: Mapping[str, Sequence[str]]) -> None:
    """A table of all pairs of sentences with their labels and those predicted."""
    with (folder / LABELS).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        table.writerow(LABEL_COLUMNS)
        for language, several in examples.items():
            for index, (each, predicted) in enumerate(zip(several, predictions[language], strict=True)):
                table.writerow((language, index, each.label, predicted))
    if find_spec("sklearn") is not None:
        _write_confusion(folder / CONFUSION, examples, predictions)


def _write_confusion(
    path: Path, examples: Mapping[str, Sequence[Any]], predictions: Mapping[str, Sequence[str]]
) -> None:
    """How many pairs of each label were given which label, by language."""
    from sklearn.metrics import confusion_matrix

    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        table.writerow(("language", "gold_label", *XNLI_LABELS))
        for language, several in examples.items():
            counts = confusion_matrix([each.label for each in several], predictions[language], labels=XNLI_LABELS)
            table.writerows((language, label, *row) for label, row in zip(XNLI_LABELS, counts.tolist(), strict=True))


def check_names(data: TaskData) -> None:
    """Raise InputError for a language that is no name of a file: it can be any text of the data."""
    for language in data.examples:
        if not NAME.fullmatch(language):
            raise InputError(f"{language!r:.80} is no language by which a file of predictions can be called")


def check_ids(data: TaskData) -> None:
    """Raise InputError where two questions of a pair of languages have the same id: a file keeps one answer by it."""
    check_names(data)
    questions: Mapping[str, Sequence[Any]] = data.examples
    for pair, examples in questions.items():
        if twice := [id_ for id_, count in Counter(each.id for each in examples).items() if count > 1]:
            raise InputError(
                printable(
                    f"the answers of {pair} cannot be written by their ids, since {told_ids(twice)} stand there more "
                    "than once: evaluate the inputs one by one, or without --output"
                )
            )


def write_answers(
    folder: Path, examples: Mapping[str, Sequence[Any]], predictions: Mapping[str, Sequence[str]]
) -> None:
    """Answers by id, in a file for each pair of languages."""
    for pair, several in examples.items():
        context, question = languages_of_pair(pair)
        answers = {each.id: answer for each, answer in zip(several, predictions[pair], strict=True)}
        text = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
        (folder / f"context-{context}-question-{question}.json").write_text(text, encoding="utf-8")


def write_columns(
    folder: Path, examples: Mapping[str, Sequence[Any]], predictions: Mapping[str, Sequence[Sequence[str]]]
) -> None:
    """Words with their tags and those predicted, in a file for each language."""
    for language, several in examples.items():
        with (folder / f"{language}.conll").open("w", encoding="utf-8", newline="\n") as file:
            for each, tags in zip(several, predictions[language], strict=True):
                rows = zip(each.tokens, each.tags, tags, strict=True)
                file.writelines(f"{_in_one_column(word)} {tag} {predicted}\n" for word, tag, predicted in rows)
                file.write("\n")


def _in_one_column(word: str) -> str:
    return "".join("_" if character.isspace() else character for character in word) or "_"
