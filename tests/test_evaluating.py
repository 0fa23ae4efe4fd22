"""`hf-xlmr evaluate` and what texts become for it: pairs, words, windows, and the best answers of all."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import run
from places import FIXTURES
from published_rules import squad2_scores
from refusals import told
from small_tasks import WORDS, write_ner, write_questions, write_xnli

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert
from hf_xlmr.hub_interface.loading import find_model
from hf_xlmr.tasks.encoding.encoding import IGNORED, Features, Row, batches_of, collate, encode_pairs, encode_words
from hf_xlmr.tasks.encoding.question_answering import (
    QuestionOptions,
    Window,
    best_answers,
    encode_questions,
    windows_of,
)
from hf_xlmr.tasks.evaluation import EvaluationOptions, evaluate
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.mlqa import Answer, QuestionExample
from hf_xlmr.tasks.ner import NerExample
from hf_xlmr.tasks.xnli import XNLI_LABELS, XnliExample, open_xnli
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture(scope="module")
def exact(cache_folder: Path) -> ExactTokenizer:
    tokenizer = find_model("demo").tokenizer
    assert tokenizer is not None
    return tokenizer


# ---- a checkpoint that fairseq fine-tuned


def test_a_checkpoint_of_fairseq_and_its_folder_score_alike(tmp_path: Path) -> None:
    """And as fairseq's own interface predicts, by the names in the checkpoint's own dictionary of labels."""
    source, data = str(FIXTURES / "v0122cls"), write_xnli(tmp_path / "test.tsv", 20)
    results = evaluate("xnli", source, [data])
    convert(source, tmp_path / "folder", head="xnli_head")
    folder = evaluate("xnli", str(tmp_path / "folder"), [data])
    assert folder.scores == results.scores and folder.counts == results.counts
    xlmr = XLMR.from_pretrained(source).eval()
    names = xlmr.task.label_dictionary
    right: dict[str, list[bool]] = {}
    with torch.no_grad():
        for each in open_xnli(data):
            tokens = xlmr.encode(each.premise, each.hypothesis)[: xlmr.max_positions]
            best = int(xlmr.predict("xnli_head", tokens).argmax())
            right.setdefault(each.language, []).append(names[best + names.nspecial] == each.label)
    assert {language: 100 * np.mean(each) for language, each in right.items()} == pytest.approx(
        {language: each["accuracy"] for language, each in results.scores.items()}, abs=1e-9
    )
    assert len({each["accuracy"] for each in results.scores.values()}) > 1, "else the comparison shows nothing"


def test_of_several_heads_one_is_to_be_named(tmp_path: Path) -> None:
    data, source = [write_xnli(tmp_path / "test.tsv", 3)], str(FIXTURES / "v0122twoheads")
    assert "choose one with head=" in told(evaluate, "xnli", source, data)
    assert "head='other' is none of them" in told(
        evaluate, "xnli", source, data, options=EvaluationOptions(head="other")
    )


@pytest.mark.parametrize(("task", "fixture"), [("xnli", "v0122"), ("ner", "v0122cls"), ("mlqa", "v0122cls")])
def test_a_model_without_the_head_is_refused(task: str, fixture: str, tmp_path: Path) -> None:
    data = {
        "xnli": write_xnli(tmp_path / "test.tsv", 3),
        "ner": write_ner(tmp_path / "test.conll", 3),
        "mlqa": write_questions(tmp_path / "test-context-en-question-en.json", 3),
    }[task]
    message = told(evaluate, task, str(FIXTURES / fixture), [data])
    assert message.startswith(f"{FIXTURES / fixture} holds a "), "as it was asked for, not where the cache has it"
    assert f"has no head for {task}" in message and "fine-tune it for that task first" in message


def test_a_regression_is_no_classifier_of_xnli(tmp_path: Path) -> None:
    message = told(evaluate, "xnli", str(FIXTURES / "v0122regression"), [write_xnli(tmp_path / "test.tsv", 3)])
    assert "have no names" in message


# ---- which data


@pytest.mark.parametrize(("languages", "expected"), [(("zh", "en"), ["en", "zh"]), (None, ["en", "de", "ru", "zh"])])
def test_languages_are_picked(languages: tuple[str, ...] | None, expected: list[str], tmp_path: Path) -> None:
    data = [write_xnli(tmp_path / "test.tsv", 3)]
    results = evaluate("xnli", str(FIXTURES / "v0122cls"), data, options=EvaluationOptions(languages=languages))
    assert list(results.scores) == expected and set(results.counts.values()) == {3}


def test_a_language_that_is_missing_and_other_bad_data_are_one_sentence(tmp_path: Path) -> None:
    data, model = write_xnli(tmp_path / "test.tsv", 3, ("en", "de")), str(FIXTURES / "v0122cls")
    message = told(evaluate, "xnli", model, [data], options=EvaluationOptions(languages=("en", "sw", "ur")))
    assert "holds no examples of 'sw', 'ur'; it has en, de" in message
    assert "does not exist" in told(evaluate, "xnli", model, [str(tmp_path / "none.tsv")])
    (tmp_path / "bad.tsv").write_text("language\tgold_label\tsentence1\tsentence2\nen\tperhaps\ta\tb\n")
    assert "line 2" in (message := told(evaluate, "xnli", model, [str(tmp_path / "bad.tsv")])) and "perhaps" in message
    (tmp_path / "empty.tsv").write_text("")
    assert "holds no examples" in told(evaluate, "xnli", model, [str(tmp_path / "empty.tsv")])


def test_the_program_prints_json_or_a_table_and_exits_with_2(tmp_path: Path) -> None:
    """JSON on any terminal: an ASCII one here, with the name of a file that is no UTF-8."""
    data, model = os.fsdecode(b"Z\xc3\xbcrich-\xff.tsv"), str(FIXTURES / "v0122cls")
    write_xnli(tmp_path / data, 3, ("en", "de"))
    arguments = ["evaluate", "xnli", "--model", model, "--data", data]
    done = run(*arguments, "--json", "--references", cwd=tmp_path, encoding="ascii")
    found = json.loads(done.stdout)
    assert (found["counts"], found["settings"]["data"], done.stderr) == ({"en": 3, "de": 3}, data, "")
    assert done.returncode == 0
    large = found["published"][0]
    assert (large["model"], large["scores"]["sw"]["accuracy"], large["average"]) == (
        *("XLM-R large", 78.0),
        {"accuracy": 83.6},
    )
    shown = run(*arguments, "--references", cwd=tmp_path)
    assert shown.returncode == 0
    assert "XNLI, accuracy in percent" in shown.stdout and "published" in shown.stdout
    bad = run(*arguments, "--languages", "xx", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "") and bad.stderr.startswith("hf-xlmr: ")


# ---- pairs


def pair(first: str, second: str, label: str = "neutral") -> XnliExample:
    return XnliExample("here", "en", first, second, label)


def test_pairs_are_encoded_as_fairseq_does(exact: ExactTokenizer) -> None:
    texts = [("The train leaves.", "Дети играют"), ("火车", "a </s> is text"), ("", "alone")]
    rows = encode_pairs([pair(*each) for each in texts], exact, labels=XNLI_LABELS, max_length=128)
    assert list(rows) == [{"input_ids": exact.encode(*each), "labels": 1} for each in texts]


@pytest.mark.parametrize("room", range(8, 25))
def test_the_longer_text_of_a_pair_is_cut(exact: ExactTokenizer, room: int) -> None:
    """Token by token, as if one were taken from the longer text until both fit."""
    first, second = "the train leaves late " * 4, "children play"
    one, other = exact.ids(first), exact.ids(second)
    for left, right in ((one, other), (other, one), (one, one)):
        texts = (first if left is one else second, first if right is one else second)
        n_left, n_right = len(left), len(right)
        while n_left + n_right > room - 4:
            if n_left >= n_right:
                n_left -= 1
            else:
                n_right -= 1
        (row,) = encode_pairs([pair(*texts)], exact, labels=XNLI_LABELS, max_length=room)
        assert len(row["input_ids"]) == n_left + n_right + 4  # type: ignore[arg-type]
        expected = {exact.framed([left[:n_left], right[:n_right]])[index] for index in (0, -1)}
        assert {row["input_ids"][0], row["input_ids"][-1]} == expected  # type: ignore[index]


# ---- words


def test_the_first_piece_of_a_word_has_its_label(exact: ExactTokenizer) -> None:
    example = NerExample("here", "en", ("Kinder", "\u200b", "spielen"), ("B-PER", "O", "I-PER"))
    labels = ("O", "B-PER", "I-PER")
    ((span, row),) = encode_words([example], exact, labels=labels, max_length=128)
    pieces = [exact.ids(word) or [exact.dictionary.unk_index] for word in example.tokens]
    assert row["input_ids"] == [0, *chain.from_iterable(pieces), 2]
    expected = [IGNORED]
    for ids, label in zip(pieces, (1, 0, 2), strict=True):
        expected += [label, *[IGNORED] * (len(ids) - 1)]
    assert row["labels"] == [*expected, IGNORED]
    assert [row["labels"][place] for place in span.places] == [1, 0, 2]  # type: ignore[index]


def test_a_long_sentence_is_read_in_parts_and_no_word_is_lost(exact: ExactTokenizer) -> None:
    words = (*WORDS["en"], "Freundschaftsbeziehungen") * 3
    tags = tuple(f"B-{number}" for number in range(len(words)))
    labels = ("O", *tags)
    parts = list(encode_words([NerExample("here", "en", words, tags)], exact, labels=labels, max_length=12))
    assert len(parts) > 3 and all(len(row["input_ids"]) <= 12 for _, row in parts)  # type: ignore[arg-type]
    found = [row["labels"][place] for span, row in parts for place in span.places]  # type: ignore[index]
    assert [labels[number] for number in found] == list(tags)


def test_an_unknown_tag_is_told_with_its_place(exact: ExactTokenizer) -> None:
    example = NerExample("x.conll, line 7", "en", ("Elbe",), ("B-RIVER",))
    message = told(lambda: list(encode_words([example], exact, labels=("O", "B-LOC"), max_length=20)))
    assert message == "x.conll, line 7: the label 'B-RIVER' is unknown to the model; it has O, B-LOC"


def test_batches_are_padded_and_masked() -> None:
    rows: list[Row] = [
        {"input_ids": [0, 5, 2], "labels": [IGNORED, 1, IGNORED]},
        {"input_ids": [0, 2], "labels": [IGNORED] * 2},
    ]
    features = Features(batches_of(rows))
    assert len(features) == 2 and [features.length(index) for index in (0, 1)] == [3, 2]
    batch = collate([features[0], features[1]])
    assert batch["input_ids"].tolist() == [[0, 5, 2], [0, 2, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 1, IGNORED], [IGNORED] * 3]
    with pytest.raises(IndexError):
        features[2]


# ---- windows


def question(context: str, *answers: str, asked: str = "who plays") -> QuestionExample:
    found = tuple(Answer(each, context.index(each)) for each in answers)
    return QuestionExample("here", "q", "en", "en", context, asked, found)


LONG = "the train leaves late and children play in a garden " * 6


def test_windows_cover_the_text_at_the_stride(exact: ExactTokenizer) -> None:
    options = QuestionOptions(max_length=40, stride=10, max_question=8)
    example = question(LONG)
    asked, ids = exact.ids(example.question), exact.ids(LONG)
    windows = list(windows_of([example], exact, options))
    room = 40 - len(asked) - 4
    assert [window.first_token for window in windows] == [10 * number for number in range(len(windows))]
    for window in windows:
        part = ids[window.first_token : window.first_token + room]
        assert window.ids == exact.framed([asked, part]) and len(window.ids) <= 40
        assert window.ids[window.offset : -1] == part and len(window.spans) == len(part)
    assert windows[-1].first_token + len(windows[-1].spans) == len(ids)
    assert windows[-2].first_token + room < len(ids), "the window before did not reach the end"


def test_every_token_is_at_home_in_the_window_that_shows_most_around_it(exact: ExactTokenizer) -> None:
    options = QuestionOptions(max_length=40, stride=10, max_question=8)
    windows = list(windows_of([question(LONG)], exact, options))
    n_tokens = len(exact.ids(LONG))
    homes = [window.first_token + place for window in windows for place in window.home]
    assert sorted(homes) == list(range(n_tokens)), "each in one window"
    for window in windows:
        for place in window.home:
            token = window.first_token + place
            ours = min(place, len(window.spans) - 1 - place) + 0.01 * len(window.spans)
            for other in windows:
                there = token - other.first_token
                if 0 <= there < len(other.spans):
                    assert ours >= min(there, len(other.spans) - 1 - there) + 0.01 * len(other.spans)


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("the train leaves late", "train leaves"),
        ("the train leaves late", "the"),
        ("the train leaves late", "late"),
        ("Дети играют в саду", "играют"),
        ("火车晚上出发", "晚上"),
        ("a  garden , 12 children", "12"),
    ],
)
def test_the_tokens_of_an_answer_spell_it(exact: ExactTokenizer, context: str, answer: str) -> None:
    (row,) = encode_questions([question(context, answer)], exact, QuestionOptions())
    (window,) = windows_of([question(context, answer)], exact, QuestionOptions())
    start, end = (int(row[name]) - window.offset for name in ("start_positions", "end_positions"))  # type: ignore[arg-type]
    covered = context[window.spans[start][0] : window.spans[end][1]]
    assert answer in covered
    assert len(covered.strip()) <= len(answer) + 2, "no further than the pieces that it begins and ends in"


@pytest.mark.parametrize(
    ("context", "answer", "visible"),
    [
        (" children play", " children", "children"),
        ("it is a garden ", "garden ", "garden"),
        ("it is a garden\n", "garden\n", "garden"),
        ("\u200bchildren play", "\u200bchildren", "children"),
        ("\ufeffchildren play", "\ufeffchildren", "children"),
        ("a garden is", " garden ", "garden"),
    ],
)
def test_white_space_at_the_edge_of_an_answer_is_no_part_of_it(
    exact: ExactTokenizer, context: str, answer: str, visible: str
) -> None:
    (row,) = encode_questions([question(context, answer)], exact, QuestionOptions())
    (as_if,) = encode_questions([question(context, visible)], exact, QuestionOptions())
    assert row == as_if and row["start_positions"] != 0


def test_an_answer_of_nothing_is_misaligned_and_stands_nowhere(exact: ExactTokenizer) -> None:
    (row,) = encode_questions([question("a garden", " ")], exact, QuestionOptions())
    assert row["start_positions"] == row["end_positions"] == 0


def test_an_answer_that_a_window_does_not_hold_whole_is_none_there(exact: ExactTokenizer) -> None:
    context = f"{LONG}who? Peter plays"
    options = QuestionOptions(max_length=40, stride=10, max_question=8)
    rows = list(encode_questions([question(context, "Peter")], exact, options))
    held = [row["start_positions"] != 0 for row in rows]
    assert held[-1] and not any(held[:3])
    nothing = list(encode_questions([question(context)], exact, options))
    assert {(row["start_positions"], row["end_positions"]) for row in nothing} == {(0, 0)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"null_threshold": float("nan")}, "null_threshold=nan: it must be a finite number"),
        ({"null_threshold": float("-inf")}, "null_threshold=-inf: it must be a finite number"),
        ({"batch_size": 0}, "batch_size=0: it must be 1 or more"),
        ({"max_length": -1}, "max_length=-1: it must be 1 or more"),
    ],
)
def test_an_option_that_cannot_be_meant_is_told(options: dict[str, Any], sentence: str) -> None:
    assert told(EvaluationOptions, **options) == sentence


@pytest.mark.parametrize(
    "options", [{"stride": 0}, {"max_length": 60}, {"stride": 400}, {"max_answer": 0}, {"n_best": 0}]
)
def test_windows_that_would_leave_a_gap_or_nothing_are_refused(options: dict[str, int]) -> None:
    assert "stride" in told(QuestionOptions, **options)


# ---- the best answers, by hand: "ab cd ef gh" has a token for each word, behind <s> ? </s></s>

CONTEXT = "ab cd ef gh"
SPANS = [(0, 2), (2, 5), (5, 8), (8, 11)]


def window(first: int, last: int, home: range) -> Window:
    ids = [0, 9, 2, 2, *range(20 + first, 20 + last), 2]
    return Window(0, ids, first, 4, SPANS[first:last], home)


def logits(**values: float) -> np.ndarray:
    """Very low everywhere but where told: `t0` is the first token of the window's text, `s` is `<s>`."""
    found = np.full(9, -50.0)
    for name, value in values.items():
        found[0 if name == "s" else 4 + int(name[1:])] = value
    return found


def answers(windows: list[Window], starts: Any, ends: Any, **options: Any) -> list[tuple[str, float]]:
    (ranked,) = best_answers([question(CONTEXT)], windows, starts, ends, QuestionOptions(**options))
    assert all(CONTEXT[each.start : each.end] == each.text for each in ranked)
    return [(each.text, each.score) for each in ranked]


def test_the_best_span_wins_and_none_ends_before_it_begins() -> None:
    whole = [window(0, 4, range(4))]
    found = answers(whole, [logits(t1=3, t2=5, s=9)], [logits(t1=6, t3=2, s=9)])
    assert found[:3] == [("cd", 9.0), ("ef gh", 7.0), ("cd ef gh", 5.0)]
    assert all(score < 0 for _, score in found[3:]), "t2 to t1 would have 11"


def test_answers_are_no_longer_than_allowed() -> None:
    whole, starts, ends = [window(0, 4, range(4))], [logits(t0=5)], [logits(t3=5, t1=1)]
    assert answers(whole, starts, ends)[0] == ("ab cd ef gh", 10.0)
    assert answers(whole, starts, ends, max_answer=3)[0] == ("ab cd", 6.0)


def test_only_the_best_tokens_are_tried() -> None:
    found = answers([window(0, 4, range(4))], [logits(t0=5, t1=4)], [logits(t2=3, t1=2)], n_best=1)
    assert found == [("ab cd ef", 8.0)]


def test_an_answer_in_two_windows_counts_once_from_where_it_is_at_home() -> None:
    windows = [window(0, 3, range(2)), window(1, 4, range(1, 3))]
    starts, ends = [logits(t1=4, t2=9), logits(t0=8, t1=1)], [logits(t1=4, t2=1), logits(t0=8, t1=2)]
    found = answers(windows, starts, ends)
    assert found[0] == ("cd", 8.0), "16 in the window in which cd is not at home, and ef has 10 in the first"
    assert dict(found)["ef"] == 3.0
    assert len({text for text, _ in found}) == len(found)


def test_no_answer_wins_by_its_lowest_score_if_it_may() -> None:
    windows = [window(0, 3, range(2)), window(1, 4, range(1, 3))]
    starts, ends = [logits(t1=3, s=5), logits(t1=1, s=3)], [logits(t1=2, s=4), logits(t1=1, s=3)]
    assert answers(windows, starts, ends)[0] == ("cd", 5.0), "MLQA's questions have an answer"
    assert answers(windows, starts, ends, null_threshold=0.5)[:2] == [("", 6.0), ("cd", 5.0)]
    found = answers(windows, starts, ends, null_threshold=1.0)
    assert found[0] == ("cd", 5.0) and ("", 6.0) in found


def test_an_empty_context_has_no_answer() -> None:
    example = QuestionExample("here", "q", "en", "en", "", "who", ())
    empty = Window(0, [0, 9, 2, 2, 2], 0, 4, [], range(0))
    ((only,),) = best_answers([example], [empty], [np.zeros(5)], [np.zeros(5)], QuestionOptions())
    assert (only.text, only.score) == ("empty", 0.0)


# ---- the same by a plain implementation of what Transformers' script for SQuAD does after a network


def scripts_answer(
    context: str,
    windows: list[Window],
    starts: list[np.ndarray],
    ends: list[np.ndarray],
    *,
    n_best: int,
    max_answer: int,
    null_threshold: float | None,
) -> tuple[str, float]:
    """Over every place of a window: those outside the context have no offsets."""
    prelim: list[tuple[float, str]] = []
    null = math.inf
    for window, start, end in zip(windows, starts, ends, strict=True):
        offsets = [None] * window.offset + list(window.spans) + [None]
        null = min(null, float(start[0] + end[0]))
        best_starts, best_ends = (
            sorted(range(len(each)), key=lambda place, each=each: -each[place])[:n_best] for each in (start, end)
        )
        for first in best_starts:
            for last in best_ends:
                if offsets[first] is None or offsets[last] is None:
                    continue
                if last < first or last - first + 1 > max_answer or not is_max_context(windows, window, first):
                    continue
                text = context[offsets[first][0] : offsets[last][1]]
                prelim.append((float(start[first]) + float(end[last]), text))
    prelim.sort(key=lambda each: each[0], reverse=True)
    score, text = next(((score, text) for score, text in prelim if text.strip()), (0.0, "empty"))
    if null_threshold is not None and null - score > null_threshold:
        return "", null
    return text.strip(), score


def is_max_context(windows: list[Window], window: Window, place: int) -> bool:
    """BERT's rule, window by window."""
    token = window.first_token + place - window.offset
    best, best_window = -math.inf, None
    for each in windows:
        last = each.first_token + len(each.spans) - 1
        if each.first_token <= token <= last:
            score = min(token - each.first_token, last - token) + 0.01 * len(each.spans)
            if score > best:
                best, best_window = score, each
    return best_window is window


@pytest.mark.parametrize("null_threshold", [None, -1.0, 0.0, 0.5])
@pytest.mark.parametrize("is_tied", [False, True])
def test_answers_are_those_of_the_scripts(exact: ExactTokenizer, null_threshold: float | None, is_tied: bool) -> None:
    """Over random logits, with few and many tokens tried, short and long answers, and equal values."""
    rng = np.random.default_rng(7)
    asked = {"few": "who plays", "many": "who plays with the children in a garden late"}
    seen = Counter()
    for trial in range(60):
        options = QuestionOptions(
            max_length=44,
            stride=10,
            max_question=16,
            n_best=int(rng.integers(1, 21)),
            max_answer=int(rng.choice([1, 4, 30])),
            null_threshold=null_threshold,
        )
        example = question(LONG[: int(rng.integers(4, len(LONG)))], asked=asked["few" if trial % 2 else "many"])
        windows = list(windows_of([example], exact, options))
        starts, ends = (
            [(draw.round() if is_tied else draw) for draw in (rng.normal(size=len(each.ids)) * 2 for each in windows)]
            for _ in "se"
        )
        ((best, *_),) = best_answers([example], windows, starts, ends, options)
        expected = scripts_answer(
            example.context,
            windows,
            starts,
            ends,
            n_best=options.n_best,
            max_answer=options.max_answer,
            null_threshold=null_threshold,
        )
        assert (best.text, best.score) == (expected[0], pytest.approx(expected[1])), trial
        seen["none" if best.text == "" else "empty" if best.text == "empty" else "found"] += 1
    assert seen["found"] > 5 and seen["empty"] > 0
    assert (seen["none"] > 0) == (null_threshold is not None)


def test_questions_without_an_answer_are_right_if_none_is_given() -> None:
    """As SQuAD 2.0 counts; others beside them keep their own scores."""
    examples = [question("Anna plays", "Anna"), question("Anna plays"), question("Anna plays")]
    score = TASKS["mlqa"].score
    assert score("en", examples, ["Anna plays", "", "Anna"]) == {
        "f1": 100 * (2 / 3 + 1) / 3,
        "exact_match": pytest.approx(100 / 3),
    }
    assert score("en", examples[1:], ["", "Anna"]) == {"f1": 50.0, "exact_match": 50.0}
    assert score("en", examples[1:], ["the", "!"]) == {"f1": 100.0, "exact_match": 100.0}, "nothing that counts"
    assert score("de", examples[1:], ["der", "the"]) == {"f1": 50.0, "exact_match": 50.0}, "by MLQA's articles"
    assert score("en", [question("the cat", "the")], ["a"]) == {"f1": 0.0, "exact_match": 100.0}, "MLQA's script"


def test_data_with_unanswered_questions_score_what_squad_2_says() -> None:
    """To the last digit, with answers of which nothing counts, and punctuation that only MLQA's rules take out."""
    rng = random.Random(3)
    parts = ["the", "a", "an", "cat", "Cats", "“cat”", "3.5", "!", "-", "the-cat", "é", ""]
    seen = Counter()
    for _ in range(300):
        texts = [[" ".join(rng.choices(parts, k=rng.randint(0, 3))) for _ in range(rng.randint(0, 2))] for _ in "12345"]
        examples = [replace(question("x"), answers=tuple(Answer(text, 0) for text in each)) for each in [*texts, []]]
        predictions = [rng.choice([*(each or ["", "the"]), rng.choice(parts)]) for each in [*texts, []]]
        questions = {str(number): each for number, each in enumerate([*texts, []])}
        expected = squad2_scores(questions, {str(number): each for number, each in enumerate(predictions)})
        assert TASKS["mlqa"].score("en", examples, predictions) == expected
        seen[expected["f1"] == expected["exact_match"]] += 1
    assert seen[True] and seen[False]
