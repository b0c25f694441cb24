"""Replicas of the model on Ray: one actor in each slot that the nodes have, loaded, and replaced when it dies."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from foundry.errors import RayLost, UserError
from foundry.units.bisection import cause_with_limit, is_raised
from foundry.units.cluster import Node, RaySettings
from foundry.units.ray_session import cluster_nodes, error_of, is_done, on_node
from foundry.units.workers import Replica

LOAD_TRIES = 2


@dataclass(eq=False)
class ReplicaHandle:
    """A replica as the driver knows it: its actor, the node that it is meant for, and `loading` until the model is loaded."""

    actor: Any
    node_id: str
    loading: ray.ObjectRef | None
    failed_loads: int = 0


class Replicas:
    """The replicas of one run, `handles`. `on_first_load` is called once, when the first one has loaded the model.

    `job` is a reference to a UnitJob; `on_gpus` is what RaySettings.uses_gpus said at the start; `replica_bytes`: see
    RaySettings.slots.
    """

    def __init__(
        self,
        job: ray.ObjectRef,
        *,
        settings: RaySettings,
        on_gpus: bool,
        replica_bytes: float,
        on_first_load: Callable[[], None],
    ) -> None:
        self.handles: list[ReplicaHandle] = []
        self._job = job
        self._settings = settings
        self._on_gpus = on_gpus
        self._replica_bytes = replica_bytes
        self._on_first_load: Callable[[], None] | None = on_first_load
        self._options: dict[str, Any] = {}

    @property
    def loading(self) -> list[ray.ObjectRef]:
        """The loads that are running."""
        return [handle.loading for handle in self.handles if handle.loading is not None]

    def start(self, nodes: Sequence[Node], *, most: int) -> None:
        """Starts a replica in each slot of the nodes, at most `most`."""
        self._options = self._settings.replica_options(nodes, on_gpus=self._on_gpus, replica_bytes=self._replica_bytes)
        self.handles = [self._launch(node_id) for node_id in self._slots(nodes)[:most]]

    def collect(self) -> None:
        """Deals with each load that has ended: a failed one is tried again. Raises UserError if no replica is left."""
        for handle in [one for one in self.handles if one.loading is not None and is_done(one.loading)]:
            assert handle.loading is not None
            error = error_of(handle.loading)
            if error is None:
                self._loaded(handle)
            else:
                self._failed(handle, error)

    def replace(self, handle: ReplicaHandle) -> None:
        """Starts a new replica in the slot of a dead one, or on another node; in none where the others have all slots.

        Raises RayLost if no node is left that holds a replica.
        """
        ray.kill(handle.actor)
        self.handles.remove(handle)
        taken = [one.node_id for one in self.handles]
        slots = self._slots(cluster_nodes())
        if len(slots) > len(taken):
            free = Counter(slots) - Counter(taken)
            self.handles.append(self._launch(next(free.elements()), failed_loads=handle.failed_loads))
        elif not taken:
            raise RayLost("no node is left that can hold the model")

    def kill(self) -> None:
        """Ends all replicas; Ray may be gone, and its actors with it."""
        with suppress(RayError):
            for handle in self.handles:
                ray.kill(handle.actor)

    def _slots(self, nodes: Sequence[Node]) -> list[str]:
        return self._settings.slots(nodes, on_gpus=self._on_gpus, replica_bytes=self._replica_bytes)

    def _launch(self, node_id: str, *, failed_loads: int = 0) -> ReplicaHandle:
        node = {} if self._on_gpus else on_node(node_id, soft=True)  # where a GPU is free, Ray knows itself
        actor = ray.remote(max_restarts=0, **self._options | node)(Replica).remote(self._job)
        return ReplicaHandle(actor, node_id, actor.load.remote(self._settings.load_timeout_s), failed_loads)

    def _loaded(self, handle: ReplicaHandle) -> None:
        handle.loading, handle.failed_loads = None, 0
        if self._on_first_load is not None:
            self._on_first_load()
            self._on_first_load = None

    def _failed(self, handle: ReplicaHandle, error: Exception) -> None:
        handle.failed_loads += 1
        hopeless = is_raised(error) and self._on_first_load is not None  # it raised where none has ever loaded: it will again
        if hopeless or handle.failed_loads >= LOAD_TRIES:
            ray.kill(handle.actor)
            self.handles.remove(handle)
        else:
            self.replace(handle)
        if not self.handles:
            cause = cause_with_limit(error, "load_timeout_s", self._settings.load_timeout_s)
            raise UserError(f"the model could not be loaded: {cause}") from error
