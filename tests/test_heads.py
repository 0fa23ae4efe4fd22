"""A head becomes a class of Transformers only where its weights and the options say that it computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from factory import HIDDEN, OPTIONS, Checkpoint, add_head, weights
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from hf_xlmr import XLMR
from hf_xlmr.cli import app
from hf_xlmr.cli.flags import flags_of, in_flags
from hf_xlmr.conversion import ConversionReport, convert, inspect
from hf_xlmr.conversion.preview import shape_of
from hf_xlmr.errors import InputError, IntegrityError, UnsupportedCheckpoint, WeightsMismatch
from hf_xlmr.hub_interface.encoder import UnknownHead
from hf_xlmr.hub_interface.loading import find_model
from hf_xlmr.model.head_kinds import HeadKind, is_multi_label, kind_of_head
from hf_xlmr.tasks.fitting.task_models import head_of
from hf_xlmr.tasks.kinds.registry import task_of

TOKENS = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1]])
TAGGING = {"task": "sequence_tagging", "criterion": "sequence_tagging", "classification_head_name": "tags"}


def source(
    folder: Path, *heads: str, more: dict[str, torch.Tensor] | None = None, has_lm_head: bool = True, **options: Any
) -> Path:
    model = weights()
    for name in [] if has_lm_head else [name for name in model if name.startswith("encoder.lm_head.")]:
        del model[name]
    for head in heads:
        add_head(model, head, labels=5)
    return Checkpoint(model=model | (more or {}), options={**OPTIONS, **options}).write(folder)


def converted(folder: Path, *heads: str, head: str | None = None, **options: Any) -> ConversionReport:
    return convert(source(folder / "source", *heads, **options), folder / "out", head=head, verify=False)


# ---- what a head reads -----------------------------------------------------------------------------------------------

TASK, CRITERION, NAMED = "task", "criterion", "classification_head_name"
KINDS: list[tuple[str, dict[str, object], tuple[str, ...], HeadKind]] = [
    ("mnli", {}, (), HeadKind.SENTENCE),
    ("anything", {TASK: "masked_lm", CRITERION: "masked_lm"}, (), HeadKind.UNCLEAR),
    ("anything", {}, (), HeadKind.UNCLEAR),
    ("anything", {TASK: "sentence_prediction", CRITERION: "sentence_prediction"}, (), HeadKind.SENTENCE),
    ("qa", {TASK: "sentence_prediction", CRITERION: "sentence_prediction"}, (), HeadKind.UNCLEAR),
    ("classification_head", {TASK: "masked_lm"}, (), HeadKind.UNCLEAR),
    ("sentence_classification_head", {TASK: "masked_lm"}, (), HeadKind.SENTENCE),
    ("x", {TASK: "text_classification"}, (), HeadKind.SENTENCE),
    ("x", {TASK: "commonsense_qa", CRITERION: "sentence_ranking"}, (), HeadKind.SENTENCE),
    ("x", {TASK: "glue_tasks", CRITERION: "focal"}, (), HeadKind.SENTENCE),
    ("x", {TASK: "my_task", CRITERION: "sentence_prediction_multilabel"}, (), HeadKind.SENTENCE),
    ("sequence_tagging_head", {}, (), HeadKind.TOKEN),
    ("sequence_tagging_head", {TASK: "sequence_tagging", CRITERION: "sequence_tagging"}, (), HeadKind.TOKEN),
    ("x", {TASK: "sequence_tagging"}, (), HeadKind.TOKEN),
    ("sentence_classification_head", {TASK: "token_prediction"}, (), HeadKind.TOKEN),
    ("span_prediction_head", {TASK: "span_prediction"}, (), HeadKind.TOKEN),
    ("question_answering_head", {TASK: "masked_lm", CRITERION: "squad"}, (), HeadKind.TOKEN),
    ("x", {TASK: "masked_lm", CRITERION: "TokenRegressionLoss"}, (), HeadKind.TOKEN),
    ("x", {TASK: "sentence_prediction", "classify_per_token": True}, (), HeadKind.TOKEN),
    ("ner", {TASK: "masked_lm"}, (), HeadKind.TOKEN),
    ("seqtagging", {}, (), HeadKind.TOKEN),
    ("sequence_tagging_head", {TASK: "sentence_prediction"}, (), HeadKind.UNCLEAR),
    ("x", {TASK: "my_task"}, (), HeadKind.UNCLEAR),
    ("mnli", {TASK: "sequence_tagging", NAMED: "tags"}, ("mnli", "tags"), HeadKind.SENTENCE),
    ("tags", {TASK: "sequence_tagging", NAMED: "tags"}, ("mnli", "tags"), HeadKind.TOKEN),
    ("tags", {TASK: "sentence_prediction", NAMED: "mnli"}, ("mnli", "tags"), HeadKind.TOKEN),
    ("x", {TASK: "sequence_tagging", NAMED: "tags"}, ("x", "tags"), HeadKind.UNCLEAR),
]


OF_SENTENCES = (
    *(
        "sentence_classification_head",
        "mnli",
        "rte",
        "xnli",
        "RTE-large",
        "cola",
        "sst2",
        "mrpc",
        "qqp",
        "sts_b",
        "qnli",
    ),
    *("wnli", "paws_x", "sentiment", "topic_head", "xnli_head", "nli"),
)
OF_TOKENS = (
    *("ner", "NERHead", "pos", "upos", "udpos_head", "tagging", "seqtagging", "token_head", "conll2003", "conll03_de"),
    *(
        "wikiann_head",
        "panx",
        "punctuation",
        "punctuator_head",
        "casing_head",
        "truecaser",
        "chunk",
        "srl",
        "qa",
        "span",
    ),
    *("squad2", "mlqa", "slots", "sentence_segmentation", "ontonotes5", "ner_classification_head"),
)


@pytest.mark.parametrize("task", ["sentence_prediction", "sentence_ranking", "masked_lm", None])
def test_a_head_that_is_named_for_sentences_passes_and_one_named_for_tokens_never_does(task: str | None) -> None:
    options: dict[str, object] = {} if task is None else {TASK: task, CRITERION: task}
    assert {kind_of_head(name, options).kind for name in OF_SENTENCES} == {HeadKind.SENTENCE}
    expected = HeadKind.TOKEN if task in ("masked_lm", None) else HeadKind.UNCLEAR
    assert {name for name in OF_TOKENS if kind_of_head(name, options).kind is not expected} == set()


@pytest.mark.parametrize("name", ["upos", "conll2003", "wikiann_head", "punctuation", "labels", "main"])
def test_a_head_that_no_task_speaks_of_is_converted_only_where_something_says_what_it_reads(
    name: str, tmp_path: Path
) -> None:
    folder = source(tmp_path / "source", name)
    with pytest.raises(UnsupportedCheckpoint, match=f"the head {name}"):
        convert(folder, tmp_path / "out")
    folder = source(tmp_path / "asked", name, task="sentence_prediction")
    report = convert(folder, tmp_path / "out", head=name, verify=False)
    assert report.class_name == "XLMRobertaForSequenceClassification"


@pytest.mark.parametrize(("name", "options", "heads", "kind"), KINDS)
def test_the_options_and_names_tell_what_a_head_reads(
    name: str, options: dict[str, object], heads: tuple[str, ...], kind: HeadKind
) -> None:
    assert kind_of_head(name, options, heads=heads).kind is kind


def test_several_labels_at_once_are_told_by_the_options() -> None:
    assert is_multi_label({"criterion": "sentence_prediction_multilabel"})
    assert is_multi_label({"criterion": "bce_loss"}) and is_multi_label({"task": "x", "multi_label": True})
    assert not is_multi_label({"criterion": "sentence_prediction", "task": "multilingual_masked_lm"})


# ---- what becomes of it ----------------------------------------------------------------------------------------------


def test_a_head_that_reads_every_token_is_refused_with_the_way_on(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "tags", **TAGGING)
    for head in (None, "tags"):
        with pytest.raises(UnsupportedCheckpoint, match=r"every token \(the task sequence_tagging.*head='none'"):
            convert(folder, tmp_path / "out", head=head)
    inspected = inspect(folder)
    assert inspected.class_name is None and "reads every token" in inspected.reasons[0]
    report = convert(folder, tmp_path / "out", head="none", verify=False)
    assert report.class_name == "XLMRobertaForMaskedLM"
    assert "not asked for" in report.dropped["classification_heads.tags.dense.weight"]
    assert convert(folder, tmp_path / "encoder", encoder_only=True, verify=False).class_name == "XLMRobertaModel"


def test_a_head_of_an_unknown_task_is_converted_where_the_user_says_what_it_reads(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", "x", task="my_task")
    with pytest.raises(UnsupportedCheckpoint, match=r"nothing says .*my_task.*head='x' says that it is the first"):
        convert(folder, tmp_path / "out")
    report = convert(folder, tmp_path / "out", head="x", verify=False)
    assert report.class_name == "XLMRobertaForSequenceClassification"
    assert any("taken to read the first token" in note for note in report.notes)


HEAD = "classification_heads.x."
ODD: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "one layer": ({"out_proj.weight": (5, HIDDEN), "out_proj.bias": (5,)}, "has one layer where fairseq's has two"),
    "a hidden layer alone": ({"dense.weight": (HIDDEN, HIDDEN), "dense.bias": (HIDDEN,)}, "has one layer"),
    "other names": ({"weight": (5, HIDDEN), "bias": (5,)}, r"code that fairseq does not have \(bias, weight\)"),
    "several outputs": ({"multi_tag_sub_heads.0.dense.weight": (HIDDEN, HIDDEN)}, "multi_tag_sub_heads.0.dense"),
    "another spectral norm": ({"dense.weight": (HIDDEN, HIDDEN), "out_proj.weight_orig": (5, HIDDEN)}, "spectrum"),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_head_of_other_code_is_refused_by_its_weights(odd: str, tmp_path: Path) -> None:
    shapes, message = ODD[odd]
    folder = source(tmp_path / "source", more={HEAD + name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(UnsupportedCheckpoint, match=f"the head x .*{message}"):
        convert(folder, tmp_path / "out")
    assert convert(folder, tmp_path / "out", head="none", verify=False).class_name == "XLMRobertaForMaskedLM"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", r"has \(''\)"),
        (" ", r"has \(' '\)"),
        ("classification_heads.", r"the head '' is of code that fairseq does not have \(''\)"),
        ("classification_heads..dense.weight", "the head '' has one layer"),
    ],
)
def test_names_that_nobody_would_see_stand_in_quotes(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=told):
        convert(source(tmp_path / "source", more={name: torch.zeros(2, 2)}), tmp_path / "out")


def test_a_layer_more_than_fairseqs_is_refused(tmp_path: Path) -> None:
    extra = {f"{HEAD}layer_norm.weight": torch.ones(HIDDEN)}
    with pytest.raises(UnsupportedCheckpoint, match=r"code that fairseq does not have \(layer_norm.weight\)"):
        convert(source(tmp_path / "source", "x", more=extra), tmp_path / "out")


def test_several_labels_at_once_are_a_kind_of_problem(tmp_path: Path) -> None:
    options = {"task": "sentence_prediction", "criterion": "sentence_prediction_multilabel"}
    report = convert(source(tmp_path / "source", "x", **options), tmp_path / "out")
    config = json.loads((report.output / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    loaded = AutoModelForSequenceClassification.from_pretrained(report.output)
    assert loaded(torch.tensor([[0, 7, 2]])).logits.shape == (1, 5)


# ---- fairseq's own calls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [TAGGING, {"task": "span_prediction", "pooler_activation_fn": "gelu"}])
def test_fairseqs_interface_answers_for_every_token(options: dict[str, Any], tmp_path: Path) -> None:
    """As the public code of sequence_tagging and span_prediction: the same layers on all positions."""
    folder = source(tmp_path / "source", "tags", **options)
    xlmr = XLMR.from_pretrained(folder).eval()
    saved = torch.load(folder / "model.pt", weights_only=False)["model"]
    part = {name.removeprefix("classification_heads.tags."): weight for name, weight in saved.items() if "tags" in name}
    with torch.no_grad():
        features = xlmr.extract_features(TOKENS)
        inner = linear(features, part["dense.weight"], part["dense.bias"])
        inner = torch.nn.functional.gelu(inner) if "pooler_activation_fn" in options else inner.tanh()
        expected = linear(inner, part["out_proj.weight"], part["out_proj.bias"])
        found = xlmr.predict("tags", TOKENS)
        assert found.shape == (2, 5, 5)
        torch.testing.assert_close(found, expected.log_softmax(dim=-1), rtol=0, atol=1e-6)
        torch.testing.assert_close(xlmr.predict("tags", TOKENS, return_logits=True), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(xlmr.model(TOKENS, classification_head_name="tags")[0], expected, rtol=0, atol=1e-6)


BESIDE: dict[str, dict[str, torch.Tensor]] = {
    "a head of two layers more": {"classification_heads.x.layer_norm.weight": torch.ones(HIDDEN)},
    "a head without its bias": {"classification_heads.x.out_proj.weight": torch.ones(5, HIDDEN)},
    "weights next to the encoder": {"my_heads.y.weight": torch.ones(5, HIDDEN)},
}
REFUSED_HEADS: dict[str, tuple[tuple[str, ...], dict[str, torch.Tensor], dict[str, Any], str]] = {
    "of tokens": (("tags",), {}, TAGGING, "the head tags reads every token"),
    "of which none is chosen": (("one", "two"), {}, {}, "the checkpoint has several heads (one, two)"),
    "of an unknown task": (("x",), {}, {"task": "my_task"}, "nothing says whether the head x reads the first token"),
    **{kind: ((), more, {}, "the head x" if "layers" in kind else "") for kind, more in BESIDE.items()},
}


@pytest.mark.parametrize("has_lm_head", [True, False])
@pytest.mark.parametrize("kind", REFUSED_HEADS)
def test_what_is_loaded_without_its_heads_is_planned_without_them(kind: str, has_lm_head: bool, tmp_path: Path) -> None:
    """The program says what it plans, and why that is not the whole."""
    heads, more, options, told = REFUSED_HEADS[kind]
    path = source(tmp_path / "source", *heads, more=more, has_lm_head=has_lm_head, **options)
    with pytest.raises((InputError, WeightsMismatch)):
        convert(path, tmp_path / "out", verify=False)
    done = in_process.run("plan", path, "--max-memory", "cpu=1GiB", "--json")
    planned, loaded = json.loads(done.stdout), find_model(path).shape
    assert done.returncode == 0
    assert (planned["model"], planned["parameters"]) == (loaded.class_name, loaded.parameters)
    (line,) = done.stderr.splitlines()
    begin = f"hf-xlmr: the sizes are those of {loaded.class_name}, which XLMR loads of {path} without the heads "
    assert line.startswith(begin) and told in line.removeprefix(begin) and "head=" not in line


def test_what_is_not_loaded_is_not_planned(tmp_path: Path) -> None:
    path = source(tmp_path / "source", "tags", **{**TAGGING, "activation_fn": "swish"})
    with pytest.raises(UnsupportedCheckpoint) as caught:
        shape_of(path)
    assert len(caught.value.reasons) == 2  # the head is still one of them
    with pytest.raises(UnsupportedCheckpoint, match="swish"):
        find_model(path)


WRONG: dict[str, tuple[tuple[int, ...], str]] = {
    "dense.weight": ((HIDDEN, HIDDEN + 3), "dense.weight [16, 19]"),
    "dense.bias": ((HIDDEN, 1), "dense.bias [16, 1]"),
    "out_proj.weight": ((0, HIDDEN), "out_proj.weight [0, 16], out_proj.bias [5]"),
    "out_proj.bias": ((), "out_proj.bias []"),
    "out_proj.weight_orig": ((5, HIDDEN), "out_proj.weight_orig [5, 16]"),
}


@pytest.mark.parametrize("part", WRONG)
def test_a_damaged_head_is_told_with_its_checkpoint(part: str, tmp_path: Path) -> None:
    shape, told = WRONG[part]
    model = weights()
    add_head(model, "x", labels=5)
    if part.endswith("_orig"):
        del model[f"{HEAD}out_proj.weight"]
        model |= {f"{HEAD}out_proj.weight_u": torch.ones(4), f"{HEAD}out_proj.weight_v": torch.ones(HIDDEN)}
    model[f"{HEAD}{part}"] = torch.ones(shape)
    path = Checkpoint(model=model).write(tmp_path / "source")
    with pytest.raises(IntegrityError) as caught:
        XLMR.from_pretrained(path)
    assert f"the head x in {path}/model.pt: the weights do not add up (wrong shape: {told}" in str(caught.value)


def test_a_head_of_other_numbers_is_refused_as_convert_refuses_it(tmp_path: Path) -> None:
    path = source(tmp_path / "source", "x", more={f"{HEAD}dense.bias": torch.ones(HIDDEN, dtype=torch.int64)})
    with pytest.raises(UnsupportedCheckpoint, match="weights are kept as int64"):
        XLMR.from_pretrained(path)


def test_each_head_of_several_reads_its_own(tmp_path: Path) -> None:
    xlmr = XLMR.from_pretrained(source(tmp_path / "source", "mnli", "tags", **TAGGING)).eval()
    assert xlmr.predict("mnli", TOKENS).shape == (2, 5)
    assert xlmr.predict("tags", TOKENS).shape == (2, 5, 5)
    xlmr.register_classification_head("tags2", num_classes=3)  # fairseq's own class, whatever it is called
    assert xlmr.predict("tags2", TOKENS).shape == (2, 3)


def test_a_head_of_other_code_is_missing_with_its_reason(tmp_path: Path) -> None:
    extra = {f"{HEAD}layer_norm.weight": torch.ones(HIDDEN), "tagging_heads.y.weight": torch.ones(5, HIDDEN)}
    xlmr = XLMR.from_pretrained(source(tmp_path / "source", "x", more=extra)).eval()
    for head in ("x", "y"):
        with pytest.raises(UnknownHead, match="the checkpoint has it, and it is not of fairseq's class"):
            xlmr.predict(head, TOKENS)
    with pytest.raises(UnknownHead, match="it has none"):
        xlmr.predict("z", TOKENS)


def test_the_program_says_it_in_its_options() -> None:
    flags = flags_of(app)
    for sentence, typed in {
        "encoder_only=True or head='none', attention_heads=N": "--encoder-only or --head none, --attention-heads N",
        "head='mnli' is one; choose another with head=": "--head mnli is one; choose another with --head",
        "verify=False converts it, or pass overwrite=True": "--no-verify converts it, or pass --overwrite",
        "add_pooling_layer=False, x=1 and on_long='split'.": "add_pooling_layer=False, x=1 and --on-long split.",
        "warmup=-0.5: learning_rate=1e-05, epochs=nan.": "--warmup -0.5: --learning-rate 1e-05, --epochs nan.",
        "misaligned='skip', unlabelled= or licence='mit'": "--on-misaligned skip, --on-unlabelled or --license mit",
        "evaluation_options.split= and options.seed=3": "--eval-split and --seed 3",
        "on the CPU (cpu=22GiB), or cpu=True": "on the CPU (cpu=22GiB), or --cpu",
    }.items():
        assert in_flags(sentence, flags) == typed
    assert in_flags("languages='de'", flags_of(app, "convert")) == "--language de"
    assert in_flags("languages='de'", flags_of(app, "evaluate")) == "--languages de"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TAGGING, "classifies every token"),
        ({"task": "sentence_prediction", "pooler_activation_fn": "relu"}, "uses relu"),
    ],
)
def test_a_head_that_transformers_lacks_is_not_scored_as_a_classifier(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    files = find_model(source(tmp_path / "source", "tags", **options))
    with pytest.raises(InputError, match=message):
        head_of(files, task_of("xnli"))
