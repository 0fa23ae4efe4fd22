"""Many texts to ids, on one thread: stock AutoTokenizer, the exact tokenizer, and SentencePiece alone as the limit.

    RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python tests/benchmarks/tokenizing.py VOCABULARY

VOCABULARY is a folder with XLM-R's dict.txt and sentencepiece.bpe.model, and texts in encode-sample.json.gz. The stock
tokenizer is what `hf-xlmr convert` writes for them. Processor time, the peers in turns; medians of the rounds, lowest
to highest in brackets. Ratios are to the stock batch, round by round.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_xlmr.conversion.tokenizer_parity import texts_by_class
from hf_xlmr.conversion.vocabulary import build_vocabulary, write_tokenizer
from hf_xlmr.dictionary import Dictionary
from hf_xlmr.sentencepiece_model import SentencePieceModel
from hf_xlmr.tokenization import ExactTokenizer


def stock_tokenizer(dictionary: Dictionary, model: bytes) -> Any:
    from transformers import AutoTokenizer

    vocabulary = build_vocabulary(dictionary, SentencePieceModel.parse(model, name="model"), rows=len(dictionary))
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(vocabulary, Path(folder), model_max_length=10**9)
        return AutoTokenizer.from_pretrained(folder)


def kinds_of_texts(samples: list[str], pieces: list[str], *, count: int) -> dict[str, list[str]]:
    """Every text of a kind is another one."""
    chance = random.Random(1)
    known = [text for text in samples if text.strip()]
    calm = [text for text in known if not re.search(r"(.)\1{40}", text)]  # 30 are runs of up to 700 times one letter
    generated = texts_by_class(pieces, count=count, seed=5)
    common = pieces[:20_000]
    return {
        "common pieces": ["".join(chance.choices(common, k=40)).replace("▁", " ") for _ in range(count)],
        "all pieces": generated["text of pieces"],
        "decomposed": generated["decomposed text"],
        "eight samples": [" ".join(chance.sample(calm, 8)) for _ in range(count)],
        "eight samples, long runs too": [" ".join(chance.sample(known, 8)) for _ in range(count)],
        "repeats only": generated["long repeats"],
    }


def rounds_of(peers: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    spent: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, run in peers.items():
            begin = time.process_time()
            run()
            spent[name].append(time.process_time() - begin)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    dictionary = Dictionary.parse((given.vocabulary / "dict.txt").read_bytes(), name="dict.txt").with_mask()
    model = (given.vocabulary / "sentencepiece.bpe.model").read_bytes()
    exact, stock = ExactTokenizer(dictionary, model), stock_tokenizer(dictionary, model)
    samples = json.loads(gzip.decompress((given.vocabulary / "encode-sample.json.gz").read_bytes()))
    exact.encode_batch(["a" * 7])  # tables and tie-breaker are made once
    print("| texts | peer | µs a text | times the stock batch |\n|---|---|---|---|")
    kinds = kinds_of_texts(
        [row["text"] for row in samples["encode"]], list(dictionary.symbols[4:-1]), count=given.count
    )
    for kind, texts in kinds.items():
        assert exact.encode_batch(texts) == [exact.encode(text) for text in texts]
        report(kind, texts, exact=exact, stock=stock, rounds=given.rounds)


def report(kind: str, texts: list[str], *, exact: ExactTokenizer, stock: Any, rounds: int) -> None:
    peers: dict[str, Callable[[], object]] = {
        "stock batch": lambda: stock(texts)["input_ids"],
        "stock loop": lambda: [stock(text)["input_ids"] for text in texts],
        "SentencePiece batch": lambda: exact.processor.encode(texts, out_type=int, num_threads=1),
        "encode_batch": lambda: exact.encode_batch(texts),
        "encode in a loop": lambda: [exact.encode(text) for text in texts],
    }
    spent = rounds_of(peers, rounds=rounds)
    for name, seconds in spent.items():
        each = [1e6 * value / len(texts) for value in seconds]
        ratios = [first / second for first, second in zip(spent["stock batch"], seconds, strict=True)]
        print(f"| {kind} | {name} | {told(each)} | {told(ratios)} |", flush=True)


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
