"""`hf-xlmr extract`: every text's features in order, and the same bytes however often it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
import warm_processes
from in_process import run
from patience import PATIENCE, until
from warm_processes import PROGRAM

from hf_xlmr import XLMR, FeatureExtractor
from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError
from hf_xlmr.features import bulk_extraction
from hf_xlmr.features.bulk_extraction import ExtractionOptions, extract, placing_for, usual_rows_per_shard
from hf_xlmr.features.processes import Processes
from hf_xlmr.model.fingerprint import fingerprint
from hf_xlmr.model.precision import dtype_name, native_dtype
from hf_xlmr.model_shape import shape_of

TOLERANCE = 1e-5
WORDS = ["the", "train", "leaves", "late", "Дети", "играют", "в", "саду", "你好", "世界", "नमस्ते", "दुनिया", "children"]
FLOAT32 = ExtractionOptions(dtype="float32", rows_per_shard=50)


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def demo(cache_folder: Path) -> XLMR:
    return XLMR.from_pretrained("demo").eval()


def texts_of(count: int) -> list[str]:
    rng = random.Random(7)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_of(230)


@pytest.fixture(scope="module")
def source(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def vectors_in(folder: Path, column: str = "features") -> np.ndarray:
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    return np.concatenate([np.stack(table[column].to_numpy()) for table in tables])


# ---- what is written


def test_every_text_has_its_features_in_the_order_of_the_input(
    demo: XLMR, source: Path, texts: list[str], tmp_path: Path
) -> None:
    report = extract("demo", source, tmp_path / "out", options=FLOAT32)
    assert (report.rows, report.texts, report.shards, report.truncated) == (230, 230, 5, 0)
    expected = FeatureExtractor(demo)(texts)
    np.testing.assert_allclose(vectors_in(tmp_path / "out"), expected, rtol=0, atol=TOLERANCE)
    assert sorted(contents(tmp_path / "out")) == [
        ".manifest.json",
        *(f"part-{number:05d}.parquet" for number in range(5)),
    ]
    manifest = json.loads((tmp_path / "out" / ".manifest.json").read_text())
    assert manifest["rows"] == 230 and manifest["counts"]["tokens"] == report.tokens


def test_datasets_reads_the_shards(source: Path, texts: list[str], tmp_path: Path) -> None:
    import datasets

    extract("demo", source, tmp_path / "out", options=FLOAT32)
    files = sorted(map(str, (tmp_path / "out").glob("*.parquet")))
    dataset = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset["row"][:] == list(range(len(texts)))
    row = getattr(datasets, "List", datasets.Sequence)  # what datasets before 4.0 call it
    assert dataset.features["features"] == row(datasets.Value("float32"), length=64)


def test_memory_maps_hold_the_same(demo: XLMR, source: Path, texts: list[str], tmp_path: Path) -> None:
    options = ExtractionOptions(dtype="float32", rows_per_shard=50, file_format="npy", layers=(0, -1), pool="cls")
    extract("demo", source, tmp_path / "out", options=options)
    expected = FeatureExtractor(demo, layers=[0, -1], pool="cls")(texts)
    for layer, vectors in expected.items():
        parts = [np.load(path, mmap_mode="r") for path in sorted((tmp_path / "out").glob(f"features_{layer}-*.npy"))]
        np.testing.assert_allclose(np.concatenate(parts), vectors, rtol=0, atol=TOLERANCE)


def test_tokens_keep_their_vectors_and_places(demo: XLMR, source: Path, texts: list[str], tmp_path: Path) -> None:
    options = ExtractionOptions(dtype="float32", rows_per_shard=50, pool="none", store_dtype="float16")
    extract("demo", source, tmp_path / "out", options=options)
    table = pq.read_table(tmp_path / "out" / "part-00002.parquet").to_pylist()
    expected = FeatureExtractor(demo, pool="none")(texts[100:150])
    for row, text, vectors in zip(table, texts[100:150], expected, strict=True):
        np.testing.assert_allclose(np.array(row["features"]), vectors, rtol=0, atol=2e-3)
        assert "".join(text[start:end] for start, end in row["spans"]).strip() == text.strip()


def test_ids_are_handed_on(source: Path, texts: list[str], tmp_path: Path) -> None:
    rows = [{"key": f"k{number}", "sentence": text} for number, text in enumerate(texts)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ExtractionOptions(column="sentence", id_column="key", dtype="float32")
    extract("demo", path, tmp_path / "out", options=options)
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table["id"].to_pylist() == [row["key"] for row in rows]


def test_rows_that_were_cut_off_are_in_the_manifest(tmp_path: Path) -> None:
    """By their numbers in the whole input; those of a shard that has more than 100 are only counted."""
    lengths = [40 if number % 5 == 3 or number >= 300 else 2 for number in range(500)]
    source = tmp_path / "texts.txt"
    source.write_text("".join("leaves " * length + "\n" for length in lengths), encoding="utf-8")
    options = replace(FLOAT32, max_length=20, rows_per_shard=150)
    report = extract("demo", source, tmp_path / "out", options=options)
    cut = [number for number, length in enumerate(lengths) if length == 40]
    assert report.truncated == len(cut)
    manifest = json.loads((tmp_path / "out" / ".manifest.json").read_text(encoding="utf-8"))
    named = [shard.get("truncated_rows", []) for shard in manifest["shards"]]
    assert named == [[row for row in cut if row // 150 == shard][:100] for shard in range(4)]
    assert [shard["counts"].get("truncated", 0) for shard in manifest["shards"]] == [30, 30, 150, 50]
    again = extract("demo", source, tmp_path / "out", options=options, resume=True)
    assert again.shards == 0


def test_an_empty_input_gives_an_empty_output(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("")
    report = extract("demo", tmp_path / "texts.txt", tmp_path / "out")
    assert report.rows == 0 and json.loads((tmp_path / "out" / ".manifest.json").read_text())["shards"] == []


# ---- breaks


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("\n".join(texts_of(1_000)), encoding="utf-8")
    options = ["--rows-per-shard", "62", "--tokens-per-batch", "256", "--quiet"]
    warm_processes.run([PROGRAM, "extract", "demo", source, tmp_path / "whole", *options], check=True)
    resumed = [PROGRAM, "extract", "demo", source, tmp_path / "out", *options, "--resume"]
    rng, codes = random.Random(3), []
    for shards in (0, 1, 8):  # of 17: so many at least are there when it is killed
        process = warm_processes.start(resumed)
        until(lambda: not process.is_alive() or shards_in(tmp_path / "out") >= shards, otherwise="a hang")  # noqa: B023  # called here
        time.sleep(rng.uniform(0, 0.05))  # anywhere in a shard
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert codes[0] == -signal.SIGKILL and set(codes) <= {0, -signal.SIGKILL}
    warm_processes.run(resumed, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def shards_in(folder: Path) -> int:
    return len([*folder.glob("part-*.parquet")])


def test_it_goes_on_with_as_many_threads_as_it_was_begun_with(texts: list[str], tmp_path: Path) -> None:
    """Matrix products round otherwise with another number of threads."""
    path = tmp_path / "texts.txt"
    path.write_bytes("\n".join(texts[:60]).encode() + b"\n\xff")
    threads = torch.get_num_threads()
    with pytest.raises(BadRow):
        extract("demo", path, tmp_path / "out", options=FLOAT32)
    path.write_text("\n".join(texts), encoding="utf-8")
    try:
        torch.set_num_threads(threads + 1)
        extract("demo", path, tmp_path / "out", options=FLOAT32, resume=True)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert b"threads" not in contents(tmp_path / "out")[".manifest.json"]


# What a shell starts in the background ignores interrupts, and hands that on. Its processor time is told at the end.
INTERRUPTIBLE = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from hf_xlmr.cli.program import main
try:
    main()
finally:
    print(sum(os.times()[:2]))
"""


@pytest.mark.parametrize("source", ["waits", "goes on"])
def test_an_interrupt_ends_it_at_once(source: str, tmp_path: Path) -> None:
    """Where the input says nothing for long, and in the middle of a window: neither is waited for."""
    streams = [str(tmp_path / name) for name in ("stdin", "stdout", "stderr")]
    os.mkfifo(streams[0])
    command = [sys.executable, "-c", INTERRUPTIBLE, "extract", "demo", "-", tmp_path / "out", "--quiet"]
    process = warm_processes.start([*command, "--tokens-per-batch", "16"], streams=streams)
    lines = b"the train leaves late again and nobody knows why it does\n" * (1 if source == "waits" else 5000)
    with Path(streams[0]).open("wb") as stdin:
        stdin.write(lines)
        stdin.flush()
        until((tmp_path / "out" / ".job.json").exists, otherwise="nothing was begun")
        watched = psutil.Process(process.pid)
        to_begin = sum(watched.cpu_times()[:2])
        if source == "goes on":
            until(lambda: sum(watched.cpu_times()[:2]) > to_begin * 1.1, otherwise="nothing is computed")
        at_interrupt = sum(watched.cpu_times()[:2])
        os.kill(watched.pid, signal.SIGINT)
        process.join(PATIENCE)
    told = Path(streams[2]).read_text()
    assert process.exitcode == 130 and "Traceback" not in told, told
    at_end = float(Path(streams[1]).read_text())
    assert at_end - at_interrupt < to_begin / 2, "of processor time: the window takes far more"


def test_an_output_is_not_begun_twice_and_a_finished_one_stays(source: Path, tmp_path: Path) -> None:
    extract("demo", source, tmp_path / "out", options=FLOAT32)
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="holds the finished output"):
        extract("demo", source, tmp_path / "out", options=FLOAT32)
    report = extract("demo", source, tmp_path / "out", options=FLOAT32, resume=True)
    assert report.shards == report.texts == 0 and report.rows == 230
    assert contents(tmp_path / "out") == before


def test_other_options_do_not_go_on(source: Path, tmp_path: Path) -> None:
    extract("demo", source, tmp_path / "out", options=FLOAT32)
    other = ExtractionOptions(dtype="float32", rows_per_shard=50, pool="max")
    with pytest.raises(InputError, match=r"pool.*mean.*max"):
        extract("demo", source, tmp_path / "out", options=other, resume=True)


@pytest.mark.parametrize("bad", [b"\xff\xfe broken", b"too long " * 200])
def test_a_bad_row_is_named_and_what_was_done_stays(bad: bytes, texts: list[str], source: Path, tmp_path: Path) -> None:
    path, options = (
        tmp_path / "texts.txt",
        ExtractionOptions(dtype="float32", rows_per_shard=50, on_long="error", max_length=100),
    )
    lines = [text.encode() for text in texts]
    path.write_bytes(b"\n".join([*lines[:120], bad, *lines[121:]]) + b"\n")
    with pytest.raises(BadRow, match=r"texts\.txt, line 121: "):
        extract("demo", path, tmp_path / "out", options=options)
    done = {name: content for name, content in contents(tmp_path / "out").items() if name.endswith(".parquet")}
    assert sorted(done) == ["part-00000.parquet", "part-00001.parquet"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    report = extract("demo", path, tmp_path / "out", options=options, resume=True)
    assert report.texts == 130
    assert contents(tmp_path / "out").items() >= done.items()
    extract("demo", source, tmp_path / "whole", options=options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_input_that_changed_where_it_was_done_is_refused(texts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*texts[:60], *texts]), encoding="utf-8")
    with pytest.raises(BadRow):
        path.write_bytes(path.read_bytes() + b"\n\xff")
        extract("demo", path, tmp_path / "out", options=FLOAT32)
    path.write_text("\n".join(["other", *texts[1:60], *texts]), encoding="utf-8")
    with pytest.raises(InputError, match="rows 0 to 49"):
        extract("demo", path, tmp_path / "out", options=FLOAT32, resume=True)


# ---- the size of a shard


@pytest.mark.parametrize(
    ("name", "tokens", "rows"),
    [
        ("xlmr.base", 512, 512),
        ("xlmr.base", 64, 4096),  # texts that are cut off earlier take less time
        ("xmod.base", 512, 512),  # each text takes the adapters of one language
        ("xlmr.large", 512, 128),
        ("xlmr.xl", 512, 16),
        ("xlmr.xxl", 512, 16),
    ],
)
def test_a_shard_takes_minutes_on_a_cpu(name: str, tokens: int, rows: int) -> None:
    assert usual_rows_per_shard(shape_of(name), tokens=tokens, device="cpu") == rows
    assert usual_rows_per_shard(shape_of(name), tokens=tokens, device="cuda") == 8192


def test_a_tiny_model_has_large_shards(source: Path, tmp_path: Path) -> None:
    report = extract("demo", source, tmp_path / "out", options=ExtractionOptions(dtype="float32"))
    manifest = json.loads((tmp_path / "out" / ".manifest.json").read_text())
    assert report.rows_per_shard == manifest["layout"]["rows_per_shard"] == 8192


def test_a_broken_run_keeps_its_shards_and_goes_on_with_their_size(
    texts: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the demo were a large model; then on a machine on which others would be usual."""
    path, options = tmp_path / "texts.txt", ExtractionOptions(dtype="float32")
    path.write_bytes("\n".join(texts[:40]).encode() + b"\n\xff")
    monkeypatch.setattr(bulk_extraction, "PRODUCTS", 1.0)
    with pytest.raises(BadRow):
        extract("demo", path, tmp_path / "out", options=options)
    assert shards_in(tmp_path / "out") == 2
    monkeypatch.undo()
    path.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="rows_per_shard was 16 and is 32 now"):
        extract("demo", path, tmp_path / "out", options=replace(options, rows_per_shard=32), resume=True)
    report = extract("demo", path, tmp_path / "out", options=options, resume=True)
    assert (report.texts, report.rows_per_shard) == (230 - 32, 16)
    extract("demo", path, tmp_path / "whole", options=replace(options, rows_per_shard=16))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_first_process_chooses_the_size_for_all(demo: XLMR, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has a processor, and another one a GPU."""
    extractor, files = FeatureExtractor(demo), demo.files
    monkeypatch.setattr(Processes, "agreed", lambda _self, own: {8192: 64}[own])
    layout = bulk_extraction.layout_of(ExtractionOptions(), extractor, files.shape, Processes(1, 2), has_ids=False)
    assert layout.rows_per_shard == 64


# ---- many processes


ONE_THREAD = "import torch; torch.set_num_threads(1)\nfrom hf_xlmr.cli.program import main; main()"


def test_two_processes_make_the_same_bytes_as_one(source: Path, tmp_path: Path) -> None:
    def command(output: str) -> list[str | Path]:
        program = [sys.executable, "-c", ONE_THREAD, "extract", "demo", source, tmp_path / output]
        return [*program, "--rows-per-shard", "50", "--quiet"]

    warm_processes.run(command("one"), check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *command("two")], env=environment, check=True, timeout=PATIENCE)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_processes_that_cannot_compute_as_the_first_one_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's processor, with the same options."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    second = Processes(rank=1, count=2)
    monkeypatch.setattr(Processes, "current", lambda: second)
    monkeypatch.setattr(Processes, "agreed", lambda _self, own: "bfloat16" if isinstance(own, str) else own)
    with pytest.raises(InputError, match=r"computes in bfloat16, .* process 1 .* has no instructions: .*float32"):
        extract("demo", source, tmp_path / "out", options=ExtractionOptions(dtype="bfloat16"))


def test_processes_are_those_of_the_launcher() -> None:
    assert Processes.current({}) == Processes(rank=0, count=1)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}):
        with pytest.raises(InputError, match="as torchrun sets them"):
            Processes.current(wrong)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "processes", "expected"),
    [
        ({"cpu": 64 * GIB}, Processes(), {"device": "cpu"}),
        ({0: 24 * GIB, 1: 24 * GIB, "cpu": 64 * GIB}, Processes(), {"device": "cuda:0"}),
        ({0: 24 * GIB, 1: 24 * GIB, "cpu": 64 * GIB}, Processes(1, 2, 1), {"device": "cuda:1"}),
        (
            {0: 6 * GIB, 1: 6 * GIB, "cpu": 64 * GIB},
            Processes(),
            {"device_map": "auto", "max_memory": {0: 6 * GIB, 1: 6 * GIB}},
        ),
    ],
)
def test_a_model_that_fits_a_gpu_is_there_for_each_process(
    memory: dict[Any, int], processes: Processes, expected: dict[str, Any]
) -> None:
    assert placing_for(shape_of("xlmr.xl"), memory, processes, dtype="bfloat16") == expected


def test_a_model_that_fits_no_gpu_is_for_one_process() -> None:
    with pytest.raises(InputError, match=r"does not fit one GPU.*run one process"):
        placing_for(shape_of("xlmr.xl"), {0: 6 * GIB, 1: 6 * GIB}, Processes(0, 2, 0), dtype="bfloat16")
    with pytest.raises(InputError, match="process 1 has no GPU"):
        placing_for(shape_of("xlmr.xl"), {0: 24 * GIB}, Processes(1, 2, 1), dtype="bfloat16")


# ---- the program


def run_apart(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return warm_processes.run([PROGRAM, "extract", *arguments], stdin=stdin)


def test_the_program_tells_what_it_did(source: Path, tmp_path: Path) -> None:
    done = run("extract", "demo", source, tmp_path / "out", cwd=tmp_path)
    native = dtype_name(native_dtype(torch.device("cpu")))
    assert done.returncode == 0 and done.stderr == ""
    assert "230, of which 230 were computed now" in done.stdout and native in done.stdout
    again = run("extract", "demo", source, tmp_path / "out", cwd=tmp_path)
    assert again.returncode == 2 and "--overwrite" in again.stderr and again.stdout == ""
    told = run("extract", "demo", source, tmp_path / "out", "--resume", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["rows"] == 230


@pytest.mark.parametrize(("insists", "dtype"), [([], "float32"), (["--emulate-dtype"], "bfloat16")])
def test_a_dtype_that_the_processor_has_no_instructions_for_is_told(
    insists: list[str], dtype: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    done = run_apart("demo", source, tmp_path / "out", "--dtype", "bfloat16", "--json", *insists)
    assert done.returncode == 0 and json.loads(done.stdout)["dtype"] == dtype
    assert json.loads((tmp_path / "out" / ".manifest.json").read_text())["job"]["dtype"] == dtype
    assert done.stderr.count("\n") == 1 and done.stderr.count("has no instructions for bfloat16") == 1
    assert ("emulate_dtype insists" in done.stderr) is not bool(insists)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "one"], "--layers one: give numbers with commas between"),
        (["--layers", "9"], "the hidden states are numbered 0 (embeddings) to"),
        (["--column", "words"], "has no columns"),
        (["--max-length", "600"], "--max-length 600: give a number from 3 to 512"),
        (["--device", "moon"], "moon"),
    ],
)
def test_wrong_options_end_with_one_sentence(arguments: list[str], message: str, source: Path, tmp_path: Path) -> None:
    done = run("extract", "demo", source, tmp_path / "out", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_standard_input_is_read_once(source: Path, texts: list[str], tmp_path: Path) -> None:
    done = run_apart("demo", "-", tmp_path / "out", "--quiet", stdin=source.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr
    assert len(vectors_in(tmp_path / "out")) == len(texts)
    assert "can be read only once" in run_apart("demo", "-", tmp_path / "out", "--resume", stdin="").stderr


def test_a_model_is_known_by_what_it_computes(demo: XLMR, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(demo.files.folder, folder)
    assert fingerprint(folder) == fingerprint(demo.files.folder)
    weights = load_file(folder / "model.safetensors")
    trained = {name: weight + 1e-3 for name, weight in weights.items()}
    save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(folder) != fingerprint(demo.files.folder)
