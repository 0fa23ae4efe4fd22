"""Each process reads its share of the input, and a run that is continued reads only what is missing."""

from __future__ import annotations

import csv
import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import extractions
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from extractions import OPTIONS, texts_of
from kills import contents
from patience import PATIENCE

from hf_xlmr.data import text_files
from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError
from hf_xlmr.features import shares
from hf_xlmr.features.bulk_extraction import ExtractionReport, extract
from hf_xlmr.features.processes import Processes
from hf_xlmr.features.store.files import StoreLayout
from hf_xlmr.features.store.records import CUTS, STATE, TEMPORARY
from hf_xlmr.features.store.shards import Shards

Together: TypeAlias = Callable[..., list[Future[ExtractionReport]]]

TEXTS = texts_of(57)
LAST = 6  # shards of 10 rows

model = extractions.model
pytestmark = pytest.mark.usefixtures("cache_folder")


# ---- inputs ----------------------------------------------------------------------------------------------------------


def lines(folder: Path) -> Path:
    return extractions.write(folder / "texts.txt", TEXTS)


def objects(folder: Path) -> Path:
    """With blank lines."""
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" * (1 + number % 3) for number, text in enumerate(TEXTS)))
    return path


def fields(folder: Path, ending: str = ".csv") -> Path:
    """With quoted line ends."""
    path = folder / f"texts{ending}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",")
        writer.writerows([["text"], *([text.replace(". ", ".\n")] for text in TEXTS)])
    return path


def row_groups(folder: Path) -> Path:
    """Uneven ones, of which some are empty."""
    table = pa.table({"text": TEXTS})
    with pq.ParquetWriter(folder / "texts.parquet", table.schema) as writer:
        for first, last in ((0, 3), (3, 3), (3, 31), (31, 32), (32, 32), (32, 57)):
            writer.write_table(table.slice(first, last - first))
    return folder / "texts.parquet"


def several(folder: Path) -> Path:
    (folder / "several").mkdir()
    for number, (first, last) in enumerate(((0, 0), (0, 25), (25, 26), (26, 57))):
        extractions.write(folder / "several" / f"{number}.txt", TEXTS[first:last])
    return folder / "several"


def saved(folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_dict({"text": TEXTS}).save_to_disk(str(folder / "set"), num_shards=3)
    return folder / "set"


def gzipped(folder: Path) -> Path:
    (folder / "texts.txt.gz").write_bytes(gzip.compress(lines(folder).read_bytes()))
    return folder / "texts.txt.gz"


def zstd(folder: Path) -> Path:
    with pa.CompressedOutputStream(folder / "texts.txt.zst", "zstd") as file:
        file.write(lines(folder).read_bytes())
    return folder / "texts.txt.zst"


CUT: dict[str, Callable[[Path], Path]] = {
    "txt": lines,
    "jsonl": objects,
    "csv": fields,
    "tsv": partial(fields, ending=".tsv"),
    "parquet": row_groups,
    "folder": several,
    "data set": saved,
}
STREAMED: dict[str, Callable[[Path], Path]] = {"gz": gzipped, "zst": zstd}
INPUTS = CUT | STREAMED


# ---- processes -------------------------------------------------------------------------------------------------------


class Group:
    """Threads that take each other for processes."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)
        self.value: Any = None


class Member(Processes):
    """One of them."""

    group: Group

    def wait(self) -> None:
        self.group.barrier.wait(PATIENCE)

    def agreed(self, value: Any) -> Any:
        if self.is_first:
            self.group.value = value
        self.wait()
        found = self.group.value
        self.wait()
        return found


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    """Call `extract` in so many processes at once; when one fails, those who wait for it fail too."""
    own = threading.local()
    monkeypatch.setattr(Processes, "current", lambda: getattr(own, "process", Processes()))

    def run(count: int, *arguments: Any, **options: Any) -> list[Future[ExtractionReport]]:
        group = Group(count)

        def work(rank: int) -> ExtractionReport:
            own.process = Member(rank, count, rank)
            object.__setattr__(own.process, "group", group)
            try:
                return extract(*arguments, **options)
            except BaseException:
                group.barrier.abort()
                raise

        with ThreadPoolExecutor(count) as pool:
            return [pool.submit(work, rank) for rank in range(count)]

    return run


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", INPUTS)
def test_processes_make_the_bytes_of_one(
    model: Path, tmp_path: Path, together: Together, kind: str, count: int
) -> None:
    source = INPUTS[kind](tmp_path)
    alone = extract(model, source, tmp_path / "one", options=OPTIONS)
    reports = [each.result() for each in together(count, model, source, tmp_path / "out", options=OPTIONS)]
    assert contents(tmp_path / "out") == contents(tmp_path / "one")
    assert [report.shards for report in reports] == [len(range(rank, LAST, count)) for rank in range(count)]
    assert {report.rows for report in reports} == {alone.rows} == {len(TEXTS)}
    again = together(count, model, source, tmp_path / "out", options=OPTIONS, resume=True)
    assert [each.result().shards for each in again] == [0] * count
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_standard_input_is_handed_out(
    model: Path, tmp_path: Path, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(model, lines(tmp_path), tmp_path / "one", options=OPTIONS)
    with (tmp_path / "texts.txt").open(encoding="utf-8") as piped:
        monkeypatch.setattr("sys.stdin", piped)
        for each in together(2, model, "-", tmp_path / "out", options=OPTIONS):
            each.result()
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_few_shards_are_handed_out_ahead(
    model: Path, tmp_path: Path, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, found, taken = gzipped(tmp_path), [], shares._taken

    def watched(path: Path) -> Iterator[Any]:
        found.append(len([*path.parent.glob(f"*.rows{TEMPORARY}")]))
        return taken(path)

    monkeypatch.setattr(shares, "_taken", watched)
    for each in together(2, model, source, tmp_path / "out", options=replace(OPTIONS, rows_per_shard=1)):
        each.result()
    assert len(found) == len(TEXTS) and max(found) <= 2 * shares.AHEAD


@pytest.mark.parametrize("kind", [lines, gzipped])
def test_a_bad_row_is_met_by_one_process(
    model: Path, tmp_path: Path, together: Together, kind: Callable[[Path], Path]
) -> None:
    source = kind(tmp_path)
    whole = source.read_bytes()
    bad = b"\xff\n"
    source.write_bytes(whole + (bad if kind is lines else gzip.compress(bad)))
    failed = [each.exception() for each in together(2, model, source, tmp_path / "out", options=OPTIONS)]
    met = [each for each in failed if not isinstance(each, threading.BrokenBarrierError)]
    assert [type(each) for each in met] == [BadRow] and met[0] is not None
    assert f"{source.name}, line 58: byte 1 (0xFF) is not UTF-8" in str(met[0])
    assert not [*(tmp_path / "out").glob(f"{5:05d}*")]
    source.write_bytes(whole)
    for each in together(2, model, source, tmp_path / "out", options=OPTIONS, resume=True):
        each.result()
    extract(model, source, tmp_path / "one", options=OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


# ---- going on --------------------------------------------------------------------------------------------------------


def interrupted(model: Path, source: Path | str, output: Path, at: int, **options: Any) -> None:
    """What a run leaves that ends in shard `at`, of an input that stays as it is."""
    record = shares.Shards.record

    def fail(self: shares.Shards, state: Any) -> None:
        if state["number"] == at:
            raise InputError("it ends here")
        record(self, state)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="it ends here"):
        patch.setattr(shares.Shards, "record", fail)
        extract(model, source, output, options=replace(OPTIONS, **options), resume=output.exists())


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a file of lines gave."""
    sizes, opened = [], text_files.opened_part

    class Counted:
        def __init__(self, file: Any) -> None:
            self.seek, self.close, self._file = file.seek, file.close, file

        def read(self, size: int) -> bytes:
            data: bytes = self._file.read(size)
            sizes.append(len(data))
            return data

    def counted(file: Any, *arguments: Any, **options: Any) -> Any:
        return opened(Counted(file), *arguments, **options)

    monkeypatch.setattr(text_files, "opened_part", counted)
    return sizes


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv"])
def test_what_is_done_is_not_read_again(model: Path, tmp_path: Path, bytes_read: list[int], ending: str) -> None:
    source, texts = tmp_path / f"texts{ending}", ["word " * 60 + str(number) for number in range(1000)]
    head = "text\n" if ending == ".csv" else ""
    rows = [json.dumps({"text": text}) if ending == ".jsonl" else text for text in texts]
    source.write_text(head + "".join(f"{row}\n" for row in rows))
    options = {"rows_per_shard": 20, "max_length": 8}
    interrupted(model, source, tmp_path / "out", 45, **options)
    bytes_read.clear()
    report = extract(model, source, tmp_path / "out", options=replace(OPTIONS, **options), resume=True)
    assert report.texts == 100
    assert sum(bytes_read) <= 0.15 * source.stat().st_size
    extract(model, source, tmp_path / "one", options=replace(OPTIONS, **options))
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize("kind", INPUTS)
def test_every_input_goes_on(model: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = INPUTS[kind](tmp_path)
    interrupted(model, source, tmp_path / "out", 4)
    checked: list[int] = []
    monkeypatch.setattr(shares.Shards, "check", lambda _self, number, _sum: checked.append(number))
    assert extract(model, source, tmp_path / "out", options=OPTIONS, resume=True).shards == 2
    assert checked == [4, 5]  # those that were made
    monkeypatch.undo()
    extract(model, source, tmp_path / "one", options=OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


@pytest.mark.parametrize("kind", ["txt", "gz"])
def test_a_file_that_was_touched_is_compared_once(
    model: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = INPUTS[kind](tmp_path)
    interrupted(model, source, tmp_path / "out", 4)
    os.utime(source, (1, 1))
    summed: list[int] = []
    checked = shares.Share._checked

    def watched(self: shares.Share, number: int, rows: Any) -> shares.Passed:
        summed.append(number)
        return checked(self, number, rows)

    monkeypatch.setattr(shares.Share, "_checked", watched)
    interrupted(model, source, tmp_path / "out", 4)
    assert summed == [0, 1, 2, 3]
    assert extract(model, source, tmp_path / "out", options=OPTIONS, resume=True).shards == 2
    assert summed == [0, 1, 2, 3]


@pytest.mark.parametrize("keeps_time", [True, False])
@pytest.mark.parametrize("kind", ["txt", "gz"])
def test_another_text_is_refused_whatever_the_time_of_its_file(
    model: Path, tmp_path: Path, kind: str, keeps_time: bool
) -> None:
    """Of the same size, too."""
    source = INPUTS[kind](tmp_path)
    interrupted(model, source, tmp_path / "out", 4)
    before = source.stat()
    content = (tmp_path / "texts.txt").read_bytes().replace(b"The train 13", b"The plane 13")
    source.write_bytes(content if kind == "txt" else gzip.compress(content))
    if keeps_time:
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=r"the input is not what .*out was begun with: rows 10 to 19"):
        extract(model, source, tmp_path / "out", options=OPTIONS, resume=True)


def test_another_column_is_another_input(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "more": TEXTS[::-1]}), tmp_path / "texts.parquet")
    interrupted(model, tmp_path / "texts.parquet", tmp_path / "out", 4)
    with pytest.raises(InputError, match="rows 0 to 9"):
        extract(
            model, tmp_path / "texts.parquet", tmp_path / "out", options=replace(OPTIONS, column="more"), resume=True
        )


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"input": 1}'])
def test_cuts_that_were_damaged_are_found_again(model: Path, tmp_path: Path, content: bytes) -> None:
    source = lines(tmp_path)
    interrupted(model, source, tmp_path / "out", 4)
    cuts = tmp_path / "out" / STATE / CUTS
    kept = cuts.read_bytes()
    cuts.write_bytes(content)
    assert extract(model, source, tmp_path / "out", options=OPTIONS, resume=True).shards == 2
    interrupted(model, source, tmp_path / "more", 4)
    changed = json.loads(kept) | {"rows": 20, "cuts": json.loads(kept)["cuts"][:2]}
    (tmp_path / "more" / STATE / CUTS).write_text(json.dumps(changed | {"input": "other"}))
    assert extract(model, source, tmp_path / "more", options=OPTIONS, resume=True).rows == len(TEXTS)


@pytest.mark.parametrize("rows", [4, 25])
def test_cuts_of_shards_of_another_size_are_found_again(model: Path, tmp_path: Path, rows: int) -> None:
    """They stay behind if a run is killed before its first shard is done, and the next one need not resume."""
    source, output = lines(tmp_path), tmp_path / "out"
    interrupted(model, source, output, 4)
    for left in [*(output / STATE).glob("[0-9]*.json"), *output.glob("part-*")]:
        left.unlink()
    options = replace(OPTIONS, rows_per_shard=rows)
    extract(model, source, output, options=options)
    extract(model, source, tmp_path / "other", options=options)
    assert contents(output) == contents(tmp_path / "other")


def test_a_longer_limit_goes_on_behind_the_row_that_was_too_long(model: Path, tmp_path: Path) -> None:
    source = objects(tmp_path)
    source.write_text(source.read_text() + json.dumps({"text": "long " * 99}) + '\n{"text": "more"}\n')
    with pytest.raises(BadRow, match="longer than 100 bytes"):
        extract(model, source, tmp_path / "out", options=replace(OPTIONS, max_row_size="0.1KB"))
    assert extract(model, source, tmp_path / "out", options=OPTIONS, resume=True).rows == len(TEXTS) + 2


def test_nothing_is_left_of_a_run_that_made_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(BadRow):
        extract(model, tmp_path / "texts.txt", tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_process_does_not_wait_for_a_first_one_that_is_gone(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Of several processes it alone reads a stream; without a launcher nobody else would say that it has died."""
    monkeypatch.setattr(shares, "POLL_SECONDS", 0.001)
    (tmp_path / "out" / STATE).mkdir(parents=True)
    store = Shards(tmp_path / "out", StoreLayout(layers=(1,), width=4, rows_per_shard=8192))
    with pytest.raises(InputError, match="the process that reads the input has ended"):
        list(shares._Taken(store, Processes(1, 2, 1)).parts())


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(ending: str, tmp_path: Path) -> None:
    """Lines are the same one after another and by shards, however long they may be."""
    at_the_limit, beyond = b"\xef\xbb\xbf" + b"a" * 10 + b"\nbb\n", b"\xef\xbb\xbf" + b"a" * 13 + b"\nbb\n"
    path = tmp_path / f"texts.txt{ending}"

    def opened(content: bytes) -> text_files.TextInput:
        path.write_bytes(gzip.compress(content) if ending else content)
        return text_files.open_texts(path, max_row_size=10)

    def by_shards(content: bytes) -> list[str]:
        texts = opened(content)
        cuts = texts.cuts(1)
        return [] if cuts is None else [row.text for shard in range(len(cuts)) for row in texts.rows_of(cuts, shard)]

    assert [row.text for row in opened(at_the_limit)] == ["a" * 10, "bb"]
    with pytest.raises(BadRow, match="line 1"):
        list(opened(beyond))
    if not ending:
        assert by_shards(at_the_limit) == ["a" * 10, "bb"]
        with pytest.raises(BadRow, match="line 1"):
            by_shards(beyond)
