"""The example data of the package are read as any others are, and are what their templates say."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from write_examples import NER_LANGUAGES, NLI_LANGUAGES, QA_LANGUAGES, write_examples

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.example_data import EXAMPLE_FILES, example_data, example_folder
from hf_xlmr.tasks.metrics import mlqa_rules, score_answers, score_entities
from hf_xlmr.tasks.mlqa import QuestionExample, open_questions
from hf_xlmr.tasks.ner import NerExample, open_ner
from hf_xlmr.tasks.xnli import XNLI_LABELS, XnliExample, open_xnli

LARGEST = 300_000  # bytes, of all files together
PARTS = ("train", "test")


def pairs(part: str) -> list[XnliExample]:
    return list(open_xnli(example_data("xnli", part)))


def questions(context: str, question: str) -> list[QuestionExample]:
    opened = open_questions(example_data("mlqa", "test"), context_language=context, question_language=question)
    assert not opened.misaligned
    return list(opened)


def sentences(part: str) -> list[NerExample]:
    return list(open_ner(example_data("ner", part)))


def test_pairs_of_all_languages_and_labels_alike() -> None:
    for part in PARTS:
        counts = Counter((each.language, each.label) for each in pairs(part))
        assert counts.keys() == set(product(NLI_LANGUAGES, XNLI_LABELS))
        assert len(set(counts.values())) == 1


def test_nothing_of_the_test_data_is_trained_on() -> None:
    for language in NLI_LANGUAGES:
        trained, tested = (
            {(each.premise, each.hypothesis) for each in pairs(part) if each.language == language} for part in PARTS
        )
        assert tested and not trained & tested, language
    contexts = {each.context for each in open_questions(example_data("mlqa", "train"))}
    assert not contexts & {each.context for each in questions("en", "en")}
    for language in NER_LANGUAGES:
        trained, tested = (
            {each.tokens for each in sentences(part) if each.language == language and set(each.tags) != {"O"}}
            for part in PARTS
        )
        assert tested and not trained & tested, language


@pytest.mark.parametrize(("context", "asked"), list(product(QA_LANGUAGES, QA_LANGUAGES)))
def test_every_pair_of_languages_asks_the_same(context: str, asked: str) -> None:
    """A question in any language has the answer of its context, and the right answers score 100."""
    found = questions(context, asked)
    assert [each.id for each in found] == [each.id for each in questions("en", "en")]
    assert [each.answers for each in found] == [each.answers for each in questions(context, context)]
    predictions = {each.id: each.answers[0].text for each in found}
    answers = [(each.id, [answer.text for answer in each.answers]) for each in found]
    scores = score_answers(predictions, answers, rules=mlqa_rules(context))
    assert (scores.f1, scores.exact_match, scores.unanswered) == (100.0, 100.0, ())


def test_questions_to_train_on_are_in_english_and_translated() -> None:
    english = list(open_questions(example_data("mlqa", "train")))
    assert {(each.context_language, each.question_language) for each in english} == {("en", "en")}
    for language in QA_LANGUAGES[1:]:
        name = f"{language}_squad-translate-train-train-v1.1.json"
        opened = open_questions(example_folder() / name)
        assert not opened.misaligned
        assert [each.id for each in opened] == [each.id for each in english]
        assert {each.context_language for each in opened} == {language}


def test_names_of_all_languages_and_kinds() -> None:
    for part in PARTS:
        found = sentences(part)
        assert {each.language for each in found} == set(NER_LANGUAGES)
        tags = {"O", *(f"{place}-{kind}" for place in "BI" for kind in ("PER", "LOC", "ORG"))}
        for language in NER_LANGUAGES:
            told = {tag for each in found if each.language == language for tag in each.tags}
            assert told >= tags - {"I-LOC"} and told <= tags, (part, language)
        if find_spec("seqeval"):
            assert score_entities([each.tags for each in found], [each.tags for each in found]).f1 == 100.0


def test_the_files_are_those_of_their_templates(tmp_path: Path) -> None:
    """`python tests/write_examples.py` writes them again, byte for byte."""
    write_examples(tmp_path)
    kept = {path.name: path.read_bytes() for path in example_folder().iterdir() if path.suffix != ".md"}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert sum(map(len, kept.values())) < LARGEST


def test_more_of_them_can_be_written(tmp_path: Path) -> None:
    write_examples(tmp_path, times=3, seed=2)
    more = list(open_xnli(tmp_path / "xnli.train.tsv"))
    assert len(more) == 3 * len(pairs("train"))
    assert {each.premise for each in more} != {each.premise for each in pairs("train")}
    assert len(list(open_ner(tmp_path / "ner.test.txt"))) > 2 * len(sentences("test"))


def test_a_task_without_example_data() -> None:
    with pytest.raises(InputError, match=r"^there is no example data for xnli dev; there is xnli train, xnli test, "):
        example_data("xnli", "dev")
    assert {task for task, _ in EXAMPLE_FILES} == {"xnli", "mlqa", "ner"}
