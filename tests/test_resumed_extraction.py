"""`extract` with `resume` goes on with the same model, options and input only, and makes again what was lost."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import NoReturn

import extractions
import pytest
from extractions import OPTIONS, texts_of, write
from kills import contents
from safetensors.torch import load_file, save_file

from hf_xlmr.data.text_rows import BadRow
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.features import extraction
from hf_xlmr.features.bulk_extraction import ExtractionOptions, ExtractionReport, extract
from hf_xlmr.features.store import shards

TEXTS = texts_of(25)
WHERE_IT_BREAKS = b"\xff"
TICK = 0.02  # seconds: a file that changes later than this has a later time


model = extractions.model
pytestmark = pytest.mark.usefixtures("cache_folder")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.txt", TEXTS)


def begun(model: Path, source: Path, output: Path, options: ExtractionOptions = OPTIONS) -> None:
    """What a run leaves that stops in its third shard."""
    whole = source.read_bytes()
    source.write_bytes(whole + WHERE_IT_BREAKS)
    with pytest.raises(BadRow):
        extract(model, source, output, options=options)
    source.write_bytes(whole)
    assert (output / "part-00001.parquet").is_file() and not (output / "part-00002.parquet").exists()


def resumed(model: Path, source: Path, output: Path, options: ExtractionOptions = OPTIONS) -> ExtractionReport:
    return extract(model, source, output, options=options, resume=True)


# ---- the same model and options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_finished", [False, True])
def test_another_model_does_not_go_on(model: Path, source: Path, tmp_path: Path, is_finished: bool) -> None:
    """Even if one bias is all that was trained."""
    trained, output = tmp_path / "trained", tmp_path / "out"
    shutil.copytree(model, trained)
    begun(trained, source, output)
    if is_finished:
        resumed(trained, source, output)
    before = contents(output)
    weights = load_file(trained / "model.safetensors")
    name = next(name for name in weights if name.endswith("attention.self.query.bias"))
    weights[name][3] += 1e-3
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r'was begun with other options: model was "\w+" and is "\w+" now'):
        resumed(trained, source, output)
    assert contents(output) == before
    assert resumed(model, source, output).texts == (0 if is_finished else 5)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"max_length": 8}, "max_length was 512 and is 8 now"),
        ({"tokens_per_batch": 512}, "tokens_per_batch was [0-9]+ and is 512 now"),
        ({"on_long": "split"}, 'on_long was "truncate" and is "split" now'),
        ({"layers": (0,)}, r"layers was \[\d+\] and is \[0\] now"),
        ({"store_dtype": "float16"}, 'dtype was "float32" and is "float16" now'),
    ],
)
def test_other_options_do_not_go_on(
    model: Path, source: Path, tmp_path: Path, option: dict[str, object], told: str
) -> None:
    begun(model, source, tmp_path / "out")
    with pytest.raises(InputError, match=told):
        resumed(model, source, tmp_path / "out", replace(OPTIONS, **option))
    assert resumed(model, source, tmp_path / "out").texts == 5


def test_it_goes_on_with_the_kernel_it_was_begun_with(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, or an emptied cache, may find another one faster; but it rounds otherwise."""
    begun(model, source, tmp_path / "out")
    monkeypatch.setattr(extraction, "remembered_kernel", lambda *_sizes, **_facts: "onednn")
    assert resumed(model, source, tmp_path / "out").kernel == "plain"
    assert json.loads((tmp_path / "out" / ".manifest.json").read_bytes())["job"]["kernel"] == "plain"


def test_it_does_not_go_on_in_another_dtype_because_of_the_processor(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(model, source, tmp_path / "out", replace(OPTIONS, dtype="bfloat16", emulate_dtype=True))
    before = contents(tmp_path / "out")
    with monkeypatch.context() as another:
        limit = "SSE41" if os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2" else "AVX2"
        another.setenv("ONEDNN_MAX_CPU_ISA", limit)
        for dtype in ("bfloat16", "auto"):
            with pytest.raises(InputError, match=r"begun in bfloat16 on another processor \(cpu, .*no instructions"):
                resumed(model, source, tmp_path / "out", replace(OPTIONS, dtype=dtype))
        with pytest.raises(InputError, match=rf'device was "cpu, .*" and is "cpu, .*={limit}.*" now'):
            resumed(model, source, tmp_path / "out", replace(OPTIONS, dtype="bfloat16", emulate_dtype=True))
    assert contents(tmp_path / "out") == before
    options = replace(OPTIONS, dtype="bfloat16", emulate_dtype=True)
    assert resumed(model, source, tmp_path / "out", options).dtype == "bfloat16"


def test_what_was_begun_in_an_emulated_dtype_goes_on_only_so(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    options = replace(OPTIONS, dtype="bfloat16", emulate_dtype=True)
    begun(model, source, tmp_path / "out", options)
    with pytest.raises(InputError, match="which this processor emulates: pass emulate_dtype again"):
        resumed(model, source, tmp_path / "out", replace(options, emulate_dtype=False))
    assert resumed(model, source, tmp_path / "out", options).dtype == "bfloat16"


# ---- what the manifest counts ----------------------------------------------------------------------------------------


def test_the_manifest_counts_over_all_runs(model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "texts.txt", [text * (1 + 9 * (number % 5 == 0)) for number, text in enumerate(TEXTS)])
    options = replace(OPTIONS, max_length=40)
    begun(model, source, tmp_path / "out", options)
    report = resumed(model, source, tmp_path / "out", options)
    whole = extract(model, source, tmp_path / "whole", options=options)
    counts = json.loads((tmp_path / "out" / ".manifest.json").read_bytes())["counts"]
    assert (report.truncated, whole.truncated) == (1, 5)
    assert counts == {"truncated": 5, "tokens": whole.tokens}


# ---- the same input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([*TEXTS, "one more"], "rows 20 to 24"),
        ([*TEXTS[:20], *["more"] * 20], "rows 20 to 24"),
        ([*TEXTS[:13], "another", *TEXTS[14:]], "rows 10 to 19"),
        (TEXTS[:22], "rows 20 to 24"),
        (TEXTS[:20], "it has 20 rows, not 25"),
    ],
)
def test_a_finished_output_is_of_one_input(
    model: Path, source: Path, tmp_path: Path, texts: list[str], told: str
) -> None:
    extract(model, source, tmp_path / "out", options=OPTIONS)
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=rf"the input is not what .*out was begun with: {told}"):
        resumed(model, write(source, texts), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert resumed(model, write(source, TEXTS), tmp_path / "out").shards == 0


def test_more_shards_than_a_finished_output_has_are_refused(model: Path, tmp_path: Path) -> None:
    extract(model, write(tmp_path / "texts.txt", TEXTS[:20]), tmp_path / "out", options=OPTIONS)
    with pytest.raises(InputError, match="it has more than 20 rows"):
        resumed(model, write(tmp_path / "texts.txt", TEXTS), tmp_path / "out")


# ---- what was lost ---------------------------------------------------------------------------------------------------


def with_a_flipped_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "lost": lambda _content: None,
    "cut": lambda content: content[:-10],
    "a bit flipped": with_a_flipped_bit,
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_shard_that_was_damaged_is_made_again(
    model: Path, source: Path, tmp_path: Path, damage: str, is_finished: bool
) -> None:
    output = tmp_path / "out"
    extract(model, source, tmp_path / "whole", options=OPTIONS)
    begun(model, source, output)
    if is_finished:
        resumed(model, source, output)
    time.sleep(TICK)
    shard = output / "part-00001.parquet"
    content = DAMAGE[damage](shard.read_bytes())
    shard.unlink() if content is None else shard.write_bytes(content)
    assert resumed(model, source, output).texts == (10 if is_finished else 15)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("is_finished", [True, False])
def test_shards_that_changed_places_are_made_again(model: Path, tmp_path: Path, is_finished: bool) -> None:
    """Arrays of as many rows have the same size."""
    source = write(tmp_path / "texts.txt", [f"The train {'leaves ' * number}at night." for number in range(25)])
    output, options = tmp_path / "out", replace(OPTIONS, file_format="npy")
    extract(model, source, tmp_path / "whole", options=options)
    whole = source.read_bytes()
    if not is_finished:
        source.write_bytes(whole + WHERE_IT_BREAKS)
        with pytest.raises(BadRow):
            extract(model, source, output, options=options)
        source.write_bytes(whole)
    else:
        extract(model, source, output, options=options)
    time.sleep(TICK)
    first, second = (output / f"features-0000{number}.npy" for number in (0, 1))
    first.rename(output / "other")
    second.rename(first)
    (output / "other").rename(second)
    assert resumed(model, source, output, options).texts == (20 if is_finished else 25)
    assert contents(output) == contents(tmp_path / "whole")


def test_a_run_that_fails_while_it_makes_a_damaged_shard_again_leaves_it_to_the_next(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    extract(model, source, tmp_path / "whole", options=OPTIONS)
    begun(model, source, output)
    time.sleep(TICK)
    shard = output / "part-00001.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_facts", full_disk)
        with pytest.raises(InputError, match="No space left"):
            resumed(model, source, output)
    assert resumed(model, source, output).texts == 15
    assert contents(output) == contents(tmp_path / "whole")


def full_disk(*_file: object) -> NoReturn:
    raise OSError(ENOSPC, "No space left on device")


def test_a_copy_of_an_output_is_continued_as_it_is(model: Path, source: Path, tmp_path: Path) -> None:
    """Its files have other times than their records."""
    begun(model, source, tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "out", copy_function=shutil.copyfile)
    assert resumed(model, source, tmp_path / "out").texts == 5
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    assert resumed(model, source, tmp_path / "copy").texts == 0


@pytest.mark.parametrize("name", [".job.json", ".state/00000.json"])
@pytest.mark.parametrize("content", [b"[]", b"{}", b""])
def test_damage_to_what_was_noted_is_told(model: Path, source: Path, tmp_path: Path, name: str, content: bytes) -> None:
    begun(model, source, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{name} is damaged: "):
        resumed(model, source, tmp_path / "out")
