"""`hf-xlmr finetune`: each task is learnt, breaks change nothing, and what comes out is anybody's folder."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import in_process
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from places import FIXTURES, TESTS
from published_rules import published_scores
from refusals import told
from safetensors.torch import load_file
from small_tasks import LANGUAGES, write_ner, write_questions, write_xnli
from warm_processes import PROGRAM, run, run_two

from hf_xlmr import XLMR
from hf_xlmr.cards.card_check import check_card
from hf_xlmr.conversion import convert, export
from hf_xlmr.errors import IntegrityError
from hf_xlmr.features.processes import DeviceProcesses, Processes
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.tasks.evaluation import EvaluationOptions, evaluate, evaluate_data
from hf_xlmr.tasks.example_data import EXAMPLE_FILES
from hf_xlmr.tasks.fitting import devices
from hf_xlmr.tasks.fitting.adapters import merged, with_adapters
from hf_xlmr.tasks.fitting.finetuned_card import base_model_of
from hf_xlmr.tasks.fitting.finetuned_folder import FinetunedFolder
from hf_xlmr.tasks.fitting.task_models import head_of, load_network
from hf_xlmr.tasks.kinds.inputs import DataSource
from hf_xlmr.tasks.kinds.registry import HOMES, TASKS
from hf_xlmr.tasks.launch import LAUNCH_CONFIGS, launch_config
from hf_xlmr.tasks.ner import NerExample
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_table import tables_of
from hf_xlmr.tasks.training import FinetuningOptions, FinetuningReport, finetune

ENDINGS = {"xnli": "SequenceClassification", "mlqa": "QuestionAnswering", "ner": "TokenClassification"}
FAMILIES = {"XLMRoberta": "v0122", "XLMRobertaXL": "v0122prenorm", "RobertaPreLayerNorm": "v0122prelayernorm"}
RATES = {"XLMRoberta": 1e-2, "XLMRobertaXL": 1e-2, "RobertaPreLayerNorm": 3e-3}
STEPS = {"XLMRoberta": 60, "XLMRobertaXL": 60, "RobertaPreLayerNorm": 120}
QUICK = FinetuningOptions(max_steps=50, batch_size=16, warmup=0.1, learning_rate=3e-3)
FEW = replace(QUICK, max_steps=8, save_steps=3)
TOLERANCE = 1e-5
Data = dict[str, list[str]]
Trained = dict[str, FinetuningReport]


pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """By task and part."""
    folder = tmp_path_factory.mktemp("data")
    made = {
        "xnli train": [write_xnli(folder / "train.tsv", 96, ("de", "en"))],
        "xnli test": [write_xnli(folder / "test.tsv", 24, seed=2)],
        "ner train": [write_ner(folder / "train.conll", 60, ("de", "en"))],
        "ner test": [write_ner(folder / "test.conll", 20, seed=2)],
        "mlqa train": [write_questions(folder / "train-v1.1.json", 60)],
    }
    for language in ("en", "de", "zh"):
        write_questions(folder / f"test-context-{language}-question-{language}.json", 20, language, seed=2)
    return {**made, "mlqa test": [str(folder / "test-context-*-question-*.json")]}


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each task on the demo, in English."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        task: finetune(
            task, "demo", data[f"{task} train"], folder / task, evaluation=data[f"{task} test"], options=options
        )
        for task, options in (("xnli", QUICK), ("ner", replace(QUICK, max_steps=80)), ("mlqa", QUICK))
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


# ---- what is learnt


@pytest.mark.parametrize(("task", "least", "chance"), [("xnli", 90, 34), ("ner", 65, 10), ("mlqa", 80, 25)])
def test_the_task_is_learnt(trained: Trained, task: str, least: float, chance: float) -> None:
    report = trained[task]
    losses = list(report.losses.values())
    assert len(losses) > 10 and losses[-1] < losses[0] / 4
    assert report.results is not None
    scores = {language: each[report.results.metrics[0]] for language, each in report.results.scores.items()}
    assert scores["en"] >= least
    assert min(scores.values()) > chance, "the other languages share what tells the answer"


def test_zero_shot_trains_on_english_and_scores_all_languages(trained: Trained) -> None:
    for task, languages in (("xnli", set(LANGUAGES)), ("ner", set(LANGUAGES)), ("mlqa", {"en", "de", "zh"})):
        assert set(trained[task].trained_on) == {"en"} and trained[task].mode == "zero-shot"
        results = trained[task].results
        assert results is not None and set(results.scores) == languages


def test_translate_train_all_trains_on_every_language(data: Data, tmp_path: Path) -> None:
    options = replace(FEW, mode="translate-train-all", max_steps=2)
    report = finetune("xnli", "demo", data["xnli train"], tmp_path / "out", options=options)
    assert dict(report.trained_on) == {"de": 96, "en": 96} and report.results is None
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_fourth_task_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HOMES, "moods", "fourth_task")
    for part in ("train", "test"):  # made from the registry when hf_xlmr is imported
        monkeypatch.setitem(EXAMPLE_FILES, ("moods", part), f"moods.{part}.tsv")
    data = tmp_path / "moods.tsv"
    rows = [f"{language}\t{label}\t{label}!\n" for language in ("de", "en") for label in ("glad", "sad")]
    data.write_text("".join(rows * 8))
    options = replace(QUICK, max_steps=2)
    report = finetune("moods", "demo", [str(data)], tmp_path / "out", evaluation=[str(data)], options=options)
    assert report.trained_on == {"en": 16} and report.settings["max_length"] == 64
    assert report.results is not None and report.results.languages == ("en", "de")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card and "## Moods of texts: moods.tsv" in card
    again = evaluate("moods", str(tmp_path / "out"), [str(data)], output=tmp_path / "scores")
    assert again.scores == report.results.scores
    said = (tmp_path / "scores" / "predictions" / "en.txt").read_text().split()
    assert 100 * sum(map(str.__eq__, said, ["glad", "sad"] * 8)) / 16 == again.scores["en"]["accuracy"]
    for task, given, expected in (
        ("moods", EvaluationOptions(stride=9), "stride= is an option of mlqa and means nothing in moods"),
        ("ner", EvaluationOptions(unlabelled="refuse"), "unlabelled= is an option of xnli and moods"),
        ("mood", EvaluationOptions(), "the task 'mood' is unknown; there are xnli, mlqa, ner, moods"),
    ):
        assert expected in told(evaluate, task, "demo", [str(data)], options=given)


@pytest.mark.parametrize("task", ENDINGS)
def test_what_lies_in_the_folder(trained: Trained, task: str) -> None:
    folder = trained[task].output
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model"),
        *("fairseq/dict.txt", "fairseq/sentencepiece.bpe.model", "fairseq/options.json", "fairseq/conversion.json"),
        *("README.md", "finetuning.json", "results.json", "results.md", "results.svg"),
    }
    results = trained[task].results
    assert results is not None
    assert TaskResults.read(folder / "results.json") == replace(results, model=folder.name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "model-index" in card and "| learning rate | 0.003 |" in card
    assert f"XLMRobertaFor{ENDINGS[task]}" in card
    assert json.loads((folder / "finetuning.json").read_text())["steps"] == trained[task].steps


RUN_ALL = """
import os
for folder, block in {shown!r}.items():
    os.chdir(folder)
    exec(block, {{}})
"""


def test_the_folder_tells_no_paths_of_this_machine(trained: Trained, data: Data, tmp_path: Path) -> None:
    """A folder is published whole: what it was trained from, a local folder too, is told by its name."""
    begun = str(trained["xnli"].output)
    report = finetune(
        "xnli",
        begun,
        data["xnli train"],
        tmp_path / "out",
        evaluation=data["xnli test"],
        options=replace(QUICK, max_steps=1),
    )
    assert report.model == begun
    texts = {path.name: path.read_text(encoding="utf-8") for path in report.output.rglob("*.[jm][sd]*")}
    assert texts.keys() >= {"README.md", "finetuning.json", "results.json", "results.md", "config.json"}
    assert not [name for name, text in texts.items() if str(tmp_path) in text or begun in text]
    assert json.loads(texts["finetuning.json"])["model"] == "xnli"


def test_the_block_of_each_card_runs_in_its_folder(trained: Trained) -> None:
    """In one process, in which hf_xlmr cannot be imported."""
    cards = {report.output: (report.output / "README.md").read_text(encoding="utf-8") for report in trained.values()}
    shown = {
        str(folder): re.findall(r"^```python\n(.*?)^```", card, flags=re.S | re.M)[0] for folder, card in cards.items()
    }
    program = "import sys\nsys.modules['hf_xlmr'] = None\n" + RUN_ALL.format(shown=shown)
    done = run([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    labels = json.loads((trained["xnli"].output / "config.json").read_text())["id2label"]
    assert done.stdout.splitlines()[0] in labels.values()
    told = ", ".join(f"{number} {name}" for number, name in labels.items())
    assert f"Labels, by the number of the output: {told}." in cards[trained["xnli"].output]
    assert "Labels" not in cards[trained["mlqa"].output]


def metadata_in(folder: Path) -> dict[str, Any]:
    return dict(ModelCard.load(folder / "README.md").data.to_dict())


@pytest.mark.parametrize("lora", [False, True])
def test_the_card_carries_over_what_the_models_card_tells(lora: bool, data: Data, tmp_path: Path) -> None:
    convert("demo", tmp_path / "model", verify=False, languages=["de", "no"], licence="mit")
    card = tmp_path / "model" / "README.md"
    base = "---\nbase_model: FacebookAI/xlm-roberta-base\n"
    card.write_text(card.read_text(encoding="utf-8").replace("---\n", base, 1), encoding="utf-8")
    options = replace(FEW, max_steps=1, save_steps=1, warmup=0, lora=lora)
    finetune("xnli", str(tmp_path / "model"), data["xnli train"], tmp_path / "out", options=options)
    assert metadata_in(tmp_path / "out") == {
        "language": ["de", "no"],
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "FacebookAI/xlm-roberta-base",
        "tags": ["xlm-roberta", "fairseq", "hf_xlmr"],
    }
    assert check_card(OpenedFolder(tmp_path / "out")) == ()
    made = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("without peft" in made) == lora and "for 1 step\non examples" in made


def test_what_no_card_tells_is_left_out(trained: Trained) -> None:
    for report in trained.values():
        assert not {"language", "license", "base_model"} & metadata_in(report.output).keys()
        assert check_card(OpenedFolder(report.output)) == (
            "README.md names no license, so nobody knows what they may do with it: add a line such as license: mit "
            "to the fields at its top",
        )


def test_a_model_of_the_hub_is_the_base_model() -> None:
    card = {"base_model": "someone/else"}
    assert base_model_of("FacebookAI/xlm-roberta-base", card) == "FacebookAI/xlm-roberta-base"
    assert base_model_of("xlmr.base", card) == base_model_of(str(FIXTURES), card) == "someone/else"
    assert base_model_of("demo", {}) is None


@pytest.mark.parametrize("task", ENDINGS)
def test_transformers_loads_it_whole(trained: Trained, task: str) -> None:
    loader = getattr(transformers, f"AutoModelFor{ENDINGS[task]}")
    network, loading = loader.from_pretrained(trained[task].output, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert type(network).__name__ == trained[task].class_name == f"XLMRobertaFor{ENDINGS[task]}"
    if task == "ner":
        assert network.config.id2label == {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "B-PER", 4: "I-PER"}


def test_a_model_of_ones_own_script_trains_the_same(data: Data, tmp_path: Path) -> None:
    """Trainer on AutoModel and plain lists: the same weights, bit for bit."""
    report = finetune("xnli", "demo", data["xnli train"], tmp_path / "out", options=FEW)
    xlmr = XLMR.from_pretrained("demo")
    labels = ["entailment", "neutral", "contradiction"]
    lines = Path(data["xnli train"][0]).read_text(encoding="utf-8").splitlines()[1:]
    rows = []
    for language, label, first, second in (line.split("\t") for line in lines):
        if language == "en":
            rows.append({"input_ids": xlmr.encode(first, second).tolist(), "labels": labels.index(label)})
    transformers.set_seed(1)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        find_model("demo").folder, num_labels=3, dtype=torch.float32
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "script"),
        max_steps=8,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        warmup_steps=0.1,
        seed=1,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    collator = transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(report.output))
    transformers.Trainer(model=network, args=arguments, train_dataset=rows, data_collator=collator).train()
    theirs = network.state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in weights(report.output).items())


# ---- the way back


def test_a_trained_classifier_answers_as_a_head_of_fairseq(trained: Trained) -> None:
    folder = trained["xnli"].output
    xlmr = XLMR.from_pretrained(folder).eval()
    tokens = xlmr.encode("the train leaves", "children play o")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = network(tokens[None]).logits.log_softmax(-1)
        found = xlmr.predict("sentence_classification_head", tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert xlmr.task.label_dictionary[found.argmax() + xlmr.task.label_dictionary.nspecial] == "contradiction"


def test_export_gives_a_checkpoint_of_fairseq(trained: Trained, data: Data, tmp_path: Path) -> None:
    """It is converted again to the same weights and labels, and scores the same."""
    folder = trained["xnli"].output
    report = export(folder, tmp_path / "fairseq")
    assert report.task == "sentence_prediction"
    again = convert(tmp_path / "fairseq", tmp_path / "again")
    assert again.class_name == "XLMRobertaForSequenceClassification" and again.parity is not None
    ours, theirs = weights(folder), weights(tmp_path / "again")
    words, types = (f"roberta.embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type"))
    ours = {**ours, words: ours[words] + ours[types], types: torch.zeros_like(ours[types])}  # fairseq has no types
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    expected = trained["xnli"].results
    assert expected is not None
    for model in (tmp_path / "fairseq", tmp_path / "again"):
        assert evaluate("xnli", str(model), data["xnli test"]).scores == expected.scores


# ---- what an evaluation writes


@pytest.fixture(scope="module")
def written(
    trained: Trained, data: Data, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, TaskResults]]:
    """By task: the folder of an evaluation, and its results."""
    folder = tmp_path_factory.mktemp("evaluated")
    return {
        task: (folder / task, evaluate(task, str(trained[task].output), data[f"{task} test"], output=folder / task))
        for task in ENDINGS
    }


@pytest.mark.parametrize("task", ENDINGS)
def test_an_evaluation_is_written_whole(written: dict[str, tuple[Path, TaskResults]], task: str) -> None:
    folder, results = written[task]
    assert {path.name for path in folder.iterdir()} == {"results.json", "results.md", "results.svg", "predictions"}
    assert TaskResults.read(folder / "results.json") == results
    assert "Avg" in (folder / "results.md").read_text(encoding="utf-8")
    assert not list(folder.parent.glob(".*")), "nothing is left beside it"


def test_mlqas_rules_on_the_written_answers_give_the_tables_figures(
    written: dict[str, tuple[Path, TaskResults]], data: Data
) -> None:
    """To the last digit, by an implementation that shares nothing with ours."""
    folder, results = written["mlqa"]
    for language, scores in results.scores.items():
        dataset = Path(data["mlqa test"][0]).parent / f"test-context-{language}-question-{language}.json"
        predictions = folder / "predictions" / f"context-{language}-question-{language}.json"
        assert published_scores(dataset, predictions, language) == scores
    assert len({scores["f1"] for scores in results.scores.values()}) > 1, "else the comparison shows little"


def test_seqeval_on_the_written_columns_gives_the_tables_figures(written: dict[str, tuple[Path, TaskResults]]) -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    folder, results = written["ner"]
    for language, scores in results.scores.items():
        text = (folder / "predictions" / f"{language}.conll").read_text(encoding="utf-8")
        sentences = [[line.split(" ") for line in each.splitlines()] for each in text.strip().split("\n\n")]
        assert len(sentences) == results.counts[language]
        assert {len(columns) for sentence in sentences for columns in sentence} == {3}
        gold, predicted = ([[columns[at] for columns in each] for each in sentences] for at in (1, 2))
        for metric, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
            assert 100.0 * score(gold, predicted) == scores[metric]


def test_labels_are_written_with_their_counts(written: dict[str, tuple[Path, TaskResults]]) -> None:
    folder, results = written["xnli"]
    heads, *rows = (line.split("\t") for line in (folder / "predictions" / "labels.tsv").read_text().splitlines())
    assert heads == ["language", "index", "gold_label", "predicted_label"]
    counted = Counter((language, gold, predicted) for language, _, gold, predicted in rows)
    for language, scores in results.scores.items():
        indices = [int(row[1]) for row in rows if row[0] == language]
        assert indices == list(range(results.counts[language]))
        right = sum(count for key, count in counted.items() if key[0] == language and key[1] == key[2])
        assert 100.0 * right / len(indices) == scores["accuracy"]
    confusion = (folder / "predictions" / "confusion.tsv").read_text().splitlines()
    labels, *rows = (line.split("\t")[2:] for line in confusion)
    assert labels == ["entailment", "neutral", "contradiction"]
    expected = [[str(counted[language, gold, label]) for label in labels] for language in LANGUAGES for gold in labels]
    assert rows == expected


def test_a_folder_that_exists_is_replaced_if_it_is_an_evaluation(trained: Trained, data: Data, tmp_path: Path) -> None:
    model, test, out = str(trained["xnli"].output), data["xnli test"], tmp_path / "out"
    options = EvaluationOptions(languages=("en",))
    evaluate("xnli", model, test, output=out, options=options)
    assert "out exists; choose another folder" in told(evaluate, "xnli", model, test, output=out)
    evaluate("xnli", model, test, output=out, options=EvaluationOptions(languages=("zh",)), overwrite=True)
    assert TaskResults.read(out / "results.json").languages == ("zh",)
    before = sorted(path.name for path in trained["xnli"].output.iterdir())
    message = told(evaluate, "xnli", model, test, output=model, overwrite=True)
    assert "overwrite=True leaves it alone" in message
    assert sorted(path.name for path in trained["xnli"].output.iterdir()) == before, (
        "a model with scores is no evaluation"
    )


def test_answers_that_no_file_can_hold_are_told_before(trained: Trained, data: Data, tmp_path: Path) -> None:
    model = str(trained["mlqa"].output)
    again = write_questions(tmp_path / "dev-context-en-question-en.json", 3)
    both = [*data["mlqa test"], again]
    message = told(evaluate, "mlqa", model, both, output=tmp_path / "out")
    assert "the answers of en cannot be written by their ids, since 'q0', 'q1', 'q2' occur more than once" in message
    assert not (tmp_path / "out").exists()
    row = {"tokens": ["Elbe"], "ner_tags": ["B-LOC"], "langs": ["../de"]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
    message = told(evaluate, "ner", str(trained["ner"].output), [str(tmp_path / "x.jsonl")], output=tmp_path / "out")
    assert "'../de' is not a language by which a file" in message


def test_a_word_stays_in_its_column(tmp_path: Path) -> None:
    example = NerExample("here", "de", ("San Marino", "\u00a0", "", "e"), ("B-LOC", "O", "O", "O"))
    TASKS["ner"].write(tmp_path, {"de": [example]}, {"de": [["B-LOC", "O", "O", "B-LOC"]]})
    assert (tmp_path / "de.conll").read_text() == "San_Marino B-LOC B-LOC\n_ O O\n_ O O\ne O B-LOC\n\n"


@pytest.mark.parametrize(
    ("way", "told_as"), [("keep", "Scored though the answers"), ("skip", "Left out, for answers that")]
)
def test_misaligned_answers_are_told_by_their_ids(
    way: str, told_as: str, trained: Trained, data: Data, tmp_path: Path
) -> None:
    path = tmp_path / "test-context-en-question-en.json"
    document = json.loads(Path(data["mlqa train"][0]).read_text(encoding="utf-8"))
    for paragraph in document["data"][0]["paragraphs"][:7]:
        paragraph["qas"][0]["answers"][0]["answer_start"] += 1
    path.write_text(json.dumps(document), encoding="utf-8")
    options = EvaluationOptions(misaligned=way)  # type: ignore[arg-type]
    results = evaluate("mlqa", str(trained["mlqa"].output), [str(path)], output=tmp_path / "out", options=options)
    assert results.misaligned == {"en": tuple(f"q{number}" for number in range(7))}
    assert TaskResults.read(tmp_path / "out" / "results.json") == results
    note = f"{told_as} are not where they should be: en 7 ('q0', 'q1', 'q2', 'q3', 'q4', ...)."
    assert results.skipped == ({"en": 7} if way == "skip" else {})
    assert results.counts == {"en": 53 if way == "skip" else 60}
    (table,) = tables_of(results)
    assert note in table.notes
    assert note in table.as_text() and note.replace("_", "\\_") in (tmp_path / "out" / "results.md").read_text()


# ---- all families


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ENDINGS)
def test_every_family_learns_every_task(family: str, task: str, data: Data, tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=STEPS[family], learning_rate=RATES[family])
    report = finetune(task, str(FIXTURES / FAMILIES[family]), data[f"{task} train"], tmp_path / "out", options=options)
    losses = list(report.losses.values())
    assert report.class_name == f"{family}For{ENDINGS[task]}"
    assert np.mean(losses[-5:]) < 0.95 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_merged_into_a_plain_folder(family: str, data: Data, tmp_path: Path) -> None:
    """Nothing but queries, values and the head has changed, those by no more than the adapters' rank."""
    model = str(FIXTURES / FAMILIES[family])
    options = replace(FEW, lora=True, lora_rank=2, learning_rate=1e-2)
    report = finetune("xnli", model, data["xnli train"], tmp_path / "out", options=options)
    before, after = weights(find_model(model).folder), weights(tmp_path / "out")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert report.parameters == sum(each.numel() for each in loaded.parameters())
    assert report.trainable < report.parameters / 5
    assert not list((tmp_path / "out").glob("adapter*"))
    changed = set()
    for name, weight in after.items():
        if name not in before:
            assert name.startswith("classifier.")
        elif not torch.equal(weight, before[name]):
            changed.add(name.split(".")[-2])
            assert np.linalg.matrix_rank((weight - before[name]).double().numpy(), tol=1e-5) == 2
    assert changed == {"query", "value"}


def test_adapters_are_trained_without_a_warning(data: Data, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        options = replace(FEW, max_steps=2, lora=True)
        finetune("xnli", "demo", data["xnli train"], tmp_path / "out", options=options)


def test_merged_adapters_compute_the_same(tmp_path: Path) -> None:
    files, recipe = find_model(FIXTURES / "v0122prenorm"), TASKS["ner"].recipe
    torch.manual_seed(0)
    head = replace(head_of(find_model(FIXTURES / "v0122cls"), TASKS["xnli"]), weights=None, is_new=True)  # type: ignore[type-var]
    adapted = with_adapters(load_network(files, recipe, head), recipe, rank=4).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
        ids = torch.tensor([[0, 15, 5, 179, 2]])
        expected = adapted(ids).logits
        adapted.save_pretrained(tmp_path)
        plain = merged(load_network(files, recipe, head), tmp_path).eval()
        torch.testing.assert_close(plain(ids).logits, expected, rtol=0, atol=TOLERANCE)
    assert type(plain).__name__ == "XLMRobertaXLForTokenClassification"
    assert not any("lora" in name for name in plain.state_dict())


def test_plain_transformers_loads_what_was_merged_and_what_was_not(data: Data, tmp_path: Path) -> None:
    """In a process in which hf_xlmr cannot be imported, all three families, with fairseq's ids."""
    about, expected = {}, {}
    texts = [["The train leaves.", "Дети"], ["火车晚上出发。"]]
    for family, fixture in FAMILIES.items():
        options = replace(FEW, max_steps=2, lora=family != "XLMRoberta")
        report = finetune("xnli", str(FIXTURES / fixture), data["xnli train"], tmp_path / family, options=options)
        xlmr = XLMR.from_pretrained(report.output).eval()
        tokens = [xlmr.encode(*each) for each in texts]
        inputs = tmp_path / f"{family}.npz"
        np.savez(inputs, **{f"ids.{index}": each.numpy() for index, each in enumerate(tokens)})
        about[family] = {
            "folder": str(report.output),
            "class": report.class_name,
            "inputs": str(inputs),
            "texts": texts,
        }
        with torch.no_grad():
            head = "sentence_classification_head"
            expected[family] = [xlmr.predict(head, each).numpy() for each in tokens], [each.numpy() for each in tokens]
    (tmp_path / "about.json").write_text(json.dumps(about), encoding="utf-8")
    program = f"import runpy; runpy.run_path({str(TESTS / 'plain_transformers.py')!r}, run_name='__main__')"
    run([sys.executable, "-c", program, tmp_path / "about.json", tmp_path / "out"], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    for family, (predictions, ids) in expected.items():
        assert json.loads(str(found[f"{family}/loading"])) == []
        for index, prediction in enumerate(predictions):
            logits = torch.from_numpy(found[f"{family}/output.{index}"]).log_softmax(-1).numpy()
            np.testing.assert_allclose(logits, prediction, rtol=0, atol=TOLERANCE)
            assert found[f"{family}/ids.{index}"].tolist() == ids[index].tolist()


@pytest.mark.parametrize("bf16", [False, True])
def test_what_was_trained_is_freed_before_it_is_scored(
    bf16: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a GPU holds the model twice: in bfloat16 accelerate lets a network refer to itself."""
    alive: list[str] = []

    def large() -> list[Any]:
        kinds = (torch.optim.Optimizer, transformers.Trainer, transformers.PreTrainedModel)
        return [each for each in gc.get_objects() if issubclass(type(each), kinds)]

    def noted(*arguments: Any, **options: Any) -> Any:
        alive.extend(type(each).__name__ for each in large() if not any(each is other for other in of_others))
        return evaluate_data(*arguments, **options)

    monkeypatch.setattr("hf_xlmr.tasks.training.evaluate_data", noted)
    options = replace(FEW, bf16=bf16, cpu=True)
    gc.collect()
    gc.disable()
    of_others = large()
    try:
        report = finetune(
            "xnli", "demo", data["xnli train"], tmp_path / "out", evaluation=data["xnli test"], options=options
        )
    finally:
        gc.enable()
    assert report.results is not None and alive == []


def test_scoring_in_bfloat16_keeps_no_second_copy_of_the_weights(trained: Trained, data: Data) -> None:
    """Autocast keeps a copy of each weight that has a gradient, until the forward pass ends."""
    kept: Counter[bool] = Counter()

    def note(module: torch.nn.Module, *_: Any) -> None:
        kept.update(weight.requires_grad for weight in module.parameters(recurse=False))

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        evaluate("xnli", str(trained["xnli"].output), data["xnli test"], options=EvaluationOptions(bf16=True, cpu=True))
    finally:
        handle.remove()
    assert kept.keys() == {False}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bfloat16_without_a_gpu_is_told_before_anything_is_read(tmp_path: Path) -> None:
    sentence = "this machine has no GPU that computes in bfloat16; leave it out, or give cpu=True as well"
    training = replace(FEW, bf16=True)
    assert sentence in told(finetune, "xnli", "nowhere", ["none.tsv"], tmp_path / "out", options=training)
    assert sentence in told(evaluate, "xnli", "nowhere", ["none.tsv"], options=EvaluationOptions(bf16=True))


@pytest.mark.parametrize("lora", [False, True])
def test_large_models_are_written_in_several_files(
    lora: bool, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XXL has 43 GB in float32, of which Transformers makes one file, and which doctor finds too large."""
    options = replace(FEW, max_steps=2, lora=lora)
    whole = finetune("xnli", "demo", data["xnli train"], tmp_path / "whole", options=options).output
    monkeypatch.setattr("hf_xlmr.tasks.training.SHARD_SIZE", "700KB")
    report = finetune(
        "xnli", "demo", data["xnli train"], tmp_path / "out", evaluation=data["xnli test"], options=options
    )
    index = json.loads((report.output / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in report.output.glob("*.safetensors"))
    assert len(shards) > 1 and set(index["weight_map"].values()) == set(shards)
    found = {name: weight for shard in shards for name, weight in load_file(report.output / shard).items()}
    expected = load_file(whole / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert report.results is not None
    assert [path.name for path in report.output.glob("*.bin")] == []


def test_frozen_embeddings_stay_as_they_are(data: Data, tmp_path: Path) -> None:
    before = weights(find_model("demo").folder)
    options = replace(FEW, freeze_embeddings=True, max_steps=2)
    report = finetune("xnli", "demo", data["xnli train"], tmp_path / "out", options=options)
    after = weights(report.output)
    frozen = [name for name in after if ".embeddings." in name]
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    layer = "roberta.encoder.layer.0.output.dense.weight"
    assert not torch.equal(after[layer], before[layer])
    assert report.parameters - report.trainable == sum(before[name].numel() for name in frozen)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_lora", [False, True])
def test_activation_checkpointing_changes_nothing(family: str, is_lora: bool, data: Data, tmp_path: Path) -> None:
    options = replace(FEW, max_steps=3, lora=is_lora)
    model = str(FIXTURES / FAMILIES[family])
    found = [
        weights(
            finetune(
                "xnli",
                model,
                data["xnli train"],
                tmp_path / f"{is_saving}",
                options=replace(options, activation_checkpointing=is_saving),
            ).output
        )
        for is_saving in (False, True)
    ]
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=0, atol=TOLERANCE)


def test_a_cpu_without_instructions_for_bfloat16_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    devices._warn_once.cache_clear()
    for bf16 in (False, True, True):  # a training, and its scoring
        devices.check_bfloat16(bf16=bf16, cpu=True)
    assert ["has no instructions for bfloat16" in record.getMessage() for record in caplog.records] == [True]


def test_bfloat16_learns_too(data: Data, tmp_path: Path) -> None:
    report = finetune("xnli", "demo", data["xnli train"], tmp_path / "out", options=replace(QUICK, bf16=True, cpu=True))
    losses = list(report.losses.values())
    assert losses[-1] < losses[0] / 4
    assert all(weight.dtype == torch.float32 for weight in weights(report.output).values())
    assert report.settings["trained_in"] == "bfloat16"


# ---- breaks


class Break(Exception):
    """What ends a run."""


class BreaksAt:
    """A Progress that ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    @contextmanager
    def task(self, label: str, **_: Any) -> Iterator[BreaksAt]:
        self.label = label
        yield self

    def advance(self, amount: int, *, note: str = "") -> None:
        if self.label != "training":
            return
        self.left -= amount
        if self.left <= 0:
            raise Break


@pytest.mark.parametrize("changes", [{}, {"lora": True}, {"accumulate": 2, "epochs": 1.5, "max_steps": None}])
def test_a_run_that_was_broken_ends_with_the_same_weights(changes: dict[str, Any], data: Data, tmp_path: Path) -> None:
    options = replace(FEW, **changes)
    whole = finetune("xnli", "demo", data["xnli train"], tmp_path / "whole", options=options)
    for step in (5, 3):  # the second break comes at step 6, before another checkpoint was written
        with pytest.raises(Break):
            finetune(
                "xnli",
                "demo",
                data["xnli train"],
                tmp_path / "broken",
                options=options,
                resume=step == 3,
                progress=BreaksAt(5 if step == 5 else 6),
            )
        assert not (tmp_path / "broken" / "config.json").exists()
        assert (tmp_path / "broken" / "checkpoints" / "checkpoint-3").is_dir()
    resumed = finetune("xnli", "demo", data["xnli train"], tmp_path / "broken", options=options, resume=True)
    assert resumed.steps == whole.steps and resumed.losses.keys() == whole.losses.keys()
    first, second = weights(whole.output), weights(resumed.output)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "broken" / "checkpoints").exists()


def test_a_seed_gives_the_same_weights_and_another_others(data: Data, tmp_path: Path) -> None:
    options = replace(FEW, max_steps=2)
    runs = [
        weights(
            finetune("xnli", "demo", data["xnli train"], tmp_path / name, options=replace(options, seed=seed)).output
        )
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["classifier.dense.weight"], runs[2]["classifier.dense.weight"])


def test_a_finished_folder_is_refused_scored_or_replaced(data: Data, tmp_path: Path) -> None:
    out, options = tmp_path / "out", replace(FEW, max_steps=2)
    first = finetune("xnli", "demo", data["xnli train"], out, options=options)
    assert "holds a finished model" in told(finetune, "xnli", "demo", data["xnli train"], out, options=options)
    before = weights(out)
    again = finetune(
        "xnli", "demo", data["xnli train"], out, evaluation=data["xnli test"], options=options, resume=True
    )
    assert again.results is not None and replace(again, results=None) == first
    assert (out / "results.json").is_file() and all(torch.equal(weights(out)[name], before[name]) for name in before)
    finetune("xnli", "demo", data["xnli train"], out, options=replace(options, seed=2), overwrite=True)
    assert not torch.equal(weights(out)["classifier.dense.weight"], before["classifier.dense.weight"])
    assert not (out / "results.json").exists(), "those were of the weights before"


def test_a_finished_folder_is_not_taken_for_another_training(data: Data, tmp_path: Path) -> None:
    out, options = tmp_path / "out", replace(FEW, max_steps=1)
    finetune("xnli", "demo", data["xnli train"], out, options=options)
    other = str(FIXTURES / FAMILIES["XLMRoberta"])
    for task, model, train, changes, expected in (
        ("ner", "demo", data["ner train"], {}, "task xnli, now ner"),
        ("xnli", other, data["xnli train"], {}, "the model differ"),
        ("xnli", "demo", [write_xnli(tmp_path / "other.tsv", 30)], {}, "the data differ"),
        ("xnli", "demo", data["xnli train"], {"max_steps": 2}, "max steps 1, now 2"),
    ):
        message = told(finetune, task, model, train, out, options=replace(options, **changes), resume=True)
        assert "was begun with other settings" in message and expected in message
    (out / "finetuning.json").write_text("{")
    with pytest.raises(IntegrityError, match="is damaged"):
        finetune("xnli", "demo", data["xnli train"], out, options=options, resume=True)


def test_a_kill_while_checkpoints_are_removed_leaves_a_finished_model(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", replace(FEW, max_steps=1)
    remove = shutil.rmtree

    def killed(path: Path, **arguments: Any) -> None:
        if Path(path).name == "checkpoints" and (out / "config.json").is_file():
            raise Break
        remove(path, **arguments)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Break):
        finetune("xnli", "demo", data["xnli train"], out, options=options)
    monkeypatch.undo()
    assert "holds a finished model" in told(finetune, "xnli", "demo", data["xnli train"], out, options=options)


def test_what_was_begun_is_refused_or_gone_on_with_as_it_was(data: Data, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Break):
        finetune("xnli", "demo", data["xnli train"], out, options=FEW, progress=BreaksAt(4))
    assert "not finished" in told(finetune, "xnli", "demo", data["xnli train"], out, options=FEW)
    other = told(finetune, "xnli", "demo", data["xnli train"], out, options=replace(FEW, seed=7), resume=True)
    assert "was begun with other settings (seed 1, now 7)" in other
    changed = [write_xnli(tmp_path / "other.tsv", 30)]
    assert "(the data differ)" in told(finetune, "xnli", "demo", changed, out, options=FEW, resume=True)
    (out / "checkpoints" / "run.json").write_text("{")
    with pytest.raises(IntegrityError, match="is damaged"):
        finetune("xnli", "demo", data["xnli train"], out, options=FEW, resume=True)


@pytest.mark.parametrize("names", [(), ("run.json.part",)])
@pytest.mark.parametrize("asked", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_whose_training_was_killed_at_its_very_start_is_taken(
    names: tuple[str, ...], asked: dict[str, bool], tmp_path: Path
) -> None:
    folder, flags = FinetunedFolder(tmp_path, Processes.current()), {"resume": False, "overwrite": False, **asked}
    folder.checkpoints.mkdir()
    for name in names:
        (folder.checkpoints / name).write_text("{")
    folder.check(**flags)
    folder.begin({"task": "xnli"}, usual={}, resume=flags["resume"])
    assert folder.is_begun and folder.last_checkpoint() is None
    assert [path.name for path in folder.checkpoints.iterdir()] == ["run.json"]


def test_checkpoints_of_others_are_left_alone(tmp_path: Path) -> None:
    folder = FinetunedFolder(tmp_path, Processes.current())
    folder.checkpoints.mkdir()
    (folder.checkpoints / "thesis.txt").write_text("mine")
    assert "holds other files" in told(folder.check, resume=False, overwrite=True)


def test_folders_of_others_are_left_alone(data: Data, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        assert "holds other files" in told(finetune, "xnli", "demo", data["xnli train"], tmp_path, **options)
    assert "is not a folder" in told(finetune, "xnli", "demo", data["xnli train"], tmp_path / "thesis.txt")
    assert "give one of them" in told(
        finetune, "xnli", "demo", data["xnli train"], tmp_path / "new", resume=True, overwrite=True
    )


# ---- several processes


def test_a_process_uses_one_gpu_of_several(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer would give each GPU that it sees a whole batch, so that an update had several."""
    set_up = transformers.TrainingArguments.__post_init__
    seen = []

    def sees_four(arguments: Any) -> None:
        set_up(arguments)
        arguments._n_gpu = 4
        seen.append(arguments)

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", sees_four)
    options = replace(FEW, max_steps=1)
    finetune("xnli", "demo", data["xnli train"], tmp_path / "out", evaluation=data["xnli test"], options=options)
    assert len(seen) == 2 and [each.n_gpu for each in seen] == [1, 1]
    assert seen[0].train_batch_size == options.batch_size


@pytest.fixture(scope="module")
def plain(data: Data, tmp_path_factory: pytest.TempPathFactory) -> FinetuningReport:
    """A model of XL's kind without dropout, so that nothing but the examples tells one training from another."""
    folder = tmp_path_factory.mktemp("plain")
    convert(FIXTURES / FAMILIES["XLMRobertaXL"], folder / "model", verify=False)
    config = json.loads((folder / "model" / "config.json").read_text())
    config.update({name: 0.0 for name in config if name.endswith(("dropout", "dropout_prob"))})
    (folder / "model" / "config.json").write_text(json.dumps(config))
    options = replace(FEW, freeze_embeddings=False, cpu=True)
    return finetune("xnli", str(folder / "model"), data["xnli train"], folder / "out", options=options)


def check_same_training(found: Path, plain: FinetuningReport) -> None:
    """The losses, and what every weight became."""
    losses = json.loads((found / "finetuning.json").read_text())["losses"]
    assert list(losses.values()) == pytest.approx(list(plain.losses.values()), abs=1e-4)
    expected, changed = weights(plain.output), weights(found)
    assert expected.keys() == changed.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(changed[name], weight, rtol=0, atol=1e-4)


def test_a_batch_in_parts_trains_as_the_whole(plain: FinetuningReport, data: Data, tmp_path: Path) -> None:
    options = replace(FEW, freeze_embeddings=False, cpu=True, accumulate=4)
    report = finetune("xnli", plain.model, data["xnli train"], tmp_path / "out", options=options)
    check_same_training(report.output, plain)


def whole(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Each process with all weights."""
    first, second = run_two([PROGRAM, *words, "--cpu"], cwd=folder)
    assert (second.returncode, second.stdout) == (0, ""), second.stderr
    return first


def shared_out(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Each with a part of them, by the configuration for XL."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no", "--config_file"]
    command = [sys.executable, *launcher, str(launch_config("xl")), str(TESTS / "fsdp_on_cpu.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


@pytest.mark.parametrize("launched", [whole, shared_out])
def test_two_processes_train_as_one(
    launched: Callable[[list[str], Path], subprocess.CompletedProcess[str]],
    plain: FinetuningReport,
    data: Data,
    tmp_path: Path,
) -> None:
    words = [
        *("finetune", "xnli", "--model", plain.model, "--output", str(tmp_path / "out")),
        *("--train", data["xnli train"][0], "--eval", data["xnli test"][0], "--max-steps", "8", "--save-steps", "3"),
        *("--batch-size", "16", "--learning-rate", "3e-3", "--warmup", "0.1", "--no-freeze-embeddings", "--json"),
    ]
    done = launched(words, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr  # DDP warns where it looks for what no step leaves unused
    check_same_training(tmp_path / "out", plain)
    scores = evaluate("xnli", str(tmp_path / "out"), data["xnli test"]).scores
    assert json.loads(done.stdout)["results"]["scores"] == scores
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_processes_that_cannot_meet_are_told() -> None:
    """Each would train alone, into the same folder."""
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert "2 processes were started, and none of them has a GPU: pass cpu=True" in told(
        DeviceProcesses.current, environment
    )


@pytest.mark.parametrize("name", LAUNCH_CONFIGS)
def test_the_configurations_for_many_gpus_are_those_of_accelerate(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin

    config = load_config_from_file(str(launch_config(name)))
    assert (config.distributed_type.value, config.mixed_precision, config.use_cpu) == ("FSDP", "bf16", False)
    assert config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False, "the others would have no weights to train"
    wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    network = transformers.XLMRobertaXLForSequenceClassification(
        transformers.XLMRobertaXLConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        )
    )
    assert sum(type(module).__name__ == wrapped for module in network.modules()) == 2
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config.fsdp_config["fsdp_version"],
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[wrapped],
        state_dict_type=config.fsdp_config["fsdp_state_dict_type"],
        reshard_after_forward=config.fsdp_config["fsdp_reshard_after_forward"],
    )
    plugin.set_auto_wrap_policy(network)
    assert plugin.auto_wrap_policy is not None
    assert config.fsdp_config.keys() <= vars(launch_command_parser().parse_args(["script"])).keys()


def test_only_known_configurations_are_told(tmp_path: Path) -> None:
    assert "there are xl, xxl" in told(launch_config, "large")


# ---- refusals


def test_what_cannot_be_meant_is_one_sentence(data: Data, tmp_path: Path) -> None:
    train, out = data["xnli train"], tmp_path / "out"
    german = [write_xnli(tmp_path / "german.tsv", 3, ("de",))]
    message = told(finetune, "xnli", "demo", german, out)
    assert "holds no examples of 'en'; it has de" in message and "translate-train-all" in message
    empty = tmp_path / "empty.tsv"
    empty.write_text("")
    assert "holds no examples" in told(finetune, "xnli", "demo", [str(empty)], out)
    assert "max_length=700" in told(finetune, "xnli", "demo", train, out, options=replace(FEW, max_length=700))
    assert "task 'pos' is unknown" in told(finetune, "pos", "demo", train, out)
    assert "shared by 1 processes in 3 parts" in told(
        finetune, "xnli", "demo", train, out, options=replace(FEW, accumulate=3)
    )
    assert "stride=500" in told(finetune, "mlqa", "demo", data["mlqa train"], out, options=replace(FEW, stride=500))
    assert "is a classifier of" in told(finetune, "xnli", _classifier(tmp_path, ["yes", "no"]), train, out)
    for options, expected in (
        ({"mode": "few-shot"}, "mode=few-shot"),
        ({"epochs": 0.0}, "epochs=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"warmup": -0.5}, "warmup=-0.5"),
        ({"misaligned": "keep"}, "misaligned='keep'"),
        ({"epochs": float("inf")}, "epochs=inf"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"warmup": float("inf")}, "warmup=inf"),
        ({"epochs": 2.0, "max_steps": 9}, "epochs=2 and max_steps=9 both say how long"),
        ({"lora_rank": 4}, "lora_rank=4 is the rank of adapters"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
    ):
        assert expected in told(FinetuningOptions, **options)


@pytest.mark.parametrize("max_steps", [1, 4])
def test_a_training_that_diverges_is_told_and_leaves_no_model(max_steps: int, data: Data, tmp_path: Path) -> None:
    """By its losses, or, where the last update breaks it, by its weights."""
    options = replace(FEW, max_steps=max_steps, learning_rate=float(np.finfo(np.float32).max), warmup=0.0)
    message = told(finetune, "xnli", "demo", data["xnli train"], tmp_path / "out", options=options)
    assert "the training diverged" in message and "lower the learning rate with learning_rate=" in message
    assert f"stay in {tmp_path}/out/checkpoints/ until another training replaces them (overwrite=True)" in message
    again = told(finetune, "xnli", "demo", data["xnli train"], tmp_path / "out", options=FEW)
    assert "holds a training that is not finished (checkpoints/)" in again
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("task", "training", "scoring", "sentence"),
    [
        ("xnli", {"stride": 64}, {}, "stride= is an option of mlqa and means nothing in xnli"),
        ("ner", {}, {"null_threshold": 0.0}, "null_threshold= is an option of mlqa and means nothing in ner"),
        ("ner", {"unlabelled": "refuse"}, {}, "unlabelled= is an option of xnli and means nothing in ner"),
        ("mlqa", {"labels": ("O",)}, {}, "labels= is an option of xnli and ner and means nothing in mlqa"),
        (
            "xnli",
            {"labels": ("O",)},
            {},
            "the labels of XNLI are entailment, neutral, contradiction, in some order, not O",
        ),
        ("xnli", {"misaligned": "skip"}, {}, "misaligned= is an option of mlqa and means nothing in xnli"),
        (
            "xnli",
            {},
            {"split": "dev", "languages": ("de",)},
            "evaluation_options.split= and evaluation_options.languages=: this is about scores",
        ),
        ("mlqa", {}, {"null_threshold": 0.0}, "evaluation_options.null_threshold=: this is about scores"),
    ],
)
def test_no_option_is_dropped_without_a_word(
    task: str, training: dict[str, Any], scoring: dict[str, Any], sentence: str, data: Data, tmp_path: Path
) -> None:
    options = {"options": replace(FEW, **training), "evaluation_options": EvaluationOptions(**scoring)}
    assert sentence in told(finetune, task, "demo", data[f"{task} train"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    if "about scores" not in sentence:
        asked = EvaluationOptions(**training, **scoring)
        assert sentence in told(evaluate, task, "demo", data[f"{task} test"], options=asked)


def _classifier(folder: Path, labels: list[str]) -> str:
    """A folder with a classifier of other classes."""
    files = find_model("demo")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        files.folder, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
    )
    network.save_pretrained(folder / "classifier")
    (folder / "classifier" / "sentencepiece.bpe.model").write_bytes(
        (files.folder / "sentencepiece.bpe.model").read_bytes()
    )
    return str(folder / "classifier")


def test_scores_that_cannot_be_had_are_told_before_training(data: Data, tmp_path: Path) -> None:
    questions = [write_questions(tmp_path / "russian.json", 3, "ru")]
    arguments = ("mlqa", "demo", data["mlqa train"], tmp_path / "out")
    assert "does not say its languages" in told(finetune, *arguments, evaluation=questions)
    message = told(finetune, *arguments, evaluation=[f"ru={questions[0]}"])
    assert "MLQA has no rules for answers in 'ru'" in message
    (tmp_path / "rivers.txt").write_text("de:Elbe\tB-RIVER\n")
    rivers = [str(tmp_path / "rivers.txt")]
    message = told(finetune, "ner", "demo", data["ner train"], tmp_path / "out", evaluation=rivers, options=FEW)
    assert "rivers.txt, line 1: the label 'B-RIVER' is unknown to the model; it has O, B-LOC" in message
    assert not (tmp_path / "out").exists()


def test_misaligned_answers_are_refused_or_left_out_and_told(data: Data, tmp_path: Path) -> None:
    document = json.loads(Path(data["mlqa train"][0]).read_text(encoding="utf-8"))
    for paragraph in document["data"][0]["paragraphs"][:2]:
        paragraph["qas"][0]["answers"][0]["answer_start"] += 1
    path = tmp_path / "train-v1.1.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    message = told(finetune, "mlqa", "demo", [str(path)], tmp_path / "out", options=FEW)
    assert "2 questions have answers" in message and "'q0', 'q1'" in message and "misaligned='skip'" in message
    options = replace(FEW, misaligned="skip", max_steps=1)
    report = finetune("mlqa", "demo", [str(path)], tmp_path / "out", options=options)
    assert (dict(report.trained_on), dict(report.skipped)) == ({"en": 58}, {"en": 2})
    assert report.misaligned == {"en": ("q0", "q1")}


@pytest.mark.parametrize(("package", "task", "options"), [("peft", "xnli", {"lora": True}), ("seqeval", "ner", {})])
def test_without_the_extra_its_name_is_told(
    package: str, task: str, options: dict[str, Any], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = told(
        finetune,
        task,
        "demo",
        data[f"{task} train"],
        tmp_path / "out",
        evaluation=data[f"{task} test"],
        options=replace(FEW, **options),
    )
    assert f"{package}: pip install 'hf-xlmr[train]'" in message
    assert not (tmp_path / "out").exists()


def test_weights_that_are_missing_are_not_drawn_at_random(data: Data, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    convert("demo", folder, verify=False)
    held = weights(folder)
    del held["roberta.encoder.layer.1.output.dense.bias"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"missing: roberta\.encoder\.layer\.1\.output\.dense\.bias"):
        finetune("xnli", str(folder), data["xnli train"], tmp_path / "out", options=FEW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tsv", DataSource("a.tsv")),
        ("de=a.tsv", DataSource("a.tsv", "de")),
        ("ZH=a.tsv", DataSource("a.tsv", "zh")),
        ("en-de=a.json", DataSource("a.json", "en-de")),
        ("facebook/xnli@all_languages", DataSource("facebook/xnli", None, "all_languages")),
        ("sw=facebook/xnli@sw", DataSource("facebook/xnli", "sw", "sw")),
        ("german=a.tsv", DataSource("german=a.tsv")),
        ("me@home.tsv", DataSource("me@home.tsv")),
    ],
)
def test_what_a_user_writes_as_data(
    text: str, expected: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert DataSource.parse(text, demo="the demo") == expected
    (tmp_path / text).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / text).write_text("")
    assert DataSource.parse(text, demo="the demo") == DataSource(text), "a file of that very name"


@pytest.mark.parametrize(
    ("steps", "warmup", "sentence"),
    [
        (2, 2.0, "warmup=2 is 2 of the training's 2 steps"),
        (2, 1.0, ""),
        (2, 0.5, ""),
        (2, 0.51, "warmup=0.51 is 2 of the training's 2 steps"),
        (1, None, "warmup=0.06 is 1 of the training's 1 steps"),
    ],
)
def test_a_warmup_as_long_as_the_training_is_told(
    steps: int, warmup: float | None, sentence: str, data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trainer rounds a share of the steps up: in a single one the learning rate is 0."""
    options = replace(FEW, max_steps=steps, warmup=warmup)
    finetune("xnli", "demo", data["xnli train"], tmp_path / "out", options=options)
    assert ("warmup=" in caplog.text) == bool(sentence) and sentence in caplog.text


def test_a_model_is_scored_with_the_lengths_of_its_training(data: Data, tmp_path: Path) -> None:
    options = replace(FEW, max_length=16, stride=3, max_steps=2)
    report = finetune(
        "mlqa", "demo", data["mlqa train"], tmp_path / "out", evaluation=data["mlqa test"], options=options
    )
    asked = ("mlqa", str(tmp_path / "out"), data["mlqa test"])
    results = evaluate(*asked)
    assert report.results is not None and results.scores == report.results.scores
    for given, lengths in (
        ({}, (16, 3)),
        ({"stride": 2}, (16, 2)),
        ({"max_length": 20}, (20, 4)),
        ({"max_length": 20, "stride": 1}, (20, 1)),
    ):
        settings = evaluate(*asked, options=EvaluationOptions(**given, languages=("en",))).settings  # type: ignore[arg-type]
        assert (settings["max_length"], settings["stride"]) == lengths, given
    told_there = json.loads((tmp_path / "out" / "finetuning.json").read_text())
    told_there["settings"]["max_length"] = "16"
    (tmp_path / "out" / "finetuning.json").write_text(json.dumps(told_there))
    with pytest.raises(IntegrityError, match=r"finetuning\.json is damaged: max_length is '16'"):
        evaluate(*asked)


def test_tags_that_are_numbers_mean_what_labels_says(tmp_path: Path) -> None:
    """They are those of the new head too, in their order, and those that no training example has."""
    rows = [{"tokens": ["e", "Anna", "plays"], "ner_tags": [0, 2, 0]}, {"tokens": ["a", "garden"], "ner_tags": [0, 0]}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data, labels = [f"en={tmp_path}/x.jsonl"], ("O", "I-PER", "B-PER")
    assert "give the labels in their order with labels=" in told(finetune, "ner", "demo", data, tmp_path / "out")
    scoring = EvaluationOptions(labels=labels)
    asked = {"evaluation": data, "evaluation_options": scoring, "options": replace(FEW, labels=labels, max_steps=2)}
    report = finetune("ner", "demo", data, tmp_path / "out", **asked)  # type: ignore[arg-type]
    assert ModelFiles(tmp_path / "out").config["id2label"] == {"0": "O", "1": "I-PER", "2": "B-PER"}
    assert evaluate("ner", str(tmp_path / "out"), data, options=scoring).scores == report.results.scores  # type: ignore[union-attr]
    finetune("ner", "demo", data, tmp_path / "out", **asked, resume=True)  # type: ignore[arg-type]


# ---- the program


def test_the_program_trains_tells_and_exits_with_2(data: Data, tmp_path: Path) -> None:
    arguments = ["finetune", "xnli", "--model", "demo", "--train", data["xnli train"][0], "--output", "out"]
    steps = ["--max-steps", "2", "--batch-size", "8", "--languages", "en,zh", "--eval", data["xnli test"][0]]
    done = run([PROGRAM, *arguments, *steps], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "XNLI, accuracy in percent" in done.stdout and "96" in done.stdout
    again = in_process.run(*arguments, *steps, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "") and again.stderr.count("\n") == 1
    assert set(ModelFiles(tmp_path / "out").config["id2label"].values()) == {"entailment", "neutral", "contradiction"}


# ---- a disk that is full, and files of others ------------------------------------------------------------------------

WRITES = """
import os, resource, sys
from pathlib import Path
from hf_xlmr.errors import InputError
from hf_xlmr.tasks.training import FinetuningOptions, finetune

def modes(folder):
    return sorted({path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()})

model, out = sys.argv[1], Path(sys.argv[2])
options = FinetuningOptions(max_steps=2, batch_size=8, warmup=0, max_length=32, cpu=True, save_steps=1)
for limit in (10, 20, 900, 30_000, 42_000):  # bytes of a file: rows, the note, a text, the weights, the optimizer
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        finetune("xnli", model, ["demo"], out, options=options, resume=limit > 20)
    except InputError as error:
        print(f"{limit} {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if limit == 10:
        finetune("xnli", model, ["demo"], f"{out}.other", options=options)  # leaves its rows in the cache
finetune("xnli", model, ["demo"], out, options=options, resume=True)
print(modes(out))
os.umask(0o077)
finetune("xnli", model, ["demo"], out, options=options, overwrite=True)
print(modes(out))
"""


def test_a_disk_that_is_full_is_told_and_files_are_for_whom_the_user_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache = str(tmp_path / "cache")  # in which nothing is encoded yet
    command = [sys.executable, "-c", f"import os; os.umask(0o022)\n{WRITES}", FIXTURES / "earlier" / "masked-lm", out]
    done = run(command, env={**os.environ, "HF_XLMR_CACHE": cache})
    assert done.returncode == 0, done.stderr
    *told_of, shared, private = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in told_of] == ["10", "20", "900", "30000", "42000"]
    sentence = f"the cache {cache}, where encoded training data are kept, cannot be written to (File too large)"
    assert sentence in told_of[0] and "set HF_XLMR_CACHE to a folder on another disk" in told_of[0]
    assert all(str(out) in line for line in told_of[1:]) and "make room on the disk" in told_of[-1]
    assert (shared, private) == (str([0o644]), str([0o600]))
