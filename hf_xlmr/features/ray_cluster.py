"""A Ray: how to reach it, what an actor can have of it, and whether its head is lost."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from hf_xlmr.errors import InputError
from hf_xlmr.files.memory import CPU

__all__ = [
    *("GO_ON", "LOST_SECONDS", "POLL_SECONDS", "ActorShares", "RayCluster", "RayHead"),
    "actor_shares",
    "connected",
    "nodes_of_ray",
]

LOCAL: Final = "local"
USAGE: Final = "RAY_USAGE_STATS_ENABLED"
POLL_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 5.0
LOST_SECONDS: Final = 20.0  # without an answer of Ray's head; Ray itself ends the process after a minute
GO_ON: Final = "finished shards are kept: the same command with resume=True continues"


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A Ray, and what of it each actor (a process with its own copy of the model) has."""

    address: str = LOCAL
    """`local` starts a Ray on this machine, which ends with the call; `auto` is the cluster of RAY_ADDRESS or of this
    machine; else the address of a cluster, such as 10.0.0.1:6379."""
    actors: int | None = None
    """None is as many as there is room for, without GPUs and `cpus_per_actor` one on each machine."""
    gpus_per_actor: int | None = None
    """None is 1 if the cluster has GPUs and `device` is not cpu, else 0; a model that does not fit one needs more."""
    cpus_per_actor: int | None = None
    """The threads of each actor, on which rounding depends; None is the most that all actors can have."""


@dataclass(frozen=True)
class ActorShares:
    """The number of actors, and the CPUs and GPUs of each."""

    actors: int
    cpus: int
    gpus: int

    def raise_if_no_room(self, nodes: Sequence[tuple[int, int]]) -> None:
        """Raise InputError if these nodes have no room for one actor."""
        if not _room(nodes, self.cpus, gpus=self.gpus):
            raise _no_room(nodes, self)


def actor_shares(cluster: RayCluster, nodes: Sequence[tuple[int, int]], *, device: str | None) -> ActorShares:
    """What each actor gets in a cluster of `nodes`, the CPUs and GPUs of each. Raises InputError with numbers."""
    wanted = {"actors": cluster.actors, "cpus_per_actor": cluster.cpus_per_actor}
    for name, value in wanted.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: give at least 1")
    if device not in (None, CPU, "cuda"):
        raise InputError(f"device={device}: Ray chooses the GPUs of each actor; give cpu, cuda or nothing")
    gpus = cluster.gpus_per_actor
    if gpus is None:
        gpus = int(device != CPU and (device == "cuda" or any(each for _, each in nodes)))
    if gpus < 0 or (gpus and device == CPU):
        raise InputError(f"gpus_per_actor={gpus}: give 0 for device=cpu, and never less")

    room = partial(_room, nodes, gpus=gpus)
    least = cluster.cpus_per_actor or int(gpus > 0)
    actors = cluster.actors or max(1, room(least) if least else sum(cores > 0 for cores, _ in nodes))
    most = max((cores for cores, _ in nodes), default=0)
    tried = [cluster.cpus_per_actor] if cluster.cpus_per_actor else range(most, 0, -1)
    cpus = next((each for each in tried if room(each) >= actors), None)
    if cpus is None:
        raise _no_room(nodes, ActorShares(actors, cluster.cpus_per_actor or 1, gpus))
    return ActorShares(actors, cpus, gpus)


def _room(nodes: Sequence[tuple[int, int]], cpus: int, *, gpus: int) -> int:
    """The number of actors that these nodes, given by their CPUs and GPUs, have room for."""
    return sum(min(cores // cpus, cards // gpus if gpus else cores) for cores, cards in nodes)


def _no_room(nodes: Sequence[tuple[int, int]], wanted: ActorShares) -> InputError:
    cores, cards = (sum(each) for each in zip(*nodes, strict=True)) if nodes else (0, 0)
    return InputError(
        f"actors={wanted.actors} with {wanted.cpus} CPUs and {wanted.gpus} GPUs each: the cluster, whose {len(nodes)} "
        f"nodes have {cores} CPUs and {cards} GPUs, has room for {_room(nodes, wanted.cpus, gpus=wanted.gpus)}"
    )


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to Ray; one that was made here ends with the block. Raises InputError."""
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'hf-xlmr[ray]'") from error
    if ray.is_initialized():
        yield
        return
    _raise_if_silent(address)
    is_asked = USAGE in os.environ
    os.environ.setdefault(USAGE, "0")  # else a Ray that is started reports to its makers
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address, **quiet, **({"include_dashboard": False} if address == LOCAL else {}))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        why = next(iter(str(error).splitlines()), "")
        raise InputError(f"Ray at {address} cannot be reached: {why:.300}") from error
    finally:
        if not is_asked:
            del os.environ[USAGE]
    try:
        yield
    finally:
        ray.shutdown()


def _raise_if_silent(address: str) -> None:
    """Raise InputError if nobody answers at an address, which Ray would try for minutes."""
    wanted = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if wanted.startswith("ray://"):
        raise InputError(f"Ray at {wanted}: Ray Client does not do here; run this on a node of the cluster with auto")
    host, _, port = wanted.rpartition(":")
    if port.isdecimal() and not _answers(host, int(port)):
        raise InputError(f"Ray at {wanted} cannot be reached: nobody answers there")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def nodes_of_ray() -> list[tuple[int, int]]:
    """The CPUs and GPUs of each node that is alive."""
    import ray

    alive = [each["Resources"] for each in ray.nodes() if each["Alive"]]
    return [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in alive]


class RayHead:
    """The head of the cluster, which must answer: without it Ray ends this process after a minute, without a word."""

    def __init__(self) -> None:
        import ray

        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._place = host, int(port)
        self.is_lost = False
        self._is_watched = _answers(*self._place)  # it does not through a proxy
        self._asked = self._answered = time.monotonic()

    def check(self) -> None:
        """Raise InputError if it has not answered for LOST_SECONDS."""
        now = time.monotonic()
        if not self._is_watched or now - self._asked < POLL_SECONDS:
            return
        self._asked = now
        if _answers(*self._place):
            self._answered = now
        elif now - self._answered > LOST_SECONDS:
            raise self.lost()

    def lost(self) -> InputError:
        """Remember that the connection is lost, and return the error for that."""
        self.is_lost = True
        return InputError(f"the connection to Ray's head ({':'.join(map(str, self._place))}) was lost; {GO_ON}")
