"""JSON is read strictly, by one reader, and what is wrong with a file of a folder is one sentence at every door."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import CHECKOUT, FIXTURES

from hf_xlmr.conversion import convert, export, verify
from hf_xlmr.conversion.sentence_transformers_folder import to_sentence_transformers
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.files.json_files import DEEPEST, LONGEST_NUMBER, MOST_VALUES, json_object, strict_json
from hf_xlmr.hub_interface.xlmr import XLMR
from hf_xlmr.model_shape import shape_of

FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "Expecting value"),
    "half of it": (b'{"a": ', "Expecting value"),
    "more than one value": (b"{} {}", "Extra data"),
    "a list": (b"[]", "holds no object"),
    "null": (b"null", "holds no object"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "not plain UTF-8"),
    "UTF-16 with a mark": ("{}".encode("utf-16"), "not plain UTF-8"),
    "UTF-16 without": ("{}".encode("utf-16-le"), "not plain UTF-8"),
    "UTF-16 of the other end": ("{}".encode("utf-16-be"), "not plain UTF-8"),
    "UTF-32": ("{}".encode("utf-32-be"), "not plain UTF-8"),
    "Latin-1": ('{"a": "\u00e9"}'.encode("latin-1"), "byte 8 (0xE9) is not UTF-8"),
    "a surrogate as bytes": (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
    "half of a pair": (b'{"a": ["\\ud800"]}', "half of a surrogate pair, '\\ud800'"),
    "half of a pair in capitals": (b'{"a": "\\uDFFFx"}', "half of a surrogate pair"),
    "half of a pair as a name": (b'{"\\udc00": 1}', "half of a surrogate pair"),
    "a pair the wrong way round": (b'{"a": "\\udc00\\ud800"}', "half of a surrogate pair"),
    "no number": (b'{"a": NaN}', "NaN, which is not a number of JSON"),
    "no end": (b'{"a": [-Infinity]}', "-Infinity, which"),
    "too large": (b'{"a": 1e999}', "1e999, which is too large"),
    "too large below nothing": (b'{"a": -1e999}', "-1e999, which is too large"),
    "an endless number": (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
    "lists in lists": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "levels deep"),
    "objects in objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "levels deep"),
    "just too deep": (b'{"a":' + b"[" * DEEPEST + b"]" * DEEPEST + b"}", "levels deep"),
    "too many values": (b'{"a": [' + b"1," * MOST_VALUES + b"1]}", "more than 8,000,000 values"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence(name: str, tmp_path: Path) -> None:
    data, told = FAULTS[name]
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        json_object(tmp_path / "config.json")
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} is damaged: ")
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_file_beyond_all_measure_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_xlmr.files.json_files.LARGEST", 1 << 20)
    (tmp_path / "config.json").write_bytes(b'{"a": 1}' + b" " * (1 << 20))
    with pytest.raises(IntegrityError, match="more than 1 MB"):
        json_object(tmp_path / "config.json")


TAKEN: dict[str, tuple[bytes, Any]] = {
    "a pair": (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "a backslash and what looks like half of a pair": (b'{"a": "\\\\ud800"}', {"a": "\\ud800"}),
    "any number that can be computed with": (b'{"a": [1e308, -0.0, 1e-999, 5]}', {"a": [1e308, 0.0, 0.0, 5]}),
    "a long number": (b'{"a": ' + b"9" * LONGEST_NUMBER + b"}", {"a": int("9" * LONGEST_NUMBER)}),
    "levels": (b'{"a":' + b"[" * (DEEPEST - 1) + b"]" * (DEEPEST - 1) + b"}", None),
    "a name twice": (b'{"a": 1, "a": 2}', {"a": 2}),  # as Transformers reads it
    "white space": (b'\r\n\t {"a": "\\u0000"} \n', {"a": "\0"}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_json_allows_is_taken(name: str, tmp_path: Path) -> None:
    data, expected = TAKEN[name]
    (tmp_path / "a.json").write_bytes(data)
    assert json_object(tmp_path / "a.json") == (json.loads(data) if expected is None else expected)


def test_names_of_files_may_be_other_than_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"name": b"\xff".decode("utf-8", "surrogateescape")}))
    assert json_object(tmp_path / "a.json", has_paths=True) == {"name": "\udcff"}


def test_a_name_that_comes_twice_is_told_where_it_matters() -> None:
    with pytest.raises(ValueError, match="b comes twice"):
        strict_json(b'{"a": {"b": 1, "c": 2, "b": 1}}', is_unique=True)


def test_there_is_one_reader_of_json() -> None:
    """Others read lines of data, what they have written themselves in that very call, or say why here."""
    allowed = {
        "hf_xlmr/files/json_files.py": "it is the reader",
        "hf_xlmr/files/json_edits.py": "of a text that it has read",
        "hf_xlmr/tokenizer/added_tokens.py": "what tokenizers has just written",
        "hf_xlmr/tokenizer/tokenizer_growth.py": "what tokenizers has just written",
        "hf_xlmr/data/text_rows.py": "lines of data",
        "hf_xlmr/features/shares.py": "rows that another process of the same run has just written",
        "hf_xlmr/tasks/mlqa.py": "data",
        "hf_xlmr/features/store/folder.py": "what it has just written",
        "hf_xlmr/cli/task_commands.py": "what it has just written",
        "hf_xlmr/tasks/fitting/finetuned_folder.py": "what it has just written, and whether Trainer's state has an end",
        "hf_xlmr/tasks/results.py": "results, where NaN may be a score",
        "conversion/converting.py": "what it has just written",
        "conversion/source/releases.py": "notes on a download, which is begun again where they are of no use",
    }
    found = set()
    for path in sorted([*(CHECKOUT / "hf_xlmr").rglob("*.py"), *(CHECKOUT / "conversion").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("loads", "load") and ast.unparse(node.value) == "json":
                found.add(path.relative_to(CHECKOUT).as_posix())
    assert found == set(allowed)


# ---- every door ------------------------------------------------------------------------------------------------------

FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "fairseq/conversion.json", "fairseq/options.json"),
    *("modules.json", "finetuning.json", "model.safetensors.index.json"),
)
WHOLE = ("nothing", "a list", "half of a pair", "lists in lists")
VALUES = (
    *(b"9" * 900, b"null", b"[[]]", b"-1.5"),
    *(b'{"' + b"9" * 5000 + b'": {"content": "<mask>"}}', b'[{"id": 1e300, "content": 5}]'),
)
CONCERNED = {
    "config.json": ("architectures", "vocab_size", "layer_norm_eps", "id2label", "dtype", "model_type"),
    "tokenizer.json": ("added_tokens", "model"),
    "tokenizer_config.json": ("model_max_length", "added_tokens_decoder"),
    "fairseq/conversion.json": ("embedding_rows", "source", "asked", "parity", "written", "head"),
    "fairseq/options.json": ("arch", "max_positions"),
    "model.safetensors.index.json": ("weight_map",),
}
DOORS: dict[str, Callable[[Path, Path], object]] = {
    "XLMR": lambda folder, _output: XLMR.from_pretrained(folder).encode("a b"),
    "doctor": lambda folder, _output: examine(folder),
    "doctor --fix": lambda folder, _output: examine(folder, fix=True),
    "plan": lambda folder, _output: shape_of(folder),
    "export": lambda folder, output: export(folder, output, overwrite=True),
    "to-sentence-transformers": lambda folder, output: to_sentence_transformers(folder, output, overwrite=True),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(FIXTURES / "v0122prenorm", folder, verify=False)
    return folder


def opened(door: str, folder: Path, output: Path) -> str:
    """What a door says, nothing where it takes the folder; any other error ends the test."""
    try:
        DOORS[door](folder, output)
    except (InputError, IntegrityError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("door", DOORS)
def test_no_file_ends_in_a_traceback(door: str, converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    for name in FILES:
        path = folder / name
        before = path.read_bytes() if path.is_file() else None
        content = json.loads(before or b"{}")
        fields = CONCERNED.get(name, ())
        drafts = [json.dumps({**content, field: "@"}).encode() for field in fields]
        bad = [draft.replace(b'"@"', value) for draft in drafts for value in VALUES]
        for data in (*(FAULTS[fault][0] for fault in WHOLE), *bad):
            path.write_bytes(data)
            told = opened(door, folder, tmp_path / "out")
            assert len(told.splitlines()) <= 1, (name, data[:60], told)
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    assert opened(door, folder, tmp_path / "out") == "", "the folder is whole again"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "fairseq/conversion.json"])
def test_a_proof_of_a_damaged_folder_ends_in_a_sentence(name: str, converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    for fault in ("lists in lists", "too large"):
        (folder / name).write_bytes(FAULTS[fault][0])
        with pytest.raises(IntegrityError, match="is damaged") as caught:
            verify(FIXTURES / "v0122prenorm", folder)
        assert len(str(caught.value).splitlines()) == 1
