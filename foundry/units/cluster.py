"""Cluster settings: which Ray to use, how many replicas its nodes hold, with how many threads. Does not import Ray."""

import itertools
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.errors import RayLost, UserError
from foundry.hardware import cpu_environment
from foundry.storage.locations import is_local_path
from foundry.wording import counted

_GPU_TYPE = "accelerator_type:"
CONNECT_S = 5.0
POLL_S = 1.0
LOST_S = 20.0  # Ray's head may be away for so long; after 60 s Ray ends the process without a word to us


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster that is alive, with all that it has, taken or not."""

    node_id: str
    name: str
    cpus: float
    gpus: float
    memory_bytes: float = 0.0
    """Memory that Ray gives to work: what was free when it started, without its object store; 0: unknown."""
    gpu_types: tuple[str, ...] = ()
    """GPU types as Ray names them: A100, H100."""


@dataclass(frozen=True)
class RaySettings:
    """Settings of the Ray cluster and of the replicas on it. The results do not depend on them."""

    address: str | None = None
    """Address of a running Ray (host:port or auto); default: RAY_ADDRESS, which a Ray job sets, otherwise a local Ray is
    started."""
    num_replicas: int = 0
    """Number of replicas of the model; 0: one per GPU, or without GPUs as many as cores and memory allow."""
    gpus_per_replica: float = 1.0
    """Number of GPUs per replica, if the cluster has any: a fraction below 1 or a whole number; 0: run on CPUs."""
    cpus_per_replica: int = 0
    """Number of cores per replica on CPUs, and of threads of its model; 0: one each, or more if memory or num_replicas leaves
    cores free."""
    cpus_per_task: float = 1.0
    """Number of Ray CPUs per task that decodes or commits."""
    units_in_flight: int = 3
    """Maximum number of units per replica in progress at a time: being decoded, in the model or being committed."""
    unit_timeout_s: float = 3600.0
    """Seconds that one call may work on a unit (decode it, run the model, commit it) before it is stopped and retried."""
    load_timeout_s: float = 1800.0
    """Seconds that a replica may take to load the model before it is stopped and retried."""
    wait_for_gpus: int = 0
    """Number of GPUs to wait for before the work starts, on a cluster that adds nodes by itself; 0: do not wait."""
    wait_for_gpus_s: float = 1800.0
    """Maximum time to wait for these GPUs, in seconds."""
    replica_python: str | None = None
    """Interpreter of the replicas, with the same path on every node, for an engine that needs other library versions; it needs
    the same Python and Ray, and this package. Default: this interpreter."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                ("num_replicas", "0 or more", self.num_replicas >= 0),
                (
                    "gpus_per_replica",
                    "a fraction below 1 or a whole number",
                    0 <= self.gpus_per_replica < 1 or (self.gpus_per_replica >= 1 and self.gpus_per_replica % 1 == 0),
                ),
                ("cpus_per_replica", "0 or more", self.cpus_per_replica >= 0),
                ("cpus_per_task", "above 0", self.cpus_per_task > 0),
                ("units_in_flight", "1 or more", self.units_in_flight >= 1),
                ("unit_timeout_s", "above 0", self.unit_timeout_s > 0),
                ("load_timeout_s", "above 0", self.load_timeout_s > 0),
                ("wait_for_gpus", "0 or more", self.wait_for_gpus >= 0),
                ("wait_for_gpus_s", "above 0", self.wait_for_gpus_s > 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def resolved_address(self) -> str | None:
        """The address to attach to; None for a Ray of this process."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def check(self, nodes: Sequence[Node], *, on_gpus: bool) -> None:
        """Raises UserError for settings that no node can meet: Ray would wait forever for one that can."""
        cpus, gpus = max(node.cpus for node in nodes), max(node.gpus for node in nodes)
        fitting = len(self._all_slots(nodes, on_gpus=on_gpus))
        problems = [
            f"ray.{name} {getattr(self, name):g}: {found}"
            for name, found, holds in [
                ("cpus_per_task", f"the largest node has {cpus:g} CPUs", self.cpus_per_task <= cpus),
                ("cpus_per_replica", f"the largest node has {cpus:g} CPUs", on_gpus or self.cpus_per_replica <= cpus),
                ("gpus_per_replica", f"the largest node has {gpus:g} GPUs", not on_gpus or self.gpus_per_replica <= gpus),
                ("num_replicas", f"the GPUs hold {fitting}", not on_gpus or fitting == 0 or self.num_replicas <= fitting),
            ]
            if not holds
        ]
        if problems:
            raise UserError(f"{'; '.join(problems)}: give at most that, or a larger cluster")

    def uses_gpus(self, resources: Mapping[str, float]) -> bool:
        """True where the cluster has GPUs and a replica wants one."""
        return resources.get("GPU", 0) > 0 and self.gpus_per_replica > 0

    def slots(self, nodes: Sequence[Node], *, on_gpus: bool, replica_bytes: float = 0) -> list[str]:
        """Slots of the replicas, the node id of each, spread evenly: as many as the nodes hold, or `num_replicas`.

        `on_gpus`: what uses_gpus said at the start, since a run that has lost its GPUs must not continue on CPUs, where
        captions differ. Beyond the number of cores, replicas are placed on the nodes in turn and share cores.
        `replica_bytes`: what a replica on a CPU takes of a node's memory; 0: unknown. `num_replicas` takes precedence.
        """
        if not self.num_replicas:
            return self._all_slots(nodes, on_gpus=on_gpus, replica_bytes=replica_bytes)
        slots = self._all_slots(nodes, on_gpus=on_gpus)
        repeated = slots if on_gpus else itertools.cycle(slots)
        return list(itertools.islice(repeated, self.num_replicas))

    def _all_slots(self, nodes: Sequence[Node], *, on_gpus: bool, replica_bytes: float = 0) -> list[str]:
        held = {
            node.node_id: int(node.gpus / self.gpus_per_replica if on_gpus else node.cpus / (self.cpus_per_replica or 1))
            for node in nodes
        }
        if replica_bytes and not on_gpus:
            held = _within_memory(held, nodes, replica_bytes=replica_bytes)
        rounds = range(max(held.values(), default=0))
        return [node_id for turn in rounds for node_id, number in held.items() if turn < number]

    def num_tasks(self, nodes: Sequence[Node], *, most: int) -> int:
        """Number of tasks that decode or commit at one time: as many as the nodes' CPUs hold, from 1 to `most`."""
        return max(1, min(most, sum(int(node.cpus / self.cpus_per_task) for node in nodes)))

    def threads_per_replica(self, nodes: Sequence[Node], *, replica_bytes: float = 0) -> int:
        """Threads of a replica on a CPU: `cpus_per_replica`, or what the cores of a node give to each that it holds."""
        if self.cpus_per_replica:
            return self.cpus_per_replica
        held = Counter(self.slots(nodes, on_gpus=False, replica_bytes=replica_bytes))
        return max(1, min((int(node.cpus) // held[node.node_id] for node in nodes if held[node.node_id]), default=1))

    def replica_options(self, nodes: Sequence[Node], *, on_gpus: bool, replica_bytes: float = 0) -> dict[str, Any]:
        """Ray options of a replica. It claims no CPU, so that tasks find room next to it however many nodes are lost."""
        environment: dict[str, Any] = {"py_executable": self.replica_python} if self.replica_python else {}
        if on_gpus:
            options: dict[str, Any] = {"num_gpus": self.gpus_per_replica, "num_cpus": 0}
        else:
            num_threads = self.threads_per_replica(nodes, replica_bytes=replica_bytes)
            environment["env_vars"] = cpu_environment(num_threads=num_threads)
            options = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
        return options | ({"runtime_env": environment} if environment else {})


def _within_memory(held: Mapping[str, int], nodes: Sequence[Node], *, replica_bytes: float) -> dict[str, int]:
    """Number of replicas that each node's cores and memory allow; at least one on the node with the most memory."""
    known = [node for node in nodes if node.memory_bytes and held[node.node_id]]
    fitting = dict(held) | {node.node_id: min(held[node.node_id], int(node.memory_bytes / replica_bytes)) for node in known}
    if known and not any(fitting.values()):
        fitting[max(known, key=lambda node: node.memory_bytes).node_id] = 1
    return fitting


def memory_line(settings: RaySettings, nodes: Sequence[Node], *, replica_bytes: float) -> str:
    """Message if memory allows fewer replicas on CPUs than the cores, otherwise ""."""
    wanted = len(settings.slots(nodes, on_gpus=False))
    held = len(settings.slots(nodes, on_gpus=False, replica_bytes=replica_bytes))
    if held == wanted:
        return ""
    threads = counted(settings.threads_per_replica(nodes, replica_bytes=replica_bytes), "thread")
    return (
        f"{held} of the {wanted} replicas that the cores hold, since each takes about {replica_bytes / 1e9:.2g} GB of memory; "
        f"each has {threads}; ray.num_replicas overrules this"
    )


def alive_nodes(described: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The nodes in the answer of ray.nodes(). Raises RayLost if no node is alive."""
    nodes = [
        Node(
            node_id=node["NodeID"],
            name=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory_bytes=node["Resources"].get("memory", 0.0),
            gpu_types=tuple(name.removeprefix(_GPU_TYPE) for name in node["Resources"] if name.startswith(_GPU_TYPE)),
        )
        for node in described
        if node["Alive"]
    ]
    if not nodes:
        raise RayLost("no node of this Ray is alive")
    return nodes


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Short description: `2 nodes, 48 CPUs, 8 GPUs (A100)`."""
    types = sorted({name for node in nodes for name in node.gpu_types})
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    named = f" ({', '.join(types)})" if types else ""
    return f"{len(nodes)} node{'s' * (len(nodes) > 1)}, {cpus:g} CPUs, {gpus:g} GPUs{named}"


def no_answer(address: str) -> str:
    """Reason why nothing listens at host:port, or ""; at once, while Ray itself takes a minute to give up."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return str(error)
    return ""


def wait_for_head(address: str) -> None:
    """Returns once something listens at host:port. Raises RayLost if that takes longer than LOST_S."""
    deadline = time.monotonic() + LOST_S
    while unanswered := no_answer(address):
        if time.monotonic() > deadline:
            raise RayLost(f"its head at {address} does not answer: {unanswered}")
        time.sleep(POLL_S)


def unseen_paths(paths: Mapping[str, str]) -> list[str]:
    """The local paths that this machine does not see, or not with the text in it that is given for it."""
    plain = {path: path.removeprefix("file://") for path in paths}
    return [
        path
        for path, text in paths.items()
        if not os.path.exists(plain[path]) or (text and text not in Path(plain[path]).read_text())
    ]


def is_inside_job() -> bool:
    """True in the entry point of a `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_paths(paths: Iterable[str]) -> None:
    """Raises UserError for relative local paths inside a Ray job: they would land in Ray's copy of the working directory."""
    if not is_inside_job():
        return
    relative = [path for path in paths if is_local_path(path) and not os.path.isabs(path.removeprefix("file://"))]
    if relative:
        raise UserError(
            f"{', '.join(relative)}: a relative path inside a Ray job means Ray's own copy of the working directory; "
            "give absolute paths or URLs"
        )
