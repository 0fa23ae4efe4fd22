"""Every option of every command, given what is no number, or one that nobody can mean: one sentence, and no trace.

The options come out of the program itself, so that one that is added later is tried too.
"""

from __future__ import annotations

import inspect
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import in_process
import pytest
import typer
from factory import Checkpoint
from places import FIXTURES
from small_tasks import write_questions, write_xnli

from hf_xlmr.cli import program as cli
from hf_xlmr.cli.flags import flags_of
from hf_xlmr.tasks.training import FinetuningOptions, finetune

LARGEST: Final = "1" + "0" * 400
VALUES: Final = (
    *("", " ", "0", "-0", "1", "-1", "+1", " 5 ", "1_000", "0x10", "1.5", "1e3", "٣", "１", "nan", "inf", "-inf"),
    *("1e999", "1e300", "-1e300", "1e-320", "1000000000", "-1000000000", str(10**18), LARGEST, f"-{LARGEST}"),
    *("1" + "0" * 5000, "0GB", "0.0000001B", "1e999GB", "٣GB", f"{LARGEST}GB", "cuda:99999999999999999999", "a,,b"),
    *(
        "0=1,0=1",
        "0=-1",
        "-1=1GB",
        f"{LARGEST}=1GB",
        "cpu=nan",
        ",",
        "1,",
        "1\x002",
        "\x1b[2J",
        "\ud800",
        "a" * 100_000,
    ),
)
TRIED: Final = ("1e300", "1000000000", "1e-320", "20", "1", "0")  # with all of the work, until one is let through
NEW: Final = "new"  # the folder that a command makes
MODEL: Final = FIXTURES / "earlier" / "masked-lm"
DATA: Final = {"xnli": "xnli.tsv", "mlqa": "train-v1.1.json"}
TASKS: Final = {"stride": "mlqa", "null_threshold": "mlqa", "on_misaligned": "mlqa", "labels": "ner"}


class Option(NamedTuple):
    """A command and the flag, the name and the type of what it takes."""

    command: str
    flag: str
    name: str
    kind: Any


def options_of_the_program() -> Iterator[Option]:
    """All that take a value which is no choice."""
    for registered in cli.app.registered_commands:
        function: Any = registered.callback
        hints = get_type_hints(function, include_extras=True)
        for name in inspect.signature(function).parameters:
            kind, facts = get_args(hints[name])[:2]
            kinds = [each for each in (get_args(kind) or (kind,)) if each is not type(None)]
            kind = get_args(kinds[0])[0] if get_origin(kinds[0]) is list else kinds[0]
            if type(facts).__name__ == "OptionInfo" and kind is not bool and "|" not in str(facts.metavar):
                command = (registered.name or function.__name__).replace("_", "-")
                yield Option(command, flag_of(name, facts), name, kind)


def flag_of(name: str, facts: Any) -> str:
    """The flag as it was given, which typer keeps among the defaults where it is the only one."""
    given = [each for each in (*(facts.param_decls or ()), facts.default) if str(each).startswith("--")]
    return str(given[0]) if given else f"--{name.replace('_', '-')}"


OPTIONS: Final = tuple(options_of_the_program())
PROGRAM: Final = typer.main.get_command(cli.app)  # which takes longer to make than most of what is asked here
FLAGS: Final = flags_of(cli.app)
OF_RAY: Final = {"actors", "gpus_per_actor", "cpus_per_actor"}  # refused without one
NUMBERS: Final = tuple(each for each in OPTIONS if each.kind in (int, float) and each.name not in OF_RAY)


def test_the_options_are_those_of_the_program() -> None:
    assert {(each.command, each.flag) for each in OPTIONS} >= {
        ("convert", "--max-shard-size"),
        ("plan", "--tokens"),
        ("extract", "--rows-per-shard"),
        ("finetune", "--lora-rank"),
        ("evaluate", "--null-threshold"),
        ("push", "--include"),
    }
    assert {option.command for option in OPTIONS} == set(arguments("x", "x", "x")) - {
        *("doctor", "export", "to-sentence-transformers", "to-onnx", "to-openvino")
    }


def arguments(model: str, data: str, trained: str, *, task: str = "xnli") -> dict[str, list[str]]:
    """The least that each command asks for."""
    return {
        "convert": [model, NEW],
        "inspect": [model],
        "verify": [model, NEW],
        "export": [model, NEW],
        "plan": [model],
        "extract": [model, data, NEW],
        "finetune": [task, "--model", model, "--train", data, "--output", NEW],
        "evaluate": [task, "--model", trained, "--data", data, "--output", NEW],
        "adopt": [trained, "--from", model],
        "doctor": [model],
        "push": [model, "somebody/something", "--dry-run"],
        "verify-runtime": [model, model],
        **{name: [model, NEW] for name in ("to-sentence-transformers", "to-onnx", "to-openvino")},
    }


def command_line(option: Option, value: str, *, more: list[str]) -> list[str]:
    """Without what the option says itself, such as --model."""
    if option.flag in more:
        place = more.index(option.flag)
        more = more[:place] + more[place + 2 :]
    return [option.command, *more, f"{option.flag}={value}"]


class Answer(NamedTuple):
    """What the program said."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The only line."""
        (sentence,) = self.err.splitlines()
        assert sentence.startswith("hf-xlmr: "), self.err
        return sentence


def answer(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Of the program, which asks nothing of the network and gets 4 GB more memory than the tests have."""
    monkeypatch.setattr(cli, "app", PROGRAM)
    monkeypatch.setattr(cli, "flags_of", lambda _app, _command: FLAGS)
    with limited_memory(4 << 30):
        done = in_process.run(*words)
    assert "Traceback" not in done.stderr and "too little memory" not in done.stderr, words
    return Answer(done.returncode, done.stdout, done.stderr)


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    try:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more if pages else usual[0], usual[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, usual)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> Path:
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.command} {option.flag}")
def test_a_value_that_nobody_means_is_one_sentence(
    option: Option, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source that is not there, which is all that is wrong where the value could be meant."""
    least = arguments("./none/model.pt", "./none/data.txt", "./none", task=TASKS.get(option.name, "xnli"))
    more = least[option.command]
    more += ["--lora"] * (option.name == "lora_rank")
    for value in VALUES:
        found = answer(command_line(option, value, more=more), monkeypatch)
        assert (found.code, found.out) == (2, ""), (value, found)
        assert found.sentence.isprintable() and len(found.sentence) < 25_000, (value[:40], found.sentence[:2000])
        assert list(place.iterdir()) == [], value


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, cache_folder: Path) -> Path:
    """A checkpoint of fairseq's, and for each task data and a trained model."""
    folder = tmp_path_factory.mktemp("real")
    write_xnli(folder / DATA["xnli"], 3, ("en",))
    write_questions(folder / DATA["mlqa"], 3)
    (folder / "texts.txt").write_text("one text\nand another\n")
    Checkpoint(options={}).write(folder / "source")  # which does not tell the number of attention heads
    for task, data in DATA.items():
        options = FinetuningOptions(max_steps=1, warmup=0, cpu=True)
        finetune(task, str(MODEL), [str(folder / data)], folder / f"{task} trained", options=options)
    return folder


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: f"{option.command} {option.flag}")
def test_the_largest_number_that_is_let_through_breaks_nothing(
    option: Option, place: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS.get(option.name, "xnli")
    model, data = str(MODEL), str(real / DATA[task])
    model = str(real / "source") if option.command in ("convert", "inspect") else model
    data = str(real / "texts.txt") if option.command == "extract" else data
    more = arguments(model, data, str(real / f"{task} trained"), task=task)[option.command]
    if option.command == "finetune":
        more += ["--cpu", *([] if option.name == "epochs" else ["--max-steps", "1"])]
        more += [] if option.name == "warmup" else ["--warmup", "0"]
        more += ["--lora"] * (option.name == "lora_rank")
        more += ["--eval", data] if option.name == "null_threshold" else []
    for value in TRIED:
        found = answer(command_line(option, value, more=more), monkeypatch)
        if found.code == 0 or (option.command == "plan" and found.out):  # the plan of what does not fit is one, too
            assert not found.err or "is never reached; give a lower one" in found.err
            return
        assert found.code in (1, 2) and (list(place.iterdir()) == []) == ("diverged" not in found.sentence)
        shutil.rmtree(place / NEW, ignore_errors=True)
    pytest.fail(f"{option.command} {option.flag} takes none of {', '.join(TRIED)}: {found.sentence}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epochs", "3", "--max-steps", "5"], "--epochs 3 and --max-steps 5 both say how long: give one"),
        (["--eval-split", "dev"], "--eval-split: this is about scores, for which --eval must name data"),
        (
            ["--resume", "--overwrite"],
            "--resume continues the training there, --overwrite replaces it: give one of them",
        ),
        (["--on-misaligned", "skip"], "--on-misaligned is an option of mlqa and means nothing in xnli: leave it out"),
    ],
)
def test_the_program_names_options_where_the_library_names_arguments(
    options: list[str], sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answer(
        [*["finetune", "xnli", "--model", "demo", "--train", "demo", "--output", NEW], *options], monkeypatch
    )
    assert (found.code, found.sentence) == (2, f"hf-xlmr: {sentence}")
