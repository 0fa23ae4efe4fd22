"""Runs the core of the tests in an environment for each set of versions that setup.cfg promises.

python tests/matrix.py                  all environments, and whether everything resolves to wheels for the next Python
python tests/matrix.py lowest           one of them; also --tests all

Each environment is made in build/matrix (2 to 7 GB: PyTorch's builds for GPUs, where there is no other) and is used
again until setup.cfg changes. The wheel of this checkout is what is tested. `hashes` are of what tests/same_bytes.py
converts; they must be the same everywhere.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / "build" / "matrix"
NEXT_PYTHON = "3.14"
SHOWN = ("torch", "transformers", "tokenizers", "sentencepiece", "accelerate", "datasets", "pyarrow", "huggingface_hub")
TOOLS = ("pytest>=8", "pytest-xdist>=3", "markdown-it-py>=3")
EXTRA = "train"
OPTIONAL = ("words", "ray", "datatrove", "train", "benchmarks")
SOURCE_ONLY = ("seqeval",)  # no Python has a wheel of it
PARTNERS = ("sentence-transformers>=5.2",)  # what users load folders with, and hf_xlmr does not need


@dataclass(frozen=True)
class Environment:
    """A Python and what is pinned in it; `lowest` pins all else to the lowest versions that setup.cfg allows."""

    name: str
    python: str
    pins: tuple[str, ...] = ()
    lowest: bool = False

    def pinned(self, wanted: Sequence[str]) -> list[str]:
        """What pip is asked for beside `wanted`."""
        names = {re.split(r"\W", pin)[0] for pin in self.pins}
        floors = [lowest(each) for each in wanted if re.split(r"[^\w-]", each)[0] not in names]
        return [*self.pins, *(floors if self.lowest else ())]


ENVIRONMENTS = (
    Environment("lowest", "3.10", lowest=True),
    Environment("lowest-torch-2.13", "3.11", ("torch==2.13.0",), lowest=True),
    Environment("newest-3.12", "3.12"),
    Environment("newest-3.13", "3.13"),
    Environment("transformers-5.0", "3.11", ("torch==2.13.0", "transformers==5.0.0")),
    Environment("transformers-5.6", "3.11", ("torch==2.13.0", "transformers==5.6.*")),
    Environment("transformers-newest", "3.11", ("torch==2.13.0",)),
)


@dataclass(frozen=True)
class Outcome:
    """What one environment gave: its versions, pytest's last line, and the hashes of what was converted."""

    environment: Environment
    versions: dict[str, str]
    summary: str
    passed: bool
    hashes: dict[str, str]


def main() -> int:
    """Run the matrix and print it as a table; 0 where everything passed and all hashes agree."""
    options = parsed()
    chosen = [each for each in ENVIRONMENTS if not options.names or each.name in options.names]
    outcomes = [run_in(each, all_tests=options.tests == "all") for each in chosen]
    print(table(outcomes))
    agree = all(outcome.hashes == outcomes[0].hashes for outcome in outcomes)
    digests = sorted({sha256(json.dumps(each.hashes, sort_keys=True).encode()).hexdigest()[:16] for each in outcomes})
    print(f"what converts: {'the same bytes everywhere' if agree else 'NOT the same bytes'} ({', '.join(digests)})")
    resolves = bool(options.names) or resolves_for_next_python()
    return 0 if agree and resolves and all(outcome.passed for outcome in outcomes) else 1


def parsed() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *(each.name for each in ENVIRONMENTS)])
    parser.add_argument("--tests", choices=("core", "all"), default="core")
    return parser.parse_args()


# ---- environments ----------------------------------------------------------------------------------------------------


def requirements(*sections: str) -> list[str]:
    """What setup.cfg requires, with these extras."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    blocks = [config["options"]["install_requires"], *(config["options.extras_require"][each] for each in sections)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def lowest(requirement: str) -> str:
    """`name>=1.2,<3` as `name==1.2`."""
    return re.sub(r">=([\w.]+).*", r"==\1", requirement)


def made(environment: Environment) -> Path:
    """The Python of `environment`, which is built where it is not there or setup.cfg changed since."""
    folder = FOLDER / environment.name
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = [*requirements(EXTRA), *PARTNERS]
    packages = [*environment.pinned(wanted), *wanted, *TOOLS]
    mark = sha256("\n".join(packages).encode()).hexdigest()
    if not ready.is_file() or ready.read_text() != mark:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"{environment.name}: building an environment of Python {environment.python}")
        subprocess.run([*interpreter(environment.python), "-m", "venv", folder], check=True)
        install(python, "--upgrade", "pip", "wheel", "setuptools")
        install(python, *[each for each in packages if each.startswith("torch==")][:1] or ["torch"])
        install(python, *packages)
        ready.write_text(mark)
    return python


def interpreter(version: str) -> list[str]:
    """A command that starts this Python: on the path, or one of pyenv's."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
        return [found]
    roots = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python"))
    if not roots:
        raise SystemExit(f"There is no Python {version} on the path, and none of pyenv's: install one.")
    return [str(roots[-1])]


def install(python: Path, *packages: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)


def resolves_for_next_python() -> bool:
    """Whether all that setup.cfg requires is there as wheels for NEXT_PYTHON, of which nobody needs an interpreter."""
    wanted = ["--only-binary", ":all:", "--python-version", NEXT_PYTHON, "--implementation", "cp"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--target", "none"]
    asked = [each for each in requirements(*OPTIONAL) if not each.startswith(SOURCE_ONLY)]
    done = subprocess.run([*command, *wanted, *asked], capture_output=True, text=True, cwd=FOLDER)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    print(f"wheels for Python {NEXT_PYTHON}: {'all' if done.returncode == 0 else ' '.join(errors)}")
    return done.returncode == 0


# ---- what runs in them -----------------------------------------------------------------------------------------------


def run_in(environment: Environment, *, all_tests: bool) -> Outcome:
    """The tests, and the conversions, over the wheel in `environment`."""
    python = made(environment)
    install(python, "--no-deps", "--force-reinstall", str(CHECKOUT))
    say(f"{environment.name}: tests")
    start = time.perf_counter()
    marks = [] if all_tests else ["-m", "core"]
    done = subprocess.run(
        [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *marks, CHECKOUT / "tests"],
        cwd=FOLDER,  # where nothing but the wheel can be imported as hf_xlmr
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
    )
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no test ran"
    if done.returncode:
        print(done.stdout)
    say(f"{environment.name}: {summary}, {time.perf_counter() - start:.0f} s")
    hashes = json.loads(subprocess.check_output([python, CHECKOUT / "tests" / "same_bytes.py"], cwd=FOLDER, text=True))
    return Outcome(environment, versions_in(python), summary, done.returncode == 0, hashes)


def versions_in(python: Path) -> dict[str, str]:
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    versions: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code], text=True))
    return versions


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    rows = [["environment", "Python", *SHOWN, "tests"], ["---"] * (len(SHOWN) + 3)]
    for each in outcomes:
        summary = each.summary.strip("= ")
        rows.append([each.environment.name, each.environment.python, *each.versions.values(), summary])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
