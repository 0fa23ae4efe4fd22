"""int8 beside float32, both of hf_xlmr, in turns in one process: time, cosines, and the memory of larger models.

    python tests/benchmarks/int8.py [--rounds 5] [--threads 2] [--texts 128] [--work FOLDER]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python tests/benchmarks/int8.py
    python tests/benchmarks/int8.py --shape xlmr.xl [--layers 36]

The first form takes the model and the short texts of extract.py. With `--shape`, a folder of that release's shape with
random weights in bfloat16 is written (of the first layers, if the disk is too small for all), and read in int8 by a
process of its own, of which it prints the peak memory and the tokens a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from converting import CASES, PROGRAM, made
from extract import cosine, texts_of

VOCABULARY = 250_002


def base_model(work: Path) -> Path:
    folder = work / "base-model"
    if not folder.exists():
        source = made(next(case for case in CASES if case.name == "base-zip"), work)
        subprocess.run([PROGRAM, "convert", source, folder, "--no-verify", "--quiet"], check=True)
    return folder


def compare(work: Path, options: argparse.Namespace) -> None:
    """Print medians, the ratio and the cosines of the two types."""
    from hf_xlmr import FeatureExtractor

    folder = base_model(work)
    texts = texts_of(folder)["short"][: options.texts]
    extractors = {dtype: FeatureExtractor.from_pretrained(folder, dtype=dtype) for dtype in ("float32", "int8")}
    vectors = {dtype: extractor(texts) for dtype, extractor in extractors.items()}
    took: dict[str, list[float]] = {dtype: [] for dtype in extractors}
    for _ in range(options.rounds):
        for dtype, extractor in extractors.items():
            start = time.perf_counter()
            extractor(texts)
            took[dtype].append(time.perf_counter() - start)
    ratios = [one / other for one, other in zip(took["float32"], took["int8"], strict=True)]
    for dtype, extractor in extractors.items():
        seconds = sorted(took[dtype])
        print(
            f"{dtype:8} {statistics.median(seconds):6.2f} s [{seconds[0]:.2f} to {seconds[-1]:.2f}] {extractor.kernel}"
        )
    print(f"float32 / int8: median {statistics.median(ratios):.2f} [{min(ratios):.2f} to {max(ratios):.2f}]")
    print(f"mean cosine {cosine(vectors['float32'], vectors['int8']):.5f}; of the sample: {extractors['int8'].int8}")


def write_shape(folder: Path, base: Path, release: str, layers: int) -> None:
    """A folder with the shape of a release, random bfloat16 weights, a file a layer, and `base`'s tokenizer."""
    import shutil

    import torch
    from safetensors.torch import save_file

    from hf_xlmr.model.families import FAMILIES, Task
    from hf_xlmr.model.model_shape import RELEASE_CONFIGS, shape_of_config

    config = {**RELEASE_CONFIGS[release], "num_hidden_layers": layers, "vocab_size": VOCABULARY, "dtype": "bfloat16"}
    shape = shape_of_config(config).without_pooler()
    config["architectures"] = [FAMILIES[shape.model_type].class_name(Task.ENCODER)]
    shape = shape_of_config(config).without_pooler()
    folder.mkdir()
    shutil.copytree(base / "fairseq", folder / "fairseq")
    (folder / "fairseq" / "conversion.json").unlink()
    (folder / "fairseq" / "options.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    index: dict[str, str] = {}
    for number, block in enumerate(shape.blocks):
        tensors = {}
        for tensor in block.tensors:
            if tensor.is_buffer:
                continue
            mean = float("orm.weight" in tensor.name)  # of layer norms
            tensors[tensor.name] = torch.empty(tensor.sizes, dtype=torch.bfloat16).normal_(mean, 0.02)
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name)
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def measure(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Read a model in int8, compute, and say what it took: in a process of its own."""
    from hf_xlmr import FeatureExtractor

    start = time.perf_counter()
    extractor = FeatureExtractor.from_pretrained(folder, dtype="int8", least_cosine=-1.0)
    read = time.perf_counter() - start
    start = time.perf_counter()
    tokens = sum(window.tokens for window in extractor.windows(texts))
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    held = {line.split()[0][:-1]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Rss")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    quality = extractor.int8
    return {"read": read, "tokens a second": tokens / seconds, "peak": peak, **held, "quality": str(quality)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--shape", choices=["xlmr.xl", "xlmr.xxl"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    if options.measure:
        texts = texts_of(options.work / "base-model")["short"][: options.texts]
        print(json.dumps(measure(options.measure, texts)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if options.shape is None:
            compare(work, options)
            return
        base = base_model(work)
        layers = options.layers or {"xlmr.xl": 36, "xlmr.xxl": 48}[options.shape]
        folder = work / f"{options.shape}-{layers}"
        if not folder.exists():
            write_shape(folder, base, options.shape, layers)
        command = [sys.executable, __file__, "--measure", folder, "--work", work, "--texts", options.texts]
        subprocess.run([str(each) for each in [*command, "--threads", options.threads]], check=True)


if __name__ == "__main__":
    main()
