"""The exported tokenizer, loaded by plain Transformers, gives the ids that fairseq gives."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hf_xlmr.conversion.proof.tokenizer_parity import EMPHATIC, EXACT_CLASSES, compare_tokenizers
from hf_xlmr.conversion.tokenizer_json.vocabulary import Vocabulary, build_vocabulary, write_tokenizer
from hf_xlmr.errors import InputError
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import ModelType, PieceType, SentencePieceModel
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
XLMR = SHARED / "data" / "xlmr-vocabulary"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
TEXTS_PER_CLASS = 240
REPEATS = re.compile(r"(.)\1\1|(.)(.)\2\3\2|(.{3,8}?)\4", flags=re.DOTALL)  # `aaa`, `ababa`, three to eight twice

WORDS = [
    word
    for line in (
        "the train leaves the old station at eight and nobody is waiting for it in the rain",
        "der Zug fährt pünktlich über die Brücke la pluie tombe sur la ville où rien ne bouge",
        "поезд идёт на север через лес и поле τρένο φεύγει νωρίς القطار يغادر المحطة القديمة",
        "नमस्ते दुनिया रेल स्टेशन 今日は天気がいいですね 你好世界火车站 날씨가 좋습니다 기차역에서",
        "รถไฟออกแล้ว tiếng Việt rất đẹp İstanbul'da yağmur 8:45 1984 (so) ok. yes, no! what? 100% a-b e-mail x",
    )
    for word in line.split()
]
WHITE_SPACE = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000"
ASSIGNED = [
    chr(code)
    for code in range(0x21, 0x30000)
    if unicodedata.category(chr(code)) not in {"Cn", "Co", "Cs"} and not unicodedata.category(chr(code)).startswith("M")
]
MARKS = [chr(code) for code in range(0x300, 0x3000) if unicodedata.category(chr(code)).startswith("M")]
STRANGE = "\u1d2cqzŋ👍🏽🙂☃ꙮ𐍈鑫龘ෆ€ßÞ"


def lines(count: int = 400) -> list[str]:
    chance = random.Random(1)
    return [" ".join(chance.choice(WORDS) for _ in range(chance.randint(3, 9))) for _ in range(count)]


def train(texts: Iterable[str] | None = None, **options: Any) -> bytes:
    from sentencepiece import SentencePieceTrainer

    target = io.BytesIO()
    defaults = {"vocab_size": 420, "character_coverage": 1.0, "minloglevel": 2, "hard_vocab_limit": False}
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines() if texts is None else texts), model_writer=target, **{**defaults, **options}
    )
    return target.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Texts, by class


def texts_by_class(pieces: Sequence[str], chance: random.Random) -> dict[str, list[str]]:
    """Texts of which tokenizers must give every id as fairseq does."""

    def some(most: int) -> str:
        return "".join(chance.choice(pieces).replace("▁", " ") for _ in range(chance.randint(1, most)))

    def mixed(most: int, *makers: Callable[[], str]) -> str:
        return "".join(chance.choice(makers)() for _ in range(chance.randint(1, most)))

    def pick(source: Sequence[str]) -> Callable[[], str]:
        return lambda: chance.choice(source)

    few = lambda: some(3)  # noqa: E731
    control = [chr(code) for code in (*range(1, 32), *range(127, 160))]
    space = [*WHITE_SPACE, " ", "  ", "\u200b", "\ufeff"]
    emoji = ["👍", "👍🏽", "👨‍👩‍👧", "🇩🇪", "1️⃣", "❤️", "☃", " "]
    makers: dict[str, Callable[[], str]] = {
        "pieces": lambda: some(25),
        "words": lambda: " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 12))),
        "strange characters": lambda: mixed(10, few, pick(STRANGE), pick(ASSIGNED)),
        "assigned characters": lambda: mixed(12, pick(ASSIGNED)),
        "white space": lambda: mixed(12, few, pick(space)),
        "control characters": lambda: mixed(10, few, pick(control)),
        "literal ▁": lambda: mixed(10, few, pick(["▁", "▁▁", "▁ ", " "])),
        "emoji": lambda: mixed(8, few, pick(emoji)),
        "compatibility characters": lambda: mixed(8, few, pick("ﬁ½Ａ①㈱㍿ª™Ⅷ…ｱﾊ")),
        "next line": lambda: mixed(8, few, pick("\x85\x85 ")),
    }
    made = {
        name: [unicodedata.normalize("NFC", make()) for _ in range(TEXTS_PER_CLASS)] for name, make in makers.items()
    }
    return {name: [text for text in texts if is_ordinary(text)] for name, texts in made.items()}


def is_ordinary(text: str) -> bool:
    """No special strings, which the exported tokenizer takes for specials wherever they stand."""
    return not any(special in unicodedata.normalize("NFKC", text) for special in SPECIALS)


def repeats_nothing(text: str) -> bool:
    """Repeats can be cut into the same pieces in several orders, and rounding decides which."""
    return not REPEATS.search(unicodedata.normalize("NFKC", text).replace(" ", "▁"))


# ---------------------------------------------------------------------------------------------------------------------
# A model and a dictionary, the exact tokenizer and the exported one


@dataclass(frozen=True)
class Pair:
    exact: ExactTokenizer
    exported: Any
    vocabulary: Vocabulary

    def ids(self, *texts: str) -> list[int]:
        return self.in_rows(self.exported(*texts)["input_ids"])

    def in_rows(self, ids: Iterable[int]) -> list[int]:
        """The exported tokenizer's ids; those after the embedding's rows are copies of <unk>."""
        return [3 if index >= self.vocabulary.rows else index for index in ids]

    def mismatches(self, texts: Sequence[str]) -> list[str]:
        rows = zip(texts, self.exported(list(texts))["input_ids"], self.exact.encode_batch(texts), strict=True)
        return [text for text, found, right in rows if self.in_rows(found) != right]


def export(dictionary: Dictionary, model: bytes, folder: Path, *, rows: int | None = None, kind: str = "") -> Pair:
    from transformers import AutoTokenizer

    names = dictionary.with_mask()
    vocabulary = build_vocabulary(dictionary, SentencePieceModel.parse(model, name="spm"), rows=rows or len(names))
    write_tokenizer(vocabulary, folder, model_max_length=512)
    (folder / "config.json").write_text(json.dumps({"model_type": kind or "xlm-roberta"}))
    return Pair(ExactTokenizer(names, model), AutoTokenizer.from_pretrained(folder), vocabulary)


def in_order(model: bytes) -> list[str]:
    parsed = SentencePieceModel.parse(model, name="spm")
    return [piece for piece in parsed.pieces if piece not in SPECIALS[:4]]


def by_frequency(model: bytes, *, keep: float = 0.9, extra: Sequence[str] = ()) -> list[str]:
    """A dictionary as fairseq-preprocess makes it: shuffled, some pieces missing, junk, madeupwords."""
    chance = random.Random(2)
    symbols = [piece for piece in in_order(model) if chance.random() < keep and not piece.isspace()]
    symbols += [word for word in extra if word not in symbols]
    chance.shuffle(symbols)
    return symbols + [f"madeupword{number:04d}" for number in range(-(len(symbols) + 4) % 8)]


def dictionary_of(symbols: Iterable[str]) -> Dictionary:
    return Dictionary.parse("".join(f"{symbol} 1\n" for symbol in symbols).encode(), name="dict.txt")


def assert_same_ids(pair: Pair, *, seed: object = 3) -> None:
    plan = pair.vocabulary.tokenizer
    assert plan is not None
    known = [name for name in plan.names if name not in SPECIALS and " " not in name and not name.startswith("<0x")]
    for name, texts in texts_by_class(known, random.Random(str(seed))).items():
        chosen = [text for text in texts if repeats_nothing(text)]
        assert len(chosen) > TEXTS_PER_CLASS / 4, name
        wrong = pair.mismatches(chosen)
        assert not wrong, f"{name}: {len(wrong)} of {len(chosen)}, first {wrong[0]!r}"


JUNK = [
    "hello",
    "the▁",
    "station",
    "x1y2",
    "qqq",
    "鑫",
    "龘鑫",
    "ꙮ",
    "☃☃",
    "👍🏽",
    "a b",
    "<x>",
    "▁鑫",
    "<s>x",
    "\u1d2c",
]
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {},
    "unigram, identity": {"normalization_rule_name": "identity"},
    "unigram, nfkc_cf": {"normalization_rule_name": "nfkc_cf"},
    "unigram, no prefix": {"add_dummy_prefix": False},
    "unigram, spaces kept": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    "unigram, suffix": {"treat_whitespace_as_suffix": True},
    "unigram, symbols": {"user_defined_symbols": ["<sep>", "station", "ain", "@@"], "control_symbols": ["<ctl>"]},
    "unigram, bytes": {"byte_fallback": True, "vocab_size": 640},
    "unigram, pad and mask pieces": {"pad_id": 3, "user_defined_symbols": ["<mask>"]},
    "unigram, pieces across words": {"split_by_whitespace": False},
    "bpe": {"model_type": "bpe"},
    "bpe, identity": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "bpe, bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 640},
    "bpe, suffix": {"model_type": "bpe", "treat_whitespace_as_suffix": True},
}


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {name: train(**options) for name, options in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", ["in order", "by frequency", "with junk"])
def test_ids_are_fairseqs_whatever_the_model_and_the_order(
    name: str, order: str, models: dict[str, bytes], tmp_path: Path
) -> None:
    model = models[name]
    unknown_to_bpe = {"龘鑫", "☃☃", "👍🏽"}  # see test_a_run_of_unknown_characters_is_looked_up_whole
    junk = [word for word in JUNK if not (name.startswith("bpe") and word in unknown_to_bpe)]
    symbols = {
        "in order": lambda: in_order(model),
        "by frequency": lambda: by_frequency(model),
        "with junk": lambda: by_frequency(model, keep=0.7, extra=junk),
    }[order]()
    pair = export(dictionary_of(dict.fromkeys(symbols)), model, tmp_path)
    assert not any("Decomposed" in note for note in pair.vocabulary.notes)
    assert_same_ids(pair, seed=f"{name}, {order}")  # texts that no other case has


BLANK = ("▁ ", "▁ \x01", " \x01", "\x01\xad", "\x01\u200b\u3000", "▁ \x01\u200ba", "▁ \x01\xadt\u0301", "☃ ▁\x01\n\t")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("suffixed", [False, True])
@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("trims", [False, True])
def test_texts_of_which_the_rules_leave_nothing_have_fairseqs_ids(
    kind: str, suffixed: bool, prefixed: bool, trims: bool, tmp_path: Path
) -> None:
    chance = random.Random(3)
    texts = ["".join(chance.choice(chars) for _ in range(chance.randint(0, 7))) for chars in BLANK for _ in range(60)]
    for number, rules in enumerate(("nmt_nfkc", "identity")):
        options = {"treat_whitespace_as_suffix": suffixed, "remove_extra_whitespaces": trims}
        model = train(
            model_type=kind, normalization_rule_name=rules, add_dummy_prefix=prefixed, vocab_size=160, **options
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = export(dictionary_of(in_order(model)), model, folder)
        rows = zip(texts, pair.exported(texts)["input_ids"], pair.exact.encode_batch(texts), strict=True)
        assert [text for text, found, right in rows if found != right] == []


needs_xlmr = pytest.mark.skipif(not XLMR.exists(), reason="shared/data/xlmr-vocabulary is not here")
WRITE = """
import re, sys
from pathlib import Path
from hf_xlmr.conversion.tokenizer_json.vocabulary import build_vocabulary, write_tokenizer
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.sentencepiece_model import SentencePieceModel
home = Path(sys.argv[1])
dictionary = Dictionary.parse((home / "dict.txt").read_bytes(), name="dict.txt", expected_rows=250002)
model = SentencePieceModel.parse((home / "sentencepiece.bpe.model").read_bytes(), name="spm")
write_tokenizer(build_vocabulary(dictionary, model, rows=250002), Path("."), model_max_length=512)
assert not {"torch", "transformers", "tokenizers", "numpy", "sentencepiece"} & set(sys.modules)
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The tokenizer of XLM-R, and the kilobytes that writing it took in a process of its own."""
    folder = tmp_path_factory.mktemp("xlmr")
    done = subprocess.run([sys.executable, "-c", WRITE, XLMR], cwd=folder, check=True, capture_output=True, timeout=300)
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}')
    return folder, int(done.stdout)


@needs_xlmr
def test_ids_are_fairseqs_with_the_vocabulary_of_xlmr(written: tuple[Path, int]) -> None:
    from transformers import AutoTokenizer

    folder, model = written[0], (XLMR / "sentencepiece.bpe.model").read_bytes()
    dictionary = Dictionary.parse((XLMR / "dict.txt").read_bytes(), name="dict.txt")
    vocabulary = build_vocabulary(dictionary, SentencePieceModel.parse(model, name="spm"), rows=250002)
    pair = Pair(ExactTokenizer(dictionary.with_mask(), model), AutoTokenizer.from_pretrained(folder), vocabulary)
    assert pair.vocabulary.agrees_with_sentencepiece
    assert pair.vocabulary.extra_unk_rows == 0
    assert len(pair.exported) == 250002
    assert pair.ids("Hello world!") == [0, 35378, 8999, 38, 2]
    assert pair.ids("a\x85b") == [0, 10, 275, 2]
    assert pair.ids("Hello <mask>.") == [0, 35378, 250001, 6, 5, 2]
    assert_same_ids(pair)
    classes = compare_tokenizers(pair.vocabulary, pair.exact, folder, count=300)
    assert [each for each in classes if each.name in EXACT_CLASSES and each.different > each.equal_score] == []
    repeats = {each.name: each.equal_score for each in classes if each.equal_score}
    assert repeats.keys() <= {"long repeats", EMPHATIC} and repeats[EMPHATIC] > 0


@needs_xlmr
def test_the_vocabulary_of_xlmr_is_written_in_little_memory(written: tuple[Path, int]) -> None:
    """Measured in a process of its own; tokenizers and transformers stay out of it."""
    assert written[1] < 200 * 1024


@pytest.mark.parametrize("kind", ["xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm"])
def test_every_family_loads_the_pipeline_as_written(kind: str, models: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(models["unigram"])  # must make no difference
    pair = export(dictionary_of(by_frequency(models["unigram"])), models["unigram"], tmp_path, kind=kind)
    assert pair.vocabulary.tokenizer is not None
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    loaded = json.loads(pair.exported.backend_tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        assert loaded[part] == written[part], part
    names, scores = zip(*loaded["model"]["vocab"], strict=True)
    assert list(names) == list(pair.vocabulary.tokenizer.names)
    assert scores == pytest.approx(pair.vocabulary.tokenizer.scores, abs=1e-12)  # their reader may miss the last bit
    assert pair.exported.model_max_length == 512
    assert pair.exported.padding_side == "right"


@pytest.mark.parametrize("name", ["unigram", "bpe", "unigram, bytes"])
def test_texts_pairs_and_masks_are_put_together_as_in_fairseq(
    name: str, models: dict[str, bytes], tmp_path: Path
) -> None:
    pair = export(dictionary_of(in_order(models[name])), models[name], tmp_path)
    mask = pair.vocabulary.mask_index
    assert pair.ids("") == pair.ids(" ") == [0, 2]
    assert pair.ids("the train", "die Brücke") == pair.exact.encode("the train", "die Brücke")
    assert pair.exported("the", "die")["attention_mask"] == [1] * len(pair.ids("the", "die"))
    assert "token_type_ids" not in pair.exported("the")
    assert pair.ids("the <mask>.") == [0, *pair.exact.ids("the"), mask, *pair.exact.ids("."), 2]
    assert pair.ids("<mask> the") == [0, mask, *pair.exact.ids("the"), 2]
    assert pair.exported.decode(pair.ids("the train"), skip_special_tokens=True) == "the train"
    ids = pair.exported(["the train leaves", "the"], padding=True, truncation=True, max_length=4)["input_ids"]
    assert [len(row) for row in ids] == [4, 4]
    assert ids[1][-1] == 1


def test_the_files_are_the_same_bytes_every_time_and_hold_nothing_local(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        export(dictionary_of(by_frequency(models["unigram"], extra=JUNK)), models["unigram"], folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
        assert str(tmp_path).encode() not in first
    assert json.loads((folders[0] / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
        "model_max_length": 512,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def vocabulary_of(symbols: Sequence[str], model: bytes | None, *, rows: int) -> Vocabulary:
    parsed = None if model is None else SentencePieceModel.parse(model, name="spm")
    return build_vocabulary(dictionary_of(symbols), parsed, rows=rows)


def padded(names: int) -> int:
    """Rows as model-parallel training on 8 ranks pads them."""
    return names // 64 * 64 + 64


@pytest.mark.parametrize("surplus", [1, 7, 9, 72, 2048])
def test_rows_that_no_padding_explains_mean_the_wrong_dictionary(surplus: int) -> None:
    symbols = [f"▁{number}" for number in range(64 - 5)]
    with pytest.raises(InputError, match=rf"64 names .* has {64 + surplus} rows"):
        vocabulary_of(symbols, None, rows=64 + surplus)


def test_missing_pieces_get_rows_after_the_embedding(models: dict[str, bytes], tmp_path: Path) -> None:
    symbols = by_frequency(models["unigram"], keep=0.8)
    missing = [piece for piece in in_order(models["unigram"]) if piece not in symbols and not piece.isspace()]
    names = len(symbols) + 5
    rows = padded(names)
    pair = export(dictionary_of(symbols), models["unigram"], tmp_path, rows=rows)
    assert list(pair.vocabulary.missing_pieces) == missing
    assert pair.vocabulary.extra_unk_rows == len(missing)
    assert len(pair.exported) == rows + len(missing)
    assert pair.vocabulary.mask_index == names - 1
    assert any(f"the last {rows - names} are taken for padding" in note for note in pair.vocabulary.notes)
    assert any(
        f"{len(missing)} SentencePiece pieces are not in the dictionary" in note for note in pair.vocabulary.notes
    )
    assert_same_ids(pair)


def test_padded_rows_need_no_names_where_nothing_follows(models: dict[str, bytes], tmp_path: Path) -> None:
    symbols = in_order(models["unigram"])
    pair = export(dictionary_of(symbols), models["unigram"], tmp_path, rows=padded(len(symbols) + 5))
    assert pair.vocabulary.extra_unk_rows == 0
    assert len(pair.exported) == len(symbols) + 5


def test_a_model_without_a_mask_row_gets_no_mask_token(models: dict[str, bytes], tmp_path: Path) -> None:
    symbols = in_order(models["unigram"])
    pair = export(dictionary_of(symbols), models["unigram"], tmp_path, rows=len(symbols) + 4)
    assert pair.vocabulary.mask_index is None
    assert pair.exported.mask_token is None
    assert not pair.vocabulary.agrees_with_sentencepiece
    assert any("no row for <mask>" in note for note in pair.vocabulary.notes)


@pytest.mark.parametrize("symbols", [["a", "b", "c"], ["a", "b", "<mask>"]])
def test_fewer_rows_than_names_mean_the_wrong_dictionary(symbols: list[str]) -> None:
    names = len(dict.fromkeys([*symbols, "<mask>"])) + 4
    fewer = names - 1 if "<mask>" in symbols else names - 2
    with pytest.raises(InputError, match=rf"{names} names .* has {fewer} rows"):
        vocabulary_of(symbols, None, rows=fewer)


def test_agreement_with_sentencepiece_takes_the_same_order_and_the_mask_at_the_end(models: dict[str, bytes]) -> None:
    symbols = in_order(models["unigram"])
    for changed, agrees in (
        (symbols, True),
        ([symbols[1], symbols[0], *symbols[2:]], False),
        (symbols[:-1], False),
        (["<mask>", *symbols], False),
        ([*symbols, "more"], False),
    ):
        rows = len(dict.fromkeys([*changed, "<mask>"])) + 4
        assert vocabulary_of(changed, models["unigram"], rows=rows).agrees_with_sentencepiece is agrees
    bpe = in_order(models["bpe"])
    assert not vocabulary_of(bpe, models["bpe"], rows=len(bpe) + 5).agrees_with_sentencepiece


def test_overwritten_specials_move_and_their_old_rows_are_out_of_reach(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    """As CamemBERT's dictionary: <s> <pad> </s> <unk> <unk> <s> </s> and so on, written before there was a flag."""
    symbols = by_frequency(models["unigram"])
    data = "".join(f"{symbol} 1\n" for symbol in ["<unk>", "<s>", "</s>", *symbols]).encode()
    dictionary = Dictionary.parse(data, name="dict.txt", expected_rows=len(symbols) + 8)
    pair = export(dictionary, models["unigram"], tmp_path)
    assert (pair.vocabulary.bos_index, pair.vocabulary.eos_index, pair.vocabulary.unk_index) == (5, 6, 3)
    assert (pair.exported.bos_token_id, pair.exported.eos_token_id) == (5, 6)
    assert (pair.exported.pad_token_id, pair.exported.unk_token_id) == (1, 3)
    assert any("overwrites <s> and </s>" in note for note in pair.vocabulary.notes)
    assert_same_ids(pair)


def test_overwritten_pieces_give_the_later_row(models: dict[str, bytes], tmp_path: Path) -> None:
    symbols = in_order(models["unigram"])
    lines_of = [f"{symbol} 1\n" for symbol in symbols] + [f"{symbol} 1 #fairseq:overwrite\n" for symbol in symbols[5:9]]
    dictionary = Dictionary.parse("".join(lines_of).encode(), name="dict.txt")
    assert_same_ids(export(dictionary, models["unigram"], tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Corners


def test_a_run_of_unknown_characters_is_looked_up_whole(models: dict[str, bytes], tmp_path: Path) -> None:
    symbols = [*in_order(models["unigram"]), "鑫", "龘鑫", "☃"]
    pair = export(dictionary_of(symbols), models["unigram"], tmp_path)
    ids = {text: pair.ids(text)[2:-1] for text in ("鑫", "龘鑫", "鑫龘", "龘", "☃鑫", "龘鑫☃")}
    first = len(symbols) + 1
    assert ids == {"鑫": [first], "龘鑫": [first + 1], "鑫龘": [3], "龘": [3], "☃鑫": [3], "龘鑫☃": [3]}
    assert pair.vocabulary.unreachable_symbols == ()
    bpe = vocabulary_of([*in_order(models["bpe"]), "鑫", "龘鑫"], models["bpe"], rows=len(in_order(models["bpe"])) + 7)
    assert bpe.unreachable_symbols == ("龘鑫",)


def test_symbols_out_of_reach_are_told(models: dict[str, bytes]) -> None:
    symbols = [*in_order(models["unigram"]), "eeee", "madeupword0000"]
    vocabulary = vocabulary_of(symbols, models["unigram"], rows=len(symbols) + 5)
    assert vocabulary.unreachable_symbols == ("eeee", "madeupword0000")
    assert any("2 dictionary symbols come from no text" in note for note in vocabulary.notes)


def edited(model: bytes, change: Callable[[Any], None]) -> bytes:
    from hf_xlmr.tokenizer.sentencepiece_model import _message_class

    message = _message_class()()
    message.ParseFromString(model)
    change(message)
    return bytes(message.SerializeToString())


def test_a_model_with_characters_only_inside_longer_pieces_is_exact_for_known_text(
    models: dict[str, bytes], tmp_path: Path
) -> None:
    """Some single characters are made unused, as SentencePiece's vocabulary restriction does."""

    def restrict(message: Any) -> None:
        for piece in message.pieces:
            if piece.piece.decode() in "eßдй":
                piece.type = PieceType.UNUSED

    model = edited(models["unigram"], restrict)
    pair = export(dictionary_of(by_frequency(model, keep=0.9)), model, tmp_path)
    assert any("only inside longer pieces" in note for note in pair.vocabulary.notes)
    assert_same_ids(pair)


@pytest.mark.parametrize("kind", [ModelType.WORD, ModelType.CHAR])
def test_models_without_a_counterpart_give_no_tokenizer(kind: ModelType) -> None:
    model = train(model_type=kind.name.lower(), vocab_size=90)
    symbols = in_order(model)
    vocabulary = vocabulary_of(symbols, model, rows=len(symbols) + 5)
    assert vocabulary.tokenizer is None
    assert any(kind.name in note for note in vocabulary.notes)


def test_no_sentencepiece_model_gives_no_tokenizer(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(["a", "b"], None, rows=7)
    assert (vocabulary.tokenizer, vocabulary.mask_index) == (None, 6)
    assert any("no SentencePiece model was given" in note for note in vocabulary.notes)
    with pytest.raises(InputError, match="no tokenizer to write"):
        write_tokenizer(vocabulary, tmp_path, model_max_length=512)
    assert list(tmp_path.iterdir()) == []


def test_spaces_inside_pieces_give_no_tokenizer(models: dict[str, bytes]) -> None:
    def keep_spaces(message: Any) -> None:
        message.normalizer_spec.escape_whitespaces = False

    symbols = in_order(models["unigram"])
    vocabulary = vocabulary_of(symbols, edited(models["unigram"], keep_spaces), rows=len(symbols) + 5)
    assert vocabulary.tokenizer is None


def test_the_comparison_sees_a_wrong_order(models: dict[str, bytes], tmp_path: Path) -> None:
    """The negative control: two rows exchanged must not go unseen."""
    symbols = in_order(models["unigram"])
    pair = export(dictionary_of(symbols), models["unigram"], tmp_path)
    swapped = dictionary_of([symbols[1], symbols[0], *symbols[2:]]).with_mask()
    wrong = Pair(ExactTokenizer(swapped, models["unigram"]), pair.exported, pair.vocabulary)
    with pytest.raises(AssertionError, match="pieces: "):
        assert_same_ids(wrong)
