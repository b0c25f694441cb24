"""Runs the units of a plan on Ray: decoding on CPU workers, the model on its own replicas, commits by whoever finishes.

For each unit three Ray calls are chained: `prepare` (a CPU task: bytes to pixels), `process` (a replica: the model) and
`finish` (a CPU task: tables, commit). Data flows between workers through Ray's object store and never through the driver,
which holds no state that the commits do not hold. At most `units_in_flight` units per replica exist at a time.

A unit that keeps failing is searched by halves for the images that fail alone. Those are rejected with a reason, and the unit
is run again without them, so that the result does not depend on how it was found.
"""

import logging
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dataset_builder.cluster import RaySettings
from dataset_builder.command_line import UserError
from dataset_builder.units import Commit, Failure, Unit

TRIES = 2
POLL_S = 1.0
CONNECT_S = 5.0
START_TRIES = 2


class UnitJob(Protocol):
    """What a kind of work does with a unit. Instances are pickled to the workers, so they hold settings only."""

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[Any, Any]:
        """On a CPU worker: (payload for the model, facts for `finish`) of the images at these positions of the unit."""

    def warm_up(self) -> None:
        """On a CPU worker, while the models load: whatever `prepare` and `finish` load once per process."""

    def load_engine(self) -> Any:
        """On a replica, once: the model."""

    def process(self, engine: Any, payload: Any, *, one_by_one: bool) -> Any:
        """On a replica: the model's output for a payload; `one_by_one` asks for the smallest batches."""

    def finish(self, unit: Unit, *, facts: Any, output: Any, excluded: dict[int, Failure]) -> Commit | None:
        """On a CPU worker: writes and commits; None where another attempt had committed already."""


def run_units(
    job: UnitJob,
    units: Iterable[Unit],
    *,
    settings: RaySettings,
    on_start: Callable[[], None],
    on_commit: Callable[[Commit | None], None],
) -> None:
    """Runs all units; returns when each is committed. `on_start` is called once the first model is loaded, `on_commit`
    after each unit; it may raise to stop.

    Raises UserError where the model cannot be loaded or a unit cannot be finished.
    """
    _Driver(job, units, settings=settings, on_start=on_start, on_commit=on_commit).run()


def start_ray(settings: RaySettings) -> None:
    """Attaches to the Ray that the settings name, or starts one of our own that ends with this process.

    Does nothing where this process has a Ray already. Raises UserError where the address does not answer.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = settings.resolved_address
    if address is None:
        _start_own_ray()
        return
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        raise UserError(f"no Ray answers at {address} ({_cause(error)}): start one, or leave the address out") from None


def _start_own_ray() -> None:
    for _ in range(START_TRIES):
        try:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # noqa: BLE001 - Ray raises a bare Exception where its processes take longer than it waits
            ray.shutdown()
            failed = _cause(error)
        else:
            return
    raise UserError(f"Ray could not start on this machine ({failed}): run this again when it is less busy")


def replicas_use_gpus(settings: RaySettings) -> bool:
    """Whether the replicas will run on GPUs; asks the Ray that was started."""
    return settings.uses_gpus(ray.cluster_resources())


def check_visible(paths: Mapping[str, str]) -> None:
    """Raises UserError unless every node sees each local path, with the text in it where a text is given."""
    for node in (node for node in ray.nodes() if node["Alive"]):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        unseen = ray.get(ray.remote(num_cpus=0, scheduling_strategy=strategy)(_unseen).remote(dict(paths)))
        if unseen:
            raise UserError(
                f"{', '.join(unseen)}: not visible on node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}); "
                "use a folder that all nodes share, or object storage"
            )


def _unseen(paths: dict[str, str]) -> list[str]:
    plain = {path: path.removeprefix("file://") for path in paths}
    return [
        path
        for path, text in paths.items()
        if not os.path.exists(plain[path]) or (text and text not in Path(plain[path]).read_text())
    ]


def _check_answers(address: str) -> None:
    """A quick look at host:port, since Ray itself takes a minute to give up."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"no Ray answers at {address} ({error}): start one, or leave the address out") from None


@dataclass
class _UnitState:
    """What the driver knows of a unit that is not committed. `suspects` is not empty while culprits are searched."""

    unit: Unit
    failures: int = 0
    one_by_one: bool = False
    searched: bool = False
    excluded: dict[int, Failure] = field(default_factory=dict)
    suspects: deque[list[int]] = field(default_factory=deque)

    @property
    def positions(self) -> list[int]:
        if self.suspects:
            return self.suspects[0]
        return [position for position in range(self.unit.num_images) if position not in self.excluded]

    def search(self, positions: list[int]) -> None:
        """Replaces the front suspect by its two halves."""
        self.failures = 0
        middle = (len(positions) + 1) // 2
        halves = [half for half in (positions[:middle], positions[middle:]) if half]
        self.suspects.extendleft(reversed(halves))


@dataclass
class _Call:
    """One chain prepare, process, finish (a probe has no finish) on a replica."""

    state: _UnitState
    facts: ray.ObjectRef
    payload: ray.ObjectRef
    output: ray.ObjectRef
    commit: ray.ObjectRef | None
    head_since: float = 0.0

    @property
    def last(self) -> ray.ObjectRef:
        return self.output if self.commit is None else self.commit


@dataclass
class _Replica:
    actor: Any
    ready: ray.ObjectRef | None
    calls: list[_Call] = field(default_factory=list)

    def head(self) -> _Call | None:
        """The call that the actor is working on, or will next: it runs them in order."""
        for call in self.calls:
            if not _is_done(call.output):
                return call
        return None


class _Engine:
    """The actor around the model."""

    def __init__(self, job: UnitJob) -> None:
        self.job = job
        self.engine = job.load_engine()

    def ready(self) -> bool:
        return True

    def process(self, payload: Any, one_by_one: bool) -> Any:
        return self.job.process(self.engine, payload, one_by_one=one_by_one)


def _prepare(job: UnitJob, unit: Unit, positions: Sequence[int]) -> tuple[Any, Any]:
    return job.prepare(unit, positions)


def _finish(job: UnitJob, unit: Unit, *, facts: Any, output: Any, excluded: dict[int, Failure]) -> Commit | None:
    return job.finish(unit, facts=facts, output=output, excluded=excluded)


class _Driver:
    def __init__(
        self,
        job: UnitJob,
        units: Iterable[Unit],
        *,
        settings: RaySettings,
        on_start: Callable[[], None],
        on_commit: Callable[[Commit | None], None],
    ) -> None:
        self.settings = settings
        self.on_start: Callable[[], None] | None = on_start
        self.on_commit = on_commit
        self.pending = deque(_UnitState(unit) for unit in units)
        self.job = ray.put(job)
        self.prepare = ray.remote(num_cpus=settings.cpus_per_task, num_returns=2, max_retries=0)(_prepare)
        self.finish = ray.remote(num_cpus=settings.cpus_per_task, max_retries=0)(_finish)
        self.warm = ray.remote(num_cpus=settings.cpus_per_task, max_retries=0)(lambda job: job.warm_up()).remote(self.job)
        self.replicas: list[_Replica] = []

    def run(self) -> None:
        num_replicas = self.settings.count_replicas(ray.cluster_resources())
        self.replicas = [self._new_replica() for _ in range(max(1, min(num_replicas, len(self.pending))))]
        try:
            ray.wait([self.warm], fetch_local=False)
            while self.pending or any(replica.calls for replica in self.replicas):
                self._dispatch()
                self._collect()
                self._stop_late_calls()
        finally:
            for replica in self.replicas:
                ray.kill(replica.actor)

    def _new_replica(self) -> _Replica:
        options = self.settings.replica_options(ray.cluster_resources())
        actor = ray.remote(max_restarts=0, **options)(_Engine).remote(self.job)
        return _Replica(actor=actor, ready=actor.ready.remote())

    def _dispatch(self) -> None:
        """Gives each loaded replica work, the least busy first, and none more than its share of what is left.

        The share counts replicas that still load, so that the first one to be ready does not take the last units for itself.
        """
        left = len(self.pending) + sum(len(replica.calls) for replica in self.replicas)
        most = min(self.settings.units_in_flight, math.ceil(left / len(self.replicas)))
        for depth in range(most):
            for replica in self.replicas:
                if self.pending and replica.ready is None and len(replica.calls) <= depth:
                    self._start(replica, self.pending.popleft())

    def _start(self, replica: _Replica, state: _UnitState) -> None:
        payload, facts = self.prepare.remote(self.job, state.unit, state.positions)
        output = replica.actor.process.remote(payload, state.one_by_one)
        probe = bool(state.suspects)
        results = {"facts": facts, "output": output, "excluded": state.excluded}
        commit = None if probe else self.finish.remote(self.job, state.unit, **results)
        replica.calls.append(_Call(state, facts, payload, output, commit))

    def _collect(self) -> None:
        """Waits for anything to happen and deals with all that has."""
        loading = [replica.ready for replica in self.replicas if replica.ready is not None]
        running = [call.last for replica in self.replicas for call in replica.calls]
        ray.wait(loading + running, num_returns=1, timeout=POLL_S, fetch_local=False)
        for replica in list(self.replicas):
            if replica.ready is not None and _is_done(replica.ready):
                self._loaded(replica)
            for call in [call for call in replica.calls if _is_done(call.last)]:
                if call in replica.calls:
                    self._ended(replica, call)

    def _loaded(self, replica: _Replica) -> None:
        assert replica.ready is not None
        try:
            ray.get(replica.ready)
            replica.ready = None
            if self.on_start is not None:
                self.on_start()
                self.on_start = None
        except RayError as error:
            self.replicas.remove(replica)
            if not self.replicas:
                raise UserError(f"the model could not be loaded: {_cause(error)}") from error

    def _ended(self, replica: _Replica, call: _Call) -> None:
        stage, error = _outcome(call)
        if error is None:
            replica.calls.remove(call)
            self._succeeded(call)
        elif stage == "process":
            self._replace(replica, error)
        else:
            replica.calls.remove(call)
            self._failed(call.state, stage, error)

    def _succeeded(self, call: _Call) -> None:
        if call.commit is not None:
            self.on_commit(ray.get(call.commit))
            return
        call.state.suspects.popleft()
        call.state.failures = 0
        self.pending.appendleft(call.state)

    def _replace(self, replica: _Replica, error: Exception) -> None:
        """The replica died or raised, which may have left its device unusable: a new one takes its place.

        Only the call that it was working on is to blame; those queued behind are started again.
        """
        failed = [call for call in replica.calls if not _is_done(call.output) or _outcome(call)[0] == "process"]
        replica.calls = [call for call in replica.calls if call not in failed]
        at_work = [call for call in failed[:1] if _is_done(call.payload)]
        self.pending.extendleft(call.state for call in reversed(failed[len(at_work) :]))
        for call in at_work:
            self._failed(call.state, "process", error)
        ray.kill(replica.actor)
        fresh = self._new_replica()
        replica.actor, replica.ready = fresh.actor, fresh.ready

    def _failed(self, state: _UnitState, stage: str, error: Exception) -> None:
        """Decides what comes next for a unit: once more, a search for the culprits, or the end of the run."""
        died = not isinstance(error, RayTaskError) or isinstance(error.cause, RayError)  # the latter: an argument was lost
        state.failures += 1
        if state.failures >= TRIES or (stage == "process" and not died):
            if stage == "finish" or (stage == "prepare" and not died):
                raise UserError(f"unit {state.unit.number} failed in {stage}: {_cause(error)}") from error
            self._blame(state, Failure(reason="worker_died" if died else "model_error", message=_cause(error)))
        self.pending.appendleft(state)

    def _blame(self, state: _UnitState, failure: Failure) -> None:
        positions = state.positions
        if state.suspects:
            state.suspects.popleft()
            if len(positions) == 1:
                state.excluded[positions[0]] = failure
                state.failures, state.searched = 0, False
                return
        elif state.searched:
            if state.one_by_one:
                raise UserError(
                    f"unit {state.unit.number} fails although each of its images passes alone ({failure.message}): "
                    "if memory ran out, start a new --out with a smaller --unit_size"
                )
            state.one_by_one, state.failures = True, 0
            return
        else:
            state.searched = True
        state.search(positions)

    def _stop_late_calls(self) -> None:
        """The watchdog: ends what has been at the head of its replica for longer than `unit_timeout_s`."""
        now = time.monotonic()
        for replica in self.replicas:
            call = replica.head()
            if call is None:
                continue
            call.head_since = call.head_since or now
            if now - call.head_since > self.settings.unit_timeout_s:
                call.head_since = now
                if _is_done(call.payload):
                    ray.kill(replica.actor)
                else:
                    ray.cancel(call.payload, force=True)


def _is_done(ref: ray.ObjectRef) -> bool:
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])


def _outcome(call: _Call) -> tuple[str, Exception | None]:
    """The first stage of an ended chain that failed, and its error; ("", None) where all went well."""
    if _error(call.last) is None:
        return "", None
    stages = [("prepare", call.facts), ("process", call.output), ("finish", call.last)]
    failed = ((stage, _error(ref)) for stage, ref in stages if _is_done(ref))
    return next((stage, error) for stage, error in failed if error is not None)


def _error(ref: ray.ObjectRef) -> Exception | None:
    try:
        ray.get(ref)
    except RayError as error:
        found: Exception = error
        return found
    return None


def _cause(error: Exception) -> str:
    """One line on what happened, without Ray's own traceback."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    if isinstance(error, ActorDiedError) and "creation task" in lines[0]:
        return lines[-1][:500]
    return f"{type(cause).__name__}: {lines[0]}"[:500]
