"""A pickle is data: nothing that it names is imported, called or built."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest

from hf_xlmr.conversion.checkpoint.pickles import Global, Inert, StorageRef, TensorRef, read_pickle
from hf_xlmr.errors import IntegrityError

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), name="test.pt")


class Trap:
    """Pickles to a call that leaves a file behind when it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back_as_they_were(protocol: int) -> None:
    value = {"a": [1, -2, 2**70, 1.5, None, True], "b": ("x", "ü", ()), "c": {"d": [[], {}]}, 7: (1, 2, 3, 4)}
    value["d"] = b"y" if protocol > 2 else "y"  # before protocol 3, bytes are a call
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_recorded_and_not_made(protocol: int, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    value = read(pickle.dumps({"args": Trap(trap)}, protocol))["args"]
    assert isinstance(value, Inert)
    assert value.target == Global(os.mkdir.__module__, "mkdir")
    assert value.arguments == (str(trap),)
    assert not trap.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(Vecho\ntR.",
        b"(Vecho\nios\nsystem\n.",
        b"(cos\nsystem\nVecho\no.",
        b"\x80\x02cos\nsystem\nVecho\n\x85\x81.",
        b"\x80\x04cos\nsystem\nVecho\n\x85}\x92.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.",
        b"\x80\x02\x82\x01.",
        b"cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(Vecho\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\nK\x00))tR.",
        b"ccollections\nOrderedDict\n(cos\nsystem\ntR.",
    ],
)
def test_hostile_opcodes_give_inert_records(payload: bytes) -> None:
    value = read(payload)
    assert isinstance(value, Inert)
    list(pickletools.genops(payload))  # the payload is whole, so that this is no accident


def test_namespaces_keep_their_fields() -> None:
    value = read(pickle.dumps(Namespace(arch="roberta_base", heads=12), 2))
    assert value.type_name == "argparse.Namespace"
    assert value.state == {"arch": "roberta_base", "heads": 12}


@pytest.mark.parametrize("value", [OrderedDict(a=1, b=2), defaultdict(list, a=[1])])
def test_dictionaries_of_the_standard_library_are_plain(value: dict[str, Any]) -> None:
    assert read(pickle.dumps(value, 2)) == dict(value)


def test_a_tensor_is_a_view_of_a_storage() -> None:
    tensor = read(b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x01(K\x02K\x02t(K\x02K\x01t\x89NtR.")
    assert tensor == TensorRef(StorageRef("0", "float32", "cpu", 6), 1, (2, 2), (2, 1))


@pytest.mark.parametrize(
    "geometry",
    [b"K\x00(K\x02t(K\x02K\x01t", b"J\xff\xff\xff\xff(K\x02t(K\x01t", b"K\x00(I-1\nt(K\x01t", b"K\x00](K\x01t", b"NNN"],
)
def test_a_tensor_of_impossible_geometry_is_inert(geometry: bytes) -> None:
    assert isinstance(read(b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + geometry + b"\x89NtR."), Inert)


@pytest.mark.parametrize(
    "pid", [("storage",), ("other", 1, 2, 3, 4), "text", None, ("storage", "torch.FloatStorage", "0", "cpu", 1), 5]
)
def test_an_odd_persistent_id_is_inert(pid: object) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return pid if value == "here" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(["here"])
    if pid is not None:
        assert isinstance(read(stream.getvalue())[0], Inert)


def test_a_huge_memo_index_costs_nothing() -> None:
    assert read(b"\x80\x02]r\xff\xff\xff\x7f.") == []


def test_recursion_and_sharing_cost_no_stack() -> None:
    value = read(b"\x80\x02]q\x00h\x00a.")
    assert value[0] is value
    deep = read(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert isinstance(deep, list)


def test_keys_that_are_slow_to_hash_are_never_hashed() -> None:
    """A tuple of tuples of itself takes 2**60 steps to hash; integers beyond 2**61 can all have one hash."""
    nested = b"K\x01" + b"2\x86" * 60
    assert len(read(b"\x80\x02}(" + nested + b"K\x01u.")) == 1
    clashing = b"".join(pickle.dumps((2**61 - 1) * n, 2)[2:-1] + b"N" for n in range(1, 2000))
    assert len(read(b"\x80\x02}(" + clashing + b"u.")) == 1999


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b".",
        b"(",
        b"}",
        b"(.",
        b"\x80\x02}q",
        b"N0.",
        b"\x80\x02h\x05.",
        b"\x80\x05\x97.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"K\x01K\x02.",
    ],
)
def test_damage_is_told_in_a_sentence(damaged: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"test\.pt"):
        read(damaged)
