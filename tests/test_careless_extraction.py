"""`extract` with wrong options, other runs beside it, inputs that change or unfold, and disks that are full."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import extractions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm_processes
from extractions import OPTIONS, texts_of, write
from in_process import limited, run
from kills import contents

from hf_xlmr import XLMR, FeatureExtractor
from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError
from hf_xlmr.features.bulk_extraction import extract

TEXTS = texts_of(105)

model = extractions.model
pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.txt", TEXTS)


@pytest.fixture(scope="module")
def usual(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out in peace, whatever kind of file the texts are in."""
    folder = tmp_path_factory.mktemp("usual")
    extract(model, write(folder / "texts.txt", TEXTS), folder / "usual", options=OPTIONS)
    return contents(folder / "usual")


# ---- nothing is left of what could not begin -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ('{"text": "a", "n": 1}\n', {"column": "words"}),
        ('{"text": "a", "n": 1}\n', {"id_column": "id"}),
        ('{"text": "a", "n": 1.5}\n', {"id_column": "n"}),
        ('{"text": 7}\n', {}),
        ("not JSON\n", {}),
        ('{"text": "much too long a text for it"}\n', {"on_long": "error", "max_length": 5}),
        ('{"text": "a"}\n{"text": null}\n', {}),
        ('{"text": "' + "a" * 300 + '"}\n', {"max_row_size": "200B"}),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_wrong_option_or_row_leaves_nothing_behind(
    model: Path, tmp_path: Path, content: str, options: dict[str, Any], is_there: bool
) -> None:
    path, output = tmp_path / "texts.jsonl", tmp_path / "parent" / "out"
    path.write_text(content, encoding="utf-8")
    if is_there:
        output.mkdir(parents=True)
    with pytest.raises(BadRow):
        extract(model, path, output, options=replace(OPTIONS, **options))
    assert list((tmp_path / "parent").rglob("*")) == ([output] if is_there else [])
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    assert extract(model, path, output, options=OPTIONS).rows == 1


def test_what_breaks_later_keeps_its_shards(model: Path, source: Path, tmp_path: Path, usual: dict[str, str]) -> None:
    whole = source.read_bytes()
    source.write_bytes(whole + b"\xff\n")
    with pytest.raises(BadRow, match="line 106"):
        extract(model, source, tmp_path / "out", options=OPTIONS)
    source.write_bytes(whole)
    assert extract(model, source, tmp_path / "out", options=OPTIONS, resume=True).texts == 5
    assert contents(tmp_path / "out") == usual


# ---- beginning again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_finished", [True, False])
def test_an_output_is_begun_again_on_demand(
    model: Path, source: Path, tmp_path: Path, usual: dict[str, str], is_finished: bool
) -> None:
    output, other = tmp_path / "out", replace(OPTIONS, file_format="npy", pool="none", layers=(0, -1))
    source.write_bytes(source.read_bytes() + (b"" if is_finished else b"\xff\n"))
    if is_finished:
        extract(model, source, output, options=other)
    else:
        with pytest.raises(BadRow):
            extract(model, source, output, options=other)
        write(source, TEXTS)
    before = contents(output)
    with pytest.raises(InputError, match="overwrite=True to begin it again"):
        extract(model, source, output, options=OPTIONS)
    with pytest.raises(BadRow, match="there is no column"):
        extract(model, write(tmp_path / "a.csv", ["a,b", "1,2"]), output, options=OPTIONS, overwrite=True)
    with pytest.raises(InputError, match="exclude each other"):
        extract(model, source, output, options=OPTIONS, overwrite=True, resume=True)
    assert contents(output) == before
    extract(model, source, output, options=OPTIONS, overwrite=True)
    assert contents(output) == usual


def test_an_input_in_the_output_is_refused(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    path = write(output / "texts.txt", TEXTS)
    for given in (output, path, output / "*.txt"):
        with pytest.raises(InputError, match=r"texts.txt is an input, and is in .*out"):
            extract(model, given, output, options=OPTIONS, overwrite=True)
    assert [each.name for each in output.iterdir()] == ["texts.txt"]
    extract(model, output, output / "features", options=OPTIONS)
    assert extract(model, output, output / "features", options=OPTIONS, resume=True).rows == len(TEXTS)


def test_an_output_that_is_a_file_is_refused(model: Path, source: Path) -> None:
    with pytest.raises(InputError, match=r"texts.txt is a file; use a folder"):
        extract(model, source, source, options=OPTIONS, overwrite=True)
    assert source.read_text(encoding="utf-8").splitlines() == TEXTS


# ---- other runs, and other hands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_second_run_is_kept_out(
    model: Path, source: Path, tmp_path: Path, usual: dict[str, str], how: dict[str, bool]
) -> None:
    """And not even the first one's notes are touched."""
    seen: list[str] = []

    def try_it() -> None:
        before = settled(tmp_path / "out")
        with pytest.raises(InputError) as caught:
            extract(model, source, tmp_path / "out", options=OPTIONS, **how)
        seen.append(str(caught.value))
        assert settled(tmp_path / "out").items() >= before.items()

    extract(model, source, tmp_path / "out", options=OPTIONS, progress=Doing(try_it, at=3))
    assert len(seen) == 1 and ("another run is writing into" in seen[0] or not how)
    assert contents(tmp_path / "out") == usual


def settled(folder: Path) -> dict[str, str]:
    """What is not about to be written: another thread may rename a temporary file at any moment."""
    return contents(folder, but=".tmp")


class Doing:
    """A progress that does something once, when so many steps have been shown."""

    def __init__(self, what: Callable[[], object], *, at: int) -> None:
        self._what, self._left = what, at

    @contextmanager
    def task(self, _label: str, **_facts: Any) -> Iterator[Any]:
        yield self

    def advance(self, _amount: int, *, note: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            self._what()


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"one more\n")


def rewritten(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-20] + content[-20:].upper())


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [longer, rewritten, replaced, cut, Path.unlink])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet", "data set"])
def test_an_input_that_changes_while_it_is_read_is_told(
    model: Path, tmp_path: Path, usual: dict[str, str], kind: str, change: Callable[[Path], None]
) -> None:
    path = changing = tmp_path / f"texts.{kind}"
    if kind == "txt":
        write(path, TEXTS)
    elif kind == "jsonl":
        write(path, [json.dumps({"text": text}) for text in TEXTS])
    elif kind == "csv":
        write(path, ["text", *TEXTS])
    elif kind == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=10)
    else:
        path.mkdir()
        (path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
        changing = path / "data.arrow"
        with pa.ipc.new_stream(changing, pa.schema([("text", pa.string())])) as writer:
            writer.write_table(pa.table({"text": TEXTS}), max_chunksize=10)
    whole = changing.read_bytes()
    with pytest.raises(InputError, match=r"changed while it was read|became shorter while it was read"):
        extract(model, path, tmp_path / "out", options=OPTIONS, progress=Doing(lambda: change(changing), at=1))
    assert "part-00010.parquet" not in contents(tmp_path / "out")
    changing.write_bytes(whole)
    extract(model, path, tmp_path / "out", options=OPTIONS, resume=True)
    assert contents(tmp_path / "out") == usual


# ---- rows and counts cannot part -------------------------------------------------------------------------------------


def test_rows_features_and_counts_stay_together_however_threads_are_switched(model: Path, tmp_path: Path) -> None:
    """Three threads take turns as often as Python can, over many small windows of rows of very different lengths."""
    rng = np.random.default_rng(3)
    texts = ["word " * int(count) for count in rng.integers(0, 40, 600)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": f"id {n}"}) + "\n" for n, text in enumerate(texts)))
    options = replace(OPTIONS, id_column="id", rows_per_shard=7, tokens_per_batch=64, max_length=30)
    usual = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        report = extract(model, path, tmp_path / "out", options=options)
    finally:
        sys.setswitchinterval(usual)
    xlmr = XLMR.from_pretrained(model).eval()
    lengths = [len(ids) for ids in xlmr.tokenizer.encode_batch(texts)]
    truncated, tokens = sum(length > 30 for length in lengths), sum(min(length, 30) for length in lengths)
    assert (report.rows, report.texts, report.shards) == (600, 600, 86)
    assert (report.truncated, report.tokens) == (truncated, tokens)
    manifest = json.loads((tmp_path / "out" / ".manifest.json").read_bytes())
    assert manifest["counts"] == {"truncated": truncated, "tokens": tokens}
    for shard in manifest["shards"]:
        first, stop = shard["first_row"], shard["first_row"] + shard["rows"]
        assert shard["counts"]["tokens"] == sum(min(length, 30) for length in lengths[first:stop])
    table = pa.concat_tables([pq.read_table(each) for each in sorted((tmp_path / "out").glob("*.parquet"))])
    assert table["id"].to_pylist() == [f"id {number}" for number in range(600)]
    expected = FeatureExtractor(xlmr, max_length=30)(texts)
    np.testing.assert_allclose(np.stack(table["features"].to_numpy()), expected, rtol=0, atol=1e-5)


def test_a_text_too_long_is_named_whatever_came_before(model: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, id_column="id", on_long="error", max_length=20, rows_per_shard=50)
    for bad in (0, 1, 49, 50, 99):
        rows = [
            {"text": "word " * (30 if number == bad else 3), "id": "i" * 3_000_000 * (number % 20 == 0)}
            for number in range(100)
        ]
        path = write(tmp_path / "texts.jsonl", [json.dumps(row) for row in rows])
        with pytest.raises(BadRow, match=rf"texts.jsonl, line {bad + 1}: 32 tokens, and at most 20 are allowed"):
            extract(model, path, tmp_path / "out", options=options, overwrite=(tmp_path / "out").exists())


# ---- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from hf_xlmr.cli.program import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("more", [[], ["--on-long", "split"], ["--pool", "none"], ["--id-column", "text"]])
def test_large_texts_of_a_small_file_take_little_memory(cache_folder: Path, tmp_path: Path, more: list[str]) -> None:
    texts = ["word " * (200_000 if "split" in more else 400_000)]
    texts *= {"--id-column": 2, "--on-long": 1}.get("".join(more[:1]), 256)
    pq.write_table(pa.table({"text": [*texts, "short"]}), tmp_path / "texts.parquet")
    program = ["extract", "demo", str(tmp_path / "texts.parquet"), str(tmp_path / "out"), "--quiet"]
    program += ["--max-length", "8" if "split" not in more else "512", *more]
    done = warm_processes.run([sys.executable, "-c", PEAK, *program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stderr == ""
    assert int(done.stdout) < 1500
    assert pq.read_metadata(tmp_path / "out" / "part-00000.parquet").num_rows == len(texts) + 1


def test_what_would_take_too_much_memory_is_named(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "texts.txt", ["a", "\ufdfa" * 1_200_000])
    with pytest.raises(BadRow, match=r"line 2: the normalized text has 4\d,\d+,\d+ bytes, and at most 16,000,000"):
        extract(model, path, tmp_path / "out", options=OPTIONS)
    options = replace(OPTIONS, pool="none", on_long="split")
    path = write(tmp_path / "texts.txt", ["a", "a" * 600_000])
    with pytest.raises(BadRow, match=r"line 2: the text has 600,002 tokens, and vectors of at most 524,288"):
        extract(model, path, tmp_path / "out", options=options)


# ---- the program -----------------------------------------------------------------------------------------------------


def test_standard_input_that_is_closed_is_told(cache_folder: Path, tmp_path: Path) -> None:
    code = "import os, sys; os.close(0); sys.stdin = None\nfrom hf_xlmr.cli.program import main; main()"
    done = warm_processes.run([sys.executable, "-c", code, "extract", "demo", "-", str(tmp_path / "out")])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hf-xlmr: standard input is closed: pipe texts into it, or give a file\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [250, 1000, 3300])
def test_a_disk_that_is_full_is_told_in_a_sentence_and_gone_on_with(
    model: Path, source: Path, tmp_path: Path, usual: dict[str, str], limit: int
) -> None:
    """When the first note, a shard, or the manifest is written."""
    output, options = tmp_path / "out", ["--rows-per-shard", "10", "--dtype", "float32", "--device", "cpu", "--quiet"]
    with limited(limit):
        done = run("extract", model, source, output, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"hf-xlmr: File too large ({output})\n"
    assert output.exists() == (limit == 3300)
    assert extract(model, source, output, options=OPTIONS, resume=True).texts == (0 if limit == 3300 else len(TEXTS))
    assert contents(output) == usual


def test_files_belong_to_their_owner_alone_where_that_is_asked(
    model: Path, source: Path, tmp_path: Path, usual: dict[str, str]
) -> None:
    before = os.umask(0o077)
    try:
        extract(model, source, tmp_path / "out", options=OPTIONS)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))} == {0}
    assert contents(tmp_path / "out") == usual
