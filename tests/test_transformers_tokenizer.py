"""The exact tokenizer is a tokenizer of Transformers: fairseq's ids, Trainer's interface."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import FIXTURES

from hf_xlmr.conversion import convert
from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.transformers_tokenizer import XLMRTokenizer

OVERWRITING = ["v0122camembert", "v0122camembertbpe"]
NAMES = ["demo", "v0122", "v0122rare", "v0122bpe", "v0122cls", "v090", *OVERWRITING]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Converted folders."""
    home = tmp_path_factory.mktemp("converted")
    for name in NAMES:
        convert("demo" if name == "demo" else FIXTURES / name, home / name, verify=False)
    return {name: home / name for name in NAMES}


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> XLMRTokenizer:
    return load(folders["v0122"])


def load(folder: Path) -> XLMRTokenizer:
    loaded: XLMRTokenizer = XLMRTokenizer.from_pretrained(folder)
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_fairseqs_own(name: str, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[name])
    golden = json.loads((FIXTURES / name / "golden.json").read_text(encoding="utf-8"))
    asked = [*([text] for text in golden["texts"]), *golden["pairs"]]
    with np.load(FIXTURES / name / "golden.npz") as arrays:
        for number, sentences in enumerate(asked):
            expected = arrays[f"ids.{number}"].ravel().tolist()
            assert tokenizer(*sentences)["input_ids"] == expected == tokenizer.encode(*sentences), sentences
    firsts, seconds = map(list, zip(*golden["pairs"], strict=True))
    assert tokenizer(firsts, seconds)["input_ids"] == tokenizer.exact.encode_batch(firsts, seconds)
    assert tokenizer(golden["texts"])["input_ids"] == tokenizer.exact.encode_batch(golden["texts"])


@pytest.mark.parametrize("name", OVERWRITING)
def test_specials_that_the_dictionary_overwrites_are_those_of_encoded_texts(
    name: str, folders: dict[str, Path]
) -> None:
    tokenizer = load(folders[name])
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [
        5,
        1,
        6,
        3,
    ]
    ids = tokenizer("The train", "Le train")["input_ids"]
    masked = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert [index for index, special in zip(ids, masked, strict=True) if special] == [5, 6, 6, 6]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OVERWRITING])
def test_its_vocabulary_is_the_dictionary(name: str, folders: dict[str, Path]) -> None:
    tokenizer = load(folders[name])
    dictionary = tokenizer.exact.dictionary
    assert len(tokenizer) == len(dictionary) == tokenizer.vocab_size
    assert tokenizer.get_vocab() == {symbol: dictionary.index(symbol) for symbol in dictionary.symbols}
    assert tokenizer.mask_token_id == dictionary.mask_index
    assert [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id] == [
        0,
        1,
        2,
        3,
    ]
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 2)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, dictionary.mask_index]
    ids = list(range(len(tokenizer)))
    assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids)) == ids
    assert tokenizer.convert_ids_to_tokens([10**6, -100]) == ["<unk>", "<unk>"]


def test_a_mask_that_is_not_last_keeps_its_place(tmp_path: Path) -> None:
    lines = (FIXTURES / "v0122" / "dict.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "dict.txt").write_text("\n".join([*lines[:9], "<mask> 1", *lines[9:]]) + "\n", encoding="utf-8")
    tokenizer = XLMRTokenizer(str(tmp_path / "dict.txt"), str(FIXTURES / "v0122" / "sentencepiece.bpe.model"))
    assert tokenizer.mask_token_id == 13
    assert len(tokenizer) == len(lines) + 5
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").mask_token_id == 13


def test_a_configuration_without_mask_has_none() -> None:
    files = [str(FIXTURES / "v0122" / name) for name in ("dict.txt", "sentencepiece.bpe.model")]
    with_mask, without = XLMRTokenizer(*files), XLMRTokenizer(*files, unk_token="<unk>")
    assert (without.mask_token_id, len(without)) == (None, len(with_mask) - 1)


@pytest.mark.parametrize("text", ["<s> a </s>", "a <mask> b", "<pad>", "<unk></s>"])
def test_what_looks_special_stays_text(text: str, tokenizer: XLMRTokenizer) -> None:
    for encoded in (tokenizer(text), tokenizer([text]), tokenizer(text, split_special_tokens=True)):
        ids = encoded["input_ids"]
        ids = ids[0] if isinstance(ids[0], list) else ids
        assert ids == tokenizer.exact.encode(text)
        assert not {0, 1, 2, tokenizer.mask_token_id} & set(ids[1:-1])


def test_an_empty_second_text_is_a_pair(tokenizer: XLMRTokenizer) -> None:
    assert tokenizer("a", "")["input_ids"] == tokenizer.exact.encode("a", "")


def test_padding_truncation_and_masks(tokenizer: XLMRTokenizer) -> None:
    batch = tokenizer(["The train leaves at night", "a"], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].tolist()[1] == [int(index != 1) for index in batch["input_ids"].tolist()[1]]
    cut = tokenizer("The train leaves", "at night", truncation=True, max_length=9, return_special_tokens_mask=True)
    assert len(cut["input_ids"]) == 9
    assert [i for i, special in enumerate(cut["special_tokens_mask"]) if special] == [
        i for i, index in enumerate(cut["input_ids"]) if index in (0, 2)
    ]
    assert tokenizer.model_max_length == 64
    assert len(tokenizer("a " * 100, truncation=True)["input_ids"]) == 64
    assert len(tokenizer("a", padding="max_length", max_length=8)["input_ids"]) == 8
    assert "token_type_ids" not in batch
    assert set(tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"]) == {0}


def test_words_are_encoded_one_by_one(tokenizer: XLMRTokenizer) -> None:
    ids = tokenizer(["The", "train"], is_split_into_words=True)["input_ids"]
    assert ids == tokenizer.exact.encode("The train")


def test_decoding_gives_the_text_back(tokenizer: XLMRTokenizer) -> None:
    texts = ["The train leaves at night.", "Дети играют"]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts
    assert tokenizer.decode(encoded[0]) == "<s> The train leaves at night.</s>"


def test_it_is_saved_and_read_again(tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "one")
    again = load(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    for name in ("fairseq/dict.txt", "fairseq/sentencepiece.bpe.model"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("one", "two"))
    assert one == {key: value for key, value in two.items() if value != []}  # some releases add empty lists
    by_auto = AutoTokenizer.from_pretrained(tmp_path / "two", trust_remote_code=True)
    assert type(by_auto).__name__ == "XLMRTokenizer"
    text = "a </s> <mask> Дети"
    for other in (again, by_auto, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other(text)["input_ids"] == tokenizer.exact.encode(text)
        assert (other.model_max_length, other.mask_token_id) == (64, tokenizer.mask_token_id)


def test_what_it_cannot_do_is_told(tokenizer: XLMRTokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot grow"):
        tokenizer.add_tokens(["<entity>"])
    with pytest.raises(InputError, match="under fairseq/"):
        XLMRTokenizer.from_pretrained(tmp_path)


def test_collators_of_transformers_take_it(tokenizer: XLMRTokenizer) -> None:
    from transformers import (
        DataCollatorForLanguageModeling,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
    )

    rows: list[dict[str, Any]] = [dict(tokenizer(text)) for text in ("The train leaves at night", "a")]
    assert DataCollatorWithPadding(tokenizer)(copy.deepcopy(rows))["input_ids"].shape[0] == 2
    labelled = [{**row, "labels": [0] * len(row["input_ids"])} for row in rows]
    labels = DataCollatorForTokenClassification(tokenizer)(labelled)["labels"]
    assert labels[1].tolist().count(-100) == labels.shape[1] - len(rows[1]["input_ids"])
    masked = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.99)(copy.deepcopy(rows * 20))
    chosen = masked["labels"] != -100
    assert not set(masked["labels"][chosen].tolist()) & {0, 1, 2}
    assert tokenizer.mask_token_id in masked["input_ids"][chosen].tolist()


def test_trainer_trains_with_it(folders: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer, model = load(folders["v0122"]), AutoModelForMaskedLM.from_pretrained(folders["v0122"])
    before = model.get_input_embeddings().weight.clone()
    rows = [dict(tokenizer(text)) for text in ("The train leaves at night.", "Дети играют", "a b c") * 4]
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "no"}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(tmp_path, **options, report_to=[], use_cpu=True, disable_tqdm=True),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5),
        processing_class=tokenizer,
    )
    assert np.isfinite(trainer.train().training_loss)
    assert not torch.equal(before, model.get_input_embeddings().weight)
    trainer.save_model(str(tmp_path / "trained"))
    assert load(tmp_path / "trained")("Дети")["input_ids"] == tokenizer.exact.encode("Дети")
