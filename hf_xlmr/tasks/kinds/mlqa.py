"""The task MLQA: the answer to a question in a text, which may be in another language."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from hf_xlmr.errors import InputError, printable
from hf_xlmr.tasks.encoding.encoding import Row
from hf_xlmr.tasks.encoding.question_answering import best_answers, encode_questions, row_of, windows_of
from hf_xlmr.tasks.kinds.inputs import DataSource, Gathered, Reading
from hf_xlmr.tasks.kinds.task import SOURCES, ByKey, CardFacts, Coding, Network, Published, Recipe, Scoring, Task
from hf_xlmr.tasks.metrics import MLQA_RULES, mlqa_rules, score_answers, unanswered_rules
from hf_xlmr.tasks.mlqa import QuestionExample, open_questions, told_ids


def languages_of_pair(key: str) -> tuple[str, str]:
    """The languages of context and question in a key of MLQA's scores: `en-de`, or `en` if they are the same."""
    context, _, question = key.partition("-")
    return context, question or context


def key_of_pair(context: str, question: str) -> str:
    """The key of two languages in MLQA's scores, as `languages_of_pair` reads it."""
    return context if context == question else f"{context}-{question}"


def _published(model: str, average: tuple[float, float], scores: str, year: int) -> Published:
    """The average is over contexts and questions of the same language."""
    pairs = (tuple(map(float, each.split("/"))) for each in scores.split())
    return Published(
        model, "trained on SQuAD", dict(zip(MLQA_RULES, pairs, strict=bool(scores))), average, SOURCES[year]
    )


LARGE: Final = "80.6/67.8 74.1/56.0 68.5/53.6 63.1/43.5 69.2/51.6 71.3/50.9 68.0/45.4"


class Mlqa(Task[QuestionExample, str]):
    """Questions about texts, scored for each pair of their languages."""

    name = "mlqa"
    example_files = "train-v1.1.json", "test-context-*-question-*.json"
    options = frozenset({"stride", "max_answer", "null_threshold", "misaligned"})
    recipe = Recipe(
        class_ending="ForQuestionAnswering",
        head="qa_outputs",
        has_classes=False,
        label_columns=("start_positions", "end_positions"),
        learning_rate=3e-5,
        learning_rate_of_wide=1e-5,
        epochs=3,
        warmup=500,
        weight_decay=0.0001,
        max_length=384,
    )
    scoring = Scoring(
        metrics=("f1", "exact_match"),
        in_a_cell=("f1", "exact_match"),
        orders=(tuple(MLQA_RULES),),
        left_out="for answers that are not where they should be",
        title="MLQA, F1 / EM",
        plot_title="MLQA F1 (pale) and exact match (full), percent",
        plot_title_of_pairs=(
            "MLQA F1 (pale) and exact match (full) of questions in one language on texts in another, percent"
        ),
        published=(
            _published("XLM-R large", (70.7, 52.7), LARGE, 2020),
            # their columns as printed do not fit the languages above them, so the averages alone are given
            _published("XLM-R XL", (73.4, 55.3), "", 2021),
            _published("XLM-R XXL", (74.8, 56.6), "", 2021),
        ),
    )
    card = CardFacts(
        name="MLQA",
        heading="Question answering",
        pipeline_tag="question-answering",
        texts='"When does the train leave?", "The train leaves at night."',
        shown=(
            "start, end = output.start_logits.argmax().item(), output.end_logits.argmax().item()\n"
            "print(tokenizer.decode(batch.input_ids[0, start : end + 1]))  "
            "# in long texts `hf-xlmr evaluate` finds the best span"
        ),
    )
    predictions_readme = (
        'A file for each pair of languages has the answer to each question by its id, `""` for none, as MLQA\'s and\n'
        "SQuAD's official scripts read it; the last argument is the language of the contexts:\n\n"
        "    python mlqa_evaluation_v1.py test-context-en-question-de.json context-en-question-de.json en\n"
    )

    def read(self, source: DataSource, reading: Reading, gathered: Gathered) -> None:
        """Questions; each pair of languages is an input, since all pairs share their ids."""
        context, _, question = (source.language or "").partition("-")
        opened = open_questions(
            source.source,
            context_language=context or None,
            question_language=question or context or None,
            misaligned=reading.misaligned,
            split=reading.split,
            config=source.config,
        )
        for pair in dict.fromkeys(part[1:] for part in opened.parts):
            key, several = key_of_pair(*pair), replace(opened, parts=tuple(p for p in opened.parts if p[1:] == pair))
            for each in several:
                gathered.add(key, each)
            if reading.misaligned != "refuse" and several.misaligned:
                ids = dict.fromkeys(each.id for each in several.misaligned)
                gathered.misaligned.setdefault(key, []).extend(ids)
                gathered.skipped[key] += len(ids) if reading.misaligned == "skip" else 0

    def languages_of(self, key: str) -> tuple[str, ...]:
        """The languages of context and question."""
        return languages_of_pair(key)

    def key_of(self, language: str) -> str:
        """`en-en` is `en`."""
        return key_of_pair(*languages_of_pair(language.lower()))

    def check_scorable(self, examples: ByKey[QuestionExample]) -> None:
        """Answers are compared by rules of their language."""
        for key in examples:
            mlqa_rules(languages_of_pair(key)[0])

    def encode(self, examples: Sequence[QuestionExample], coding: Coding) -> Iterable[Row]:
        """A row for each window of a text."""
        return encode_questions(examples, coding.tokenizer, coding.questions)

    def predict(self, examples: Sequence[QuestionExample], coding: Coding, network: Network) -> list[str]:
        """The best answer of all windows."""
        windows = list(windows_of(examples, coding.tokenizer, coding.questions))
        starts, ends = network(map(row_of, windows))
        return [each[0].text for each in best_answers(examples, windows, starts, ends, coding.questions)]

    def score(self, key: str, examples: Sequence[QuestionExample], predictions: Sequence[str]) -> dict[str, float]:
        """Score by MLQA's rules for the language of the context, or by SQuAD 2.0's if some questions have no answer."""
        rules_of = mlqa_rules if all(each.answers for each in examples) else unanswered_rules
        numbered = {str(number): each for number, each in enumerate(predictions)}  # ids of two files may be the same
        expected = ((str(number), [answer.text for answer in each.answers]) for number, each in enumerate(examples))
        scored = score_answers(numbered, expected, rules=rules_of(languages_of_pair(key)[0]))
        return {"f1": scored.f1, "exact_match": scored.exact_match}

    def settings(self, coding: Coding) -> Mapping[str, float]:
        """How texts are cut, and which answers count."""
        threshold = coding.questions.null_threshold
        settings: dict[str, float] = {"stride": coding.questions.stride, "max_answer": coding.questions.max_answer}
        return settings if threshold is None else {**settings, "null_threshold": threshold}

    def check_writable(self, examples: ByKey[QuestionExample]) -> None:
        """A file has one answer by each id."""
        super().check_writable(examples)
        for key, questions in examples.items():
            if twice := [id_ for id_, count in Counter(each.id for each in questions).items() if count > 1]:
                raise InputError(
                    printable(
                        f"the answers of {key} cannot be written by their ids, since {told_ids(twice)} occur "
                        "more than once: evaluate the inputs one by one, or without output="
                    )
                )

    def write(self, folder: Path, examples: ByKey[QuestionExample], predictions: ByKey[str]) -> None:
        """Write answers by id into a file for each pair of languages."""
        for key, several in examples.items():
            context, question = languages_of_pair(key)
            answers = {each.id: answer for each, answer in zip(several, predictions[key], strict=True)}
            text = json.dumps(answers, ensure_ascii=False, indent=1) + "\n"
            (folder / f"context-{context}-question-{question}.json").write_text(text, encoding="utf-8")


TASK: Final = Mlqa()
