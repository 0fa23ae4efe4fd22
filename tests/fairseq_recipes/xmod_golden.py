"""Ask fairseq's own hub interface of X-MOD, and keep its answers in each language (fairseq 0.12.2, so Python >= 3.8).

Reads FOLDER/model.pt, dict.txt and sentencepiece.bpe.model (classifiers: also label/dict.txt) and writes golden.json
and golden.npz beside them. Everything is in eval mode, in float32, without gradients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import fairseq
import numpy as np
import torch
from fairseq.data.data_utils import collate_tokens
from fairseq.models.xmod import XMODModel

PAD = 1
TEXTS = ["The train leaves.", "Дети играют", "हम चाय", "火车晚上出发。"]
PAIRS = [["The train", "Le train"]]


def main() -> None:
    """Write golden.json and golden.npz for one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--languages", required=True, help="the languages to ask about, with commas between them")
    options = parser.parse_args()

    hub = XMODModel.from_pretrained(str(options.folder.resolve()), checkpoint_file="model.pt").eval()
    languages, heads, arrays = options.languages.split(","), sorted(hub.model.classification_heads), {}
    with torch.no_grad():
        sequences = [hub.encode(text) for text in TEXTS] + [hub.encode(*pair) for pair in PAIRS]
        for index, tokens in enumerate(sequences):
            arrays[f"ids.{index}"] = tokens
            for language in languages:
                spoken, at = [language], f"{language}.{index}"
                hiddens = hub.extract_features(tokens, return_all_hiddens=True, lang_id=spoken)
                arrays[f"hiddens.{at}"] = torch.stack(list(hiddens))
                arrays[f"last.{at}"] = hub.extract_features(tokens, lang_id=spoken)
                arrays[f"logits.{at}"] = hub.model(tokens.unsqueeze(0), lang_id=spoken)[0]
                for head in heads:
                    arrays[f"head.{head}.{at}"] = hub.predict(head, tokens, return_logits=True, lang_id=spoken)
        ids = collate_tokens(sequences, pad_idx=PAD)
        spoken = [languages[index % len(languages)] for index in range(len(ids))]
        last = hub.extract_features(ids, lang_id=spoken)
        arrays["batch.ids"] = ids
        arrays["batch.last"] = last * (ids != PAD).unsqueeze(-1).to(last.dtype)
    described = {"texts": TEXTS, "pairs": PAIRS, "languages": languages, "batch_languages": spoken, "heads": heads}
    described.update({"fairseq": fairseq.__version__, "torch": torch.__version__})
    np.savez_compressed(str(options.folder / "golden.npz"), **{name: value.numpy() for name, value in arrays.items()})
    text = json.dumps(described, ensure_ascii=False, indent=1) + "\n"
    (options.folder / "golden.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
