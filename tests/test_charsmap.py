"""Normalisation in tokenizers, character by character, gives what SentencePiece gives, decomposed text included."""

from __future__ import annotations

import io
import json
import random
import re
from typing import Any

import pytest
from fuzzing.messages import charsmap_of, piece, sentencepiece

from hf_xlmr.conversion.tokenizer_json.charsmap import Charsmap
from hf_xlmr.conversion.tokenizer_json.tokenizer_parts import WHITE_SPACE, Coverage, Seams, normalizer
from hf_xlmr.errors import IntegrityError
from hf_xlmr.tokenizer.sentencepiece_model import LONGEST_VALUE, SentencePieceModel

RULES = ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]
# Deleted, mapped, composing, decomposing, joining and joined characters, first in a text or after one another.
AWKWARD = [
    *"\x01eoIａＡﬁﾞｶがか가각각 ",
    *"\u3000\u0301\u0323\u0302\u0308\u0e33\u093f\u094d\u093c\u200d▁\r\n¨\u2126\u0344\u0958क\uf900👍🏽é",
]


def train(rule: str) -> bytes:
    from sentencepiece import SentencePieceTrainer

    target = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g"] * 20),
        model_writer=target,
        vocab_size=14,
        minloglevel=2,
        hard_vocab_limit=False,
        normalization_rule_name=rule,
    )
    return target.getvalue()


@pytest.fixture(scope="module", params=RULES)
def both(request: pytest.FixtureRequest) -> tuple[Any, Any, Charsmap]:
    """SentencePiece's normaliser, the exported one, and the rules."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    data = train(request.param)
    model = SentencePieceModel.parse(data, name="spm")
    coverage = Coverage.of(model)
    seams = Seams.of(model, coverage)
    assert seams is not None
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}
    parts = {"normalizer": normalizer(model, coverage, seams=seams, runs=()), "model": unigram}
    exported = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **parts}))
    charsmap = Charsmap.parse(model.normalization.precompiled_charsmap)
    return SentencePieceProcessor(model_proto=data), exported, charsmap


def test_nearly_every_rule_is_applied_as_sentencepiece_applies_it(both: tuple[Any, Any, Charsmap]) -> None:
    """All but scripts younger than the Unicode tables of tokenizers, and polytonic Greek where case is folded."""
    oracle, exported, charsmap = both
    runs = [first + rule.tail for rule in charsmap.runs for first in rule.firsts]
    assert len(runs) > 200_000
    chosen = [*charsmap.singles, *random.Random(1).sample(runs, 8_000)]
    wrong = [text for text in chosen if exported.normalizer.normalize_str(f"x{text}y") != oracle.normalize(f"x{text}y")]
    assert len(wrong) < 0.006 * len(chosen)
    assert all(any(ord(char) > 0x11000 or "\u0307" <= char <= "\u0345" for char in text) for text in wrong)


def test_awkward_sequences_are_normalised_alike_and_never_break_tokenizers(both: tuple[Any, Any, Charsmap]) -> None:
    oracle, exported, _ = both
    chance = random.Random(2)
    for _ in range(8_000):
        text = "".join(chance.choice(AWKWARD) for _ in range(chance.randint(0, 9)))
        if "I\u0307" not in text:  # folded to U+0130 by the rule for two characters, to i and a dot by those for one
            assert exported.normalizer.normalize_str(text) == oracle.normalize(text), ascii(text)
            offsets = exported.encode(text).offsets
            assert all(0 <= start <= end <= len(text) for start, end in offsets), ascii(text)


def test_damaged_rules_are_damage_and_never_another_error() -> None:
    data = SentencePieceModel.parse(train("nfkc"), name="spm").normalization.precompiled_charsmap
    chance = random.Random(3)
    for _ in range(60):
        damaged = bytearray(data[: chance.randrange(len(data))])
        for _ in range(20):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            Charsmap.parse(bytes(damaged))
        except IntegrityError:
            continue


@pytest.mark.parametrize("size", [0, 1, LONGEST_VALUE - 1, LONGEST_VALUE])
def test_the_rules_of_every_model_that_is_accepted_are_read(size: int) -> None:
    rules = {"b": "a" * size, "bc": "d" * size, "\u00e9": "\u00e9" * (size // 2)}
    model = SentencePieceModel.parse(sentencepiece(piece("a"), charsmap=charsmap_of(rules)), name="spm")
    read = Charsmap.parse(model.normalization.precompiled_charsmap)
    assert read.singles == {key: value for key, value in rules.items() if len(key) == 1}
    assert [(rule.firsts, rule.tail, rule.value) for rule in read.runs] == [(frozenset("b"), "c", rules["bc"])]
    for key, value in rules.items():
        assert model.processor().normalize(f"a{key}a").removeprefix("\u2581") == f"a{value}a"


def test_rules_that_are_not_read_are_told_with_the_place_of_the_model() -> None:
    odd = sentencepiece(piece("a"), charsmap=charsmap_of({b"\xc3a": "x"}))
    model = SentencePieceModel.parse(odd, name="home/sentencepiece.bpe.model")
    with pytest.raises(IntegrityError, match=r"^home/sentencepiece\.bpe\.model is a damaged .*rules do not parse\.$"):
        Seams.of(model, Coverage.of(model))


def test_white_space_is_what_pythons_pattern_matches() -> None:
    assert set(re.findall(r"\s", "".join(map(chr, range(0x110000))))) == WHITE_SPACE
