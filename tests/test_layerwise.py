"""The network that reads its weights as it goes answers as one that Transformers loads, in far less memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from places import FIXTURES
from safetensors.torch import load_file, save_file
from warm_processes import run

from hf_xlmr.conversion import convert
from hf_xlmr.conversion.checkpoint.weights import Constant
from hf_xlmr.conversion.output.safetensors_writer import write_weights
from hf_xlmr.conversion.proof import layerwise
from hf_xlmr.conversion.proof.layerwise import layerwise_network
from hf_xlmr.errors import IntegrityError

ROUNDING = 1e-5  # of the largest: what two orders of adding up products may differ by
KINDS = ("v0122", "v0122prenorm", "v0122prelayernorm", "v0122cls", "v0122ranking", "v0122untied")


def class_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["architectures"][0]


@pytest.mark.parametrize("band", [7, 1 << 14])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_it_answers_as_a_loaded_network(
    dtype: str, kind: str, band: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, unless matrices come in bands, for which other kernels may add products up in another order."""
    folder = convert(FIXTURES / kind, tmp_path / "model", dtype=dtype, max_shard_size="100KB", verify=False).output
    monkeypatch.setattr(layerwise, "BAND", band)
    loader = getattr(transformers, class_of(folder))
    whole = loader.from_pretrained(folder, dtype=torch.float32).eval()
    network = layerwise_network(folder, class_of(folder))
    ids = torch.randint(3, whole.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[1, 7:] = 1
    given = ids.unsqueeze(1) if kind == "v0122ranking" else ids
    mask = (given != 1).long()
    with torch.no_grad():
        expected = whole(given, attention_mask=mask, output_hidden_states=True)
        found = network(given, attention_mask=mask, output_hidden_states=True)
    for ours, theirs in zip(
        [*found.hidden_states, found.logits], [*expected.hidden_states, expected.logits], strict=True
    ):
        tolerance = 0 if band > 100 else ROUNDING * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_no_weight_stays_in_memory(tmp_path: Path) -> None:
    folder = convert(FIXTURES / "v0122", tmp_path / "model", verify=False).output
    network = layerwise_network(folder, class_of(folder))
    for _ in range(2):
        with torch.no_grad():
            network(torch.tensor([[0, 5, 2]]))
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_weight_that_transformers_would_miss_or_ignore_is_an_error(change: str, tmp_path: Path) -> None:
    folder = convert(FIXTURES / "v0122", tmp_path / "model", verify=False).output
    weights = load_file(folder / "model.safetensors")
    name = "roberta.encoder.layer.0.output.dense.weight"
    weights["roberta.encoder.layer.0.more" if change == "left over" else "x"] = (
        weights.pop(name) if change == "missing" else torch.zeros(1)
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="does not load"):
        layerwise_network(folder, class_of(folder))


PROGRAM = """
import sys, torch
from pathlib import Path
from hf_xlmr.conversion.proof.layerwise import layerwise_network

def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
small, large = map(Path, sys.argv[1:])
with torch.no_grad():
    layerwise_network(small, "XLMRobertaForMaskedLM")(torch.tensor([[0, 5, 2]]))
    before = peak()
    layerwise_network(large, "XLMRobertaForMaskedLM")(torch.tensor([[0, 5, 2]]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_is_bounded_by_a_layer_not_by_the_embedding(tmp_path: Path) -> None:
    small = convert(FIXTURES / "v0122", tmp_path / "small", verify=False).output
    large, rows, hidden = tmp_path / "large", 200_000, 512
    config = transformers.XLMRobertaConfig(
        vocab_size=rows, hidden_size=hidden, num_hidden_layers=1, num_attention_heads=8, intermediate_size=512
    )
    config.architectures = ["XLMRobertaForMaskedLM"]
    config.save_pretrained(large)
    with torch.device("meta"):
        state = transformers.XLMRobertaForMaskedLM(config).state_dict()
    described = {
        name: Constant("float32", tuple(weight.shape), 0.25)
        for name, weight in state.items()
        if weight.is_floating_point() and not name.startswith("lm_head.decoder.")
    }
    write_weights(described, large, max_shard_size=1 << 40)
    embedding = rows * hidden * 4
    assert described["roberta.embeddings.word_embeddings.weight"].nbytes == embedding
    done = run([sys.executable, "-c", PROGRAM, small, large], check=True)
    assert int(done.stdout) < embedding / 3
