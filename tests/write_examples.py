"""Write the example data of the tasks: `python tests/write_examples.py`, or more of it with `--times 5 --output DIR`.

The same options give the same bytes. Training and test data share templates, names and places, and no example.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from example_templates import (
    BETWEEN_NAMES,
    CITIES,
    INFERENCES,
    NAMES,
    ORGANISATIONS,
    PLACES,
    READINGS,
    REPORTS,
    SURNAMES,
)

EXAMPLES = Path(__file__).resolve().parent.parent / "hf_xlmr" / "tasks" / "examples"
LABELS = ("entailment", "contradiction", "neutral")
NLI_LANGUAGES = ("en", "fr", "es", "de", "ru", "ar", "zh")
QA_LANGUAGES = ("en", "es", "de", "zh")
NER_LANGUAGES = ("en", "nl", "es", "de", "ru")
TEST_PART = 3  # of so many, one goes to the test data
PREMISES = 9  # of each kind
CITIES_READ_OF, TEST_CITIES = 9, 2  # texts about the first of them are in the test data alone
TAGS = {"p": "PER", "q": "PER", "c": "LOC", "o": "ORG"}

Fill = dict[str, int]


def main() -> None:
    """Write what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=EXAMPLES)
    parser.add_argument("--times", type=int, default=1, help="how many times as much of XNLI and NER")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_examples(options.output, times=options.times, seed=options.seed)


def write_examples(folder: Path, *, times: int = 1, seed: int = 1) -> None:
    """Write all files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (*nli_files(times, seed), *qa_files(seed), *ner_files(times, seed)):
        (folder / name).write_text(text, encoding="utf-8")


def unlike(generator: random.Random, template: str, bounds: dict[str, int], count: int) -> list[Fill]:
    """Numbers below `bounds` that make no two sentences of a template alike: `count`, or as many as there are."""
    used = [name for name in bounds if f"{{{name}}}" in template]
    found: dict[tuple[int, ...], Fill] = {}
    while len(found) < min(count, prod(bounds[name] for name in used)):
        fill = {name: generator.randrange(bound) for name, bound in bounds.items()}
        found.setdefault(tuple(fill[name] for name in used), fill)
    return list(found.values())


# ---- pairs of sentences ----------------------------------------------------------------------------------------------


def nli_files(times: int, seed: int) -> Iterator[tuple[str, str]]:
    """Two tables in the columns of XNLI's release: pairs of all languages, translations of each other."""
    generator = random.Random(f"{seed} pairs")
    parts: dict[str, list[tuple[str, Fill]]] = {"train": [], "test": []}
    bounds = {"n": 6, "c": 6, "t": 44, "u": 43, "p": 70}
    for kind, (premise, *_) in ((kind, texts["en"]) for kind, texts in INFERENCES.items()):
        fills = unlike(generator, premise, bounds, PREMISES * times)
        for number, fill in enumerate(fills):
            parts["test" if number % TEST_PART == 0 else "train"].append((kind, fill))
    for part, premises in parts.items():
        rows = [row for language in NLI_LANGUAGES for kind, fill in premises for row in pairs(language, kind, fill)]
        yield f"xnli.{part}.tsv", "".join(f"{row}\n" for row in ("language\tgold_label\tsentence1\tsentence2", *rows))


def pairs(language: str, kind: str, fill: Fill) -> Iterator[str]:
    """A premise with the three hypotheses."""
    other = (fill["t"] + 1 + fill["u"]) % 44
    texts = {
        "n": NAMES[language][fill["n"]],
        "c": CITIES[language][fill["c"]],
        "t": clock(fill["t"]),
        "u": clock(other),
        "p": str(fill["p"] + 5),
    }
    premise, *hypotheses = (template.format(**texts) for template in INFERENCES[kind][language])
    for label, hypothesis in zip(LABELS, hypotheses, strict=True):
        yield f"{language}\t{label}\t{premise}\t{hypothesis}"


def clock(quarter: int) -> str:
    """A time of the day from 9:00 on."""
    return f"{9 + quarter // 4}:{quarter % 4 * 15:02}"


# ---- questions -------------------------------------------------------------------------------------------------------


def qa_files(seed: int) -> Iterator[tuple[str, str]]:
    """Training data in English and translated, and test data of all pairs of context and question, in SQuAD's JSON."""
    generator = random.Random(f"{seed} questions")
    bounds = {"n": 6, "s": 6, "y": 130, "m": 700, "k": 60}
    fills = {
        (kind, city): {name: generator.randrange(bound) for name, bound in bounds.items()}
        for kind in READINGS
        for city in range(CITIES_READ_OF)
    }
    train = {key: fill for key, fill in fills.items() if key[1] >= TEST_CITIES}
    test = {key: fill for key, fill in fills.items() if key[1] < TEST_CITIES}
    for language in QA_LANGUAGES:
        name = "train-v1.1.json" if language == "en" else f"{language}_squad-translate-train-train-v1.1.json"
        yield name, document(train, language, language)
        for asked in QA_LANGUAGES:
            yield f"test-context-{language}-question-{asked}.json", document(test, language, asked)


def document(fills: dict[tuple[str, int], Fill], language: str, asked: str) -> str:
    """The texts in a language with the questions in another, an article for each kind of text."""
    articles = []
    for kind in dict.fromkeys(kind for kind, _ in fills):
        paragraphs = [paragraph(kind, city, fills[kind, city], language, asked) for each, city in fills if each == kind]
        listed = ",\n".join(json.dumps(each, ensure_ascii=False) for each in paragraphs)
        articles.append(f'{{"title": "{kind}", "paragraphs": [\n{listed}\n]}}')
    return f'{{"version": "1.1", "data": [\n{", ".join(articles)}\n]}}\n'


def paragraph(kind: str, city: int, fill: Fill, language: str, asked: str) -> dict[str, object]:
    """A text and what is asked about it."""
    texts = {
        "c": CITIES[language][city],
        "n": person(language, fill["n"], fill["s"]),
        "y": str(1870 + fill["y"]),
        "m": str(100 + fill["m"]),
        "k": str(20 * (50 + fill["k"])),
    }
    context, *_, number = (template.format(**texts) for template in READINGS[kind][language])
    questions = (template.format(c=CITIES[asked][city]) for template in READINGS[kind][asked][1:4])
    answers = {"when": texts["y"], "who": texts["n"], "how-many": number}
    qas = []
    for (name, answer), question in zip(answers.items(), questions, strict=True):
        assert context.count(answer) == 1, (context, answer)
        found = [{"text": answer, "answer_start": context.index(answer)}]
        qas.append({"id": f"{kind}-{city}-{name}", "question": question, "answers": found})
    return {"context": context, "qas": qas}


def person(language: str, name: int, surname: int) -> str:
    """A whole name."""
    return NAMES[language][name] + BETWEEN_NAMES.get(language, " ") + SURNAMES[language][surname]


# ---- names -----------------------------------------------------------------------------------------------------------


def ner_files(times: int, seed: int) -> Iterator[tuple[str, str]]:
    """Two files in WikiANN's columns: sentences of all languages, translations of each other."""
    generator = random.Random(f"{seed} names")
    parts: dict[str, list[tuple[int, Fill]]] = {"train": [], "test": []}
    bounds = {"p": 36, "q": 35, "c": 11, "o": 6}
    for kind, template in enumerate(REPORTS["en"]):
        for number, fill in enumerate(unlike(generator, template, bounds, PREMISES * times)):
            parts["test" if number % TEST_PART == 2 else "train"].append((kind, fill))
    for part, sentences in parts.items():
        blocks = [sentence(language, kind, fill) for language in NER_LANGUAGES for kind, fill in sentences]
        yield f"ner.{part}.txt", "\n".join(blocks)


def sentence(language: str, kind: int, fill: Fill) -> str:
    """A word and its tag per line."""
    other = (fill["p"] + 1 + fill["q"]) % 36
    texts = {
        "p": person(language, fill["p"] // 6, fill["p"] % 6),
        "q": person(language, other // 6, other % 6),
        "c": PLACES[language][fill["c"]],
        "o": ORGANISATIONS[language][fill["o"]],
    }
    lines = []
    for word in REPORTS[language][kind].split():
        tag = TAGS.get(word.strip("{}")) if word.startswith("{") else None
        for number, token in enumerate(texts[word[1]].split() if tag else [word]):
            marked = f"{'I' if number else 'B'}-{tag}" if tag else "O"
            lines.append(f"{language}:{token}\t{marked}\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
