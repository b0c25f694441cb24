"""Runs the units of a plan on Ray: decoding on CPU workers, the model on its own replicas, commits by whoever finishes.

For each unit three Ray calls are chained: `prepare` (a CPU task: bytes to pixels), `process` (a replica: the model) and
`finish` (a CPU task: tables, commit). Data flows between workers through Ray's object store and never through the driver,
which holds no state that the commits do not hold. At most `units_in_flight` units per replica exist at a time.

What a failure means for a unit is decided in culprits.py, what runs on the workers is in unit_workers.py.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, RayActorError, RayError, RayTaskError

from foundry.errors import UserError
from foundry.units.bisection import OpenUnit, cause_of, is_raised
from foundry.units.cluster import Node, RayLost, RaySettings, wait_for_head
from foundry.units.commits import Commit, Unit
from foundry.units.ray_session import cluster_nodes, on_node, replicas_use_gpus
from foundry.units.workers import ModelBroken, Replica, UnitJob, describe, finish_unit, prepare_unit, warm_up

POLL_S = 1.0
LOOK_S = 5.0  # between two looks at Ray itself
STALL_GRACE_S = 300.0  # for starting workers and noticing lost nodes, on top of the time limits
LOAD_TRIES = 2
LEAST_LIMIT_S = 60.0


def run_units(
    job: UnitJob,
    units: Iterable[Unit],
    *,
    settings: RaySettings,
    on_start: Callable[[], None],
    on_commit: Callable[[Commit | None], None],
    on_reject: Callable[[int], None] | None = None,
    replica_bytes: float = 0,
) -> None:
    """Runs all units; returns when each is committed. `on_start` is called once the first model is loaded, `on_commit`
    after each unit, `on_reject` after each image that was found to fail alone, with their number in the units that are not
    committed yet; the last two may raise to stop. `replica_bytes`: see RaySettings.places.

    Raises UserError where the settings ask for more than the cluster has, the model cannot be loaded, a unit cannot be
    finished, or Ray is lost.
    """
    driver = _Driver(
        job,
        units,
        settings=settings,
        on_start=on_start,
        on_commit=on_commit,
        on_reject=on_reject,
        replica_bytes=replica_bytes,
    )
    try:
        driver.run()
    except (RayLost, RayError) as error:
        raise UserError(
            f"Ray was lost ({error if isinstance(error, RayLost) else describe(error)}): "
            f"run the same command again; {driver.num_committed} units were committed this time"
        ) from error


@dataclass(eq=False)
class _Place:
    """A replica: its actor, the node that it is meant for, and `loading` until the model is loaded."""

    actor: Any
    node_id: str
    loading: ray.ObjectRef | None
    failed_loads: int = 0


@dataclass(eq=False)
class _Call:
    """One chain prepare, process, finish (a probe has no finish) on a replica."""

    state: OpenUnit
    replica: _Place
    facts: ray.ObjectRef
    payload: ray.ObjectRef
    output: ray.ObjectRef
    commit: ray.ObjectRef | None

    @property
    def last(self) -> ray.ObjectRef:
        return self.output if self.commit is None else self.commit


class _Driver:
    def __init__(
        self,
        job: UnitJob,
        units: Iterable[Unit],
        *,
        settings: RaySettings,
        on_start: Callable[[], None],
        on_commit: Callable[[Commit | None], None],
        on_reject: Callable[[int], None] | None,
        replica_bytes: float,
    ) -> None:
        self.settings = settings
        self.replica_bytes = replica_bytes
        self.on_start: Callable[[], None] | None = on_start
        self.on_commit = on_commit
        self.on_reject = on_reject
        self.num_committed = 0
        self.next_look = self.moved_at = time.monotonic()
        self.on_gpus = False
        self.options: dict[str, Any] = {}
        self.pending = deque(OpenUnit(unit) for unit in units)
        self.calls: list[_Call] = []
        self.replicas: list[_Place] = []
        self.job = job
        task = {"num_cpus": settings.cpus_per_task, "max_retries": 0}
        self.prepare = ray.remote(num_returns=2, **task)(prepare_unit)
        self.finish = ray.remote(**task)(finish_unit)
        self.warm_up = ray.remote(**task)(warm_up)
        self.warming: ray.ObjectRef | None = None

    def run(self) -> None:
        nodes = cluster_nodes()
        self.on_gpus = replicas_use_gpus(self.settings)
        self.options = self.settings.replica_options(nodes, on_gpus=self.on_gpus, replica_bytes=self.replica_bytes)
        self.settings.check(nodes, on_gpus=self.on_gpus)
        self.job = ray.put(self.job)
        self.warming = self.warm_up.remote(self.job, limit_s=self.settings.load_timeout_s)
        self.replicas = [self._new_replica(node_id) for node_id in self._places(nodes)[: len(self.pending)]]
        try:
            while self.pending or self.calls:
                self._look()
                if self.warming is None:
                    self._dispatch()
                self._collect()
        finally:
            with suppress(RayError):  # Ray may be gone, and its actors with it
                for replica in self.replicas:
                    ray.kill(replica.actor)

    def _places(self, nodes: list[Node]) -> list[str]:
        return self.settings.places(nodes, on_gpus=self.on_gpus, replica_bytes=self.replica_bytes)

    def _look(self) -> None:
        """Looks whether Ray is still there. Without it, calls would wait for ever for a node that is gone."""
        if time.monotonic() < self.next_look:
            return
        context = ray.get_runtime_context()
        wait_for_head(context.gcs_address)
        if context.get_node_id() not in {node.node_id for node in cluster_nodes()}:
            raise RayLost("the node of this command is dead")
        self.next_look = time.monotonic() + LOOK_S

    def _new_replica(self, node_id: str, *, failed_loads: int = 0) -> _Place:
        placed = {} if self.on_gpus else on_node(node_id, soft=True)  # where a GPU is free, Ray knows itself
        actor = ray.remote(max_restarts=0, **self.options | placed)(Replica).remote(self.job)
        return _Place(actor, node_id, actor.load.remote(self.settings.load_timeout_s), failed_loads)

    def _dispatch(self) -> None:
        """Gives each loaded replica work, the least busy first, and none more than its share of what is left.

        The share counts replicas that still load, so that the first one to be ready does not take the last units for itself.
        """
        most = min(self.settings.units_in_flight, math.ceil((len(self.pending) + len(self.calls)) / len(self.replicas)))
        busy = Counter(call.replica for call in self.calls)
        for depth in range(most):
            for replica in self.replicas:
                if self.pending and replica.loading is None and busy[replica] <= depth:
                    self.calls.append(self._start(replica, self.pending.popleft()))
                    busy[replica] += 1

    def _start(self, replica: _Place, state: OpenUnit) -> _Call:
        positions, limit_s = state.positions, self.settings.unit_timeout_s
        if state.is_probe:  # a part of a unit gets its part of the time: one that hangs is found in hours, not in days
            limit_s = max(limit_s * len(positions) / state.unit.num_images, min(limit_s, LEAST_LIMIT_S))
        payload, facts = self.prepare.remote(self.job, state.unit, positions, limit_s=limit_s)
        output = replica.actor.process.remote(payload, one_by_one=state.one_by_one, keep=not state.is_probe, limit_s=limit_s)
        if state.is_probe:
            return _Call(state, replica, facts, payload, output, None)
        results = {"facts": facts, "output": output, "excluded": state.excluded}
        return _Call(
            state, replica, facts, payload, output, self.finish.remote(self.job, state.unit, **results, limit_s=limit_s)
        )

    def _collect(self) -> None:
        """Waits for anything to happen and deals with all that has. Raises UserError where nothing can happen any more."""
        waiting = [self.warming, *(replica.loading for replica in self.replicas), *(call.last for call in self.calls)]
        done, _ = ray.wait([ref for ref in waiting if ref is not None], num_returns=1, timeout=POLL_S, fetch_local=False)
        self._check_moving(moved=bool(done))
        if self.warming is not None and _is_done(self.warming):
            self._warmed_up()
        for replica in [one for one in self.replicas if one.loading is not None and _is_done(one.loading)]:
            self._loaded(replica)
        for call in [one for one in self.calls if _is_done(one.last)]:
            if call in self.calls:  # else a neighbour of a failed one, started again meanwhile
                self._ended(call)

    def _check_moving(self, *, moved: bool) -> None:
        """Each call ends in time by its own limit: when none does, workers hang past help, or others hold the cluster."""
        if moved:
            self.moved_at = time.monotonic()
        limit_s = max(self.settings.unit_timeout_s, self.settings.load_timeout_s) + STALL_GRACE_S
        if time.monotonic() - self.moved_at > limit_s:
            raise UserError(
                f"nothing has moved for {limit_s:.0f} s: the workers hang, or other jobs hold the cluster's CPUs and GPUs; "
                "look at `ray status`, then run the same command again"
            )

    def _warmed_up(self) -> None:
        assert self.warming is not None
        error = _error(self.warming)
        if error is not None:
            raise UserError(f"the workers cannot be made ready: {self._with_limit(error, 'load_timeout_s')}") from error
        self.warming = None

    def _loaded(self, replica: _Place) -> None:
        assert replica.loading is not None
        error = _error(replica.loading)
        if error is None:
            replica.loading, replica.failed_loads = None, 0
            if self.on_start is not None:
                self.on_start()
                self.on_start = None
            return
        replica.failed_loads += 1
        hopeless = is_raised(error) and self.on_start is not None  # it raised where none has ever loaded: it will again
        if hopeless or replica.failed_loads >= LOAD_TRIES:
            ray.kill(replica.actor)
            self.replicas.remove(replica)
        else:
            self._renew(replica)
        if not self.replicas:
            raise UserError(f"the model could not be loaded: {self._with_limit(error, 'load_timeout_s')}") from error

    def _renew(self, replica: _Place) -> None:
        """Puts a new replica in the place of a dead one, or on another node; leaves it out where the rest hold no more."""
        ray.kill(replica.actor)
        self.replicas.remove(replica)
        taken = [one.node_id for one in self.replicas]
        places = self._places(cluster_nodes())
        if len(places) > len(taken):
            free = Counter(places) - Counter(taken)
            self.replicas.append(self._new_replica(next(free.elements()), failed_loads=replica.failed_loads))
        elif not taken:
            raise RayLost("no node is left that can hold the model")

    def _ended(self, call: _Call) -> None:
        if _error(call.last) is not None:
            stage, error = _failure(call)
            assert error is not None
            if stage == "process" and _replica_is_gone(error):
                self._replace(call.replica, error)
            else:
                self.calls.remove(call)
                self._failed(call.state, stage, error)
            return
        self.calls.remove(call)
        if call.commit is None:
            call.state.passed()
            self.pending.appendleft(call.state)
        else:
            self.num_committed += 1
            self.on_commit(ray.get(call.commit))

    def _replace(self, replica: _Place, error: Exception) -> None:
        """The replica died, or its model broke: a new one takes its place.

        Only the call that it was working on is to blame; those queued behind are started again.
        """
        failed = [call for call in self.calls if call.replica is replica and _failure(call)[0] == "process"]
        self.calls = [call for call in self.calls if call not in failed]
        at_work = [call for call in failed[:1] if _is_done(call.payload)]
        self.pending.extendleft(call.state for call in reversed(failed[len(at_work) :]))
        if replica in self.replicas:
            self._renew(replica)
        for call in at_work:
            self._failed(call.state, "process", _failure(call)[1] or error)

    def _failed(self, state: OpenUnit, stage: str, error: Exception) -> None:
        num_excluded = len(state.excluded)
        self.pending.appendleft(state)
        state.failed(stage, self._with_limit(error, "unit_timeout_s"), died=not is_raised(error))
        if self.on_reject is not None and len(state.excluded) > num_excluded:
            self.on_reject(sum(len(one.excluded) for one in [*self.pending, *(call.state for call in self.calls)]))

    def _with_limit(self, error: Exception, limit: str) -> str:
        """The message of an error; that of a death names the limit which may have been the cause of it."""
        ending = "" if is_raised(error) else f" (--ray.{limit} is {getattr(self.settings, limit):g})"
        return cause_of(error) + ending


def _is_done(ref: ray.ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])


def _failure(call: _Call) -> tuple[str, Exception | None]:
    """The stage that a call failed in, with its error, or is in, with None. Never waits."""
    if not _is_done(call.output):
        return "process", None
    error = _error(call.output)
    if error is None:
        return "finish", _error(call.last) if _is_done(call.last) else None
    prepare_error = _error(call.facts) if _is_done(call.facts) else None
    return ("process", error) if prepare_error is None else ("prepare", prepare_error)


def _error(ref: ray.ObjectRef) -> Exception | None:
    """The error of an ended call. Raises RayLost."""
    try:
        ray.get(ref)
    except LocalRayletDiedError as error:
        raise RayLost(describe(error)) from error
    except RayError as error:
        found: Exception = error
        return found
    return None


def _replica_is_gone(error: Exception) -> bool:
    return isinstance(error, RayActorError) or (isinstance(error, RayTaskError) and isinstance(error.cause, ModelBroken))
