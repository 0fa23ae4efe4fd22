"""A classifier that was trained after its conversion has labels of its own, and doctor reports what is stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import FIXTURES

from hf_xlmr import XLMR
from hf_xlmr.conversion import convert, export
from hf_xlmr.doctor.examination import examine
from hf_xlmr.errors import InputAttributeError
from hf_xlmr.hub_interface.loading import ModelFiles

THREE = ["contradiction", "entailment", "neutral"]
NEW = {0: "bad", 1: "good"}


@pytest.fixture(scope="module", params=["verified", "not verified"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    return convert(FIXTURES / "v0122cls", folder, verify=request.param == "verified").output


def trained(converted: Path, folder: Path, names: dict[int, str] | None, **more: Any) -> Path:
    """As Trainer.save_model leaves it, and `fairseq/` copied in as the guide says."""
    given = {} if names is None else {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        converted, ignore_mismatched_sizes=True, **given, **more
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(converted).save_pretrained(folder)
    shutil.copytree(converted / "fairseq", folder / "fairseq")
    return folder


def classes_of(xlmr: XLMR) -> list[str]:
    """By fairseq's idiom: predictions are numbered from `nspecial` on."""
    labels = xlmr.task.label_dictionary
    return [labels.string([number + labels.nspecial]) for number in range(len(labels) - labels.nspecial - 1)]


def test_classes_of_other_names_are_those_of_the_configuration(converted: Path, tmp_path: Path) -> None:
    xlmr = XLMR.from_pretrained(trained(converted, tmp_path / "model", NEW)).eval()
    assert classes_of(xlmr) == ["bad", "good"]
    assert xlmr.predict(xlmr.files.head_name, xlmr.encode("The train leaves.")).shape == (1, 2)
    assert not hasattr(xlmr.args, "num_classes")


def test_classes_in_another_order(converted: Path, tmp_path: Path) -> None:
    names = dict(enumerate(reversed(THREE)))
    assert classes_of(XLMR.from_pretrained(trained(converted, tmp_path / "model", names))) == [*reversed(THREE)]


def test_classes_without_names(converted: Path, tmp_path: Path) -> None:
    folder = trained(converted, tmp_path / "model", {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(InputAttributeError):
        _ = XLMR.from_pretrained(folder).task.label_dictionary


def test_the_same_classes_trained_on_keep_the_dictionary(converted: Path, tmp_path: Path) -> None:
    folder = trained(converted, tmp_path / "model", None)
    assert ModelFiles(folder).labels == ModelFiles(converted).labels
    assert "labels" not in [finding.name for finding in examine(folder).findings]


def test_names_changed_by_hand_leave_fairseqs_to_its_own_weights(converted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(converted, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "Widerspruch", "1": "Folgerung", "2": "neutral"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    is_known = json.loads((folder / "fairseq" / "conversion.json").read_text(encoding="utf-8"))["parity"] is not None
    labels = ModelFiles(folder).labels
    assert labels is not None
    assert list(labels.symbols[4:7]) == (THREE if is_known else ["Widerspruch", "Folgerung", "neutral"])
    (finding,) = examine(folder).findings
    assert finding.name == "labels" and "contradiction" in finding.told and "Widerspruch" in finding.told


def test_scores_have_no_classes(converted: Path, tmp_path: Path) -> None:
    folder = trained(converted, tmp_path / "model", {0: "score"}, problem_type="regression")
    assert classes_of(XLMR.from_pretrained(folder)) == ["score"]


def test_the_way_back_has_the_new_classes(converted: Path, tmp_path: Path) -> None:
    folder = trained(converted, tmp_path / "model", NEW)
    export(folder, tmp_path / "fairseq")
    assert (tmp_path / "fairseq" / "label" / "dict.txt").read_text(encoding="utf-8").split()[::2] == ["bad", "good"]
    assert classes_of(XLMR.from_pretrained(tmp_path / "fairseq")) == ["bad", "good"]


def test_doctor_reports_what_is_stale(converted: Path, tmp_path: Path) -> None:
    folder = trained(converted, tmp_path / "model", NEW)
    told = {finding.name: finding.told for finding in examine(folder).findings}
    assert "contradiction, entailment, neutral" in told["labels"] and "bad, good" in told["labels"]
    is_verified = json.loads((folder / "fairseq" / "conversion.json").read_text(encoding="utf-8"))["parity"] is not None
    assert ("record" in told) == is_verified
    shutil.rmtree(folder / "fairseq" / "label")
    (folder / "fairseq" / "conversion.json").unlink()
    assert examine(folder).is_healthy
    assert classes_of(XLMR.from_pretrained(folder)) == ["bad", "good"]
