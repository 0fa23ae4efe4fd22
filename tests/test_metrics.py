"""The scores are the official scripts', to the last digit, and what cannot be scored is one plain sentence."""

from __future__ import annotations

import json
import sys
from itertools import combinations, permutations
from typing import Any

import pytest
from places import FIXTURES

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.metrics import (
    MLQA_RULES,
    SQUAD_RULES,
    AnswerRules,
    accuracy,
    answer_f1,
    is_exact_match,
    mlqa_rules,
    normalized_answer,
    score_answers,
    score_entities,
)

RECORDED: dict[str, Any] = json.loads((FIXTURES / "tasks" / "answer_scores.json").read_text(encoding="utf-8"))
RULES: dict[str, AnswerRules] = {**MLQA_RULES, "squad": SQUAD_RULES}
EVERY_SET_OF_RULES = pytest.mark.parametrize("name", RULES)


# ---- accuracy --------------------------------------------------------------------------------------------------------


def test_accuracy_is_in_percent() -> None:
    assert accuracy(["neutral", "entailment", "neutral"], ["neutral", "neutral", "neutral"]) == 200.0 / 3
    assert accuracy([0, 1], [0, 1]) == 100.0


def test_accuracy_of_nothing_and_of_unlike_many() -> None:
    with pytest.raises(InputError, match="no examples to score"):
        accuracy([], [])
    with pytest.raises(InputError, match="1,000 predictions cannot be scored against 2 examples"):
        accuracy([0] * 1000, [0, 1])


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_all_languages_are_recorded() -> None:
    assert RECORDED.keys() == RULES.keys()
    assert list(MLQA_RULES) == ["en", "es", "de", "ar", "hi", "vi", "zh"]


@EVERY_SET_OF_RULES
def test_each_answer_scores_what_the_official_script_says(name: str) -> None:
    for expected, predicted, recorded in RECORDED[name]["cases"]:
        assert 100.0 * answer_f1(predicted, expected, rules=RULES[name]) == recorded["f1"], (expected, predicted)
        assert 100.0 * is_exact_match(predicted, expected, rules=RULES[name]) == recorded["exact_match"]


@EVERY_SET_OF_RULES
def test_the_averages_are_the_official_ones_to_the_last_digit(name: str) -> None:
    cases = RECORDED[name]["cases"]
    answers = [(str(number), expected) for number, (expected, _, _) in enumerate(cases)]
    predictions = {str(number): predicted for number, (_, predicted, _) in enumerate(cases)}
    scores = score_answers(predictions, answers, rules=RULES[name])
    assert {"f1": scores.f1, "exact_match": scores.exact_match} == RECORDED[name]["all"]
    assert (scores.n_questions, scores.unanswered) == (len(cases), ())

    del predictions["32"]
    scores = score_answers(predictions, iter(answers), rules=RULES[name])
    assert {"f1": scores.f1, "exact_match": scores.exact_match} == RECORDED[name]["some unanswered"]
    assert (scores.n_questions, scores.unanswered) == (len(cases), ("32",))


@pytest.mark.parametrize("pair", [*combinations(RULES, 2)], ids="-".join)
def test_the_recorded_answers_tell_one_set_of_rules_from_another(pair: tuple[str, str]) -> None:
    """Else the two tests above would say little."""
    assert any(
        100.0 * answer_f1(predicted, expected, rules=RULES[wrong]) != recorded["f1"]
        for name, wrong in permutations(pair)
        for expected, predicted, recorded in RECORDED[name]["cases"]
    )


@pytest.mark.parametrize(
    ("language", "text", "normalized"),
    [
        ("en", "The «Hague», a city-state", "hague citystate"),
        ("es", "Las 3 lagunas, el Río", "3 lagunas río"),
        ("de", "Der Straße; derselbe", "straße derselbe"),
        ("ar", "قال الكتاب؟", "ق كتاب"),  # not an article in the first word, but the official script takes it
        ("hi", "यह नदी है।", "यह नदी है"),
        ("vi", "Những làng của Việt Nam", "làng việt nam"),
        ("zh", "2008年 iPhone手机。", "2008 年 iphone 手 机"),
    ],
)
def test_what_counts_of_an_answer(language: str, text: str, normalized: str) -> None:
    assert normalized_answer(text, rules=mlqa_rules(language)) == normalized


def test_squad_keeps_punctuation_beyond_ascii() -> None:
    assert normalized_answer("the “Rhine”, $5", rules=SQUAD_RULES) == "“rhine” 5"
    assert normalized_answer("the “Rhine”, $5", rules=mlqa_rules("en")) == "rhine 5"


def test_what_cannot_be_scored_is_told() -> None:
    with pytest.raises(InputError, match="no rules for answers in 'fr'; it has en, es, de, ar, hi, vi, zh"):
        mlqa_rules("fr")
    for predictions, answers, told in (
        ({"a": "x"}, [], "there are no questions to score"),
        ({"a": "x"}, [("a", [])], "the question 'a' has no right answer"),
        ({"x": "1", "y": "2"}, [("a", ["b"])], "no question has a prediction; the first questions are 'a', the first"),
        ({}, [("a", ["b"])], "the first predictions none"),
    ):
        with pytest.raises(InputError, match=told):
            score_answers(predictions, answers, rules=SQUAD_RULES)  # type: ignore[arg-type]


# ---- entities --------------------------------------------------------------------------------------------------------

TRUE = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "I-ORG", "O"], ["O", "O"]]
FOUND = [["B-PER", "I-PER", "O", "B-ORG"], ["B-ORG", "O", "O"], ["O", "B-LOC"]]


def test_an_entity_is_right_if_its_type_and_bounds_are() -> None:
    pytest.importorskip("seqeval")
    scores = score_entities(FOUND, TRUE)
    assert (scores.precision, scores.recall) == (25.0, 100.0 * (1 / 3))
    assert scores.f1 == pytest.approx(200 / 7)
    assert score_entities(TRUE, TRUE).f1 == 100.0


def test_entities_score_what_seqeval_says() -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    odd = [["I-PER", "B-PER", "I-LOC", "I-LOC"], ["I-ORG", "I-ORG", "I-PER"], ["B-LOC", "O"]]
    for found in (FOUND, odd):
        scores = score_entities(found, TRUE)
        assert scores.precision == 100.0 * metrics.precision_score(TRUE, found)
        assert scores.recall == 100.0 * metrics.recall_score(TRUE, found)
        assert scores.f1 == 100.0 * metrics.f1_score(TRUE, found)


@pytest.mark.filterwarnings("error")
def test_nothing_found_scores_0_without_a_warning() -> None:
    pytest.importorskip("seqeval")
    nothing = [["O"] * len(tags) for tags in TRUE]
    assert score_entities(nothing, TRUE).f1 == 0.0
    assert score_entities(nothing, nothing).f1 == 0.0


@pytest.mark.filterwarnings("error")
def test_last_and_unit_score_as_end_and_single() -> None:
    pytest.importorskip("seqeval")
    scores = score_entities([["B-PER", "L-PER", "O", "U-LOC"]], [["B-PER", "L-PER", "U-PER", "U-LOC"]])
    assert (scores.precision, round(scores.recall, 6), scores.f1) == (100.0, 66.666667, 80.0)
    as_iobes = score_entities([["B-PER", "E-PER", "O", "S-LOC"]], [["B-PER", "E-PER", "S-PER", "S-LOC"]])
    assert scores == as_iobes


def test_tags_that_do_not_fit_are_told() -> None:
    with pytest.raises(InputError, match="sentence 1 has 3 words, and 1 predicted tags"):
        score_entities([TRUE[0], ["O"], TRUE[2]], TRUE)
    with pytest.raises(InputError, match="2 tagged sentences cannot be scored against 3 examples"):
        score_entities(TRUE[:2], TRUE)
    with pytest.raises(InputError, match="no examples"):
        score_entities([], [])


def test_without_seqeval_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval.metrics.sequence_labeling", None)
    with pytest.raises(InputError, match=r"need seqeval: pip install 'hf-xlmr\[train\]'"):
        score_entities(TRUE, TRUE)
