"""What the host does for features beside the network: texts to packed tensors, and pooled vectors back to rows.

    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python tests/benchmarks/host_path.py VOCABULARY

VOCABULARY is a folder with XLM-R's dict.txt and sentencepiece.bpe.model. The extractor is the real one over a network
of base's width that answers with zeros at once, and whose vectors are pooled already. Each round has texts of its own:
words by Zipf's law, one script a text, of lognormal lengths (median 22 tokens). It runs SentencePiece alone,
`encode(texts, out_type=int)` over the whole list, and the extractor, with one and with two threads that tokenize; each
gets its own copies of the texts, since Python keeps a text's UTF-8 once it is asked for. Microseconds a text: medians
of the rounds, lowest to highest in brackets; the ratio is of the two in one round. `first batch` is the time until the
network is called for the first time.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizing import Texts, copies, read_vocabulary, told

from hf_xlmr import FeatureExtractor
from hf_xlmr.features import extraction
from hf_xlmr.features.packed.encoder_weights import TextEncoder
from hf_xlmr.features.packed.packed_network import PackedInputs
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

CPU = torch.device("cpu")
WIDTH, LONGEST = 768, 512
TOKENS_PER_BATCH = 16384


class Zeros:
    """A network that takes no time."""

    layer_count, kernel, dtype = 12, "none", torch.float32
    width = WIDTH

    def __init__(self) -> None:
        self.tokens, self.first = 0, 0.0

    def hidden_states(self, inputs: PackedInputs, *, layers: Iterable[int]) -> dict[int, torch.Tensor]:
        """Zeros of the batch's size, which no memory holds."""
        self.first = self.first or time.perf_counter()
        self.tokens += inputs.batch.tokens
        return dict.fromkeys(layers, torch.zeros(()).expand(inputs.batch.tokens, WIDTH))


def extractor_over(network: Zeros, tokenizer: ExactTokenizer, tokens_per_batch: int) -> FeatureExtractor:
    """The extractor over such a network, whose vectors are pooled already."""
    zeros = torch.zeros(tokens_per_batch, WIDTH)
    shape = {"layers": network.layer_count, "longest_text": LONGEST, "activation": "gelu", "adapters": None}
    weights: Any = SimpleNamespace(device=CPU, **shape)
    parts: dict[str, Any] = {
        "_dtype": lambda *_any, **_options: torch.float32,
        "_network": lambda *_any, **_options: network,
        "pooled_batch": lambda _values, batch, _pooling: zeros[: len(batch.texts)],
    }
    for name, part in parts.items():
        setattr(extraction, name, part)
    return FeatureExtractor(TextEncoder(weights, tokenizer), tokens_per_batch=tokens_per_batch)


def text_of(texts: Texts, chance: random.Random) -> str:
    """Of so many words that the median of the tokens is 22."""
    words = chance.choice(texts.words)
    count = max(1, round(chance.lognormvariate(2.5, 0.8)))
    return " ".join(chance.choices(words, cum_weights=texts.weights[: len(words)], k=count))


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """Processor time and wall time."""
    begin = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - begin[0], time.perf_counter() - begin[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--count", type=int, default=100_000, help="texts of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens-per-batch", type=int, default=TOKENS_PER_BATCH)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    dictionary, model = read_vocabulary(given.vocabulary)
    tokenizer = ExactTokenizer(dictionary, model)
    source = Texts([], list(dictionary.symbols[4:-1]), [])
    tokenizer.processor.encode(["a"])
    rows: dict[str, list[float]] = {}
    for number in range(given.rounds):
        chance = random.Random(number)
        texts = [text_of(source, chance) for _ in range(given.count)]
        for threads in given.threads[:: -1 if number % 2 else 1]:
            for name, value in measured(texts, tokenizer, threads, given.tokens_per_batch).items():
                rows.setdefault(name, []).append(value)
    print("| | median (range) |\n|---|---|")
    for name in sorted(rows):
        print(f"| {name} | {told(rows[name], digits=2)} |")


def measured(texts: list[str], tokenizer: ExactTokenizer, threads: int, tokens_per_batch: int) -> dict[str, float]:
    """The figures of one round with so many threads."""
    network = Zeros()
    extractor = extractor_over(network, tokenizer, tokens_per_batch)
    extractor.texts = replace(extractor.texts, threads=threads)
    alone, own = copies(texts), copies(texts)
    limit = spent(lambda: tokenizer.processor.encode(alone, out_type=int, num_threads=threads))
    start, rows = time.perf_counter(), []
    ours = spent(lambda: rows.extend(window.texts for window in extractor.windows(own)))
    assert sum(rows) == len(texts)
    each = 1e6 / len(texts)
    name = f"{threads} thread{'s' if threads > 1 else ''}"
    return {
        f"{name}, processor, µs": ours[0] * each,
        f"{name}, wall, µs": ours[1] * each,
        f"{name}, SentencePiece alone, processor, µs": limit[0] * each,
        f"{name}, SentencePiece alone, wall, µs": limit[1] * each,
        f"{name}, times SentencePiece's processor time": ours[0] / limit[0],
        f"{name}, first batch, ms": 1e3 * (network.first - start),
        f"{name}, tokens a text": network.tokens / len(texts),
    }


if __name__ == "__main__":
    main()
