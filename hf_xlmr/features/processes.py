"""The processes that share one piece of work: the rank of this one, barriers and broadcasts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from hf_xlmr.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["DeviceProcesses", "Processes", "is_first_of_all"]

Shared = TypeVar("Shared")
PATIENCE: Final = timedelta(days=365)  # one process may have days of work left when another has none
VARIABLES: Final = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def is_first_of_all(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that writes and prints; does not join the others to find out."""
    return environment.get("RANK", VARIABLES["RANK"]) == "0"


@dataclass(frozen=True)
class Processes:
    """One of the processes that `torchrun` or `accelerate launch` started, or the only one there is."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """The rank among the processes of this machine: the number of its GPU."""

    @classmethod
    def current(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """The running process, by the variables that launchers set; it joins the others. Raises InputError."""
        given = {name: environment.get(name, default) for name, default in VARIABLES.items()}
        if not all(value.isdecimal() for value in given.values()):
            shown = ", ".join(f"{name}={value}" for name, value in given.items())
            raise InputError(f"{shown}: these must be numbers, as torchrun sets them")
        rank, count, local = map(int, given.values())
        if not 0 <= rank < count:
            raise InputError(f"RANK={rank} must be below WORLD_SIZE={count}, as torchrun sets them")
        found = cls(rank, count, local)
        if count > 1:
            found._state()
        return found

    @property
    def is_first(self) -> bool:
        """Whether this process does the work that is done only once."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have come here (a barrier)."""
        if self.count > 1:
            with _told_of_another():
                self._state().wait_for_everyone()

    def agreed(self, value: Shared) -> Shared:
        """The first process's `value`, in all processes (a broadcast)."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with _told_of_another():
            values: list[Shared] = broadcast_object_list([value])
        return values[0]

    def _state(self) -> PartialState:
        from accelerate import PartialState

        return PartialState(cpu=True, timeout=PATIENCE)  # they communicate by gloo; each knows its own GPU


@contextmanager
def _told_of_another() -> Iterator[None]:
    """Turn what PyTorch raises when another process is gone into an InputError."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f"another process of this run has ended ({str(error).partition(chr(10))[0]:.200})") from error


class DeviceProcesses(Processes):
    """The same for training: the processes communicate by their devices' own backend, which Trainer then uses too."""

    def _state(self) -> PartialState:
        from accelerate import PartialState

        state = PartialState()
        if state.num_processes != self.count:
            raise InputError(f"{self.count} processes were started, and none of them has a GPU: pass cpu=True")
        return state
