"""Models on a GPU: features beside sentence-transformers, and of XL's and XXL's shape loading, plans, speed, training.

    python tests/benchmarks/gpu.py [--size xl|xxl] [--steps load extract ...] --tokenizer FOLDER [--work FOLDER]

The weights are random, in bfloat16, written once into shards of 2 GB. Each row is a process of its own. `base` is
extract.py over a model of base's shape, short and long texts: tokens per second, and how many times as fast as
sentence-transformers, beside what is wanted. `load` answers a batch with the model loaded by Transformers'
`from_pretrained` and by `load_placed`: whole on the GPU, and with a part on the CPU that the planner leaves there;
answers of one number type must be the same bit for bit. `plan` holds the memory that the planner promised beside
PyTorch's own peak, for a batch of so many tokens. `extract` is the speed of `FeatureExtractor` over texts of 400
tokens, beside the padded batches of Transformers and the rate of the model's matrix products alone. `lora` and `full`
fine-tune with the program (`--tokenizer` is a converted folder whose tokenizer the model gets), `fsdp` under
accelerate's FSDP with the configuration that is shipped.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

LOADS = ("transformers gpu", "hf_xlmr gpu", "hf_xlmr gpu and cpu", "transformers gpu and cpu")
PLANS = (1024, 8192)
TEXTS = 512
TRAININGS = {
    "lora": ["--lora", "--bf16", "--activation-checkpointing"],
    "full": ["--bf16", "--activation-checkpointing"],
    "fsdp": ["--bf16"],
    "fsdp-lora": ["--lora", "--bf16"],
}
STEPS = ("base", "load", "plan", "extract", *TRAININGS)
BASE_CASES = ("hf_xlmr float32", "hf_xlmr bfloat16", "sentence-transformers bfloat16", "rate bfloat16")
BASE_TIMES = 40  # as many texts as extract.py has for a CPU
WANTED = {"short": {"tokens/s": 1_200_000, "times as fast": 2.5}, "long": {"times as fast": 1.3}}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "sentencepiece.bpe.model",
    "fairseq/dict.txt",
    "fairseq/sentencepiece.bpe.model",
)


# ---- one process -----------------------------------------------------------------------------------------------------


def allocated() -> int:
    import torch

    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def part_on_the_cpu(folder: Path) -> Any:
    """A placement with GPU memory for some 60% of the weights."""
    from hf_xlmr.model.model_shape import shape_of
    from hf_xlmr.placement.planner import plan_placement

    shape = shape_of(folder)
    return plan_placement(
        shape, max_memory={0: int(shape.nbytes("bfloat16") * 0.6), "cpu": None}, dtype="bfloat16", tokens=512
    )


def loaded(way: str, folder: Path) -> Any:
    import torch
    from transformers import AutoModelForMaskedLM

    from hf_xlmr.placement.placed_loading import load_placed

    places: Any = {"": 0} if way.endswith(" gpu") else part_on_the_cpu(folder).device_map
    if way.startswith("transformers"):
        return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=places).eval()
    return load_placed(folder, places, dtype="bfloat16", main_device=0)


def load(way: str, folder: Path, answers: Path) -> dict[str, object]:
    """Load, answer one batch, keep the answer, and tell what it took."""
    import accelerate
    import torch
    import transformers
    from loading import forget_peak, held

    import hf_xlmr.placement.placed_loading

    assert transformers.XLMRobertaXLForMaskedLM and accelerate.dispatch_model and hf_xlmr.placement.placed_loading
    torch.zeros(1, device="cuda")
    forget_peak()
    before, start = held("VmRSS"), time.perf_counter()
    model = loaded(way, folder)
    torch.cuda.synchronize()
    took, host, device = time.perf_counter() - start, held("VmHWM") - before, allocated()
    ids = torch.arange(5, 29, device="cuda").reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
        seconds.append(time.perf_counter() - start)
    torch.save(logits, answers / f"{way}.pt")
    return {
        "load s": round(took, 2),
        "host peak MB": round(host / 1e6),
        "gpu MB": round(device / 1e6),
        "answer s": [round(each, 3) for each in seconds],
    }


def plan(tokens: int, folder: Path) -> dict[str, object]:
    """What the planner promises of GPU 0 with a batch of `tokens`, and what PyTorch held at most."""
    import torch

    from hf_xlmr.model.model_shape import shape_of
    from hf_xlmr.placement.placed_loading import load_placed
    from hf_xlmr.placement.planner import plan_placement

    memory = {0: torch.cuda.get_device_properties(0).total_memory}
    placement = plan_placement(shape_of(folder), max_memory=memory, dtype="bfloat16", tokens=tokens)
    model = load_placed(folder, placement.device_map, dtype="bfloat16", main_device=placement.main_device)
    weights = allocated()
    with torch.no_grad():
        model(input_ids=torch.full((tokens // 512, 512), 7, device="cuda"))
    share = placement.shares[0]
    return {
        "planned weights MB": round(share.weights / 1e6),
        "weights MB": round(weights / 1e6),
        "planned activations MB": round(share.activations / 1e6),
        "activations MB": round((allocated() - weights) / 1e6),
    }


def ours(folder: Path) -> tuple[list[int], dict[str, object]]:
    """Lengths of the texts in tokens, and how fast hf_xlmr's features of them are."""
    import random

    from extract import median_seconds

    from hf_xlmr import XLMR, FeatureExtractor

    xlmr = XLMR.from_pretrained(folder, dtype="bfloat16", device="cuda").eval()
    rng = random.Random(0)
    texts = [" ".join(["the"] * round(rng.lognormvariate(4.2, 0.8))) for _ in range(TEXTS)]
    lengths = [min(len(each), 512) for each in xlmr.tokenizer.encode_batch(texts)]
    extractor = FeatureExtractor(xlmr)
    speed = round(sum(lengths) / median_seconds(lambda: extractor(texts), rounds=3))
    return lengths, {"tokens": sum(lengths), "kernel": extractor.kernel, "hf_xlmr tokens/s": speed}


def extract(folder: Path) -> dict[str, object]:
    """Tokens per second of hf_xlmr, of padded batches, and of the matrix products alone."""
    import torch
    from extract import median_seconds, seconds_at_the_rate
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    lengths, result = ours(folder)
    tokens = sum(lengths)
    peer = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, add_pooling_layer=False).to("cuda").eval()

    def padded(batch: int) -> None:
        ordered = sorted(lengths, reverse=True)
        with torch.inference_mode():
            for start in range(0, len(ordered), batch):
                rows = ordered[start : start + batch]
                mask = (torch.arange(rows[0])[None] < torch.tensor(rows)[:, None]).long().cuda()
                peer(input_ids=mask * 5 + 1, attention_mask=mask)
        torch.cuda.synchronize()

    for batch in (32, 128):
        took = median_seconds(lambda batch=batch: padded(batch), rounds=3)
        result[f"sorted padded batches of {batch}, tokens/s"] = round(tokens / took)
    limit = seconds_at_the_rate(
        "bfloat16",
        tokens,
        "cuda",
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
    )
    return {**result, "matrix products alone, tokens/s": round(tokens / limit)}


def program(limit: float, arguments: list[str]) -> None:
    """The program itself, which tells the GPU memory that training held at most, what is left of it, and scoring's.

    Shortly before the `limit` it tells where it is.
    """
    import torch

    from hf_xlmr.cli.program import main
    from hf_xlmr.tasks import training

    score = training.evaluate_data

    def tell_memory(*args: Any, **options: Any) -> Any:
        print(f"gpu MB {allocated() / 1e6:.0f}", file=sys.stderr)
        print(f"gpu MB {torch.cuda.memory_allocated() / 1e6:.0f}", file=sys.stderr)
        torch.cuda.reset_peak_memory_stats()
        return score(*args, **options)

    training.evaluate_data = tell_memory
    faulthandler.dump_traceback_later(limit - 10, exit=False)
    try:
        sys.argv = ["hf-xlmr", *arguments]
        main()
    finally:
        print(f"gpu MB {allocated() / 1e6:.0f}", file=sys.stderr)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# ---- all of them -----------------------------------------------------------------------------------------------------


def child(step: str, *arguments: object) -> dict[str, Any]:
    """One row, measured in a process of its own."""
    command = [sys.executable, __file__, "--child", step, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-3:]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def compared(answers: Path) -> dict[str, object]:
    """How far the answers are apart."""
    import torch

    first, *others = (torch.load(answers / f"{way}.pt") for way in LOADS if (answers / f"{way}.pt").exists())
    ways = [way for way in LOADS if (answers / f"{way}.pt").exists()]
    return {
        way: {"equal": torch.equal(first, other), "max difference": float((first - other).abs().max())}
        for way, other in zip(ways[1:], others, strict=True)
    }


def train(name: str, folder: Path, output: Path, options: argparse.Namespace) -> dict[str, object]:
    """A few updates of XNLI with the program, which then scores the model."""
    command = [sys.executable]
    if name.startswith("fsdp"):
        from hf_xlmr.tasks.launch import launch_config

        configuration = launch_config(options.size if options.size in ("xl", "xxl") else "xl")
        command += ["-m", "accelerate.commands.launch", "--config_file", str(configuration), "--num_processes", "1"]
    command += [__file__, "--program", str(options.limit), "finetune", "xnli", "--model", str(folder)]
    command += ["--train", "demo", "--eval", "demo", "--output", str(output), "--max-steps", str(options.updates)]
    command += ["--json", *TRAININGS[name]]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    limited = ["timeout", "--kill-after=5", str(options.limit), *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env=environment)
    row: dict[str, object] = {"seconds": round(time.perf_counter() - start)}
    row |= {"gpu MB": [line.split()[-1] for line in done.stderr.splitlines() if line.startswith("gpu MB")]}
    if done.returncode:
        row["failed"] = done.stderr.strip().splitlines()[-40:]
    else:
        told = json.loads(done.stdout)
        row["told"] = {key: told[key] for key in told if key in ("seconds", "losses", "loss", "updates", "average")}
        row["files"] = {path.name: path.stat().st_size for path in output.glob("*.safetensors")}
    shutil.rmtree(output, ignore_errors=True)
    return row


def tell(step: str, what: str, row: object) -> None:
    print(json.dumps({"step": step, "what": what, "row": row}), flush=True)


def base(work: Path) -> None:
    """One row for each case and each kind of texts, and one for each kind of how far what is wanted is reached."""
    from extract import tokens_of

    command = [sys.executable, Path(__file__).with_name("extract.py"), "--device", "cuda", "--times", BASE_TIMES]
    command += ["--work", work, "--json", work / "base.json", "--only", *BASE_CASES]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        tell("base", "all", {"failed": done.stderr.strip().splitlines()[-3:]})
        return
    rows = json.loads((work / "base.json").read_text(encoding="utf-8"))
    seconds = {(row["texts"], row["case"]): row["seconds"] for row in rows}
    for row in rows:
        tell("base", f"{row['case']}, {row['texts']}", row)
    for kind, count in tokens_of(work / "base-model", BASE_TIMES).items():
        ours, theirs = (seconds[kind, f"{name} bfloat16"] for name in ("hf_xlmr", "sentence-transformers"))
        found = {"tokens": count, "tokens/s": round(count / ours), "times as fast": round(theirs / ours, 2)}
        tell("base", f"{kind} texts", {**found, "wanted": WANTED[kind]})


def all_steps(options: argparse.Namespace, folder: Path, work: Path) -> None:
    if "load" in options.steps:
        for way in LOADS:
            tell("load", way, child("load", way, folder, work))
        tell("load", "answers beside those of transformers on the GPU", compared(work))
    if "plan" in options.steps:
        for tokens in PLANS:
            tell("plan", f"{tokens} tokens", child("plan", tokens, folder))
    if "extract" in options.steps:
        tell("extract", "bfloat16", child("extract", folder))
    for name in TRAININGS:
        if name in options.steps:
            tell("train", name, train(name, folder, (options.outputs or work) / f"trained-{name}", options))


def with_tokenizer(folder: Path, source: Path) -> None:
    (folder / "fairseq").mkdir()
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)


CHILDREN: dict[str, Callable[..., dict[str, object]]] = {
    "load": lambda way, folder, answers: load(way, Path(folder), Path(answers)),
    "plan": lambda tokens, folder: plan(int(tokens), Path(folder)),
    "extract": lambda folder: extract(Path(folder)),
}


def main() -> None:
    if sys.argv[1:2] == ["--program"]:
        program(float(sys.argv[2]), sys.argv[3:])
        return
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "small", "xl", "xxl"], default="xl")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS)
    parser.add_argument("--updates", type=int, default=10, help="of each training")
    parser.add_argument("--limit", type=int, default=600, help="seconds that a training may take")
    parser.add_argument("--outputs", type=Path, help="where trainings write, and what is removed; else with the model")
    parser.add_argument("--tokenizer", type=Path, help="a converted folder whose tokenizer is taken, of all but `base`")
    parser.add_argument("--work", type=Path, help="where the model is written, and removed")
    options = parser.parse_args()
    from loading import write_model

    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work, folder = Path(temporary), Path(temporary) / "model"
        if "base" in options.steps:
            base(work)
        if set(options.steps) <= {"base"}:
            return
        start = time.perf_counter()
        write_model(folder, size=options.size, dtype="bfloat16", shard_bytes=2_000_000_000, device="cuda")
        with_tokenizer(folder, options.tokenizer)
        tell("write", options.size, {"seconds": round(time.perf_counter() - start, 1)})
        all_steps(options, folder, work)


if __name__ == "__main__":
    main()
