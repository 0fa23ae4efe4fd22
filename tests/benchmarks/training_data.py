"""XNLI's training data in several languages, from files to the numbers of a training, and to its first step.

    TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python tests/benchmarks/training_data.py VOCABULARY [--pairs 100000]

VOCABULARY is a folder with XLM-R's dict.txt, sentencepiece.bpe.model and encode-sample.json.gz. Files have the layout
of XNLI's translations of MultiNLI, with words by Zipf's law as in tokenizing.py, premises of some 20 words and
hypotheses of some 10. The first table: the peer reads the same files with `datasets` and maps the stock tokenizer over
them, on one process, as Transformers' own examples do. Each is a process of its own, in turns; medians of the rounds,
memory as the process' resident size grows.

The second table: `finetune` in all languages, of a network of width 16 with XLM-R's vocabulary, for two steps: with 100
pairs, with all in a new cache, and with all again. Each is a process of its own (with --processes 2, two of torchrun).
Seconds from the start of the command to the end of the first optimizer step, those of imports apart, as the process
that shows progress sees it; memory is the largest resident size, and what it is above that with 100 pairs.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizing import Texts, read_vocabulary, stock_tokenizer

LONGEST = 128
LANGUAGES = ("de", "en", "fr")
PUBLISHED_LABELS = ("entailment", "neutral", "contradictory")
FEW = 100  # pairs, for what everything but the data takes


def write_data(vocabulary: Path, folder: Path, pairs: int) -> None:
    """A file for each language."""
    dictionary, _ = read_vocabulary(vocabulary)
    samples = json.loads(gzip.decompress((vocabulary / "encode-sample.json.gz").read_bytes()))
    texts = Texts([row["text"] for row in samples["encode"]], list(dictionary.symbols[4:-1]), [])
    chance, scripts = random.Random(0), [(words, texts.weights[: len(words)]) for words in texts.words]
    for language in LANGUAGES:
        with (folder / f"multinli.train.{language}.tsv").open("w", encoding="utf-8") as file:
            file.write("premise\thypo\tlabel\n")
            for _ in range(pairs // len(LANGUAGES)):
                words, weights = chance.choice(scripts)
                premise, hypothesis = (
                    " ".join(chance.choices(words, cum_weights=weights, k=chance.randint(*span)))
                    for span in ((10, 30), (5, 15))
                )
                file.write(f"{premise}\t{hypothesis}\t{chance.choice(PUBLISHED_LABELS)}\n")


def resident() -> int:
    """Bytes that this process holds."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def ours(vocabulary: Path, folder: Path) -> dict[str, float]:
    import pyarrow.ipc  # noqa: F401  # before what is measured

    from hf_xlmr.features.processes import Processes
    from hf_xlmr.tasks.evaluation import EvaluationOptions, question_options
    from hf_xlmr.tasks.fitting.encoded_data import encoded_data
    from hf_xlmr.tasks.kinds.inputs import Reading
    from hf_xlmr.tasks.kinds.registry import TASKS
    from hf_xlmr.tasks.kinds.task import Coding
    from hf_xlmr.tokenizer.tokenization import ExactTokenizer

    task, sources = TASKS["xnli"], [str(folder / "multinli.train.*.tsv")]
    tokenizer = ExactTokenizer(*read_vocabulary(vocabulary))
    tokenizer.encode_batch(["a" * 7])
    coding = Coding(
        tokenizer, task.recipe.labels or (), LONGEST, question_options(LONGEST, EvaluationOptions(stride=None))
    )
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_XLMR_CACHE"] = cache
        before, begin = resident(), time.perf_counter()
        encoded = encoded_data(task, sources, Reading(), coding, processes=Processes())
        made, pairs = time.perf_counter(), len(encoded.features)
        held = resident()
        encoded_data(task, sources, Reading(), coding, processes=Processes())
        on_disk = sum(path.stat().st_size for path in Path(cache).rglob("rows.arrow"))
        return {
            "read and encoded, s": made - begin,
            "found again, s": time.perf_counter() - made,
            "memory grows by, MB": (held - before) / 1e6,
            "on the disk, bytes a pair": on_disk / pairs,
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
        mapped = data.map(
            lambda rows: stock(rows["premise"], rows["hypo"], truncation=True, max_length=LONGEST),
            batched=True,
            remove_columns=["premise", "hypo"],
        )
        encoded = time.perf_counter()
        assert len(mapped) == len(data)
        return {"read and encoded, s": encoded - begin, "memory grows by, MB": (resident() - before) / 1e6}


PEERS = {"hf_xlmr": ours, "datasets and stock": peer}


# ---- to the first step of a training ---------------------------------------------------------------------------------


def write_model(vocabulary: Path, folder: Path) -> None:
    """A network of width 16 with XLM-R's vocabulary."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    rows = len(read_vocabulary(vocabulary)[0])
    config = XLMRobertaConfig(vocab_size=rows, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **sizes)
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    (folder / "fairseq").mkdir()
    for name in ("dict.txt", "sentencepiece.bpe.model"):
        shutil.copyfile(vocabulary / name, folder / "fairseq" / name)


class FirstStep:
    """A Progress that notes when the first step of the training is done."""

    def __init__(self) -> None:
        self.at, self.label = 0.0, ""

    @contextmanager
    def task(self, label: str, **_: object) -> Iterator[FirstStep]:
        self.label = label
        yield self

    def advance(self, amount: int, *, note: str = "") -> None:
        if self.label == "training" and amount and not self.at:
            self.at = time.time()


def training(model: Path, folder: Path, begin: float) -> dict[str, float]:
    before = time.time()
    import datasets
    import torch.distributed.fsdp
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    from hf_xlmr.tasks.fitting.trainer_progress import ProgressCallback
    from hf_xlmr.tasks.training import FinetuningOptions, finetune

    known = datasets, torch, AutoModelForSequenceClassification, Trainer, TrainingArguments, ProgressCallback
    imported, step = time.time(), FirstStep()
    options = FinetuningOptions(mode="translate-train-all", max_steps=2, warmup=0, cpu=True)
    with tempfile.TemporaryDirectory() as out:
        shared = os.environ.get("TRAINING_OUTPUT", out)
        data = [str(folder / "multinli.train.*.tsv")]
        finetune("xnli", str(model), data, f"{shared}/out", options=options, overwrite=True, progress=step)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert known
    return {"imports": imported - before, "first step": step.at - begin, "peak": peak}


def measure_training(vocabulary: Path, folder: Path, processes: int) -> None:
    few, model = folder / "few", folder / "model"
    few.mkdir()
    write_data(vocabulary, few, FEW)
    write_model(vocabulary, model)
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    start = [sys.executable] if processes == 1 else launched
    print(
        "\n| training | imports, s | first step without imports, s | peak, MB | above 100 pairs, MB |\n"
        + "|---" * 5
        + "|"
    )
    least: float | None = None
    for name, data in (("100 pairs", few), ("all, encoded", folder), ("all, again", folder)):
        environment = {**os.environ, "HF_XLMR_CACHE": str(folder / "cache"), "TRAINING_OUTPUT": str(folder / "trained")}
        command = [*start, __file__, str(vocabulary), "--training", str(model), "--data", str(data)]
        done = subprocess.run(
            [*command, "--begin", str(time.time())], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        for line in (line for line in done.stdout.splitlines() if line.startswith("{")):
            found = json.loads(line)
            peak = found["peak"] / 1e6
            least = peak if least is None else least
            took = f"{found['first step'] - found['imports']:.1f}" if found["first step"] > 0 else ""
            print(f"| {name} | {found['imports']:.1f} | {took} | {peak:,.0f} | {peak - least:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help="of the training")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--training", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.training:
        print(json.dumps(training(given.training, given.data, given.begin)), flush=True)
        return
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
        print_rounds(given.pairs, found)
        measure_training(given.vocabulary, Path(folder), given.processes)


def print_rounds(pairs: int, found: dict[str, list[dict[str, float]]]) -> None:
    if not all(found.values()):
        return
    print(f"| {pairs:,} pairs | {' | '.join(PEERS)} |\n{'|---' * (1 + len(PEERS))}|")
    for measure in found["hf_xlmr"][0]:
        cells = [[each[measure] for each in rounds if measure in each] for rounds in found.values()]
        print(f"| {measure} | " + " | ".join(f"{statistics.median(c):.1f}" if c else "" for c in cells) + " |")


if __name__ == "__main__":
    main()
