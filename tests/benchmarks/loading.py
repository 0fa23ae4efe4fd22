"""Loading onto CPU and disk: seconds, peak host memory, and whether the answers are the same bit for bit.

    python tests/benchmarks/loading.py [--size xl] [--dtype bfloat16] [--compute bfloat16] [--shard 2GB] [--work FOLDER]

A masked LM of XLM-R XL's shape (3.5 billion parameters, 7 GB in bfloat16), or a small one, is written with random
weights, a tensor at a time, and removed at the end. Each row is a process of its own, which loads it with hf_xlmr or
with Transformers' `from_pretrained`, and answers one batch of two short texts. Memory is VmHWM (what is mapped from
files counts too) less what the process held before; "loading" is the peak until the model is there, "answering" the
peak of the first batch. The files are in the page cache or not, as the machine has it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_xlmr.files.memory import parse_size
from hf_xlmr.model_shape import ModelShape, Tensor, shape_of, shape_of_config

SIZES = {
    "xxl": {"vocab_size": 250880, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 48},
    "xl": {"vocab_size": 250880, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 36},
    "small": {"vocab_size": 20000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6},
    "tiny": {"vocab_size": 30000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6},
}
COMMON = {
    "model_type": "xlm-roberta-xl",
    "architectures": ["XLMRobertaXLForMaskedLM"],
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}
WAYS = ("hf_xlmr whole", "hf_xlmr cpu", "hf_xlmr disk", "hf_xlmr mixed", "transformers cpu", "transformers disk")
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
BLOCK = 1 << 22  # numbers that are drawn at a time


def write_model(folder: Path, *, size: str, dtype: str, shard_bytes: int, device: str = "cpu") -> ModelShape:
    """A folder with random weights, drawn on `device`, in shards; memory holds a few megabytes of them at a time."""
    heads = 32 if size in ("xl", "xxl") else SIZES[size]["hidden_size"] // 64
    config = {**COMMON, **SIZES[size], "num_attention_heads": heads, "dtype": dtype}
    shape = shape_of_config(config)
    folder.mkdir(parents=True)
    shards = list(_shards(shape, dtype, shard_bytes))
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        _write_shard(folder / name, tensors, dtype, device)
    placed = {tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(config))
    return shape


def _shards(shape: ModelShape, dtype: str, shard_bytes: int) -> Iterator[list[Tensor]]:
    filled: list[Tensor] = []
    for tensor in shape.tensors:
        if tensor.is_buffer:
            continue
        if filled and sum(each.nbytes(dtype) for each in (*filled, tensor)) > shard_bytes:
            yield filled
            filled = []
        filled.append(tensor)
    yield filled


def _write_shard(path: Path, tensors: list[Tensor], dtype: str, device: str) -> None:
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes(dtype)
        header[tensor.name] = {"dtype": CODES[dtype], "shape": tensor.sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # as convert does: what is aligned stays mapped
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, tensor in enumerate(tensors):
            generator = torch.Generator(device).manual_seed(number)
            mean = 1.0 if tensor.name.lower().endswith("norm.weight") else 0.0
            for start in range(0, tensor.numbers, BLOCK):
                count = min(BLOCK, tensor.numbers - start)
                drawn = torch.randn(count, generator=generator, device=device).mul_(0.02).add_(mean)
                file.write(drawn.to(getattr(torch, dtype)).cpu().view(torch.uint8).numpy())


# ---- one process -----------------------------------------------------------------------------------------------------


def held(field: str) -> int:
    """Bytes that this process holds (VmRSS), or held at most since the last `forget_peak` (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """Begin to measure the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def placed(way: str, shape: ModelShape) -> dict[str, int | str]:
    """The device map of a way; mixed keeps the embeddings and every other layer in memory."""
    device = way.split()[1]
    places: dict[str, int | str] = {}
    for number, block in enumerate(shape.blocks):
        for module in block.modules:
            places[module] = device if device != "mixed" else ("disk" if number % 2 else "cpu")
    return places


def load(way: str, folder: Path, dtype: str) -> Any:
    """The model, loaded in a way."""
    if way == "hf_xlmr whole":
        from hf_xlmr.placement.placed_loading import load_whole

        return load_whole(folder, device="cpu", dtype=dtype)
    device_map = placed(way, shape_of(folder))
    if way.startswith("hf_xlmr"):
        from hf_xlmr.placement.placed_loading import load_placed

        return load_placed(folder, device_map, dtype=dtype)
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype, device_map=device_map).eval()


def child(way: str, folder: Path, dtype: str) -> dict[str, object]:
    """Load, answer one batch, and tell what it took."""
    import accelerate
    import torch
    import transformers

    import hf_xlmr.placement.placed_loading

    assert transformers.XLMRobertaXLForMaskedLM
    assert accelerate.dispatch_model
    assert hf_xlmr.placement.placed_loading
    forget_peak()
    before, start = held("VmRSS"), time.perf_counter()
    model = load(way, folder, dtype)
    loaded, loading = time.perf_counter(), held("VmHWM")
    forget_peak()
    ids = torch.arange(5, 29).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return {
        "way": way,
        "load s": round(loaded - start, 2),
        "answer s": round(time.perf_counter() - loaded, 2),
        "before MB": round(before / 1e6),
        "loading MB": round((loading - before) / 1e6),
        "answering MB": round((held("VmHWM") - before) / 1e6),
        "answer": hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()[:12],
    }


def run(way: str, folder: Path, dtype: str) -> dict[str, Any]:
    """One row, measured in a process of its own."""
    command = [sys.executable, __file__, "--child", way, "--compute", dtype, "--work", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"way": way, "failed": done.stderr.strip().splitlines()[-1:]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--dtype", choices=CODES, default="bfloat16", help="what is written")
    parser.add_argument("--compute", choices=CODES, default="bfloat16", help="what is loaded")
    parser.add_argument("--shard", default="2GB", help="the largest shard")
    parser.add_argument(
        "--work", type=Path, help="where the model is written, and removed (default: a temporary folder)"
    )
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.work, options.compute)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.work)) / "model"
    try:
        shape = write_model(folder, size=options.size, dtype=options.dtype, shard_bytes=parse_size(options.shard))
        shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(f"{shape.nbytes(options.compute) / 1e6:.0f} MB in {options.compute}, largest shard {shard / 1e6:.0f} MB")
        for way in options.ways:
            print(json.dumps(run(way, folder, options.compute)), flush=True)
    finally:
        shutil.rmtree(folder.parent)


if __name__ == "__main__":
    main()
