"""Train the SentencePiece models of the fixtures on the corpus beside this file (Python >= 3.8, sentencepiece)."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import sentencepiece
from corpus import Sentence, choose, read_corpus


def variants(text: str) -> list[str]:
    """The text, and twice more with its words in other surroundings where it has words.

    SentencePiece proposes only pieces that occur in two different words: few words of a small corpus would be whole.
    """
    spaced = text.count(" ") > 1
    return [text, text.replace(" ", ", "), text[:-1]] if spaced else [text]


def train(sentences: list[Sentence], *, pieces: int, kind: str, normalization: str, coverage: float) -> bytes:
    """The bytes of a SentencePiece model; the same on every run, and naming no file of this machine."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for sentence in sentences for text in variants(sentence.text)]),
        model_writer=model,
        vocab_size=pieces,
        model_type=kind,
        normalization_rule_name=normalization,
        character_coverage=coverage,
        num_threads=1,
        train_extremely_large_corpus=False,
        minloglevel=2,
    )
    return model.getvalue()


def dictionary_in_order(model: Path) -> str:
    """dict.txt as XLM-R has it: every piece from SentencePiece id 3 on, in that order, with count 1."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return "".join(f"{pieces.id_to_piece(index)} 1\n" for index in range(3, len(pieces)))


def main() -> None:
    """Write sentencepiece.bpe.model and the dictionary that follows its order, ordered.txt, into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--languages", default="", help="comma separated; all when left out")
    parser.add_argument("--groups", type=int, help="only the first so many groups of translations")
    parser.add_argument("--pieces", type=int, required=True)
    parser.add_argument("--kind", choices=["unigram", "bpe"], default="unigram")
    parser.add_argument("--normalization", choices=["nmt_nfkc", "identity"], default="identity")
    parser.add_argument("--coverage", type=float, default=1.0)
    options = parser.parse_args()

    sentences = choose(read_corpus(options.corpus), languages=options.languages, groups=options.groups)
    options.output.mkdir(parents=True, exist_ok=True)
    model = options.output / "sentencepiece.bpe.model"
    model.write_bytes(
        train(
            sentences,
            pieces=options.pieces,
            kind=options.kind,
            normalization=options.normalization,
            coverage=options.coverage,
        )
    )
    (options.output / "ordered.txt").write_text(dictionary_in_order(model), encoding="utf-8")


if __name__ == "__main__":
    main()
