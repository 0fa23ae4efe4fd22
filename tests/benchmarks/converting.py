"""Converting beside `cp`: seconds and peak memory for XLM-R base, XLM-V and XL shapes, zip and legacy, kept and cast.

    python tests/benchmarks/converting.py [--rounds 3] [--proof] [--only base-zip ...] [--work FOLDER]

Files are written with torch.save from random weights (base 1.1 GB and large 2.2 GB in float32, XL 7 GB in float16),
with XLM-R's vocabulary from `../shared/data/xlmr-vocabulary`; xlmv is base with 901,629 rows (3.1 GB), whose further
pieces join XLM-R's, and xl9 is XL with 9 of its layers (2.7 GB). Every file is read once before it is timed, so that
all see a warm page cache. `cp` is timed as it is, and with `sync` of the copy, since converting ends with fsync. With
`--proof` the conversion is proved, otherwise it is not. Medians of the rounds; processor seconds and peak memory are
what the system counts for the program (ru_utime and ru_stime, ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the driver stays small: a child's ru_maxrss begins at the size of the process that started it
    import torch

VOCABULARY = Path(__file__).resolve().parents[3] / "shared" / "data" / "xlmr-vocabulary"
PROGRAM = Path(sysconfig.get_path("scripts")) / "hf-xlmr"


@dataclass(frozen=True)
class Shape:
    rows: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    dtype: str
    is_pre_norm: bool


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    is_zip: bool
    options: tuple[str, ...] = ()


BASE = Shape(250002, 768, 12, 12, 3072, "float32", is_pre_norm=False)
LARGE = Shape(250002, 1024, 24, 16, 4096, "float32", is_pre_norm=False)
XLMV = Shape(901629, 768, 12, 12, 3072, "float32", is_pre_norm=False)
XL = Shape(250880, 2560, 36, 32, 10240, "float16", is_pre_norm=True)
XL9 = replace(XL, layers=9)
CASES = (
    Case("base-zip", BASE, is_zip=True),
    Case("base-legacy", BASE, is_zip=False),
    Case("base-zip-float16", BASE, is_zip=True, options=("--dtype", "float16")),
    Case("base-zip-bfloat16", BASE, is_zip=True, options=("--dtype", "bfloat16")),
    Case("large-zip", LARGE, is_zip=True),
    Case("xlmv-zip", XLMV, is_zip=True),
    Case("xl-zip", XL, is_zip=True),
    Case("xl9-zip", XL9, is_zip=True),
    Case("xl-legacy", XL, is_zip=False),
    Case("xl-zip-float32", XL, is_zip=True, options=("--dtype", "float32")),
    Case("xl-zip-bfloat16", XL, is_zip=True, options=("--dtype", "bfloat16")),
)


def weights_of(shape: Shape) -> Iterator[tuple[str, torch.Tensor]]:
    """Random weights under fairseq's newest names."""
    import torch

    torch.manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def tensor(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype).normal_(0, 0.02)

    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", tensor(out, into)
        yield f"{name}.bias", tensor(out)

    def norm(name: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", torch.ones(shape.hidden, dtype=dtype)
        yield f"{name}.bias", torch.zeros(shape.hidden, dtype=dtype)

    encoder = "encoder.sentence_encoder."
    embedding = tensor(shape.rows, shape.hidden)
    yield f"{encoder}version", torch.tensor([3.0])
    yield f"{encoder}embed_tokens.weight", embedding
    yield f"{encoder}embed_positions.weight", tensor(514, shape.hidden)
    yield from norm(encoder + ("layer_norm" if shape.is_pre_norm else "layernorm_embedding"))
    for number in range(shape.layers):
        layer = f"{encoder}layers.{number}."
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}self_attn.{projection}", shape.hidden, shape.hidden)
        yield from linear(f"{layer}fc1", shape.intermediate, shape.hidden)
        yield from linear(f"{layer}fc2", shape.hidden, shape.intermediate)
        yield from norm(f"{layer}self_attn_layer_norm")
        yield from norm(f"{layer}final_layer_norm")
    yield from linear("encoder.lm_head.dense", shape.hidden, shape.hidden)
    yield from norm("encoder.lm_head.layer_norm")
    yield "encoder.lm_head.weight", embedding
    yield "encoder.lm_head.bias", tensor(shape.rows)


def made(case: Case, folder: Path) -> Path:
    """The checkpoint folder of the case's shape and container, made once, in a process of its own."""
    there = folder / "-".join(case.name.split("-")[:2])  # shape and container
    if not there.exists():
        subprocess.run([sys.executable, __file__, "--make", case.name, str(there)], check=True)
    return there


def make(case: Case, there: Path) -> None:
    """Write the checkpoint folder of a case."""
    import torch

    draft = there.with_suffix(".draft")
    draft.mkdir(parents=True)
    options = Namespace(arch="roberta", task="multilingual_masked_lm", encoder_attention_heads=case.shape.heads)
    options.encoder_normalize_before, options.activation_fn = case.shape.is_pre_norm, "gelu"
    state = {"args": options, "model": OrderedDict(weights_of(case.shape))}
    torch.save(state, draft / "model.pt", _use_new_zipfile_serialization=case.is_zip)
    for name in ("dict.txt", "sentencepiece.bpe.model"):
        shutil.copyfile(VOCABULARY / name, draft / name)
    if case.shape is XLMV:
        enlarge_vocabulary(draft, case.shape.rows)
    draft.rename(there)


def enlarge_vocabulary(folder: Path, rows: int) -> None:
    """Join pieces of XLM-R's vocabulary to new ones until the embedding's `rows` all have a name."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((folder / "sentencepiece.bpe.model").read_bytes())
    old = [piece.piece for piece in model.pieces[3:]]
    inner = [piece for piece in old if not piece.startswith("\u2581")]
    chance, joined, known = random.Random(0), [], set(old)
    while len(joined) < rows - len(old) - 5:  # 4 special symbols and <mask>
        new = chance.choice(old) + chance.choice(inner)
        if len(new) <= 16 and new not in known:
            known.add(new)
            joined.append(new)
    for number, piece in enumerate(joined):
        model.pieces.add(piece=piece, score=model.pieces[len(old)].score - number / len(joined))
    (folder / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    with (folder / "dict.txt").open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{piece} 1\n" for piece in joined)


def timed(action: Callable[[], object], clear: Path) -> float:
    """Seconds of `action`, with `clear` removed before and the disk at rest."""
    shutil.rmtree(clear, ignore_errors=True)
    clear.mkdir()
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def copy(source: Path, target: Path, *, synced: bool) -> None:
    """`cp`, and `sync` of the copy where asked for."""
    subprocess.run(["cp", source / "model.pt", target / "copy"], check=True)
    if synced:
        subprocess.run(["sync", target / "copy"], check=True)


def convert(source: Path, target: Path, options: tuple[str, ...]) -> tuple[int, float]:
    """Convert in a process of its own; its peak resident memory in bytes, and its processor seconds."""
    command = [PROGRAM, "convert", source, target / "model", "--quiet", *options]
    process = subprocess.Popen(list(map(str, command)))
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"hf-xlmr convert failed with {process.returncode}")
    return usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def run(case: Case, folder: Path, rounds: int, *, proof: bool) -> dict[str, object]:
    """One row of the table; the peers take turns within each round."""
    source, target = made(case, folder), folder / "target"
    size = (source / "model.pt").stat().st_size
    subprocess.run(["cat", source / "model.pt"], stdout=subprocess.DEVNULL, check=True)
    options = case.options if proof else ("--no-verify", *case.options)
    plain, synced, ours, used = [], [], [], []
    for _ in range(rounds):
        plain.append(timed(lambda: copy(source, target, synced=False), target))
        synced.append(timed(lambda: copy(source, target, synced=True), target))
        ours.append(timed(lambda: used.append(convert(source, target, options)), target))
    middle = [statistics.median(each) for each in (plain, synced, ours)]
    return {
        "case": case.name,
        "GB": round(size / 1e9, 2),
        "cp s": round(middle[0], 2),
        "cp + sync s": round(middle[1], 2),
        "convert s": round(middle[2], 2),
        "(convert - 1) / cp": round((middle[2] - 1) / middle[0], 2),
        "(convert - 1) / (cp + sync)": round((middle[2] - 1) / middle[1], 2),
        "processor s": round(statistics.median(seconds for _peak, seconds in used), 2),
        "peak MB": round(max(peak for peak, _seconds in used) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proof", action="store_true")
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES])
    parser.add_argument("--work", type=Path, help="keeps the checkpoints it makes (default: a temporary folder)")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(next(case for case in CASES if case.name == options.make[0]), Path(options.make[1]))
        return
    chosen = [case for case in CASES if not options.only or case.name in options.only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        rows = [run(case, folder, options.rounds, proof=options.proof) for case in chosen]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(str(value) for value in row.values()))
    print(json.dumps(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
