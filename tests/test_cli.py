"""The program as a user meets it: what it prints, where, with which exit code, and what it does not even import."""

from __future__ import annotations

import importlib.metadata
import inspect
import io
import json
import os
import pty
import re
import subprocess
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from factory import OPTIONS, Checkpoint, E, add_head, weights
from in_process import run
from warm_processes import PROGRAM

from hf_xlmr import __version__
from hf_xlmr.cli import program, task_commands
from hf_xlmr.conversion import convert
from hf_xlmr.features.bulk_extraction import ExtractionOptions
from hf_xlmr.tasks.evaluation import EvaluationOptions
from hf_xlmr.tasks.training import FinetuningOptions

HEAVY = {"torch", "transformers", "numpy", "tokenizers", "sentencepiece", "datasets", "accelerate", "httpx2"}


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_tells_the_commands(tmp_path: Path) -> None:
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"convert", "inspect", "--version"} <= set(done.stdout.split())


def test_version(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hf-xlmr {__version__}\n", "")
    assert importlib.metadata.version("hf-xlmr") == __version__


CONVERT_OPTIONS = (
    *("--dtype", "--max-shard-size", "--head", "--encoder-only", "--overwrite", "--no-verify"),
    *("--json", "--quiet", "--attention-heads", "--ema", "--language", "--license"),
)


@pytest.mark.parametrize(("command", "options"), [("convert", CONVERT_OPTIONS), ("inspect", ("--json",))])
def test_help_of_a_command_lists_its_options(command: str, options: tuple[str, ...], tmp_path: Path) -> None:
    done = run(command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(options) <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("convert",),
        ("convert", "demo"),
        ("convert", "demo", "out", "more"),
        ("convert", "demo", "out", "--nonsense"),
        ("convert", "demo", "out", "--dtype", "int8"),
        ("convert", "demo", "out", "--attention-heads", "many"),
        ("convert", "demo", "out", "--attention-heads", "0"),
        ("inspect",),
    ],
)
def test_a_line_that_cannot_be_parsed_ends_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(("Error: ", "hf-xlmr: ")) and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- mistakes and damages --------------------------------------------------------------------------------------------


class Mistake(NamedTuple):
    """How to make it (in an empty folder; the source is called `m`), what to say, and what must be answered."""

    make: Callable[[Path], object]
    code: int
    message: str
    arguments: tuple[str, ...] = ("convert", "m", "out")


def checkpoint(folder: Path, *, model: OrderedDict[str, torch.Tensor] | None = None, **options: Any) -> Path:
    return Checkpoint(model=model or weights(), options={**OPTIONS, **options}).write(folder / "m")


def with_model_file(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (checkpoint(folder) / "model.pt").write_bytes(content)


def with_saved(value: object) -> Callable[[Path], object]:
    return lambda folder: torch.save(value, checkpoint(folder) / "model.pt")


def with_weights(change: Callable[[OrderedDict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        model = weights()
        change(model)
        checkpoint(folder, model=model)

    return make


def with_symbols(symbols: tuple[str, ...]) -> Callable[[Path], object]:
    return lambda folder: Checkpoint(symbols=symbols).write(folder / "m")


def with_heads(*heads: str) -> Callable[[Path], object]:
    return with_weights(lambda model: [add_head(model, head) for head in heads])


def truncated(folder: Path) -> None:
    file = checkpoint(folder) / "model.pt"
    file.write_bytes(file.read_bytes()[:-3000])


def flipped(folder: Path) -> None:
    file = checkpoint(folder) / "model.pt"
    data = bytearray(file.read_bytes())
    data[data.index(weights()[f"{E}layers.0.fc1.weight"].numpy().tobytes())] ^= 1
    file.write_bytes(data)


def truncated_archive(folder: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(checkpoint(folder), "m")
    (folder / "m.tar.gz").write_bytes(packed.getvalue()[:-2000])


def without_dictionary(folder: Path) -> None:
    (checkpoint(folder) / "dict.txt").unlink()


def one_part(folder: Path) -> None:
    Checkpoint().write(folder / "m", name="model_part1.pt")


def two_checkpoints(folder: Path) -> None:
    Checkpoint().write(folder / "m", name="a.pt")
    Checkpoint().write(folder / "m", name="b.pt")


def with_output(kind: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        checkpoint(folder)
        if kind == "file":
            (folder / "out").write_text("precious")
        else:
            (folder / "out").mkdir()
            (folder / "out" / "letters.txt").write_text("dear")

    return make


def too_large(model: OrderedDict[str, torch.Tensor]) -> None:
    model[f"{E}layers.0.fc1.bias"][0] = 1e5


CONVERT = ("convert", "m", "out")
MISTAKES = {
    "no source": Mistake(lambda folder: None, 2, "neither a file or folder"),
    "no source to inspect": Mistake(lambda folder: None, 2, "neither a file or folder", ("inspect", "m")),
    "an empty source": Mistake(lambda folder: (folder / "m").mkdir(), 2, "holds no checkpoint"),
    "output exists": Mistake(with_output("folder"), 2, "exists"),
    "output below a file": Mistake(with_output("file"), 2, "out", ("convert", "m", "out/deeper")),
    "overwriting no model": Mistake(with_output("folder"), 2, "does not look like what", (*CONVERT, "--overwrite")),
    "overwriting a file": Mistake(with_output("file"), 2, "is not a folder", (*CONVERT, "--overwrite")),
    "no size": Mistake(checkpoint, 2, "'much' is not a size", (*CONVERT, "--max-shard-size", "much")),
    "an unknown head": Mistake(checkpoint, 2, "no head topic", (*CONVERT, "--head", "topic")),
    "a head of several": Mistake(with_heads("a", "b"), 2, "several heads"),
    "two opposite options": Mistake(with_heads("a"), 2, "exclude", (*CONVERT, "--head", "a", "--encoder-only")),
    "heads that do not divide": Mistake(partial(checkpoint, encoder_attention_heads=7), 2, "do not divide"),
    "no moving average": Mistake(checkpoint, 2, "no moving average", (*CONVERT, "--ema")),
    "an activation": Mistake(lambda folder: checkpoint(folder, activation_fn="swish"), 2, "activation swish"),
    "no dictionary": Mistake(without_dictionary, 2, "no dict.txt"),
    "a longer dictionary": Mistake(with_symbols(tuple("abcdefgh" * 20)), 2, "dict.txt"),
    "another file": Mistake(with_model_file(b"hello, this is no model"), 2, "not a PyTorch checkpoint"),
    "an empty file": Mistake(with_model_file(b""), 2, "empty"),
    "a Git LFS pointer": Mistake(with_model_file(b"version https://git-lfs.github.com/spec/v1\n"), 2, "git lfs pull"),
    "a list": Mistake(with_saved([1, 2]), 2, "no dictionary"),
    "no weights": Mistake(with_saved({"epoch": 3}), 2, "no weights under `model`"),
    "Transformers' own": Mistake(
        with_saved({"model": {"roberta.embeddings.word_embeddings.weight": torch.zeros(2, 2)}}), 2, "already"
    ),
    "a middle part alone": Mistake(one_part, 2, "model_part0.pt"),
    "several checkpoints": Mistake(two_checkpoints, 2, "several checkpoints"),
    "too large for float16": Mistake(
        with_weights(too_large), 2, "float16", (*CONVERT, "--dtype", "float16", "--no-verify")
    ),
    "a truncated file": Mistake(truncated, 1, "truncated"),
    "a flipped bit": Mistake(flipped, 1, "checksum", (*CONVERT, "--no-verify")),
    "a truncated archive": Mistake(truncated_archive, 1, "m.tar.gz", ("convert", "m.tar.gz", "out")),
    "a missing weight": Mistake(
        with_weights(lambda model: model.pop(f"{E}layers.1.fc2.bias")), 1, "missing: encoder.sentence_encoder.layers.1"
    ),
    "a weight too many": Mistake(
        with_weights(lambda model: model.update({"encoder.extra": torch.zeros(1)})), 1, "unexpected: encoder.extra"
    ),
    "a wrong shape": Mistake(
        with_weights(lambda model: model.update({f"{E}layers.0.fc2.bias": torch.zeros(3)})), 1, "wrong shape"
    ),
    "a sparse weight": Mistake(
        with_weights(lambda model: model.update({"encoder.x": torch.zeros(2).to_sparse()})), 1, "not plain tensors"
    ),
    "a name with control characters": Mistake(
        with_weights(lambda model: model.update({"encoder.x\n\x1b[2J\x07y": torch.zeros(1)})),
        1,
        r"encoder.x\n\x1b[2J\x07y",
    ),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Path], Any]]:
    """What the program says to each mistake."""
    home = tmp_path_factory.mktemp("mistakes")

    def made(name: str) -> Path:
        folder = home / re.sub(r"\W", "-", name)
        folder.mkdir()
        MISTAKES[name].make(folder)
        return folder

    folders = {name: made(name) for name in MISTAKES}
    before = {name: sorted(folder.rglob("*")) for name, folder in folders.items()}
    return {name: (folders[name], before[name], run(*MISTAKES[name].arguments, cwd=folders[name])) for name in MISTAKES}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str, answers: dict[str, tuple[Path, list[Path], Any]]) -> None:
    folder, before, done = answers[name]
    assert done.stdout == ""
    assert done.stderr.startswith("hf-xlmr: ") and done.stderr.endswith("\n"), done.stderr
    assert done.stderr[:-1].isprintable(), "one line, and nothing in it that a terminal obeys"
    assert MISTAKES[name].message in done.stderr
    assert done.returncode == MISTAKES[name].code
    assert sorted(folder.rglob("*")) == before, "nothing was written, moved or left behind"


# ---- what it says when all goes well ---------------------------------------------------------------------------------


def test_converting_the_demo_prints_the_proof(tmp_path: Path) -> None:
    """And nothing of what it imports prints anything."""
    command = [PROGRAM, "convert", "demo", "out"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo -> out" in done.stdout
    assert re.search(r"class +XLMRobertaForMaskedLM, 393,442 parameters, float32", done.stdout)
    assert re.search(r"proof +74 weights equal bit for bit .*; outputs within \d\.\de-\d\d of fairseq's", done.stdout)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_converting_as_json_gives_json_alone(tmp_path: Path) -> None:
    done = run("convert", "demo", "out", "--json", "--no-verify", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["output"], report["source"], report["class_name"]) == ("out", "demo", "XLMRobertaForMaskedLM")
    assert report["parity"] is None
    sizes = {p.relative_to(tmp_path / "out").as_posix(): p.stat().st_size for p in (tmp_path / "out").rglob("*.*")}
    assert report["files"] == sizes


def test_inspecting_tells_what_it_becomes(tmp_path: Path) -> None:
    done = run("inspect", "demo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"becomes +XLMRobertaForMaskedLM\n", re.sub(" +\n", "\n", done.stdout))
    assert "4 layers of width 64, 4 attention heads, texts of up to 512 tokens" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_inspecting_as_json_gives_json_alone(tmp_path: Path) -> None:
    done = run("inspect", "demo", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    inspection = json.loads(done.stdout)
    assert (inspection["class_name"], inspection["reasons"]) == ("XLMRobertaForMaskedLM", [])
    assert (inspection["embedding_rows"], inspection["mask_id"]) == (2402, 2401)


def test_what_cannot_be_expressed_is_no_error_to_inspect(tmp_path: Path) -> None:
    checkpoint(tmp_path, activation_fn="swish")
    done = run("inspect", "m", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing: the activation swish" in done.stdout


def test_quiet_is_quiet(tmp_path: Path) -> None:
    done = run("convert", "demo", "out", "--quiet", "--no-verify", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out" / "config.json").is_file()
    again = run("convert", "demo", "out", "--quiet", "--no-verify", cwd=tmp_path)
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1


HEADS = ("--attention-heads", "2")


def test_the_options_arrive(tmp_path: Path) -> None:
    """Each one changes what comes out."""
    model = weights()
    add_head(model, "topic")
    untold = {key: value for key, value in OPTIONS.items() if key not in ("arch", "encoder_attention_heads")}
    state = Checkpoint(model=model, options=untold, more={"extra_state": {"ema": weights(seed=5)}})
    state.write(tmp_path / "m")

    def config(*options: str) -> dict[str, Any]:
        done = run("convert", "m", "out", *HEADS, "--no-verify", "--overwrite", *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "not verified (--no-verify)" in done.stdout
        content: dict[str, Any] = json.loads((tmp_path / "out" / "config.json").read_text())
        return content

    assert config()["architectures"] == ["XLMRobertaForSequenceClassification"]
    several = config("--head", "none", "--dtype", "bfloat16")
    assert several["architectures"] == ["XLMRobertaForMaskedLM"]
    assert (several["dtype"], several["num_attention_heads"]) == ("bfloat16", 2)
    assert config("--encoder-only", "--max-shard-size", "4KB")["architectures"] == ["XLMRobertaModel"]
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert config("--ema")["architectures"] == ["XLMRobertaForMaskedLM"], "the average has no head"


@pytest.mark.parametrize(
    ("command", "kind", "renamed", "others"),
    [
        (program.convert, convert, {"progress": None}, ""),
        (
            program.extract,
            ExtractionOptions,
            {},
            "model source output resume overwrite ray actors gpus_per_actor cpus_per_actor",
        ),
        (
            task_commands.finetune,
            FinetuningOptions,
            {"split": "train_split"},
            "task model train output evaluation eval_split languages null_threshold device resume overwrite",
        ),
        (
            task_commands.evaluate,
            EvaluationOptions,
            {"max_answer": None},  # for Python alone
            "task model data output device references overwrite",
        ),
    ],
)
def test_every_option_of_the_library_is_one_of_the_command(
    command: Callable[..., None], kind: Callable[..., object], renamed: dict[str, str | None], others: str
) -> None:
    """The program hands options over by their names: one that is called otherwise would be lost without a word."""
    named = {"misaligned": "on_misaligned", "unlabelled": "on_unlabelled", **renamed}
    fields = {named.get(name, name) for name in inspect.signature(kind).parameters} - {None}
    assert set(inspect.signature(command).parameters) - fields == {*others.split(), "as_json", "quiet", "verbose"}
    assert fields <= set(inspect.signature(command).parameters)


def test_names_that_no_terminal_can_show(tmp_path: Path) -> None:
    """A folder whose name is no text at all, a head that would clear the screen, a terminal that knows only ASCII."""
    model = weights()
    add_head(model, "wei\x1b[2Jrd")
    folder = tmp_path / os.fsdecode(b"m\xff")
    Checkpoint(model=model, options={**OPTIONS, "task": "sentence_prediction"}).write(folder)
    for arguments in (("inspect", folder), ("convert", folder, tmp_path / "out", "--no-verify")):
        for extra in ((), ("--json",)):
            more = ("--overwrite",) if arguments[0] == "convert" and extra else ()
            done = run(*arguments, *extra, *more, cwd=tmp_path, encoding="ascii")
            assert done.returncode == 0, done.stderr
            assert "m\\udcff" in done.stdout and "\x1b" not in done.stdout
            assert not extra or json.loads(done.stdout)
    record = json.loads((tmp_path / "out" / "fairseq" / "conversion.json").read_text(encoding="utf-8"))
    assert record["source"]["name"] == os.fsdecode(b"m\xff")


def test_on_a_terminal_bars_are_shown_and_gone(tmp_path: Path) -> None:
    """They go to standard error, so that what goes to standard output can be kept."""
    terminal, side = pty.openpty()
    command = [PROGRAM, "convert", "demo", "out", "--no-verify", "--json"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side, cwd=tmp_path) as process,
        ThreadPoolExecutor(1) as reader,
    ):
        os.close(side)
        shown = reader.submit(all_of, terminal)
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 0 and json.loads(printed)["class_name"] == "XLMRobertaForMaskedLM"
    assert b"weights" in shown.result()


def all_of(terminal: int) -> bytes:
    """What is written to a terminal until nobody has it open."""
    shown = b""
    try:
        while block := os.read(terminal, 65536):
            shown += block
    except OSError:
        pass
    os.close(terminal)
    return shown


# ---- what is not imported --------------------------------------------------------------------------------------------

EACH = """
import sys
from hf_xlmr.cli.program import main
for words in {lines!r}:
    sys.argv = ["hf-xlmr", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


def imported(*lines: tuple[str, ...], cwd: Path) -> set[str]:
    """The top-level modules that these runs of the program import."""
    command = [sys.executable, "-X", "importtime", "-c", EACH.format(lines=lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=True)
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}


def test_help_and_inspect_import_nothing_heavy(tmp_path: Path) -> None:
    modules = imported(("--help",), ("--version",), ("convert", "--help"), ("inspect", "demo"), cwd=tmp_path)
    assert "hf_xlmr" in modules
    assert not modules & HEAVY


def test_converting_without_proof_imports_no_torch(tmp_path: Path) -> None:
    modules = imported(("convert", "demo", "out", "--no-verify"), cwd=tmp_path)
    assert not modules & {"torch", "transformers", "accelerate", "datasets", "fairseq", "omegaconf"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
