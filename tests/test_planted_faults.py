"""Every known fault, planted in a server that runs Transformers, is caught and named, in all three families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faulty_runtimes import Runtime, served, without_tokens
from places import FIXTURES
from planted_faults import FAULTS, OF_THE_FINAL_NORM, VECTORS_ONLY

from hf_xlmr.conformance import compare
from hf_xlmr.conversion import convert

FAMILIES = {"post-norm": "v0122", "pre-norm": "v0122prenorm", "pre-norm with embedding norm": "v0122prelayernorm"}
ALL = FAULTS | VECTORS_ONLY | {"final norm": OF_THE_FINAL_NORM}
TOKENS = ("tanh GELU", "no <s>", "two </s>", "truncation at 47", "padding pooled", "bfloat16", "final norm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    made = {}
    for family, fixture in FAMILIES.items():
        made[family] = tmp_path_factory.mktemp("models") / fixture
        convert(FIXTURES / fixture, made[family], verify=False)
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ALL)
def test_it_is_named_by_pooled_vectors(folders: dict[str, Path], name: str, family: str) -> None:
    given, said = ALL[name]
    if name == "final norm" and family == "post-norm":
        pytest.skip("this family has no such norm")
    with served(Runtime(folders[family], **given), odd=without_tokens) as address:
        found = compare(folders[family], address)
    assert said in found.verdict, (found.verdict, found.tried)
    assert not found.agrees and found.faults


@pytest.mark.parametrize("name", TOKENS)
def test_it_is_named_by_the_vectors_of_tokens(folders: dict[str, Path], name: str) -> None:
    given, said = ALL[name]
    with served(Runtime(folders["pre-norm"], **given)) as address:
        found = compare(folders["pre-norm"], address)
    assert said in found.verdict and not found.agrees, (found.verdict, found.tried)
