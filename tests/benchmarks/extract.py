"""Features of many texts: hf_xlmr beside its peers and the machine's own matrix rate, in one run.

    pip install -e '.[benchmarks]'
    python tests/benchmarks/extract.py [--rounds 3] [--threads 2] [--only NAME ...] [--texts-of short]
        [--device cuda] [--times 1] [--work FOLDER] [--json FILE]

The model is of XLM-R base's shape with random weights and XLM-R's vocabulary, converted once. Texts are made of the
vocabulary's words: `short` are 512 with lognormal lengths (median 22 tokens, some 15,500 in all), `long` 100 passages
of some 400 tokens. Each peer is a process of its own that loads the model, does the texts once unmeasured and then
`--rounds` times, tokenizing included; all of them pool by the mean. Its vectors are compared with the ones of
`hf_xlmr float32` (mean cosine). `rate` is the time that the model's matrix products alone would take at the best rate
that PyTorch reaches on this machine at their shapes, whichever of its libraries and whatever number of rows is best.
Medians of the rounds, lowest to highest in brackets. With `--device cuda` the model is on the GPU, the half types and
batches that suit one are measured too, and `--times` multiplies the texts.

    python tests/benchmarks/extract.py --million [--texts 1000000]

puts that many short texts through the demo model into Parquet with the program, and tells its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from converting import CASES, PROGRAM, made

Encode = Callable[[Sequence[str]], np.ndarray]
BATCHES = {"cpu": 32, "cuda": 256}
LONGEST = 512
TEXT_COUNTS = {"short": 512, "long": 100}
RATE_ROWS = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 16384, 65536)}


# ---- texts -----------------------------------------------------------------------------------------------------------


def texts_of(folder: Path, times: int = 1) -> dict[str, list[str]]:
    """The two sets of texts, of words that are a piece each, so that lengths in tokens are as drawn."""
    from hf_xlmr.hub_interface.loading import ModelFiles
    from hf_xlmr.tokenizer.tokenization import ExactTokenizer

    tokenizer = ModelFiles(folder).tokenizer
    assert isinstance(tokenizer, ExactTokenizer)
    pieces = [symbol for symbol in tokenizer.dictionary.symbols[:60_000] if symbol.startswith("\u2581")]
    words = [piece[1:] for piece in pieces if piece[1:].isalpha()]
    rng = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(rng.choices(words, k=max(1, min(tokens, LONGEST) - 2)))

    short = [text(round(rng.lognormvariate(np.log(22), 0.8))) for _ in range(times * TEXT_COUNTS["short"])]
    return {"short": short, "long": [text(rng.randint(300, 500)) for _ in range(times * TEXT_COUNTS["long"])]}


# ---- peers -----------------------------------------------------------------------------------------------------------


def hf_xlmr_extractor(folder: Path, dtype: str, device: str) -> Encode:
    from hf_xlmr import XLMR, FeatureExtractor

    extractor = FeatureExtractor(XLMR.from_pretrained(folder, device=device).eval(), dtype=dtype)
    print(f"kernel: {extractor.kernel}", file=sys.stderr)
    return extractor


def transformers_pipeline(folder: Path, dtype: str, device: str) -> Encode:
    import torch
    from transformers import AutoModel, AutoTokenizer, pipeline

    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device=device)

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = extract(list(texts), batch_size=32, return_tensors=True, tokenize_kwargs={"truncation": True})
        lengths = [len(extract.tokenizer(text, truncation=True)["input_ids"]) for text in texts]  # rows are padded
        return np.stack([row[0, :n].float().mean(0).numpy() for row, n in zip(rows, lengths, strict=True)])

    return encode


def sentence_transformers_encoder(folder: Path, dtype: str, device: str) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    options = {"model_args": {"dtype": getattr(torch, dtype), "add_pooling_layer": False}}
    transformer = Transformer(str(folder), max_seq_length=LONGEST, **options)
    width = transformer.get_word_embedding_dimension()
    model = SentenceTransformer(modules=[transformer, Pooling(width, pooling_mode="mean")], device=device)
    return lambda texts: (
        model.encode(list(texts), batch_size=BATCHES[device], convert_to_tensor=True).float().cpu().numpy()
    )


def in_sorted_batches(folder: Path, infer: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Encode:
    """Sorted by length, in padded batches, for engines that only multiply."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(texts: Sequence[str]) -> np.ndarray:
        encoded = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
        order = sorted(range(len(texts)), key=lambda number: -len(encoded[number]))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCHES["cpu"]):
            numbers = order[start : start + BATCHES["cpu"]]
            batch = tokenizer.pad({"input_ids": [encoded[number] for number in numbers]}, return_tensors="np")
            inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
            mask = inputs["attention_mask"][:, :, None]
            vectors = (infer(inputs) * mask).sum(1) / mask.sum(1)
            for number, vector in zip(numbers, vectors, strict=True):
                found[number] = vector
        return np.stack(found).astype(np.float32)

    return encode


def exported(folder: Path) -> Path:
    """The encoder as ONNX, made once."""
    import torch
    from transformers import AutoModel

    file = folder.parent / "encoder.onnx"
    if not file.exists():
        model = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa").eval()

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
                return hidden

        ones = torch.ones(2, 8, dtype=torch.int64)
        shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
        torch.onnx.export(
            Encoder(),
            (ones * 5, ones),
            str(file),
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes=(shape, shape),
            dynamo=True,
        )
    return file


def onnx_runtime(folder: Path, dtype: str, device: str) -> Encode:
    return in_onnx_runtime(folder, exported(folder))


def in_onnx_runtime(folder: Path, file: Path) -> Encode:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return in_sorted_batches(folder, lambda inputs: session.run(None, inputs)[0])


def fused_onnx_runtime(folder: Path, dtype: str, device: str) -> Encode:
    """ONNX Runtime over a graph that its own optimizer for transformers has fused."""
    from onnxruntime.transformers import optimizer

    file = folder.parent / "encoder-fused.onnx"
    if not file.exists():
        fused = optimizer.optimize_model(str(exported(folder)), "bert", num_heads=12, hidden_size=768, opt_level=0)
        print(fused.get_fused_operator_statistics(), file=sys.stderr)
        fused.save_model_to_file(str(file), use_external_data_format=True)
    return in_onnx_runtime(folder, file)


def onnx_runtime_int8(folder: Path, dtype: str, device: str) -> Encode:
    """ONNX Runtime's dynamic quantization, with a scale for each output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file = folder.parent / "encoder-int8.onnx"
    if not file.exists():
        quantize_dynamic(
            exported(folder),
            file,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            use_external_data_format=True,
            extra_options={"DefaultTensorType": 1, "MatMulConstBOnly": True},
        )
    return in_onnx_runtime(folder, file)


def torch_int8(folder: Path, dtype: str, device: str) -> Encode:
    """PyTorch's dynamic quantization of the linear layers, a scale for each tensor of inputs."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa").eval()
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def infer(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(each) for name, each in inputs.items()}
            vectors: np.ndarray = model(**tensors)[0].numpy()
            return vectors

    return in_sorted_batches(folder, infer)


def open_vino(folder: Path, dtype: str, device: str) -> Encode:
    return in_open_vino(folder, exported(folder), {"float32": "f32", "bfloat16": "bf16"}[dtype])


def open_vino_int8(folder: Path, dtype: str, device: str) -> Encode:
    """OpenVINO over a graph that NNCF has quantized, with ranges of inputs from 64 of the texts; without embeddings."""
    import nncf
    import openvino
    from transformers import AutoTokenizer

    file = folder.parent / "encoder-int8.xml"
    if not file.exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = [tokenizer([text], return_tensors="np") for text in texts_of(folder)["short"][:64]]
        samples = [{name: row[name].astype(np.int64) for name in ("input_ids", "attention_mask")} for row in rows]
        model = openvino.Core().read_model(exported(folder))
        quantized = nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(types=["Gather"]),  # OpenVINO 2026.4.1 cannot compile embeddings in int8
        )
        openvino.save_model(quantized, file, compress_to_fp16=False)
    return in_open_vino(folder, file, "f32")


def in_open_vino(folder: Path, file: Path, precision: str) -> Encode:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"]),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(file), "CPU", options)
    return in_sorted_batches(folder, lambda inputs: compiled(inputs)[0])


PEERS = {
    "hf_xlmr": hf_xlmr_extractor,
    "sentence-transformers": sentence_transformers_encoder,
    "OpenVINO": open_vino,
    "ONNX Runtime": onnx_runtime,
    "transformers pipeline": transformers_pipeline,
}
IN_INT8 = {
    "hf_xlmr": hf_xlmr_extractor,
    "ONNX Runtime": onnx_runtime_int8,
    "OpenVINO": open_vino_int8,
    "torch dynamic": torch_int8,
}
OF_CPUS = ("OpenVINO", "ONNX Runtime")
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}


def cases_of(device: str) -> dict[str, tuple[str, str]]:
    """The peers and types that are measured on a device, by what rows are called."""
    left_out = {("ONNX Runtime", "bfloat16")} | ({("transformers pipeline", "bfloat16")} if device == "cpu" else set())
    every = [(name, dtype) for name in PEERS for dtype in DTYPES[device] if device == "cpu" or name not in OF_CPUS]
    cases = {f"{name} {dtype}": (name, dtype) for name, dtype in every if (name, dtype) not in left_out}
    if device == "cpu":
        cases["fused ONNX Runtime float32"] = ("fused ONNX Runtime", "float32")
        cases |= {f"{name} int8": (name, "int8") for name in IN_INT8}
    return cases


# ---- the limit -------------------------------------------------------------------------------------------------------


def seconds_at_the_rate(
    dtype: str, tokens: int, device: str, *, hidden: int = 768, intermediate: int = 3072, layers: int = 12
) -> float:
    """Seconds that `tokens` tokens need in the linear layers at the best rate measured for each of their shapes."""
    import torch

    kind = getattr(torch, dtype)
    shapes = {(3 * hidden, hidden): 1, (hidden, hidden): 1, (intermediate, hidden): 1, (hidden, intermediate): 1}
    with torch.inference_mode():
        best = {"cpu": best_seconds_per_row, "cuda": best_seconds_on_cuda}[device]
        return layers * tokens * sum(count * best(kind, *shape) for shape, count in shapes.items())


def best_seconds_on_cuda(kind: Any, out: int, into: int) -> float:
    import torch

    def in_turn(weight: Any, values: Any) -> None:
        for _ in range(20):
            torch.nn.functional.linear(values, weight)
        torch.cuda.synchronize()

    best = float("inf")
    for rows in RATE_ROWS["cuda"]:
        weight, values = (torch.randn(count, into, device="cuda").to(kind) for count in (out, rows))
        best = min(best, median_seconds(lambda weight=weight, values=values: in_turn(weight, values)) / (20 * rows))
    return best


def best_seconds_per_row(kind: Any, out: int, into: int) -> float:
    import torch

    best = float("inf")
    for rows in RATE_ROWS["cpu"]:
        weight, values = torch.randn(out, into).to(kind), torch.randn(rows, into).to(kind)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways = [
            lambda values=values, weight=weight: torch.nn.functional.linear(values, weight),
            lambda values=values, packed=packed: torch.ops.mkldnn._linear_pointwise(
                values, packed, None, "none", [], ""
            ),
        ]
        if kind == torch.float32 and torch.backends.mkl.is_available():
            for_mkl = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
            ways.append(
                lambda values=values, weight=weight, for_mkl=for_mkl, rows=rows: torch.ops.mkl._mkl_linear(
                    values, for_mkl, weight, None, rows
                )
            )
        best = min(best, *(median_seconds(way) / rows for way in ways))
    return best


def median_seconds(action: Callable[[], object], *, rounds: int = 9) -> float:
    action()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


# ---- one process per peer --------------------------------------------------------------------------------------------


def measure(case: str, folder: Path, options: argparse.Namespace, vectors: Path) -> None:
    """Print one line of JSON: seconds of each round for both sets of texts, or of the rate."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if case.startswith("rate "):
        counts = tokens_of(folder, options.times)
        found = {name: [seconds_at_the_rate(case.split()[1], counts[name], options.device)] for name in counts}
        print(json.dumps(found))
        return
    name, dtype = cases_of(options.device)[case]
    makers = IN_INT8 if dtype == "int8" else PEERS | {"fused ONNX Runtime": fused_onnx_runtime}
    encode = makers[name](folder, dtype, options.device)
    seconds: dict[str, list[float]] = {}
    for kind in options.texts_of:
        texts = texts_of(folder, options.times)[kind]
        np.save(vectors / f"{case}.{kind}.npy", encode(texts))
        seconds[kind] = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            encode(texts)
            seconds[kind].append(time.perf_counter() - start)
    print(json.dumps(seconds))


def tokens_of(folder: Path, times: int) -> dict[str, int]:
    from hf_xlmr.hub_interface.loading import ModelFiles

    tokenizer: Any = ModelFiles(folder).tokenizer
    return {name: sum(map(len, tokenizer.encode_batch(texts))) for name, texts in texts_of(folder, times).items()}


def in_a_process(case: str, folder: Path, options: argparse.Namespace, vectors: Path) -> dict[str, list[float]]:
    command = [sys.executable, __file__, "--measure", case, folder, vectors, "--rounds", options.rounds]
    command += ["--texts-of", *options.texts_of, "--device", options.device, "--times", options.times]
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    environment["TOKENIZERS_PARALLELISM"] = "true"
    result = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(result.stdout.splitlines()[-1])
    return found


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(1) / norms).mean())


def compare(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """All peers in turn; rows of a table."""
    folder = work / "base-model"
    if not folder.exists():
        source = made(next(case for case in CASES if case.name == "base-zip"), work)
        subprocess.run([PROGRAM, "convert", source, folder, "--no-verify", "--quiet"], check=True)
    every = (*cases_of(options.device), *(f"rate {dtype}" for dtype in DTYPES[options.device]))
    cases = [case for case in every if not options.only or case.startswith(tuple(options.only))]
    found: dict[str, dict[str, list[float]]] = {}
    vectors = work / "vectors"
    vectors.mkdir(exist_ok=True)
    for case in cases:
        print(f"measuring {case}", file=sys.stderr)
        found[case] = in_a_process(case, folder, options, vectors)
    return [row(case, kind, found, vectors) for kind in options.texts_of for case in found]


def row(case: str, kind: str, found: dict[str, dict[str, list[float]]], vectors: Path) -> dict[str, Any]:
    seconds, dtype = found[case][kind], case.rpartition(" ")[2]
    middle = statistics.median(seconds)
    ours = found.get(f"hf_xlmr {dtype}", {}).get(kind)
    files = [vectors / f"{name}.{kind}.npy" for name in (case, "hf_xlmr float32")]
    return {
        "texts": kind,
        "case": case,
        "seconds": round(middle, 3),
        "range": f"{min(seconds):.3f}-{max(seconds):.3f}",
        "times hf_xlmr": round(middle / statistics.median(ours), 2) if ours else None,
        "cosine": round(cosine(*map(np.load, files)), 6) if all(file.exists() for file in files) else None,
    }


# ---- a million texts -------------------------------------------------------------------------------------------------


def a_million(count: int, work: Path) -> None:
    """Peak memory and speed of the program with `count` short texts and the demo model."""
    rng = random.Random(0)
    words = [
        "the",
        "train",
        "leaves",
        "late",
        "and",
        "nobody",
        "knows",
        "why",
        "we",
        "wait",
        "here",
        "for",
        "so",
        "long",
        "again",
    ]
    texts = work / "texts.txt"
    with texts.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(" ".join(rng.choices(words, k=rng.randint(2, 9))) + "\n")
    command = [PROGRAM, "extract", "demo", texts, work / "features", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)))
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    seconds = time.perf_counter() - start
    print(f"{count:,} texts in {seconds:.0f} s ({count / seconds:,.0f} texts/s), peak {usage.ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", help=f"the beginnings of names: {', '.join(PEERS)}, rate")
    parser.add_argument("--texts-of", nargs="*", choices=["short", "long"], default=["short", "long"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--times", type=int, default=1, help="as many times as many texts")
    parser.add_argument("--work", type=Path, help="keeps the model and the export (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="where the rows go as JSON")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, folder, vectors = options.measure
        measure(case, Path(folder), options, Path(vectors))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if options.million:
            a_million(options.texts, Path(temporary))
            return
        rows = compare(options, work)
    print(f"{platform.machine()}, {options.device}, {options.threads} threads, Python {sysconfig.get_python_version()}")
    print(" | ".join(rows[0]))
    for each in rows:
        print(" | ".join(str(value) for value in each.values()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
