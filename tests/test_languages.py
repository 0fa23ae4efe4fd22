"""X-MOD at work: fairseq's calls in each language, features without padding, extraction, the pipeline, and tasks."""

from __future__ import annotations

import json
import pickle
import shutil
from argparse import Namespace
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from places import FIXTURES

import hf_xlmr.pipeline
from hf_xlmr import XLMR
from hf_xlmr.conversion import convert
from hf_xlmr.data.text_files import open_texts
from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError
from hf_xlmr.extraction import FeatureExtractor
from hf_xlmr.features.bulk_extraction import ExtractionOptions, extract
from hf_xlmr.features.chunks import BadText
from hf_xlmr.features.packed.encoder_weights import EncoderWeights
from hf_xlmr.features.packed.linear_kernels import KERNELS, offered_kernels
from hf_xlmr.features.packed.packed_network import PackedInputs, PackedNetwork
from hf_xlmr.features.packing import pack
from hf_xlmr.hub_interface.batching import collate_tokens
from hf_xlmr.hub_interface.languages import Languages, UnknownLanguage
from hf_xlmr.tasks.evaluation import evaluate
from hf_xlmr.tasks.fitting.adopting import adopt
from hf_xlmr.tasks.fitting.task_models import freeze_language_adapters
from hf_xlmr.tasks.training import FinetuningOptions, finetune

XMOD = FIXTURES / "xmod"
NAMES = ("base", "prenorm", "half", "cls")
FLAGS = ("encoder_normalize_before", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter")
TOLERANCE = 2e-5
SENTENCEPIECE = "sentencepiece.bpe.model"
TEXTS = ["The train leaves.", "Дети играют", "हम चाय", "火车晚上出发。", "The train", "a", "हम"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of fairseq, converted."""
    folder = tmp_path_factory.mktemp("xmod")
    for name in NAMES:
        convert(XMOD / name, folder / name, verify=False)
    return folder


@pytest.fixture(scope="module")
def base(made: Path) -> XLMR:
    return XLMR.from_pretrained(made / "base").eval().requires_grad_(requires_grad=False)


def asked_of(name: str) -> tuple[dict[str, Any], Any]:
    """What fairseq was asked, and its answers."""
    return json.loads((XMOD / name / "golden.json").read_text(encoding="utf-8")), np.load(XMOD / name / "golden.npz")


def near(found: torch.Tensor, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=tolerance)


# ---- fairseq's calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_fairseqs_answers_are_given_in_every_language(name: str, made: Path) -> None:
    xlmr, (asked, known) = XLMR.from_pretrained(made / name).eval(), asked_of(name)
    for index, texts in enumerate([*([text] for text in asked["texts"]), *asked["pairs"]]):
        tokens = xlmr.encode(*texts)
        assert tokens.tolist() == known[f"ids.{index}"].tolist()
        for language in asked["languages"]:
            at = f"{language}.{index}"
            hiddens = xlmr.extract_features(tokens, return_all_hiddens=True, lang_id=[language])
            near(torch.stack([*hiddens]), known[f"hiddens.{at}"])
            near(xlmr.extract_features(tokens, lang_id=[language]), known[f"last.{at}"])
            if name == "cls":
                logits = xlmr.predict("xnli_head", tokens, return_logits=True, lang_id=[language])
                near(logits, known[f"head.xnli_head.{at}"], 1e-4)
            else:
                near(xlmr.model(tokens[None], lang_id=[language])[0], known[f"logits.{at}"], 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_row_of_a_batch_has_its_language(name: str, made: Path) -> None:
    xlmr, (asked, known) = XLMR.from_pretrained(made / name).eval(), asked_of(name)
    tokens = torch.from_numpy(known["batch.ids"])
    is_text = (tokens != 1).unsqueeze(-1)
    near(xlmr.extract_features(tokens, lang_id=asked["batch_languages"]) * is_text, known["batch.last"])
    inner = xlmr.model.encoder
    spoken = {"lang_id": asked["batch_languages"]}
    states = inner.extract_features(tokens, return_all_hiddens=True, **spoken)[1]["inner_states"]
    assert len(states) == len(xlmr.model.layers) + 1
    whole = inner.sentence_encoder(tokens, **spoken)["encoder_out"][0].transpose(0, 1)
    for found in (inner(tokens, features_only=True, **spoken)[0], whole):
        near(found * is_text, known["batch.last"])


def test_no_language_means_english_and_scripts_have_the_adapter_of_their_language(base: XLMR, made: Path) -> None:
    tokens = collate_tokens(base.encode_batch(TEXTS))
    english = base.extract_features(tokens, lang_id=["en_XX"] * len(TEXTS))
    assert torch.equal(base.extract_features(tokens), english)
    named = {
        name: base.extract_features(tokens, lang_id=[name] * len(TEXTS)) for name in ("sw_KE", "sw_KE_rom", "sw_KE_zaw")
    }
    assert torch.equal(named["sw_KE"], named["sw_KE_rom"]) and torch.equal(named["sw_KE"], named["sw_KE_zaw"])
    assert not torch.allclose(named["sw_KE"], english, atol=0.01)
    other = XLMR.from_pretrained(made / "base").eval()
    other.model.network.set_default_language("sw_KE")
    assert torch.equal(other.extract_features(tokens), named["sw_KE"])


def test_a_mask_is_filled_in_a_language(base: XLMR) -> None:
    english, swahili = (base.fill_mask("The <mask> leaves.", lang_id=spoken) for spoken in (None, ["sw_KE"]))
    assert english == base.fill_mask("The <mask> leaves.", lang_id=["en_XX"]) != swahili


@pytest.mark.parametrize(
    ("lang_id", "kind"),  # that of fairseq's XMODHubInterface
    [
        ("en_XX", RuntimeError),
        (["xx_XX"], KeyError),
        (["_rom"], KeyError),
        ([], IndexError),
        (5, TypeError),
        ([5], AttributeError),
        (["en_XX", "en_XX"], RuntimeError),
    ],
)
def test_what_is_not_a_language_is_fairseqs_kind_of_error(lang_id: Any, kind: type[Exception], base: XLMR) -> None:
    with pytest.raises(InputError) as found:
        base.extract_features(base.encode("a"), lang_id=lang_id)
    assert isinstance(found.value, kind) and len(str(found.value).split()) > 4


def test_an_unknown_language_is_told_with_those_that_there_are(base: XLMR) -> None:
    with pytest.raises(UnknownLanguage, match=r"no language 'xx_XX'; it has .*sw_KE"):
        base.extract_features(base.encode("a"), lang_id=["xx_XX"])


def test_a_model_without_languages_takes_none() -> None:
    demo = XLMR.from_pretrained("demo").eval()
    with pytest.raises(TypeError, match="no languages"):
        demo.extract_features(demo.encode("a"), lang_id=["en_XX"])
    for given in ({"language": "en_XX"}, {"language_column": "language"}):
        with pytest.raises(InputError, match="no languages"):
            FeatureExtractor(demo, **given)  # type: ignore[arg-type]
    with pytest.raises(BadText, match="no languages"):
        FeatureExtractor(demo)(["a"], ["en_XX"])


@pytest.mark.parametrize("name", ["base", "prenorm"])
def test_autocast_computes_in_a_half_type(name: str, made: Path) -> None:
    xlmr = XLMR.from_pretrained(made / name).eval()
    tokens, spoken = collate_tokens(xlmr.encode_batch(TEXTS[:2])), list(xlmr.model.languages.names[:2])  # type: ignore[union-attr]
    exact = xlmr.extract_features(tokens, lang_id=spoken)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = xlmr.extract_features(tokens, lang_id=spoken)
    assert 0 < (found - exact).abs().max() < 0.2 * exact.abs().max()


def test_fairseqs_view_shows_the_adapters(made: Path) -> None:
    xlmr = XLMR.from_pretrained(made / "prenorm")
    layer = xlmr.model.encoder.sentence_encoder.layers[1]
    own = xlmr.model.layers[1].output
    assert layer.adapter_modules["hi_IN"].fc1 is own.adapter_modules["hi_IN"].dense1
    assert layer.adapter_modules["hi_IN"].fc2.weight is own.adapter_modules["hi_IN"].dense2.weight
    assert layer.adapter_layer_norm is own.adapter_layer_norm
    assert list(layer.adapter_modules) == list(xlmr.model.languages.names)  # type: ignore[union-attr]
    shown = {id(weight) for weight in xlmr.model.encoder.parameters()}
    hidden = [name for name, each in xlmr.model.network.named_parameters() if id(each) not in shown]
    assert all("token_type" in name or "pooler" in name for name in hidden)
    values = torch.randn(2, layer.adapter_modules["hi_IN"].fc1.in_features)
    assert torch.equal(layer.adapter_modules["hi_IN"](values), own.adapter_modules["hi_IN"](values))
    with pytest.raises(KeyError, match="no adapter for 'xx'"):
        layer.adapter_modules["xx"]
    assert not hasattr(XLMR.from_pretrained("demo").model.encoder.sentence_encoder.layers[0], "adapter_modules")


def test_saved_and_placed_models_answer_the_same(base: XLMR, made: Path, tmp_path: Path) -> None:
    tokens, spoken = collate_tokens(base.encode_batch(TEXTS[:2])), ["sw_KE", "vi_VN"]
    expected = base.extract_features(tokens, lang_id=spoken)
    base.model.network.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / SENTENCEPIECE).write_bytes((XMOD / "base" / SENTENCEPIECE).read_bytes())
    saved = XLMR.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(saved.extract_features(tokens, lang_id=spoken), expected)
    budgets = {"cpu": "90KB", "disk": "unlimited"}
    placed = XLMR.from_pretrained(
        made / "base", device_map="auto", max_memory=budgets, offload_folder=tmp_path / "offloaded", tokens=32
    ).eval()
    assert placed.model.is_offloaded
    near(placed.extract_features(tokens, lang_id=spoken), expected.numpy())


# ---- features without padding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", list(product((0, 1), repeat=4)), ids=lambda flags: "".join(map(str, flags)))
def test_the_packed_network_computes_every_layout(flags: tuple[int, ...], tmp_path: Path) -> None:
    with torch.serialization.safe_globals([Namespace]):
        state = torch.load(XMOD / "layouts" / "model.pt", weights_only=True)
    dropped = [
        "version",
        *([] if flags[0] else ["encoder.layer_norm."]),
        *([] if flags[1] else ["adapter_layer_norm."]),
    ]
    model = {name: each for name, each in state["model"].items() if not any(part in name for part in dropped)}
    (tmp_path / "source").mkdir()
    options = {**vars(state["args"]), **dict(zip(FLAGS, map(bool, flags), strict=True))}
    torch.save({"args": Namespace(**options), "model": model}, tmp_path / "source" / "model.pt")
    (tmp_path / "source" / "dict.txt").write_bytes((XMOD / "layouts" / "dict.txt").read_bytes())
    convert(tmp_path / "source", tmp_path / "out", encoder_only=True, verify=False)
    xlmr, known = XLMR.from_pretrained(tmp_path / "out"), np.load(XMOD / "layouts" / "answers.npz")
    rows = [row[row != 1] for row in known["ids"]]
    names = xlmr.model.languages.names  # type: ignore[union-attr]
    weights = EncoderWeights.of_network(xlmr.model.base, device=torch.device("cpu"), longest_text=30)
    network = PackedNetwork(weights, dtype=torch.float32)
    spoken = [(row, language) for language in names for row in range(len(rows))]
    lengths, numbers = (
        np.array([each(*one) for one in spoken]) for each in (lambda r, _: len(rows[r]), lambda _, n: names.index(n))
    )
    for size in (4, 16, 1000):
        for batch in pack(lengths, tokens_per_batch=size, languages=numbers):
            texts = [spoken[text] for text in batch.texts]
            inputs = PackedInputs(batch, np.concatenate([rows[row] for row, _ in texts]), torch.device("cpu"))
            found = network.hidden_states(inputs, layers=[weights.layers])[weights.layers]
            expected = [known[".".join([*map(str, flags), name])][row, : len(rows[row])] for row, name in texts]
            near(found, np.concatenate(expected))


def test_texts_of_a_language_are_packed_together() -> None:
    lengths, languages = np.array([3, 9, 4, 4, 9, 1]), np.array([2, 0, 2, 0, 1, 1])
    batches = list(pack(lengths, tokens_per_batch=20, languages=languages))
    assert [each.texts.tolist() for each in batches] == [[1, 3], [4, 5, 2, 0]]
    assert [[tuple(part) for part in each.parts] for each in batches] == [[(0, 0, 13)], [(1, 0, 10), (2, 10, 17)]]
    alone = list(pack(lengths, tokens_per_batch=20))
    assert [each.texts.tolist() for each in alone] == [[1, 4], [2, 3, 0, 5]]


def spoken_in(xlmr: XLMR) -> tuple[list[str], list[str]]:
    """Texts, and as many languages."""
    names = xlmr.model.languages.names[-3:]  # type: ignore[union-attr]
    pairs = [(text * count, name) for count in (1, 3) for text in TEXTS for name in names]
    return [text for text, _ in pairs], [name for _, name in pairs]


@pytest.mark.parametrize("name", ["base", "half"])
def test_features_of_mixed_texts_are_those_of_each_language(name: str, made: Path) -> None:
    xlmr = XLMR.from_pretrained(made / name).eval().requires_grad_(requires_grad=False)
    texts, languages = spoken_in(xlmr)
    one_by_one = [
        xlmr.extract_features(xlmr.encode(text), lang_id=[spoken])[0].mean(0).numpy()
        for text, spoken in zip(texts, languages, strict=True)
    ]
    for kernel in offered_kernels(torch.float32, torch.device("cpu")):
        assert kernel in KERNELS
        found = FeatureExtractor(xlmr, kernel=kernel, tokens_per_batch=40)(texts, languages)
        np.testing.assert_allclose(found, one_by_one, rtol=0, atol=TOLERANCE)
    read = FeatureExtractor.from_pretrained(made / name, tokens_per_batch=40)
    np.testing.assert_allclose(read(texts, languages), one_by_one, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(np.stack(list(read.stream(iter(texts), iter(languages)))), read(texts, languages))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(read))(texts, languages), read(texts, languages))
    batch = read.__class__.from_pretrained(made / name, tokens_per_batch=40, language_column="spoken")(
        {"text": texts, "spoken": languages, "n": list(range(len(texts)))}
    )
    np.testing.assert_array_equal(batch["features"], read(texts, languages))
    all_in_one = FeatureExtractor.from_pretrained(made / name, language=languages[1] + "_rom")
    assert all_in_one.language == languages[1]
    expected = xlmr.extract_features(xlmr.encode(texts[0]), lang_id=[languages[1]])[0].mean(0)
    np.testing.assert_allclose(all_in_one(texts[:1])[0], expected, rtol=0, atol=TOLERANCE)


def test_pieces_of_a_split_text_have_its_language(base: XLMR) -> None:
    texts, languages = ["The train leaves. " * 9, "a"], ["sw_KE", "vi_VN"]
    extractor = FeatureExtractor(base, pool="none", on_long="split", max_length=12)
    found = extractor(texts, languages)
    alone = FeatureExtractor(base, pool="none", on_long="split", max_length=12, language="sw_KE")(texts[:1])
    np.testing.assert_allclose(found[0], alone[0], rtol=0, atol=TOLERANCE)


def test_adapters_are_read_for_the_languages_that_come(made: Path) -> None:
    extractor = FeatureExtractor.from_pretrained(made / "prenorm")
    network: Any = extractor.network
    extractor(["a"], ["hi_IN"])
    assert {each for layer in network._layers._ready for each in layer._adapters._ready} == {
        extractor.languages.number("hi_IN")  # type: ignore[union-attr]
    }


def test_int8_leaves_adapters_in_float32(base: XLMR) -> None:
    texts, languages = spoken_in(base)
    extractor = FeatureExtractor(base, dtype="int8", sample=texts[:9], sample_languages=languages[:9], least_cosine=0.5)
    assert extractor.int8 is not None and extractor.int8.mean > 0.9
    exact, found = FeatureExtractor(base)(texts, languages), extractor(texts, languages)
    cosines = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.mean() > 0.9
    with pytest.raises(InputError, match="one for each text"):
        FeatureExtractor(base, dtype="int8", sample=texts[:9], sample_languages=languages[:8])


@pytest.mark.parametrize(
    ("languages", "told"),
    [(["en_XX"], "languages end after 1"), (["en_XX"] * 3, "texts end after 2"), ("en_XX", "language= is for all")],
)
def test_each_text_has_one_language(languages: Any, told: str, base: XLMR) -> None:
    with pytest.raises(InputError, match=told):
        FeatureExtractor(base)(["a", "b"], languages)


@pytest.mark.parametrize(
    ("language", "told"), [("xx", "no language 'xx'; it has"), (5, "not a string"), (b"en_XX", "not a string")]
)
def test_a_text_in_no_language_of_the_model_is_named(language: Any, told: str, base: XLMR) -> None:
    with pytest.raises(BadText, match=f"text 1: .*{told}"):
        FeatureExtractor(base)(["a", "b"], ["en_XX", language])


def test_a_model_without_english_needs_a_language(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.XmodConfig(vocab_size=219, languages=["sw_KE", "vi_VN"], type_vocab_size=1, **sizes)
    transformers.XmodForMaskedLM(config).save_pretrained(tmp_path)
    (tmp_path / SENTENCEPIECE).write_bytes((XMOD / "base" / SENTENCEPIECE).read_bytes())
    xlmr = XLMR.from_pretrained(tmp_path)
    with pytest.raises(KeyError, match="no usual language"):
        xlmr.extract_features(xlmr.encode("a"))
    extractor = FeatureExtractor(xlmr)
    with pytest.raises(BadText, match=r"text 0: .* no usual language"):
        extractor(["a"])
    assert len(extractor(["a"], ["vi_VN"])) == 1
    with pytest.raises(InputError, match="no usual language"):
        FeatureExtractor(xlmr, dtype="int8")


# ---- extraction ------------------------------------------------------------------------------------------------------


OPTIONS = ExtractionOptions(dtype="float32", rows_per_shard=10, device="cpu", language_column="spoken")


def mixed(path: Path, xlmr: XLMR) -> tuple[Path, list[str], list[str]]:
    texts, languages = spoken_in(xlmr)
    rows = [json.dumps({"text": text, "spoken": name}) for text, name in zip(texts, languages, strict=True)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path, texts, languages


def features_in(folder: Path) -> np.ndarray:
    parts = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    return np.array([row for part in parts for row in part["features"].to_pylist()])


def test_rows_of_many_languages_are_written_in_their_order(base: XLMR, made: Path, tmp_path: Path) -> None:
    source, texts, languages = mixed(tmp_path / "texts.jsonl", base)
    report = extract(made / "base", source, tmp_path / "out", options=OPTIONS)
    assert report.rows == len(texts)
    np.testing.assert_allclose(features_in(tmp_path / "out"), FeatureExtractor(base)(texts, languages), atol=TOLERANCE)
    manifest = json.loads((tmp_path / "out" / ".manifest.json").read_text())
    assert manifest["job"]["language_column"] == "spoken" and "language" not in manifest["job"]
    counted = {name: languages.count(name) for name in set(languages)}
    assert {name: manifest["counts"][f"texts in {name}"] for name in counted} == counted
    again = extract(made / "base", source, tmp_path / "out", options=OPTIONS, resume=True)
    assert again.shards == 0
    changed = source.read_text(encoding="utf-8").replace(f'"{languages[0]}"', f'"{languages[1]}"', 1)
    source.write_text(changed, encoding="utf-8")
    with pytest.raises(InputError, match=r"is not what .* was begun with"):
        extract(made / "base", source, tmp_path / "out", options=OPTIONS, resume=True)


def test_a_shard_that_was_lost_comes_back_the_same(base: XLMR, made: Path, tmp_path: Path) -> None:
    source, _, _ = mixed(tmp_path / "texts.jsonl", base)
    extract(made / "base", source, tmp_path / "out", options=OPTIONS)
    lost = tmp_path / "out" / "part-00001.parquet"
    content = lost.read_bytes()
    lost.unlink()
    assert extract(made / "base", source, tmp_path / "out", options=OPTIONS, resume=True).shards == 1
    assert lost.read_bytes() == content


def test_the_record_names_the_language(made: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\nb\n")
    options = replace(OPTIONS, language_column=None)
    for given, named in ((None, "en_XX"), ("sw_KE", "sw_KE"), ("sw_KE_rom", "sw_KE")):
        output = tmp_path / str(given)
        extract(made / "base", tmp_path / "texts.txt", output, options=replace(options, language=given))
        assert json.loads((output / ".manifest.json").read_text())["job"]["language"] == named
    with pytest.raises(InputError, match='language was "sw_KE" and is "en_XX" now'):
        extract(made / "base", tmp_path / "texts.txt", tmp_path / "sw_KE", options=options, resume=True)
    extract("demo", tmp_path / "texts.txt", tmp_path / "demo", options=options)
    assert "language" not in json.loads((tmp_path / "demo" / ".manifest.json").read_text())["job"]


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ('"xx"', "line 2: the model has no language 'xx'"),
        ("null", "line 2: the language is null, not a string"),
        ("[]", "a list"),
    ],
)
def test_a_row_in_no_language_is_named(language: str, told: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        f'{{"text": "a", "spoken": "en_XX"}}\n{{"text": "b", "spoken": {language}}}\n'
    )
    with pytest.raises(BadRow, match=told):
        extract(made / "base", tmp_path / "texts.jsonl", tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_two_ways_to_say_the_language_exclude_each_other(made: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "spoken": "en_XX"}\n')
    with pytest.raises(InputError, match="exclude each other"):
        extract(made / "base", tmp_path / "texts.jsonl", tmp_path / "out", options=replace(OPTIONS, language="en_XX"))
    with pytest.raises(InputError, match="no languages"):
        extract("demo", tmp_path / "texts.jsonl", tmp_path / "out", options=OPTIONS)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet", "saved"])
@pytest.mark.parametrize("id_column", [None, "n", "spoken", "text"])
def test_every_kind_of_input_has_a_column_of_languages(ending: str, id_column: str | None, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"n": f"row {number}", "spoken": f"l{number}_XX", "text": f"text {number}"} for number in range(4)]
    data, path = Dataset.from_list(rows), tmp_path / f"texts{ending}"
    if ending == "saved":
        data.save_to_disk(str(path))
    elif ending in (".csv", ".tsv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines).replace(",", "\t" if ending == ".tsv" else ",") + "\n")
    else:
        data.to_json(path) if ending == ".jsonl" else data.to_parquet(path)
    opened = open_texts(path, language_column="spoken", id_column=id_column)
    found = [(row.text, row.language, row.id) for row in opened]
    assert found == [(row["text"], row["spoken"], row[id_column] if id_column else None) for row in rows]
    cuts = opened.cuts(3)
    assert cuts is not None and [row.language for row in opened.rows_of(cuts, 1)] == ["l3_XX"]
    assert open_texts(path).fingerprint() != opened.fingerprint() != open_texts(path, language_column="n").fingerprint()
    with pytest.raises(BadRow, match="no column 'x'"):
        list(open_texts(path, language_column="x"))


def test_lines_of_texts_have_no_languages(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(InputError, match="no columns"):
        open_texts(tmp_path / "texts.txt", language_column="spoken")


# ---- the pipeline ----------------------------------------------------------------------------------------------------


def test_the_pipeline_takes_languages(base: XLMR, made: Path) -> None:
    pipe = transformers.pipeline(hf_xlmr.pipeline.TASK, model=str(made / "base"))  # type: ignore[call-overload]
    given = [{"text": "The train", "language": "sw_KE"}, {"text": "a", "language": "vi_VN_rom"}, {"text": "The train"}]
    expected = [("The train", "sw_KE"), ("a", "vi_VN"), ("The train", "en_XX")]
    for found in (pipe(given), pipe(given, batch_size=3)):
        for each, (text, language) in zip(found, expected, strict=True):
            near(each, base.extract_features(base.encode(text), lang_id=[language])[0].numpy())
    near(pipe("a", language="sw_KE"), base.extract_features(base.encode("a"), lang_id=["sw_KE"])[0].numpy())
    with pytest.raises(ValueError, match="no language 'xx'; it has"):
        pipe("a", language="xx")
    pipe.model.config.default_language = "xx"
    with pytest.raises(ValueError, match="no usual language, so each text must name its own: ar_AR"):
        pipe("a")
    demo = transformers.pipeline(hf_xlmr.pipeline.TASK, model=str(XLMR.from_pretrained("demo").files.folder))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="no languages"):
        demo("a", language="en_XX")


# ---- tasks -----------------------------------------------------------------------------------------------------------


def xnli(path: Path, *languages: str, count: int = 6) -> str:
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        f"{language}\t{labels[number % 3]}\t{TEXTS[number % 7]}\t{TEXTS[(number + 3) % 7]}"
        for language in languages
        for number in range(count)
    ]
    path.write_text("\n".join(["language\tgold_label\tsentence1\tsentence2", *rows]) + "\n", encoding="utf-8")
    return str(path)


TRAINING = FinetuningOptions(cpu=True, max_steps=2, batch_size=6, learning_rate=0.01, warmup=0, save_steps=10)


def test_training_leaves_adapters_and_embeddings_unless_told_otherwise(made: Path, tmp_path: Path) -> None:
    data = xnli(tmp_path / "train.tsv", "en")
    before = XLMR.from_pretrained(made / "base").model.base.state_dict()

    def changed(output: str, **options: Any) -> set[str]:
        report = finetune("xnli", str(made / "base"), [data], tmp_path / output, options=replace(TRAINING, **options))
        assert report.class_name == "XmodForSequenceClassification"
        after = XLMR.from_pretrained(tmp_path / output).model.base.state_dict()
        names = {each for each in before if "pooler" not in each and not torch.equal(before[each], after[each])}
        return {part for part in ("embeddings.", "adapter_", "attention.") if any(part in each for each in names)}

    assert changed("usual") == {"attention."}
    trained = changed("all", freeze_embeddings=False, freeze_language_adapters=False)
    assert trained == {"embeddings.", "adapter_", "attention."}
    settings = json.loads((tmp_path / "usual" / "finetuning.json").read_text())["settings"]
    assert settings["freeze_language_adapters"] is settings["freeze_embeddings"] is True


@pytest.mark.parametrize("default", ["sw_KE", None])
@pytest.mark.parametrize("way", ["finetune", "adopt"])
def test_the_card_of_a_trained_model_names_languages_and_its_code_runs(
    way: str, default: str | None, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, folder = tmp_path / "begun", tmp_path / "mine"
    shutil.copytree(made / "base", begun)
    config = json.loads((begun / "config.json").read_text())
    (begun / "config.json").write_text(json.dumps({**config, "default_language": default}))
    if way == "finetune":
        finetune(
            "xnli", str(begun), [xnli(tmp_path / "train.tsv", "en")], folder, options=replace(TRAINING, max_steps=1)
        )
    else:
        network = transformers.AutoModelForSequenceClassification.from_pretrained(begun)
        network.save_pretrained(folder)
        adopt(folder, begun)
    card = (folder / "README.md").read_text(encoding="utf-8")
    shown = default or config["languages"][0]
    assert "an adapter for each of 13 languages" in card and "`vi_VN`" in card and f'index("{shown}")' in card
    monkeypatch.chdir(folder)
    exec(card.split("```python\n")[1].split("```")[0], {})  # noqa: S102  # what users copy


@pytest.mark.parametrize("frozen", ["freeze_embeddings", "freeze_language_adapters"])
def test_low_rank_adapters_leave_the_rest_frozen(frozen: str, made: Path, tmp_path: Path) -> None:
    data, options = xnli(tmp_path / "train.tsv", "en"), replace(TRAINING, lora=True, **{frozen: False})
    with pytest.raises(InputError, match=f"{frozen}=False: lora=True trains its own adapters"):
        finetune("xnli", str(made / "base"), [data], tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_the_norm_that_only_adapters_have_is_left_with_them() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.XmodConfig(vocab_size=9, pre_norm=True, adapter_layer_norm=True, **sizes)
    network = transformers.XmodForSequenceClassification(config)
    freeze_language_adapters(network)
    left = {name.partition(".adapter_")[2][:6] for name, each in network.named_parameters() if not each.requires_grad}
    assert left == {"module", "layer_"}


def test_each_language_is_scored_by_its_adapters(made: Path, tmp_path: Path) -> None:
    data = xnli(tmp_path / "test.tsv", "en", "fr", count=7)
    evaluate("xnli", str(made / "cls"), [data], output=tmp_path / "out")
    told = [line.split("\t") for line in (tmp_path / "out" / "predictions" / "labels.tsv").read_text().splitlines()[1:]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made / "cls").eval()
    xlmr = XLMR.from_pretrained(made / "cls")
    for language, index, _, predicted in told:
        number = int(index)
        ids = xlmr.encode(TEXTS[number % 7], TEXTS[(number + 3) % 7])[None]
        spoken = torch.tensor([model.config.languages.index({"en": "en_XX", "fr": "fr_XX"}[language])])
        assert model.config.id2label[int(model(ids, lang_ids=spoken).logits.argmax())] == predicted
    by_language = {key: [each[3] for each in told if each[0] == key] for key in ("en", "fr")}
    assert by_language["en"] != by_language["fr"]


def test_a_language_without_adapters_is_refused_before_anything_is_trained(made: Path, tmp_path: Path) -> None:
    train, test = xnli(tmp_path / "train.tsv", "en"), xnli(tmp_path / "test.tsv", "en", "ur", "bg")
    with pytest.raises(InputError, match="no adapters for 'ur', 'bg', only"):
        finetune("xnli", str(made / "base"), [train], tmp_path / "out", evaluation=[test], options=TRAINING)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no adapters for 'ur', 'bg'"):
        evaluate("xnli", str(made / "cls"), [test])
    with pytest.raises(InputError, match="is not an X-MOD"):
        options = replace(TRAINING, freeze_language_adapters=True)
        finetune("xnli", "demo", [train], tmp_path / "out", options=options)


def test_codes_of_data_sets_find_their_language() -> None:
    languages = Languages(("zh_TW", "en_XX", "zh_CN", "sw_KE", "pt_BR", "pt_PT", "zh-Hans"), "en_XX")
    codes = ("en", "sw", "zh", "EN", "sw_ke", "zh_tw", "pt_PT", "zh-hans")
    assert [languages.of_code(code) for code in codes] == [
        *("en_XX", "sw_KE", "zh_CN", "en_XX", "sw_KE", "zh_TW", "pt_PT", "zh-Hans")
    ]
    with pytest.raises(InputError, match="'pt' could be pt_BR or pt_PT"):
        languages.of_code("pt")
    with pytest.raises(UnknownLanguage, match="no language 'ur'"):
        languages.of_code("ur")
