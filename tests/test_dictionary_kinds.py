"""Dictionaries that are not XLM-R's: every command, and whoever encodes texts, says alike what their ids are."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Sequence
from pathlib import Path

import pytest
from factory import OPTIONS, SYMBOLS, Checkpoint
from places import FIXTURES

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert, export, inspect, open_checkpoint
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.dictionary import SPECIAL_SYMBOLS, Dictionary
from hf_xlmr.tokenizer.dictionary_kinds import kind_of_dictionary

LETTERS = string.ascii_lowercase
TOKENIZERLESS: dict[str, tuple[Sequence[str], str]] = {
    "gpt2": ([str(number) for number in range(200, 255)], "the decimal ids of GPT-2's byte-level BPE"),
    "fastbpe": ([*LETTERS, *(f"{letter}@@" for letter in LETTERS), "@@"], "pieces of fastBPE or subword-nmt"),
    "hf_byte_bpe": ([*LETTERS, *(f"\u0120{letter}" for letter in LETTERS), "\u0120"], "pieces of a byte-level BPE"),
    "bert": ([*LETTERS, *(f"##{letter}" for letter in LETTERS)], "BERT's WordPieces"),
}
NAMED_ALONE = [*LETTERS, *LETTERS.upper()]  # which only the option can tell from SentencePiece's


def filled(symbols: Sequence[str]) -> tuple[str, ...]:
    """As many symbols as the factory's embedding has rows for, in fairseq's way."""
    return (*symbols, *(f"madeupword{number:04d}" for number in range(len(SYMBOLS) - len(symbols))))


def write(folder: Path, symbols: Sequence[str], **options: object) -> Path:
    return Checkpoint(symbols=filled(symbols), options=OPTIONS | options).write(folder)


@pytest.mark.parametrize("bpe", [None, "itself", "sentencepiece"])
@pytest.mark.parametrize("name", TOKENIZERLESS)
def test_every_command_says_what_the_dictionary_is(name: str, bpe: str | None, tmp_path: Path) -> None:
    """By its symbols, whatever the options say."""
    symbols, what = TOKENIZERLESS[name]
    source = write(tmp_path / "source", symbols, bpe=name if bpe == "itself" else bpe)
    told = inspect(source).dictionary_kind
    assert told is not None and told.startswith(f"dict.txt holds {what}")
    assert told.endswith("the model's ids are those of dict.txt, and no tokenizer of XLM-R's kind belongs to it.")
    assert "To encode a text, cut it with" in told
    inside = told.replace("dict.txt", "fairseq/dict.txt")
    report = convert(source, tmp_path / "out", verify=bpe is None)
    assert inside in report.notes and not any("SentencePiece" in note for note in report.notes)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert what in (tmp_path / "out" / "README.md").read_text()
    diagnosis = examine(tmp_path / "out")
    assert diagnosis.is_healthy and diagnosis.notes[:-1] == (inside,)  # the last is on the activation


def test_whoever_encodes_texts_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "source", TOKENIZERLESS["gpt2"][0])
    for model in (source, convert(source, tmp_path / "out", verify=False).output):
        xlmr = XLMR.from_pretrained(model)
        with pytest.raises(InputError, match=rf"^{model} can encode no text: its dict\.txt holds the decimal ids"):
            xlmr.encode("Hello.")


@pytest.mark.parametrize("kept", ["args", "cfg"])
@pytest.mark.parametrize(("bpe", "what"), [("gpt2", "GPT-2's"), ("bytes", "single bytes"), ("fastbpe", "fastBPE")])
def test_the_option_decides_where_the_symbols_do_not(bpe: str, what: str, kept: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(symbols=filled(NAMED_ALONE))
    if kept == "args":
        checkpoint.options["bpe"] = bpe
    else:
        model = {**checkpoint.options, "_name": "roberta_base"}
        checkpoint.more = {"args": None, "cfg": {"model": model, "bpe": {"_name": bpe}, "task": {"_name": "masked_lm"}}}
    source = checkpoint.write(tmp_path / "source")
    assert what in str(inspect(source).dictionary_kind)
    convert(source, tmp_path / "out", verify=False)
    assert what in examine(tmp_path / "out").notes[0]
    assert json.loads((tmp_path / "out" / "fairseq" / "options.json").read_text())["bpe"] == bpe


@pytest.mark.parametrize("name", ["v0122", "v0122bpe", "v090", "v0102", "v0122rare"])
def test_a_dictionary_of_pieces_is_none_of_these(name: str) -> None:
    """Even where the option names something else, as trainings that never encode texts may."""
    dictionary = Dictionary.parse((FIXTURES / name / "dict.txt").read_bytes(), name=name)
    assert kind_of_dictionary(dictionary, bpe="gpt2") is None
    assert kind_of_dictionary(Dictionary.of(SPECIAL_SYMBOLS)) is None


DECIMALS = TOKENIZERLESS["gpt2"][0]
JOINED = TOKENIZERLESS["fastbpe"][0]


@pytest.mark.parametrize(
    ("symbols", "bpe", "how"),
    [
        (DECIMALS, None, "encoder.json and vocab.bpe, or vocab.json and merges.txt"),
        (DECIMALS, "sentencepiece", "encoder.json and vocab.bpe, or vocab.json and merges.txt"),
        (DECIMALS, "gpt2", "English RoBERTa's are GPT-2's own"),
        (
            DECIMALS,
            "hf_byte_bpe",
            "with ByteLevelBPETokenizer and the training's vocab.json and merges.txt into decimal",
        ),
        (JOINED, None, "with fastBPE or subword-nmt and the training's codes"),
        (JOINED, "fastbpe", "with fastBPE and the training's codes"),
        (JOINED, "subword_nmt", "with subword-nmt and the training's codes"),
        (JOINED, "gpt2", "with fastBPE or subword-nmt and the training's codes"),
        ([*LETTERS, "\u2581"], "characters", "take its characters"),
        ([*LETTERS, "\u2581", "\u00e9", "\u0180"], "bytes", "letters that fairseq writes for its bytes"),
        ([f"\u2581{letter}\u0183" for letter in LETTERS], "byte_bpe", "write its bytes as fairseq does"),
    ],
)
def test_it_names_the_tokenizer_that_fairseq_used_and_what_to_do(symbols: list[str], bpe: str | None, how: str) -> None:
    """The option decides between tokenizers whose symbols look alike; without it, both are named."""
    kind = kind_of_dictionary(Dictionary.of((*SPECIAL_SYMBOLS, *symbols)), bpe=bpe)
    assert kind is not None and how in kind.told("dict.txt")
    named = [tool for tool in ("GPT-2", "Hugging Face", "fastBPE", "subword-nmt") if tool in kind.how]
    assert bpe is None or bpe in ("sentencepiece", "gpt2") or len(named) <= 1


@pytest.mark.parametrize("bpe", [None, "sentencepiece", "byte_bpe", "characters", "bytes"])
def test_pieces_with_letters_that_fairseq_never_writes_for_bytes_are_plain(bpe: str | None) -> None:
    symbols = [*(f"\u2581{letter}{letter}" for letter in LETTERS), "\u2581\u0434\u0430"]
    assert kind_of_dictionary(Dictionary.of((*SPECIAL_SYMBOLS, *symbols)), bpe=bpe) is None


def test_a_sentencepiece_model_over_bytes_is_refused(tmp_path: Path) -> None:
    """Its pieces are those of the dictionary, but it would cut texts, where fairseq cuts the letters of their bytes."""
    source = write(tmp_path / "source", [f"\u2581{letter}" for letter in LETTERS], bpe="byte_bpe")
    (source / "sentencepiece.bpe.model").write_bytes((FIXTURES / "v0122" / "sentencepiece.bpe.model").read_bytes())
    with pytest.raises(InputError, match=r"pieces over the letters that fairseq writes for bytes.*Take the model away"):
        convert(source, tmp_path / "out", verify=False)


def test_a_sentencepiece_model_that_cannot_belong_to_it_is_refused(tmp_path: Path) -> None:
    """It would give every text other ids, and the embedding a row for each of its pieces."""
    source = write(tmp_path / "source", TOKENIZERLESS["gpt2"][0])
    (source / "sentencepiece.bpe.model").write_bytes((FIXTURES / "v0122" / "sentencepiece.bpe.model").read_bytes())
    with pytest.raises(InputError, match=r"the SentencePiece model is not this checkpoint's: dict\.txt holds the dec"):
        convert(source, tmp_path / "out", verify=False)
    assert inspect(source).dictionary_kind is not None


@pytest.mark.parametrize("name", ["v0122camembert", "v0122camembertbpe"])
def test_what_fairseq_trained_in_camemberts_order_is_named_and_healthy(name: str, tmp_path: Path) -> None:
    """tests/test_fairseq_answers.py compares ids and outputs; this is what people read, and the way back."""
    told = inspect(FIXTURES / name).dictionary_kind
    assert told == (
        "dict.txt holds SentencePiece's pieces, with <s> and </s> a second time as 5 and 6, as CamemBERT's does: "
        "the model's ids are those of dict.txt, and XLM-R's class of tokenizers gives others."
    )
    report = convert(FIXTURES / name, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[f"{special}_token_id"] for special in ("bos", "pad", "eos")] == [5, 1, 6]
    assert not (tmp_path / "out" / "sentencepiece.bpe.model").exists() and report.parity is not None
    diagnosis = examine(tmp_path / "out")
    assert diagnosis.is_healthy and diagnosis.notes[0] == told.replace("dict.txt", "fairseq/dict.txt")
    export(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back" / "dict.txt").read_bytes() == (FIXTURES / name / "dict.txt").read_bytes()
    with open_checkpoint(FIXTURES / name) as before, open_checkpoint(tmp_path / "back") as after:
        assert before.weights.keys() == after.weights.keys()
        assert all(same_bytes(weight, after.weights[key]) for key, weight in before.weights.items())


def test_flags_that_fairseq_preprocess_loses_are_found_by_the_rows(tmp_path: Path) -> None:
    """As in the first CamemBERT's dict.txt, which fairseq 0.9.0 read; `export` writes them for later releases."""
    source = shutil.copytree(FIXTURES / "v0122camembert", tmp_path / "source")
    whole = (source / "dict.txt").read_text()
    (source / "dict.txt").write_text(whole.replace(" #fairseq:overwrite", ""))
    output = convert(source, tmp_path / "out").output
    assert XLMR.from_pretrained(output).encode("The train")[[0, -1]].tolist() == [5, 6]
    export(output, tmp_path / "back")
    assert (tmp_path / "back" / "dict.txt").read_text() == whole


def test_camemberts_order_is_said_and_kept(tmp_path: Path) -> None:
    """<s> and </s> are there twice, and the later ones are meant; with the model, tokenizer.json gives these ids."""
    from transformers import AutoTokenizer

    symbols = [*SYMBOLS[:3], *(f"\u2581{letter}" for letter in LETTERS), *LETTERS[:23]]
    source = write(tmp_path / "source", ["<unk>", "<s>", "</s>", *symbols])
    lines = (source / "dict.txt").read_text().splitlines()
    marked = [f"{line} #fairseq:overwrite" if line.startswith("<") else line for line in lines]
    (source / "dict.txt").write_text("".join(f"{line}\n" for line in marked))
    what = "SentencePiece's pieces, with <s> and </s> a second time as 5 and 6, as CamemBERT's does"
    assert what in str(inspect(source).dictionary_kind)
    report = convert(source, tmp_path / "without", verify=False)
    assert any(what in note for note in report.notes)
    assert any("no SentencePiece model was given" in note for note in report.notes)
    assert what in examine(tmp_path / "without").notes[0]

    (source / "sentencepiece.bpe.model").write_bytes((FIXTURES / "v0122rare" / "sentencepiece.bpe.model").read_bytes())
    report = convert(source, tmp_path / "with")
    assert any(what in note for note in report.notes)
    ids = AutoTokenizer.from_pretrained(tmp_path / "with")("a b").input_ids
    assert ids == XLMR.from_pretrained(tmp_path / "with").encode("a b").tolist()
    assert (ids[0], ids[-1]) == (5, 6)
