"""Every known fault, planted in a server that runs Transformers, is caught and named, in all three families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faulty_runtimes import Runtime, served, without_tokens
from places import FIXTURES
from planted_faults import FAULTS, OF_THE_FINAL_NORM, VECTORS_ONLY

from hf_xlmr.conformance import compare
from hf_xlmr.conversion import convert

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("post-norm", "pre-norm", "pre-norm with embedding norm")
ALL = FAULTS | VECTORS_ONLY | {"final norm": OF_THE_FINAL_NORM}
# in which another sum rounds otherwise
ROUNDINGS = ("float16", "bfloat16", "int8 products", "int8 products in 16 bits")
TOKENS = ("tanh GELU", "no <s>", "two </s>", "truncation at 47", "padding pooled", "bfloat16", "final norm")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ALL)
def test_it_is_named_by_pooled_vectors(
    families: dict[str, Path], name: str, family: str, request: pytest.FixtureRequest
) -> None:
    given, said = ALL[name]
    if family != "post-norm":  # for which all are asked
        request.getfixturevalue("few_probes")
    if name == "final norm" and family == "post-norm":
        pytest.skip("this family has no such norm")
    with served(Runtime(families[family], **given), odd=without_tokens) as address:
        found = compare(families[family], address)
    assert said in found.verdict, (found.verdict, found.tried)
    assert not found.agrees and found.faults
    assert found.left is None or found.left < (0.9 if name in ROUNDINGS else 0.1)


@pytest.mark.parametrize("name", TOKENS)
def test_it_is_named_by_the_vectors_of_tokens(families: dict[str, Path], name: str) -> None:
    given, said = ALL[name]
    with served(Runtime(families["pre-norm"], **given)) as address:
        found = compare(families["pre-norm"], address)
    assert said in found.verdict and not found.agrees, (found.verdict, found.tried)


def test_the_norm_at_the_end_of_a_pre_norm_x_mod_is_known(tmp_path: Path) -> None:
    given, said = OF_THE_FINAL_NORM
    model = convert(FIXTURES / "xmod" / "prenorm", tmp_path / "model", verify=False).output
    with served(Runtime(model, **given), odd=without_tokens) as address:
        assert said in compare(model, address).verdict


def test_an_unknown_fault_of_an_x_mod_is_told_as_such(tmp_path: Path) -> None:
    def bend(network: Any) -> None:
        network.encoder.layer[0].attention.self.query.weight.data *= 1.1

    model = convert(FIXTURES / "xmod" / "prenorm", tmp_path / "model", verify=False).output
    with served(Runtime(model, prepare=bend), odd=without_tokens) as address:
        found = compare(model, address)
    assert not found.agrees and not found.faults and "unknown" in found.verdict
