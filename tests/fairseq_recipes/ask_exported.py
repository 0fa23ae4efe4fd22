"""Ask real fairseq about exported checkpoints (0.10.2 and 0.12.2, so Python >= 3.7): WANTED_JSON ANSWERS_JSON.

WANTED_JSON maps a name to {"folder", "golden": a folder with golden.json and golden.npz, "head": its head or null}.
ANSWERS_JSON gets, per name, whether ids and decoded texts are the golden ones, and the largest differences of the
hidden states, the features, the padded batch and the output, each as a part of the largest golden value (at least 1).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fairseq
import numpy as np
import torch
from fairseq.models.roberta import RobertaModel

PAD = 1


def load(folder: str) -> Any:
    """The hub interface of a folder, as a user of fairseq asks for it."""
    hub = RobertaModel.from_pretrained(
        folder,
        checkpoint_file="model.pt",
        data_name_or_path=folder,
        bpe="sentencepiece",
        sentencepiece_model=folder + "/sentencepiece.bpe.model",
    )
    return hub.eval()


def difference(given: torch.Tensor, expected: np.ndarray) -> float:
    given = given[..., : expected.shape[-1]]  # rows without a name come after those that have one
    if tuple(given.shape) != expected.shape:
        return float("inf")
    return float(np.abs(given.numpy() - expected).max() / max(1.0, np.abs(expected).max()))


def ask(folder: str, golden: Path, head: str | None) -> dict[str, Any]:
    about = json.loads((golden / "golden.json").read_text(encoding="utf-8"))
    arrays = np.load(str(golden / "golden.npz"))
    hub = load(folder)
    sequences = [hub.encode(text) for text in about["texts"]] + [hub.encode(*pair) for pair in about["pairs"]]
    differences = {"hiddens": 0.0, "last": 0.0, "output": 0.0}
    for index, tokens in enumerate(sequences):
        output = hub.model(tokens.unsqueeze(0))[0] if head is None else hub.predict(head, tokens, return_logits=True)
        given = {
            "hiddens": torch.stack(list(hub.extract_features(tokens, return_all_hiddens=True))),
            "last": hub.extract_features(tokens),
            "output": output,
        }
        for key, value in given.items():
            name = key if key != "output" else "logits" if head is None else f"head.{head}"
            differences[key] = max(differences[key], difference(value, arrays[f"{name}.{index}"]))
    ids = torch.from_numpy(arrays["batch.ids"])
    batch = hub.extract_features(ids) * (ids != PAD).unsqueeze(-1)
    same_ids = [tokens.tolist() == arrays[f"ids.{index}"].tolist() for index, tokens in enumerate(sequences)]
    return {
        "ids": all(same_ids),
        "decode": [hub.decode(tokens) for tokens in sequences] == about["decode"],
        "heads": sorted(hub.model.classification_heads),
        "differences": {**differences, "batch": difference(batch, arrays["batch.last"])},
    }


def main(wanted: str, answers: str) -> None:
    asked = json.loads(Path(wanted).read_text(encoding="utf-8"))
    with torch.no_grad():
        found = {name: ask(each["folder"], Path(each["golden"]), each["head"]) for name, each in asked.items()}
    told = {"fairseq": fairseq.__version__, "torch": torch.__version__, "answers": found}
    Path(answers).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
