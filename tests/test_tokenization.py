"""The exact tokenizer gives fairseq's own answers, and damaged models are refused."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import FIXTURES

from hf_xlmr.conversion.tokenizer_parity import texts_by_class
from hf_xlmr.dictionary import SPECIAL_SYMBOLS, Dictionary
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.sentencepiece_model import ModelType, PieceType, SentencePieceModel
from hf_xlmr.tokenization import LAST_OF_FAIRSEQS, ExactTokenizer, _release

SHARED = Path(__file__).resolve().parents[2] / "shared"
XLMR = SHARED / "data" / "xlmr-vocabulary"
FAIRSEQ_FOLDERS = ["v09", "v12", "v12cls", "v12xl"]

needs_xlmr = pytest.mark.skipif(not XLMR.exists(), reason="shared/data/xlmr-vocabulary is not here")


@pytest.fixture(scope="module")
def xlmr() -> ExactTokenizer:
    dictionary = Dictionary.parse((XLMR / "dict.txt").read_bytes(), name="dict.txt").with_mask()
    return ExactTokenizer(dictionary, XLMR / "sentencepiece.bpe.model")


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    from sentencepiece import SentencePieceTrainer

    target = io.BytesIO()
    lines = ["the cat sat on the mat", "a dog ran over the hill", "birds fly high", "한국어 文章"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=target, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    return target.getvalue()


@needs_xlmr
def test_all_700_answers_of_fairseq_are_reproduced(xlmr: ExactTokenizer) -> None:
    sample = json.loads(gzip.decompress((XLMR / "encode-sample.json.gz").read_bytes()))
    wrong = [row for row in sample["encode"] if xlmr.encode(row["text"]) != row["ids"]]
    wrong += [row for row in sample["pairs"] if xlmr.encode(*row["pair"]) != row["ids"]]
    wrong += [row for row in sample["encode"] + sample["pairs"] if xlmr.decode(row["ids"]) != row["decoded"]]
    assert xlmr.encode_batch([row["text"] for row in sample["encode"]]) == [row["ids"] for row in sample["encode"]]
    firsts, seconds = zip(*(row["pair"] for row in sample["pairs"]), strict=True)
    assert xlmr.encode_batch(firsts, seconds) == [row["ids"] for row in sample["pairs"]]
    assert len(sample["encode"]) + len(sample["pairs"]) == 700
    assert wrong == []


@needs_xlmr
def test_ties_fall_as_in_the_sentencepiece_of_fairseqs_time(xlmr: ExactTokenizer) -> None:
    """What SentencePiece 0.2.1 answers; 0.2.2 and later cut seven letters into ▁a, a, aaaaa."""
    assert xlmr.pieces("a" * 7) == ["▁a", "aaaaa", "a"]
    assert xlmr.pieces("a" * 12) == ["▁a", "aaaaa", "a", "aaaaa"]
    assert xlmr.pieces("a" * 40) == ["▁", *["aaaaa"] * 8]


@needs_xlmr
def test_ties_without_three_repetitions_are_seen_too(xlmr: ExactTokenizer) -> None:
    """What SentencePiece 0.2.1 answers."""
    cut = xlmr.pieces(" दोन suc Aires应用възвъзвв jilbab")
    assert cut == ["▁दोन", "▁suc", "▁Aires", "应用", "въ", "зв", "ъз", "в", "в", "▁jilbab"]
    cut = xlmr.pieces(" күрделі stannoሙስbabaxxababaxxababaxxa gorputz")
    assert cut[3:-1] == ["baba", "xx", "aba", "bax", "xa", "baba", "xx", "a"]


@needs_xlmr
def test_near_ties_fall_by_the_score_of_the_text_before(xlmr: ExactTokenizer) -> None:
    """What SentencePiece 0.2.1 answers: two cuts whose scores differ by less than rounding does late in a text."""
    for text, cut in (("the " * 200 + "kochilun", ["▁ko", "chi", "lun"]), ("the kochilun", ["▁ko", "ch", "ilun"])):
        assert xlmr.pieces(text)[-3:] == cut
        assert xlmr.encode_batch([text]) == [xlmr.encode(text)]


@needs_xlmr
def test_long_repeats_are_cut_as_if_place_by_place(xlmr: ExactTokenizer) -> None:
    """Whole cycles are skipped where the search repeats itself; a search that may not skip says what is right."""
    ties, chance = xlmr._ties, random.Random(6)
    slow = copy.copy(ties)
    slow.are_single = False  # as for a model whose scores have more digits: nothing is skipped
    units = [chance.choice(xlmr.dictionary.symbols[4:3000]) for _ in range(60)] + list("a.-=あ的лx")
    for unit in units:
        end = chance.choice(("", "b", unit[:1]))
        text = "▁the" * chance.choice((0, 3, 300)) + "▁" + unit * (700 // len(unit)) + end
        assert ties.segments(text) == slow.segments(text), text


@needs_xlmr
def test_no_lead_is_said_to_be_larger_than_it_is(xlmr: ExactTokenizer) -> None:
    """The table of margins is exact; the leads of whole texts, read off the table, never exceed the true ones."""
    sieve, chance = xlmr._sieve, random.Random(8)
    pieces = xlmr.dictionary.symbols[4:30_000]
    for number in chance.sample(range(10, 200_000), 200):
        exact = xlmr._ties._computed_margin([sieve.pieces[number]], 100.0)
        assert min(sieve.margins[number], 100.0) == pytest.approx(exact), sieve.pieces[number]
    words = ["".join(chance.choices(pieces, k=4)).replace("▁", "") for _ in range(300)]
    for ids in xlmr.processor.encode([word for word in words if word]):
        joined = np.array(ids)
        is_crossed = sieve._is_crossed(joined, np.array([len(ids)]))
        sieve._weigh_new(joined)
        leads, _ = sieve._leads(joined, is_crossed)
        exact = xlmr._ties._computed_margin([sieve.pieces[each] for each in ids], 100.0)
        assert leads.min() <= exact + 1e-6, ids


@needs_xlmr
def test_unknown_characters_beside_a_repeat_stay_one_piece(xlmr: ExactTokenizer) -> None:
    strange = "\U0001d173\U000131f9"
    assert xlmr.pieces(f"{strange} aaaa")[1] == xlmr.pieces(strange)[1]


@needs_xlmr
def test_next_line_vanishes_and_specials_are_plain_text(xlmr: ExactTokenizer) -> None:
    assert xlmr.encode("a\x85b") == [0, 10, 275, 2]
    assert xlmr.encode("a </s> b") == [0, 10, 6, 42946, 7, 2740, 876, 2]
    assert xlmr.encode("") == [0, 2]


@needs_xlmr
def test_sentences_are_joined_as_the_hub_interface_joins_them(xlmr: ExactTokenizer) -> None:
    assert xlmr.encode("a", "b", "a") == [0, 10, 2, 2, 876, 2, 2, 10, 2]
    assert xlmr.encode("a", "b", no_separator=True) == [0, 10, 2, 876, 2]
    assert xlmr.encode("a", "") == [0, 10, 2, 2, 2]


def odd_texts(tokenizer: ExactTokenizer, *, count: int) -> list[str]:
    """Texts of every class, and repeats of every length glued to other text."""
    pieces = [symbol for symbol in tokenizer.dictionary.symbols if symbol not in ("", *SPECIAL_SYMBOLS)]
    texts = [text for some in texts_by_class(pieces, count=count).values() for text in some]
    chance = random.Random(4)
    for _ in range(2 * count):
        unit = "".join(chance.choice(pieces) for _ in range(3))[: chance.randint(1, 9)].replace("▁", " ")
        texts.append(chance.choice(pieces) + unit * chance.randint(2, 9) + chance.choice(pieces) + unit[:1])
    return texts


def fixture_tokenizer(name: str) -> ExactTokenizer:
    home = FIXTURES / name
    dictionary = Dictionary.parse((home / "dict.txt").read_bytes(), name="dict.txt").with_mask()
    return ExactTokenizer(dictionary, home / "sentencepiece.bpe.model")


def assert_batch_is_loop(tokenizer: ExactTokenizer, texts: list[str]) -> None:
    encoded = tokenizer.encode_batch(texts)
    assert [(t, a) for t, a in zip(texts, encoded, strict=True) if tokenizer.encode(t) != a] == []


@pytest.mark.parametrize("name", ["v0122", "v0122rare", "v0122bpe", "v0102", "v090"])
def test_a_batch_has_the_ids_of_its_texts(name: str) -> None:
    tokenizer = fixture_tokenizer(name)
    assert_batch_is_loop(tokenizer, odd_texts(tokenizer, count=200))


@needs_xlmr
def test_a_batch_has_the_ids_of_its_texts_in_xlmr_too(xlmr: ExactTokenizer) -> None:
    assert_batch_is_loop(xlmr, odd_texts(xlmr, count=500))


@pytest.mark.parametrize("no_separator", [True, False])
def test_a_batch_of_several_sentences_goes_row_by_row(no_separator: bool) -> None:
    tokenizer = fixture_tokenizer("v0122")
    columns = ["The train", "", "的"], ["at night", "Дети", ""], ["", "a", "b"]
    rows = [tokenizer.encode(*row, no_separator=no_separator) for row in zip(*columns, strict=True)]
    assert tokenizer.encode_batch(*columns, no_separator=no_separator) == rows
    assert tokenizer.encode_batch([]) == [] == tokenizer.encode_batch([], [])
    assert tokenizer.encode_batch(("", "")) == [[0, 2], [0, 2]]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ([["a", 5]], "Text 1 is not a str but int"),
        ([["a", b"a"]], "Text 1 is not a str but bytes"),
        ([["a", None]], "Text 1 is not a str but NoneType"),
        ([["a", "b\ud800"]], "Text 1 holds half of a surrogate pair"),
        (["abc"], "Give a list of texts"),
        ([["a", "b"], ["c"]], "1 are not 2"),
    ],
)
def test_what_is_no_batch_of_texts_is_told_with_its_place(columns: list[Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        fixture_tokenizer("v0122").encode_batch(*columns)


DECODED = json.loads((FIXTURES / "decoding" / "answers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", DECODED)
def test_odd_ids_are_decoded_as_fairseq_does(name: str) -> None:
    tokenizer = fixture_tokenizer(name)
    for odd, answer in DECODED[name].items():
        assert tokenizer.decode(answer["ids"]) == answer["text"], odd
        assert tokenizer.decode(np.array(answer["ids"])) == answer["text"]


def test_what_cannot_be_decoded_is_told() -> None:
    tokenizer = fixture_tokenizer("v0122")
    with pytest.raises(InputError, match="nothing to decode"):
        tokenizer.decode([])
    with pytest.raises(InputError, match="below -"):
        tokenizer.decode([0, -(10**6), 2])


@pytest.mark.parametrize("folder", FAIRSEQ_FOLDERS)
def test_ids_of_checkpoints_that_fairseq_trained_are_reproduced(folder: str) -> None:
    home = SHARED / "fairseq" / folder
    if not home.exists():
        pytest.skip(f"{home} is not here")
    dictionary = Dictionary.parse((home / "dict.txt").read_bytes(), name="dict.txt").with_mask()
    tokenizer = ExactTokenizer(dictionary, home / "sentencepiece.bpe.model")
    golden = json.loads((home / "golden.json").read_text(encoding="utf-8"))
    with np.load(home / "golden.npz") as arrays:
        for number, sentences in enumerate([*([text] for text in golden["texts"]), *golden["pairs"]]):
            assert tokenizer.encode(*sentences) == arrays[f"ids.{number}"].ravel().tolist()


def test_the_model_file_is_read_as_sentencepiece_reads_it(model_bytes: bytes) -> None:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceModel.parse(model_bytes, name="spm")
    oracle = SentencePieceProcessor(model_proto=model_bytes)
    assert list(model.pieces) == [oracle.id_to_piece(index) for index in range(len(oracle))]
    assert list(model.scores) == [oracle.get_score(index) for index in range(len(oracle))]
    assert [kind == PieceType.CONTROL for kind in model.types] == [oracle.is_control(i) for i in range(len(oracle))]
    assert model.model_type is ModelType.UNIGRAM
    assert (model.unk_id, model.byte_fallback, model.treat_whitespace_as_suffix) == (0, False, False)
    assert model.normalization.add_dummy_prefix and model.normalization.remove_extra_whitespaces
    assert len(model.normalization.precompiled_charsmap) > 100_000


OTHER_COPIES = ["sentencepiece.sentencepiece_model_pb2", "transformers.utils.sentencepiece_model_pb2_new"]


@pytest.mark.parametrize("other", OTHER_COPIES)
@pytest.mark.parametrize("ours_first", [True, False])
def test_the_reader_lives_beside_any_other_copy_of_the_messages(
    other: str, ours_first: bool, model_bytes: bytes, tmp_path: Path
) -> None:
    (tmp_path / "spm.model").write_bytes(model_bytes)
    read = "SentencePieceModel.parse(open('spm.model', 'rb').read(), name='spm')"
    steps = [read, f"importlib.import_module({other!r}).ModelProto()"]
    head = "import importlib; from hf_xlmr.sentencepiece_model import SentencePieceModel; "
    code = head + "; ".join(steps if ours_first else reversed(steps))
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True, timeout=300)


def test_a_model_cut_anywhere_is_damage_and_never_another_error(model_bytes: bytes) -> None:
    for length in range(3, len(model_bytes), max(len(model_bytes) // 500, 1)):
        with pytest.raises(IntegrityError):
            SentencePieceModel.parse(model_bytes[:length], name="spm")


@pytest.mark.parametrize("data", [b"", b"a 1\nb 2\n", b"PK\x03\x04", b"\n\n\n"])
def test_another_file_is_no_sentencepiece_model(data: bytes) -> None:
    with pytest.raises((InputError, IntegrityError), match="SentencePiece model"):
        SentencePieceModel.parse(data, name="spm")


def test_a_piece_that_comes_twice_is_damage(model_bytes: bytes) -> None:
    with pytest.raises(IntegrityError, match="comes twice"):
        SentencePieceModel.parse(model_bytes + b"\n\x06\n\x04\xe2\x96\x81a\n\x06\n\x04\xe2\x96\x81a", name="spm")


def test_a_model_that_sentencepiece_refuses_is_damage() -> None:
    with pytest.raises(IntegrityError):
        ExactTokenizer(Dictionary.parse(b"a 1\n", name="dict.txt"), b"\n\x03\n\x01a")


@pytest.mark.parametrize(
    ("version", "is_later"),
    [
        *[(version, False) for version in ("0.1.99", "0.2", "0.2.0", "0.2.1", "0.2.1.dev0")],
        *[(version, True) for version in ("0.2.2", "0.2.2rc1", "0.2.2+local", "0.3.0a1", "1.0")],
    ],
)
def test_which_sentencepiece_decides_otherwise_is_told_by_its_release(version: str, is_later: bool) -> None:
    assert (_release(version) > LAST_OF_FAIRSEQS) is is_later
