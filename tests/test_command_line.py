"""What users of command lines expect of `hf-xlmr`: help that fits, examples, near misses, its other names."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from in_process import run
from warm_processes import PROGRAM

from hf_xlmr import conversion
from hf_xlmr.cli import task_commands
from hf_xlmr.cli.command_help import EXAMPLES, SUMMARIES
from hf_xlmr.cli.program import app
from hf_xlmr.tasks import training

COMMANDS: Any = typer.main.get_command(app)
NARROW = 80
COMMON_WORDS = ("Value error", "Input should", "pydantic", "unable to parse")


def test_at_80_columns_no_summary_is_cut_off(tmp_path: Path) -> None:
    shown = run("--help", cwd=tmp_path, COLUMNS=str(NARROW)).stdout
    assert all(f"{name} " in shown and summary in shown for name, summary in SUMMARIES.items())
    assert "..." not in shown.partition("Commands:")[2]
    assert set(SUMMARIES) == set(EXAMPLES) == set(COMMANDS.commands)


def test_help_uses_the_width_of_the_terminal(tmp_path: Path) -> None:
    narrow, wide = (run("extract", "-h", cwd=tmp_path, COLUMNS=str(width)).stdout for width in (NARROW, 120))
    assert max(map(len, narrow.splitlines())) <= NARROW
    assert len(wide.splitlines()) < len(narrow.splitlines())


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_ends_with_examples(name: str, tmp_path: Path) -> None:
    shown = run(name, "-h", cwd=tmp_path, COLUMNS=str(NARROW)).stdout
    assert all(line in shown and len(line) < NARROW - 3 for line in EXAMPLES[name])
    assert shown == run(name, "--help", cwd=tmp_path, COLUMNS=str(NARROW)).stdout


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_the_program_takes_every_example(line: str) -> None:
    _, _, called = line.rpartition("hf-xlmr ") if "hf-xlmr " in line else line.rpartition("-m hf_xlmr ")
    name, *rest = shlex.split(called)
    assert COMMANDS.commands[name].make_context(name, rest).params


def interrupted(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("left", "more", "told"),
    [
        ((), (), "nothing was trained; start again with the same command"),
        (("checkpoints",), (), "no checkpoint was written; start again with the same command and --resume"),
        (("checkpoints/checkpoint-5",), (), "continue with the same command and --resume"),
        (("checkpoints/checkpoint-5",), ("--overwrite",), "the same command and --resume in place of --overwrite"),
    ],
)
def test_an_interrupted_training_says_how_to_continue(
    left: tuple[str, ...], more: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in left:
        (tmp_path / "out" / name).mkdir(parents=True)
    monkeypatch.setattr(training, "finetune", interrupted)
    command = ("finetune", "xnli", "--model", "demo", "--train", "demo", "--output", "out")
    done = run(*command, *more, cwd=tmp_path)
    assert done.returncode == 130 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("hf-xlmr: interrupted: ") and done.stderr.rstrip().endswith(told)


def test_an_interrupted_conversion_says_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "convert", interrupted)
    done = run("convert", "demo", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "hf-xlmr: interrupted: out was not written\n")
    (tmp_path / "out").mkdir()
    done = run("convert", "demo", "out", "--overwrite", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "hf-xlmr: interrupted: out is as it was before\n")
    monkeypatch.setattr(conversion, "inspect", interrupted)
    done = run("inspect", "demo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "hf-xlmr: interrupted\n")


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--dtype", "fp16", "did you mean float16?"),
        ("--dtype", "bf16", "did you mean bfloat16?"),
        ("--pool", "Mean", "did you mean mean?"),
        ("--pool", "x", "'x' is not one of mean, cls, max, none"),
        ("--format", "parket", "did you mean parquet?"),
        ("--rows-per-shard", "many", "'many' is not a whole number"),
        ("--rows-per-shard", "0", "'0' is below 1, the lowest value"),
        ("--least-cosine", "1.5", "'1.5' is above 1, the highest value"),
        ("--least-cosine", "nan", "'nan' is not a number"),
        ("--rows-per-shard", "1_0", "'1_0' is not a whole number"),
    ],
)
def test_a_value_that_is_not_taken_is_told_with_what_is(option: str, value: str, told: str, tmp_path: Path) -> None:
    done = run("extract", "demo", "-", tmp_path / "out", option, value, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.rstrip().endswith(told) and option in done.stderr
    assert not any(words in done.stderr for words in COMMON_WORDS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("extract demo - out --pol mean", "--pol is not an option of extract; did you mean --pool?"),
        (
            "extract demo - out --max-row-siz=3",
            "--max-row-siz is not an option of extract; did you mean --max-row-size?",
        ),
        ("extract demo - out --out x", "--out is not an option of extract; -h lists those that there are"),
        ("extract demo - out -x", "-x is not an option of extract; -h lists those that there are"),
        ("convert demo out --no-verfy", "--no-verfy is not an option of convert; did you mean --no-verify?"),
        ("--versio", "--versio is not an option of hf-xlmr; did you mean --version?"),
        ("extract demo", "missing argument 'INPUT'; see hf-xlmr extract -h"),
        ("finetune xnli", "missing option '--model'; see hf-xlmr finetune -h"),
        ("plan demo --tokens", "option '--tokens' requires an argument; see hf-xlmr plan -h"),
    ],
)
def test_what_cannot_be_parsed_is_told_in_one_line(words: str, told: str, tmp_path: Path) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"hf-xlmr: {told}\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [("conver demo out", "no such command 'conver'"), ("convert demo out more", "got unexpected extra argument")],
)
def test_what_typer_words_in_several_ways_is_one_line_too(words: str, told: str, tmp_path: Path) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"hf-xlmr: {told}")


def test_how_a_command_is_used_names_the_options_that_must_be_given(tmp_path: Path) -> None:
    usage = " ".join(run("finetune", "--help", cwd=tmp_path).stdout.partition("\n\n")[0].split())
    assert usage.endswith("--model MODEL --train DATA --output DIR")


@pytest.mark.parametrize(
    ("words", "told"),
    [("extract --rows-per-shard", "requires an argument"), ("extract --resume=3", "does not take a value")],
)
def test_an_option_without_its_value_or_with_one_too_many_is_not_called_unknown(
    words: str, told: str, tmp_path: Path
) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and "is not an option" not in done.stderr


def test_a_misspelt_task_is_told_with_the_near_one(tmp_path: Path) -> None:
    done = run("finetune", "xnil", "--model", "demo", "--train", "demo", "--output", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean xnli?" in done.stderr


def test_verbose_shows_where_a_run_was_refused(tmp_path: Path) -> None:
    quiet = run("inspect", "nothing-here", cwd=tmp_path)
    told = run("inspect", "nothing-here", "--verbose", cwd=tmp_path)
    assert quiet.returncode == told.returncode == 2
    assert "Traceback" not in quiet.stderr
    assert told.stderr.startswith("Traceback") and told.stderr.endswith(quiet.stderr)
    assert "Traceback" not in run("inspect", "nothing-here", cwd=tmp_path).stderr  # the next run is quiet again


def test_completion_knows_commands_and_choices(tmp_path: Path) -> None:
    def completed(line: str) -> list[str]:
        environment = {**os.environ, "_HF_XLMR_COMPLETE": "complete_bash", "COMP_WORDS": line}
        environment["COMP_CWORD"] = str(len(line.split(" ")) - 1)
        done = subprocess.run([PROGRAM], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
        return done.stdout.split()

    assert completed("hf-xlmr ex") == ["export", "extract"]
    assert completed("hf-xlmr extract demo - out --pool m") == ["mean", "max"]


def test_the_module_is_the_program_outside_a_checkout(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hf_xlmr", "inspect", "demo", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(run("inspect", "demo", "--json", cwd=tmp_path).stdout)


@pytest.mark.skipif(find_spec("huggingface_hub.cli.extensions") is None, reason="this `hf` has no extensions")
def test_hf_runs_it_as_an_extension(tmp_path: Path) -> None:
    """`hf extensions install` puts a package with a console script `hf-NAME` into a folder of this form."""
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-xlmr"
    folder.mkdir(parents=True)
    manifest = {"owner": "somebody", "repo": "hf-xlmr", "repo_id": "somebody/hf-xlmr", "short_name": "xlmr"}
    manifest |= {"executable_path": str(PROGRAM), "type": "python", "installed_at": "2026-01-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    hf = Path(PROGRAM).with_name("hf")

    def answered(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([hf, "xlmr", *words], capture_output=True, text=True, env=environment, check=False)

    shown = answered("inspect", "demo", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout)["class_name"] == "XLMRobertaForMaskedLM"
    assert answered("inspect", "nothing-here").returncode == 2


def asked_device(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    data = ("finetune", "xnli", "--model", "demo", "--train", "demo", "--output", "out", "--max-steps", "1")
    return run(*data, *words, cwd=folder, **variables)


@pytest.mark.parametrize(
    ("device", "variables", "told"),
    [
        ("gpu", {}, "give cpu, cuda or one GPU such as cuda:1"),
        ("cuda:1,2", {}, "give cpu, cuda or one GPU such as cuda:1"),
        ("cuda:0", {"WORLD_SIZE": "2"}, "each has its own GPU"),
        ("cuda:0 --cpu", {}, "exclude each other"),
        ("cuda:2", {"CUDA_VISIBLE_DEVICES": "4,7"}, "CUDA_VISIBLE_DEVICES names 2 of them"),
    ],
)
def test_a_device_of_a_training_that_cannot_be_is_refused(
    device: str, variables: dict[str, str], told: str, tmp_path: Path
) -> None:
    done = asked_device("--device", *device.split(), folder=tmp_path, **variables)
    assert done.returncode == 2 and told in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seen", "device", "left"), [("", "cuda:3", "3"), ("4,7", "cuda:1", "7"), ("", "cuda", "0")])
def test_a_training_sees_the_one_gpu_that_was_asked_for(
    seen: str, device: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert task_commands._uses_gpu(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_without_such_a_gpu_nothing_is_trained_on_the_cpu_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = asked_device("--device", "cuda:1", folder=tmp_path)
    assert done.returncode == 2 and "no such GPU" in done.stderr


AT_THE_END = """
import atexit
from hf_xlmr.cli import program
main = program.main
program.main = lambda: (atexit.register(print, "at the end"), print("said", end=" "), main())
program.run()
"""


@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("convert", 2)])
def test_the_program_ends_at_once_but_with_all_that_others_registered(words: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code and done.stdout.startswith("said ") and done.stdout.endswith("at the end\n")


def test_an_error_of_the_program_itself_is_shown_whole() -> None:
    code = AT_THE_END.replace("main())", "1 / 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and done.stdout.endswith("at the end\n")
