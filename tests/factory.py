"""Tiny fairseq checkpoints, spelled as each era spelled them, made from one set of random weights."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

HIDDEN, INTERMEDIATE, LAYERS, HEADS, POSITIONS = 16, 24, 2, 4, 34
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYMBOLS = (",", ".", "▁", *(f"▁{letter}" for letter in LETTERS), *LETTERS)
ROWS = 4 + len(SYMBOLS) + 1
E = "encoder.sentence_encoder."

OPTIONS: dict[str, Any] = {
    "arch": "roberta_base",
    "task": "masked_lm",
    "criterion": "masked_lm",
    "encoder_attention_heads": HEADS,
    "encoder_embed_dim": HIDDEN,
    "encoder_layers": LAYERS,
    "encoder_normalize_before": False,
    "activation_fn": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "max_positions": POSITIONS - 2,
}


def weights(*, norms: str = "post", rows: int = ROWS, seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    """Random weights under the newest names; `norms` is post, pre or both (pre-norm with an embedding norm)."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    made: OrderedDict[str, torch.Tensor] = OrderedDict()

    def linear(name: str, out: int, into: int) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = tensor(out, into), tensor(out)

    def norm(name: str) -> None:
        made[f"{name}.weight"], made[f"{name}.bias"] = 1 + tensor(HIDDEN), tensor(HIDDEN)

    made[f"{E}version"] = torch.tensor([3.0])
    made[f"{E}embed_tokens.weight"] = tensor(rows, HIDDEN)
    made[f"{E}embed_positions.weight"] = tensor(POSITIONS, HIDDEN)
    if norms != "pre":
        norm(f"{E}layernorm_embedding")
    if norms != "post":
        norm(f"{E}layer_norm")
    for number in range(LAYERS):
        layer = f"{E}layers.{number}."
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            linear(f"{layer}self_attn.{projection}", HIDDEN, HIDDEN)
        norm(f"{layer}self_attn_layer_norm")
        linear(f"{layer}fc1", INTERMEDIATE, HIDDEN)
        linear(f"{layer}fc2", HIDDEN, INTERMEDIATE)
        norm(f"{layer}final_layer_norm")
    linear("encoder.lm_head.dense", HIDDEN, HIDDEN)
    norm("encoder.lm_head.layer_norm")
    made["encoder.lm_head.weight"] = made[f"{E}embed_tokens.weight"]
    made["encoder.lm_head.bias"] = tensor(rows)
    return made


def add_head(made: OrderedDict[str, torch.Tensor], name: str, *, labels: int = 3, inner: int = HIDDEN) -> None:
    """A classification head called `name`."""
    made[f"classification_heads.{name}.dense.weight"] = torch.randn(inner, HIDDEN) * 0.3
    made[f"classification_heads.{name}.dense.bias"] = torch.randn(inner) * 0.3
    made[f"classification_heads.{name}.out_proj.weight"] = torch.randn(labels, inner) * 0.3
    made[f"classification_heads.{name}.out_proj.bias"] = torch.randn(labels) * 0.3


def fused(made: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """The same weights with the three projections in one, as until October 2019."""
    old: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, tensor in made.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            three = [made[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            name, tensor = name.replace("q_proj.", "in_proj_"), torch.cat(three)
        old[name] = tensor
    return old


def half_fused(made: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """Separate weights and a fused bias, as on 25 October 2019."""
    old: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, tensor in made.items():
        if name.endswith("_proj.weight") and "out_proj" not in name:
            old[name.replace("_proj.weight", "_proj_weight")] = tensor
        elif name.endswith(("k_proj.bias", "v_proj.bias")):
            continue
        elif name.endswith("q_proj.bias"):
            three = [made[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            old[name.replace("q_proj.bias", "in_proj_bias")] = torch.cat(three)
        else:
            old[name] = tensor
    return old


def of_2019(made: OrderedDict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """The spelling until 0.9.0: `decoder.`, `emb_layer_norm`, no version."""
    return OrderedDict(
        (name.replace("encoder.", "decoder.", 1).replace("layernorm_embedding", "emb_layer_norm"), tensor)
        for name, tensor in made.items()
        if not name.endswith("version")
    )


@dataclass
class Checkpoint:
    """A checkpoint folder to be; change what a test is about, then `write`."""

    model: OrderedDict[str, torch.Tensor] = field(default_factory=weights)
    options: dict[str, Any] = field(default_factory=lambda: dict(OPTIONS))
    symbols: tuple[str, ...] = SYMBOLS
    more: dict[str, Any] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """What torch.save is given."""
        return {"args": Namespace(**self.options), "model": self.model, "extra_state": {"epoch": 1}, **self.more}

    def write(self, folder: Path, *, name: str = "model.pt", is_zip: bool = True) -> Path:
        """Write the checkpoint and its dictionary; gives the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state(), folder / name, _use_new_zipfile_serialization=is_zip)
        (folder / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in self.symbols), encoding="utf-8")
        return folder
