"""Driver of units on Ray: decoding on CPU workers, the model on its replicas, commits by whichever attempt finishes first.

For each unit three Ray calls are chained: `prepare` (a CPU task: bytes to pixels), `process` (a replica: the model) and
`finish` (a CPU task: tables, commit). Data flows between workers through Ray's object store and never through the driver,
which holds no state that the commits do not hold. At most `units_in_flight` units per replica exist at a time.

bisection.py decides what a failure means for a unit, ray_replicas.py for a replica; workers.py is what runs on the workers.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from foundry.errors import RayLost, UserError
from foundry.units.bisection import OpenUnit, cause_with_limit, is_raised
from foundry.units.cluster import Node, RaySettings, wait_for_head
from foundry.units.commits import Commit, Unit
from foundry.units.ray_replicas import ReplicaHandle, Replicas
from foundry.units.ray_session import cluster_nodes, error_of, is_done, on_node, replicas_use_gpus
from foundry.units.workers import ModelBroken, RunFailed, UnitJob, WindowedUnit, describe, finish_unit, prepare_unit, warm_up

POLL_S = 1.0
LOOK_S = 5.0  # between two looks at Ray itself
STALL_GRACE_S = 300.0  # for starting workers and noticing lost nodes, on top of the time limits
LEAST_LIMIT_S = 60.0  # of a probe
SLOWER = 4.0  # than any call so far: what a probe may be


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
    committed yet; the last two may raise to stop. `replica_bytes`: see RaySettings.slots.

    Raises UserError if the settings ask for more than the cluster has, the model cannot be loaded, a unit cannot be
    finished, or Ray is lost.
    """
    queue = _Queue(units, settings=settings, on_commit=on_commit, on_reject=on_reject)
    try:
        _work_off(job, queue, settings=settings, on_start=on_start, replica_bytes=replica_bytes)
    except (RayLost, RayError) as error:
        raise UserError(
            f"Ray was lost ({error if isinstance(error, RayLost) else describe(error)}): "
            f"run the same command again; {queue.num_committed} units were committed this time"
        ) from error


def _work_off(
    job: UnitJob, queue: "_Queue", *, settings: RaySettings, on_start: Callable[[], None], replica_bytes: float
) -> None:
    nodes = cluster_nodes()
    on_gpus = replicas_use_gpus(settings)
    settings.check(nodes, on_gpus=on_gpus)
    shared = ray.put(job)
    replicas = Replicas(shared, settings=settings, on_gpus=on_gpus, replica_bytes=replica_bytes, on_first_load=on_start)
    watch = _Watch(settings)
    try:
        replicas.start(nodes, most=len(queue.pending))
        num_workers = settings.num_tasks(nodes, most=min(len(queue.pending), len(replicas.handles) * settings.units_in_flight))
        warm = ray.remote(**_task(settings))(warm_up)
        warming = [warm.remote(shared, limit_s=settings.load_timeout_s) for _ in range(num_workers)]
        while queue.pending or queue.calls:
            watch.look()
            if not warming:
                queue.dispatch(shared, replicas.handles, nodes)
            waiting = [*warming, *replicas.loading, *(call.last for call in queue.calls)]
            done, _ = ray.wait(waiting, num_returns=1, timeout=POLL_S, fetch_local=False)
            watch.check_moving(moved=bool(done))
            if warmed := [one for one in warming if is_done(one)]:
                _check_warmed_up(warmed[0], settings)
                warming = []  # one worker is enough to begin with: the others may wait for CPUs that other jobs hold
            replicas.collect()
            queue.collect(replicas)
    finally:
        replicas.kill()


def _task(settings: RaySettings) -> dict[str, Any]:
    """Ray options of a call on a CPU worker."""
    return {"num_cpus": settings.cpus_per_task, "max_retries": 0}


def _check_warmed_up(warming: ray.ObjectRef, settings: RaySettings) -> None:
    error = error_of(warming)
    if error is not None:
        cause = cause_with_limit(error, "load_timeout_s", settings.load_timeout_s)
        raise UserError(f"the workers cannot be made ready: {cause}") from error


class _Watch:
    """Watches that Ray is there and that calls end; else the driver would wait forever."""

    def __init__(self, settings: RaySettings) -> None:
        self._limit_s = max(settings.unit_timeout_s, settings.load_timeout_s) + STALL_GRACE_S
        self._next_look = self._moved_at = time.monotonic()

    def look(self) -> None:
        """Looks whether Ray is still there: calls would wait for a node that is gone. Raises RayLost."""
        if time.monotonic() < self._next_look:
            return
        context = ray.get_runtime_context()
        wait_for_head(context.gcs_address)
        if context.get_node_id() not in {node.node_id for node in cluster_nodes()}:
            raise RayLost("the node of this command is dead")
        self._next_look = time.monotonic() + LOOK_S

    def check_moving(self, *, moved: bool) -> None:
        """Each call ends in time by its own limit: when none does, workers hang past help, or others hold the cluster."""
        if moved:
            self._moved_at = time.monotonic()
        if time.monotonic() - self._moved_at > self._limit_s:
            raise UserError(
                f"nothing has moved for {self._limit_s:.0f} s: the workers hang, or other jobs hold the cluster's CPUs and "
                "GPUs; look at `ray status`, then run the same command again"
            )


@dataclass(eq=False)
class _Call:
    """One chain prepare, process, finish (a probe has no finish) on a replica."""

    state: OpenUnit
    replica: ReplicaHandle
    facts: ray.ObjectRef
    payload: ray.ObjectRef
    output: ray.ObjectRef
    commit: ray.ObjectRef | None
    started_at: float = field(default_factory=time.monotonic)

    @property
    def last(self) -> ray.ObjectRef:
        return self.output if self.commit is None else self.commit


class _Queue:
    """The units that are not committed: `pending`, and the `calls` of those that are in flight."""

    def __init__(
        self,
        units: Iterable[Unit],
        *,
        settings: RaySettings,
        on_commit: Callable[[Commit | None], None],
        on_reject: Callable[[int], None] | None,
    ) -> None:
        self.pending = deque(OpenUnit(unit) for unit in units)
        self.calls: list[_Call] = []
        self.num_committed = 0
        self._slowest_s = 0.0  # of the calls that ended well, with their wait for the replica; 0: none has
        self._settings = settings
        self._on_commit = on_commit
        self._on_reject = on_reject
        self._prepare = ray.remote(num_returns=2, **_task(settings))(prepare_unit)
        self._finish = ray.remote(**_task(settings))(finish_unit)

    def dispatch(self, job: ray.ObjectRef, replicas: Sequence[ReplicaHandle], nodes: Sequence[Node]) -> None:
        """Gives loaded replicas work, the least busy first."""
        busy = Counter(call.replica for call in self.calls)
        for replica in turns(replicas, busy, num_pending=len(self.pending), most=self._settings.units_in_flight):
            self.calls.append(self._start(job, replica, self.pending.popleft(), nodes))

    def collect(self, replicas: Replicas) -> None:
        """Deals with each call that has ended. Raises UserError for a unit that cannot be finished, and where none can."""
        for call in [one for one in self.calls if is_done(one.last)]:
            if call in self.calls:  # else a neighbour of a failed one, started again meanwhile
                self._ended(call, replicas)

    def _start(self, job: ray.ObjectRef, replica: ReplicaHandle, state: OpenUnit, nodes: Sequence[Node]) -> _Call:
        positions, limit_s = state.positions, self._settings.unit_timeout_s
        if state.is_probe:
            limit_s = probe_limit_s(len(positions), state.unit, unit_timeout_s=limit_s, slowest_s=self._slowest_s)
        near = node_of_window(state.unit, nodes)
        where = {} if near is None else on_node(near.node_id, soft=True, if_free=True)
        payload, facts = self._prepare.options(**where).remote(job, state.unit, positions, limit_s=limit_s)
        output = replica.actor.process.remote(payload, one_by_one=state.one_by_one, keep=not state.is_probe, limit_s=limit_s)
        if state.is_probe:
            return _Call(state, replica, facts, payload, output, None)
        results = {"facts": facts, "output": output, "excluded": state.excluded}
        commit = self._finish.remote(job, state.unit, **results, limit_s=limit_s)
        return _Call(state, replica, facts, payload, output, commit)

    def _ended(self, call: _Call, replicas: Replicas) -> None:
        if error_of(call.last) is not None:
            stage, error = _failure(call)
            assert error is not None
            if stage == "process" and _replica_is_gone(error):
                self._replica_died(call.replica, error, replicas)
            else:
                self.calls.remove(call)
                self._failed(call.state, stage, error)
            return
        self.calls.remove(call)
        self._slowest_s = max(self._slowest_s, time.monotonic() - call.started_at)
        if call.commit is None:
            call.state.passed()
            self.pending.appendleft(call.state)
        else:
            self.num_committed += 1
            self._on_commit(ray.get(call.commit))

    def _replica_died(self, replica: ReplicaHandle, error: Exception, replicas: Replicas) -> None:
        """The replica died, or its model broke: a new one replaces it.

        Only the call that it was working on is to blame; those queued behind are started again.
        """
        failed = [call for call in self.calls if call.replica is replica and _failure(call)[0] == "process"]
        self.calls = [call for call in self.calls if call not in failed]
        at_work = [call for call in failed[:1] if is_done(call.payload)]
        self.pending.extendleft(call.state for call in reversed(failed[len(at_work) :]))
        if replica in replicas.handles:
            replicas.replace(replica)
        for call in at_work:
            self._failed(call.state, "process", _failure(call)[1] or error)

    def _failed(self, state: OpenUnit, stage: str, error: Exception) -> None:
        if isinstance(cause := getattr(error, "cause", None), RunFailed):
            raise UserError(str(cause), setting=cause.setting) from error
        num_excluded = len(state.excluded)
        self.pending.appendleft(state)
        message = cause_with_limit(error, "unit_timeout_s", self._settings.unit_timeout_s)
        state.failed(stage, message, died=not is_raised(error))
        if self._on_reject is not None and len(state.excluded) > num_excluded:
            self._on_reject(sum(len(one.excluded) for one in [*self.pending, *(call.state for call in self.calls)]))


def turns(
    replicas: Sequence[ReplicaHandle], busy: Counter[ReplicaHandle], *, num_pending: int, most: int
) -> list[ReplicaHandle]:
    """The loaded replicas that get a pending unit each, in turn: the least busy first, and none more than its share.

    `busy` counts the calls of each. The share, at most `most`, counts replicas that still load, so that the first one to be
    ready does not take the last units for itself.
    """
    share = min(most, math.ceil((num_pending + busy.total()) / len(replicas)))
    taken = [replica for depth in range(share) for replica in replicas if replica.loading is None and busy[replica] <= depth]
    return taken[:num_pending]


def node_of_window(unit: Unit, nodes: Sequence[Node]) -> Node | None:
    """The node that a unit is best prepared on: one for all units of a window, of those with CPUs; None for any."""
    able = sorted((node for node in nodes if node.cpus), key=lambda node: node.node_id)
    if len(able) < 2 or not isinstance(unit, WindowedUnit) or unit.window is None:
        return None
    return able[unit.window % len(able)]


def probe_limit_s(num_images: int, unit: Unit, *, unit_timeout_s: float, slowest_s: float) -> float:
    """Time limit in seconds of a probe of this many images of a unit.

    It is their share of the unit's, so that an image that hangs is found in hours, not in days; but a multiple of `slowest_s`,
    the slowest call so far, since a part may take as long as a whole. Before any call has ended (0), nothing says how slow a
    good image is, and one that is alone gets all of the time.
    """
    least = SLOWER * slowest_s
    if not slowest_s and num_images == 1:
        least = unit_timeout_s
    return min(unit_timeout_s, max(unit_timeout_s * num_images / unit.num_images, least, LEAST_LIMIT_S))


def _failure(call: _Call) -> tuple[str, Exception | None]:
    """The stage that a call failed in, with its error, or is in, with None. Never waits."""
    if not is_done(call.output):
        return "process", None
    error = error_of(call.output)
    if error is None:
        return "finish", error_of(call.last) if is_done(call.last) else None
    prepare_error = error_of(call.facts) if is_done(call.facts) else None
    return ("process", error) if prepare_error is None else ("prepare", prepare_error)


def _replica_is_gone(error: Exception) -> bool:
    return isinstance(error, RayActorError) or (isinstance(error, RayTaskError) and isinstance(error.cause, ModelBroken))
