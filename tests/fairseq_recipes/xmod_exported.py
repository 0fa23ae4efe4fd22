"""Export the fixtures of X-MOD and keep what real fairseq says of them: xmod_exported.py ANSWERS_JSON, in hf_xlmr's own
environment, with the folder of one with fairseq 0.12.2 in FAIRSEQ_0122.

ANSWERS_JSON belongs into tests/fixtures/xmod: with each model.pt's SHA-256 it has the largest difference from the
answers for the original, as a part of the largest value (at least 1).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np

from hf_xlmr.conversion import convert, export

RECIPES = Path(__file__).resolve().parent
XMOD = RECIPES.parent / "fixtures" / "xmod"
HEADS = {"base": None, "prenorm": None, "half": None, "cls": "xnli_head"}


def export_all(folder: Path) -> None:
    """Every fixture converted into FOLDER/hf and exported into FOLDER/fairseq."""
    for name in HEADS:
        convert(XMOD / name, folder / "hf" / name, verify=False)
        export(folder / "hf" / name, folder / "fairseq" / name)


def largest_difference(name: str, folder: Path) -> float:
    """How far fairseq's answers for an export are from those for the original."""
    languages = json.loads((XMOD / name / "golden.json").read_text(encoding="utf-8"))["languages"]
    python = Path(os.environ["FAIRSEQ_0122"]) / "bin" / "python"
    command = [str(python), str(RECIPES / "xmod_golden.py"), str(folder), "--languages", ",".join(languages)]
    subprocess.run(command, check=True, capture_output=True)
    before, after = np.load(XMOD / name / "golden.npz"), np.load(folder / "golden.npz")
    kept = [key for key in before if not (HEADS[name] and key.startswith("logits."))]  # its LM head was left behind
    return max(float(np.abs(before[k] - after[k]).max() / max(1.0, np.abs(before[k]).max())) for k in kept)


def main(output: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        export_all(Path(scratch))
        answers = {}
        for name in HEADS:
            folder = Path(scratch) / "fairseq" / name
            digest = sha256((folder / "model.pt").read_bytes()).hexdigest()
            answers[name] = {"sha256": digest, "largest": largest_difference(name, folder)}
    Path(output).write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
