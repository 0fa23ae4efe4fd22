"""Every kind of input gives the same texts in their order, in flat memory, and tells where a bad row is."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from hf_xlmr.data import arrow_texts
from hf_xlmr.data.cuts import Cuts
from hf_xlmr.data.parquet_pages import DamagedPage, row_groups
from hf_xlmr.data.text_files import TextInput, open_texts
from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError

TEXTS = [
    "Hello world!",
    "",
    "née Müller",
    "日本語の文",
    "a\u2028b\u0085c\x0bd\x0ce\x1cf",
    " spaced ",
    'so "quoted", yes',
    "🙂",
]
CUT = ["two\nlines", "\r\n", "a\rb"]  # what a text per line cannot hold


def texts_of(source: Path | str, **options: Any) -> list[str]:
    return [row.text for row in open_texts(source, **options)]


def rows_of_cuts(opened: TextInput) -> int | None:
    """How many rows are counted where the input is cut, None if it has no cuts."""
    cuts = opened.cuts(1000)
    return None if cuts is None else cuts.rows


def bad_row(source: Path | str, **options: Any) -> BadRow:
    with pytest.raises(BadRow) as caught:
        texts_of(source, **options)
    return caught.value


def write_txt(path: Path, texts: list[str]) -> None:
    path.write_bytes("".join(text + "\n" for text in texts).encode())


def write_jsonl(path: Path, texts: list[str]) -> None:
    rows = [{"id": f"id{number}", "text": text, "more": [1]} for number, text in enumerate(texts)]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=bool(len(row["text"]) % 2)) + "\n" for row in rows).encode())


def write_csv(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(["id", "text", "more"])
        writer.writerows([f"id{number}", text, 1] for number, text in enumerate(texts))


def save(folder: Path, batches: list[Any], **options: Any) -> None:
    """A data set on the disk, as `Dataset.save_to_disk` lays it out."""
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}], "_split": "train"}')
    (folder / "dataset_info.json").write_text("{}")
    with pa.ipc.new_stream(
        folder / "data.arrow", batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as writer:
        for batch in batches:
            writer.write_batch(batch)


def table_of(texts: list[str], kind: Any = None) -> pa.Table:
    return pa.table(
        {"id": [f"id{number}" for number in range(len(texts))], "text": pa.array(texts, kind or pa.string())}
    )


def write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(table_of(texts), path, row_group_size=3)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    ".txt": write_txt,
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".json": write_jsonl,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}
ZIPPED = [name for name in WRITERS if name != ".parquet"]


@pytest.fixture(params=[*WRITERS, *(f"{name}.gz" for name in ZIPPED), ".txt.zst", ".csv.zst"])
def ending(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def written(folder: Path, ending: str, texts: list[str]) -> Path:
    kind = ending.removesuffix(".gz").removesuffix(".zst")
    path = folder / f"texts{kind}"
    WRITERS[kind](path, texts)
    if kind == ending:
        return path
    zipped = folder / f"texts{ending}"
    zipped.write_bytes((gzip.compress if ending.endswith(".gz") else zstd)(path.read_bytes()))
    return zipped


def zstd(content: bytes) -> bytes:
    """One frame."""
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return bytes(packed.getvalue())


# ---- every kind ------------------------------------------------------------------------------------------------------


def test_texts_come_back_in_their_order_each_time(tmp_path: Path, ending: str) -> None:
    texts = TEXTS if ending.startswith(".txt") else TEXTS + CUT
    opened = open_texts(written(tmp_path, ending, texts))
    assert [row.text for row in opened] == texts
    assert [(row.number, row.text, row.id) for row in opened] == [(n, text, None) for n, text in enumerate(texts)]
    assert opened.is_repeatable and not opened.has_ids


def test_ids_come_along(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ending, TEXTS)
    if ending.startswith(".txt"):
        with pytest.raises(InputError, match="has no columns"):
            open_texts(path, id_column="id")
        return
    opened = open_texts(path, id_column="id")
    assert opened.has_ids
    assert [row.id for row in opened] == [f"id{number}" for number in range(len(TEXTS))]
    assert [row.id for row in open_texts(path, id_column="text")] == TEXTS


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path, ending: str) -> None:
    is_cheap = not ending.endswith((".gz", ".zst"))
    assert rows_of_cuts(open_texts(written(tmp_path, ending, TEXTS))) == (len(TEXTS) if is_cheap else None)


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path, ending: str) -> None:
    if ending.startswith(".txt"):
        pytest.skip("lines have no columns")
    path = written(tmp_path, ending, TEXTS)
    for options in ({"column": "body"}, {"id_column": "body"}):
        assert "there is no column 'body'; the columns are 'id', 'text'" in bad_row(path, **options).reason


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("texts.txt", "texts.jsonl"):
        for content in (b"", b"\xef\xbb\xbf"):
            (tmp_path / name).write_bytes(content)
            assert (texts_of(tmp_path / name), rows_of_cuts(open_texts(tmp_path / name))) == ([], 0)
    (tmp_path / "texts.csv").write_bytes(b"")
    assert "the columns are none" in bad_row(tmp_path / "texts.csv").reason


# ---- large rows, and small files that unfold -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".txt", ".txt.gz", ".jsonl", ".csv", ".parquet", "data set"])
def test_a_row_is_too_large_beyond_a_limit(tmp_path: Path, kind: str) -> None:
    most = 200
    around = {".jsonl": len('{"id": "id1", "text": "", "more": [1]}'), ".csv": len("id1,,1")}.get(kind, 0)
    for size, is_good in ((most - around, True), (most - around + 1, False)):
        texts = ["before", "a" * size, "after"]
        if kind == "data set":
            save(tmp_path / f"set{size}", [pa.record_batch({"text": texts})])
            path = tmp_path / f"set{size}"
        else:
            path = written(tmp_path, kind, texts)
        rows = iter(open_texts(path, max_row_size=most))
        assert next(rows).text == "before"
        if is_good:
            assert [row.text for row in rows] == texts[1:]
            continue
        with pytest.raises(BadRow, match="is longer than 200 bytes, the most that a row may have") as caught:
            next(rows)
        assert caught.value.place.endswith(("line 2", "line 3", "row 1"))


def test_a_line_may_end_in_either_way_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"12345\r\n12345\n1234\r\r\n12345")
    assert texts_of(tmp_path / "a.txt", max_row_size=5) == ["12345", "12345", "1234\r", "12345"]
    (tmp_path / "a.txt").write_bytes(b"12345\n12345\r\r\n")
    assert bad_row(tmp_path / "a.txt", max_row_size=5).place == "a.txt, line 2"


def test_a_record_of_csv_is_large_with_all_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\nfine,1\n"' + b'a\n","' * 1000)
    bad = bad_row(tmp_path / "a.csv", max_row_size=1000)
    assert (bad.place, bad.reason[:34]) == ("a.csv, line 3", "the row that begins here is longer")


def test_a_large_id_is_a_bad_row_and_columns_that_nobody_asked_for_are_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "id": ["x", "y" * 300], "n": ["z" * 300] * 2}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", max_row_size=200) == ["a", "b"]
    assert str(bad_row(tmp_path / "a.parquet", id_column="id", max_row_size=200)) == (
        "a.parquet, row 1: the value of 'id' is longer than 200 bytes, the most that a row may have (max_row_size)"
    )


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_lengths_are_bytes_in_every_type_of_strings(tmp_path: Path, kind: Any) -> None:
    values = ["a", None, "é" * 100, "é" * 100 + "a", "b"]
    pq.write_table(pa.table({"text": pa.array(values, kind), "id": range(5)}), tmp_path / "a.parquet")
    rows = iter(
        arrow_texts.arrow_rows("a", pq.read_table(tmp_path / "a.parquet").to_batches(), ["text", "id"], most=200)
    )
    assert [next(rows)[1] for _ in range(3)] == [("a", 0), (None, 1), ("é" * 100, 2)]
    with pytest.raises(BadRow, match=r"a, row 3: the value of 'text' is longer than 200 bytes"):
        next(rows)


# Small files that hold much; each is written with what `open_texts` must say of it, or with how many rows it has
def unfolding(folder: Path) -> dict[str, str | int]:
    def gz(name: str, *parts: bytes) -> None:
        with gzip.open(folder / name, "wb", compresslevel=1) as file:
            file.writelines(parts)

    two = "word " * 400_000
    gz("line.jsonl.gz", b'{"text": "', *[b"a" * 1_000_000] * 60, b'"}\n')
    gz("nested.jsonl.gz", *[b'{"text": "x", "y": [' + b",".join([b"[" * 900 + b"]" * 900] * 3000) + b"]}\n"] * 3)
    gz("no-end.txt.gz", *[b"a" * 1_000_000] * 60)
    gz("open.csv.gz", b'text,n\nfine,1\n"', *[(b"a" * 1000 + b'\n","') * 1000] * 20)
    gz("columns.tsv.gz", b"text" + b"\t" * 15_000_000 + b"\nx" + b"\t" * 15_000_000 + b"\n")
    gz("feeds.txt.gz", b"\n" * 100_000)
    pq.write_table(pa.table({"text": [two] * 256}), folder / "dictionary.parquet")
    pq.write_table(pa.table({"text": [two] * 300}), folder / "page.parquet", use_dictionary=False, compression="zstd")
    pq.write_table(pa.table({"text": [two] * 100}), folder / "view.parquet", use_dictionary=False, compression="zstd")
    prefixes = {"text": "DELTA_BYTE_ARRAY"}
    same = pa.table({"text": pa.array([two] * 256, pa.large_string())})
    pq.write_table(same, folder / "prefixes.parquet", use_dictionary=False, column_encoding=prefixes)
    encoded = pa.array([two] * 256).dictionary_encode()
    pq.write_table(pa.table({"text": encoded}), folder / "categories.parquet")
    save(folder / "set", [pa.record_batch({"text": encoded})])
    save(folder / "zipped", [pa.record_batch({"text": [two] * 300})], compression="zstd")
    return {
        "line.jsonl.gz": "line.jsonl.gz, line 1: the line is longer than 16,000,000 bytes",
        "nested.jsonl.gz": 3,
        "no-end.txt.gz": "no-end.txt.gz, line 1: the line is longer than 16,000,000 bytes",
        "open.csv.gz": "open.csv.gz, line 3: the row that begins here is longer than 16,000,000 bytes",
        "columns.tsv.gz": 1,
        "feeds.txt.gz": 100_000,
        "dictionary.parquet": 256,
        "page.parquet": "page.parquet, row 0: this row group has pages that take 600,001,207 bytes in memory",
        "view.parquet": 100,
        "prefixes.parquet": 256,
        "categories.parquet": 256,
        "set": 256,
        "zipped": "is compressed, which datasets does not do",
    }


READ_ALL = """
import sys
from hf_xlmr.errors import InputError
from hf_xlmr.data.text_files import open_texts
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
try:
    opened = open_texts(sys.argv[1])
    opened.cuts(8192)
    print(peak(), sum(1 for row in opened), peak(), sep="\\n")
except InputError as error:
    print(peak(), error, peak(), sep="\\n")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the memory is read from /proc")
def test_small_files_that_unfold_take_little_memory(tmp_path: Path) -> None:
    """Less than what each of them unfolds to."""
    for name, expected in unfolding(tmp_path).items():
        done = subprocess.run(
            [sys.executable, "-c", READ_ALL, tmp_path / name], capture_output=True, text=True, check=True
        )
        _before, told, after = done.stdout.splitlines()
        assert told == str(expected) if isinstance(expected, int) else expected in told, name
        assert int(after) < 500, name


STREAM = """
import sys
from hf_xlmr.data.text_files import open_texts
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
opened, rows = open_texts(sys.argv[1]), 0
for row in opened:
    rows += 1
    if rows == 10_000:
        early = peak()
print(rows, opened.cuts(8192) is None, peak() - early)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of the memory is read from /proc")
@pytest.mark.parametrize("kind", [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    texts = [f"{number} " + "some words of a text " * 10 for number in range(100_000)]  # 20 MB
    path = written(tmp_path, kind, texts)
    if kind == ".parquet":
        pq.write_table(table_of(texts), path)  # in one row group
    done = subprocess.run([sys.executable, "-c", STREAM, path], capture_output=True, text=True, check=True)
    rows, _count, grown = done.stdout.split()
    assert int(rows) == 100_000
    assert int(grown) < 12_000


# ---- lines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\n\n\nb\n\n", ["a", "", "", "b", ""]),
        (b"\n", [""]),
        (b"\r\n", [""]),
        (b"a\rb\n", ["a\rb"]),
        (b"a\r", ["a\r"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        (b"\xef\xbb\xbf\n", [""]),
        (b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        ("a\u2028b\u2029c\x85d\n".encode(), ["a\u2028b\u2029c\x85d"]),
        (b"a\0b\n", ["a\0b"]),
    ],
)
def test_only_a_line_feed_ends_a_line(tmp_path: Path, content: bytes, texts: list[str]) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    opened = open_texts(tmp_path / "texts.txt")
    assert [row.text for row in opened] == texts
    assert rows_of_cuts(opened) == len(texts)
    (tmp_path / "texts.txt.gz").write_bytes(gzip.compress(content))
    assert texts_of(tmp_path / "texts.txt.gz") == texts


def test_places_name_the_file_and_the_line(tmp_path: Path) -> None:
    write_txt(tmp_path / "texts.txt", TEXTS)
    write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    write_parquet(tmp_path / "texts.parquet", TEXTS)
    for name, place in (("texts.txt", "line 3"), ("texts.jsonl", "line 3"), ("texts.parquet", "row 2")):
        assert [row.place for row in open_texts(tmp_path / name)][2] == f"{name}, {place}"


def test_a_row_of_csv_is_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text('text,n\n"one\ntwo\nthree",1\n\nfour,2\n', encoding="utf-8")
    rows = list(open_texts(tmp_path / "texts.csv"))
    assert [(row.place, row.text) for row in rows] == [
        ("texts.csv, line 2", "one\ntwo\nthree"),
        ("texts.csv, line 6", "four"),
    ]


def test_blank_lines_between_objects_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n  \r\n{"text": "b"}\r\n\n')
    opened = open_texts(tmp_path / "texts.jsonl")
    assert [(row.number, row.place, row.text) for row in opened] == [
        (0, "texts.jsonl, line 1", "a"),
        (1, "texts.jsonl, line 4", "b"),
    ]
    assert rows_of_cuts(opened) == 2


# ---- what is no text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.txt", b"good\nba\xffd\n", "line 2", r"byte 3 \(0xFF\) is not UTF-8"),
        ("a.txt", b"good\n\xed\xa0\x80\n", "line 2", "byte 1 .0xED. is not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "b\xe9"}\n', "line 2", "byte 12 .0xE9. is not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"text": null}\n', "line 2", "the text is null, not a string"),
        ("a.jsonl", b'{"text": "good"}\n{"text": 5}\n', "line 2", "the text is a number"),
        ("a.jsonl", b'{"text": "good"}\n{"text": true}\n', "line 2", "the text is a truth value"),
        ("a.jsonl", b'{"text": "good"}\n{"text": ["a"]}\n', "line 2", "the text is a list"),
        ("a.jsonl", b'{"text": "good"}\n{"body": "a"}\n', "line 2", "no column 'text'; the columns are 'body'"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "a"\n', "line 2", "not JSON"),
        ("a.jsonl", b'{"text": "good"}\n"a"\n', "line 2", "a row is an object, not a string"),
        ("a.jsonl", b'{"text": "good"}\n' + b"[" * 100_000 + b"\n", "line 2", "an array begins here"),
        ("a.jsonl", b'{"text": "good"}\n{"text": ' + b"[" * 100_000 + b"\n", "line 2", "not JSON"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "ab\\ud83d"}\n', "line 2", r"U\+D83D, as its character 3"),
        ("a.csv", b"text,n\ngood,1\nb\xff,2\n", "line 3", "byte 2 .0xFF. is not UTF-8"),
        ("a.csv", b"text,n\ngood,1\nbad\n", "line 3", "1 fields are below a header of 2"),
        ("a.csv", b"text,n\ngood,1\na,b,3\n", "line 3", "3 fields are below a header of 2"),
        ("a.csv", b'text,n\ngood,1\n"open,2\nmore,3\n', "line 3", "is not CSV: unexpected end of data"),
        ("a.csv", b'text,n\ngood,1\n"a" b,2\n', "line 3", "is not CSV: ',' expected after"),
    ],
)
def test_rows_before_a_bad_one_are_given_out(
    tmp_path: Path, name: str, content: bytes, place: str, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    rows = iter(open_texts(tmp_path / name))
    assert next(rows).text == "good"
    with pytest.raises(BadRow, match=reason) as caught:
        next(rows)
    assert caught.value.place == f"{name}, {place}"
    assert str(caught.value) == f"{caught.value.place}: {caught.value.reason}"


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude42"}\n', encoding="utf-8")
    assert texts_of(tmp_path / "a.jsonl") == ["🙂"]


def test_an_array_of_objects_is_told_from_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}], indent=1), encoding="utf-8")
    assert "jq -c '.[]'" in bad_row(tmp_path / "a.json").reason
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}]), encoding="utf-8")
    assert "jq -c '.[]'" in bad_row(tmp_path / "a.json").reason


def test_utf16_is_told_by_its_mark(tmp_path: Path) -> None:
    for kind in ("utf-16-le", "utf-16-be"):
        (tmp_path / "a.txt").write_bytes(("\ufeff" + "text\n").encode(kind))
        assert "the file is UTF-16" in bad_row(tmp_path / "a.txt").reason


def test_a_parquet_file_whose_size_statistics_contradict_its_schema_is_damaged(tmp_path: Path) -> None:
    """`row_group(0).column(0)` of pyarrow 26.0 ends the process over such a file."""
    path = tmp_path / "a.parquet"
    write_parquet(path, TEXTS)
    optional, required = b"\x15\x0c\x25\x02", b"\x15\x0c\x25\x00"  # a column of bytes, in Thrift's compact protocol
    assert optional in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(optional, required))
    assert "this or what follows is damaged" in str(bad_row(path))


@pytest.mark.parametrize("damage", [b"", b"\x49" * 40, b"\x4c" * 40, b"\xff" * 40, b"\x49\x1c\x00\x00"])
def test_a_footer_that_does_not_say_where_its_columns_are_is_damaged(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(damage + len(damage).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DamagedPage):
        row_groups(path, columns=1)


def test_row_groups_without_rows_are_passed_over(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"]})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        for part in (table.slice(0, 0), table, table.slice(2), table):
            writer.write_table(part)
    assert texts_of(tmp_path / "a.parquet") == ["a", "b", "a", "b"]
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert texts_of(tmp_path / "none.parquet") == []


def test_columns_are_found_where_pyarrow_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    nested = [{"a": [n], "b": "x" * n} for n in range(50)]
    pq.write_table(pa.table({"text": ["ab", None] * 25, "more": nested, "n": range(50)}), path, row_group_size=20)
    with pq.ParquetFile(path) as file:
        for number, group in enumerate(row_groups(path, columns=4)):
            assert group.rows == file.metadata.row_group(number).num_rows
            for leaf, chunk in enumerate(group.chunks):
                expected = file.metadata.row_group(number).column(leaf)
                pages = expected.data_page_offset, expected.dictionary_page_offset
                assert chunk.start == min(page for page in pages if page is not None)
                assert chunk.end == chunk.start + expected.total_compressed_size
        assert number == 2


def test_a_null_and_bytes_that_are_no_utf8_in_parquet(tmp_path: Path) -> None:
    pq.write_table(table_of(["a", None]), tmp_path / "null.parquet")  # type: ignore[list-item]
    broken = pa.array([b"good", b"fine", b"b\xff", b"after"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "bytes.parquet")
    assert str(bad_row(tmp_path / "null.parquet")) == "null.parquet, row 1: the text is null, not a string"
    rows = iter(open_texts(tmp_path / "bytes.parquet"))
    assert [next(rows).text, next(rows).text] == ["good", "fine"]
    with pytest.raises(BadRow, match=r"bytes.parquet, row 2: byte 2 \(0xFF\) is not UTF-8"):
        next(rows)


def test_strings_as_views_are_read_from_a_saved_data_set(tmp_path: Path) -> None:
    texts = ["a", "é" * 200, "b"]
    save(tmp_path / "set", table_of(texts, pa.string_view()).to_batches())
    assert texts_of(tmp_path / "set") == texts
    rows = iter(open_texts(tmp_path / "set", max_row_size=399))
    assert next(rows).text == "a"
    with pytest.raises(BadRow, match="longer than 399 bytes"):
        next(rows)


def test_columns_of_parquet_have_the_right_types(tmp_path: Path) -> None:
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        table = table_of(TEXTS).set_column(1, "text", pa.array(TEXTS, kind))
        pq.write_table(table, tmp_path / "a.parquet")
        assert texts_of(tmp_path / "a.parquet") == TEXTS
    pq.write_table(pa.table({"text": ["a"], "n": [1.5], "i": [7]}), tmp_path / "a.parquet")
    assert "the column 'n' holds double, not text" in bad_row(tmp_path / "a.parquet", column="n").reason
    assert "ids are strings or integers" in bad_row(tmp_path / "a.parquet", id_column="n").reason
    assert [row.id for row in open_texts(tmp_path / "a.parquet", id_column="i")] == [7]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ("null", "the id is null, neither"),
        ("true", "the id is a truth value, neither"),
        ("1.5", "the id is a number, neither"),
        ("9223372036854775808", "does not fit in 64 bits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('"a"', "the id is a string, those before are not: make all of them strings"),
    ],
)
def test_ids_are_all_strings_or_all_integers(tmp_path: Path, ids: str, reason: str) -> None:
    lines = ['{"text": "a", "id": -9223372036854775808}', f'{{"text": "b", "id": {ids}}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert reason in bad_row(tmp_path / "a.jsonl", id_column="id").reason


@pytest.mark.parametrize("damage", [slice(None, -20), slice(3, None), slice(None, 12)])
def test_damaged_files_are_told(tmp_path: Path, damage: slice) -> None:
    texts = [os.urandom(20).hex() for _ in range(1000)]
    for kind in (".txt.gz", ".parquet"):
        path = written(tmp_path, kind, texts)
        path.write_bytes(path.read_bytes()[damage])
        with pytest.raises(InputError, match=r"damaged|is not a Parquet file"):
            texts_of(path)


def test_frames_of_zstd_follow_each_other(tmp_path: Path) -> None:
    """As parallel compressors write them, with what is to be skipped between them."""
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"one\ntw") + skipped + zstd(b"") + zstd(b"o\nthree"))
    assert texts_of(tmp_path / "a.txt.zst") == ["one", "two", "three"]
    (tmp_path / "a.txt.zst").write_bytes(b"")
    assert texts_of(tmp_path / "a.txt.zst") == []


def summed_zstd(content: bytes) -> bytes:
    """A frame of one plain block with a checksum, which Arrow writes none of."""
    head = b"\x28\xb5\x2f\xfd" + bytes([0b100100, len(content)]) + (1 | len(content) << 3).to_bytes(3, "little")
    return head + content + (xxhash.xxh64_intdigest(content) & 0xFFFFFFFF).to_bytes(4, "little")


@pytest.mark.parametrize("damage", ["cut off", "changed", "begun", "more", "other"])
def test_damaged_zstd_is_a_bad_row(tmp_path: Path, damage: str) -> None:
    whole = summed_zstd("".join(f"{number} text\n" for number in range(20)).encode())
    path = tmp_path / "a.txt.zst"
    path.write_bytes(whole)
    assert len(texts_of(path)) == 20
    damaged = {
        "cut off": whole[:-20],
        "changed": whole.replace(b"7", b"8"),
        "begun": whole[:7],
        "more": whole + b"more",
    }
    path.write_bytes(damaged.get(damage, b"a\nb\n"))
    error = bad_row(path)
    assert error.reason.startswith("the zstd file is damaged: ") and "\n" not in str(error)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text\na,b\n", encoding="utf-8")
    assert "there are 2 columns 'text'" in bad_row(tmp_path / "a.csv").reason


def test_names_in_messages_are_printable(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.txt").write_bytes(b"\xff")
    assert "\x1b" not in str(bad_row(tmp_path / "a\x1b[2J.txt"))


# ---- what is opened --------------------------------------------------------------------------------------------------


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl"):
        write_jsonl(tmp_path / name, [f"{name} 1", f"{name} 2"])
    (tmp_path / "README.md").write_text("no text", encoding="utf-8")
    (tmp_path / ".hidden.jsonl").write_text("no row", encoding="utf-8")
    opened = open_texts(tmp_path)
    assert [row.text for row in opened] == [f"{name}.jsonl {number}" for name in "abc" for number in (1, 2)]
    assert [row.number for row in opened] == list(range(6))
    assert [row.place for row in opened][-1] == "c.jsonl, line 2"
    assert rows_of_cuts(opened) == 6
    assert texts_of(str(tmp_path / "[bc].jsonl")) == texts_of(tmp_path)[2:]


def test_what_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    write_txt(tmp_path / "mixed" / "a.txt", TEXTS)
    write_parquet(tmp_path / "mixed" / "a.parquet", TEXTS)
    (tmp_path / "a.docx").write_bytes(b"")
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    for source, told in {
        "missing.txt": "missing.txt does not exist",
        "nowhere/missing.txt": "does not exist",
        "mixed/missing": "mixed/missing does not exist",
        "*.txt": "does not exist",
        "a.docx": r"of no known kind; texts are read from .txt, .jsonl, .*and .parquet",
        "a.parquet.gz": "of no known kind",
        "empty": "holds no data set and none of the files .txt",
        "mixed": r"files of several kinds \(.parquet, .txt\); say which, as mixed/\*.parquet",
    }.items():
        with pytest.raises(InputError, match=told):
            open_texts(source)
    with pytest.raises(InputError, match="is not a data set, so it has no split"):
        open_texts(str(tmp_path / "mixed" / "a.txt"), split="train")


LEFT_OPEN = """
import builtins, sys
from hf_xlmr.data.text_files import open_texts
builtins.rows = iter(open_texts(sys.argv[1]))  # what is cleared last, when nothing can be imported any more
next(builtins.rows)
"""


@pytest.mark.parametrize("name", ["texts.txt", "texts.txt.gz"])
def test_a_reader_that_is_open_when_python_ends_is_silent(tmp_path: Path, name: str) -> None:
    content = b"a\nb\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, tmp_path / name], capture_output=True, check=True)
    assert done.stderr == b""


def test_a_name_of_the_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    code = "from hf_xlmr.data.text_files import open_texts\nopen_texts('nobody-here/no-such-data')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "InputError: nobody-here/no-such-data is not here, and as a data set of the Hub: " in done.stderr


STANDARD_INPUT = """
from hf_xlmr.errors import InputError
from hf_xlmr.data.text_files import open_texts
opened = open_texts("-")
print([(row.place, row.text) for row in opened], opened.cuts(9), opened.is_repeatable)
try:
    list(opened)
except InputError as error:
    print(error)
"""


def test_standard_input_is_read_once() -> None:
    command = [sys.executable, "-c", STANDARD_INPUT]
    done = subprocess.run(command, input="\ufeffa\r\n\nü".encode(), capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [
        f"{[(f'standard input, line {n}', text) for n, text in ((1, 'a'), (2, ''), (3, 'ü'))]} None False",
        "standard input can be read only once",
    ]


def test_a_pipe_is_not_used_up_by_looking_at_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    opened = open_texts(pipe)
    assert (rows_of_cuts(opened), opened.is_repeatable) == (None, False)
    with subprocess.Popen(["sh", "-c", f"printf 'a\\nb\\n' > {pipe}"]):
        assert [row.text for row in opened] == ["a", "b"]


# ---- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"text": TEXTS + CUT, "id": list(range(len(TEXTS + CUT))), "n": [[1]] * len(TEXTS + CUT)})


def test_a_saved_data_set(tmp_path: Path, data: Any) -> None:
    data.save_to_disk(str(tmp_path / "set"), num_shards=2)
    opened = open_texts(tmp_path / "set", id_column="id")
    assert [(row.text, row.id) for row in opened] == list(zip(TEXTS + CUT, range(100), strict=False))
    assert (rows_of_cuts(opened), opened.is_repeatable, [row.place for row in opened][3]) == (11, True, "set, row 3")
    assert "no column 'body'; the columns are 'text', 'id', 'n'" in bad_row(tmp_path / "set", column="body").reason
    with pytest.raises(InputError, match="so it has no split 'test'"):
        open_texts(tmp_path / "set", split="test")


def test_saved_splits(tmp_path: Path, data: Any) -> None:
    from datasets import DatasetDict

    DatasetDict(train=data, test=data.select([2, 0])).save_to_disk(str(tmp_path / "two"))
    DatasetDict(test=data.select([2, 0])).save_to_disk(str(tmp_path / "one"))
    assert texts_of(tmp_path / "two", split="test") == texts_of(tmp_path / "one") == [TEXTS[2], TEXTS[0]]
    assert texts_of(tmp_path / "two", split="train") == TEXTS + CUT
    with pytest.raises(InputError, match="has the splits train, test; say which"):
        open_texts(tmp_path / "two")
    with pytest.raises(InputError, match="no split 'dev'; its splits are train, test"):
        open_texts(tmp_path / "two", split="dev")


def test_a_streamed_data_set_is_read_like_any_other(tmp_path: Path, data: Any) -> None:
    """As `load_dataset(..., streaming=True)` gives it for a name of the Hub."""
    from datasets import load_dataset

    from hf_xlmr.data.arrow_texts import DataSet, _split_of
    from hf_xlmr.data.text_rows import Asked

    write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    loaded = load_dataset("json", data_files=str(tmp_path / "texts.jsonl"), streaming=True)
    asked = Asked("text", "id")
    source = DataSet("owner/name", _split_of("owner/name", loaded, "train"), asked)
    opened = TextInput("owner/name", (source,), has_ids=True)
    expected = [(f"owner/name, row {n}", text, f"id{n}") for n, text in enumerate(TEXTS)]
    assert [(row.place, row.text, row.id) for row in opened] == expected
    assert [(row.place, row.text, row.id) for row in opened] == expected
    assert opened.cuts(9) is None


# ---- shards of the rows ----------------------------------------------------------------------------------------------


def write_rows_of_many_forms(folder: Path, ending: str) -> Path:
    """Lines of several lengths, blank ones, records over several lines, uneven row groups of which some are empty."""
    texts = [text * (number % 5) for number, text in enumerate(TEXTS * 4)]
    if ending == ".parquet":
        with pq.ParquetWriter(folder / "texts.parquet", table_of([""]).schema) as writer:
            for first, last in ((0, 5), (5, 5), (5, 6), (6, 20), (20, 20), (20, len(texts))):
                writer.write_table(table_of(texts).slice(first, last - first), row_group_size=9)
        return folder / "texts.parquet"
    if ending == "data set":
        save(folder / "set", table_of(texts).to_batches(max_chunksize=7))
        return folder / "set"
    path = written(folder, ending, texts if ending == ".txt" else [*texts, *CUT])
    if ending != ".txt":
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"\xef\xbb\xbf" + b"".join(line + b"\n" * (line.startswith(b"id7")) for line in lines) + b"\n")
    return path


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv", ".parquet", "data set"])
def test_shards_have_the_rows_of_the_whole(tmp_path: Path, kind: str) -> None:
    opened = open_texts(write_rows_of_many_forms(tmp_path, kind))
    rows = list(opened)
    for every in (1, 3, 7, len(rows) - 1, len(rows), 1000):
        cuts = opened.cuts(every)
        assert cuts is not None
        assert Cuts.of_json(json.loads(json.dumps(cuts.as_json()))) == cuts
        assert [list(opened.rows_of(cuts, shard)) for shard in range(len(cuts))] == [
            rows[first : first + every] for first in range(0, len(rows), every)
        ]


def test_shards_go_on_over_files(tmp_path: Path) -> None:
    for number, size in enumerate((0, 3, 1, 0, 12, 5, 0)):
        write_csv(tmp_path / f"{number}.csv", [f"text {number} {each}" for each in range(size)])
    opened = open_texts(tmp_path, id_column="id")
    rows, cuts = list(opened), opened.cuts(4)
    assert cuts is not None
    assert [row for shard in range(len(cuts)) for row in opened.rows_of(cuts, shard)] == rows
    assert len(rows) == cuts.rows == 21


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n", b"\xef\xbb\xbf\n\na", b"a\n" * 9000 + b"b" * 40_000])
def test_lines_are_counted_as_they_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    opened = open_texts(tmp_path / "texts.txt")
    rows, cuts = list(opened), opened.cuts(1234)
    assert cuts is not None
    assert [row for shard in range(len(cuts)) for row in opened.rows_of(cuts, shard)] == rows


def test_what_can_only_be_streamed_has_no_cuts(tmp_path: Path, ending: str) -> None:
    assert (open_texts(written(tmp_path, ending, TEXTS)).cuts(2) is None) == ending.endswith((".gz", ".zst"))
    assert open_texts("-").cuts(2) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"a\nb\nc\n\xff\ne\nf\n"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}\n{"text": 4}\n'),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n"' + b"x" * 200 + b'"\n{"text": "e"}\n'),
        ("a.csv", b'text\na\nb\nc\n"d\nopen'),
        ("a.csv", b"text\na\nb\nc\n" + b"d" * 200 + b"\ne\n"),
        ("a.csv", b"text\na\nb\nc\nd,d\ne\n"),
    ],
)
def test_a_bad_row_is_met_in_its_shard_alone(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"b{(tmp_path / name).suffix}").write_bytes(content)
    opened = open_texts(tmp_path, max_row_size=100)
    with pytest.raises(BadRow) as of_all:
        list(opened)
    cuts = opened.cuts(2)
    assert cuts is not None
    assert [row.text for row in opened.rows_of(cuts, 0)] == ["a", "b"]
    with pytest.raises(BadRow) as of_shard:
        list(opened.rows_of(cuts, 1))
    assert str(of_shard.value) == str(of_all.value)


def test_ids_of_all_shards_are_of_one_type(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"id": {each}, "text": ""}}\n' for each in (1, 2, '"3"', '"4"')))
    opened = open_texts(tmp_path / "a.jsonl", id_column="id")
    cuts = opened.cuts(2)
    assert cuts is not None and [row.id for row in opened.rows_of(cuts, 0)] == [1, 2]
    with pytest.raises(
        BadRow, match=r"^a\.jsonl, line 3: the id is a string, those before are not: make all of them strings$"
    ):
        list(opened.rows_of(cuts, 1))


def test_a_shard_of_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    write_txt(tmp_path / "texts.txt", TEXTS)
    opened = open_texts(tmp_path / "texts.txt")
    cuts = opened.cuts(3)
    assert cuts is not None
    write_txt(tmp_path / "texts.txt", [*TEXTS, "more"])
    with pytest.raises(InputError, match="changed while it was read"):
        next(opened.rows_of(cuts, 0))


@pytest.mark.parametrize(
    "change", [{"rows": -1}, {"cuts": [[0, 0]]}, {"every": "2"}, {"files": 1}, {"format": 0}, {"rows": 3}]
)
def test_what_are_not_cuts_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_txt(tmp_path / "texts.txt", TEXTS[:2])
    cuts = open_texts(tmp_path / "texts.txt").cuts(3)
    assert cuts is not None
    with pytest.raises(ValueError, match="cuts"):
        Cuts.of_json({**cuts.as_json(), **change})
