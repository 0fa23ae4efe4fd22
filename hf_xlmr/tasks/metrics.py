"""The scores of the three tasks, digit for digit those of the official scripts; all in percent."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from hf_xlmr.errors import InputError

__all__ = [
    "MLQA_RULES",
    "SQUAD2_RULES",
    "SQUAD_RULES",
    "AnswerRules",
    "AnswerScores",
    "EntityScores",
    "accuracy",
    "answer_f1",
    "is_exact_match",
    "mlqa_rules",
    "normalized_answer",
    "score_answers",
    "score_entities",
    "unanswered_rules",
]

IDS_TOLD: Final = 3  # of many, in a message


def accuracy(predicted: Sequence[object], expected: Sequence[object]) -> float:
    """The share of predictions that are what was expected, in percent. Raises InputError for none, or unlike many."""
    _check_counts("predictions", len(predicted), len(expected))
    right = sum(ours == theirs for ours, theirs in zip(predicted, expected, strict=True))
    return 100.0 * right / len(expected)


def _check_counts(what: str, n_predicted: int, n_expected: int) -> None:
    if n_predicted != n_expected:
        raise InputError(f"{n_predicted:,} {what} cannot be scored against {n_expected:,} examples")
    if not n_expected:
        raise InputError("there are no examples to score")


IOBES_OF: Final = {"L-": "E-", "U-": "S-"}


@dataclass(frozen=True)
class AnswerRules:
    """What of an answer does not count when it is compared, after lower-casing; applied from the first field on."""

    is_unicode_punctuation: bool = True
    """Whether all of Unicode's punctuation is taken out, or ASCII's (which has symbols such as `$` and `+`) alone."""
    articles: re.Pattern[str] | None = None
    """What becomes a space."""
    alone: re.Pattern[str] | None = None
    """The characters that are words by themselves; all other words end at white space."""
    has_unanswered: bool = False
    """Whether questions may have no right answer, as in SQuAD 2.0: then nothing that counts is right, and right answers
    of which nothing counts are none."""


def _words(listed: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(listed.split())})\b")


MLQA_RULES: Final[Mapping[str, AnswerRules]] = MappingProxyType(
    {
        "en": AnswerRules(articles=_words("a an the")),
        "es": AnswerRules(articles=_words("un una unos unas el la los las")),
        "de": AnswerRules(articles=_words("ein eine einen einem eines einer der die das den dem des")),
        "ar": AnswerRules(articles=re.compile("ال")),  # wherever it is: so the official script does
        "hi": AnswerRules(),
        "vi": AnswerRules(articles=_words("của là cái chiếc những")),
        "zh": AnswerRules(alone=re.compile("[\u4e00-\u9fa5]")),
    }
)
"""The rules by the language of the answer, which is that of the context; in the order of the papers' tables."""

SQUAD_RULES: Final = AnswerRules(is_unicode_punctuation=False, articles=_words("a an the"))
"""The rules of SQuAD 1.1's script: MLQA's for English, except that punctuation beyond ASCII stays."""

SQUAD2_RULES: Final = replace(SQUAD_RULES, has_unanswered=True)
"""The rules of SQuAD 2.0's script."""


@dataclass(frozen=True)
class AnswerScores:
    """What a set of predicted answers is worth."""

    f1: float
    """The mean over all questions, in percent."""
    exact_match: float
    """The questions with an exact answer, in percent of all."""
    n_questions: int
    unanswered: tuple[str, ...] = ()
    """The ids of questions without a prediction, each of which counts as wrong."""


def mlqa_rules(language: str) -> AnswerRules:
    """MLQA's rules for answers in one of its seven languages. Raises InputError for any other."""
    if language not in MLQA_RULES:
        raise InputError(f"MLQA has no rules for answers in {language!r}; it has {', '.join(MLQA_RULES)}")
    return MLQA_RULES[language]


def unanswered_rules(language: str) -> AnswerRules:
    """The scores if some questions have no answer: by SQuAD 2.0's rules, or by MLQA's in its way. Raises InputError."""
    return SQUAD2_RULES if language == "en" else replace(mlqa_rules(language), has_unanswered=True)


def score_answers(
    predictions: Mapping[str, str], answers: Iterable[tuple[str, Sequence[str]]], *, rules: AnswerRules
) -> AnswerScores:
    """The scores of `predictions` (by id) against all right answers of each question (its id, and their texts).

    Each question has the score of the right answer that is nearest. Raises InputError for no questions, and for a
    predicted question that has no right answer where the rules know none such.
    """
    n_questions, n_exact, f1 = 0, 0, 0.0
    unanswered = []
    for id_, expected in answers:
        n_questions += 1
        if id_ not in predictions:
            unanswered.append(id_)
            continue
        if not expected and not rules.has_unanswered:
            raise InputError(f"the question {id_!r} has no right answer to score against")
        n_exact += is_exact_match(predictions[id_], expected, rules=rules)
        f1 += answer_f1(predictions[id_], expected, rules=rules)
    _check_answered(n_questions, unanswered, predictions)
    # in this order: a mean taken otherwise differs in its last digits
    return AnswerScores(100.0 * f1 / n_questions, 100.0 * n_exact / n_questions, n_questions, tuple(unanswered))


def _check_answered(n_questions: int, unanswered: Sequence[str], predictions: Mapping[str, str]) -> None:
    if not n_questions:
        raise InputError("there are no questions to score")
    if len(unanswered) == n_questions:
        ids, others = (", ".join(map(repr, list(each)[:IDS_TOLD])) or "none" for each in (unanswered, predictions))
        raise InputError(f"no question has a prediction; the first questions are {ids}, the first predictions {others}")


def answer_f1(predicted: str, expected: Sequence[str], *, rules: AnswerRules) -> float:
    """How far the words of `predicted` are those of the nearest of the `expected`, from 0 to 1."""
    words = normalized_answer(predicted, rules=rules).split()
    others = [each.split() for each in _right_answers(expected, rules)]
    if rules.has_unanswered and not words:
        return float([] in others)
    return max(_f1(words, each) for each in others)


def is_exact_match(predicted: str, expected: Sequence[str], *, rules: AnswerRules) -> bool:
    """Whether `predicted` is one of the `expected`, both normalized."""
    return normalized_answer(predicted, rules=rules) in _right_answers(expected, rules)


def _right_answers(expected: Sequence[str], rules: AnswerRules) -> list[str]:
    """The `expected`, normalized; the empty one alone if nothing is right."""
    normalized = [normalized_answer(each, rules=rules) for each in expected]
    return [each for each in normalized if each] or [""] if rules.has_unanswered else normalized


def normalized_answer(text: str, *, rules: AnswerRules) -> str:
    """The words of `text` that count, in lower case, with a space between any two."""
    text = "".join(each for each in text.lower() if not _is_punctuation(each, rules))
    if rules.articles:
        text = rules.articles.sub(" ", text)
    if rules.alone:
        text = rules.alone.sub(r" \g<0> ", text)
    return " ".join(text.split())


def _is_punctuation(character: str, rules: AnswerRules) -> bool:
    if character in string.punctuation:
        return True
    return rules.is_unicode_punctuation and unicodedata.category(character).startswith("P")


def _f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    n_common = (Counter(predicted) & Counter(expected)).total()
    if not n_common:
        return 0.0
    precision, recall = n_common / len(predicted), n_common / len(expected)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class EntityScores:
    """How well entities were found, as CoNLL counts: one is right if its type and all its bounds are. In percent."""

    precision: float
    recall: float
    f1: float


def score_entities(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> EntityScores:
    """The micro averages over all entities, by seqeval; a tag (`B-PER`, `I-PER`, `O`) per word, a list per sentence.

    Raises InputError for no sentences, unlike many sentences or tags, and without the pip extra `train`.
    """
    _check_counts("tagged sentences", len(predicted), len(expected))
    for number, (ours, theirs) in enumerate(zip(predicted, expected, strict=True)):
        if len(ours) != len(theirs):
            raise InputError(f"sentence {number} has {len(theirs)} words, and {len(ours)} predicted tags")
    scores = _seqeval_scores(
        *([list(map(_in_seqevals_letters, each)) for each in tags] for tags in (expected, predicted))
    )
    return EntityScores(*(100.0 * each for each in scores))


def _in_seqevals_letters(tag: str) -> str:
    """A tag of BILOU's scheme (last and unit) as IOBES has it (end and single), the only one that seqeval knows."""
    return IOBES_OF.get(tag[:2], tag[:2]) + tag[2:]


def _seqeval_scores(expected: list[list[str]], predicted: list[list[str]]) -> tuple[float, float, float]:
    """Precision, recall and F1; each 0 if nothing was found, or there is nothing to find."""
    try:
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
    except ImportError:
        raise InputError("scores of entities need seqeval: pip install 'hf-xlmr[train]'") from None
    precision, recall, f1, _ = precision_recall_fscore_support(
        expected, predicted, average="micro", zero_division=0, warn_for=()
    )
    return float(precision), float(recall), float(f1)
