"""The guide on families is true: each line of its tables is tried, and its ways to encode give fairseq's ids."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from factory import INTERMEDIATE, OPTIONS, Checkpoint, E, add_head, weights
from places import CHECKOUT, FIXTURES

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert, inspect
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import HfXlmrError, InputError

PAGE = (CHECKOUT / "notebooks" / "guide" / "families.md").read_text(encoding="utf-8")
OTHERS = FIXTURES / "other_tokenizers"
Model = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Line:
    """One line of the tables."""

    family: str
    class_name: str | None
    said: tuple[str, ...]


def lines_of(page: str) -> dict[str, Line]:
    rows = re.findall(r"^\| ([^|]+) \| (`\w+`|refused) \| ([^|]*?) ?\| [^|]*\|$", page, flags=re.M)
    lines = [
        Line(family, None if becomes == "refused" else becomes.strip("`"), tuple(re.findall(r'"([^"]+)"', said)))
        for family, becomes, said in rows
    ]
    return {line.family: line for line in lines}


LINES = lines_of(PAGE)


def prefixed(prefix: str, model: Model) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in model.items()}


def with_names(*names: str, **heads: int) -> Callable[[], OrderedDict[str, torch.Tensor]]:
    """A masked LM with further weights and heads."""

    def made() -> OrderedDict[str, torch.Tensor]:
        model = OrderedDict({**weights(), **{name: torch.ones(16) for name in names}})
        for head, labels in heads.items():
            add_head(model, head, labels=labels)
        return model

    return made


def infoxlm() -> Model:
    beside = {"queue": torch.ones(4, 16), "proj_matrix_fast": torch.ones(1, 16, 16)}
    return prefixed("model_slow.", weights(seed=1)) | prefixed("model_fast.", weights()) | beside


def encoder_decoder() -> Model:
    names = [
        f"{side}.{name}" for side in ("encoder", "decoder") for name in ("embed_tokens.weight", "layers.0.fc1.bias")
    ]
    return {name: torch.ones(4) for name in names}


MODELS: dict[str, Callable[[], Model]] = {
    "InfoXLM, a training file": infoxlm,
    "XLM-Align, a training file": with_names("q_linear.weight", "q_linear.bias", "k_linear.weight", "k_linear.bias"),
    "XLM-V": weights,
    "RoBERTa with Linformer": with_names(f"{E}compress_k.weight", f"{E}layers.0.self_attn.compress_k.weight"),
    "RoBERTa with quantization noise": with_names(f"{E}quant_noise.weight"),
    "BART, mBART, M2M-100, NLLB, `roberta_enc_dec`": encoder_decoder,
    "fairseq's BERT and XLM (`--arch masked_lm`)": with_names(f"{E}segment_embeddings.weight"),
    "facebookresearch/XLM": lambda: {
        "embeddings.weight": torch.ones(60, 16),
        "attentions.0.q_lin.weight": torch.ones(2),
    },
    "two models in one file: student and teacher, generator and discriminator": lambda: (
        prefixed("generator.", weights()) | prefixed("discriminator.", weights(seed=1))
    ),
    "COCO-LM, and others with weights of their own in the encoder": with_names(f"{E}relative_attention_bias.weight"),
    "a network with further weights outside the encoder": with_names("projection.weight"),
}
WITH_DICTIONARY: dict[str, tuple[str, Callable[[], Model]]] = {  # how fairseq made the dictionary, and the network
    "RoBERTa base, large; RobBERT; shuffled word order": ("gpt2", weights),
    "RoBERTa with one head (`roberta.large.mnli`)": ("gpt2", with_names(mnli=3)),
    "Muppet, and others with many heads": ("gpt2", with_names(boolq=2, mnli=3, sst2=2)),
    "KEPLER": ("gpt2", with_names("ke_heads.wikiData.relation_emb.weight")),
    "GottBERT": ("hf_byte_bpe", weights),
    "PhoBERT, BERTweet": ("fastbpe", weights),
}
TRAINED = {  # by fairseq 0.12.2
    "XLM-R base, large *": "v0122",
    "XLM-R XL, XXL *": "v0122prenorm",
    "CamemBERT, UmBERTo *": "v0122camembert",
    "polish-roberta *": "v0122bpe",
    "X-MOD base *": "xmod/base",
    "X-MOD large pre-norm *": "xmod/prenorm",
    "X-MOD with a head of `sentence_prediction_adapters` *": "xmod/cls",
    "data2vec text *": "v0122data2vec",
    "RoBERTa with `--encoder-normalize-before` (DinkyTrain) *": "v0122prelayernorm",
}
OF_TRANSFORMERS = "what Transformers saved"


def with_dictionary(kind: str, model: Model, folder: Path) -> Path:
    """A network with as many rows as a dictionary that fairseq counted has names."""
    symbols = tuple(line.rsplit(" ", 1)[0] for line in (OTHERS / kind / "dict.txt").read_text().splitlines())
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(len(symbols) + 5, 16, generator=generator)
    sized = {f"{E}embed_tokens.weight": embeddings, "encoder.lm_head.weight": embeddings}
    bias = {"encoder.lm_head.bias": torch.randn(len(symbols) + 5, generator=generator)}
    whole = OrderedDict({**model, **sized, **bias})
    return Checkpoint(model=whole, symbols=symbols, options=OPTIONS | {"bpe": kind}).write(folder)


def source_of(family: str, folder: Path) -> Path:
    if family in TRAINED:
        return FIXTURES / TRAINED[family]
    if family in WITH_DICTIONARY:
        kind, model = WITH_DICTIONARY[family]
        return with_dictionary(kind, model(), folder / "source")
    if family == OF_TRANSFORMERS:
        return convert("demo", folder / "source", verify=False).output
    return Checkpoint(model=OrderedDict(MODELS[family]())).write(folder / "source")


def test_each_line_is_tried() -> None:
    assert LINES.keys() == {*MODELS, *WITH_DICTIONARY, *TRAINED, OF_TRANSFORMERS}
    assert all(line.endswith(" *") == (line in TRAINED) for line in LINES)
    assert PAGE.count("\n| ") == len(LINES) + PAGE.count("\n| family ")


@pytest.mark.parametrize("family", LINES)
def test_inspect_says_what_the_page_says(family: str, tmp_path: Path) -> None:
    line, source = LINES[family], source_of(family, tmp_path)
    try:
        found = inspect(source)
    except HfXlmrError as error:
        assert line.class_name is None and all(said in str(error) for said in line.said)
        return
    assert found.class_name == line.class_name
    told = [*found.reasons, *found.dropped.values(), str(found.dictionary_kind)]
    assert [said for said in line.said if said not in "\n".join(told)] == []
    if line.class_name is None:
        with pytest.raises(HfXlmrError):
            convert(source, tmp_path / "out", verify=False)


@pytest.mark.parametrize("family", [line for line in LINES if LINES[line].class_name and line not in TRAINED])
def test_what_converts_is_proved_and_healthy(family: str, tmp_path: Path) -> None:
    report = convert(source_of(family, tmp_path), tmp_path / "out")
    assert report.parity is not None and examine(tmp_path / "out").is_healthy


@pytest.mark.parametrize(("wish", "class_name"), [("mnli", "SequenceClassification"), ("none", "MaskedLM")])
def test_of_many_heads_one_is_chosen(wish: str, class_name: str, tmp_path: Path) -> None:
    source = source_of("Muppet, and others with many heads", tmp_path)
    assert convert(source, tmp_path / "out", head=wish).class_name == f"XLMRobertaFor{class_name}"
    assert convert(source, tmp_path / "encoder", encoder_only=True).class_name == "XLMRobertaModel"


WAYS = re.findall(r"^```py\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.mark.parametrize(
    ("kind", "way", "files"),
    [
        ("hf_byte_bpe", 0, {"vocab.json": "vocab.json", "merges.txt": "merges.txt"}),
        ("gpt2", 0, {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}),
        ("fastbpe", 1, {"bpe.codes": "bpe.codes"}),
    ],
)
def test_the_ways_to_encode_give_fairseqs_ids(
    kind: str, way: int, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = with_dictionary(kind, weights(), tmp_path / "source")
    convert(source, tmp_path / "my-folder")
    for name, kept in files.items():
        Path(name).write_bytes((OTHERS / kind / kept).read_bytes())
    names: dict[str, Callable[[str], list[int]]] = {}
    exec(WAYS[way], names)  # noqa: S102  # the page itself
    answers = json.loads((OTHERS / kind / "answers.json").read_text(encoding="utf-8"))
    assert [names["encode"](text) for text in answers["texts"]] == answers["ids"]
    xlmr = XLMR.from_pretrained("my-folder").eval()
    ids = torch.tensor(answers["ids"][0])
    assert xlmr.extract_features(ids).shape == (1, len(ids), 16)
    with pytest.raises(InputError, match="To encode a text, cut it with"):
        xlmr.encode(answers["texts"][0])


def test_a_zip_file_is_to_be_unpacked(tmp_path: Path) -> None:
    """As polish-roberta is published."""
    import shutil

    archive = shutil.make_archive(str(tmp_path / "roberta_fairseq"), "zip", FIXTURES, "v0122bpe")
    with pytest.raises(InputError, match=r"is a zip archive that holds v0122bpe/model\.pt: unpack it"):
        inspect(archive)


# ---- data2vec --------------------------------------------------------------------------------------------------------


def test_data2vecs_hidden_states_are_fairseqs(tmp_path: Path) -> None:
    import numpy as np
    from transformers import AutoModel, AutoTokenizer

    folder = convert(FIXTURES / "v0122data2vec", tmp_path / "out").output
    network = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with np.load(FIXTURES / "v0122data2vec" / "answers.npz") as answers:
        for index in range(6):
            ids = torch.from_numpy(answers[f"ids.{index}"]).unsqueeze(0)
            with torch.no_grad():
                found = network(ids, output_hidden_states=True)
            hiddens = torch.stack(found.hidden_states).numpy()
            np.testing.assert_allclose(hiddens, answers[f"hiddens.{index}"], rtol=0, atol=1e-5)
        assert tokenizer("The train leaves.")["input_ids"] == answers["ids.0"].tolist()


@pytest.mark.parametrize(
    ("key", "value", "field"), [("activation_fn", "relu", "hidden_act"), ("dropout", 0.3, "hidden_dropout_prob")]
)
def test_options_of_data2vecs_transformer_are_read(key: str, value: object, field: str, tmp_path: Path) -> None:
    """Its options are nested: transformer.encoder.layers is what encoder_layers is elsewhere."""
    encoder = {
        "layers": 2,
        "attention_heads": 4,
        "embed_dim": 16,
        "ffn_embed_dim": INTERMEDIATE,
        "normalize_before": False,
    }
    nested = {"activation_fn": "gelu", "no_scale_embedding": True, "encoder": encoder, key: value}
    model = OrderedDict((name, tensor) for name, tensor in weights().items() if "lm_head" not in name)
    more = {
        "args": None,
        "cfg": {"model": {"_name": "data2vec_text", "transformer": nested}, "task": {"_name": "masked_lm"}},
    }
    convert(Checkpoint(model=model, more=more).write(tmp_path / "source"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_attention_heads"] == 4 and config[field] == value


def test_data2vecs_embeddings_are_scaled_if_it_was_trained_so(tmp_path: Path) -> None:
    encoder = {"layers": 2, "attention_heads": 4, "embed_dim": 16, "ffn_embed_dim": INTERMEDIATE}
    model = OrderedDict((name, tensor) for name, tensor in weights().items() if "lm_head" not in name)
    nested = {"activation_fn": "gelu", "no_scale_embedding": False, "encoder": encoder}
    more = {"args": None, "cfg": {"model": {"_name": "data2vec_text", "transformer": nested}}}
    folder = convert(Checkpoint(model=model, more=more).write(tmp_path / "source"), tmp_path / "out").output
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    torch.testing.assert_close(found, 4 * model[f"{E}embed_tokens.weight"])
