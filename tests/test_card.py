"""A model card says what the conversion found, the Hub's library reads it, and its code runs."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import in_process
import pytest
from factory import Checkpoint
from huggingface_hub import ModelCard
from places import FIXTURES
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from warm_processes import run

from hf_xlmr.conversion import convert, open_checkpoint
from hf_xlmr.conversion.mapping.architecture import Wanted
from hf_xlmr.conversion.mapping.preparation import prepare
from hf_xlmr.conversion.output.card import CardMetadata, card_of
from hf_xlmr.errors import InputError
from hf_xlmr.files.own_names import RELEASE_NAMES
from hf_xlmr.tasks.results import TaskResults
from hf_xlmr.tasks.results_card import put_results_in_card

EXAMPLE = FIXTURES / "demo-card.md"
FIGURE = re.compile(r"\b\d\.\de[+-]\d\d\b")  # of rounding, which is another on another processor


def card_in(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata_of(card: str) -> dict[str, Any]:
    """As the Hub's own library reads them."""
    return dict(ModelCard(card, ignore_metadata_errors=False).data.to_dict())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("card") / "model").output


def test_the_example_is_the_card_of_the_demo(demo: Path) -> None:
    """To renew it: hf-xlmr convert demo DIR, and copy DIR/README.md there."""
    made, kept = card_in(demo), EXAMPLE.read_text(encoding="utf-8")
    assert FIGURE.sub("FIGURE", made) == FIGURE.sub("FIGURE", kept)
    figures = [float(found) for found in FIGURE.findall(made)]
    assert len(figures) == 13 and max(figures) <= 2e-5


def test_its_hashes_are_those_of_the_record(demo: Path) -> None:
    record = json.loads((demo / "fairseq" / "conversion.json").read_text())
    digests = [*record["parity"]["source_sha256"].values(), *record["parity"]["output_sha256"].values()]
    digests += [facts["sha256"] for facts in record["source"]["files"].values() if "sha256" in facts]
    assert len(digests) == 4 and all(digest in card_in(demo) for digest in digests)


CLASSES: dict[str, tuple[str, dict[str, Any], str]] = {
    "masked LM": ("v0122prenorm", {}, "fill-mask"),
    "encoder": ("v0122prelayernorm", {"encoder_only": True}, "feature-extraction"),
    "classifier": ("v0122cls", {}, "text-classification"),
    "multiple choice": ("v0122ranking", {}, "multiple-choice"),
}


RUN_ALL = """
import os
for folder, blocks in {shown!r}.items():
    os.chdir(folder)
    for each in blocks:
        exec(each, {{}})
"""


def blocks_of(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card, flags=re.S | re.M)


def test_every_block_runs_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's in one process for all classes, each block on its own in the folder whose card shows it."""
    shown = {}
    for kind, (source, options, pipeline) in CLASSES.items():
        folder = convert(FIXTURES / source, tmp_path / kind / "model", verify=False, **options).output
        card = card_in(folder)
        assert metadata_of(card)["pipeline_tag"] == pipeline
        assert blocks_of(card, "sh") == ["hf-xlmr export . ../for-fairseq\n"]
        shown[str(folder)] = blocks_of(card, "python")
        assert len(shown[str(folder)]) == 2
    done = run([sys.executable, "-c", RUN_ALL.format(shown=shown)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("torch.Size") == 2 * len(CLASSES) - 2  # a masked LM prints a word, a classifier its labels
    labels = json.loads((tmp_path / "classifier" / "model" / "config.json").read_text())["id2label"].values()
    assert all(f"'{label}': " in done.stdout for label in labels)
    monkeypatch.chdir(tmp_path / "encoder" / "model")
    assert in_process.run("export", ".", "../for-fairseq").returncode == 0
    assert (tmp_path / "encoder" / "for-fairseq" / "model.pt").is_file()


def test_a_classifiers_card_names_each_label_by_its_own_number(tmp_path: Path) -> None:
    """Transformers sorts the numbers of labels as texts: 0, 1, 10, 11, 2."""
    folder = convert(FIXTURES / "v0122cls", tmp_path / "model", verify=False).output
    code = blocks_of(card_in(folder), "python")[0]
    options = {"num_labels": 12, "ignore_mismatched_sizes": True}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    model.save_pretrained(folder)
    done = run([sys.executable, "-c", code], cwd=folder)
    assert done.returncode == 0, done.stderr
    batch = AutoTokenizer.from_pretrained(folder)("The train leaves.", return_tensors="pt")
    right = model(**batch).logits[0].tolist()
    shown = {name: round(value, 4) for name, value in ast.literal_eval(done.stdout).items()}
    assert shown == {model.config.id2label[number]: round(value, 4) for number, value in enumerate(right)}


# ---- metadata --------------------------------------------------------------------------------------------------------


def test_nothing_is_invented_of_a_model_that_nobody_described(demo: Path) -> None:
    assert metadata_of(card_in(demo)) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["xlm-roberta", "fairseq", "hf_xlmr"],
    }


def test_what_the_user_says_is_said(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "m")
    languages = ["--language", "de", "--language", "no", "--language", "de"]
    done = in_process.run("convert", source, tmp_path / "out", "--no-verify", "--license", "apache-2.0", *languages)
    assert done.returncode == 0, done.stderr
    metadata = metadata_of(card_in(tmp_path / "out"))
    assert (metadata["language"], metadata["license"]) == (["de", "no"], "apache-2.0")  # YAML takes a bare no for False


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"languages": ["German"]}, "language has 'German': the Hub accepts codes of ISO 639"),
        ({"languages": ["de\ntags: x"]}, "the Hub accepts codes of ISO 639"),
        ({"languages": ["zh-Hans"]}, "language has 'zh-Hans': .* without script or country"),
        ({"languages": [""]}, "language has ''"),
        ({"licence": "MIT License"}, "license has 'MIT License', which is not in the Hub's list"),
        ({"licence": "banana"}, "license has 'banana', which is not in the Hub's list"),
        ({"licence": "other"}, "the licence other needs a name"),
    ],
)
def test_what_the_hub_would_not_take_is_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        convert("demo", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


TWINS = {
    "xlmr.base": "FacebookAI/xlm-roberta-base",
    "xlmr.large": "FacebookAI/xlm-roberta-large",
    "xlmr.xl": "facebook/xlm-roberta-xl",
    "xlmr.xxl": "facebook/xlm-roberta-xxl",
    "xmod.base": "facebook/xmod-base",
    "xmod.large.prenorm": "facebook/xmod-large-prenorm",
    **{
        f"xmod.base.{languages}.{steps}k": f"facebook/xmod-base-{languages}-{steps}k"
        for languages, steps in ((13, 125), (30, 125), (30, 195), (60, 125), (60, 265), (75, 125), (75, 269))
    },
}


def card_from(folder: Path, told: CardMetadata, **source: str) -> str:
    """The card of `folder`, which came from the demo, as if it had come from another source."""
    record = json.loads((folder / "fairseq" / "conversion.json").read_text())
    record["source"] |= source
    with open_checkpoint("demo") as checkpoint:
        prepared = prepare(checkpoint, Wanted())
    return card_of(record, prepared.config, vocabulary=prepared.vocabulary, stated=told)


@pytest.mark.parametrize("name", RELEASE_NAMES)
def test_releases_are_known(name: str, demo: Path) -> None:
    metadata = metadata_of(card_from(demo, CardMetadata(), kind="release", name=name))
    assert metadata["license"] == "mit" and metadata.get("base_model") == TWINS.get(name)
    languages = metadata["language"]
    assert languages[0] == "multilingual" and {"no", "sw", "zh"} < set(languages)
    assert len(languages) == len(set(languages)) == 94 and languages[1:] == sorted(languages[1:])
    said = metadata_of(card_from(demo, CardMetadata(("de",), "gpl-3.0"), kind="release", name=name))
    assert (said["language"], said["license"]) == (["de"], "gpl-3.0")


def test_a_folder_that_is_called_like_a_release_is_none(demo: Path) -> None:
    metadata = metadata_of(card_from(demo, CardMetadata(), kind="folder", name="xlmr.base"))
    assert not {"license", "language", "base_model"} & metadata.keys()


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_the_dictionarys_story(tmp_path: Path) -> None:
    folder = convert(FIXTURES / "v0122", tmp_path / "out", verify=False).output
    record = json.loads((folder / "fairseq" / "conversion.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    symbols = [line.split()[0] for line in (folder / "fairseq" / "dict.txt").read_text(encoding="utf-8").splitlines()]
    fillers = sum(symbol.startswith("madeupword") for symbol in symbols)
    appended = config["vocab_size"] - record["embedding_rows"]
    card = card_in(folder)
    assert fillers and appended > 0
    assert "They are not in the order of the SentencePiece model" in card
    assert f"- `<mask>` has the id {record['embedding_rows'] - 1}." in card
    assert fillers == 1 and "- 1 filler word (" in card
    assert (
        f"- The dictionary lacks {appended} pieces of the SentencePiece model. Their rows, after fairseq's "
        f"{record['embedding_rows']:,} rows, copy" in card
    )


HEADS = {
    "v0122cls": "`xnli_head`, and its labels are, in order, `contradiction`, `entailment`, `neutral`.",
    "v0122ranking": "`sentence_classification_head` and gives each choice a number.",
    "v0122regression": "`sentence_classification_head` and gives one number.",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_told_with_what_it_gives(name: str, tmp_path: Path) -> None:
    card = card_in(convert(FIXTURES / name, tmp_path / "out", verify=False).output)
    assert f"\nIts head is called {HEADS[name]}\n" in card


@pytest.fixture(scope="module")
def without_pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of a checkpoint without a SentencePiece model."""
    folder = tmp_path_factory.mktemp("pieces")
    return card_in(convert(Checkpoint().write(folder / "m"), folder / "out").output)


def test_what_was_made_and_kept_is_told(demo: Path, without_pieces: str) -> None:
    assert "- `roberta.embeddings.token_type_embeddings.weight`, zeros: fairseq has no token types" in card_in(demo)
    assert "`fairseq/` holds the dictionary, the SentencePiece model and the options" in card_in(demo)
    assert "`fairseq/` holds the dictionary and the options" in without_pieces


def test_a_conversion_that_was_not_verified_says_so(tmp_path: Path) -> None:
    card = card_in(convert("demo", tmp_path / "out", verify=False).output)
    assert "The conversion was not verified" in card and "| `model.pt` | 2,422,999 | not taken |" in card


def test_a_cast_is_told(tmp_path: Path) -> None:
    card = card_in(convert(FIXTURES / "v0122prenorm", tmp_path / "out", dtype="float16").output)
    assert "equal the source's, cast to float16, bit for bit" in card


def test_without_a_sentencepiece_model_there_are_no_texts(without_pieces: str) -> None:
    assert "AutoTokenizer" not in without_pieces and ".encode(" not in without_pieces
    assert "## Tokenizer\n\nNone was written." in without_pieces


def test_the_same_input_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    assert card_in(convert("demo", tmp_path / "again").output) == card_in(demo)


def test_a_name_cannot_become_markup(demo: Path) -> None:
    hostile = "a`b\n---\n| <script>"
    card = card_from(demo, CardMetadata(), name=hostile)
    as_code = "``a`b\\n---\\n| <script>``"
    assert as_code in card and "<script>" not in card.replace(as_code, "")
    assert metadata_of(card) == metadata_of(card_in(demo))
    assert "# a\\`b\\\\n---\\\\n\\| \\<script\\>, converted from fairseq\n" in card


def test_results_go_into_it(demo: Path, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(card_in(demo), encoding="utf-8")
    scores = {"en": {"accuracy": 50.0}, "de": {"accuracy": 40.0}}
    counts = {"en": 2, "de": 5}
    results = TaskResults(task="xnli", model="demo", metrics=("accuracy",), scores=scores, counts=counts)
    put_results_in_card(path, results)
    data = ModelCard.load(path).data
    assert [each.metric_value for each in data.eval_results or ()] == [45.0, 50.0, 40.0]
    assert data.pipeline_tag == "fill-mask" and "## Natural language inference" in path.read_text(encoding="utf-8")
