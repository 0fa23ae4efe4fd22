"""A source that is Transformers' already is said to be that, with what can be done with it."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest
import torch
from refusals import refusal

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert, inspect, open_checkpoint
from hf_xlmr.conversion.source.sources import open_source
from hf_xlmr.errors import InputError

BERT = b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'
OURS = b'{"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]}'
FOLDERS: dict[str, tuple[dict[str, bytes], str]] = {
    "safetensors": (
        {"config.json": OURS, "model.safetensors": b"x"},
        r"already \(XLMRobertaForMaskedLM\): AutoModel and",
    ),
    "shards": ({"config.json": OURS, "model.safetensors.index.json": b"{}"}, "AutoModel and XLMR load it as it is"),
    "pickled": ({"config.json": OURS, "pytorch_model.bin": b"x"}, "Transformers folder already"),
    "converted": ({"config.json": OURS, "fairseq/conversion.json": b"{}"}, "which convert made: .*export makes"),
    "trained": (
        {"config.json": OURS, "model.safetensors": b"x", "optimizer.pt": b"x", "scheduler.pt": b"x"},
        "already",
    ),
    "another family": ({"config.json": BERT, "model.safetensors": b"x"}, "nothing to do with models of the type bert"),
    "weights alone": ({"model.safetensors": b"x"}, "is a Transformers folder already: "),
    "config alone": ({"config.json": OURS}, "is a Transformers folder already"),
    "damaged config": ({"config.json": b"{", "model.safetensors": b"x"}, "is a Transformers folder already: "),
    "sentence-transformers": ({"modules.json": b"[]", "config.json": OURS}, "SentenceTransformer loads it"),
    "adapter": (
        {"adapter_config.json": b'{"base_model_name_or_path": "xlm-roberta-base"}', "adapter_model.safetensors": b"x"},
        "an adapter of peft for xlm-roberta-base, no whole model: .*merge_and_unload",
    ),
    "tokenizer": ({"tokenizer.json": b"{}"}, "a tokenizer of Transformers without a model"),
    "trainer's output": (
        {"checkpoint-9/config.json": OURS, "checkpoint-10/config.json": OURS},
        "Trainer: checkpoint-10 in it",
    ),
    "the Hub's cache": ({"blobs/a": b"x", "refs/main": b"x", "snapshots/a/config.json": OURS}, "in its snapshots/"),
    "one folder below": (
        {"below/config.json": OURS, "below/model.safetensors": b"x"},
        "below is a Transformers folder",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_transformers_is_told_with_what_to_do(kind: str, tmp_path: Path) -> None:
    content, message = FOLDERS[kind]
    for name, data in content.items():
        (tmp_path / "my-model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "my-model" / name).write_bytes(data)
    assert re.search(message, refusal(tmp_path / "my-model"))


FILES: dict[str, tuple[bytes, str]] = {
    "model.safetensors": (b"x", "weights file of a Transformers folder already; name the folder"),
    "weights.bin": ((2).to_bytes(8, "little") + b"{}", "weights file of a Transformers folder already"),
    "adapter_model.safetensors": (b"x", "weights of an adapter of peft"),
    "adapter_model.bin": (b"x", "weights of an adapter of peft"),
    "config.json": (OURS, "a file of a Transformers folder"),
    "tf_model.h5": (b"x", "weights file of a Transformers folder"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_transformers_is_told_with_what_to_do(name: str, tmp_path: Path) -> None:
    data, message = FILES[name]
    (tmp_path / name).write_bytes(data)
    assert message in refusal(tmp_path / name)


STATES = {
    "roberta.embeddings.word_embeddings.weight": "a Transformers checkpoint already",
    "encoder.layer.0.attention.self.query.weight": "a Transformers checkpoint already",
    "bert.encoder.layer.3.output.dense.bias": "a Transformers checkpoint already",
    "0.auto_model.embeddings.position_embeddings.weight": "a Transformers checkpoint already",
    "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_A.weight": "the weights of an adapter",
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_dict_of_transformers_is_told_by_its_names(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=STATES[name]), open_checkpoint(tmp_path / "pytorch_model.bin"):
        pass


def test_an_archive_of_transformers_and_an_id_of_the_hub_are_told(tmp_path: Path) -> None:
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
            for member in ("m/config.json", "m/model.safetensors"):
                tar.addfile(tarfile.TarInfo(member), io.BytesIO())
        assert "a Transformers folder already: AutoModel" in refusal(tmp_path / name)
    assert "AutoModel and XLMR load it by its name" in refusal("FacebookAI/xlm-roberta-base")


def test_a_checkpoint_beside_files_of_transformers_is_still_taken(tmp_path: Path) -> None:
    for name, data in {"model.pt": b"x", "config.json": OURS, "model.safetensors": b"x", "optimizer.pt": b"x"}.items():
        (tmp_path / name).write_bytes(data)
    with open_source(tmp_path) as found:
        assert [part.path.name for part in found.checkpoint] == ["model.pt"]


def test_every_call_says_it_and_nothing_is_written(tmp_path: Path) -> None:
    """Of a folder that convert itself has made, and of one that hf_xlmr does not load."""
    made = convert("demo", tmp_path / "made", verify=False).output
    with pytest.raises(InputError, match=r"already \(XLMRobertaForMaskedLM\), which convert made"):
        inspect(made)
    with pytest.raises(InputError, match="a Transformers folder already"):
        convert(made, tmp_path / "again")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter of peft, no whole model"):
        XLMR.from_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "made"]
