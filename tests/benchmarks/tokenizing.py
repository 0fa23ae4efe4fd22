"""Many new texts to ids, on one thread: stock AutoTokenizer, the exact tokenizer, and SentencePiece alone as the limit.

    RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python tests/benchmarks/tokenizing.py VOCABULARY

VOCABULARY is a folder with XLM-R's dict.txt and sentencepiece.bpe.model, and texts in encode-sample.json.gz; --lines
is a file of natural text, a text a line. The stock tokenizer is what `hf-xlmr convert` writes for the vocabulary. Each
round of each kind has texts of its own, by another seed; the exact tokenizer is a new one for each kind, so all it has
seen are the rounds before. Making it is told by itself.
Processor time, the peers in turns, each round in the other order; medians of the rounds, lowest to highest in brackets.
Ratios are round by round: how many times as fast as the first of the peers, and how many times SentencePiece's own
time. SentencePiece's own call is `SentencePieceProcessor.encode(texts, out_type=int, num_threads=1)` over the same
model and the whole list. Each peer gets its own copies of the texts, since Python keeps a text's UTF-8 once it is
asked for. `--limit` leaves out the stock tokenizer and the loops.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from hf_xlmr.conversion.proof.tokenizer_parity import EMPHATIC, texts_by_class
from hf_xlmr.conversion.tokenizer_json.vocabulary import build_vocabulary, write_tokenizer
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

WORDS = 50_000  # of each script, the most frequent first; the n-th comes 1/n times as often as the first
BLOCK_BITS = 8  # characters whose codes agree but for so many bits are taken for one script
LEAST_PIECES = 100  # that a script has among the commonest


def read_vocabulary(folder: Path) -> tuple[Dictionary, bytes]:
    dictionary = Dictionary.parse((folder / "dict.txt").read_bytes(), name="dict.txt").with_mask()
    return dictionary, (folder / "sentencepiece.bpe.model").read_bytes()


def stock_tokenizer(dictionary: Dictionary, model: bytes) -> Any:
    from transformers import AutoTokenizer

    vocabulary = build_vocabulary(dictionary, SentencePieceModel.parse(model, name="model"), rows=len(dictionary))
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(vocabulary, Path(folder), model_max_length=10**9)
        return AutoTokenizer.from_pretrained(folder)


class Texts:
    """Texts of each kind, for each seed others."""

    def __init__(self, samples: list[str], pieces: list[str], lines: list[str]) -> None:
        self.pieces, self.common, self.lines = pieces, pieces[:20_000], lines
        self.known = [text for text in samples if text.strip()]
        self.calm = [text for text in self.known if not re.search(r"(.)\1{40}", text)]  # the others: up to 700 times
        random.Random(0).shuffle(self.lines)
        self.words = list(self._words_by_script())
        self.weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))

    def kinds(self) -> dict[str, Callable[[random.Random, int], list[str]]]:
        return {
            **({"natural lines": self._natural} if self.lines else {}),
            "words by Zipf's law": lambda chance, count: [self._by_zipf(chance) for _ in range(count)],
            "eight samples": lambda chance, count: [" ".join(chance.sample(self.calm, 8)) for _ in range(count)],
            "common pieces": lambda chance, count: [self._joined(chance, self.common) for _ in range(count)],
            "all pieces": lambda chance, count: self._generated("text of pieces", chance, count),
            "decomposed": lambda chance, count: self._generated("decomposed text", chance, count),
            "short": lambda chance, count: [" ".join(self._by_zipf(chance).split()[:3]) for _ in range(count)],
            "long": lambda chance, count: [
                " ".join(self._by_zipf(chance) for _ in range(20)) for _ in range(count // 5)
            ],
            "emphatic": lambda chance, count: self._generated(EMPHATIC, chance, count),
            "repeats only": lambda chance, count: self._generated("long repeats", chance, count),
            "eight samples, long runs too": lambda chance, count: [
                " ".join(chance.sample(self.known, 8)) for _ in range(count)
            ],
        }

    def _words_by_script(self) -> Iterator[list[str]]:
        """Words of one piece, of two and of three, begun by the commonest pieces that begin a word."""
        scripts: dict[int, list[str]] = {}
        for piece in self.common:
            if piece.strip("▁").isalpha():
                scripts.setdefault(ord(piece.strip("▁")[0]) >> BLOCK_BITS, []).append(piece)
        chance = random.Random(2)
        for pieces in scripts.values():
            first = [piece for piece in pieces if piece.startswith("▁")] or pieces
            rest = [piece for piece in pieces if not piece.startswith("▁")]
            if len(first) > LEAST_PIECES and len(rest) > LEAST_PIECES:
                words = first + [
                    chance.choice(first) + "".join(chance.choices(rest, k=chance.choice((1, 1, 2))))
                    for _ in range(WORDS - len(first))
                ]
                yield [word.replace("▁", "") for word in words]

    def _by_zipf(self, chance: random.Random) -> str:
        words = chance.choice(self.words)
        return " ".join(chance.choices(words, cum_weights=self.weights[: len(words)], k=chance.randint(5, 40)))

    def _natural(self, chance: random.Random, count: int) -> list[str]:
        """Lines that were not given before."""
        given, self.lines = self.lines[:count], self.lines[count:]
        if len(given) < count:
            raise SystemExit("Too few lines: give more, or fewer rounds.")
        return given

    def _joined(self, chance: random.Random, pieces: list[str]) -> str:
        return "".join(chance.choices(pieces, k=40)).replace("▁", " ")

    def _generated(self, kind: str, chance: random.Random, count: int) -> list[str]:
        return texts_by_class(self.pieces, count=count, seed=chance.randrange(1 << 30))[kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="texts of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", action="store_true", help="compare encode_batch with SentencePiece alone")
    given = parser.parse_args()
    dictionary, model = read_vocabulary(given.vocabulary)
    stock = None if given.limit else stock_tokenizer(dictionary, model)
    samples = json.loads(gzip.decompress((given.vocabulary / "encode-sample.json.gz").read_bytes()))
    lines = given.lines.read_text(encoding="utf-8").splitlines() if given.lines else []
    texts = Texts([row["text"] for row in samples["encode"]], list(dictionary.symbols[4:-1]), lines)
    first = "SentencePiece" if given.limit else "the stock batch"
    print(f"| texts | peer | µs a text | times {first} | of SentencePiece's time |\n|---|---|---|---|---|")
    firsts: list[float] = []
    for kind, make in texts.kinds().items():
        begin = time.process_time()
        exact = ExactTokenizer(dictionary, model)
        firsts.append(time.process_time() - begin)
        exact.processor.encode(["a"])
        rounds = [make(random.Random(seed), given.count) for seed in range(given.rounds)]
        report(kind, rounds, exact=exact, stock=stock)
    print(f"\nMaking the tokenizer: {told(firsts, digits=2)} s.")


def report(kind: str, rounds: list[list[str]], *, exact: ExactTokenizer, stock: Any) -> None:
    """Time the peers on each round's texts."""
    peers: dict[str, Callable[[list[str]], object]] = {
        "SentencePiece batch": lambda texts: exact.processor.encode(texts, out_type=int, num_threads=1),
        "encode_batch": exact.encode_batch,
    }
    if stock is not None:
        stock_peers = {
            "stock batch": lambda texts: stock(texts)["input_ids"],
            "stock loop": lambda texts: [stock(text)["input_ids"] for text in texts],
        }
        peers = stock_peers | peers | {"encode in a loop": lambda texts: [exact.encode(text) for text in texts]}
    spent: dict[str, list[float]] = {name: [] for name in peers}
    for number, texts in enumerate(rounds):
        for name in list(peers)[:: -1 if number % 2 else 1]:
            own, ours = copies(texts), name == "encode_batch"
            begin = time.process_time()
            answer = peers[name](own)
            spent[name].append(time.process_time() - begin)
            assert not ours or answer == [exact.encode(text) for text in texts]
            del answer
    for name, seconds in spent.items():
        each = [1e6 * value / len(texts) for value, texts in zip(seconds, rounds, strict=True)]
        faster = [first / own for first, own in zip(spent[next(iter(peers))], seconds, strict=True)]
        share = [own / limit for own, limit in zip(seconds, spent["SentencePiece batch"], strict=True)]
        print(f"| {kind} | {name} | {told(each)} | {told(faster)} | {told(share, digits=2)} |", flush=True)


def copies(texts: list[str]) -> list[str]:
    """The same texts as new objects."""
    return [text.encode().decode() for text in texts]


def told(values: list[float], *, digits: int = 1) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
