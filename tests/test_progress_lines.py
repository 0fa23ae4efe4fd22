"""In a log, where bars would be noise, a long task says now and then how far it is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hf_xlmr.cli.command_output import progress_of_command
from hf_xlmr.cli.progress_lines import Lines
from hf_xlmr.progress import SILENT


class Clock:
    """Seconds that pass as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def printed(
    steps: list[tuple[float, int]], capfd: pytest.CaptureFixture[str], *, total: int | None, unit: str, note: str = ""
) -> list[str]:
    """The lines of a task that makes these steps: seconds that one takes, and the amount that is then done."""
    clock = Clock()
    with Lines(clock).task("extracting", total=total, unit=unit) as task:
        for seconds, amount in steps:
            clock.now += seconds
            task.advance(amount, note=note)
    found = capfd.readouterr()
    assert not found.out
    return found.err.splitlines()


def test_a_short_task_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert printed([(29.0, 10)], capfd, total=10, unit="texts") == []


def test_a_long_task_says_how_much_is_done_and_how_long_it_may_take(capfd: pytest.CaptureFixture[str]) -> None:
    steps = [(31.0, 2000), (1.0, 1000), (30.0, 500)]
    assert printed(steps, capfd, total=8000, unit="texts", note="120 tokens/s") == [
        "hf-xlmr: extracting: 2,000 of 8,000 texts in 0:00:31 120 tokens/s",
        "hf-xlmr: extracting: 3,500 of 8,000 texts in 0:01:02, about 0:01:33 left 120 tokens/s",
    ]


def test_what_an_earlier_run_has_done_is_not_taken_for_speed(capfd: pytest.CaptureFixture[str]) -> None:
    steps = [(0.0, 900_000), (30.0, 300), (30.0, 300)]
    last = printed(steps, capfd, total=1_000_000, unit="texts")[-1]
    assert last == "hf-xlmr: extracting: 900,600 of 1,000,000 texts in 0:01:00, about 2:45:40 left"


def test_bytes_are_told_in_megabytes_and_an_unknown_total_not_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert printed([(60.0, 5_400_000_000)], capfd, total=None, unit="bytes") == [
        "hf-xlmr: extracting: 5,400 MB in 0:01:00"
    ]


def test_a_run_of_a_day_prints_a_line_every_ten_minutes_at_most(capfd: pytest.CaptureFixture[str]) -> None:
    lines = printed([(1.0, 1)] * 86_000, capfd, total=86_400, unit="texts")
    done = [int(line.split()[2].replace(",", "")) for line in lines]  # a text a second
    gaps = [later - earlier for earlier, later in pairwise(done)]
    assert done[0] == min(gaps) == 30 and max(gaps) == 600
    assert gaps == sorted(gaps) and len(lines) < 180


def test_a_command_prints_lines_where_there_is_no_terminal_and_nothing_if_it_is_quiet(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert isinstance(progress_of_command(shown=True), Lines)
    assert progress_of_command(shown=False) is SILENT
