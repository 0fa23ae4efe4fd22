"""Training data are encoded once for all processes and runs, and again whenever anything about them changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import tracemalloc
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from datasets import Dataset
from local_hub import Repository, running_hub
from refusals import told
from small_tasks import LANGUAGES, write_ner, write_questions, write_xnli
from warm_processes import run, run_two

from hf_xlmr.data.columns import identity_of
from hf_xlmr.features.processes import Processes
from hf_xlmr.files.locks import locked
from hf_xlmr.hub_interface.loading import ModelFiles, find_model
from hf_xlmr.tasks.encoding.encoding import Features, Row, batches_of, digest_of
from hf_xlmr.tasks.encoding.question_answering import QuestionOptions
from hf_xlmr.tasks.fitting import encoded_data as module
from hf_xlmr.tasks.fitting.encoded_data import EncodedData, encoded_data
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Coding
from hf_xlmr.tasks.kinds.task_data import read_task_data
from hf_xlmr.tasks.xnli import XNLI_LABELS
from hf_xlmr.tokenizer.dictionary import Dictionary
from hf_xlmr.tokenizer.tokenization import ExactTokenizer

ALL = Reading()


@pytest.fixture(scope="module")
def model(cache_folder: Path) -> ModelFiles:
    return find_model("demo")


@pytest.fixture(scope="module")
def exact(model: ModelFiles) -> ExactTokenizer:
    return model.needed_tokenizer()


@pytest.fixture
def coding(exact: ExactTokenizer) -> Coding:
    return Coding(exact, XNLI_LABELS, 32, QuestionOptions(max_length=32, max_question=8, stride=8))


@pytest.fixture(autouse=True)
def cache(exact: ExactTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of each test alone."""
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting:
    """A Progress that counts what is encoded, and may do something then."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.count, self.then = 0, then

    @contextmanager
    def task(self, label: str, **_: object) -> Iterator[Counting]:
        assert label == "encoding"
        yield self

    def advance(self, amount: int, *, note: str = "") -> None:
        self.count += amount
        self.then()


def encoded(source: str, coding: Coding, reading: Reading = ALL, *, task: str = "xnli") -> tuple[EncodedData, int]:
    """The data, and how many examples were encoded for them now."""
    counting = Counting()
    found = encoded_data(TASKS[task], [source], reading, coding, processes=Processes(), progress=counting)
    return found, counting.count


def rows_in(features: Features) -> list[dict[str, Any]]:
    return [features[index] for index in range(len(features))]


def whole(task: str, source: str, coding: Coding, reading: Reading = ALL) -> list[Row]:
    """What the task makes of all examples at once, which are in memory."""
    examples = read_task_data(task, [source], reading).examples.values()
    everything = [each for several in examples for each in several]
    labels = coding.labels or TASKS[task].labels_in(everything) or ()
    return list(TASKS[task].encode(everything, replace(coding, labels=labels)))


def entries(cache: Path) -> list[str]:
    return sorted(path.parent.name for path in (cache / "training").glob("*/facts.json"))


# ---- the same numbers


def earlier_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """As an hf_xlmr computed it that held all numbers in arrays: checkpoints of that time are recorded with it."""
    columns: dict[str, array[int]] = {}
    ends: dict[str, array[int]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, array("i")).extend(value if isinstance(value, list) else [value])
            ends.setdefault(name, array("q", [0])).append(len(columns[name]))
    total = hashlib.sha256()
    for name, column in columns.items():
        for part in (name.encode(), ends[name].tobytes(), column.tobytes()):
            total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def test_the_digest_is_that_of_earlier_records() -> None:
    rows: list[Row] = [
        {"input_ids": list(range(number % 7)), "labels": number % 3, "tags": [number, -100]} for number in range(3000)
    ]
    assert digest_of(batches_of(rows)) == earlier_digest(rows)
    parts = (each.slice(first, 100) for each in batches_of(rows) for first in range(0, each.num_rows, 100))
    assert digest_of(parts) == earlier_digest(rows), "however rows are shared out among batches"
    assert digest_of(batches_of(reversed(rows))) != earlier_digest(rows)


@pytest.mark.parametrize("at_once", [1, 7, 1024])
@pytest.mark.parametrize("languages", [None, ("en",), ("zh", "de")])
@pytest.mark.parametrize("task", ["xnli", "ner", "mlqa"])
def test_the_rows_are_those_of_all_examples_at_once(
    task: str,
    languages: tuple[str, ...] | None,
    at_once: int,
    coding: Coding,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the order of languages, and for entities with labels that are known only when all were read."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    if task == "mlqa":
        for language in ("de", "en", "zh"):
            write_questions(tmp_path / f"test-context-{language}-question-{language}.json", 9, language)
        source = str(tmp_path / "*.json")
    else:
        (tmp_path / "first").write_text("fr:ja\tO\n\nen:Elbe\tI-ORG\n\nen:Zug\tB-ORG\n\n", encoding="utf-8")
        write_ner(tmp_path / "more", 9)
        source = str(tmp_path / "*r*") if task == "ner" else write_xnli(tmp_path / "x.tsv", 9)
    reading, given = Reading(languages=languages), coding if task == "xnli" else replace(coding, labels=())
    found, _ = encoded(source, given, reading, task=task)
    expected = whole(task, source, given, reading)
    assert rows_in(found.features) == expected and found.digest == earlier_digest(expected)
    assert found.data == replace(read_task_data(task, [source], reading), examples={})
    labels = {"xnli": XNLI_LABELS, "mlqa": None}.get(task, found.labels)
    assert found.labels == labels and (task != "ner" or (found.labels is not None and found.labels[0] == "O"))


def test_many_languages_do_not_wait_for_each_other(
    coding: Coding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    lines = [f"{chr(97 + number % 26)}{chr(97 + number // 26)}:ja\tO\n" for number in range(100)]
    (tmp_path / "x").write_text("\n".join(lines * 2), encoding="utf-8")
    found, count = encoded(str(tmp_path / "x"), replace(coding, labels=()), task="ner")
    assert rows_in(found.features) == whole("ner", str(tmp_path / "x"), replace(coding, labels=()))
    assert count == 200 and len(found.data.counts) == 100


def test_datasets_maps_the_rows_too(coding: Coding, tmp_path: Path, cache: Path) -> None:
    found, _ = encoded(write_xnli(tmp_path / "x.tsv", 5), coding)
    (entry,) = entries(cache)
    assert list(Dataset.from_file(str(cache / "training" / entry / "rows.arrow"))) == rows_in(found.features)


def write_rows_of_questions(path: Path, count: int) -> str:
    """As `Dataset.to_json` writes them, with much that is not needed."""
    row = {"title": "Zug" * 5000, "context": "der Zug", "question": "?", "answers": {"text": [], "answer_start": []}}
    rows = ({"id": f"q{number}", "is_impossible": True, **row} for number in range(count))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return f"de={path}"


@pytest.mark.parametrize(
    ("task", "write"), [("xnli", write_xnli), ("ner", write_ner), ("mlqa", write_rows_of_questions)]
)
def test_memory_does_not_grow_with_the_examples(
    task: str, write: Callable[[Path, int], str], coding: Coding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that Python holds at once, for ten times as many."""
    monkeypatch.setattr(module, "AT_ONCE", 8)
    given, peaks, counts = coding if task == "xnli" else replace(coding, labels=()), [], []
    encoded(write(tmp_path / "x.json", 8) if task == "mlqa" else write(tmp_path / "x.tsv", 8), given, task=task)
    fewest = {"xnli": 40, "ner": 20, "mlqa": 120}[task]  # ten times as many are more than a block of a file
    for count in (fewest, 10 * fewest):
        source = write(tmp_path / f"{count}.{'json' if task == 'mlqa' else 'tsv'}", count)
        tracemalloc.start()
        made = encoded(source, given, task=task)[1]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        counts.append(made)
    assert counts[1] == 10 * counts[0] == len(LANGUAGES if task != "mlqa" else "1") * 10 * fewest
    assert peaks[1] - peaks[0] < 200 * (counts[1] - counts[0]), "an example takes some 500 bytes, an id less than 200"


# ---- once, and again


def test_the_same_content_is_encoded_once_wherever_it_is(coding: Coding, tmp_path: Path, cache: Path) -> None:
    source = write_xnli(tmp_path / "x.tsv", 5)
    first, count = encoded(source, coding)
    assert count == 5 * len(LANGUAGES)
    shutil.copytree(tmp_path, tmp_path / "other" / tmp_path.name, ignore=lambda *_: ["cache", "other"])
    for place in (source, str(tmp_path / "*.tsv"), str(tmp_path / "other" / tmp_path.name / "x.tsv")):
        again, count = encoded(place, coding)
        assert count == 0 and again.digest == first.digest and again.data == replace(first.data, name=place)
        assert rows_in(again.features) == rows_in(first.features)
    assert len(entries(cache)) == 1


def test_a_change_that_the_system_does_not_show_is_seen(coding: Coding, tmp_path: Path) -> None:
    """The same size, and the same time."""
    path = Path(write_xnli(tmp_path / "x.tsv", 5))
    before, status = encoded(str(path), coding)[0], path.stat()
    path.write_bytes(path.read_bytes().replace(b"train", b"night"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after, count = encoded(str(path), coding)
    assert count and after.digest != before.digest


def test_whatever_decides_on_the_numbers_encodes_again(coding: Coding, tmp_path: Path, cache: Path) -> None:
    source, exact = write_xnli(tmp_path / "x.tsv", 5), coding.tokenizer
    encoded(source, coding)
    symbols = list(exact.dictionary.symbols)
    symbols[-3:-1] = reversed(symbols[-3:-1])
    other = ExactTokenizer(Dictionary.of(symbols), exact.processor.serialized_model_proto())
    for number, (changed, reading) in enumerate(
        (
            (replace(coding, max_length=31), ALL),
            (replace(coding, labels=XNLI_LABELS[::-1]), ALL),
            (replace(coding, tokenizer=other), ALL),
            (coding, Reading(languages=("en",))),
            (coding, Reading(languages=("en", "de"))),
            (coding, Reading(languages=("de", "en"))),
            (coding, Reading(unlabelled="refuse")),
            (coding, Reading(labels=XNLI_LABELS[::-1])),
        ),
        start=2,
    ):
        assert encoded(source, changed, reading)[1] > 0, number
        assert len(entries(cache)) == number
        assert encoded(source, changed, reading)[1] == 0, number
    renamed = shutil.copy(source, tmp_path / "multinli.train.de.tsv")  # a name can say a language
    assert encoded(str(renamed), coding)[1] > 0
    assert encoded(f"de={source}", coding)[1] > 0


def test_stride_and_windows_encode_questions_again(coding: Coding, tmp_path: Path) -> None:
    source = write_questions(tmp_path / "train-v1.1.json", 5)
    given = replace(coding, labels=())
    assert encoded(source, given, task="mlqa")[1] and not encoded(source, given, task="mlqa")[1]
    assert encoded(source, replace(given, questions=replace(given.questions, stride=4)), task="mlqa")[1]


def test_saved_data_sets_are_known_by_all_their_files(coding: Coding, tmp_path: Path) -> None:
    rows = [{"premise": "Zug", "hypothesis": "Garten", "label": number % 3, "language": "de"} for number in range(6)]
    for folder, some in (("one", rows), ("two", rows[::-1])):
        Dataset.from_list(some).save_to_disk(str(tmp_path / folder))
    first, second = (encoded(str(tmp_path / folder), coding) for folder in ("one", "two"))
    assert first[1] == second[1] == 6 and first[0].digest != second[0].digest
    assert encoded(str(tmp_path / "one"), coding)[1] == 0


def test_the_identity_of_what_only_reading_shows_is_unknown(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert identity_of(str(tmp_path / "pipe")) is None
    assert identity_of(str(tmp_path / "nothing")) is None
    assert identity_of(str(tmp_path)) is None, "no data set: none of what may be in there is read"


def test_a_data_set_on_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", os.devnull)
        repository = hub.repositories["me/pairs"] = Repository(private=False)
        commits = [repository.commit("main", {})]
        assert identity_of("me/pairs") == identity_of("me/pairs") == ("me/pairs", commits[0])
        commits.append(repository.commit("main", {}))
        assert identity_of("me/pairs") == ("me/pairs", commits[1]) != ("me/pairs", commits[0])
        assert identity_of("me/nothing") is None
    assert identity_of("me/pairs") is None, "the Hub cannot be reached"


def test_a_pipe_is_read_once_and_leaves_nothing(coding: Coding, tmp_path: Path, cache: Path) -> None:
    content = Path(write_xnli(tmp_path / "x.tsv", 5)).read_bytes()
    expected = rows_in(encoded(str(tmp_path / "x.tsv"), coding)[0].features)
    os.mkfifo(tmp_path / "pipe.tsv")
    for _ in range(2):
        writer = threading.Thread(target=(tmp_path / "pipe.tsv").write_bytes, args=(content,), daemon=True)
        writer.start()
        found, count = encoded(str(tmp_path / "pipe.tsv"), coding)
        writer.join()
        assert count == 20 and rows_in(found.features) == expected
    assert "does not exist" in told(encoded, str(tmp_path / "nothing.tsv"), coding)
    assert len(list((cache / "training").iterdir())) == 1


# ---- what is damaged, killed or changed meanwhile


def damages(entry: Path) -> Iterator[Callable[[], object]]:
    rows, facts = entry / "rows.arrow", entry / "facts.json"
    content = rows.read_bytes()
    middle = len(content) // 2
    yield lambda: rows.write_bytes(content[:middle])
    yield lambda: rows.write_bytes(content.replace(content[middle : middle + 8], bytes(8)))
    yield lambda: rows.write_bytes(b"")
    yield rows.unlink
    yield lambda: facts.write_text("{")
    yield lambda: facts.write_text(json.dumps({**json.loads(facts.read_text()), "misaligned": 3}))
    yield lambda: facts.write_text("[]")


def test_damage_is_not_trained_on(coding: Coding, tmp_path: Path, cache: Path) -> None:
    source = write_xnli(tmp_path / "x.tsv", 40)
    expected = encoded(source, coding)[0].digest
    (entry,) = entries(cache)
    for number, damage in enumerate(damages(cache / "training" / entry)):
        damage()
        found, count = encoded(source, coding)
        assert count == 160 and found.digest == expected, number
    assert encoded(source, coding)[1] == 0


ENCODES = """
import os, signal, sys
from hf_xlmr.features.processes import Processes
from hf_xlmr.hub_interface.loading import find_model
from hf_xlmr.tasks.encoding.question_answering import QuestionOptions
from hf_xlmr.tasks.fitting import encoded_data as module
from hf_xlmr.tasks.kinds.inputs import Reading
from hf_xlmr.tasks.kinds.registry import TASKS
from hf_xlmr.tasks.kinds.task import Coding
from contextlib import contextmanager

source, dies_at, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
module.AT_ONCE = 8

class Counting:
    count = 0
    @contextmanager
    def task(self, label, **_):
        yield self
    def advance(self, amount, *, note=""):
        self.count += amount
        if self.count >= dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

progress, task = Counting(), TASKS["xnli"]
options = QuestionOptions(max_length=32, max_question=8, stride=8)
coding = Coding(find_model(model).needed_tokenizer(), task.recipe.labels, 32, options)
found = module.encoded_data(task, [source], Reading(), coding, processes=Processes.current(), progress=progress)
print(progress.count, len(found.features), found.digest)
"""


def test_a_run_that_was_killed_leaves_nothing_that_looks_whole(
    coding: Coding, model: ModelFiles, tmp_path: Path, cache: Path
) -> None:
    source = write_xnli(tmp_path / "x.tsv", 20)
    assert run([sys.executable, "-c", ENCODES, source, "40", model.folder]).returncode == -9
    assert entries(cache) == [] and len(list(cache.glob("training/*/draft.arrow"))) == 1
    found, count = encoded(source, coding)
    assert count == 80 and rows_in(found.features) == whole("xnli", source, coding)
    assert not list(cache.glob("training/*/draft.arrow"))


def test_what_a_killed_run_left_goes_when_other_data_are_encoded(coding: Coding, tmp_path: Path, cache: Path) -> None:
    """Not what a process still writes, which holds the lock, and not what is whole."""
    encoded(write_xnli(tmp_path / "x.tsv", 5), coding)
    (kept,) = entries(cache)
    for name in ("ended", "once-ended", "at-work"):
        (cache / "training" / name).mkdir()
        (cache / "training" / name / module.DRAFT).write_bytes(b"rows")
    (cache / "training" / "ended" / module.ROWS).write_bytes(b"rows")
    with locked(cache / "training" / "at-work" / module.LOCK):
        encoded(write_xnli(tmp_path / "y.tsv", 6), coding)
    left = [path.parent.name for path in (cache / "training").glob("*/*.arrow")]
    assert "at-work" in left and kept in left and not {"ended", "once-ended"} & {*left}


def test_two_processes_encode_once(coding: Coding, model: ModelFiles, tmp_path: Path, cache: Path) -> None:
    source = write_xnli(tmp_path / "x.tsv", 100)
    done = run_two([sys.executable, "-c", ENCODES, source, "1000", model.folder])
    assert [each.returncode for each in done] == [0, 0], [each.stderr[-2000:] for each in done]
    counts = sorted(int(each.stdout.split()[0]) for each in done)
    assert counts == [0, 400] and len({tuple(each.stdout.split()[1:]) for each in done}) == 1
    assert len(entries(cache)) == 1 and encoded(source, coding)[1] == 0


def test_a_fault_in_the_data_leaves_nothing(coding: Coding, tmp_path: Path, cache: Path) -> None:
    path = Path(write_xnli(tmp_path / "x.tsv", 5))
    path.write_text(path.read_text(encoding="utf-8") + "de\tperhaps\ta\tb\n", encoding="utf-8")
    assert "x.tsv, line 22: the label 'perhaps' is unknown" in told(encoded, str(path), coding)
    assert not list(cache.glob("training/*/*.arrow")) and entries(cache) == []


def test_data_that_change_while_they_are_read_are_refused(coding: Coding, tmp_path: Path, cache: Path) -> None:
    path = Path(write_xnli(tmp_path / "x.tsv", 5))

    def encode() -> None:
        progress = Counting(lambda: path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8"))
        encoded_data(TASKS["xnli"], [str(path)], ALL, coding, processes=Processes(), progress=progress)

    assert told(encode) == f"{path}: the data changed while they were read; start again when they are complete"
    assert entries(cache) == []


def test_a_cache_that_cannot_be_is_told(coding: Coding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "file" / "cache"))
    message = told(encoded, write_xnli(tmp_path / "x.tsv", 5), coding)
    assert message.startswith(f"the cache {tmp_path}/file/cache, where encoded training data are kept, cannot be")
    assert message.endswith("set HF_XLMR_CACHE to a folder on another disk")
