"""fairseq's dictionary rules: which id each symbol has, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.dictionary import Dictionary

XLMR_DICTIONARY = Path(__file__).resolve().parents[2] / "shared" / "data" / "xlmr-vocabulary" / "dict.txt"
CAMEMBERT = b"<unk> 999\n<s> 999\n</s> 999\n, 999\n"


def parse(data: bytes | str, **options: int) -> Dictionary:
    return Dictionary.parse(data.encode() if isinstance(data, str) else data, name="dict.txt", **options)


def test_four_specials_come_before_the_lines_and_mask_after_them() -> None:
    dictionary = parse("a 3\nb 1\n").with_mask()
    assert dictionary.symbols == ("<s>", "<pad>", "</s>", "<unk>", "a", "b", "<mask>")
    assert (dictionary.bos_index, dictionary.pad_index, dictionary.eos_index, dictionary.unk_index) == (0, 1, 2, 3)
    assert dictionary.mask_index == 6


def test_an_absent_symbol_is_unk() -> None:
    assert parse("a 3\n").index("b") == 3
    assert parse("a 3\n").mask_index is None


def test_a_mask_line_keeps_its_place() -> None:
    dictionary = parse("a 1\n<mask> 1\nmadeupword0000 0\n")
    assert dictionary.with_mask() is dictionary
    assert dictionary.mask_index == 5


@pytest.mark.parametrize(
    ("line", "symbol"),
    [
        ("\x85 1", "\x85"),
        ("\u2028 1", "\u2028"),
        ("\u3000 1", "\u3000"),
        ("\x1c 1", "\x1c"),
        ("a b 1", "a b"),
        ("\t 1", "\t"),
        (" 1", ""),
        ("a -1", "a"),
        ("a 1   ", "a"),
    ],
)
def test_only_the_last_space_of_a_line_divides_it(line: str, symbol: str) -> None:
    assert parse(f"x 1\n{line}\ny 1\n").symbols[4:] == ("x", symbol, "y")


@pytest.mark.parametrize(
    "odd", ["b 2  ", "b 2\r", "b -2", "b 2 #fairseq:overwrite", "b 12345678901234567890", "b \u0663"]
)
def test_an_unusual_line_changes_no_other(odd: str) -> None:
    """Files of usual lines alone are read at once; the last line may end without a line feed."""
    lines = ["a 1", "\x85 1", " 1", "1 1 1", "\u2028 3", "\x0b 1"]
    usual = parse("\n".join(lines) + "\n")
    for text in ("\n".join([*lines, odd]), "\n".join([*lines, odd, ""])):
        assert parse(text).symbols == (*usual.symbols, "b")
        counts = parse(text).counts
        assert counts is not None
        assert counts[:-1] == usual.counts == (1, 1, 1, 1, 1, 1, 1, 1, 3, 1)


def test_equal_strings_are_held_once() -> None:
    like = tuple("".join(letters) for letters in ("ab", "cd"))
    dictionary = Dictionary.parse(b"ab 2\ncd 1\n", like=like, name="dict.txt")
    assert all(one is other for one, other in zip(dictionary.symbols[4:], like, strict=True))
    assert Dictionary.parse(b"cd 2\nab 1\n", like=like, name="dict.txt").symbols[4:] == ("cd", "ab")


def test_lines_end_at_universal_newlines_only() -> None:
    assert parse("a 1\r\nb 1\rc 1\n\x85 1\nd\x0b 1\n").symbols[4:] == ("a", "b", "c", "\x85", "d\x0b")


def test_an_overwritten_symbol_moves_and_its_old_row_stays() -> None:
    dictionary = parse("a 1\nb 1\na 1 #fairseq:overwrite\n")
    assert dictionary.symbols[4:] == ("a", "b", "a")
    assert dictionary.index("a") == 6


def test_a_duplicate_is_refused_with_its_line_number() -> None:
    with pytest.raises(InputError, match=r"dict\.txt, line 3: 'a' comes a second time"):
        parse("a 1\nb 1\na 1\n")


@pytest.mark.parametrize("rows", [8, 9])
def test_duplicates_overwrite_where_only_that_makes_the_rows_add_up(rows: int) -> None:
    dictionary = parse(CAMEMBERT, expected_rows=rows)
    assert (dictionary.bos_index, dictionary.eos_index) == (5, 6)
    assert (dictionary.pad_index, dictionary.unk_index) == (1, 3)


def test_duplicates_are_refused_where_the_rows_still_do_not_add_up() -> None:
    with pytest.raises(InputError, match="it has 8 names, but the model 7 rows"):
        parse(CAMEMBERT, expected_rows=7)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"a 1\nb\n", "line 2: 'b' is not 'symbol count'"),
        (b"a 1\n\nb 1\n", "line 2: '' is not"),
        (b"a\n7 c 5\n", "line 1: 'a' is not"),  # as many spaces as lines
        (b"a 1.5\n", "line 1"),
        (b"a 1\nb 1 #fairseq:other\n", "line 2"),
        ("<unk>\t0\n▁the\t-3.5\n".encode(), "SentencePiece .vocab"),
        (b"a 1\n\xff 1\n", "line 2: not UTF-8"),
        (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02\n\x0f\xff", "SentencePiece model"),
        (b"PK\x03\x04\xff", "a checkpoint"),
        (b'{"a": 1}', "a JSON file"),
    ],
)
def test_a_file_that_is_no_dictionary_is_refused_with_the_line_and_a_guess(data: bytes, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint.replace(".", r"\.")):
        parse(data)


@pytest.mark.skipif(not XLMR_DICTIONARY.exists(), reason="shared/data/xlmr-vocabulary is not here")
def test_xlmr_has_250002_names_and_next_line_among_them() -> None:
    dictionary = parse(XLMR_DICTIONARY.read_bytes()).with_mask()
    assert len(dictionary) == 250002
    assert dictionary.mask_index == 250001
    assert dictionary.index("\x85") == 97636
