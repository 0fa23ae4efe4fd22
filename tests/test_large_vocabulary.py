"""A vocabulary of 300,000 pieces, larger than XLM-R's, goes through every command (XLM-V has 901,629 rows)."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pytest
import torch
from factory import LETTERS, Checkpoint, weights
from local_hub import GOOD_TOKEN, running_hub
from warm_processes import PROGRAM, run

from hf_xlmr import XLMR
from hf_xlmr.conversion import ConversionReport, convert, export, open_checkpoint
from hf_xlmr.conversion.checkpoint.parallel_parts import same_bytes
from hf_xlmr.conversion.checkpoint.weights import read_array
from hf_xlmr.model_shape import shape_of
from hf_xlmr.sharding import plan_placement

PIECES, MISSING = 300_000, 1_000
SYLLABLES = [a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou")] + [*"дакомипреу", *"中文字のは火车"]


def pieces_of(count: int) -> list[str]:
    chance = random.Random(0)
    known = dict.fromkeys([*LETTERS, *"0123456789.,▁", *SYLLABLES])
    while len(known) < count:
        word = "".join(chance.choices(SYLLABLES, k=chance.randint(2, 5)))
        known["▁" * chance.randint(0, 1) + word] = None
    return list(known)


def sentencepiece_model(pieces: list[str]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.vocab_size = 1, len(pieces) + 3
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.escape_whitespaces = True
    model.normalizer_spec.remove_extra_whitespaces = True
    for symbol, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        model.pieces.add(piece=symbol, type=kind)
    for rank, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-2 - 12 * rank / len(pieces))
    return bytes(model.SerializeToString())


def make(folder: Path, *, pieces: int, missing: int) -> Path:
    """A checkpoint whose dictionary is in another order than the SentencePiece model, and lacks some of its pieces."""
    known = pieces_of(pieces)
    symbols = random.Random(1).sample(known[: pieces - missing], pieces - missing)
    Checkpoint(model=weights(rows=len(symbols) + 5), symbols=tuple(symbols)).write(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model(known))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("large") / "source", pieces=PIECES, missing=MISSING)


@pytest.fixture(scope="module")
def report(source: Path) -> ConversionReport:
    return convert(source, source.parent / "model", languages=["de"], licence="mit")


def test_it_converts_with_its_proof(report: ConversionReport) -> None:
    config = json.loads((report.output / "config.json").read_text())
    assert report.parity is not None and config["vocab_size"] == PIECES + 5


def test_plan_takes_it_and_push_which_asks_doctor(report: ConversionReport) -> None:
    plan = plan_placement(shape_of(report.output), max_memory={"cpu": "8GiB"})
    assert 0 <= plan.shares[0].weights - 4 * report.parameters < 1_000  # which are buffers
    with running_hub() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": GOOD_TOKEN}
        done = run([PROGRAM, "push", report.output, "me/large", "--dry-run"], env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "tokenizer.json" in done.stdout


def test_texts_have_fairseqs_ids(source: Path, report: ConversionReport) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import AutoTokenizer

    chance = random.Random(2)
    texts = [" ".join("".join(chance.choices(SYLLABLES, k=4)) for _ in range(6)) for _ in range(200)] + ["", "Q x9."]
    lines = (source / "dict.txt").read_text().splitlines()
    rows = {line.rsplit(" ", 1)[0]: row for row, line in enumerate(lines, 4)}
    processor = SentencePieceProcessor(model_file=str(source / "sentencepiece.bpe.model"))
    right = [[0, *(rows.get(piece, 3) for piece in processor.encode(text, out_type=str)), 2] for text in texts]
    xlmr = XLMR.from_pretrained(report.output)
    assert [each.tolist() for each in xlmr.encode_batch(texts)] == right
    tokenizer = AutoTokenizer.from_pretrained(report.output)
    known = [[each if each < len(lines) + 5 else 3 for each in ids] for ids in tokenizer(texts)["input_ids"]]
    assert known == right


def test_the_way_back_keeps_every_bit(source: Path, report: ConversionReport, tmp_path: Path) -> None:
    export(report.output, tmp_path / "back")
    assert (tmp_path / "back" / "dict.txt").read_bytes() == (source / "dict.txt").read_bytes()
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "back") as after:
        assert all(same_bytes(weight, after.weights[name]) for name, weight in before.weights.items())
        bias = torch.from_numpy(read_array(after.weights["encoder.lm_head.bias"]).copy())
    assert len(bias) == PIECES - MISSING + 5
