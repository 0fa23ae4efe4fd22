"""The actors that make the shards of one output: hands out the work, and replaces actors that die."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hf_xlmr.data.text_rows import TextRow
from hf_xlmr.errors import HfXlmrError, InputError
from hf_xlmr.features.background import prefetched
from hf_xlmr.features.ray_cluster import GO_ON, LOST_SECONDS, POLL_SECONDS, ActorShares, RayHead, nodes_of_ray
from hf_xlmr.features.shard_maker import Begun, Made, Plan, ShardMaker, Work
from hf_xlmr.features.shares import Passed

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

__all__ = ["Order", "RayCrew"]

Order: TypeAlias = tuple[int, "list[TextRow] | None"]
"""The number of a shard to make, and its rows if an actor cannot read them itself."""
AHEAD: Final = 2  # shards that an actor has at once: it reads the next while it computes one
MOST_DEATHS: Final = 3  # of actors that make one shard, or load the model
_LOG: Final = logging.getLogger(__name__)


class _Died(Exception):
    """An actor died, or cannot be reached any more."""


@dataclass(eq=False)
class _Actor:
    """A ShardMaker in a process of Ray."""

    handle: ActorHandle
    started: ObjectRef
    """The reference to the answer that it gives as soon as it runs."""
    is_ready: bool = False
    shards: int = 0
    """The number of shards that it has now."""


@dataclass(frozen=True)
class _Call:
    """A call that an actor works on: to make a shard, perhaps of these rows; or to join, without a number."""

    actor: _Actor
    number: int | None = None
    rows: list[TextRow] | None = None


class RayCrew:
    """The actors of one extraction; one that dies is replaced, and its shards are made again."""

    def __init__(self, work: Work, shares: ActorShares) -> None:
        """Store the arguments."""
        self._work, self._shares = work, shares
        self._actors: list[_Actor] = []
        self._hired = 0
        self._calls: dict[ObjectRef, _Call] = {}
        self._again: list[_Call] = []
        """The shards of actors that died."""
        self._failures: dict[int, Exception] = {}
        """The errors of shards by their numbers."""
        self._deaths: Counter[int | None] = Counter()
        self._handed_out = 0
        """The number of the shard after the last that was handed out."""
        self._is_last = False
        self._passed: list[Passed] = []
        """Shards that were done before, and are not yet reported."""
        self._is_patient = True

    @contextmanager
    def at_work(self) -> Iterator[RayCrew]:
        """Watch the head of the cluster, and end all actors in the end."""
        self._head = RayHead()
        try:
            yield self
        finally:
            self.end()

    def end(self) -> None:
        """End all actors, and return when they have ended."""
        import ray

        actors, self._actors, self._calls = self._actors, [], {}
        if not actors or self._head.is_lost:
            return
        with suppress(ray.exceptions.RayError, OSError):
            for actor in actors:
                ray.kill(actor.handle)
            answers = [actor.handle.node.remote() for actor in actors]  # an error as soon as it has ended
            ray.wait(answers, num_returns=len(answers), timeout=LOST_SECONDS)

    def begun(self) -> Begun:
        """What the first actor decides. Raises InputError, IntegrityError."""
        for rank in range(1, self._shares.actors):
            self._hire(rank=rank)
        while True:
            actor = self._hire(rank=0)
            call = actor.handle.begin.remote()
            while not self._wait([call]):
                pass
            try:
                found: Begun = self._result(call)
            except _Died as died:
                self._actors.remove(actor)
                self._count_death(None, died)
            else:
                return found

    def made(self, orders: Iterator[Passed | Order], plan: Plan) -> Iterator[Made | Passed]:
        """Yield shards that are done or made; after a failure, those before it are made first. Raises its error."""
        import ray

        self._plan, self._plan_of_all = plan, ray.put(plan)
        for actor in self._actors:
            self._join(actor)
        with closing(prefetched(orders, depth=1, idle=self._head.check)) as upcoming:
            while self._hand_out(upcoming):
                yield from self._passed
                self._passed = []
                for done in self._wait(list(self._calls)):
                    if (made := self._taken(done)) is not None:
                        yield made
        yield from self._passed
        if self._failures:
            raise self._failures[min(self._failures)] from None

    def _hire(self, *, rank: int) -> _Actor:
        import ray

        self._hired += 1
        kind = ray.remote(
            num_cpus=self._shares.cpus,
            num_gpus=self._shares.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=AHEAD + 1,
            scheduling_strategy="SPREAD",
        )(ShardMaker)
        handle = kind.remote(self._work, rank=rank)
        self._actors.append(_Actor(handle, handle.node.remote()))
        handle.prepare.remote()
        return self._actors[-1]

    def _join(self, actor: _Actor) -> None:
        self._calls[actor.handle.join.remote(self._plan_of_all)] = _Call(actor)

    def _hand_out(self, upcoming: Iterator[Passed | Order]) -> bool:
        """Give every actor that is ready something to do. Returns whether there is anything to wait for."""
        for shards in range(AHEAD):
            for actor in self._actors:
                if actor.is_ready and actor.shards == shards and (order := self._next(upcoming)):
                    number, rows = order
                    self._calls[actor.handle.make.remote(number, rows)] = _Call(actor, number, rows)
                    actor.shards += 1
        if not self._failures and not self._is_last:
            return True
        most = min(self._failures, default=math.inf)
        return any(call.number is not None and call.number < most for call in (*self._calls.values(), *self._again))

    def _next(self, upcoming: Iterator[Passed | Order]) -> Order | None:
        """The next shard to make: one that has to be made again, or one more; none more after a failure."""
        if self._again:
            call = self._again.pop()
            assert call.number is not None
            return call.number, call.rows
        if self._failures or self._is_last:
            return None
        try:
            while isinstance(order := next(upcoming, None), Passed):
                self._passed.append(order)
        except HfXlmrError as error:  # of the row that is read next
            self._failures[self._handed_out] = error
            return None
        if order is None:
            self._is_last = True
        else:
            self._handed_out = order[0] + 1
        return order

    def _taken(self, done: ObjectRef) -> Made | None:
        """The result of a call that has ended, if it is a shard."""
        call = self._calls.pop(done)
        call.actor.shards -= call.number is not None
        try:
            result: Made | None = self._result(done)
        except _Died as died:
            self._replace(call, died)
            return None
        except Exception as error:
            if call.number is None:
                raise
            self._failures[call.number] = error
            return None
        if call.number is None:
            call.actor.is_ready = True
            del self._deaths[None]
        return result

    def _replace(self, call: _Call, died: _Died) -> None:
        """Start another actor for one that died, of which this is one of the calls."""
        import ray

        self._count_death(call.number, died)
        if call.number is not None:
            self._again.append(call)
        if call.actor in self._actors:
            self._actors.remove(call.actor)
            with suppress(ray.exceptions.RayError):
                ray.kill(call.actor.handle)  # it may only be out of reach
            self._join(self._hire(rank=self._hired))

    def _count_death(self, number: int | None, died: _Died) -> None:
        """Raise InputError if too many actors died at the same work."""
        self._deaths[number] += 1
        _LOG.warning("an actor of Ray died, and is replaced: %s", died)
        if self._deaths[number] > MOST_DEATHS:
            what = "load the model" if number is None else self._rows(number)
            raise InputError(f"{self._deaths[number]} actors of Ray died as they had to {what}: {died}; {GO_ON}")

    def _rows(self, number: int) -> str:
        size = self._plan.begun.layout.rows_per_shard
        return f"compute the {size} rows from row {number * size} on"

    def _wait(self, calls: list[ObjectRef]) -> list[ObjectRef]:
        """The calls that have ended, after a moment perhaps none. Raises InputError if they cannot end."""
        import ray

        try:
            done: list[ObjectRef] = ray.wait(calls, timeout=POLL_SECONDS)[0]
            self._head.check()
            if not done and not any(actor.is_ready for actor in self._actors):
                self._check_start()
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise self._head.lost() from error
        return done

    def _check_start(self) -> None:
        """Raise InputError if no actor has started and the cluster has no room for one; warn if it may have later."""
        import ray

        started, _ = ray.wait([actor.started for actor in self._actors], timeout=0)
        if started:
            return
        self._shares.raise_if_no_room(nodes_of_ray())
        if self._is_patient:
            self._is_patient = False
            _LOG.warning("no actor of Ray has started yet: other work has the CPUs or GPUs of the cluster")

    def _result(self, call: ObjectRef) -> Any:
        """The result of a call that has ended. Raises its error, _Died if there is none because of Ray."""
        import ray

        try:
            return ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (HfXlmrError, OSError, MemoryError)):
                raise error.cause from None
            raise error.cause from error
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise _Died(lines[-1][:300] if lines else type(error).__name__) from error
