"""What a safetensors file says of itself is held against the rules of the format, by one reader at every door."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import FIXTURES
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hf_xlmr.conversion import convert, export, verify
from hf_xlmr.conversion.sentence_transformers_folder import to_sentence_transformers
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.hub_interface.xlmr import XLMR
from hf_xlmr.model.fingerprint import fingerprint
from hf_xlmr.model.safetensors_files import TensorEntry, file_header, shards_of
from hf_xlmr.tasks.fitting.appended_rows import repeat_unknown_row

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def file_of(header: Mapping[str, Any] | bytes, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(first: Any, last: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [first, last]}


A, B = tensor(0, 4), tensor(4, 8)
ENTRY = json.dumps(A)
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "its header would be"),
    "seven bytes": (bytes(7), "its header would be"),
    "no header": (bytes(8), "is not that of a safetensors file"),
    "a header that is longer than the file": (file_of({"a": A}, length=1000), "its header would be 1,000 bytes long"),
    "a header of 2**63 bytes": (file_of({"a": A}, length=1 << 63), "its header would be"),
    "a header of 2**64 - 1 bytes": (b"\xff" * 8 + b"{}", "its header would be"),
    "a header that is cut": (file_of({"a": A, "b": B}, length=20), "is not that of a safetensors file"),
    "a header that is not JSON": (file_of(b"{]"), "is not that of a safetensors file"),
    "a header that is a list": (file_of(b"[]", b""), "its header holds no object"),
    "a header in UTF-16": (file_of("{}".encode("utf-16"), b""), "not plain UTF-8"),
    "a header with half of a pair": (file_of(b'{"\\ud800": %s}' % ENTRY.encode(), bytes(4)), "surrogate"),
    "a deep header": (file_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "levels deep"),
    "a name twice": (file_of(f'{{"a": {ENTRY}, "a": {json.dumps(B)}}}'.encode()), "a comes twice"),
    "a name twice in one place": (file_of(f'{{"a": {ENTRY}, "a": {ENTRY}}}'.encode(), bytes(4)), "a comes twice"),
    "a shape twice": (
        file_of(b'{"a": {"dtype": "F32", "shape": [2], "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        "shape comes twice",
    ),
    "metadata twice": (file_of(b'{"__metadata__": {}, "__metadata__": {}}', b""), "comes twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}, b""), "metadata"),
    "metadata of a list": (file_of({"__metadata__": []}, b""), "metadata"),
    "two in one place": (file_of({"a": A, "b": A}, bytes(4)), "overlap before b"),
    "half of one in another": (file_of({"a": tensor(0, 8, (2,)), "b": tensor(4, 8)}), "overlap before b"),
    "one inside another": (file_of({"a": tensor(0, 8, (2,)), "b": tensor(2, 6)}), "overlap before b"),
    "a gap before": (file_of({"b": B}), "leave a gap before b"),
    "a gap between": (file_of({"a": A, "b": tensor(8, 12)}, bytes(12)), "leave a gap before b"),
    "a gap behind": (file_of({"a": A}), "by its header"),
    "a tensor that ends beyond": (file_of({"a": A, "b": B}, bytes(7)), "by its header"),
    "a tensor far away": (file_of({"a": tensor(1 << 40, (1 << 40) + 4)}), "leave a gap"),
    "a place before the first": (file_of({"a": tensor(-4, 0)}), "does not say where a is"),
    "an end before the beginning": (file_of({"a": tensor(4, 0)}), "does not say where a is"),
    "places that overflow": (file_of({"a": tensor(1 << 64, (1 << 64) + 4)}), "does not say where a is"),
    "places that are almost numbers": (file_of({"a": tensor(0.0, 4.0)}), "does not say where a is"),
    "places that are truths": (file_of({"a": tensor(*(False, True), dtype="U8")}, bytes(1)), "does not say where a"),
    "places in a text": (file_of({"a": {**A, "data_offsets": "04"}}), "does not say where a is"),
    "three places": (file_of({"a": {**A, "data_offsets": [0, 4, 8]}}), "does not say where a is"),
    "no place": (file_of({"a": {"dtype": "F32", "shape": [1]}}), "does not say where a is"),
    "no type": (file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}), "does not say where a is"),
    "a type that is a list": (file_of({"a": tensor(0, 4, (1,), ["F32"])}), "does not say where a is"),
    "a tensor that is a list": (file_of({"a": [0, 4]}), "does not say where a is"),
    "a tensor that is nothing": (file_of({"a": None}), "does not say where a is"),
    "a shape of another size": (file_of({"a": tensor(0, 4, (2,))}, bytes(4)), "not those of its shape"),
    "a shape that overflows to the right size": (
        file_of({"a": tensor(0, 4, (1 << 33, (1 << 31) + 1))}, bytes(4)), "does not say where a is"
    ),
    "a shape that overflows to nothing": (file_of({"a": tensor(0, 0, (1 << 32, 1 << 32))}, b""), "does not say where"),
    "a shape beyond all numbers, and nothing of it": (
        file_of({"a": tensor(0, 0, (1 << 62, 1 << 62, 0))}, b""), "does not say where a is"
    ),
    "a shape below nothing": (file_of({"a": tensor(0, 4, (-1, -1))}, bytes(4)), "does not say where a is"),
    "a shape of halves": (file_of({"a": tensor(0, 4, (0.5, 2))}, bytes(4)), "does not say where a is"),
    "a shape that is a text": (file_of({"a": tensor(0, 4, "1")}, bytes(4)), "does not say where a is"),
    "a shape without end": (file_of({"a": tensor(0, 4, (1,) * 100_000)}, bytes(4)), "does not say where a is"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_breaks_a_rule_is_refused(name: str, tmp_path: Path) -> None:
    data, told = REFUSED[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        file_header(path)
    assert told in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_the_format_allows_is_read(tmp_path: Path) -> None:
    """As its own library writes it: any order of names, nothing in a tensor, no dimension, no tensor at all."""
    path = tmp_path / "a.safetensors"
    held = {
        "b": np.zeros((2, 3), np.float16),
        "a": np.arange(5),
        "none": np.zeros((0, 7), np.float32),
        "one": np.array(1.0),
        "\u00e9": np.zeros(1, np.uint8),
    }
    path.write_bytes(save(held, {"format": "pt"}))
    found = file_header(path)
    data = path.read_bytes()
    for name, array in held.items():
        entry = found[name]
        assert (entry.shape, entry.nbytes) == (array.shape, array.nbytes)
        assert data[entry.start : entry.start + entry.nbytes] == array.tobytes()
    path.write_bytes(file_of(b"{}      ", b""))
    assert file_header(path) == {}
    path.write_bytes(file_of({"a": tensor(0, 3, (4,), "F6_E2M3")}, bytes(3)))
    assert file_header(path)["a"] == TensorEntry("F6_E2M3", (4,), len(path.read_bytes()) - 3, 3)


def test_what_is_taken_the_formats_own_library_takes(tmp_path: Path) -> None:
    """And of what is refused here it takes two: it has no limit of dimensions, and names may come twice."""
    path, taken = tmp_path / "a.safetensors", []
    for name, (data, _told) in REFUSED.items():
        path.write_bytes(data)
        try:
            with safe_open(path, framework="np") as file:
                list(file.keys())
            taken.append(name)
        except (SafetensorError, OSError):
            pass
    assert taken == ["a name twice in one place", "a shape without end"]


def test_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(InputError, match="git lfs pull"):
        file_header(tmp_path / WEIGHTS)


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\\b", "a\0", "a\n", "./a", "a/"]
)
def test_an_index_names_files_beside_it_alone(file: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": file}}))
    with pytest.raises(IntegrityError, match="which is not in the folder") as caught:
        shards_of(tmp_path / INDEX)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("listed", [None, [], "a", {"a": 1}, {"a": None}, {"a": ["b"]}])
def test_an_index_without_a_map_is_damage(listed: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(IntegrityError, match="it has no weight_map"):
        shards_of(tmp_path / INDEX)


# ---- every door ------------------------------------------------------------------------------------------------------

DOORS: dict[str, Callable[[Path, Path], object]] = {
    "XLMR": lambda folder, _output: XLMR.from_pretrained(folder),
    "doctor": lambda folder, _output: examine(folder),
    "fingerprint": lambda folder, _output: fingerprint(folder),
    "export": export,
    "to-sentence-transformers": to_sentence_transformers,
    "verify": lambda folder, _output: verify(FIXTURES / "v0122prenorm", folder),
    "repeat the row of <unk>": lambda folder, _output: repeat_unknown_row(folder, range(4, 5)),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(FIXTURES / "v0122prenorm", folder, verify=False)
    return folder


def with_a_name_twice(data: bytes) -> bytes:
    """The last tensor again under the name of the first: of the two, which one counts depends on the reader."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    content = json.loads(header)
    first, *_others, last = (name for name in content if name != "__metadata__")
    twice = header.replace(json.dumps(last).encode() + b":", json.dumps(first).encode() + b":", 1)
    assert twice != header
    return file_of(twice, data[8 + length :])


def with_an_overlap(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    names = [name for name in content if name != "__metadata__"]
    same = next(
        (one, other) for one in names for other in names
        if one != other and content[one]["shape"] == content[other]["shape"]
    )  # fmt: skip
    content[same[0]]["data_offsets"] = content[same[1]]["data_offsets"]
    return file_of(content, data[8 + length :])


@pytest.mark.parametrize("damage", [with_a_name_twice, with_an_overlap, lambda data: data[:-1]])
@pytest.mark.parametrize("door", DOORS)
def test_a_damaged_file_is_refused_at_every_door(
    door: str, damage: Callable[[bytes], bytes], converted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    with pytest.raises(IntegrityError, match="damaged") as caught:
        DOORS[door](folder, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["../elsewhere/model.safetensors", "/etc/passwd", ".."])
@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("fingerprint", "repeat the row of <unk>")])
def test_a_shard_elsewhere_is_refused_at_every_door(door: str, file: str, converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    (tmp_path / "elsewhere").mkdir()
    (folder / WEIGHTS).rename(tmp_path / "elsewhere" / WEIGHTS)
    names = list(file_header(tmp_path / "elsewhere" / WEIGHTS))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(IntegrityError, match=r"not in the folder|lacks") as caught:
        DOORS[door](folder, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
