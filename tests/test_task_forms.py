"""The forms in which public projects leave task data: with or without a header, quotes of CSV, and labels."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hf_xlmr.errors import InputError
from hf_xlmr.tasks.example_data import example_data
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.task_data import read_task_data
from hf_xlmr.tasks.mlqa import open_questions
from hf_xlmr.tasks.ner import open_ner
from hf_xlmr.tasks.xnli import open_xnli

Pairs = list[tuple[str, str, str]]
PAIRS: Pairs = [
    ("The train leaves.", "It goes.", "entailment"),
    ('" said he', 'He said "so" twice.', "contradiction"),
    ('"Yes."', "He agrees, x; y.", "neutral"),
    ("two\nlines", "tab\there", "neutral"),
]


def as_xtreme_writes(rows: Any, **options: Any) -> str:
    """By `csv.writer(file, delimiter='\\t')`, as `xnli_preprocess` and `pawsx_preprocess` do."""
    file = io.StringIO()
    csv.writer(file, **{"delimiter": "\t", **options}).writerows(rows)
    return file.getvalue()


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def pairs(path: Path, **options: Any) -> Pairs:
    return [(each.premise, each.hypothesis, each.label) for each in open_xnli(path, **options)]


def refusal(read: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(read(*arguments, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- XNLI: with a header or without, quoted or not -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train-de.tsv", "dev-de.tsv.gz", "en-de-translated.tsv"])
def test_three_columns_without_a_header_in_quotes_of_csv(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, as_xtreme_writes(PAIRS))
    assert pairs(path) == PAIRS
    assert {each.language for each in open_xnli(path)} == {"de"}, "the name says it"
    assert [each.place for each in open_xnli(path)] == [f"{name}, line {number}" for number in (1, 2, 3, 4)]


def test_three_columns_without_a_header_or_quotes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", "The train leaves.\tIt goes.\tentailment\n")
    assert pairs(path, language="en") == PAIRS[:1]
    rows = [("a", "b", "contradictory"), ("c", "d", "-"), ("e", "f", " neutral ")]
    path = written(tmp_path / "y.tsv", "\ufeff" + as_xtreme_writes(rows))
    assert pairs(path, language="en", unlabelled="skip") == [("a", "b", "contradiction"), ("e", "f", "neutral")]


@pytest.mark.parametrize(
    ("name", "header", "options"),
    [
        ("train-en.csv", ("premise", "hypo", "label"), {"delimiter": ","}),
        ("train-en.tsv", ("", "premise", "hypothesis", "label"), {"quoting": csv.QUOTE_ALL}),
        ("train-en.csv", ("sentence1", "sentence2", "label"), {"delimiter": ";"}),
        ("train-en.csv", ("premise", "hypothesis", "label"), {"delimiter": ",", "quoting": csv.QUOTE_NONNUMERIC}),
        ("train-en.csv", None, {"delimiter": ",", "lineterminator": "\n"}),
    ],
)
def test_every_writer_of_csv(tmp_path: Path, name: str, header: tuple[str, ...] | None, options: Any) -> None:
    rows = [row if header is None or len(header) == 3 else (number, *row) for number, row in enumerate(PAIRS)]
    path = written(tmp_path / name, as_xtreme_writes([header, *rows] if header else rows, **options))
    assert pairs(path) == PAIRS


@pytest.mark.parametrize(
    "rows",
    [
        [('" said he', "b", "neutral")],
        [('"Yes," he said.', '"All of it."', "neutral"), ("c", "d", "neutral")],
        [('"All of it."', "b", "neutral")],
        [('He said "so".', "b", "neutral")],
        [('"What?', "b", "neutral"), ('Well, "', "d", "neutral")],  # between them CSV sees one field
        [('""Oh!"" he said', '"', "neutral"), ('""', "'", "neutral")],
    ],
)
@pytest.mark.parametrize("header", ["", "premise\thypo\tlabel\n"], ids=["none", "multinli"])
def test_quotes_that_are_characters(tmp_path: Path, rows: Pairs, header: str) -> None:
    """As in the files of XNLI and MultiNLI, which no writer of CSV made."""
    name = "multinli.train.en.tsv" if header else "train-en.tsv"
    assert pairs(written(tmp_path / name, header + "".join("\t".join(row) + "\n" for row in rows))) == rows


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Random texts full of quotes, delimiters and line ends, as CSV and as they are."""
    choices = random.Random(1)
    texts = [
        "a",
        '"',
        '""',
        '"a"',
        'a "b" c',
        '"a" b',
        "a, b",
        "x\ny",
        "t\tu",
        '"\n"',
        'end"',
        ";",
        "",
        "'",
        '"a',
        "c\rd",
    ]
    plain = [text for text in texts if not set(text) & set("\n\t")]
    for number in range(300):
        ends = "\r\n" if number % 2 else "\n"
        for some, write in (
            (texts, lambda rows: as_xtreme_writes(rows, lineterminator=ends)),  # noqa: B023
            (texts, lambda rows: as_xtreme_writes(rows, delimiter=",", lineterminator=ends)),  # noqa: B023
            (texts, lambda rows: as_xtreme_writes(rows, quoting=csv.QUOTE_ALL)),
            (plain, lambda rows: "".join("\t".join(row) + "\n" for row in rows)),
        ):
            rows = [(choices.choice(some), choices.choice(some), "neutral") for _ in range(choices.randint(1, 6))]
            text = write(rows)
            assert pairs(written(tmp_path / "train-en.tsv", text)) == rows, text


def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path: Path) -> None:
    bad = '"He said, so\tb\tneutral\r\n'
    for at in (1, 3):  # in the middle, and as the last line
        rows = as_xtreme_writes(PAIRS[:3]).splitlines(keepends=True)
        path = written(tmp_path / "train-en.tsv", "".join([*rows[:at], bad, *rows[at:]]))
        message = refusal(pairs, path)
        assert message.startswith(f"train-en.tsv, line {at + 1}: a quotation mark is a character of the text here, and")
        assert f"train-en.tsv, line {2 if at > 1 else 3} is quoted as CSV" in message, "both readings are named"
    path = written(tmp_path / "x.csv", 'premise,hypo,label\n"a, b",c,neutral\n"open, d,e,neutral\nf,g,neutral\n')
    assert refusal(pairs, path).startswith("x.csv, line 3: a quotation mark is a character")
    path = written(tmp_path / "y.csv", 'premise,hypo,label\n"open, d,e,neutral\nf,g,neutral\n')
    assert refusal(pairs, path) == "y.csv, line 2: 4 fields are below a header of 3"
    path = written(tmp_path / "z.tsv", '"premise"\t"hypo"\t"label"\n" said he\tb\tneutral\n')
    assert "line 2: a quotation mark is a character of the text here, and the first line is" in refusal(pairs, path)


def test_quotes_that_a_spreadsheet_sets_around_commas(tmp_path: Path) -> None:
    rows = [("Yes, it is.", "It is."), ("No, never.", "Well, no."), ("So.", "It is so.")]
    table = [tuple(f'"{each}"' if "," in each else each for each in row) for row in rows]
    texts = ["".join(f"{first}\t{second}\tneutral\n" for first, second in some) for some in (table, table[1:])]
    assert [each[:2] for each in pairs(written(tmp_path / "train-en.tsv", texts[0]))] == rows
    assert [each[:2] for each in pairs(written(tmp_path / "train-en.tsv", texts[1]))] == table[1:], "too few to say"
    bare = written(tmp_path / "train-en.tsv", texts[0] + "Oh, \tno\tneutral\n")
    assert [each[:2] for each in pairs(bare)][:3] == table


def test_quotes_behind_backslashes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "train-en.tsv", 'a\tb\tneutral\n"He said \\"so\\" twice."\tc\tneutral\n')
    assert refusal(pairs, path).startswith("train-en.tsv, line 2: a backslash is before a quotation mark")


def test_one_line_like_csv_among_many_that_are_not(tmp_path: Path) -> None:
    rows = [*[(f'He said "{number}".', "b", "neutral") for number in range(11)], ('"So.""Yes."', "c", "neutral")]
    for count in (12, 11):
        some = rows[-count:]
        path = written(tmp_path / "train-en.tsv", "".join("\t".join(row) + "\n" for row in some))
        if count == 12:
            assert pairs(path) == some
        else:
            assert "write the file so that all of it is the one or the other" in refusal(pairs, path)


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    rows = [("a\n\nb", '"', "neutral"), ("c", "d\ne", "maybe")]
    text = "\r\n" + as_xtreme_writes(rows[:1]) + "\r\n" + as_xtreme_writes(rows[1:])
    path = written(tmp_path / "train-en.tsv", text)
    assert next(iter(open_xnli(path))).place == "train-en.tsv, line 2"
    assert "train-en.tsv, line 6: the label 'maybe' is unknown" in refusal(pairs, path)
    path = written(tmp_path / "train-en.tsv", as_xtreme_writes([*rows[:1], ("c", "d")]))
    assert refusal(pairs, path) == "train-en.tsv, line 4: 2 fields are here, and in the first line 3"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            as_xtreme_writes(each[:2] for each in PAIRS),
            "line 1: there are two columns and no header that is known: pairs",
        ),
        (
            "index\tsentence1\tsentence2\n0\ta\tb\n",
            "line 1: the pairs have no labels (gold_label), so they can be neither",
        ),
        (
            "neutral\ta\tb\n",
            "line 1: the columns are neutral a b; needed are sentence1 sentence2 gold_label, or premise",
        ),
        ("en\ta\tb\tneutral\n", "or, without a header, three, of which the last is a label"),
        (
            "a\tb\t1\nc\td\t0\n",
            "line 1: the label '1' is a number, and nothing here says what it means: data sets count",
        ),
        ("id\tsentence1\tsentence2\tlabel\n1\ta\tb\t0\n", "line 2: the label '0' is a number"),
        ("\n\n", "holds no examples"),
    ],
)
def test_what_no_form_is_known_for(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(pairs, written(tmp_path / "test-en.tsv", text))


def test_numbers_of_labels_are_in_the_order_that_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "train-en.tsv", "a\tb\t0\nc\td\t2\n")
    order = ("contradictory", "neutral", "entailment")
    assert [each[2] for each in pairs(path, labels=order)] == ["contradiction", "entailment"]
    read = read_task_data("xnli", [str(path)], Reading(labels=order))
    assert [each.label for each in read.examples["en"]] == ["contradiction", "entailment"]  # type: ignore[union-attr]
    assert "in some order, not neutral" in refusal(pairs, path, labels=["neutral"])
    with_header = written(tmp_path / "x.tsv", "premise\thypothesis\tlabel\na\tb\t0\n")
    assert pairs(with_header, language="en") == [("a", "b", "entailment")]
    assert pairs(with_header, language="en", labels=order) == [("a", "b", "contradiction")]


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("de.valid", "de"),
        ("sw.test.gz", "sw"),
        ("en.train", "en"),
        ("test-zh.tsv", "zh"),
        ("multinli.train.ur.tsv", "ur"),
    ],
)
def test_names_that_tell_the_language_of_a_table(tmp_path: Path, name: str, language: str) -> None:
    path = written(tmp_path / name, 'premise\thypo\tlabel\na "\tb\tneutral\n')
    assert [each.language for each in open_xnli(path)] == [language]


def test_of_one_file_the_user_knows_the_language_better_than_its_name(tmp_path: Path) -> None:
    """Of several files the names pick those of the language that is asked for."""
    text = "The train leaves.\tIt goes.\tentailment\n"
    for name in ("train-en.tsv", "train-de.tsv"):
        written(tmp_path / name, text)
    assert [each.language for each in open_xnli(tmp_path / "train-en.tsv", language="de")] == ["de"]
    found = list(open_xnli(str(tmp_path / "train-*.tsv"), language="de"))
    assert [(Path(each.place.split(",")[0]).name, each.language) for each in found] == [("train-de.tsv", "de")]
    written(tmp_path / "dev-en.tsv", "Anna\tB-PER\n")
    assert [each.language for each in open_ner(tmp_path / "dev-en.tsv", language="de")] == ["de"]


def test_json_lines_by_the_name_that_data_sets_give_them(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", '{"premise": "a", "hypothesis": "b", "label": 1}\n')
    assert pairs(path, language="en") == [("a", "b", "neutral")]
    path = written(tmp_path / "y.json", '[{"premise": "a", "hypothesis": "b", "label": 1}]\n')
    assert "line 1: an array begins here; put one object on each line" in refusal(pairs, path, language="en")


def test_a_large_table_is_a_stream(tmp_path: Path) -> None:
    """Also in quotes of CSV, and where a quote at the start opens what no line closes."""
    lines = as_xtreme_writes([(f"It is number {number}.", 'He said "so".', "neutral") for number in range(4_000)])
    for first in ("", '"\tb\tneutral\r\n'):
        body = lines if not first else lines.replace('"', "")
        path = written(tmp_path / "train-en.tsv", first + body)
        tracemalloc.start()
        n_read = sum(1 for _ in open_xnli(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_read == 4_000 + bool(first)
        assert peak < 2 << 20, "the block that is read, and at most a thousand lines"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "train-en.tsv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(as_xtreme_writes(PAIRS),))
    writer.start()
    assert pairs(path) == PAIRS
    writer.join()


def test_training_and_scoring_read_what_xtreme_leaves_as_what_xnli_published(tmp_path: Path) -> None:
    """Both read by `read_task_data`; the examples of the package, as `xnli_preprocess` writes them."""
    for usual in ("train", "test"):
        published = read_task_data("xnli", [example_data("xnli", usual)], Reading()).examples
        for language, examples in published.items():
            rows = [(each.premise, each.hypothesis, each.label) for each in examples]  # type: ignore[union-attr]
            written(tmp_path / f"{usual}-{language}.tsv", as_xtreme_writes(rows))
        found = read_task_data("xnli", [str(tmp_path / f"{usual}-*.tsv")], Reading()).examples
        for language, examples in published.items():
            texts = [[(e.premise, e.hypothesis, e.label) for e in some] for some in (examples, found[language])]  # type: ignore[union-attr]
            assert texts[0] == texts[1]


# ---- questions -------------------------------------------------------------------------------------------------------

RIVER = "Die Elbe fließt durch Dresden."


def question(id_: str, *answers: str) -> dict[str, Any]:
    found = [{"text": each, "answer_start": RIVER.index(each)} for each in answers]
    return {"id": id_, "question": "Wo?", "answers": found}


def squad(*questions: dict[str, Any]) -> str:
    return json.dumps({"version": "1", "data": [{"paragraphs": [{"context": RIVER, "qas": list(questions)}]}]})


def ids(path: Path, **options: Any) -> list[tuple[str, str, str]]:
    return [(each.id, each.context_language, each.question_language) for each in open_questions(path, **options)]


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("xquad.el.json", "el"),
        ("tydiqa.goldp.fi.dev.json", "fi"),
        ("tydiqa-goldp-dev-arabic.json", "ar"),
        ("squad.translate.train.en-sw.json", "sw"),
    ],
)
def test_names_of_xquad_tydiqa_and_xtreme(tmp_path: Path, name: str, language: str) -> None:
    assert ids(written(tmp_path / name, squad(question("arabic-1", "Elbe")))) == [("arabic-1", language, language)]


def test_the_file_of_all_languages_of_tydiqa(tmp_path: Path) -> None:
    content = squad(question("arabic--1", "Elbe"), question("finnish-2", "Dresden"))
    path = written(tmp_path / "tydiqa-goldp-v1.1-train.json", content)
    assert ids(path) == [("arabic--1", "ar", "ar"), ("finnish-2", "fi", "fi")]
    assert ids(path, context_language="fi") == [("finnish-2", "fi", "fi")]
    assert read_task_data("mlqa", [str(path)], Reading()).counts == {"ar": 1, "fi": 1}
    path = written(tmp_path / "tydiqa-goldp-v1.1-dev.json", squad(question("x1", "Elbe")))
    assert "qas[0]: the ids of TyDiQA begin with a language" in refusal(ids, path)


def test_questions_in_rows(tmp_path: Path) -> None:
    """One on each line, whatever the file is called, and in a list `data`, as `run_qa.py` reads it."""
    answers = {"text": ["Elbe"], "answer_start": [4]}
    rows: list[dict[str, Any]] = [
        {"id": "1", "context": RIVER, "question": "?", "answers": answers},
        {"id": "2", "context": RIVER, "question": "?", "answers": {"text": [], "answer_start": []}},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    languages = {"context_language": "de", "question_language": "en"}
    for name, text in (("x.jsonl", lines), ("x.json", lines), ("y.json", json.dumps({"data": rows}))):
        assert ids(written(tmp_path / name, text), **languages) == [("1", "de", "en"), ("2", "de", "en")]
    assert ids(written(tmp_path / "z.json", json.dumps(rows[0])), **languages) == [("1", "de", "en")]


def test_questions_whose_answers_were_taken_out(tmp_path: Path) -> None:
    """As `remove_qa_test_annotations` leaves them: scored, any answer to them would be wrong, and none right."""
    removed = {**question("1"), "answers": [{"answer_start": 0, "text": ""}]}
    path = written(tmp_path / "test-context-de-question-de.json", squad(removed))
    assert "no question has an answer: where answers were taken out" in refusal(ids, path, misaligned="keep")
    assert "no question has an answer" in refusal(ids, written(tmp_path / "xquad.de.json", squad(question("1"))))
    impossible = {**question("1"), "is_impossible": True}
    assert ids(written(tmp_path / "dev-v2.0.json", squad(impossible))) == [("1", "en", "en")]


# ---- names -----------------------------------------------------------------------------------------------------------


def tagged(path: Path, **options: Any) -> list[tuple[str, str, str, str]]:
    found = open_ner(path, **options)
    return [
        (each.place.rpartition(" ")[2], each.language, "|".join(each.tokens), " ".join(each.tags)) for each in found
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "dev-de.tsv",  # XTREME's PAN-X: a quotation mark is a word, and words may be empty
            '\ufeffAnna\tB-PER\r\n"\tO\r\n\tO\r\n \t \r\nlacht\tO\r\n',
            [("1", "de", 'Anna|"|', "B-PER O O"), ("5", "de", "lacht", "O")],
        ),
        (
            "esp.testb",
            "-DOCSTART- -X- O\n1 CD I-NP O\n   \n2 NNP I-NP I-ORG\nx y z O\n",
            [("2", "es", "1", "O"), ("4", "es", "2|x", "I-ORG O")],
        ),
        (
            "NER-de-dev.tsv",  # GermEval 2014
            "#\thttp://x.y [2009]\n1\tAus\tO\tO\n2\tJena\tB-LOC\tO\n\n#\thttp://x\n1\tA\tO\tO\n",
            [("2", "de", "Aus|Jena", "O B-LOC"), ("6", "de", "A", "O")],
        ),
        (
            "de.iob2",  # Universal NER
            "# sent_id = 1\n# text = Jena # O\n1\tJena\tB-LOC\t-\t-\n2\t#\tO\t-\t-\n",
            [("3", "de", "Jena|#", "B-LOC O")],
        ),
        (
            "de_dev.conll",  # MultiCoNER
            "# id 52 domain=de\ndie _ _ O\n# _ _ O\n\n\n# id 3 domain=de\n# _ _ O\n",
            [("2", "de", "die|#", "O O"), ("7", "de", "#", "O")],
        ),
    ],
)
def test_columns_of_words(tmp_path: Path, name: str, text: str, expected: list[tuple[str, ...]]) -> None:
    language = None if name in ("dev-de.tsv", "esp.testb") else "de"
    assert tagged(written(tmp_path / name, text), language=language) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Anna\nlacht\n", "test data whose tags were taken out, as XTREME's scripts do, cannot be scored"),
        (
            "1\ta\tB-X\tO\n2\tb\tO\tO\n\n1\tc\tO\tO\n3\td\tO\tO\n",
            "line 5: the first column counts words elsewhere; it is '3'",
        ),
        ("1\tJena\tj\tPROPN\t_\t_\t0\troot\t_\t_\n", "line 1: this is CoNLL-U, whose ten columns hold no names"),
    ],
)
def test_columns_that_hold_no_names(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refusal(tagged, written(tmp_path / "x.tsv", text), language="de")


def test_sentences_of_json_lines_by_the_name_that_data_sets_give_them(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", '{"tokens": ["Anna"], "ner_tags": ["B-PER"]}\n')
    assert tagged(path, language="de") == [("1", "de", "Anna", "B-PER")]
