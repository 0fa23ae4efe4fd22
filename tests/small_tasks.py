"""Data of the three tasks that a tiny network learns in seconds, in languages that share what tells the answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = {
    "en": ["the", "train", "leaves", "late", "and", "children", "play", "in", "a", "garden"],
    "de": ["der", "Zug", "fährt", "spät", "und", "Kinder", "spielen", "im", "Garten"],
    "ru": ["поезд", "уходит", "поздно", "и", "дети", "играют", "в", "саду"],
    "zh": ["火车", "晚上", "出发", "孩子", "在", "花园", "里", "玩"],
}
LANGUAGES = tuple(WORDS)
MARKS = {"entailment": ".", "neutral": "e", "contradiction": "o"}
"""What the second sentence ends with, which is all there is to learn; every dictionary here has it."""
NAMES = {"PER": ("Maria Anna", "Peter"), "LOC": ("Berlin", "San Marino")}


def write_xnli(path: Path, count: int, languages: tuple[str, ...] = LANGUAGES, *, seed: int = 1) -> str:
    """`count` pairs in each language, as XNLI's release has them."""
    rng = random.Random(seed)
    lines = ["language\tgold_label\tsentence1\tsentence2"]
    for language in languages:
        for number in range(count):
            label = list(MARKS)[number % 3]
            first, second = (" ".join(rng.choices(WORDS[language], k=rng.randint(2, 5))) for _ in "ab")
            lines.append(f"{language}\t{label}\t{first}\t{second} {MARKS[label]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_ner(path: Path, count: int, languages: tuple[str, ...] = LANGUAGES, *, seed: int = 1) -> str:
    """`count` sentences in each language, as WikiANN has them: `e` stands before a person, `o` before a place."""
    rng = random.Random(seed)
    lines = []
    for language in languages:
        for _ in range(count):
            sentence = [(word, "O") for word in rng.choices(WORDS[language], k=3)]
            for kind, sign in (("PER", "e"), ("LOC", "o")):
                words = rng.choice(NAMES[kind]).split()
                sentence += [(sign, "O"), *((word, f"{'IB'[not i]}-{kind}") for i, word in enumerate(words))]
                sentence += [(word, "O") for word in rng.choices(WORDS[language], k=2)]
            lines += [f"{language}:{word}\t{tag}" for word, tag in sentence]
            lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def write_questions(path: Path, count: int, language: str = "en", *, seed: int = 1) -> str:
    """`count` questions as SQuAD's JSON has them; the answer is the only number in the text."""
    rng = random.Random(seed)
    paragraphs = []
    for index in range(count):
        before, after = (" ".join(rng.choices(WORDS[language], k=rng.randint(2, 6))) for _ in "ab")
        answer = str(rng.randint(10, 99))
        question = {
            "id": f"q{index}",
            "question": " ".join(rng.choices(WORDS[language], k=2)) + "?",
            "answers": [{"text": answer, "answer_start": len(before) + 1}],
        }
        paragraphs.append({"context": f"{before} {answer} {after}", "qas": [question]})
    document = {"version": "1.1", "data": [{"title": "numbers", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return str(path)
