"""Ask the official scripts what odd predictions score: answer_scores.py MLQA_SCRIPT SQUAD_SCRIPT > answer_scores.json.

The scripts are mlqa_evaluation_v1.py of facebookresearch/MLQA and SQuAD's evaluate-v1.1.py, as downloaded. Predictions
and right answers are made here, of words of our own, from a fixed seed; what comes out belongs into tests/fixtures.
`--compare N` records nothing, and scores N of them per language by the scripts and by hf_xlmr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import random
import unicodedata
from collections.abc import Callable
from typing import Any

RECORDED = 40
UNANSWERED = 33  # one question of so many
LISTED = {
    "en": "the a an Theatre another The A AN river Rhine 1,024 $5 U.S. it's state-of-the-art café O'Neil and",
    "es": "el la los las un una unos unas El LAS elefante lago año ¿qué? ¡sí! niña «casa» unánime",
    "de": "der die das den dem des ein eine einen einem eines einer Der Straße STRASSE Rhein über „Haus“ derselbe",
    "ar": "ال الكتاب كتاب والبيت ، القاهرة قال ؟ ـال مدينة ١٢٣ أَلْف اللغة \u200fال",
    "hi": "नदी का है। यह एक हिन्दी, हिंदी १२ दिल्ली॥ क़ क़ में",
    "vi": "của là cái chiếc những Của sông Hồng của Việt Nam, Hà-Nội làng nước",
    "zh": "长江 的 北京。 二〇〇八年 中国，上海 A股 3.14公里 「台灣」 鿀 㐀 iPhone手机 𠀀",
}
WORDS = {language: words.split(" ") for language, words in LISTED.items()}
WORDS["squad"] = WORDS["en"]
EMPTY = ["", " ", "。", "...", "the", "ال", "las", "\u3000"]
ODD = [
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u200b", "\x1c", "\x85", "\u2028", "\ufeff"),
    *"_-—…'’“”。、·।؟٪᠆⸺︱𐄀",  # punctuation of Unicode
    *"$+^|~`=<€№＄🙂",  # symbols, of which ASCII's are punctuation to the scripts
    *("\u0301", "a\u0300", "İ", "ß", "Σς", "ǅ", "\U0010ffff", "一", "龥", "龦", "鿿", "a_the_b", "the-end", "la.casa"),
]
Case = tuple[list[str], "str | None"]  # the right answers, and the predicted one
Score = Callable[[list[Case]], dict[str, float]]


def words_of(chance: random.Random, name: str) -> str:
    if chance.random() < 0.04:
        return chance.choice(EMPTY)
    return "".join(word_of(chance, name) for _ in range(chance.randint(1, 7)))


def word_of(chance: random.Random, name: str) -> str:
    listed = chance.choices([WORDS[name], ODD, WORDS[chance.choice(list(WORDS))]], [7, 2, 1])[0]
    word = chance.choice(listed)
    if chance.random() < 0.1:
        word = word.upper()
    if chance.random() < 0.1:
        word = unicodedata.normalize(chance.choice(["NFC", "NFD", "NFKC"]), word)
    return word + chance.choice([" ", " ", " ", "", "  ", chance.choice(ODD)])


def nearly(chance: random.Random, text: str, name: str) -> str:
    """What a model might say instead of `text`."""
    shuffled = text.split(" ")
    chance.shuffle(shuffled)
    wrapped = chance.choice(ODD) + text + chance.choice(ODD)
    ways = [
        text,
        text.upper(),
        wrapped,
        " ".join(shuffled),
        text[: chance.randint(0, len(text))],
        words_of(chance, name),
    ]
    return chance.choices(ways, [6, 3, 3, 3, 2, 3])[0]


def cases_of(chance: random.Random, name: str, n_cases: int) -> list[Case]:
    cases: list[Case] = []
    for _ in range(n_cases):
        expected = [words_of(chance, name) for _ in range(chance.choice([1, 1, 1, 2, 3, 4]))]
        cases.append((expected, nearly(chance, chance.choice(expected), name)))
    return cases


def module_of(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("official", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official(script: Any, arguments: list[str]) -> Score:
    def score(cases: list[Case]) -> dict[str, float]:
        qas = [{"id": str(n), "answers": [{"text": text} for text in case[0]]} for n, case in enumerate(cases)]
        data = [{"paragraphs": [{"qas": qas}]}]
        with contextlib.redirect_stderr(io.StringIO()):
            scores: dict[str, float] = script.evaluate(data, predictions_of(cases), *arguments)
        return scores

    return score


def ours(name: str) -> Score:
    from hf_xlmr.tasks.metrics import SQUAD_RULES, mlqa_rules, score_answers

    rules = SQUAD_RULES if name == "squad" else mlqa_rules(name)

    def score(cases: list[Case]) -> dict[str, float]:
        answers = ((str(n), case[0]) for n, case in enumerate(cases))
        scores = score_answers(predictions_of(cases), answers, rules=rules)
        return {"exact_match": scores.exact_match, "f1": scores.f1}

    return score


def predictions_of(cases: list[Case]) -> dict[str, str]:
    return {str(number): predicted for number, (_, predicted) in enumerate(cases) if predicted is not None}


def with_gaps(cases: list[Case]) -> list[Case]:
    return [
        (each, None if number % UNANSWERED == UNANSWERED - 1 else told) for number, (each, told) in enumerate(cases)
    ]


def compare(name: str, score: Score, cases: list[Case]) -> None:
    score_ours = ours(name)
    n_unlike = sum(score([case]) != score_ours([case]) for case in cases)
    whole, whole_ours = score(with_gaps(cases)), score_ours(with_gaps(cases))
    print(f"{name}: {n_unlike} of {len(cases)} differ; all: {whole} {'=' if whole == whole_ours else '!='} ours")


def record(score: Score, cases: list[Case]) -> dict[str, Any]:
    rows = [[*case, score([case])] for case in cases]
    return {"all": score(cases), "some unanswered": score(with_gaps(cases)), "cases": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mlqa")
    parser.add_argument("squad")
    parser.add_argument("--compare", type=int, metavar="N")
    asked = parser.parse_args()
    mlqa, chance, recorded = module_of(asked.mlqa), random.Random(7), {}
    for name in WORDS:
        score = official(module_of(asked.squad), []) if name == "squad" else official(mlqa, [name])
        cases = cases_of(chance, name, asked.compare or RECORDED)
        if asked.compare:
            compare(name, score, cases)
        else:
            recorded[name] = record(score, cases)
    if recorded:
        print(json.dumps(recorded))
