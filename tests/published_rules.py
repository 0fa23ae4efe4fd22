"""MLQA's and SQuAD 2.0's scores of answers, written from their published rules, and sharing nothing with hf_xlmr."""

from __future__ import annotations

import json
import re
import string
import sys
import unicodedata
from pathlib import Path

MARKS = {chr(each) for each in range(sys.maxunicode) if unicodedata.category(chr(each)).startswith("P")}
MARKS |= set(string.punctuation)
ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",
}


def published_scores(dataset: Path, predictions: Path, language: str) -> dict[str, float]:
    """F1 and exact match, in percent."""
    answers = json.loads(predictions.read_text(encoding="utf-8"))
    f1 = exact = total = 0.0
    for article in json.loads(dataset.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                total += 1
                truths = [each["text"] for each in asked["answers"]]
                given = answers[asked["id"]]
                exact += max(plain(given, language) == plain(truth, language) for truth in truths)
                f1 += max(overlap(plain(given, language).split(), plain(truth, language).split()) for truth in truths)
    return {"f1": 100.0 * f1 / total, "exact_match": 100.0 * exact / total}


def overlap(given: list[str], truth: list[str]) -> float:
    left, same = list(truth), 0
    for word in given:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(truth)
    return 2 * precision * recall / (precision + recall)


def plain(text: str, language: str) -> str:
    text = "".join(each for each in text.lower() if each not in MARKS)
    text = re.sub(ARTICLES[language], " ", text) if language in ARTICLES else text
    return " ".join(segments(text) if language == "zh" else text.split())


def segments(text: str) -> list[str]:
    """Chinese characters one by one, what stands between them by white space."""
    found, held = [], ""
    for each in text:
        if "\u4e00" <= each <= "\u9fa5":
            found += [*held.split(), each]
            held = ""
        else:
            held += each
    return found + held.split()


# ---- SQuAD 2.0


def squad2_scores(questions: dict[str, list[str]], answers: dict[str, str]) -> dict[str, float]:
    """F1 and exact match, in percent, of English answers by id; a question without right answers has the empty one."""
    f1 = exact = 0.0
    for id_, truths in questions.items():
        golds = [truth for truth in truths if squad_plain(truth)] or [""]
        exact += max(int(squad_plain(gold) == squad_plain(answers[id_])) for gold in golds)
        f1 += max(squad2_overlap(squad_plain(answers[id_]).split(), squad_plain(gold).split()) for gold in golds)
    return {"f1": 100.0 * f1 / len(questions), "exact_match": 100.0 * exact / len(questions)}


def squad2_overlap(given: list[str], truth: list[str]) -> float:
    return overlap(given, truth) if given and truth else float(given == truth)


def squad_plain(text: str) -> str:
    text = "".join(each for each in text.lower() if each not in string.punctuation)
    return " ".join(re.sub(ARTICLES["en"], " ", text).split())
