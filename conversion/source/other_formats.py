"""What a source is that holds no fairseq checkpoint: a folder or a file of Transformers, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from hf_xlmr.files.json_files import strict_json
from hf_xlmr.model.families import FAMILIES

__all__ = ["OF_TRAINERS", "is_hub_id", "kind_of_file", "kind_of_folder", "kind_of_names"]

OF_TRAINERS: Final = frozenset(("optimizer.pt", "scheduler.pt", "scaler.pt"))
"""What Transformers' Trainer writes next to a model."""

LOADED: Final = "AutoModel and XLMR load it as it is, doctor examines it, export makes a fairseq checkpoint of it"
ADAPTED: Final = "load its base model and this with peft, then merge_and_unload and save_pretrained make a whole folder"
SENTENCES: Final = "SentenceTransformer loads it as it is"
ADAPTER: Final = "adapter_config.json"
MODULES: Final = "modules.json"
CONFIG: Final = "config.json"
RECORD: Final = "fairseq/conversion.json"
DESCRIPTIONS: Final = (ADAPTER, MODULES, CONFIG, "model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS: Final = re.compile(
    r".+\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?|tf_model\.h5|flax_model\.msgpack"
)
TOKENIZERS: Final = ("tokenizer.json", "tokenizer_config.json")
TRAINED: Final = re.compile(r"checkpoint-[0-9]+")
HUB_CACHE: Final = frozenset(("blobs", "refs", "snapshots"))
LARGEST_DESCRIPTION: Final = 1 << 22
LARGEST_HEADER: Final = 100_000_000  # of a safetensors file, by its format
NAMES_OF_TRANSFORMERS: Final = re.compile(
    r"(?:(?:model|module|network|student)\.)*(?:\w+\.)?"
    r"(?:embeddings\.(?:word|position|token_type)_embeddings\.weight|encoder\.layer\.[0-9]+\..+)"
)
HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

Read = Callable[[str], bytes]


def kind_of_folder(names: Collection[str], read: Read) -> str | None:
    """What a folder that holds `names` is, with what to do with it; None if it is nothing of Transformers'.

    `read` gives the content of one of them. The answer continues from "this is".
    """
    if ADAPTER in names:
        base = _described(read, ADAPTER).get("base_model_name_or_path")
        return f"an adapter of peft{f' for {base:.80}' if isinstance(base, str) else ''}, no whole model: {ADAPTED}"
    if MODULES in names:
        return f"a sentence-transformers folder already: {SENTENCES}"
    if any(WEIGHTS.fullmatch(name) for name in names) or _is_of_transformers(names, read):
        return _transformers(names, read)
    if set(names) >= HUB_CACHE:
        return (
            "a repository in the Hub's cache: name the folder in its snapshots/, which is a Transformers folder already"
        )
    if trained := sorted((name for name in names if TRAINED.fullmatch(name)), key=lambda name: int(name.split("-")[1])):
        return f"the output of Transformers' Trainer: {trained[-1]} in it is a Transformers folder already"
    if any(name in names for name in TOKENIZERS):
        return "a tokenizer of Transformers without a model"
    return None


def kind_of_file(path: Path, head: bytes) -> str | None:
    """What a file that begins with `head` is, None if it is nothing of Transformers'."""
    if path.name.startswith("adapter_model."):
        return f"the weights of an adapter of peft, no whole model: {ADAPTED}"
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < LARGEST_HEADER
    if path.suffix == ".safetensors" or is_safetensors or path.name in ("tf_model.h5", "flax_model.msgpack"):
        return f"the weights file of a Transformers folder already; name the folder: {LOADED}"
    if path.name in DESCRIPTIONS or path.name in TOKENIZERS:
        return f"a file of a Transformers folder, which is converted already; name the folder: {LOADED}"
    return None


def kind_of_names(names: Iterable[str]) -> str | None:
    """What a state dict with these names of weights is, None if it is nothing of Transformers'."""
    named = list(names)
    if any(".lora_A." in name or ".lora_embedding_A" in name for name in named):
        return f"the weights of an adapter of peft, no whole model: {ADAPTED}"
    if any(NAMES_OF_TRANSFORMERS.fullmatch(re.sub(r"^[0-9]+\.auto_model\.", "", name)) for name in named):
        return f"a Transformers checkpoint already, and needs no conversion; name its folder: {LOADED}"
    return None


def is_hub_id(source: str) -> bool:
    """Whether a name could be that of a repository on the Hub."""
    return HUB_ID.fullmatch(source) is not None and not source.endswith((".pt", ".gz", ".tgz", ".tar"))


def _is_of_transformers(names: Collection[str], read: Read) -> bool:
    return CONFIG in names and bool(_described(read, CONFIG).keys() & {"model_type", "architectures"})


def _transformers(names: Collection[str], read: Read) -> str:
    config = _described(read, CONFIG) if CONFIG in names else {}
    architectures, model_type = config.get("architectures"), config.get("model_type")
    named = architectures[0] if isinstance(architectures, list) and architectures else model_type
    origin = ", which convert made" if RECORD in names else ""
    what = f"a Transformers folder already{f' ({named!s:.80})' if named else ''}{origin}"
    if model_type in FAMILIES or not config:
        return f"{what}: {LOADED}"
    return f"{what}: AutoModel loads it as it is; hf_xlmr has nothing to do with models of the type {model_type!s:.40}"


def _described(read: Read, name: str) -> Mapping[str, object]:
    """The object in a small JSON file, empty if there is none in it."""
    try:
        content = strict_json(read(name)[:LARGEST_DESCRIPTION])
    except (ValueError, OSError):
        return {}
    return content if isinstance(content, dict) else {}
