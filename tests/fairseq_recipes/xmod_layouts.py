"""Ask fairseq for the answers of X-MOD in every layout that its options can make: xmod_layouts.py FOLDER.

Writes FOLDER/model.pt, whose weights are those of the fullest layout and whose options name none, dict.txt and
answers.npz: the features of `ids` by the values of pre_norm, adapter_layer_norm, adapter_reuse_layer_norm and
ln_before_adapter (as 0 or 1), then by language.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.models.xmod import XMODModel

LANGUAGES = ["sw_KE", "en_XX", "zh-Hans"]
FLAGS = ("encoder_normalize_before", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter")
OPTIONS: dict = {
    "arch": "xmod_base",
    "task": "masked_lm",
    "criterion": "masked_lm",
    "languages": LANGUAGES,
    "bottleneck": 3,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
    "max_positions": 32,
    "tokens_per_sample": 32,
    "activation_fn": "gelu",
    "adapter_modules": True,
    "untie_weights_roberta": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}


def built(dictionary: Dictionary, flags: tuple) -> Any:
    """fairseq's model of one layout."""

    class Task:
        source_dictionary = dictionary

    given = argparse.Namespace(**OPTIONS, **{name: bool(flags[index]) for index, name in enumerate(FLAGS)})
    return XMODModel.build_model(given, Task).eval()


def main(folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = Dictionary()
    for letter in "▁abcdefghijklmnopqrst":
        dictionary.add_symbol(letter)
    dictionary.save(str(folder / "dict.txt"))
    dictionary.add_symbol("<mask>")
    torch.manual_seed(11)
    weights = built(dictionary, (1, 1, 1, 1)).state_dict()
    for name, weight in weights.items():
        if not name.endswith("version"):
            weight.copy_(torch.randn(weight.shape) * 0.3 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    ids = torch.tensor([[0, 5, 9, 14, 6, 25, 7, 2], [0, 8, 3, 11, 2, 1, 1, 1]])
    answers = {"ids": ids}
    with torch.no_grad():
        for flags in product((0, 1), repeat=len(FLAGS)):
            model = built(dictionary, flags)
            model.load_state_dict({name: weights[name] for name in model.state_dict()})
            for language in LANGUAGES:
                key = ".".join([*map(str, flags), language])
                answers[key] = model(ids, features_only=True, lang_id=[language] * 2)[0] * (ids != 1).unsqueeze(-1)
    torch.save({"args": argparse.Namespace(**OPTIONS), "model": weights}, str(folder / "model.pt"))
    np.savez_compressed(str(folder / "answers.npz"), **{name: value.numpy() for name, value in answers.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
