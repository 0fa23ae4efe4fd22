"""A SentencePiece model that is accepted is one that SentencePiece loads, and it sees nothing but what was read."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from factory import Checkpoint
from fuzzing.messages import SPECIAL_PIECES, charsmap, charsmap_of, message, piece, sentencepiece
from places import FIXTURES

from hf_xlmr.conversion import convert, export, inspect, verify
from hf_xlmr.conversion.sentence_transformers_folder import to_sentence_transformers
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import HfXlmrError, IntegrityError
from hf_xlmr.hub_interface.xlmr import XLMR
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import LONGEST_VALUE, SentencePieceModel
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

BYTES = b"".join(piece(f"<0x{value:02X}>", 0, 6) for value in range(256))
A = piece("a")
NO_FIT = "normalisation rules"


def with_unit(place: int, unit: int, strings: bytes = b"x\0") -> bytes:
    """Four blocks of a double array that has the rule a -> x, one unit of it changed."""
    units = [0] * 1024
    units[0] = 256 << 10
    units[256 ^ 0x61] = 0x61 | 0x100 | (256 ^ 0x61 ^ 512) << 10
    units[512] = 0x80000000
    units[place] = unit
    return charsmap(units, strings)


RIGHT = with_unit(512, 0x80000000)
REFUSED: dict[str, tuple[bytes, str]] = {
    "U+0000 inside": (sentencepiece(A + piece("b\0c")), "holds U+0000"),
    "U+0000 at the beginning, and nothing before it": (sentencepiece(piece("\0abc")), "holds U+0000"),
    "U+0000 at the end": (sentencepiece(piece("abc\0")), "holds U+0000"),
    "U+0000 alone": (sentencepiece(A + piece("\0")), "holds U+0000"),
    "U+0000 that is not to be used": (sentencepiece(A + BYTES + piece("\0", 0, 5), byte_fallback=True), "holds U+0000"),
    "U+0000 of a control piece": (sentencepiece(A + piece("<\0>", 0, 3)), "holds U+0000"),
    "U+0000 of a user's piece": (sentencepiece(A + piece("b\0", 0, 4)), "holds U+0000"),
    "U+0000 to be merged": (sentencepiece(A + piece("b\0c"), kind=2), "holds U+0000"),
    "U+0000 as a word": (sentencepiece(A + piece("b\0c"), kind=3), "holds U+0000"),
    "an empty piece": (sentencepiece(A + piece("")), "a piece is empty"),
    "an empty piece of a user's": (sentencepiece(A + piece("", 0, 4)), "a piece is empty"),
    "a piece without a text": (sentencepiece(A + message(1, message(3, 1))), "a piece is empty"),
    "a piece twice": (sentencepiece(A + A), "comes twice"),
    "a piece twice, once a user's": (sentencepiece(A + piece("a", 0, 4)), "comes twice"),
    "half a character": (sentencepiece(A + piece(b"\xe2\x96")), "not UTF-8"),
    "half a pair of surrogates": (sentencepiece(A + piece(b"\xed\xa0\x80")), "not UTF-8"),
    "no unknown piece": (sentencepiece(A, special=piece("<s>", 0, 3)), "exactly one unknown"),
    "two unknown pieces": (sentencepiece(A + piece("<unk2>", 0, 2)), "exactly one unknown"),
    "special pieces alone": (sentencepiece(), "none of its pieces can"),
    "special pieces and bytes": (sentencepiece(BYTES, byte_fallback=True), "none of its pieces can"),
    "no number for a score": (sentencepiece(piece("a", float("nan"))), "finite"),
    "an endless score": (sentencepiece(piece("a", float("inf")), kind=2), "finite"),
    "pieces for bytes that are not used": (sentencepiece(A + BYTES), "for bytes"),
    "a byte that is missing": (
        sentencepiece(A + BYTES.replace(piece("<0xFF>", 0, 6), b""), byte_fallback=True), "for bytes"
    ),
    "a piece for no byte": (sentencepiece(A + BYTES + piece("<0x100>", 0, 6), byte_fallback=True), "for bytes"),
    "a byte in small letters": (
        sentencepiece(A + BYTES.replace(b"<0xFF>", b"<0xff>"), byte_fallback=True), "for bytes"
    ),
    "a type of model that does not exist": (sentencepiece(A, kind=9), "type does not exist"),
    "no settings": (SPECIAL_PIECES + A, "cut off"),
    "rules of three bytes": (sentencepiece(A, charsmap=b"abc"), NO_FIT),
    "rules of nothing": (sentencepiece(A, charsmap=b"\0\0\0\0\0"), NO_FIT),
    "rules whose size is a lie": (sentencepiece(A, charsmap=b"\xff\xff\xff\xff" + RIGHT[4:]), NO_FIT),
    "rules with half a block": (sentencepiece(A, charsmap=charsmap([256 << 10] * 384)), NO_FIT),
    "rules that make nothing": (sentencepiece(A, charsmap=RIGHT[:-2]), NO_FIT),
    "rules without an end": (sentencepiece(A, charsmap=RIGHT[:-1]), NO_FIT),
    "rules of megabytes": (sentencepiece(A, charsmap=with_unit(512, 0x80000000, b"x\0" * 600_000)), NO_FIT),
    "rules that make a long text": (
        sentencepiece(A, charsmap=with_unit(512, 0x80000000, b"x" * (LONGEST_VALUE + 1) + b"\0")), NO_FIT
    ),
    "rules that are not text": (sentencepiece(A, charsmap=with_unit(512, 0x80000000, b"\xff\0")), NO_FIT),
    "rules that make half a character": (
        sentencepiece(A, charsmap=with_unit(512, 0x80000001, "\u00e9\0".encode())), NO_FIT
    ),
    "rules that make what is not there": (sentencepiece(A, charsmap=with_unit(512, 0x80000002)), NO_FIT),
    "rules that lead out": (sentencepiece(A, charsmap=with_unit(256 ^ 0x61, 0x61 | 0x1FFF << 10)), NO_FIT),
    "rules that lead far out": (sentencepiece(A, charsmap=with_unit(256 ^ 0x61, 0x61 | 0x200 | 0x1FFF << 10)), NO_FIT),
    "rules that begin nowhere": (sentencepiece(A, charsmap=with_unit(0, 0)), NO_FIT),
    "rules that begin far out": (sentencepiece(A, charsmap=with_unit(0, 4096 << 10)), NO_FIT),
    "rules for nothing": (sentencepiece(A, charsmap=with_unit(0, 0x100 | 256 << 10)), NO_FIT),
    "rules that end in no value": (sentencepiece(A, charsmap=with_unit(512, 0x62)), NO_FIT),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_sentencepiece_cannot_load_never_reaches_it(name: str) -> None:
    data, told = REFUSED[name]
    with pytest.raises(IntegrityError, match=re.escape(told)) as caught:
        SentencePieceModel.parse(data, name="spm")
    assert len(str(caught.value).splitlines()) == 1


ACCEPTED = {
    "one piece": sentencepiece(A),
    "a user's piece": sentencepiece(A + piece("<x>", 0, 4)),
    "pieces of a user's alone": sentencepiece(piece("<x>", 0, 4)),
    "what is not used": sentencepiece(A + piece("b", 0, 5)),
    "nothing that is used": sentencepiece(piece("b", 0, 5)),
    "bytes": sentencepiece(A + BYTES, byte_fallback=True),
    "merges": sentencepiece(A + piece("aa"), kind=2),
    "words": sentencepiece(piece("\u2581a"), kind=3),
    "characters": sentencepiece(A, kind=4),
    "the largest scores": sentencepiece(piece("a", 3.4e38) + piece("b", -3.4e38)),
    "the longest piece": sentencepiece(A + piece("\U0001f600" * 1000)),
    "a rule": sentencepiece(A, charsmap=RIGHT),
    "rules": sentencepiece(A, charsmap=charsmap_of({"b": "a", "bc": "a" * LONGEST_VALUE, "\u00e9": "\u00e9" * 9})),
    "rules that make nothing": sentencepiece(A, charsmap=charsmap_of({"b": ""})),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_cuts_texts(name: str) -> None:
    """The pieces of a text put together are the text as it was normalised."""
    tokenizer = ExactTokenizer(Dictionary.parse(b"a 1\n", name="dict.txt"), ACCEPTED[name])
    for text in ("", "a b", "abc\u00e9<x>", "a\0b", "\U0001f600" * 300, "b" * 5000):
        if name != "bytes":
            assert "".join(tokenizer.segments(text)) == tokenizer.processor.normalize(text)
        assert len(tokenizer.encode_batch([text, text])) == 2


def test_a_character_in_bytes_has_one_place() -> None:
    """Each of its bytes is a piece, and all of them are where the character is."""
    tokenizer = ExactTokenizer(Dictionary.parse(b"a 1\n", name="dict.txt"), ACCEPTED["bytes"])
    text = "a\u00e9 \U0001f600a"
    pieces, spans = tokenizer.pieces(text), tokenizer.spans(text)
    assert pieces[3:6] == ["a", "<0xC3>", "<0xA9>"] and len(pieces) == len(spans)
    assert [text[start:end] for start, end in spans[3:]] == ["a", *["\u00e9"] * 2, *[" "] * 3, *["\U0001f600"] * 4, "a"]


UNREAD = {
    "tests of itself": message(4, message(1, message(1, b"\x1b[2J") + message(2, b"another"))),
    "rules for the way back": message(5, message(2, b"abc")),
    "unknown fields": message(99, b"x" * 5000) + message(201, 7),
    "fields of training": message(2, message(1, b"/home/somebody/text") + message(2, b"m") + message(53, b"|")),
    "unknown fields of rules": message(3, message(1, b"custom") + message(6, b"a\tb") + message(88, b"x")),
}


@pytest.mark.parametrize("more", UNREAD)
def test_sentencepiece_sees_only_what_was_read(more: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its tests of itself are run and printed by SentencePiece before 0.2.3, a gigabyte for 4 MB of them."""
    alone = SentencePieceModel.parse(sentencepiece(A), name="spm").as_read
    model = SentencePieceModel.parse(sentencepiece(A) + UNREAD[more], name="spm")
    assert model.as_read == alone
    assert model.processor().serialized_model_proto() == alone
    assert capfd.readouterr() == ("", "")


def test_what_is_seen_is_the_whole_model() -> None:
    """Of a real one: its pieces, rules and names, and nothing that a text is cut by is lost."""
    from sentencepiece import SentencePieceProcessor

    data = (FIXTURES / "v0122" / "sentencepiece.bpe.model").read_bytes()
    ours, theirs = SentencePieceModel.parse(data, name="spm").processor(), SentencePieceProcessor(model_proto=data)
    assert len(ours) == len(theirs) > 200
    assert [ours.bos_id(), ours.eos_id(), ours.pad_id(), ours.unk_id()] == [1, 2, -1, 0]
    for text in ("The train leaves.", "\ufb01 \u2126 \uff21\u0301 e\u0301", "  a  b ", "\u2581a"):
        assert ours.encode(text, out_type=str) == theirs.encode(text, out_type=str)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_sentencepieces_log_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """It warns of options that a tokenizer does not know, for one."""
    processor = SentencePieceModel.parse(sentencepiece(A, kind=3), name="spm").processor()
    with pytest.raises(RuntimeError):
        processor.nbest_encode("a", nbest_size=2)
    assert capfd.readouterr() == ("", "")


def test_it_is_imported_where_warnings_are_errors() -> None:
    code = (
        "import sys, warnings\n"
        "from hf_xlmr.tokenizer.sentencepiece_model import import_sentencepiece\n"
        "assert import_sentencepiece().__name__ == 'sentencepiece'\n"
        "try:\n    warnings.warn('still an error', stacklevel=1)\nexcept UserWarning:\n    sys.exit(0)\nsys.exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- every door ------------------------------------------------------------------------------------------------------

HOSTILE = REFUSED["U+0000 inside"][0]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(FIXTURES / "v0122", folder, verify=False)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A fairseq folder with a model that SentencePiece 0.2.1 would abort on."""
    folder = Checkpoint().write(tmp_path / "source")
    (folder / "sentencepiece.bpe.model").write_bytes(HOSTILE)
    return folder


OF_SOURCES: dict[str, Callable[[Path, Path], object]] = {
    "convert": lambda source, output: convert(source, output),
    "convert --no-verify": lambda source, output: convert(source, output, verify=False),
    "XLMR": lambda source, output: XLMR.from_pretrained(source),
}


@pytest.mark.parametrize("door", OF_SOURCES)
def test_a_source_with_such_a_model_is_refused(door: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="holds U\\+0000"):
        OF_SOURCES[door](source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["", "fairseq"])
@pytest.mark.parametrize("door", ["XLMR", "verify", "export", "doctor", "to-sentence-transformers"])
def test_a_folder_with_such_a_model_is_refused(door: str, place: str, converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    (folder / place / "sentencepiece.bpe.model").write_bytes(HOSTILE)
    if not place:
        shutil.rmtree(folder / "fairseq")
        (folder / "tokenizer.json").unlink()
    doors: dict[str, Callable[[], object]] = {
        "XLMR": lambda: XLMR.from_pretrained(folder).encode("a"),
        "to-sentence-transformers": lambda: to_sentence_transformers(folder, tmp_path / "out"),
        "verify": lambda: verify(FIXTURES / "v0122", folder),
        "export": lambda: export(folder, tmp_path / "out"),
    }
    if door == "doctor":
        if place:
            (found,) = (each for each in examine(folder).findings if each.name == "sentencepiece")
            assert "holds U+0000" in found.told
        else:
            with pytest.raises(IntegrityError, match="holds U\\+0000"):
                examine(folder)
        return
    with pytest.raises(HfXlmrError) as caught:
        doors[door]()
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_inspect_names_no_pieces_of_it(source: Path) -> None:
    """It reads no more than the checkpoint."""
    assert inspect(source).parameters > 0
