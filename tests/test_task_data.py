"""XNLI, MLQA and NER are read from every form they are published in; each bad input is one sentence with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import told

from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.task_data import read_task_data
from hf_xlmr.tasks.metrics import mlqa_rules, score_answers
from hf_xlmr.tasks.mlqa import MisalignedAnswers, open_questions
from hf_xlmr.tasks.ner import NerExample, open_ner
from hf_xlmr.tasks.xnli import XNLI_LABELS, XNLI_LANGUAGES, open_xnli

PAIRS = {  # "The shop is open." and "One can buy bread." in the languages of XNLI
    "en": ("The shop is open.", 'One can buy "bread.'),
    "fr": ("Le magasin est ouvert.", "On peut acheter du pain."),
    "es": ("La tienda está abierta.", "Se puede comprar pan."),
    "de": ("Der Laden ist offen.", "Man kann Brot kaufen."),
    "el": ("Το μαγαζί είναι ανοιχτό.", "Μπορεί κανείς να αγοράσει ψωμί."),
    "bg": ("Магазинът е отворен.", "Може да се купи хляб."),
    "ru": ("Магазин открыт.", "Можно купить хлеб."),
    "tr": ("Dükkân açık.", "Ekmek alınabilir."),
    "ar": ("المتجر مفتوح.", "يمكن شراء الخبز."),
    "vi": ("Cửa hàng đang mở.", "Có thể mua bánh mì."),
    "th": ("ร้านเปิดอยู่", "ซื้อขนมปังได้"),
    "zh": ("商店开着。", "可以买面包。"),
    "hi": ("दुकान खुली है।", "रोटी खरीदी जा सकती है।"),
    "sw": ("Duka limefunguliwa.", "Mtu anaweza kununua mkate."),
    "ur": ("دکان کھلی ہے۔", "روٹی خریدی جا سکتی ہے۔"),
}
LABELS = ("entailment", "neutral", "contradiction")
ROWS = [(language, *pair, LABELS[number % 3]) for number, (language, pair) in enumerate(PAIRS.items())]


def spelt(label: str) -> str:
    return {"contradiction": "contradictory"}.get(label, label)


def read_xnli(source: Path | str, **options: Any) -> list[tuple[str, str, str, str]]:
    return [(each.language, each.premise, each.hypothesis, each.label) for each in open_xnli(source, **options)]


def write_tsv(path: Path, header: str, rows: list[tuple[str, ...]]) -> Path:
    text = "".join("\t".join(row) + "\n" for row in [tuple(header.split()), *rows])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- XNLI ------------------------------------------------------------------------------------------------------------

RELEASED = "language gold_label sentence1_binary_parse sentence1 sentence2 pairID label1"


def released(rows: list[tuple[str, str, str, str]]) -> list[tuple[str, ...]]:
    return [(lang, spelt(label), "( x )", first, second, "7", label) for lang, first, second, label in rows]


def test_the_fifteen_languages_stand_in_the_papers_order() -> None:
    assert tuple(PAIRS) == XNLI_LANGUAGES
    assert XNLI_LABELS == LABELS


@pytest.mark.parametrize("name", ["xnli.dev.tsv", "xnli.test.tsv.gz"])
def test_the_table_that_xnli_released(tmp_path: Path, name: str) -> None:
    """All languages are in one file, and a quotation mark is only a character."""
    path = write_tsv(tmp_path / name, RELEASED, released(ROWS))
    assert read_xnli(path) == ROWS == read_xnli(str(path))
    assert read_xnli(path, language="sw") == [row for row in ROWS if row[0] == "sw"]
    assert [each.place for each in open_xnli(path)][:2] == [f"{name}, line 2", f"{name}, line 3"]


def test_the_json_lines_that_xnli_released(tmp_path: Path) -> None:
    names = RELEASED.split()
    rows = [dict(zip(names, row, strict=True)) for row in released(ROWS)]
    assert read_xnli(write_lines(tmp_path / "xnli.dev.jsonl", rows)) == ROWS


def test_translations_of_multinli_for_training(tmp_path: Path) -> None:
    for language in ("de", "th"):
        rows = [(first, second, spelt(label)) for _, first, second, label in ROWS if _ == language]
        write_tsv(tmp_path / f"multinli.train.{language}.tsv", "premise hypo label", rows)
    expected = [row for row in ROWS if row[0] in ("de", "th")]
    assert read_xnli(tmp_path / "multinli.train.th.tsv") == expected[1:]
    assert read_xnli(str(tmp_path / "multinli.train.*.tsv")) == expected
    assert read_xnli(str(tmp_path / "multinli.train.*.tsv"), language="de") == expected[:1]


def test_a_table_that_tells_no_language_is_given_one(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "mine.tsv", "premise hypo label", [ROWS[3][1:], ()])
    assert read_xnli(path, language="de") == [ROWS[3]]
    assert (
        told(read_xnli, path)
        == "mine.tsv, line 2: nothing here says which language this is: give the language (en=FILE)"
    )


def one_language(features: bool = True) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value

    data = {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "label": [0, 1, 2]}
    kinds = {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=list(LABELS))}
    return Dataset.from_dict(data, features=Features(kinds) if features else None)


THREE = [("a", "d", "entailment"), ("b", "e", "neutral"), ("c", "f", "contradiction")]


def test_the_data_set_of_one_language(tmp_path: Path) -> None:
    """As `save_to_disk` leaves it, which keeps the name of the config, and as Parquet in a folder of that name."""
    from datasets import DatasetDict

    data = one_language()
    data.info.config_name = "el"
    DatasetDict(test=data, validation=data.select([0])).save_to_disk(str(tmp_path / "saved"))
    assert read_xnli(tmp_path / "saved", split="test") == [("el", *row) for row in THREE]
    assert "has the splits test, validation" in told(read_xnli, tmp_path / "saved")
    for language in ("el", "hi"):
        (tmp_path / language).mkdir()
        data.to_parquet(tmp_path / language / "test-00000-of-00001.parquet")
    assert read_xnli(str(tmp_path / "*" / "test-*.parquet")) == [(lang, *row) for lang in ("el", "hi") for row in THREE]


def test_numbers_of_labels_mean_what_the_data_set_says(tmp_path: Path) -> None:
    from datasets import ClassLabel

    other = one_language().cast_column("label", ClassLabel(names=["contradiction", "entailment", "neutral"]))
    for path, data in ((tmp_path / "named.parquet", other), (tmp_path / "plain.parquet", one_language(features=False))):
        data.to_parquet(path)
    assert [row[3] for row in read_xnli(tmp_path / "named.parquet", language="en")] == [
        *("contradiction", "entailment", "neutral")
    ]
    assert [row[3] for row in read_xnli(tmp_path / "plain.parquet", language="en")] == list(LABELS)


def test_numbers_of_labels_may_be_text(tmp_path: Path) -> None:
    """As in a table that `datasets` or pandas wrote."""
    rows = [(first, second, str(number)) for number, (first, second, _) in enumerate(THREE)]
    path = write_tsv(tmp_path / "x.tsv", "premise hypothesis label", rows)
    assert read_xnli(path, language="en") == [("en", *row) for row in THREE]
    bad = write_tsv(tmp_path / "y.tsv", "premise hypothesis label", [("a", "b", "3")])
    assert "y.tsv, line 2: the label '3' is unknown" in told(read_xnli, bad, language="en")


@pytest.mark.parametrize("mark", ["-", "-1", -1])
def test_pairs_without_an_agreed_label_are_refused_or_skipped_and_counted(tmp_path: Path, mark: str | int) -> None:
    names = ("language", "sentence1", "sentence2", "gold_label")
    rows = [("en", "a", "b", "neutral"), ("en", "c", "d", mark), ("de", "e", "f", mark), ("de", "g", "h", "neutral")]
    path = write_lines(tmp_path / "x.jsonl", [dict(zip(names, row, strict=True)) for row in rows])
    message = told(read_xnli, path)
    assert message.startswith("x.jsonl, line 2: the label (- or -1) says") and "unlabelled='skip'" in message
    assert [row[1] for row in read_xnli(path, unlabelled="skip")] == ["a", "g"]
    data = read_task_data("xnli", [str(path)], Reading())
    assert {key: len(each) for key, each in data.examples.items()} == data.skipped == {"en": 1, "de": 1}
    hidden = write_lines(tmp_path / "y.jsonl", [dict(zip(names, rows[1], strict=True))])
    message = told(read_task_data, "xnli", [str(hidden)], Reading())
    assert message.endswith("no examples are left; 1 were left out, for labels on which the annotators did not agree")


@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "parquet"])
def test_the_data_set_of_all_languages(tmp_path: Path, is_saved: bool) -> None:
    """Every row holds all translations: those of the hypothesis as two lists."""
    from datasets import ClassLabel, Dataset, Features, Translation, TranslationVariableLanguages

    languages = sorted(PAIRS)
    kinds = {
        "premise": Translation(languages=languages),
        "hypothesis": TranslationVariableLanguages(languages=languages),
        "label": ClassLabel(names=list(LABELS)),
    }
    first, second = ({language: PAIRS[language][at] for language in languages} for at in (0, 1))
    data = Dataset.from_list([{"premise": first, "hypothesis": second, "label": 1}] * 2, features=Features(kinds))
    path = tmp_path / ("all" if is_saved else "all.parquet")
    (data.save_to_disk if is_saved else data.to_parquet)(path)
    expected = [(language, *PAIRS[language], "neutral") for language in languages]
    assert read_xnli(path) == expected * 2
    assert read_xnli(path, language="ur") == [row for row in expected if row[0] == "ur"] * 2
    assert "no examples of 'fi'; it has ar, bg, de" in told(read_xnli, path, language="fi")


def test_translations_as_plain_objects(tmp_path: Path) -> None:
    row = {"premise": {"de": "a", "en": "b"}, "hypothesis": {"en": "c", "de": "d"}, "label": 2}
    path = write_lines(tmp_path / "all.jsonl", [row])
    assert read_xnli(path) == [("de", "a", "d", "contradiction"), ("en", "b", "c", "contradiction")]


def test_a_streamed_data_set_is_read_like_any_other(tmp_path: Path) -> None:
    """As `load_dataset(..., streaming=True)` gives it for a name of the Hub; some know their columns, some do not."""
    from datasets import IterableDataset, load_dataset

    from hf_xlmr.data.columns import Source
    from hf_xlmr.tasks.xnli import XnliInput

    rows = [dict(zip(("premise", "hypothesis", "label"), row, strict=True)) for row in THREE]
    path = write_lines(tmp_path / "x.jsonl", rows)
    knows = load_dataset("json", data_files=str(path), streaming=True, split="train")
    does_not = IterableDataset.from_generator(lambda: iter(rows))
    assert knows.features is not None and does_not.features is None
    for data in (knows, does_not):
        opened = XnliInput("owner/name", (Source("owner/name", Path("owner/name"), data),), "en")
        expected = [("owner/name, row 0", "a"), ("owner/name, row 1", "b"), ("owner/name, row 2", "c")]
        assert [(each.place, each.premise) for each in opened] == expected
        assert [(each.place, each.premise) for each in opened] == expected, "each iteration reads again"


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        (
            "premise hypo label",
            [("a", "b", "neutral"), ("a", "b", "maybe")],
            "x.tsv, line 3: the label 'maybe' is unknown; there are entailment (0), neutral (1), contradiction (2)",
        ),
        ("premise hypo label", [("a", "b")], "x.tsv, line 2: 2 fields are below a header of 3"),
        ("premise hypo label", [], "x.tsv holds no examples"),
        (
            "a b c",
            [],
            "x.tsv, line 1: the columns are a b c; needed are sentence1 sentence2 gold_label, or premise hyp",
        ),
        ("premise hypo label hypo", [], "x.tsv, line 1: there are several columns 'hypo'"),
        (RELEASED, released(ROWS[:2]), "x.tsv holds no examples of 'de'; it has en, fr"),
    ],
    ids=["label", "fields", "empty", "columns", "twice", "language"],
)
def test_a_bad_table_is_told_by_one_sentence(
    tmp_path: Path, header: str, rows: list[tuple[str, ...]], sentence: str
) -> None:
    path = write_tsv(tmp_path / "x.tsv", header, rows)
    assert told(read_xnli, path, language="de").removeprefix(f"{tmp_path}/").startswith(sentence)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"premise": "a", "hypothesis": 3, "label": 0}, "x.jsonl, line 1: the text is a number, not a string"),
        ({"premise": "a", "hypothesis": "b", "label": True}, "the label True is unknown"),
        ({"premise": "a", "hypothesis": "b", "label": 3}, "the label 3 is unknown"),
        ({"premise": {"de": "a"}, "hypothesis": {"en": "b"}, "label": 0}, "the hypothesis is missing in 'de'"),
        ({"premise": {"de": "a"}, "hypothesis": "b", "label": 0}, "in several languages, the hypothesis is not"),
        (
            {"premise": {"de": "a"}, "hypothesis": {"language": ["de"], "translation": []}, "label": 0},
            "0 translations of the hypothesis are in 1 languages",
        ),
        (
            {"premise": {"d": "a"}, "hypothesis": {"language": ["d", "e"], "translation": "bc"}, "label": 0},
            "x.jsonl, line 1: 'translation' of the hypothesis is a string, not a list",
        ),
        (
            {"premise": {"de": "a"}, "hypothesis": {"language": 5, "translation": 6}, "label": 0},
            "'language' of the hypothesis is a number, not a list",
        ),
        (
            {"premise": {"de": "a"}, "hypothesis": {"language": [["de"]], "translation": ["b"]}, "label": 0},
            "a language is a list, not a string",
        ),
        (
            {"sentence1": "a", "sentence2": "b", "gold_label": "-", "language": "de"},
            "x.jsonl, line 1: the label (- or -1) says that the annotators did not agree",
        ),
        (7, "a row is an object, not a number"),
    ],
)
def test_a_bad_row_is_told_by_one_sentence(tmp_path: Path, row: Any, sentence: str) -> None:
    assert sentence in told(read_xnli, write_lines(tmp_path / "x.jsonl", [row]), language="de")


@pytest.mark.parametrize(
    "written", [b"{", b"[]", b'{"info": {"features": 3}}', b'{"info": {"features": {"label": {"names": 3}}}}']
)
def test_damaged_words_about_the_columns_are_told(tmp_path: Path, written: bytes) -> None:
    """Those that `datasets` leaves in a Parquet file: without them nobody knows what the numbers mean."""
    one_language().to_parquet(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet").replace_schema_metadata({b"huggingface": written})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "x.parquet: what datasets wrote about the column" in told(read_xnli, tmp_path / "x.parquet", language="de")


def test_a_damaged_parquet_file_is_told(tmp_path: Path) -> None:
    one_language().to_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    for damaged in (whole[:-20], whole[: len(whole) // 2], whole[:-600] + b"\xff" * 592 + whole[-8:]):
        (tmp_path / "x.parquet").write_bytes(damaged)
        assert "x.parquet is not a Parquet file: " in told(read_xnli, tmp_path / "x.parquet", language="de")


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.doc").write_bytes(b"")
    (tmp_path / "x.tsv").write_bytes(b"\xff\xfep\x00")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    pq.write_table(pa.table([[1], [2]], names=["label", "label"]), tmp_path / "y.parquet")
    for name, options, sentence in (
        ("gone.tsv", {}, "gone.tsv does not exist"),
        ("folder", {}, "holds no data set; name the file in it that is meant, or a pattern"),
        ("x.doc", {}, "x.doc is of no known kind; XNLI is read from .tsv, .txt, .csv, .train"),
        ("x.tsv", {}, "x.tsv, line 1: the file is UTF-16"),
        ("x.tsv", {"split": "train", "config": "de"}, "is not a data set, so it has no split or config"),
        ("x.parquet", {}, "x.parquet: the columns are 'a', of which none is known"),
        ("y.parquet", {}, "y.parquet: there are several columns 'label'"),
    ):
        assert sentence in told(read_xnli, tmp_path / name, **options), name
    assert "is a folder; " in told(read_xnli, str(tmp_path / "*"))


# ---- MLQA and SQuAD --------------------------------------------------------------------------------------------------

RIVER = "Die Elbe fließt durch Dresden und mündet bei Cuxhaven in die Nordsee."
TOWER = "河边的塔有三十米高，建于一九〇二年。🙂 塔是红色的。"


def question(id_: str, text: str, context: str, *answers: str) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": id_, "question": text, "answers": found}


def squad(*paragraphs: tuple[str, list[dict[str, Any]]]) -> dict[str, Any]:
    listed = [{"context": context, "qas": qas} for context, qas in paragraphs]
    return {"version": "1.0", "data": [{"title": "t", "paragraphs": [each]} for each in listed]}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


ON_THE_RIVER = (RIVER, [question("r1", "Which town?", RIVER, "Dresden", "durch Dresden"), question("r2", "?", RIVER)])
ON_THE_TOWER = (TOWER, [question("t1", "What colour?", TOWER, "红色")])


def read_questions(source: Path | str, **options: Any) -> list[str]:
    return [each.id for each in open_questions(source, **options)]


def test_questions_with_their_contexts_and_answers(tmp_path: Path) -> None:
    path = write_json(tmp_path / "test-context-de-question-en.json", squad(ON_THE_RIVER))
    first, second = open_questions(path)
    assert (first.id, first.question, first.context) == ("r1", "Which town?", RIVER)
    assert (first.context_language, first.question_language) == ("de", "en")
    assert [(each.text, RIVER[each.start :][:7]) for each in first.answers] == [
        ("Dresden", "Dresden"),
        ("durch Dresden", "durch D"),
    ]
    assert (second.id, second.answers) == ("r2", ())
    assert first.place == "test-context-de-question-en.json, question 'r1'"


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("dev-context-zh-question-vi.json", ("zh", "vi")),
        ("train-v1.1.json", ("en", "en")),
        ("dev-v2.0.json", ("en", "en")),
        ("hi_squad-translate-train-train-v1.1.json", ("hi", "hi")),
    ],
)
def test_names_tell_the_languages(tmp_path: Path, name: str, pair: tuple[str, str]) -> None:
    write_json(tmp_path / name, squad(ON_THE_TOWER))
    zipped = tmp_path / f"{name}.gz"
    zipped.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for path in (tmp_path / name, zipped):
        (example,) = open_questions(path)
        assert (example.context_language, example.question_language) == pair
        assert example.context[example.answers[0].start] == "红", "starts count characters, also beyond the emoji"


def test_a_pair_is_picked_from_a_folder_of_pairs(tmp_path: Path) -> None:
    for pair, content in (("de-question-en", ON_THE_RIVER), ("zh-question-en", ON_THE_TOWER)):
        write_json(tmp_path / f"test-context-{pair}.json", squad(content))
    pattern = str(tmp_path / "test-*.json")
    assert read_questions(pattern) == ["r1", "r2", "t1"]
    assert read_questions(pattern, context_language="zh", question_language="en") == ["t1"]
    sentence = "has no contexts and questions in ar by any; it has de by en, zh by en"
    assert sentence in told(read_questions, pattern, context_language="ar")


def test_a_name_that_tells_no_languages(tmp_path: Path) -> None:
    path = write_json(tmp_path / "mine.json", squad(ON_THE_RIVER))
    assert "mine.json does not say its languages" in told(read_questions, path, context_language="de")
    (first, _) = open_questions(path, context_language="de", question_language="en")
    assert (first.context_language, first.question_language) == ("de", "en")


@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "parquet"])
def test_questions_of_a_data_set(tmp_path: Path, is_saved: bool) -> None:
    """As `rajpurkar/squad` has them: the answers of a question are two lists."""
    from datasets import Dataset

    answers = {"text": ["Dresden", "Cuxhaven"], "answer_start": [RIVER.index("Dresden"), RIVER.index("Cuxhaven")]}
    rows = [{"id": "r1", "title": "t", "context": RIVER, "question": "Where?", "answers": answers}]
    data = Dataset.from_list([*rows, {**rows[0], "id": "r2", "answers": {"text": [], "answer_start": []}}])
    path = tmp_path / ("squad" if is_saved else "squad.parquet")
    (data.save_to_disk if is_saved else data.to_parquet)(path)
    first, second = open_questions(path, context_language="de", question_language="en")
    assert [each.text for each in first.answers] == answers["text"]
    assert [each.start for each in first.answers] == answers["answer_start"]
    assert (second.id, second.answers) == ("r2", ())


def test_questions_go_to_their_scores(tmp_path: Path) -> None:
    for pair, content in (("de-question-en", ON_THE_RIVER), ("zh-question-en", ON_THE_TOWER)):
        answered = content[0], content[1][:1]
        write_json(tmp_path / f"test-context-{pair}.json", squad(answered))
    for language, predicted, f1 in (("de", {"r1": "das Dresden"}, 100.0), ("zh", {"t1": "红"}, 200 / 3)):
        opened = open_questions(str(tmp_path / "*.json"), context_language=language, misaligned="keep")
        answers = ((each.id, [answer.text for answer in each.answers]) for each in opened)
        scores = score_answers(predicted, answers, rules=mlqa_rules(language))
        assert scores.f1 == pytest.approx(f1)


def misaligned_file(folder: Path, n_bad: int = 1) -> Path:
    bad = [question(f"b{number}", "?", RIVER, "Elbe") for number in range(n_bad)]
    for number, each in enumerate(bad):
        each["answers"][0]["answer_start"] += (1, -1, 1000, -1000)[number % 4]
    return write_json(folder / "test-context-de-question-de.json", squad(ON_THE_RIVER, (RIVER, bad), ON_THE_TOWER))


def test_misaligned_answers_are_refused_before_the_first_question(tmp_path: Path) -> None:
    opened = open_questions(misaligned_file(tmp_path, 7))
    with pytest.raises(MisalignedAnswers) as caught:
        next(iter(opened))
    assert [each.id for each in caught.value.found] == [f"b{number}" for number in range(7)]
    assert caught.value.found[0].answer.text == "Elbe"
    assert (
        "7 questions have answers that are not in the context at answer_start ('b0', 'b1', 'b2', 'b3', 'b4', ...);"
        " leave them out with misaligned='skip'"
    ) in str(caught.value)
    assert "1 question has an answer that is not" in told(read_questions, misaligned_file(tmp_path, 1))


def test_misaligned_answers_are_skipped_or_kept_and_counted(tmp_path: Path) -> None:
    path = misaligned_file(tmp_path, 2)
    assert read_questions(path, misaligned="skip") == ["r1", "r2", "t1"]
    assert read_questions(path, misaligned="keep") == ["r1", "r2", "b0", "b1", "t1"]
    for way in ("skip", "keep"):
        assert [each.id for each in open_questions(path, misaligned=way).misaligned] == ["b0", "b1"]  # type: ignore[arg-type]
    assert "misaligned is one of refuse, skip, keep, not 'drop'" in told(read_questions, path, misaligned="drop")


def test_ids_of_misaligned_answers_are_told_by_pair(tmp_path: Path) -> None:
    path = str(misaligned_file(tmp_path, 2))
    for way, skipped in (("skip", {"de": 2}), ("keep", {})):
        data = read_task_data("mlqa", [path], Reading(misaligned=way))  # type: ignore[arg-type]
        assert (data.misaligned, data.skipped) == ({"de": ("b0", "b1")}, skipped)


@pytest.mark.parametrize("asked", ["de-de", "DE", "de", "De-dE"])
def test_a_pair_of_one_language_is_that_language(tmp_path: Path, asked: str) -> None:
    for name, content in (("de", ON_THE_RIVER), ("zh", ON_THE_TOWER)):
        write_json(tmp_path / f"test-context-{name}-question-{name}.json", squad(content))
    data = read_task_data("mlqa", [str(tmp_path / "*.json")], Reading(languages=(asked,)))
    assert list(data.examples) == ["de"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "dev-v1.1.json is empty"),
        ('{"data": [],\n oops', "dev-v1.1.json, line 2: this is not JSON"),
        ("[]", "SQuAD's JSON is an object, not a list"),
        ('{"version": "1.1"}', "there is no column 'data'; the columns are 'version'"),
        ('{"data": {}}', "'data' is an object, not a list"),
        ('{"data": []}', "holds no questions"),
        ('{"data": [{"paragraphs": [3]}]}', "v1.1.json, data[0], paragraphs[0]: an object is expected, not a number"),
        (squad((RIVER, [{"id": "q", "question": "?"}])), "question 'q': there is no column 'answers'"),
        (squad((RIVER, [{"id": 7, "question": "?", "answers": []}])), "qas[0]: 'id' is a number, not a string"),
        (
            squad((RIVER, [{"id": "q", "question": "?", "answers": [{"text": "Elbe", "answer_start": "4"}]}])),
            "question 'q', answers[0]: 'answer_start' is a string, not a whole number",
        ),
        (
            squad((RIVER, [{"id": "q", "question": "?", "answers": [{"text": "Elbe", "answer_start": 0.0}]}])),
            "question 'q', answers[0]: 'answer_start' is 0.0, not a whole number",
        ),
        (squad(ON_THE_RIVER, ON_THE_RIVER), "question 'r1': another question has the same id"),
    ],
)
def test_bad_questions_are_told_by_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "dev-v1.1.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert sentence in told(read_questions, path)


# ---- NER -------------------------------------------------------------------------------------------------------------

CONLL = """-DOCSTART- -X- O O

Anna NNP B-NP B-PER
Berg NNP I-NP I-PER
wohnt VB O O
in IN O O
Ulm NNP B-NP B-LOC

Sie\u00a0ging PR O O

"""
WIKIANN = "sw:Mto\tO\nsw:Nile\tB-LOC\n\n\nsw:http://x.y\tO\nsw::\tO\nsw:New York\tB-LOC"


def read_ner(source: Path | str, **options: Any) -> list[tuple[str, str, str]]:
    return [(each.language, "|".join(each.tokens), " ".join(each.tags)) for each in open_ner(source, **options)]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", ["-DOCSTART- -DOCSTART- O", "-DOCSTART- -X- -X- O O", "-DOCSTART-"])
def test_the_mark_of_a_document_ends_a_sentence_and_is_none(mark: str, tmp_path: Path) -> None:
    """In CoNLL-2002 no blank line follows it."""
    path = written(tmp_path / "ned.testa", f"{mark}\nDe Art O\nParis N B-LOC\n\nx N O\n{mark}\ny N O\n")
    assert read_ner(path, language="nl") == [("nl", "De|Paris", "O B-LOC"), ("nl", "x", "O"), ("nl", "y", "O")]


def test_columns_of_conll(tmp_path: Path) -> None:
    path = written(tmp_path / "deu.testa", CONLL)
    assert read_ner(path, language="de") == [
        ("de", "Anna|Berg|wohnt|in|Ulm", "B-PER I-PER O O B-LOC"),
        ("de", "Sie\u00a0ging", "O"),
    ]
    assert next(iter(open_ner(path, language="de"))) == NerExample(
        "deu.testa, line 3", "de", ("Anna", "Berg", "wohnt", "in", "Ulm"), ("B-PER", "I-PER", "O", "O", "B-LOC")
    )
    tabbed = written(tmp_path / "two.txt", "北京\tB-LOC\r\n很大\tO\r\n")
    assert read_ner(tabbed, language="zh") == [("zh", "北京|很大", "B-LOC O")]


def test_wikiann_tells_its_language(tmp_path: Path) -> None:
    """Words may hold colons and spaces; files are called train, dev and test."""
    path = written(tmp_path / "train", WIKIANN)
    expected = [("sw", "Mto|Nile", "O B-LOC"), ("sw", "http://x.y|:|New York", "O O B-LOC")]
    assert read_ner(path) == read_ner(path, language="sw") == expected
    assert told(read_ner, path, language="de").endswith("train holds no examples of 'de'; it has sw")


@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "parquet"])
def test_tokens_and_tags_of_a_data_set(tmp_path: Path, is_saved: bool) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    kinds = {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-PER"]))}
    data = Dataset.from_dict({"tokens": [["Anna", "lacht"], ["ja"]], "ner_tags": [[1, 0], [0]]}, Features(kinds))
    with_languages = data.add_column("langs", [["de", "de"], ["fi"]])
    for name, each in (("plain", data), ("told", with_languages)):
        path = tmp_path / (name if is_saved else f"{name}.parquet")
        (each.save_to_disk if is_saved else each.to_parquet)(path)
        expected = [("de", "Anna|lacht", "B-PER O"), ("fi" if name == "told" else "de", "ja", "O")]
        assert read_ner(path, language=None if name == "told" else "de") == expected


@pytest.mark.parametrize("form", ['{"feature": %s, "_type": "List"}', '{"feature": %s, "_type": "Sequence"}', "[%s]"])
def test_names_of_tags_as_every_version_of_datasets_writes_them(tmp_path: Path, form: str) -> None:
    names = form % '{"names": ["O", "B-PER"], "_type": "ClassLabel"}'
    table = pa.table({"tokens": [["Anna", "lacht"]], "ner_tags": [[1, 0]]})
    written = table.replace_schema_metadata({b"huggingface": f'{{"info": {{"features": {{"ner_tags": {names}}}}}}}'})
    pq.write_table(written, tmp_path / "x.parquet")
    assert read_ner(tmp_path / "x.parquet", language="de") == [("de", "Anna|lacht", "B-PER O")]


def test_tags_of_json_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"tokens": ["Anna", "lacht"], "ner_tags": ["B-PER", "O"]}])
    assert read_ner(path, language="de") == [("de", "Anna|lacht", "B-PER O")]
    numbered = write_lines(tmp_path / "y.jsonl", [{"tokens": ["Anna", "lacht"], "ner_tags": [1, 0]}])
    assert read_ner(numbered, language="de", labels=["O", "B-PER"]) == [("de", "Anna|lacht", "B-PER O")]
    assert (
        "tags are numbers, and nothing says what they mean; give the labels in their order with labels=, such as O,"
        in told(read_ner, numbered, language="de")
    )
    for labels, sentence in (
        (["O", "B-PER", "O"], "labels= holds 'O' more than once"),
        (["O", ""], "labels= holds '', not a tag of entities; give such as O,B-PER,I-PER"),
    ):
        assert sentence in told(read_ner, numbered, labels=labels)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "x.conll holds no examples"),
        ("\n\n", "x.conll holds no examples"),
        ("Anna\nBerg\n", "x.conll, line 1: there is one column, 'Anna'; needed are a word and its tag"),
        ("Anna B-PER\nBerg N I-PER\n", "x.conll, line 2: the number of columns is 3, and 2 in the lines before"),
        ("ja O\n\nAnna PERSON\n", "x.conll, line 3: the label 'PERSON' of word 1 is unknown; there are O, B-TYPE, I-T"),
        ("de:Anna\tB-PER\n\nBerg\tO\n", "x.conll, line 3: here is 'Berg\\tO', where WikiANN has lang:word"),
        ("de:Anna\tO\n\nde:a\tO\nfr:b\tO\n", "x.conll, line 4: the sentence begins in 'de', this word is in 'fr'"),
        ("de:a\tO\nfr:b\tO\n", "x.conll, line 2: the sentence begins in 'de', this word is in 'fr'"),
        ("de:Anna\tO\n\nde:b\tx\tO\n", "where WikiANN has lang:word, a tab and the tag"),
    ],
)
def test_bad_columns_are_told_by_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path / "x.conll", text)
    assert sentence in told(read_ner, path, language="de")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "x.jsonl, line 1: 1 words have 2 tags"),
        ({"tokens": ["a"]}, "there is no column 'ner_tags'; the columns are 'tokens'"),
        ({"tokens": "a", "ner_tags": ["O"]}, "'tokens' is a string, not a list"),
        ({"tokens": [None], "ner_tags": ["O"]}, "a word is null, not a string"),
        ({"tokens": ["a"], "ner_tags": [1.5]}, "a tag is a number, not a string or a whole number"),
        ({"tokens": ["a"], "ner_tags": [9]}, "the label 9 is unknown; there are 2, from 0: O, B-PER"),
        ({"tokens": ["a"], "ner_tags": ["B-LOC"]}, "the label 'B-LOC' of word 1 is unknown; there are O, B-PER"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", "O"], "langs": ["de", "fi"]}, "in several languages: de, fi"),
    ],
)
def test_bad_lists_are_told_by_one_sentence(tmp_path: Path, row: Any, sentence: str) -> None:
    path = write_lines(tmp_path / "x.jsonl", [row])
    assert sentence in told(read_ner, path, language="de", labels=["O", "B-PER"])


def test_sentences_without_words_are_left_out_and_counted(tmp_path: Path) -> None:
    nothing: dict[str, list[str]] = {"tokens": [], "ner_tags": []}
    some = write_lines(tmp_path / "x.jsonl", [nothing, {"tokens": ["Anna"], "ner_tags": ["B-PER"]}, nothing])
    read = read_task_data("ner", [f"de={some}"], Reading())
    assert [each.tokens for each in read.examples["de"]] == [("Anna",)]  # type: ignore[union-attr]
    assert (read.counts, read.skipped) == ({"de": 1}, {"de": 2})
    none = write_lines(tmp_path / "y.jsonl", [nothing])
    sentence = told(read_task_data, "ner", [f"de={none}"], Reading())
    assert sentence.endswith("y.jsonl: no examples are left; 1 were left out, for holding no words")


@pytest.mark.parametrize("asked", [None, ("EN", "zh-cn"), ("en", "zh-CN")])
def test_languages_are_told_by_small_letters(tmp_path: Path, asked: tuple[str, ...] | None) -> None:
    rows = [(language, "neutral", "a", "b") for language in ("zh-CN", "EN", "en", "ZH-cn")]
    path = write_tsv(tmp_path / "x.tsv", "language gold_label sentence1 sentence2", rows)
    assert read_task_data("xnli", [str(path)], Reading(languages=asked)).counts == {"en": 2, "zh-cn": 2}
    assert [each[0] for each in read_xnli(path, language="EN")] == ["en", "en"]
    rows = [{"tokens": ["a"], "ner_tags": ["O"], "langs": [each]} for each in ("EN", "en")]
    path = write_lines(tmp_path / "x.jsonl", rows)
    assert read_task_data("ner", [str(path)], Reading(languages=asked and ("En",))).counts == {"en": 2}
    path = tmp_path / "test-context-EN-question-De.json"
    path.write_text(json.dumps(squad(ON_THE_RIVER)), encoding="utf-8")
    for source in (str(path), f"EN-de={path}"):
        assert list(read_task_data("mlqa", [source], Reading()).counts) == ["en-de"]
    assert next(each.question_language for each in open_questions(path, question_language="DE")) == "de"


def test_an_error_carries_its_place(tmp_path: Path) -> None:
    with pytest.raises(BadRow) as caught:
        read_ner(written(tmp_path / "x", "ja O\nAnna\n"), language="de")
    assert (caught.value.place, caught.value.reason) == (
        "x, line 2",
        "the number of columns is 1, and 2 in the lines before",
    )
