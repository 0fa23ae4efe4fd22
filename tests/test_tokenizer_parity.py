"""The proof's comparison of tokenizers: every difference has a reason, and a mistake has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_vocabulary import JUNK, by_frequency, dictionary_of, edited, export, in_order, train

from hf_xlmr.conversion.proof.tokenizer_parity import EXACT_CLASSES, TextClass, compare_tokenizers
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import PieceType

FRENCH = ["prix : 10\u00a0000\u00a0francs, 3\u00a0000\u00a0francs", "«\u00a0oui\u00a0»"]
EVERY_CUT = ["aaa aab abb bbb ab ba", "abab baba aaaa", "haha hahaha", "so soo sooo"]


def compared(
    dictionary: Dictionary, model: bytes, folder: Path, *, change: Callable[[Any], None] | None = None, count: int = 150
) -> dict[str, TextClass]:
    """The classes of texts; `change` edits the model in tokenizer.json first."""
    pair = export(dictionary, model, folder)
    if change is not None:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(content["model"])
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return {each.name: each for each in compare_tokenizers(pair.vocabulary, pair.exact, folder, count=count)}


def without_a_reason(classes: dict[str, TextClass]) -> dict[str, int]:
    return {name: classes[name].unexplained for name in EXACT_CLASSES if classes[name].unexplained}


def constant(message: Any) -> None:
    for piece in message.pieces:
        if piece.type == PieceType.NORMAL:
            piece.score = -1.0


MODELS: dict[str, Callable[[], bytes]] = {
    "unigram": train,
    "bytes": lambda: train(byte_fallback=True, vocab_size=640),
    "symbols": lambda: train(user_defined_symbols=["<sep>", "station", "ain", "@@"]),
    "case is folded": lambda: train(normalization_rule_name="nfkc_cf"),
    "a small vocabulary": lambda: train(EVERY_CUT * 20, vocab_size=24),
    "equal scores": lambda: edited(trained("unigram"), constant),
    "bpe": lambda: train(model_type="bpe"),
    "bpe of equal scores": lambda: edited(trained("bpe"), constant),
    "symbols that rules change": lambda: train(user_defined_symbols=["[MASK]", "½"], normalization_rule_name="nfkc_cf"),
    "bpe, symbols that rules change": lambda: train(
        model_type="bpe", user_defined_symbols=["½", "A"], normalization_rule_name="nmt_nfkc_cf"
    ),
    "symbols of white space": lambda: train(user_defined_symbols=["\n", "\t", "10\u00a0000"]),
    "bpe, pieces with white space": lambda: train(
        [*FRENCH * 30, *EVERY_CUT], model_type="bpe", normalization_rule_name="identity", vocab_size=80
    ),
    "suffix, a symbol of blanks": lambda: train(treat_whitespace_as_suffix=True, user_defined_symbols=["▁▁"]),
    "bytes alone are in the dictionary": lambda: train(model_type="bpe", byte_fallback=True, vocab_size=640),
}


@cache
def trained(name: str) -> bytes:
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", ["in order", "with junk"])
def test_every_difference_on_ordinary_text_has_a_reason(name: str, order: str, tmp_path: Path) -> None:
    model = trained(name)
    symbols = in_order(model) if order == "in order" else by_frequency(model, keep=0.7, extra=JUNK)
    symbols = [symbol for symbol in symbols if symbol.split() == [symbol]]  # as fairseq-preprocess counts them
    if name == "bytes alone are in the dictionary":
        symbols = [symbol for symbol in symbols if symbol.startswith("<0x")]
    classes = compared(dictionary_of(dict.fromkeys(symbols)), model, tmp_path)
    assert without_a_reason(classes) == {}
    found = {
        "a small vocabulary": sum(each.equal_score for each in classes.values()),
        "bpe of equal scores": classes["text of pieces"].equal_score,
    }
    assert found.get(name, 1) > 0
    if (name, order) == ("case is folded", "in order"):  # İ as two characters becomes one, and two in tokenizers
        assert classes["decomposed text"].limited == classes["decomposed text"].different > 0


def lost_words(model: Any) -> None:
    for entry in model["vocab"]:
        entry[1] -= 100.0 * (entry[0] in ("▁the", "▁train", "▁station", "▁Zug"))


def swapped_names(model: Any) -> None:
    first, second = model["vocab"][30], model["vocab"][40]
    first[0], second[0] = second[0], first[0]


@pytest.mark.parametrize("change", [lost_words, swapped_names])
def test_a_mistake_has_no_reason(change: Callable[[Any], None], tmp_path: Path) -> None:
    model = trained("unigram")
    classes = compared(dictionary_of(in_order(model)), model, tmp_path, change=change)
    assert "text of pieces" in without_a_reason(classes)


def test_a_mistake_among_nearly_equal_cuts_has_no_reason(tmp_path: Path) -> None:
    """Cuts of equal score are many here: only those are excused."""
    model = trained("a small vocabulary")

    def change(content: Any) -> None:
        (entry,) = (entry for entry in content["vocab"] if entry[0] == "ab")
        entry[1] += 0.2

    assert without_a_reason(compared(dictionary_of(in_order(model)), model, tmp_path, change=change)) != {}
