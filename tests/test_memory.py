"""Sizes in words, budgets, and what this machine has."""

from __future__ import annotations

from typing import Any

import pytest

from hf_xlmr.errors import InputError
from hf_xlmr.files.memory import CPU, DISK, available_memory, format_size, in_order, parse_max_memory, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GiB", 24 * 2**30),
        ("24GB", 24 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5 MiB", 3 * 2**19),
        ("2kb", 2000),
        ("1TiB", 2**40),
        ("8000000000", 8_000_000_000),
        (4096, 4096),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_a_size_is_read(text: str | int, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("24", "no unit; write 24GiB"),
        ("1.5", "no unit"),
        ("24GX", "GX is not a unit"),
        ("-24GiB", "is not a size"),
        ("", "is not a size"),
        ("GiB", "is not a size"),
        ("1e9", "is not a size"),
        ("9" * 400 + "GiB", "is not a size"),
    ],
)
def test_what_is_no_size_is_told(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_size(text)


def test_budgets_come_with_gpus_first_in_the_order_given() -> None:
    budgets = parse_max_memory("cpu=64GiB, 1=24GiB,disk=unlimited,cuda:0=16GB")
    assert list(budgets.items()) == [(1, 24 * 2**30), (0, 16 * 10**9), (CPU, 64 * 2**30), (DISK, None)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tpu=8GiB", "tpu is not a device"),
        ("-1=8GiB", "-1 is not a device"),
        ("99999=8GiB", "99999 is not a device"),
        ("0=8GiB,cuda:0=8GiB", "GPU 0 is given twice"),
        ("0", "is not a device with its memory; write such as 0="),
        ("", "is not a device with its memory; write such as 0="),
        ("0=8GiB,", "is not a device with its memory; write such as 0="),
        ("0=24", "no unit"),
        ("0=unlimited", "GPU 0 has a limit"),
    ],
)
def test_what_is_no_budget_is_told(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_max_memory(text)


@pytest.mark.parametrize(
    ("budgets", "told"), [({}, "no device"), ({0: -1}, "negative"), ({None: 5}, "None is not a device")]
)
def test_what_is_no_budget_in_python_is_told(budgets: dict[Any, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        in_order(budgets)


def test_budgets_in_python_may_be_words() -> None:
    assert in_order({"cpu": "1GiB", 0: "2GB"}) == {0: 2 * 10**9, "cpu": 2**30}


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (1536, "1.50 KiB"), (-(2**30), "-1.00 GiB"), (None, "unlimited")]
)
def test_a_size_is_told(count: int | None, told: str) -> None:
    assert format_size(count) == told


def test_this_machine_has_memory_and_a_disk_without_a_limit() -> None:
    memory = available_memory()
    assert memory[DISK] is None
    assert (memory[CPU] or 0) > 100_000_000
