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
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError
from hf_xlmr.files.digests import sha256_of
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.model.provenance import Standing, standing_of
from hf_xlmr.publishing.folder_to_push import look_at
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


def test_a_trained_folder_is_not_called_damaged_beside_the_source_of_its_model(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base")
    adopt(saved(tmp_path / "base", tmp_path / "mine", "MaskedLM"), tmp_path / "base")
    with pytest.raises(InputError, match="was trained after its conversion"):
        verify("demo", tmp_path / "mine")


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
        (lambda folder: changed_config(folder, layer_norm_eps=1e-12), "layer_norm_eps is 1e-12, and was 1e-05"),
        (lambda folder: changed_config(folder, hidden_act="relu"), "hidden_act is 'relu', and was 'gelu'"),
        (lambda folder: changed_config(folder, model_type="xlm-roberta-xl"), "XLMRobertaForMaskedLM"),
        (of_another_tokenizer, "has other pieces"),
        (without_a_weight, "do not add up"),
        (lambda folder: changed_config(folder, bos_token_id=5), "bos_token_id is 5, and was 0"),
        (lambda folder: changed_config(folder, id2label=["a", "b"]), "id2label does not give names by number"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": {"vocab": 5}}'), "has no list of pieces"),
        (lambda folder: (folder / "fairseq").symlink_to(folder.parent / "base" / "fairseq"), "is a link or a file"),
        (lambda folder: (folder / "tokenizer.json").mkdir(), "is a folder, and becomes a file"),
        (lambda folder: (folder / "finetuning.json").write_text("{}"), "if your own training came after"),
        (an_adapter, "merge it into the weights"),
        (lambda folder: shutil.rmtree(folder), "does not exist"),
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
    with pytest.raises(InputError, match="model_type is 'xlm-roberta', and was 'xlm-roberta-xl'"):
        adopt(folder, tmp_path / "wide")


def test_a_model_is_not_trained_from_itself(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    with pytest.raises(InputError, match="the model itself"):
        adopt(tmp_path / "base", tmp_path / "base")
    with pytest.raises(InputError, match="nothing was trained"):
        adopt(tmp_path / "copy", tmp_path / "base")


def test_a_model_without_what_is_fairseqs_has_nothing_to_give(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    saved(tmp_path / "base", tmp_path / "plain", "MaskedLM")
    saved(tmp_path / "base", tmp_path / "mine", "TokenClassification")
    with pytest.raises(InputError, match=r"has no fairseq/dict\.txt"):
        adopt(tmp_path / "mine", tmp_path / "plain")


def test_a_training_over_a_copy_of_the_model_is_adopted(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    shutil.copytree(tmp_path / "base", tmp_path / "mine")
    (tmp_path / "mine" / "fairseq" / "label").mkdir()
    (tmp_path / "mine" / "fairseq" / "label" / "dict.txt").write_text("of another head 1\n", encoding="utf-8")
    saved(tmp_path / "base", tmp_path / "mine", "SequenceClassification", num_labels=3)
    assert adopt(tmp_path / "mine", tmp_path / "base").removed == ("fairseq/label/dict.txt",)
    assert examine(tmp_path / "mine").is_healthy


def test_appended_rows_that_were_trained_are_named_or_reset(tmp_path: Path) -> None:
    """convert appends rows for pieces that are `<unk>` to fairseq; Transformers' tokenizer gives their ids."""
    convert(FIXTURES / "v0122rare", tmp_path / "base", verify=False)
    rows = ModelFiles(tmp_path / "base").appended_rows
    assert rows
    network = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        network.get_input_embeddings().weight[rows.start] += 1
    network.save_pretrained(tmp_path / "mine")
    with pytest.raises(InputError, match=f"rows {rows.start} to {rows.stop - 1} of the embedding were trained"):
        adopt(tmp_path / "mine", tmp_path / "base")
    adopt(tmp_path / "mine", tmp_path / "base", reset_appended_rows=True)
    weight = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "mine").get_input_embeddings().weight
    assert all(torch.equal(weight[row], weight[3]) for row in rows)


def test_weights_that_changed_after_it_are_not_pushed(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    folder = saved(tmp_path / "base", tmp_path / "mine", "MaskedLM")
    adopt(folder, tmp_path / "base")
    look_at(folder)
    changed = {name: weight + 1 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="adopt it once more"):
        look_at(folder)
    adopt(folder, tmp_path / "base")
    look_at(folder)


def test_its_own_card_is_written_again_and_an_edited_one_stays(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    folder = saved(tmp_path / "base", tmp_path / "mine", "MaskedLM")
    adopt(folder, tmp_path / "base")
    assert adopt(folder, tmp_path / "other").kept == ()
    assert "trained from other" in (folder / "README.md").read_text(encoding="utf-8")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("More.\n")
    assert adopt(folder, tmp_path / "base").kept == ("README.md",)


def test_a_checkpoint_that_cannot_be_adopted_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert("demo", tmp_path / "base", verify=False)
    network = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    network.resize_token_embeddings(network.config.vocab_size + 7, mean_resizing=False)
    trained(network, tmp_path, [adopting_callback(tmp_path / "base")])
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    assert "is not adopted: " in caplog.text and "2,409 rows, and 2,402 there" in caplog.text
    with pytest.raises(InputError):
        adopting_callback(tmp_path / "nowhere")


def trained(network: Any, folder: Path, callbacks: list[Any]) -> None:
    ids = XLMR.from_pretrained(folder / "base").encode("Hello world!").tolist()
    options = transformers.TrainingArguments(
        str(folder / "out"), max_steps=2, save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True
    )
    rows = [{"input_ids": ids, "labels": ids}] * 8
    transformers.Trainer(network, options, train_dataset=rows, callbacks=callbacks).train()


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
    trained(network, tmp_path, [adopting_callback(tmp_path / "base")])
    assert all(examine(tmp_path / "out" / f"checkpoint-{step}").is_healthy for step in (1, 2))


def test_the_program_says_what_was_added(tmp_path: Path) -> None:
    convert("demo", tmp_path / "base", verify=False)
    saved(tmp_path / "base", tmp_path / "mine", "MaskedLM")
    done = run("adopt", "mine", "--from", "base", cwd=tmp_path)
    assert done.returncode == 0
    assert "mine, trained from base" in done.stdout and "fairseq/dict.txt" in done.stdout
    assert json.loads(run("adopt", "mine", "--from", "base", "--json", cwd=tmp_path).stdout)["kept"] == []
    refused = run("adopt", "mine", "--from", "", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.startswith("hf-xlmr: --from")
