"""XNLI's training data in several languages, from files to the numbers of a training: seconds, and memory of a pair.

    TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python tests/benchmarks/training_data.py VOCABULARY [--pairs 100000]

VOCABULARY is a folder with XLM-R's dict.txt, sentencepiece.bpe.model and encode-sample.json.gz. Files have the layout
of XNLI's translations of MultiNLI, with words by Zipf's law as in tokenizing.py, premises of some 20 words and
hypotheses of some 10. The peer reads the same files with `datasets` and maps the stock tokenizer over them, on one
process, as Transformers' own examples do. Each is a process of its own, in turns; medians of the rounds, memory as the
process' resident size grows.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tokenizing import Texts, read_vocabulary, stock_tokenizer

from hf_xlmr.tasks.encoding.encoding import Features, encode_pairs
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.task_data import read_task_data
from hf_xlmr.tasks.xnli import XNLI_LABELS
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

LONGEST = 128
LANGUAGES = ("de", "en", "fr")
PUBLISHED_LABELS = ("entailment", "neutral", "contradictory")


def write_data(vocabulary: Path, folder: Path, pairs: int) -> None:
    """A file for each language."""
    dictionary, _ = read_vocabulary(vocabulary)
    samples = json.loads(gzip.decompress((vocabulary / "encode-sample.json.gz").read_bytes()))
    texts = Texts([row["text"] for row in samples["encode"]], list(dictionary.symbols[4:-1]), [])
    chance = random.Random(0)
    for language in LANGUAGES:
        with (folder / f"multinli.train.{language}.tsv").open("w", encoding="utf-8") as file:
            file.write("premise\thypo\tlabel\n")
            for _ in range(pairs // len(LANGUAGES)):
                words = chance.choice(texts.words)
                premise, hypothesis = (
                    " ".join(chance.choices(words, cum_weights=texts.weights[: len(words)], k=chance.randint(*span)))
                    for span in ((10, 30), (5, 15))
                )
                file.write(f"{premise}\t{hypothesis}\t{chance.choice(PUBLISHED_LABELS)}\n")


def resident() -> int:
    """Bytes that this process holds."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def ours(vocabulary: Path, folder: Path) -> dict[str, float]:
    tokenizer = ExactTokenizer(*read_vocabulary(vocabulary))
    tokenizer.encode_batch(["a" * 7])
    before, begin = resident(), time.perf_counter()
    data = read_task_data("xnli", [str(folder / "multinli.train.*.tsv")], Reading())
    read, held = time.perf_counter(), resident()
    examples = [each for several in data.examples.values() for each in several]
    features = Features(encode_pairs(examples, tokenizer, labels=XNLI_LABELS, max_length=LONGEST))
    encoded, pairs = time.perf_counter(), len(features)
    with_features = resident()
    data = replace(data, examples={})
    del examples
    return {
        "read, s": read - begin,
        "encoded, s": encoded - read,
        "examples, bytes a pair": (held - before) / pairs,
        "features, bytes a pair": (with_features - held) / pairs,
        "freed, bytes a pair": (with_features - resident()) / pairs,
    }


def peer(vocabulary: Path, folder: Path) -> dict[str, float]:
    from datasets import disable_caching, disable_progress_bars, load_dataset

    disable_caching()
    disable_progress_bars()
    stock = stock_tokenizer(*read_vocabulary(vocabulary))
    before, begin = resident(), time.perf_counter()
    files = sorted(map(str, folder.glob("*.tsv")))
    with tempfile.TemporaryDirectory() as cache:
        data = load_dataset("csv", data_files=files, sep="\t", quoting=3, cache_dir=cache, split="train")
        read = time.perf_counter()
        mapped = data.map(
            lambda rows: stock(rows["premise"], rows["hypo"], truncation=True, max_length=LONGEST),
            batched=True,
            remove_columns=["premise", "hypo"],
        )
        encoded = time.perf_counter()
        return {
            "read, s": read - begin,
            "encoded, s": encoded - read,
            "features, bytes a pair": (resident() - before) / len(mapped),
        }


PEERS = {"hf_xlmr": ours, "datasets and stock": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(PEERS[given.only](given.vocabulary, given.data)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        write_data(given.vocabulary, Path(folder), given.pairs)
        for _ in range(given.rounds):
            for name in PEERS:
                command = [sys.executable, __file__, str(given.vocabulary), "--only", name, "--data", folder]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[name].append(json.loads(told.splitlines()[-1]))
    print(f"| {given.pairs:,} pairs | {' | '.join(PEERS)} |\n{'|---' * (1 + len(PEERS))}|")
    for measure in found["hf_xlmr"][0]:
        cells = [[each[measure] for each in rounds if measure in each] for rounds in found.values()]
        print(f"| {measure} | " + " | ".join(f"{statistics.median(c):.1f}" if c else "" for c in cells) + " |")


if __name__ == "__main__":
    main()
