"""Export every fixture and keep what real fairseq says of it: exported.py ANSWERS_JSON, in hf_xlmr's own environment.

FAIRSEQ_0122 and FAIRSEQ_0102 are folders of environments, as for build.sh. ANSWERS_JSON belongs into
tests/fixtures/exported: with each model.pt's SHA-256, the default tests know the very bytes that fairseq loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from hf_xlmr.conversion import convert, export

RECIPES = Path(__file__).resolve().parent
FIXTURES = RECIPES.parent / "fixtures"
ENVIRONMENTS = {"0.12.2": "FAIRSEQ_0122", "0.10.2": "FAIRSEQ_0102"}


class Case(NamedTuple):
    """A fixture, the head that convert is asked for, and the head that fairseq then has."""

    fixture: str
    asked: str | None = None
    head: str | None = None


CASES = {
    **{name: Case(name) for name in ("demo", "fsdp", "omegaconf", "v0102", "v0122", "v0122bpe", "v0122rare")},
    **{name: Case(name) for name in ("v0122prelayernorm", "v0122prenorm", "v0122untied", "v090", "v090half")},
    "v0122cls": Case("v0122cls", head="xnli_head"),
    "v0122cls.lm": Case("v0122cls", asked="none"),
    "v0122ranking": Case("v0122ranking", head="sentence_classification_head"),
    "v0122regression": Case("v0122regression", head="sentence_classification_head"),
    "v0122twoheads.lm": Case("v0122twoheads", asked="none"),
    "v0122twoheads.sentiment": Case("v0122twoheads", asked="sentiment", head="sentiment"),
    "v0122twoheads.topic": Case("v0122twoheads", asked="topic", head="topic"),
}


def source_of(case: Case) -> str:
    return "demo" if case.fixture == "demo" else str(FIXTURES / case.fixture)


def export_all(folder: Path) -> dict[str, Any]:
    """Every case converted into FOLDER/hf and exported into FOLDER/fairseq; gives the reports of the exports."""
    reports = {}
    for name, case in CASES.items():
        convert(source_of(case), folder / "hf" / name, head=case.asked, verify=False)
        reports[name] = export(folder / "hf" / name, folder / "fairseq" / name)
    return reports


def wanted(reports: dict[str, Any], release: str) -> dict[str, Any]:
    """What one release is asked about."""
    return {
        name: {"folder": str(report.output), "golden": str(FIXTURES / CASES[name].fixture), "head": CASES[name].head}
        for name, report in reports.items()
        if release in report.loaded_by
    }


def ask(release: str, questions: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answers of one release of fairseq."""
    questions_file, answers_file = folder / f"questions-{release}.json", folder / f"answers-{release}.json"
    questions_file.write_text(json.dumps(questions), encoding="utf-8")
    python = Path(os.environ[ENVIRONMENTS[release]]) / "bin" / "python"
    command = [str(python), str(RECIPES / "ask_exported.py"), str(questions_file), str(answers_file)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"fairseq {release}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(answers_file.read_text(encoding="utf-8"))
    return told


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def main(output: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        reports = export_all(folder)
        told = {release: ask(release, wanted(reports, release), folder) for release in ENVIRONMENTS}
        answers = {
            "asked": {release: {key: each[key] for key in ("fairseq", "torch")} for release, each in told.items()},
            "exported": {
                name: {
                    "sha256": digest(report.output / "model.pt"),
                    "answers": {r: each["answers"][name] for r, each in told.items() if name in each["answers"]},
                }
                for name, report in reports.items()
            },
        }
    Path(output).write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
