"""Run converted folders in a process that cannot import hf_xlmr, as a user's would: FOLDERS_JSON RESULTS_NPZ.

The JSON maps a name to {"folder", "class", "inputs": npz with ids.I, "texts": [[text], [text, pair], ...]}. Results:
per name and input `NAME/hidden.I.K`, `NAME/output.I`, `NAME/ids.I`, and `NAME/loading` with what was missing or left.
"""

from __future__ import annotations

import json
import sys

sys.modules["hf_xlmr"] = None  # type: ignore[assignment]  # an import of it now fails

import numpy as np  # noqa: E402  # after the ban
import torch  # noqa: E402
import transformers  # noqa: E402


def main(folders: str, results: str) -> None:
    found: dict[str, np.ndarray] = {}
    with open(folders, encoding="utf-8") as file:
        wanted = json.load(file)
    for name, about in wanted.items():
        found |= {f"{name}/{key}": value for key, value in run(about).items()}
    np.savez(results, **found)


def run(about: dict) -> dict[str, np.ndarray]:
    loader = getattr(transformers, about["class"])
    model, loading = loader.from_pretrained(about["folder"], dtype=torch.float32, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(about["folder"])
    auto = transformers.AutoModel.from_pretrained(about["folder"], output_loading_info=True)[1]
    faults = {
        "loading": sorted(
            {*loading["missing_keys"], *loading["unexpected_keys"], *map(str, loading["mismatched_keys"])}
        ),
        "auto_missing": sorted(auto["missing_keys"]),
    }
    found = {key: np.array(json.dumps(value)) for key, value in faults.items()}
    inputs = np.load(about["inputs"])
    for index, texts in enumerate(about["texts"]):
        ids = torch.from_numpy(inputs[f"ids.{index}"].reshape(1, -1).astype(np.int64))
        given = ids.unsqueeze(1) if "MultipleChoice" in about["class"] else ids
        with torch.no_grad():
            output = model.eval()(given, output_hidden_states=True)
        found[f"output.{index}"] = output.logits.numpy()
        found |= {f"hidden.{index}.{depth}": state.numpy() for depth, state in enumerate(output.hidden_states)}
        found[f"ids.{index}"] = np.array(tokenizer(*texts)["input_ids"])
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
