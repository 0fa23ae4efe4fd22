"""Features come back as they were given, in the same bytes however often a run was killed, and of one input only."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import limited
from kills import contents
from patience import until

from hf_xlmr.data.text_rows import TextRow
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.features.store import files as feature_files
from hf_xlmr.features.store.folder import FeatureStore
from hf_xlmr.features.store.shards import ShardWriter, TextsDigest

JOB = {"model": "abc", "options": {"pool": "mean", "layers": [-1]}}
KINDS = pytest.mark.parametrize("kind", ["parquet", "npy"])
TOKENS_OR_TEXTS = pytest.mark.parametrize("per_token", [False, True])
WIDTH = 16


def layout_of(**options: Any) -> feature_files.StoreLayout:
    return feature_files.StoreLayout(**{"layers": (12,), "width": WIDTH, "rows_per_shard": 10, **options})


def rows_of(first: int, stop: int, *, ids: Any = None) -> list[TextRow]:
    return [TextRow(n, f"row {n}", f"text {n} 🙂", None if ids is None else ids(n)) for n in range(first, stop)]


def tokens_of(row: int) -> int:
    return row * 7 % 5 + 1


def vectors_of(row: int, layer: int, *, per_token: bool) -> np.ndarray[Any, Any]:
    shape = (tokens_of(row), WIDTH) if per_token else (WIDTH,)
    return np.random.default_rng([row, layer + 100]).standard_normal(shape).astype(np.float32)


def spans_of(row: int) -> np.ndarray[Any, Any]:
    return np.arange(2 * tokens_of(row)).reshape(-1, 2) + row


def write(writer: ShardWriter, rows: list[TextRow], *, portion: int = 3) -> None:
    layout = writer._layout
    for start in range(0, len(rows), portion):
        part = rows[start : start + portion]
        features = {
            layer: [vectors_of(row.number, layer, per_token=layout.per_token) for row in part]
            for layer in layout.layers
        }
        given = features if layout.per_token else {layer: np.stack(each) for layer, each in features.items()}
        writer.write(part, given, spans=[spans_of(row.number) for row in part] if layout.per_token else None)
        writer.counts["truncated"] += sum(row.number % 4 == 0 for row in part)
    writer.texts_sha256 = digest_of(rows)


OPEN: dict[Path, FeatureStore] = {}


def create(folder: Path | str, job: Any, **options: Any) -> FeatureStore:
    """What a run begins with; the one before has ended."""
    if before := OPEN.pop(Path(folder), None):
        before.close()
    OPEN[Path(folder)] = FeatureStore.create(folder, job, **options)
    return OPEN[Path(folder)]


def fill(store: FeatureStore, rows: list[TextRow], *, portion: int = 3) -> None:
    """What an extraction does, one shard after another."""
    size = store.layout.rows_per_shard
    for number in range(-(-len(rows) // size)):
        part = rows[number * size : (number + 1) * size]
        if store.is_done(number):
            store.check(number, digest_of(part))
            continue
        with store.shard(number) as writer:
            write(writer, part, portion=portion)
    store.finish(rows=len(rows))


def digest_of(rows: list[TextRow]) -> str:
    digest = TextsDigest()
    for row in rows:
        digest.add(row.text, row.id)
    return digest.hexdigest()


def filled(folder: Path, *, rows: int = 25, ids: Any = None, portion: int = 3, **options: Any) -> FeatureStore:
    store = create(folder, JOB, layout=layout_of(**options))
    fill(store, rows_of(0, rows, ids=ids), portion=portion)
    return store


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four vectors of one layer fill a group."""
    monkeypatch.setattr(feature_files, "GROUP_BYTES", 4 * WIDTH * 4)


# ---- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("layers", [(12,), (0, 12)])
@TOKENS_OR_TEXTS
def test_parquet_holds_what_was_given(tmp_path: Path, layers: tuple[int, ...], per_token: bool) -> None:
    filled(tmp_path / "out", layers=layers, per_token=per_token, has_ids=True, ids=lambda n: f"id{n}")
    table = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*.parquet")))
    names = ["features"] if len(layers) == 1 else ["features_0", "features_12"]
    assert table.column_names == ["row", "id", *names, *(["spans"] if per_token else [])]
    vector = pa.list_(pa.float32(), WIDTH)
    assert table.schema.field(names[0]).type == (pa.list_(vector) if per_token else vector)
    assert table["row"].to_pylist() == list(range(25))
    assert table["id"].to_pylist() == [f"id{n}" for n in range(25)]
    for layer, name in zip(layers, names, strict=True):
        for row, value in enumerate(table[name].to_pylist()):
            np.testing.assert_array_equal(np.float32(value), vectors_of(row, layer, per_token=per_token))
    if per_token:
        assert table["spans"].to_pylist() == [spans_of(row).tolist() for row in range(25)]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("layers", [(12,), (0, 12)])
@TOKENS_OR_TEXTS
def test_npy_is_mapped_into_memory(tmp_path: Path, layers: tuple[int, ...], per_token: bool) -> None:
    out = tmp_path / "out"
    filled(out, format="npy", layers=layers, per_token=per_token, has_ids=True, ids=lambda n: n - 5)
    names = {12: "features"} if len(layers) == 1 else {0: "features_0", 12: "features_12"}
    for shard, (first, stop) in enumerate([(0, 10), (10, 20), (20, 25)]):
        for layer, name in names.items():
            array = np.load(out / f"{name}-{shard:05d}.npy", mmap_mode="r")
            parts = [vectors_of(row, layer, per_token=per_token) for row in range(first, stop)]
            np.testing.assert_array_equal(array, np.concatenate(parts) if per_token else np.stack(parts))
        ids = (out / f"ids-{shard:05d}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(each) for each in ids] == [n - 5 for n in range(first, stop)]
        if per_token:
            offsets = np.load(out / f"offsets-{shard:05d}.npy", mmap_mode="r")
            spans = np.load(out / f"spans-{shard:05d}.npy", mmap_mode="r")
            assert (offsets.dtype, spans.dtype, spans.shape) == (np.int64, np.int32, (offsets[-1], 2))
            for at, row in enumerate(range(first, stop)):
                np.testing.assert_array_equal(spans[offsets[at] : offsets[at + 1]], spans_of(row))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@TOKENS_OR_TEXTS
def test_datasets_reads_the_parquet(tmp_path: Path, dtype: str, per_token: bool) -> None:
    from datasets import load_dataset

    filled(tmp_path / "out", per_token=per_token, dtype=dtype, has_ids=True, ids=lambda n: n)
    files = str(tmp_path / "out" / "part-*.parquet")
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert (
        load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")).features == data.features
    )
    assert data["row"][:] == data["id"][:] == list(range(25))
    for row in (0, 13, 24):
        expected = vectors_of(row, 12, per_token=per_token).astype(dtype)
        np.testing.assert_array_equal(np.array(data[row]["features"], dtype), expected)


@pytest.mark.parametrize("is_finished", [True, False])
def test_the_folder_itself_is_read(tmp_path: Path, is_finished: bool) -> None:
    """Readers of data sets take every file of a folder, but for hidden ones."""
    import pyarrow.dataset
    from datasets import load_dataset

    out = tmp_path / "out"
    store = create(out, JOB, layout=layout_of())
    for number in (0, 1):
        with store.shard(number) as writer:
            write(writer, rows_of(10 * number, 10 * number + 10))
    if is_finished:
        store.finish(rows=20)
    data = load_dataset("parquet", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    for table in (pq.read_table(out), pyarrow.dataset.dataset(out).to_table(), data.with_format("arrow")[:]):
        assert table["row"].to_pylist() == list(range(20))


@KINDS
@TOKENS_OR_TEXTS
def test_float16_is_the_nearest(tmp_path: Path, kind: str, per_token: bool) -> None:
    filled(tmp_path / "out", format=kind, dtype="float16", per_token=per_token)
    expected = [vectors_of(row, 12, per_token=per_token).astype(np.float16) for row in range(10)]
    if kind == "npy":
        found = np.load(tmp_path / "out" / "features-00000.npy")
    else:
        column = pq.read_table(tmp_path / "out" / "part-00000.parquet")["features"].combine_chunks()
        flat = column.flatten().flatten() if per_token else column.flatten()
        found = flat.to_numpy(zero_copy_only=False).reshape(-1, WIDTH)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.concatenate(expected) if per_token else np.stack(expected))


@KINDS
@pytest.mark.parametrize("value", [7e4, -1e30])
def test_what_is_too_large_for_float16_is_refused(tmp_path: Path, kind: str, value: float) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of(format=kind, dtype="float16"))
    with pytest.raises(InputError, match="features of rows 0 to 1 are too large for float16"), store.shard(0) as writer:
        writer.write(rows_of(0, 2), {12: np.array([[0.0] * WIDTH, [value] * WIDTH], np.float32)})
    assert sorted(contents(tmp_path / "out")) == [".job.json", ".state/lock"]


def test_the_manifest_tells_everything(tmp_path: Path) -> None:
    filled(tmp_path / "out", has_ids=True, ids=lambda n: n, format="npy")
    manifest = json.loads((tmp_path / "out" / ".manifest.json").read_bytes())
    assert manifest["job"] == JOB
    assert manifest["layout"]["layers"] == [12]
    assert (manifest["rows"], manifest["counts"]) == (25, {"truncated": 7})
    assert [shard["rows"] for shard in manifest["shards"]] == [10, 10, 5]
    assert [shard["first_row"] for shard in manifest["shards"]] == [0, 10, 20]
    assert manifest["shards"][1]["texts_sha256"] == digest_of(rows_of(10, 20, ids=lambda n: n))
    files = {file["name"]: file for shard in manifest["shards"] for file in shard["files"]}
    assert {*contents(tmp_path / "out")} == {*files, ".manifest.json"}
    for name, file in files.items():
        content = (tmp_path / "out" / name).read_bytes()
        assert (file["size"], file["sha256"]) == (len(content), sha256(content).hexdigest())


@pytest.mark.usefixtures("small_groups")
@KINDS
@TOKENS_OR_TEXTS
def test_bytes_do_not_depend_on_the_portions(tmp_path: Path, kind: str, per_token: bool) -> None:
    """Nor on the order of the shards, which several processes may write."""
    filled(tmp_path / "one", format=kind, per_token=per_token, portion=1)
    filled(tmp_path / "all", format=kind, per_token=per_token, portion=10)
    store = create(tmp_path / "back", JOB, layout=layout_of(format=kind, per_token=per_token))
    for number, (first, stop) in ((2, (20, 25)), (0, (0, 10)), (1, (10, 20))):
        with store.shard(number) as writer:
            write(writer, rows_of(first, stop))
    store.finish(rows=25)
    assert contents(tmp_path / "one") == contents(tmp_path / "all") == contents(tmp_path / "back")
    if kind == "parquet":
        groups = pq.ParquetFile(tmp_path / "one" / "part-00000.parquet").metadata
        sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        assert sizes == ([2, 1, 2, 2, 1, 2] if per_token else [4, 4, 2])


def test_arrays_may_be_used_anew_after_writing(tmp_path: Path) -> None:
    filled(tmp_path / "usual", rows=10)
    store = create(tmp_path / "reused", JOB, layout=layout_of())
    buffer = np.empty((2, WIDTH), np.float32)
    with store.shard(0) as writer:
        for first in range(0, 10, 2):
            buffer[:] = [vectors_of(row, 12, per_token=False) for row in (first, first + 1)]
            writer.write(rows_of(first, first + 2), {12: buffer})
            writer.counts["truncated"] += sum(row % 4 == 0 for row in (first, first + 1))
        writer.texts_sha256 = digest_of(rows_of(0, 10))
    store.finish(rows=10)
    assert contents(tmp_path / "reused") == contents(tmp_path / "usual")


def test_an_input_without_rows(tmp_path: Path) -> None:
    filled(tmp_path / "out", rows=0)
    assert json.loads((tmp_path / "out" / ".manifest.json").read_bytes())["shards"] == []


@KINDS
def test_texts_without_tokens(tmp_path: Path, kind: str) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of(format=kind, per_token=True))
    with store.shard(0) as writer:
        for row in rows_of(0, 3):
            count = 2 * (row.number == 1)
            writer.write([row], {12: [np.ones((count, WIDTH))]}, spans=[np.zeros((count, 2), int)])
        writer.texts_sha256 = digest_of(rows_of(0, 3))
    store.finish(rows=3)
    if kind == "npy":
        assert np.load(tmp_path / "out" / "offsets-00000.npy").tolist() == [0, 0, 2, 2]
    else:
        table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
        assert [len(row) for row in table["features"].to_pylist()] == [0, 2, 0]


# ---- what a writer refuses -------------------------------------------------------------------------------------------


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


@dataclass(frozen=True)
class Wrong:
    told: str
    first: int = 0
    rows: int = 2
    layer: int = 12
    features: Any = None
    spans: Any = None
    per_token: bool = False


WRONG = (
    Wrong("the next row of shard 0 is 0", first=1),
    Wrong("shard 0 has only 10 rows", rows=11, features=ones(11, WIDTH)),
    Wrong("features of the layers .12,. are needed", layer=11),
    Wrong("1 features are given for 2 rows", features=ones(1, WIDTH)),
    Wrong("features of width 16 are needed", features=ones(2, WIDTH + 1)),
    Wrong("features of width 16 are needed", features=ones(2, 1, WIDTH)),
    Wrong("with spans if they are of tokens", spans=[np.zeros((1, 2))] * 2),
    Wrong("with spans if they are of tokens", per_token=True, features=[ones(1, WIDTH)] * 2),
    Wrong("not as many vectors", per_token=True, features=[ones(1, WIDTH)] * 2, spans=[np.zeros((2, 2))] * 2),
)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.told)
def test_what_does_not_belong_into_a_shard(tmp_path: Path, wrong: Wrong) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of(per_token=wrong.per_token))
    rows = rows_of(wrong.first, wrong.first + wrong.rows)
    features = ones(2, WIDTH) if wrong.features is None else wrong.features
    with pytest.raises(ValueError, match=wrong.told), store.shard(0) as writer:
        writer.write(rows, {wrong.layer: features}, spans=wrong.spans)
    with pytest.raises(ValueError, match="shard 1 has no rows"), store.shard(1):
        pass
    assert sorted(contents(tmp_path / "out")) == [".job.json", ".state/lock"]


def test_ids_of_two_types_are_refused(tmp_path: Path) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of(has_ids=True))
    with pytest.raises(InputError, match="not all strings or all integers"), store.shard(0) as writer:
        write(writer, rows_of(0, 10, ids=lambda n: n if n < 5 else str(n)))
    for number, ids in ((0, str), (1, int)):
        with store.shard(number) as writer:
            write(writer, rows_of(10 * number, 10 * number + 10, ids=ids))
    with pytest.raises(InputError, match="integers in some shards and strings in others"):
        store.finish(rows=20)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format": "csv"}, "csv is none of the formats parquet, npy"),
        ({"dtype": "bfloat16"}, "bfloat16 is none of the dtypes float32, float16"),
        ({"rows_per_shard": 0}, "from 1 to 1,000,000,000 rows"),
        ({"layers": ()}, "different layers"),
        ({"layers": (1, 1)}, "different layers"),
    ],
)
def test_layouts_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        layout_of(**options)


# ---- going on --------------------------------------------------------------------------------------------------------


@KINDS
def test_what_is_done_is_not_done_again(tmp_path: Path, kind: str) -> None:
    filled(tmp_path / "usual", format=kind)
    store = create(tmp_path / "out", JOB, layout=layout_of(format=kind))
    with store.shard(1) as writer:
        write(writer, rows_of(10, 20))
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir() if path.is_file()}
    again = create(tmp_path / "out", JOB, layout=layout_of(format=kind), resume=True)
    assert [again.is_done(number) for number in range(3)] == [False, True, False]
    fill(again, rows_of(0, 25))
    after = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in before if name != ".job.json"} == {
        name: inode for name, inode in before.items() if name != ".job.json"
    }
    assert again.is_finished
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


def test_an_output_is_not_taken_for_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    create(out, JOB, layout=layout_of())
    other = {"model": "abd", "options": {"pool": "mean", "layers": [-1, 3]}, "new": 1}
    with pytest.raises(InputError) as caught:
        create(out, other, layout=layout_of(dtype="float16"), resume=True)
    for told in (
        'model was "abc" and is "abd" now',
        "options.layers was [-1] and is [-1, 3] now",
        "new was null and is 1 now",
        'dtype was "float32" and is "float16" now',
    ):
        assert told in str(caught.value)
    store = create(out, JOB, layout=layout_of())  # nothing is lost, since no shard was made
    with store.shard(0) as writer:
        write(writer, rows_of(0, 10))
        writer.texts_sha256 = digest_of(rows_of(0, 10))
    store.close()
    with pytest.raises(InputError, match="was begun by an earlier run; choose another folder, or pass resume=True"):
        create(out, JOB, layout=layout_of())
    fill(create(out, JOB, layout=layout_of(), resume=True), rows_of(0, 25))
    before = contents(out)
    with pytest.raises(
        InputError, match="holds the finished output of an earlier run; choose another folder, or pass overwrite=True"
    ):
        create(out, JOB, layout=layout_of())
    with pytest.raises(InputError, match="model was"):
        create(out, other, layout=layout_of(), resume=True)
    assert create(out, JOB, layout=layout_of(), resume=True).is_finished
    assert contents(out) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds something else \(thesis.tex\)"):
        create(tmp_path, JOB, layout=layout_of(), resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis\.tex"):
        create(tmp_path / "thesis.tex", JOB, layout=layout_of(), resume=resume)


def test_texts_that_changed_are_told(tmp_path: Path) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of())
    for number in (0, 1):
        with store.shard(number) as writer:
            write(writer, rows_of(10 * number, 10 * number + 10))
    again = create(tmp_path / "out", JOB, layout=layout_of(), resume=True)
    for number, rows in ((0, rows_of(0, 10)), (1, rows_of(10, 20)), (2, rows_of(20, 25))):
        again.check(number, digest_of(rows))
    changed = [TextRow(row.number, row.place, row.text + "!" * (row.number == 13)) for row in rows_of(10, 20)]
    for rows in (changed, rows_of(10, 19), rows_of(10, 21), rows_of(10, 20, ids=int)):
        with pytest.raises(InputError, match=r"rows 10 to 19 .* have other texts now"):
            again.check(1, digest_of(rows))


def test_digests_tell_where_texts_end() -> None:
    digests = {
        digest_of([TextRow(0, "", text) for text in texts])
        for texts in ([], [""], ["", ""], ["ab"], ["a", "b"], ["", "ab"], ["ab", ""])
    }
    assert len(digests) == 7


def test_shards_that_are_missing_or_too_much_are_told(tmp_path: Path) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of())
    with store.shard(1) as writer:
        write(writer, rows_of(10, 18))
    with pytest.raises(InputError, match="is not complete: 0, 2 of 3 shards missing"):
        store.finish(rows=25)
    with store.shard(0) as writer:
        write(writer, rows_of(0, 10))
    with pytest.raises(InputError, match="shard 1 has 8 rows instead of 10"):
        store.finish(rows=20)
    with pytest.raises(InputError, match="has more than the 10 rows of the input: 1 too much"):
        store.finish(rows=10)
    store.finish(rows=18)
    assert store.is_finished


@KINDS
def test_files_that_were_lost_or_cut_are_made_again(tmp_path: Path, kind: str) -> None:
    filled(tmp_path / "usual", format=kind, rows=20)
    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        store = create(tmp_path / "out", JOB, layout=layout_of(format=kind))
        with store.shard(0) as writer:
            write(writer, rows_of(0, 10))
        (name,) = (path for path in (tmp_path / "out").iterdir() if "00000" in path.name)
        damage(name)
        assert not store.is_done(0)
        fill(store, rows_of(0, 20))
        assert contents(tmp_path / "out") == contents(tmp_path / "usual")
        shutil.rmtree(tmp_path / "out")


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of())
    (tmp_path / "out" / ".state" / "00000.json").write_bytes(b"{")
    with pytest.raises(IntegrityError, match=r"00000\.json is damaged"):
        store.is_done(0)


def lost(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@KINDS
@pytest.mark.parametrize("damage", [lost, cut])
def test_of_a_finished_output_what_was_lost_or_cut_is_made_again(tmp_path: Path, kind: str, damage: Any) -> None:
    out = tmp_path / "out"
    filled(out, format=kind)
    expected = contents(out)
    (broken,) = (path for path in out.iterdir() if "00001" in path.name)
    damage(broken)
    kept = {path.name: path.stat().st_ino for path in out.iterdir() if path.name[0] != "." and path != broken}
    with pytest.raises(InputError, match="holds the finished output of an earlier run"):
        create(out, JOB, layout=layout_of(format=kind))
    with pytest.raises(InputError, match="with other options"):
        create(out, {}, layout=layout_of(format=kind), resume=True)
    store = create(out, JOB, layout=layout_of(format=kind), resume=True, notes={"threads": 3})
    job, notes, layout = FeatureStore.begun_with(out)
    assert (job, notes, layout["rows_per_shard"]) == (JOB, {"threads": 3}, 10)
    assert [store.is_done(number) for number in range(3)] == [True, False, True]
    fill(store, rows_of(0, 25))
    assert contents(out) == expected
    assert kept.items() <= {path.name: path.stat().st_ino for path in out.iterdir()}.items()


def test_a_lost_shard_is_made_of_the_same_texts_only(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    (tmp_path / "out" / "part-00001.parquet").unlink()
    store = create(tmp_path / "out", JOB, layout=layout_of(), resume=True)
    with pytest.raises(InputError, match=r"rows 10 to 19 .* have other texts now"), store.shard(1) as writer:
        write(writer, rows_of(10, 19))
    assert not (tmp_path / "out" / "part-00001.parquet").exists()
    fill(store, rows_of(0, 25))
    assert store.is_finished


def test_a_finished_output_is_of_one_input(tmp_path: Path) -> None:
    filled(tmp_path / "out", rows=20)
    before = contents(tmp_path / "out")
    changed = [TextRow(row.number, row.place, row.text + "!" * (row.number == 13)) for row in rows_of(0, 20)]
    for rows, told in (
        (changed, "rows 10 to 19"),
        (rows_of(0, 25), "it has more than 20 rows"),
        (rows_of(0, 15), "rows 10 to 19"),
        (rows_of(0, 10), "it has 10 rows, not 20"),
        ([], "it has 0 rows, not 20"),
    ):
        store = create(tmp_path / "out", JOB, layout=layout_of(), resume=True)
        with pytest.raises(InputError, match=rf"the input is not what .*out was begun with: {told}"):
            fill(store, rows)
    fill(store, rows_of(0, 20))
    assert contents(tmp_path / "out") == before


def test_a_finished_output_that_is_whole_is_not_written_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    filled(out)
    before = {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))}
    fill(create(out, JOB, layout=layout_of(), resume=True), rows_of(0, 25))
    assert {path: path.stat().st_mtime_ns for path in (out, *out.rglob("*"))} == before


NO_SHARD = b'{"number": 0, "first_row": 0, "rows": 10}'
DAMAGED = pytest.mark.parametrize("content", [b"[]", b"{}", b"7", b"{", b"\xff", b"[" * 100_000, NO_SHARD])


@DAMAGED
def test_a_damaged_file_of_a_begun_output_is_told(tmp_path: Path, content: bytes) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of())
    with store.shard(0) as writer:
        write(writer, rows_of(0, 10))
    state = tmp_path / "out" / ".state" / "00000.json"
    whole = state.read_bytes()
    state.write_bytes(content)
    told = r"00000\.json is damaged: .*; remove it, and the shard is made again"
    for ask in (lambda: store.is_done(0), lambda: store.check(0, ""), lambda: store.finish(rows=10)):
        with pytest.raises(IntegrityError, match=told):
            ask()
    state.write_bytes(whole)
    (tmp_path / "out" / ".job.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"\.job\.json is damaged: .*; restore the original file"):
        create(tmp_path / "out", JOB, layout=layout_of(), resume=True)


@DAMAGED
def test_a_damaged_manifest_is_told(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path / "out")
    (tmp_path / "out" / ".manifest.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"\.manifest\.json is damaged: .*; restore the original file"):
        create(tmp_path / "out", JOB, layout=layout_of(), resume=True)


@pytest.mark.parametrize(
    ("shard", "told"),
    [
        ({}, "number, first_row, rows, texts_sha256, id_type, files, counts is missing or of another type"),
        ({"number": 2}, "it describes shard 2 instead of 1"),
        ({"rows": "ten"}, "rows is missing or of another type"),
        ({"counts": {"truncated": "few"}}, "truncated is missing or of another type"),
        ({"files": ["part-00001.parquet"]}, 'it has "part-00001.parquet" instead of an object'),
        ({"files": [{"name": "part-00001.parquet"}]}, "size, sha256 is missing or of another type"),
    ],
)
def test_a_manifest_with_a_damaged_shard_is_told(tmp_path: Path, shard: dict[str, Any], told: str) -> None:
    filled(tmp_path / "out")
    path = tmp_path / "out" / ".manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["shards"][1] = {**manifest["shards"][1], **shard} if shard else {}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(IntegrityError, match=rf"\.manifest\.json is damaged: {told}"):
        create(tmp_path / "out", JOB, layout=layout_of(), resume=True)


@KINDS
def test_shards_without_what_tells_of_them_are_left_alone(tmp_path: Path, kind: str) -> None:
    """As a copy of a folder without its hidden files is."""
    filled(tmp_path / "out", format=kind)
    (tmp_path / "out" / ".manifest.json").unlink()
    with pytest.raises(InputError, match=r"-00000\.\w+\), but neither \.manifest\.json nor \.job\.json"):
        create(tmp_path / "out", JOB, layout=layout_of(format=kind), resume=True)


@KINDS
def test_nothing_is_left_of_a_shard_that_failed(tmp_path: Path, kind: str) -> None:
    store = create(tmp_path / "out", JOB, layout=layout_of(format=kind, width=WIDTH))
    with pytest.raises(KeyboardInterrupt), store.shard(0) as writer:
        write(writer, rows_of(0, 7))
        writer._write_pending()
        assert len(list((tmp_path / "out" / ".state").glob("*.tmp"))) == 1
        raise KeyboardInterrupt
    assert sorted(contents(tmp_path / "out")) == [".job.json", ".state/lock"]
    fill(store, rows_of(0, 25))
    filled(tmp_path / "usual", format=kind)
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


# ---- several processes, and killed ones ------------------------------------------------------------------------------


def test_leftovers_of_killed_runs_go(tmp_path: Path) -> None:
    create(tmp_path / "out", JOB, layout=layout_of())
    state = tmp_path / "out" / ".state"
    (state / "part-00007.parquet.1-aa.tmp").write_bytes(b"of a run that was killed")
    store = create(tmp_path / "out", JOB, layout=layout_of(), resume=True)
    assert not list(state.glob("*.tmp"))
    (tmp_path / "out" / "part-00009.parquet").write_bytes(b"of a run that was killed before it noted the shard")
    fill(store, rows_of(0, 25))
    filled(tmp_path / "usual")
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path, how: dict[str, bool]) -> None:
    out = tmp_path / "out"
    store = FeatureStore.create(out, JOB, layout=layout_of())
    with store.shard(0) as writer:
        write(writer, rows_of(0, 10))
    before = contents(out)
    with pytest.raises(InputError, match=r"another run is writing into .*out|was begun by an earlier run"):
        FeatureStore.create(out, JOB, layout=layout_of(), **how)
    assert contents(out) == before
    fill(store, rows_of(0, 25))
    assert FeatureStore.create(out, JOB, layout=layout_of(), resume=True).is_finished


# ---- beginning again, and leaving nothing ----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("state", ["begun", "finished", "damaged", "killed while it was overwritten"])
def test_an_output_is_begun_again_on_demand(tmp_path: Path, kind: str, state: str) -> None:
    out = tmp_path / "out"
    store = create(out, {"another": "job"}, layout=layout_of(format="npy", layers=(0, 12), per_token=True))
    with store.shard(0) as writer:
        write(writer, rows_of(0, 10))
    if state != "begun":
        fill(store, rows_of(0, 25))
    if state == "damaged":
        (out / ".manifest.json").write_bytes(b"{")
    if state.startswith("killed"):
        (out / "features_0-00001.npy").unlink()
    with pytest.raises((InputError, IntegrityError)):
        create(out, JOB, layout=layout_of(format=kind))
    fill(create(out, JOB, layout=layout_of(format=kind), overwrite=True), rows_of(0, 15))
    filled(tmp_path / "usual", format=kind, rows=15)
    assert contents(out) == contents(tmp_path / "usual")


@pytest.mark.parametrize("name", ["thesis.tex", "part-00007.parquet/", "features-00000.npz", ".state -> /tmp"])
def test_what_no_extraction_wrote_is_not_overwritten(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    store = create(out, JOB, layout=layout_of())
    with store.shard(0) as writer:
        write(writer, rows_of(0, 10))
    store.close()
    if name.endswith("/"):
        (out / name).mkdir()
    elif "->" in name:
        (out / ".state").rename(tmp_path / "elsewhere")
        (out / ".state").symlink_to(tmp_path / "elsewhere")
    else:
        (out / name).write_bytes(b"years of work")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"also holds other files|holds a link"):
        FeatureStore.create(out, JOB, layout=layout_of(), overwrite=True)
    assert contents(tmp_path) == before


def test_a_run_that_made_no_shard_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "parent" / "out"
    store = create(out, JOB, layout=layout_of())
    store.discard()
    assert not (tmp_path / "parent").exists()
    out.mkdir(parents=True)
    create(out, JOB, layout=layout_of()).discard()
    assert not list(out.iterdir())
    store = create(out, JOB, layout=layout_of())
    with store.shard(1) as writer:
        write(writer, rows_of(10, 20))
    before = contents(out)
    store.discard()
    assert contents(out) == before
    create(out, JOB, layout=layout_of(), resume=True).discard()
    assert contents(out) == before


def test_a_folder_that_cannot_be_begun_stays_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for how, told in (({}, "holds the finished output of an earlier run"), ({"resume": True}, "with other options")):
        with pytest.raises(InputError, match=told):
            create(tmp_path / "out", {"another": "job"} if how else JOB, layout=layout_of(), **how)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_only_a_folder_that_was_begun_is_joined(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not begun by the first process"):
        FeatureStore.join(tmp_path / "out", JOB, layout=layout_of())
    assert not (tmp_path / "out").exists()
    create(tmp_path / "out", JOB, layout=layout_of())
    with pytest.raises(InputError, match="was begun with other options"):
        FeatureStore.join(tmp_path / "out", {}, layout=layout_of())


def test_ids_as_long_as_books_end_a_group(tmp_path: Path) -> None:
    """Or they would fill the memory until the vectors make up a group."""
    ids = [f"{number}" * (feature_files.GROUP_BYTES // 4) for number in range(10)]
    for portion in (1, 10):
        filled(tmp_path / str(portion), rows=10, has_ids=True, ids=ids.__getitem__, portion=portion)
    groups = pq.ParquetFile(tmp_path / "1" / "part-00000.parquet").metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [4, 4, 2]
    assert contents(tmp_path / "1") == contents(tmp_path / "10")


def work(folder: Path, kind: str, rows: int, *, first: int = 0, step: int = 1, finishes: bool = True) -> None:
    """An extraction of made-up features that takes every so many shards from the first on."""
    layout = layout_of(format=kind, per_token=True, has_ids=True)
    if first == 0:
        store = create(folder, JOB, layout=layout, resume=True)
    else:
        until((folder / ".job.json").exists, otherwise="nobody begins")
        store = FeatureStore.join(folder, JOB, layout=layout)
    for number in range(first, 0 if store.is_finished else -(-rows // 10), step):
        part = rows_of(10 * number, min(rows, 10 * number + 10), ids=str)
        if store.is_done(number):
            store.check(number, digest_of(part))
            continue
        with store.shard(number) as writer:
            write(writer, part)
    if finishes and not store.is_finished:
        store.finish(rows=rows)


def apart(target: Callable[..., object], *arguments: Any, **options: Any) -> Any:
    """A process that does it: forked, so that nothing has to be imported."""
    process = get_context("fork").Process(target=target, args=arguments, kwargs=options)
    process.start()
    return process


@KINDS
@pytest.mark.usefixtures("small_groups")
def test_killed_at_any_moment_and_resumed_the_bytes_are_the_same(tmp_path: Path, kind: str) -> None:
    """Killed again and again until it is done; each run gets as far as chance lets it."""
    rows, chance, kills, outputs = 125, random.Random(0), 0, 0
    begun = time.monotonic()
    apart(work, tmp_path / "usual", kind, rows).join()
    usual, expected = time.monotonic() - begun, contents(tmp_path / "usual")
    while kills < 8:
        outputs += 1
        out, is_over = tmp_path / f"out{outputs}", False
        while not is_over:
            process = apart(work, out, kind, rows)
            time.sleep(chance.random() * usual * 0.5)
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            is_over = process.exitcode == 0 or kills >= 12
            kills += process.exitcode != 0
        work(out, kind, rows)
        assert contents(out) == expected


@pytest.mark.parametrize("place", ["replace", "unlink", "fsync"])
def test_killed_at_every_step_of_beginning_again_the_bytes_are_the_same(tmp_path: Path, place: str) -> None:
    filled(tmp_path / "usual")
    expected, step, status = contents(tmp_path / "usual"), 0, -1
    while status:
        out = tmp_path / f"out{step}"
        shutil.copytree(tmp_path / "usual", out)
        (out / "part-00001.parquet").unlink()
        child = os.fork()
        if child == 0:
            try:
                die_before(place, step)
                fill(create(out, JOB, layout=layout_of(), resume=True), rows_of(0, 25))
                os._exit(0)
            finally:
                os._exit(1)
        _child, status = os.waitpid(child, 0)
        assert status == 0 or os.WIFSIGNALED(status)
        fill(create(out, JOB, layout=layout_of(), resume=True), rows_of(0, 25))
        assert contents(out) == expected, f"{place} {step}"
        step += 1
    assert step > {"replace": 6, "unlink": 1, "fsync": 6}[place]


@pytest.mark.parametrize("place", ["mkdir", "replace", "unlink", "rmtree", "fsync"])
def test_killed_at_every_step_and_resumed_the_bytes_are_the_same(tmp_path: Path, place: str) -> None:
    """In a process that ends right before the step, at each of them in turn."""
    filled(tmp_path / "usual", format="npy", per_token=True, has_ids=True, ids=str)
    expected, step = contents(tmp_path / "usual"), 0
    while True:
        out = tmp_path / f"out{step}"
        child = os.fork()
        if child == 0:
            try:
                die_before(place, step)
                filled(out, format="npy", per_token=True, has_ids=True, ids=str)
                os._exit(0)
            finally:
                os._exit(1)
        _child, status = os.waitpid(child, 0)
        store = create(out, JOB, layout=layout_of(format="npy", per_token=True, has_ids=True), resume=out.exists())
        if not store.is_finished:
            fill(store, rows_of(0, 25, ids=str))
        assert contents(out) == expected, f"{place} {step}"
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        step += 1
    assert step >= {"mkdir": 1, "replace": 15, "unlink": 1, "rmtree": 1, "fsync": 15}[place]


def die_before(place: str, step: int) -> None:
    holder: Any = {"fsync": os, "rmtree": shutil}.get(place, Path)
    usual, calls = getattr(holder, place), []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > step:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(*given, **named)

    setattr(holder, place, counted)


@KINDS
@pytest.mark.usefixtures("small_groups")
def test_several_processes_fill_one_folder(tmp_path: Path, kind: str) -> None:
    work(tmp_path / "usual", kind, 65)
    processes = [apart(work, tmp_path / "out", kind, 65, first=first, step=3, finishes=False) for first in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    work(tmp_path / "out", kind, 65)
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


def test_only_one_of_two_begins_a_folder_that_neither_resumes(tmp_path: Path) -> None:
    both, told = get_context("fork").Barrier(2), get_context("fork").SimpleQueue()

    def begin() -> None:
        both.wait()
        try:
            create(tmp_path / "out", JOB, layout=layout_of())
        except InputError as error:
            told.put(str(error))
            raise

    processes = [apart(begin) for _ in range(2)]
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, 1]
    sentence = told.get()
    assert "pass resume=True" in sentence or "another run" in sentence


# ---- a full disk -----------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("limit", [100, 1500])
@pytest.mark.usefixtures("small_groups")
def test_a_file_that_may_not_grow_is_told_in_a_sentence(tmp_path: Path, kind: str, limit: int) -> None:
    with limited(limit), pytest.raises(InputError) as caught:
        work(tmp_path / "out", kind, 25)
    assert caught.value.exit_code == 2
    assert str(caught.value) == f"File too large ({tmp_path / 'out'})"
    left = (
        {name for name in contents(tmp_path / "out") if name != ".state/lock"} if (tmp_path / "out").exists() else set()
    )
    assert left <= {".job.json"}
    work(tmp_path / "out", kind, 25)
    work(tmp_path / "usual", kind, 25)
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@KINDS
def test_a_full_disk_leaves_what_was_done(small_disk: Path, tmp_path: Path, kind: str) -> None:
    out = small_disk / "out"
    store = create(out, JOB, layout=layout_of(format=kind, per_token=True, has_ids=True))
    with pytest.raises(InputError, match=rf"No space left on device \({out}.*\)"):
        fill(store, rows_of(0, 400, ids=str))
    assert not list((out / ".state").glob("*.tmp"))
    done = [number for number in range(40) if store.is_done(number)]
    assert done
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    fill(create(out, JOB, layout=store.layout, resume=True), rows_of(0, 400, ids=str))
    filled(tmp_path / "usual", rows=400, format=kind, per_token=True, has_ids=True, ids=str)
    assert contents(out) == contents(tmp_path / "usual")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="Not a directory"):
        create(tmp_path / "file" / "out", JOB, layout=layout_of())
