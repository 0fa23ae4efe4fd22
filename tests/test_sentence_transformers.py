"""What sentence-transformers loads gives the vectors of our extractor, and nothing else becomes such a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import in_process
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from places import FIXTURES
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from hf_xlmr import XLMR, FeatureExtractor
from hf_xlmr.cards.card_check import check_card
from hf_xlmr.conversion import convert, to_sentence_transformers
from hf_xlmr.conversion.sentence_transformers_folder import POOLS
from hf_xlmr.errors import HfXlmrError, InputError
from hf_xlmr.model.opened_folder import OpenedFolder

TOLERANCE = 1e-5  # float32
SOURCES = {
    "XLMRoberta": "demo",
    "XLMRobertaXL": FIXTURES / "v0122prenorm",
    "RobertaPreLayerNorm": FIXTURES / "v0122prelayernorm",
}
TEXTS = [
    "Hello world!",
    "",
    "Cafe\u0301 et nai\u0308ve, Bru\u0308der",  # decomposed
    "The train leaves in the evening, and nobody knows why. " * 60,  # cut off
    "नमस्ते दुनिया",
    "a  b\tc",
    "你好，世界",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """By family and whether it is the encoder alone."""
    root = tmp_path_factory.mktemp("models")
    made = {(family, only): root / f"{family}-{only}" for family in SOURCES for only in (False, True)}
    for (family, only), path in made.items():
        convert(SOURCES[family], path, encoder_only=only, verify=False)
    return made


@pytest.fixture
def demo(folders: dict[tuple[str, bool], Path], tmp_path: Path) -> Path:
    """The demo in a folder of its own."""
    return Path(shutil.copytree(folders["XLMRoberta", False], tmp_path / "model"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("encoder_only", [False, True])
@pytest.mark.parametrize("family", SOURCES)
def test_the_vectors_are_the_extractors(
    family: str, encoder_only: bool, folders: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    """By every way of pooling, and by no other."""
    source = folders[family, encoder_only]
    xlmr = XLMR.from_pretrained(source).eval()
    ours = {pool: FeatureExtractor(xlmr, pool=pool)(TEXTS) for pool in POOLS}
    for pool in POOLS:
        report = to_sentence_transformers(source, tmp_path / pool, pool=pool)
        assert report.class_name == f"{family}{'Model' if encoder_only else 'ForMaskedLM'}"
        theirs = SentenceTransformer(str(tmp_path / pool), device="cpu")
        assert theirs.max_seq_length == report.max_length == xlmr.max_positions
        vectors = theirs.encode(TEXTS, batch_size=4)  # padded: a text that is cut off beside short ones
        assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), report.width)
        for way in POOLS:
            distance = np.abs(vectors - ours[way]).max()
            assert distance <= TOLERANCE if way == pool else distance > 100 * TOLERANCE, (pool, way)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_stored_in_half_precision_is_computed_in_float32(dtype: str, tmp_path: Path) -> None:
    """As FeatureExtractor does by default."""
    convert("demo", tmp_path / "model", dtype=dtype, verify=False)
    to_sentence_transformers(tmp_path / "model", tmp_path / "st")
    vectors = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(TEXTS)
    ours = FeatureExtractor(XLMR.from_pretrained(tmp_path / "model").eval(), pool="mean")(TEXTS)
    assert vectors.dtype == np.float32 and np.abs(vectors - ours).max() <= TOLERANCE


def test_no_weight_is_random(folders: dict[tuple[str, bool], Path], tmp_path: Path) -> None:
    """A pooler would be, since fairseq has none."""
    to_sentence_transformers(folders["XLMRoberta", True], tmp_path / "st")
    loaded = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    assert not [name for name, _ in loaded.named_parameters() if "pooler" in name]


def test_settings_for_the_onnx_backend_change_no_vector(demo: Path, tmp_path: Path) -> None:
    """It takes no add_pooling_layer; optimum-onnx 0.1 needs an older Transformers, so it is not run here."""
    vectors = []
    for name, options in (("st", {}), ("onnx", {"onnx_backend": True})):
        to_sentence_transformers(demo, tmp_path / name, **options)
        vectors.append(SentenceTransformer(str(tmp_path / name), device="cpu").encode(TEXTS))
    assert np.array_equal(*vectors)
    settings = json.loads((tmp_path / "onnx" / "sentence_bert_config.json").read_text())
    assert settings["model_args"] == {"dtype": "float32"}


def test_the_model_is_there_whole_and_stays_as_it_was(demo: Path, tmp_path: Path) -> None:
    before = files_of(demo)
    report = to_sentence_transformers(demo, tmp_path / "st")
    made = files_of(tmp_path / "st")
    assert files_of(demo) == before
    assert {name for name in before if made.get(name) != before[name]} == {"README.md"}
    old, new = (each["README.md"].decode() for each in (before, made))
    begin, end = new.index("## In sentence-transformers"), new.index("## Use")
    lines = ("library_name: transformers", "library_name: sentence-transformers")
    kept = new[:begin] + new[end:]
    kept = (
        kept.replace(*reversed(lines))
        .replace("sentence-similarity", "fill-mask")
        .replace("- sentence-transformers\n", "")
    )
    assert kept == old and "at most 512 tokens" in new[begin:end] and "the mean of those" in new[begin:end]
    assert report.files == {name: len(content) for name, content in made.items()}
    to_sentence_transformers(demo, tmp_path / "again")
    assert files_of(tmp_path / "again") == made


CARDS = {
    "none": None,
    "no metadata": "# Mine\n\nText",
    "few fields": "---\nlicense: mit\n---\n# Mine\n## Use\nText\n",
    "line ends of Windows": "---\r\nlicense: mit\r\ntags:\r\n  - mine\r\n---\r\n# Mine\r\n",
}


@pytest.mark.parametrize("kind", CARDS)
def test_every_folder_has_a_card_that_push_takes(kind: str, demo: Path, tmp_path: Path) -> None:
    text = CARDS[kind]
    (demo / "README.md").unlink()
    if text is not None:
        (demo / "README.md").write_bytes(text.encode())
    to_sentence_transformers(demo, tmp_path / "st", pool="cls")
    check_card(OpenedFolder(tmp_path / "st"))
    made = (tmp_path / "st" / "README.md").read_bytes().decode()
    told = ModelCard(made).data
    assert (told.library_name, told.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert told.tags is not None and "sentence-transformers" in told.tags
    assert "is that of `<s>`" in made and (text is None or "# Mine" in made)
    assert ("\n" in made.replace("\r\n", "")) != (kind == "line ends of Windows")


def test_shards_are_copied_with_their_index(tmp_path: Path) -> None:
    convert("demo", tmp_path / "model", max_shard_size="500KB", verify=False)
    to_sentence_transformers(tmp_path / "model", tmp_path / "st")
    assert len(list((tmp_path / "st").glob("model-*.safetensors"))) > 1
    ours = FeatureExtractor(XLMR.from_pretrained(tmp_path / "model").eval())(TEXTS)
    vectors = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(TEXTS)
    assert np.abs(vectors - ours).max() <= TOLERANCE


def test_links_become_files(demo: Path, tmp_path: Path) -> None:
    """As in the Hub's cache, whose snapshots are links to blobs."""
    blob = (demo / "model.safetensors").rename(tmp_path / "blob")
    (demo / "model.safetensors").symlink_to(blob)
    to_sentence_transformers(demo, tmp_path / "st")
    copied = tmp_path / "st" / "model.safetensors"
    assert not copied.is_symlink() and copied.read_bytes() == blob.read_bytes()
    assert copied.stat().st_ino != blob.stat().st_ino


# ---- refusals --------------------------------------------------------------------------------------------------------


def edited(demo: Path, **fields: object) -> None:
    path = demo / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def with_weights(demo: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = demo / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without_a_layer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if ".layer.2." not in name}


def of_a_narrower_model(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight[..., :32].contiguous() for name, weight in weights.items()}


def without_tokenizer(demo: Path) -> None:
    (demo / "tokenizer.json").unlink()
    (demo / "sentencepiece.bpe.model").unlink()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a classifier": (
        lambda demo: edited(demo, architectures=["XLMRobertaForSequenceClassification"]),
        "sentence-transformers would drop the head of XLMRobertaForSequenceClassification",
    ),
    "another family": (lambda demo: edited(demo, model_type="bert"), "the model_type is bert"),
    "no tokenizer": (without_tokenizer, "has neither tokenizer.json nor sentencepiece.bpe.model"),
    "no configuration": (lambda demo: (demo / "config.json").unlink(), "is not a Transformers folder"),
    "no weights": (lambda demo: (demo / "model.safetensors").unlink(), "holds no weights"),
    "one already": (lambda demo: (demo / "modules.json").write_text("[]"), "of sentence-transformers already"),
    "truncated weights": (
        lambda demo: (demo / "model.safetensors").write_bytes((demo / "model.safetensors").read_bytes()[:-9]),
        "is truncated",
    ),
    "a layer that is missing": (lambda demo: with_weights(demo, without_a_layer), "encoder.layer.2"),
    "more layers in the configuration": (lambda demo: edited(demo, num_hidden_layers=6), "encoder.layer.4"),
    "fewer layers in the configuration": (lambda demo: edited(demo, num_hidden_layers=3), "encoder.layer.3"),
    "weights of another model": (lambda demo: with_weights(demo, of_a_narrower_model), r"\[2402, 32\], expected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_folders_are_refused(fault: str, demo: Path, tmp_path: Path) -> None:
    damage, sentence = FAULTS[fault]
    damage(demo)
    with pytest.raises(HfXlmrError, match=sentence):
        to_sentence_transformers(demo, tmp_path / "st")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_folders_may_not_lie_in_each_other(demo: Path) -> None:
    for output in (demo, demo / "st", demo.parent):
        with pytest.raises(InputError, match="is inside the other"):
            to_sentence_transformers(demo, output, overwrite=True)
    assert not (demo / "modules.json").exists()


def test_another_way_of_pooling_is_refused(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is none of mean, cls, max"):
        to_sentence_transformers(demo, tmp_path / "st", pool="none")


# ---- the program -----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return in_process.run("to-sentence-transformers", *arguments)


def pooling_of(folder: Path) -> set[str]:
    modes = json.loads((folder / "1_Pooling" / "config.json").read_text())
    return {name for name, value in modes.items() if value is True}


def test_the_program_makes_it_and_replaces_it_when_told(demo: Path, tmp_path: Path) -> None:
    made = tmp_path / "st"
    done = run(demo, made, "--pool", "cls", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["pool"], told["width"], told["max_length"]) == ("cls", 64, 512)
    assert run(demo, made).returncode == 2 and pooling_of(made) == {"pooling_mode_cls_token"}
    done = run(demo, made, "--overwrite")
    assert done.returncode == 0 and "pooled by mean" in " ".join(done.stdout.split())
    assert pooling_of(made) == {"pooling_mode_mean_tokens"}
    assert run(demo, tmp_path / "other", "--pool", "none").returncode == 2
