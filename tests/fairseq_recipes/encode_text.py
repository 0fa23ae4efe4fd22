"""Write the texts that fairseq-preprocess reads: pieces separated by spaces (Python >= 3.8, sentencepiece)."""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import sentencepiece
from corpus import Sentence, choose, read_corpus, read_nli

SEPARATOR = " </s> </s> "  # what stands between two texts of a pair


def piece_encoder(model: Path) -> Callable[[str], str]:
    """A function from a text to its pieces, separated by spaces."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def encode(text: str) -> str:
        return " ".join(processor.encode(text, out_type=str))

    return encode


def plain_lines(sentences: list[Sentence], encode: Callable[[str], str]) -> list[str]:
    """One line for each sentence."""
    return [encode(sentence.text) for sentence in sentences]


def mixed_lines(sentences: list[Sentence], encode: Callable[[str], str], *, pairs: int, longest: int) -> list[str]:
    """Single sentences, pairs of translations (languages meet), and long runs (late positions are seen)."""
    shuffled = random.Random(11)
    by_group: defaultdict[int, list[str]] = defaultdict(list)
    by_language: defaultdict[str, list[str]] = defaultdict(list)
    for sentence in sentences:
        by_group[sentence.group].append(encode(sentence.text))
        by_language[sentence.language].append(encode(sentence.text))

    lines = 2 * plain_lines(sentences, encode)
    for translations in by_group.values():
        lines += [SEPARATOR.join(shuffled.sample(translations, 2)) for _ in range(pairs)]
    for texts in by_language.values():
        run = " ".join(shuffled.sample(texts, len(texts))).split(" ")
        lines.append(" ".join(run[:longest]))
    return lines


def nli_columns(path: Path, encode: Callable[[str], str]) -> dict[str, list[str]]:
    """Premises, hypotheses and labels, in one shuffled order."""
    rows = read_nli(path)
    random.Random(5).shuffle(rows)
    return {
        "input0": [encode(row.premise) for row in rows],
        "input1": [encode(row.hypothesis) for row in rows],
        "label": [row.label for row in rows],
    }


def regression_columns(path: Path, encode: Callable[[str], str]) -> dict[str, list[str]]:
    """The same rows with a number for a label: how far the premise supports the hypothesis."""
    support = {"contradiction": "0.0", "neutral": "0.5", "entailment": "1.0"}
    columns = nli_columns(path, encode)
    return {**columns, "label": [support[label] for label in columns["label"]]}


def ranking_columns(path: Path, encode: Callable[[str], str]) -> dict[str, list[str]]:
    """A premise, its three hypotheses as answers in a shuffled order, and the index of the one that follows."""
    rows = read_nli(path)
    shuffled = random.Random(9)
    columns: dict[str, list[str]] = {name: [] for name in ("input0", "input1", "input2", "input3", "label")}
    for start in range(0, len(rows), 3):
        answers = shuffled.sample(rows[start : start + 3], 3)
        columns["input0"].append(encode(answers[0].premise))
        for index, answer in enumerate(answers, start=1):
            columns[f"input{index}"].append(encode(answer.hypothesis))
        columns["label"].append(str([answer.label for answer in answers].index("entailment")))
    return columns


def write_lines(path: Path, lines: list[str]) -> None:
    """One line each, UTF-8."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    """Write train and valid (every ninth row of train) for one kind of training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["plain", "mixed", "nli", "regression", "ranking"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", type=Path, required=True, help="the corpus, or the NLI table")
    parser.add_argument("--sentencepiece", type=Path, required=True)
    parser.add_argument("--languages", default="")
    parser.add_argument("--groups", type=int)
    options = parser.parse_args()

    encode = piece_encoder(options.sentencepiece)
    if options.kind in ("plain", "mixed"):
        sentences = choose(read_corpus(options.source), languages=options.languages, groups=options.groups)
        lines = (
            plain_lines(sentences, encode)
            if options.kind == "plain"
            else mixed_lines(sentences, encode, pairs=20, longest=480)
        )
        columns = {"text": lines}
    else:
        write = {"nli": nli_columns, "regression": regression_columns, "ranking": ranking_columns}[options.kind]
        columns = write(options.source, encode)

    options.output.mkdir(parents=True, exist_ok=True)
    for name, lines in columns.items():
        write_lines(options.output / f"train.{name}", lines)
        write_lines(options.output / f"valid.{name}", lines[::9])


if __name__ == "__main__":
    main()
