"""Ask fairseq's own hub interface, and keep its answers (fairseq 0.9.0 to 0.12.2, so Python >= 3.7).

Reads FOLDER/model.pt, dict.txt and sentencepiece.bpe.model (classifiers: input0/dict.txt and label/dict.txt) and writes
golden.json and golden.npz beside them, or into --output. Everything is in eval mode, in float32, without gradients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fairseq
import numpy as np
import torch
from fairseq.data.data_utils import collate_tokens
from fairseq.models.roberta import XLMRModel

PAD = 1
TEXTS = [
    "The train leaves.",
    "Дети играют",
    "हम चाय",
    "火车晚上出发。",
    "يغادر القطار",
    " \u00a0a\u3000 train\t at\n",
    "Le train 🙂 ½",
    "",
    "a <mask></s>",
]
PAIRS = [["The train", "Le train"], ["晚上", "في"], ["bread", ""]]
QUESTION = "The train <mask> at night."
FILLER = "The train leaves at night. Дети играют в парке. Le soleil brille. "


def longest_text(hub: Any, limit: int) -> str:
    """A text of as many pieces as fit into so many positions: repeated words, cut at a character."""
    text = FILLER * (limit // 8 + 1)
    while len(hub.encode(text)) > limit:
        text = text[:-1].rstrip()
    return text


def answers(hub: Any, tokens: torch.Tensor, heads: list[str]) -> dict[str, torch.Tensor]:
    """What the model makes of one sequence."""
    given = {
        "ids": tokens,
        "hiddens": torch.stack(list(hub.extract_features(tokens, return_all_hiddens=True))),
        "last": hub.extract_features(tokens),
        "logits": hub.model(tokens.unsqueeze(0))[0],
    }
    for head in heads:
        given[f"head.{head}"] = hub.predict(head, tokens, return_logits=True)
    return given


def batch_answers(hub: Any, sequences: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The right-padded batch of all sequences; values at padding positions mean nothing and are set to zero."""
    ids = collate_tokens(sequences, pad_idx=PAD)
    last = hub.extract_features(ids)
    return {"batch.ids": ids, "batch.last": last * (ids != PAD).unsqueeze(-1).to(last.dtype)}


def labels(task: Any, head: Any) -> list[str]:
    """The names of a head's classes, in order; none where the task has no dictionary of labels of its own."""
    dictionary = getattr(task, "_label_dictionary", task.source_dictionary)
    if dictionary is task.source_dictionary:
        return []
    return [dictionary[dictionary.nspecial + index] for index in range(head.out_proj.out_features)]


def describe(hub: Any, texts: list[str], sequences: list[torch.Tensor], heads: list[str]) -> dict[str, Any]:
    """What goes into golden.json."""
    mask = getattr(hub.task, "mask_idx", None)
    fill_mask = None if mask is None else hub.fill_mask(QUESTION, topk=5)
    return {
        "texts": texts,
        "pairs": PAIRS,
        "fairseq": fairseq.__version__,
        "torch": torch.__version__,
        "decode": [hub.decode(sequence) for sequence in sequences],
        "fill_mask_text": QUESTION,
        "fill_mask": None if fill_mask is None else [[whole, float(p), piece] for whole, p, piece in fill_mask],
        "dictionary_size": len(hub.task.source_dictionary),
        "mask_idx": mask,
        "max_positions": int(hub.model.max_positions()),
        "heads": heads,
        "labels": {head: labels(hub.task, hub.model.classification_heads[head]) for head in heads},
    }


def main() -> None:
    """Write golden.json and golden.npz for one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, help="where the two files go; the folder itself when left out")
    parser.add_argument("--texts", type=int, default=len(TEXTS), help="how many of the fixed texts to ask about")
    parser.add_argument("--longest", type=int, help="pieces of the last text; what the model bears when left out")
    options = parser.parse_args()

    hub = XLMRModel.from_pretrained(str(options.folder.resolve()), checkpoint_file="model.pt").eval()
    heads = sorted(hub.model.classification_heads)
    texts = [*TEXTS[: options.texts], longest_text(hub, options.longest or int(hub.model.max_positions()))]
    with torch.no_grad():
        sequences = [hub.encode(text) for text in texts] + [hub.encode(*pair) for pair in PAIRS]
        arrays = batch_answers(hub, sequences)
        for index, sequence in enumerate(sequences):
            for name, value in answers(hub, sequence, heads).items():
                arrays[f"{name}.{index}"] = value
        described = describe(hub, texts, sequences, heads)

    output = options.output or options.folder
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(str(output / "golden.npz"), **{name: value.numpy() for name, value in arrays.items()})
    text = json.dumps(described, ensure_ascii=False, indent=1, allow_nan=False)
    (output / "golden.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
