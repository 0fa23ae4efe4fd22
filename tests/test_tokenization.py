"""The exact tokenizer gives fairseq's own answers, and damaged models are refused."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_xlmr.dictionary import Dictionary
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.sentencepiece_model import ModelType, PieceType, SentencePieceModel
from hf_xlmr.tokenization import ExactTokenizer

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
    assert len(sample["encode"]) + len(sample["pairs"]) == 700
    assert wrong == []


@needs_xlmr
def test_ties_fall_as_in_the_sentencepiece_of_fairseqs_time(xlmr: ExactTokenizer) -> None:
    """What SentencePiece 0.2.1 answers; 0.2.2 and later cut seven letters into ▁a, a, aaaaa."""
    assert xlmr.pieces("a" * 7) == ["▁a", "aaaaa", "a"]
    assert xlmr.pieces("a" * 12) == ["▁a", "aaaaa", "a", "aaaaa"]
    assert xlmr.pieces("a" * 40) == ["▁", *["aaaaa"] * 8]


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
