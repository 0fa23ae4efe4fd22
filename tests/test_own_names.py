"""One rule wherever a model, a source or data is named: a path that exists comes before hf_xlmr's own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from factory import Checkpoint

from hf_xlmr.conversion import convert, inspect
from hf_xlmr.errors import InputError
from hf_xlmr.files.own_names import own_name
from hf_xlmr.hub_interface.loading import find_model
from hf_xlmr.model_shape import shape_of
from hf_xlmr.tasks.example_data import example_data
from hf_xlmr.tasks.kinds.inputs import DataSource

HIDDEN = 16  # of the factory's checkpoint; the demo has 64, the releases 768 and more


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_XLMR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


WIDTHS: dict[str, Callable[[str], object]] = {
    "plan": lambda model: shape_of(model).hidden,
    "inspect": lambda model: inspect(model).hidden_size,
    "everything that runs a model": lambda model: find_model(model).shape.hidden,
}


@pytest.mark.parametrize("name", ["demo", "xlmr.large"])
@pytest.mark.parametrize("kind", ["fairseq", "Transformers"])
@pytest.mark.parametrize("what", WIDTHS)
def test_a_path_comes_before_a_name(
    what: str, kind: str, name: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Checkpoint().write(place / (name if kind == "fairseq" else "source"))
    if kind == "Transformers":
        convert(source, place / name, verify=False)
    if (what, kind) == ("inspect", "Transformers"):
        with pytest.raises(InputError, match=name):  # it is the folder that is looked at
            inspect(name)
    else:
        assert WIDTHS[what](name) == HIDDEN
    assert f"{name} is read as the path ./{name} ({place / name}), which exists" in caplog.text
    assert caplog.text.count("is read as the path") == 1


def test_a_name_is_meant_where_there_is_no_such_path(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (shape_of("demo").hidden, shape_of("xlmr.large").hidden, find_model("demo").shape.hidden) == (64, 1024, 64)
    assert DataSource.parse("demo", demo=example_data("xnli", "train")).source != "demo"
    assert own_name("./demo") is None and own_name("mine") is None and not caplog.records


def test_data_called_demo_come_before_the_demo(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place / "demo").mkdir()
    assert DataSource.parse("demo", demo=example_data("xnli", "train")) == DataSource("demo")
    assert "call from another folder" in caplog.text


def test_a_name_that_cannot_be_looked_up_is_told(place: Path) -> None:
    (place / "demo").symlink_to("demo")
    for look in (*WIDTHS.values(), lambda name: DataSource.parse(name, demo=example_data("xnli", "train"))):
        with pytest.raises(InputError, match="cannot read demo: Too many levels of symbolic links"):
            look("demo")


def test_nothing_is_no_path() -> None:
    with pytest.raises(InputError, match="give a path or a name"):
        find_model("")
