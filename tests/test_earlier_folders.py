"""Folders that an earlier hf_xlmr made are read as what they are; `fixtures/earlier` holds some of before 0.1.0.

Nothing of them may be made again by today's converter: they stay as they were published.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import FIXTURES

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert, export, verify
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import InputError, IntegrityError
from hf_xlmr.hub_interface.loading import ModelFiles
from hf_xlmr.model.folder_records import CONVERSION, FINETUNING, NEWEST, ConversionRecord
from hf_xlmr.model.provenance import Standing
from hf_xlmr.publishing.folder_to_push import look_at
from hf_xlmr.tasks.training import FinetuningOptions, finetune

pytestmark = pytest.mark.usefixtures("cache_folder")

EARLIER = FIXTURES / "earlier"
SOURCES = {"masked-lm": FIXTURES / "v0102", "classifier": FIXTURES / "v0122twoheads"}
APPENDED = {"masked-lm": 84, "classifier": 10}  # rows, for pieces that the dictionary lacks
TRAINED = FinetuningOptions(
    max_steps=3, batch_size=8, warmup=0.0, learning_rate=1e-3, max_length=32, cpu=True
)  # as fixtures/README.md tells


@pytest.fixture
def earlier(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(EARLIER / name, tmp_path / name)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", SOURCES)
def test_a_converted_one_verifies_and_goes_back_to_fairseq(
    name: str, earlier: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = earlier(name)
    assert ConversionRecord.of(folder).appended_rows(0) == APPENDED[name]
    assert verify(SOURCES[name], folder, record=True).weights_compared > 40
    exported = export(folder, tmp_path / "back").output  # by the record that was written again
    convert(exported, tmp_path / "again", verify=False)
    theirs = transformers.AutoModel.from_pretrained(EARLIER / name).get_input_embeddings().weight
    ours = transformers.AutoModel.from_pretrained(tmp_path / "again").get_input_embeddings().weight
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [*SOURCES, "fine-tuned"])
def test_one_is_healthy_loads_and_may_be_published(name: str) -> None:
    assert examine(EARLIER / name).is_healthy
    looked = look_at(EARLIER / name)
    assert looked.standing is (Standing.finetuned if name == "fine-tuned" else Standing.verified)
    assert not looked.left_out and not looked.notes
    xlmr = XLMR.from_pretrained(EARLIER / name).eval()
    tokens = xlmr.encode("The train leaves.")
    model = transformers.AutoModel.from_pretrained(EARLIER / name, add_pooling_layer=False).eval()
    with torch.no_grad():
        assert torch.allclose(xlmr.extract_features(tokens), model(tokens[None]).last_hidden_state, atol=1e-5)


def test_a_training_of_one_is_finished(earlier: Callable[[str], Path]) -> None:
    """Its scores alone could be made: it is the training that was asked for, whatever options there are by now."""
    model, folder = earlier("masked-lm"), earlier("fine-tuned")
    before = (folder / "model.safetensors").read_bytes()
    report = finetune("xnli", str(model), ["demo"], folder, options=TRAINED, resume=True)
    assert report.steps == 3 and report.losses[2] == 1.0954952239990234 and report.trained_on == {"en": 108}
    for names in (("skipped", "misaligned", "losses"), ("settings",)):
        changed(folder / FINETUNING, lambda told, names=names: [told.pop(name) for name in names])  # type: ignore[misc]
        if names == ("settings",):
            with pytest.raises(IntegrityError, match=r"finetuning\.json is damaged"):
                finetune("xnli", str(model), ["demo"], folder, options=TRAINED, resume=True)
        else:
            again = finetune("xnli", str(model), ["demo"], folder, options=TRAINED, resume=True)
            assert again.steps == 3 and not again.losses
    assert (folder / "model.safetensors").read_bytes() == before


def test_what_a_record_does_not_tell_has_its_default(earlier: Callable[[str], Path], tmp_path: Path) -> None:
    folder = earlier("masked-lm")
    for name in ("head", "layers", "written", "made", "notes", "dropped"):
        changed(folder / CONVERSION, lambda told, name=name: told.pop(name))  # type: ignore[misc]
    changed(folder / CONVERSION, lambda told: [told["asked"].pop(name) for name in ("ema", "dtype")])
    verify(SOURCES["masked-lm"], folder)
    assert examine(folder).is_healthy and look_at(folder).standing is Standing.verified
    assert ModelFiles(folder).embedding_rows == ModelFiles(folder).shape.vocabulary - APPENDED["masked-lm"]
    export(folder, tmp_path / "back")
    changed(folder / CONVERSION, lambda told: told.pop("config"))
    assert ConversionRecord.of(folder).appended_rows(ModelFiles(folder).shape.vocabulary) == APPENDED["masked-lm"]


READERS: dict[str, Callable[[Path, Path], object]] = {
    "verify": lambda folder, _out: verify(SOURCES["masked-lm"], folder),
    "export": lambda folder, out: export(folder, out),
    "doctor": lambda folder, _out: examine(folder),
    "push": lambda folder, _out: look_at(folder),
    "loading": lambda folder, _out: XLMR.from_pretrained(folder),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_record_of_a_newer_format_is_told_in_a_sentence(
    reader: str, earlier: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = earlier("masked-lm")
    changed(folder / CONVERSION, lambda told: told.update(format=NEWEST[CONVERSION] + 1))
    with pytest.raises(InputError, match=r"conversion\.json has the format 2, .*a newer hf_xlmr wrote it"):
        READERS[reader](folder, tmp_path / "out")
    for odd in ("1", True, -1, 1.5, None):
        changed(folder / CONVERSION, lambda told, odd=odd: told.update(format=odd))  # type: ignore[misc]
        with pytest.raises(IntegrityError, match=r"conversion\.json is damaged: its format is"):
            READERS[reader](folder, tmp_path / "out")


@pytest.mark.parametrize("change", [{"class": 5}, {"source": {}}, {"parity": {"steps": 5}}, {"notes": None, "made": 3}])
def test_a_record_that_somebody_edited_is_proved_and_its_card_left(
    change: dict[str, Any], earlier: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = earlier("masked-lm")
    changed(folder / CONVERSION, lambda told: told.update(change))
    before = (folder / "README.md").read_bytes()
    (folder / "model.safetensors").touch()
    verify(SOURCES["masked-lm"], folder, record=True)
    assert (folder / "README.md").read_bytes() == before and "is left as it is" in caplog.text


def test_a_wish_that_only_a_newer_one_knows_is_not_damage(earlier: Callable[[str], Path]) -> None:
    folder = earlier("masked-lm")
    changed(folder / CONVERSION, lambda told: told["asked"].update(rotated=True))
    with pytest.raises(InputError, match="describes 'rotated', which a newer hf_xlmr wrote"):
        verify(SOURCES["masked-lm"], folder)


def test_a_training_of_a_newer_format_is_told_in_a_sentence(earlier: Callable[[str], Path]) -> None:
    model, folder = earlier("masked-lm"), earlier("fine-tuned")
    changed(folder / FINETUNING, lambda told: told.update(format=NEWEST[FINETUNING] + 1))
    with pytest.raises(InputError, match=r"finetuning\.json has the format 2"):
        finetune("xnli", str(model), ["demo"], folder, options=TRAINED, resume=True)
    with pytest.raises(InputError, match=r"finetuning\.json has the format 2"):
        look_at(folder)
    assert ModelFiles(EARLIER / "fine-tuned").training["steps"] == 3


def test_what_is_written_has_its_number(tmp_path: Path) -> None:
    folder = convert(SOURCES["masked-lm"], tmp_path / "model", verify=False).output
    assert json.loads((folder / CONVERSION).read_text(encoding="utf-8"))["format"] == NEWEST[CONVERSION]
