"""`adopt`: what one's own Trainer wrote becomes a folder that every command takes, or is refused with the numbers."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from in_process import run
from places import FIXTURES
from safetensors.torch import load_file, save_file

from hf_xlmr import XLMR
from hf_xlmr.adopting import adopt, adopting_callback
from hf_xlmr.conversion import convert, export, verify
from hf_xlmr.doctor import examine
from hf_xlmr.errors import HfXlmrError, InputError
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.model.provenance import Standing, standing_of
from hf_xlmr.tasks.fitting import adopting

HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")
GO_BACK = {"SequenceClassification", "MaskedLM"}
FAMILIES = ("v0122", "v0122prenorm", "v0122prelayernorm")


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model of each family."""
    folder = tmp_path_factory.mktemp("base") / request.param
    convert(FIXTURES / request.param, folder, verify=False)
    return folder


def saved(base: Path, folder: Path, head: str, **options: Any) -> Path:
    """What save_pretrained writes of a network with a new head, as after a training."""
    torch.manual_seed(0)
    network = getattr(transformers, f"AutoModelFor{head}").from_pretrained(base, dtype=torch.float32, **options)
    network.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", HEADS)
def test_every_command_takes_an_adopted_folder(base: Path, head: str, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "mine", head)
    before = sha256_of(folder / "model.safetensors"), (folder / "config.json").read_bytes()
    report = adopt(folder, base)
    assert (sha256_of(folder / "model.safetensors"), (folder / "config.json").read_bytes()) == before
    assert report.class_name.endswith(f"For{head}")
    assert examine(folder).is_healthy
    assert standing_of(OpenedFolder(folder)) is Standing.finetuned
    texts = ["Hello world!", "Ça va?", "夜里有火车。"]
    ours, theirs = XLMR.from_pretrained(folder), XLMR.from_pretrained(base)
    assert all(torch.equal(ours.encode(text), theirs.encode(text)) for text in texts)
    if head in GO_BACK:
        export(folder, tmp_path / "back")
        assert verify(tmp_path / "back", folder)
    else:
        with pytest.raises(InputError, match=f"For{head}"):
            export(folder, tmp_path / "back")


def test_the_record_says_what_was_trained_from_what(base: Path, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "mine", "MaskedLM")
    adopt(folder, base)
    told = json.loads((folder / "finetuning.json").read_text(encoding="utf-8"))
    assert told["model"] == base.name
    assert told["adopted"]["weights_sha256"] == {"model.safetensors": sha256_of(folder / "model.safetensors")}
    assert told["adopted"]["trained_from_sha256"] == {"model.safetensors": sha256_of(base / "model.safetensors")}
    assert str(tmp_path) not in "".join(
        path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".json", ".md", ".txt")
    )


def test_labels_of_id2label_are_in_the_card_and_go_to_fairseq(tmp_path: Path) -> None:
    names = {0: "travel", 1: "weather"}
    base = tmp_path / "base"
    convert("demo", base, verify=False)
    folder = saved(
        base, tmp_path / "mine", "SequenceClassification", id2label=names, label2id={"travel": 0, "weather": 1}
    )
    assert adopt(folder, base).labels == ("travel", "weather")
    assert "0 travel, 1 weather" in (folder / "README.md").read_text(encoding="utf-8")
    export(folder, tmp_path / "back")
    assert (tmp_path / "back" / "label" / "dict.txt").read_text(encoding="utf-8").split()[::2] == ["travel", "weather"]


def test_what_plain_transformers_loads_computes_as_before(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    folder = saved(tmp_path / "base", tmp_path / "mine", "TokenClassification")
    adopt(folder, tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    batch = tokenizer("The train leaves at night.", return_tensors="pt")
    xlmr = XLMR.from_pretrained(tmp_path / "base")
    assert torch.equal(batch["input_ids"][0], xlmr.encode("The train leaves at night."))
    with torch.no_grad():
        assert network(**batch).logits.isfinite().all()


def test_it_can_be_repeated_and_a_card_of_ones_own_stays(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    folder = saved(tmp_path / "base", tmp_path / "mine", "MaskedLM")
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    first, second = adopt(folder, tmp_path / "base"), adopt(folder, tmp_path / "base")
    assert first == second and first.kept == ("README.md",)
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Mine\n"


def test_a_run_that_was_stopped_anywhere_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert("demo", tmp_path / "base", verify=False)
    whole = saved(tmp_path / "base", tmp_path / "whole", "MaskedLM")
    adopt(whole, tmp_path / "base")
    written = len(list(whole.rglob("*")))
    for stop in range(12):
        folder = saved(tmp_path / "base", tmp_path / f"mine-{stop}", "MaskedLM")
        left = iter(range(stop))
        usual = adopting.replace_content

        def stopping(path: Path, content: bytes, left: Any = left, usual: Any = usual) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            usual(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(adopting, "replace_content", stopping)
            with suppress(KeyboardInterrupt):
                adopt(folder, tmp_path / "base")
        adopt(folder, tmp_path / "base")
        assert len(list(folder.rglob("*"))) == written


def changed_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def more_rows(folder: Path) -> None:
    network = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    network.resize_token_embeddings(network.config.vocab_size + 7, mean_resizing=False)
    network.save_pretrained(folder)


def of_another_tokenizer(folder: Path) -> None:
    made = json.loads((folder.parent / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    made["model"]["vocab"][100:102] = made["model"]["vocab"][101:99:-1]
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.popitem()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (more_rows, "its embedding has 2,409 rows, and 2,402 there"),
        (lambda folder: changed_config(folder, layer_norm_eps=1e-12), "layer_norm_eps is 1e-12, and 1e-05 there"),
        (lambda folder: changed_config(folder, hidden_act="relu"), "hidden_act is 'relu', and 'gelu' there"),
        (lambda folder: changed_config(folder, model_type="xlm-roberta-xl"), "XLMRobertaForMaskedLM"),
        (of_another_tokenizer, "has other pieces"),
        (without_a_weight, "do not add up"),
        (an_adapter, "merge it into the weights"),
        (lambda folder: shutil.rmtree(folder), "no config.json"),
    ],
)
def test_what_does_not_belong_together_is_refused_and_left_alone(change: Any, told: str, tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    folder = saved(tmp_path / "base", tmp_path / "mine", "MaskedLM")
    change(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(HfXlmrError, match="(?s).*" + told.replace("(", r"\(")):
        adopt(folder, tmp_path / "base")
    assert sorted(folder.rglob("*")) == before


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    convert(FIXTURES / "v0122", tmp_path / "small", verify=False)
    convert(FIXTURES / "v0122prenorm", tmp_path / "wide", verify=False)
    folder = saved(tmp_path / "small", tmp_path / "mine", "MaskedLM")
    with pytest.raises(InputError, match="model_type is 'xlm-roberta', and 'xlm-roberta-xl' there"):
        adopt(folder, tmp_path / "wide")


def test_a_conversion_is_not_adopted(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    with pytest.raises(InputError, match="conversion itself"):
        adopt(tmp_path / "base", "demo")


def test_a_tokenizer_with_added_tokens_stays(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["<name>"])
    network = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.save_pretrained(tmp_path / "mine")
    tokenizer.save_pretrained(tmp_path / "mine")
    before = (tmp_path / "mine" / "tokenizer.json").read_bytes()
    assert "tokenizer.json" in adopt(tmp_path / "mine", tmp_path / "base").kept
    assert (tmp_path / "mine" / "tokenizer.json").read_bytes() == before
    assert XLMR.from_pretrained(tmp_path / "mine").encode("<name>").tolist()[1:-1] == [len(tokenizer) - 1]


def test_checkpoints_are_adopted_when_they_are_saved(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    network = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    ids = XLMR.from_pretrained(tmp_path / "base").encode("Hello world!").tolist()
    options = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    rows = [{"input_ids": ids, "labels": ids}] * 8
    callbacks = [adopting_callback(tmp_path / "base")]
    transformers.Trainer(network, options, train_dataset=rows, callbacks=callbacks).train()
    assert all(examine(tmp_path / "out" / f"checkpoint-{step}").is_healthy for step in (1, 2))


def test_the_program_says_what_was_added(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    saved(tmp_path / "base", tmp_path / "mine", "MaskedLM")
    done = run("adopt", "mine", "--from", "base", cwd=tmp_path)
    assert done.returncode == 0
    assert "mine, trained from base" in done.stdout and "fairseq/dict.txt" in done.stdout
    assert json.loads(run("adopt", "mine", "--from", "base", "--json", cwd=tmp_path).stdout)["kept"] == ["README.md"]
    refused = run("adopt", "base", "--from", "base", cwd=tmp_path)
    assert refused.returncode == 2 and "nothing to adopt" in refused.stderr
