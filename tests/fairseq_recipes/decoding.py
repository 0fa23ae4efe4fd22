"""Ask fairseq's own hub interface to decode odd sequences: python decoding.py FIXTURES NAME... > answers.json.

Runs under fairseq 0.12.2; a test compares the answers, which belong into tests/fixtures/decoding.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from fairseq.models.roberta import XLMRModel

FIRST, SECOND, THIRD = "The train", "at night", "的 car"


def sequences(hub: Any) -> dict[str, torch.Tensor]:
    """The odd sequences, by what is odd about them."""
    size = len(hub.task.source_dictionary)
    one, pair, pads = hub.encode(FIRST), hub.encode(FIRST, SECOND), torch.tensor([1, 1])
    return {
        "one": one,
        "pair": pair,
        "triple": hub.encode(FIRST, SECOND, THIRD),
        "no separator": hub.encode(FIRST, SECOND, no_separator=True),
        "padded": torch.cat([one, pads]),
        "padded pair": torch.cat([pair, pads]),
        "padded on the left": torch.cat([pads, pair]),
        "two bos": torch.cat([torch.tensor([0]), one]),
        "no bos": one[1:],
        "bos inside": torch.tensor([5, 0, 6, 2]),
        "bos alone": torch.tensor([0]),
        "eos alone": torch.tensor([2]),
        "three eos": torch.tensor([2, 2, 2]),
        "two bos, two eos": torch.tensor([0, 0, 2, 2, 5]),
        "empty": hub.encode(""),
        "empty first": hub.encode("", SECOND),
        "empty second": hub.encode(FIRST, ""),
        "unk and mask": torch.tensor([0, 3, size - 1, 5, 2]),
        "after the last": torch.tensor([0, 5, size, size + 7, 10**6, 2]),
        "negative": torch.tensor([0, 5, -1, -2, 2]),
    }


def main(fixtures: str, *names: str) -> None:
    answers = {}
    for name in names:
        hub = XLMRModel.from_pretrained(f"{fixtures}/{name}", checkpoint_file="model.pt")
        asked = sequences(hub)
        answers[name] = {odd: {"ids": ids.tolist(), "text": hub.decode(ids)} for odd, ids in asked.items()}
    print(json.dumps(answers, ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
