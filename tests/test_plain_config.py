"""What a config.json names of other people's code is neither fetched nor run by any load, and doctor reports it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert
from hf_xlmr.conversion.proof.layerwise import layerwise_network
from hf_xlmr.errors import InputError
from hf_xlmr.files.memory import CPU, DISK
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.plain_config import REACHING, plain_config
from hf_xlmr.placement.placed_loading import load_placed, load_whole
from hf_xlmr.tasks.fitting.task_models import TaskHead, load_network
from hf_xlmr.tasks.kinds.registry import TASKS

KERNEL = "somebody/attention"
PLANTED: dict[str, Any] = {
    **dict.fromkeys([name for name in REACHING if "implementation" in name], KERNEL),
    "auto_map": {"AutoConfig": "somebody/code--c.C", "AutoModel": "c.M", "AutoModelForMaskedLM": "c.M"},
    "custom_pipelines": {"fill-mask": {"impl": "c.P", "pt": ["AutoModel"], "tf": []}},
    "fusion_config": {"patch_embeddings": True},
    "distributed_config": {"tp_size": 2},
    "per_layer_config": {"0": {"hidden_size": 3}},
    "use_kernels": True,
    "kernel_config": {"RMSNorm": KERNEL},
    "configuration_files": ["config.4.0.0.json"],
    "transformers_weights": "other.safetensors",
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("converted") / "model", verify=False).output


def planted(clean: Path, folder: Path, **fields: object) -> Path:
    shutil.copytree(clean, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    (folder / "config.4.0.0.json").write_text("{}", encoding="utf-8")
    (folder / "other.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(params=PLANTED)
def folder(request: pytest.FixtureRequest, clean: Path, tmp_path: Path) -> Path:
    return planted(clean, tmp_path / "model", **{request.param: PLANTED[request.param]})


LOADS = {
    "whole": lambda folder: load_whole(folder, device=CPU, dtype="float32"),
    "placed": lambda folder: load_placed(folder, {"": DISK}, dtype="float32"),
    "proof": lambda folder: layerwise_network(folder, "XLMRobertaForMaskedLM"),
    "task": lambda folder: load_network(
        ModelFiles(folder), TASKS["xnli"].recipe, TaskHead(("entailment", "neutral", "contradiction"), is_new=True)
    ),
}


@pytest.mark.parametrize("load", LOADS)
def test_every_load_computes_by_its_own_attention(load: str, folder: Path) -> None:
    network: Any = LOADS[load](folder)
    set_fields = vars(network.config)
    assert KERNEL not in set_fields.values() and not set_fields.keys() & {"auto_map", "transformers_weights"}
    with torch.no_grad():
        assert network.eval()(torch.tensor([[0, 5, 2]])).logits.isfinite().all()


def test_xlmr_answers_as_without_the_fields(clean: Path, tmp_path: Path) -> None:
    folder = planted(clean, tmp_path / "model", **PLANTED)
    plain, other = XLMR.from_pretrained(clean).eval(), XLMR.from_pretrained(folder).eval()
    tokens = plain.encode("The train leaves.")
    with torch.no_grad():
        assert torch.equal(plain.extract_features(tokens), other.extract_features(tokens))


def test_fields_of_the_caller_come_before_those_of_the_file(clean: Path) -> None:
    names = {0: "no", 1: "perhaps", 2: "yes"}
    numbers = {name: number for number, name in names.items()}
    config = plain_config(clean, fields={"num_labels": 3, "id2label": names, "label2id": numbers})
    assert config.id2label == names and config.num_labels == 3


@pytest.mark.parametrize("load", LOADS)
def test_an_adapter_beside_the_model_is_refused(load: str, clean: Path, tmp_path: Path) -> None:
    folder = planted(clean, tmp_path / "model")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "somebody/model", "r": 1}
    (folder / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    with pytest.raises(InputError, match="holds an adapter"):
        LOADS[load](folder)
