"""Tokens that were added with Transformers: ids are AutoTokenizer's in every call, and exported under their names."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AddedToken, AutoModelForMaskedLM, AutoTokenizer

from hf_xlmr import XLMR, FeatureExtractor, XLMRTokenizer
from hf_xlmr.conversion import convert, export, to_sentence_transformers
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import InputError
from hf_xlmr.files.json_edits import field_of
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.tasks.fitting.appended_rows import repeat_unknown_row
from hf_xlmr.tokenizer.added_tokens import AddedTokens, names_added_tokens
from hf_xlmr.tokenizer.dictionary import Dictionary

WORDS = ("The", "train", "leaves", "Дети", "играют", "Größe", "你好", "at night.", ",", "-", "x")
SPACES = ("", " ", "  ", "\n", "\t", "\u3000")
Add = Callable[[Any], object]

# ---- every way in which tokens are added -----------------------------------------------------------------------------

FLAGS = [
    AddedToken(
        f"<{number}>", lstrip=bool(number & 1), rstrip=bool(number & 2), single_word=bool(number & 4), normalized=n
    )
    for n in (False, True)
    for number in range(8 * n, 8 * n + 8)
]
OVERLAPPING = [
    "ab",
    "abc",
    "abcd",
    "bc",
    "cab",
    "a b",
    "<a",
    "<a>",
    "<a><",
    "ＡＢ",
    "Ü",
    "u\u0308ber",
    "▁Haus",
    "!!",
    ".",
]
WAYS: dict[str, Add] = {
    "words": lambda tokenizer: tokenizer.add_tokens(["<ent>", "Hauptbahnhof", "train", "New York", "Größe"]),
    "special": lambda tokenizer: tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<ent>", "[DATE]", "Größe"]}
    ),
    "flags": lambda tokenizer: tokenizer.add_tokens(FLAGS),
    "special with flags": lambda tokenizer: tokenizer.add_tokens(FLAGS, special_tokens=True),
    "overlapping": lambda tokenizer: tokenizer.add_tokens(OVERLAPPING),
    "overlapping as they are": lambda tokenizer: tokenizer.add_tokens(
        [AddedToken(each, normalized=False) for each in OVERLAPPING]
    ),
    "a piece of the vocabulary": lambda tokenizer: tokenizer.add_tokens(["train", "▁night", "<ent>"]),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("converted") / "model", verify=False).output


@pytest.fixture(scope="module")
def plain(clean: Path) -> XLMR:
    return XLMR.from_pretrained(clean).eval()


def grown(clean: Path, folder: Path, add: Add, *, multiple: int | None = None, keep: bool = True) -> Path:
    """As people do it: add, resize, save both, and copy `fairseq/` in."""
    tokenizer, model = AutoTokenizer.from_pretrained(clean), AutoModelForMaskedLM.from_pretrained(clean)
    add(tokenizer)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=multiple, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[2402:].normal_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if keep:
        shutil.copytree(clean / "fairseq", folder / "fairseq")
    return folder


@pytest.fixture(scope="module", params=WAYS)
def folder(request: pytest.FixtureRequest, clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grown(clean, tmp_path_factory.mktemp("added") / "model", WAYS[request.param])


@pytest.fixture(scope="module")
def simple(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grown(clean, tmp_path_factory.mktemp("simple") / "model", WAYS["words"])


def texts_with(tokens: list[str], count: int) -> Iterator[str]:
    """Tokens beside each other, inside words, cut short, at both ends, among words and spaces of every kind."""
    chance = random.Random(7)
    for _ in range(count):
        parts = []
        for _ in range(chance.randint(1, 6)):
            token = chance.choice(tokens)
            part = chance.choice((token, token, token[:-1], chance.choice(WORDS), token.upper()))
            parts += [part, chance.choice(SPACES)]
        yield "".join(parts)


# ---- ids -------------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_auto_tokenizer(folder: Path, plain: XLMR) -> None:
    files, tokenizer = ModelFiles(folder), AutoTokenizer.from_pretrained(folder)
    exact = files.tokenizer
    assert exact is not None and files.added is not None
    texts = list(texts_with([*files.added.names.values()], 400))
    expected = tokenizer(texts)["input_ids"]
    encoded = exact.encode_batch(texts)
    held = [number for number, ids in enumerate(expected) if not files.added.names.keys().isdisjoint(ids)]
    assert len(held) > 100
    for number, text in enumerate(texts):
        right = expected[number] if number in held else plain.encode(text).tolist()
        assert encoded[number] == exact.encode(text) == right, repr(text)
        assert len(exact.spans(text)) == len(exact.pieces(text)) == len(right) - 2
        if right[1:-1]:
            assert str(exact.decode(right)).strip() == tokenizer.decode(right[1:-1]).strip(), repr(text)


def test_texts_without_added_tokens_are_cut_by_fairseqs_rule(simple: Path, plain: XLMR) -> None:
    exact = ModelFiles(simple).tokenizer
    assert exact is not None
    texts = [
        "",
        " ",
        "hahahahaha!!!!!!",
        "<mask> <s> </s>",
        "Tie\u0302\u0301ng Vie\u0323\u0302t",
        "a\x85b",
        "<en>",
        "Hauptbahnho",
    ]
    assert exact.encode_batch(texts) == [plain.encode(text).tolist() for text in texts]
    assert [exact.encode(text) for text in texts] == exact.encode_batch(texts)


def test_what_looks_like_a_special_symbol_stays_text_beside_an_added_token(simple: Path) -> None:
    xlmr = XLMR.from_pretrained(simple).eval()
    ids = xlmr.encode("New York <mask> </s><pad> <ent>").tolist()
    assert 2401 not in ids and ids.count(0) == ids.count(2) == 1 and 1 not in ids
    assert ids.count(2402) == 1


def test_pairs_and_words(simple: Path) -> None:
    xlmr, tokenizer = XLMR.from_pretrained(simple).eval(), AutoTokenizer.from_pretrained(simple)
    pair = ("The Hauptbahnhof <ent>", "<ent> leaves")
    assert xlmr.encode(*pair).tolist() == tokenizer(*pair)["input_ids"]
    assert [each.tolist() for each in xlmr.encode_batch(["<ent>"], ["Hauptbahnhof"])] == [
        tokenizer("<ent>", "Hauptbahnhof")["input_ids"]
    ]
    aligned = xlmr.extract_features_aligned_to_words(
        "The Hauptbahnhof leaves.", words=["The", "Hauptbahnhof", "leaves", "."]
    )
    assert torch.equal(aligned.vectors[2], xlmr.extract_features(xlmr.encode("The Hauptbahnhof leaves."))[0, 2])


def test_features_are_those_of_transformers(simple: Path) -> None:
    xlmr, tokenizer = XLMR.from_pretrained(simple).eval(), AutoTokenizer.from_pretrained(simple)
    model = transformers.AutoModel.from_pretrained(simple, add_pooling_layer=False).eval()
    texts = ["The Hauptbahnhof <ent> leaves.", "New York at night.", "plain text"]
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
        found = [xlmr.extract_features(xlmr.encode(text))[0] for text in texts]
    for row, one in zip(rows, found, strict=True):
        assert torch.allclose(row, one, atol=1e-5)
    pooled = FeatureExtractor(xlmr, layers=-1, pool="mean")(texts)
    assert torch.allclose(torch.as_tensor(pooled), torch.stack([row.mean(dim=0) for row in rows]), atol=1e-5)


# ---- other places that name tokens -----------------------------------------------------------------------------------


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
    change(content)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


TOKEN = {
    "content": "<ent>",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}
BY_HAND: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "tokenizer.json": ("tokenizer.json", lambda content: content["added_tokens"].append({"id": 2402, **TOKEN})),
    "tokenizer.json, sorted": (
        "tokenizer.json",
        lambda content: content.update(added_tokens=[*content.pop("added_tokens"), {"id": 2402, **TOKEN}]),
    ),
    "decoder": ("tokenizer_config.json", lambda content: content.update(added_tokens_decoder={"2402": TOKEN})),
    "extra": ("tokenizer_config.json", lambda content: content.update(additional_special_tokens=["<ent>"])),
    "a special of another name": ("tokenizer_config.json", lambda content: content.update(sep_token="<ent>")),
}


@pytest.mark.parametrize("way", BY_HAND)
def test_files_edited_by_hand(way: str, clean: Path, tmp_path: Path) -> None:
    folder = grown(clean, tmp_path / "model", lambda tokenizer: tokenizer.add_tokens(["<ent>"]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(clean / name, folder / name)
    edited(folder, *BY_HAND[way])
    tokenizer, exact = AutoTokenizer.from_pretrained(folder), ModelFiles(folder).tokenizer
    assert exact is not None
    for text in ("The <ent> train", "<ent>", "a<ent>b<ent>"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert exact.ids(text) == ids and 2402 in ids


def test_a_stock_tokenizer(clean: Path, tmp_path: Path) -> None:
    """The class that Transformers makes of a SentencePiece model, as nearly all folders on the Hub have it."""
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "sentencepiece.bpe.model"):
        shutil.copyfile(clean / name, tmp_path / "bare" / name)
    folder = grown(tmp_path / "bare", tmp_path / "model", WAYS["words"], keep=False)
    shutil.copyfile(clean / "sentencepiece.bpe.model", folder / "sentencepiece.bpe.model")
    tokenizer, exact = AutoTokenizer.from_pretrained(folder), ModelFiles(folder).tokenizer
    assert type(tokenizer).__name__ == "XLMRobertaTokenizer" and exact is not None
    for text in ("a<ent>b <ent><ent>", "The Hauptbahnhofes New York", "Größe  leaves"):
        assert exact.encode(text) == tokenizer(text)["input_ids"], text


def test_only_what_names_tokens_is_read(clean: Path, simple: Path, tmp_path: Path) -> None:
    assert names_added_tokens(simple) and not names_added_tokens(clean)
    assert field_of('{"a": [1, {"b": "}"}], "c": 2, broken', "c") == 2
    for text in ("", "[]", '{"a": 1', '{"a"'):
        with pytest.raises(ValueError):
            field_of(text, "c")


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_ids_beyond_the_rows_are_refused(clean: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clean, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(clean)
    tokenizer.add_tokens(["<ent>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"'<ent>' beyond the 2402 rows"):
        XLMR.from_pretrained(folder)
    with pytest.raises(InputError, match=r"'<ent>' beyond the 2402 rows"):
        export(folder, tmp_path / "fairseq")
    with pytest.raises(InputError, match=r"'<ent>' beyond the 2402 rows"):
        to_sentence_transformers(folder, tmp_path / "sentences")
    assert [finding.name for finding in examine(folder).findings] == ["tokenizer size"]


@pytest.mark.parametrize("multiple", [None, 8, 64])
def test_the_words_are_exported_under_their_names(multiple: int | None, clean: Path, tmp_path: Path) -> None:
    folder = grown(clean, tmp_path / "model", WAYS["words"], multiple=multiple)
    report = export(folder, tmp_path / "fairseq")
    rows = ModelFiles(folder).shape.vocabulary
    dictionary = Dictionary.parse((tmp_path / "fairseq" / "dict.txt").read_bytes(), name="dict.txt")
    names = ["<ent>", "Hauptbahnhof", "New York", "Größe"]
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(names)
    assert [dictionary.index(name) for name in names] == [dictionary.symbols.index(name) for name in names] == ids
    assert len(dictionary) == rows
    fillers = [name for name in dictionary.symbols if name.startswith("madeupword")]
    assert len(fillers) == rows - max(ids) - 1
    assert any("'<ent>'" in note for note in report.notes)
    back = XLMR.from_pretrained(tmp_path / "fairseq").eval()
    ours = XLMR.from_pretrained(folder).eval()
    tokens = ours.encode("The <ent> leaves.")
    with torch.no_grad():
        assert torch.allclose(back.extract_features(tokens), ours.extract_features(tokens), atol=1e-6)
    assert ours.task.source_dictionary.index("<ent>") == 2402


def test_a_name_that_no_dictionary_holds_is_refused(clean: Path, tmp_path: Path) -> None:
    folder = grown(
        clean, tmp_path / "model", lambda tokenizer: tokenizer.add_tokens([AddedToken("a\nb", normalized=False)])
    )
    assert ModelFiles(folder).tokenizer.ids("a\nb") == [2402]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"'a\\nb' with the id 2402"):
        export(folder, tmp_path / "fairseq")


def test_an_embedding_made_smaller_keeps_its_ids(clean: Path, tmp_path: Path) -> None:
    """As in XL, whose embedding has more rows than its tokenizer has names."""
    folder = grown(clean, tmp_path / "model", lambda tokenizer: None, multiple=64)
    record = json.loads((folder / "fairseq" / "conversion.json").read_text())
    record["embedding_rows"] = record["config"]["vocab_size"] = 2432
    (folder / "fairseq" / "conversion.json").write_text(json.dumps(record))
    small = tmp_path / "small"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer.add_tokens(["<ent>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(small)
    tokenizer.save_pretrained(small)
    shutil.copytree(folder / "fairseq", small / "fairseq")
    assert XLMR.from_pretrained(small).eval().encode("<ent>").tolist() == [0, 2402, 2]
    export(small, tmp_path / "fairseq")
    assert (tmp_path / "fairseq" / "dict.txt").read_text(encoding="utf-8").endswith("<mask> 1\n<ent> 0\n")


def test_training_leaves_the_rows_of_added_tokens(simple: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(simple, tmp_path / "model")
    assert not ModelFiles(folder).appended_rows
    before = load_file(folder / "model.safetensors")
    repeat_unknown_row(folder, ModelFiles(folder).appended_rows)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- what cannot be --------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_fairseqs_files_refuses(simple: Path) -> None:
    with pytest.raises(InputError, match="has added tokens"):
        XLMRTokenizer.from_pretrained(simple)


def test_a_python_tokenizer_is_told(simple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_xlmr.tokenizer.added_tokens.plain_tokenizer", lambda folder: object())
    with pytest.raises(InputError, match="not one of the tokenizers library"):
        AddedTokens.of(simple, rows=3000)
