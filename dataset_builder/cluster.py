"""Which Ray to run on, and how much of it. Ray itself is imported in ray_units.py alone."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_builder.command_line import UserError
from dataset_builder.storage import is_local_path


@dataclass(frozen=True)
class RaySettings:
    """Where and how wide the work runs. The results do not depend on it."""

    address: str | None = None
    """Address of a running Ray (host:port, auto). Default: RAY_ADDRESS, which a Ray job sets, else a Ray of one's own."""
    num_replicas: int = 0
    """Replicas of the model; 0: one per GPU, or without GPUs as many as the cores hold."""
    gpus_per_replica: float = 1.0
    """GPUs of a replica, where the cluster has any."""
    cpus_per_replica: int = 1
    """Cores of a replica: threads of the model where it runs on the CPU."""
    cpus_per_task: float = 1.0
    """Ray CPUs of a task that decodes or commits."""
    units_in_flight: int = 3
    """Units per replica that are decoded, in the model or being committed at one time; bounds the memory."""
    unit_timeout_s: float = 3600.0
    """Seconds that one unit may keep a worker busy before it is stopped and the unit is tried again."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {bound}, not {getattr(self, name)}"
            for name, bound, holds in [
                ("num_replicas", "0 or more", self.num_replicas >= 0),
                ("gpus_per_replica", "0 or more", self.gpus_per_replica >= 0),
                ("cpus_per_replica", "1 or more", self.cpus_per_replica >= 1),
                ("cpus_per_task", "above 0", self.cpus_per_task > 0),
                ("units_in_flight", "1 or more", self.units_in_flight >= 1),
                ("unit_timeout_s", "above 0", self.unit_timeout_s > 0),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def resolved_address(self) -> str | None:
        """The address to attach to; None for a Ray of one's own."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    def uses_gpus(self, resources: Mapping[str, float]) -> bool:
        """True where the cluster has GPUs and a replica wants one."""
        return resources.get("GPU", 0) > 0 and self.gpus_per_replica > 0

    def count_replicas(self, resources: Mapping[str, float]) -> int:
        """How many replicas the cluster's resources hold."""
        if self.num_replicas:
            return self.num_replicas
        if self.uses_gpus(resources):
            return max(1, int(resources["GPU"] / self.gpus_per_replica))
        return max(1, int(resources.get("CPU", 1)) // self.cpus_per_replica)

    def replica_options(self, resources: Mapping[str, float]) -> dict[str, Any]:
        """Ray options of a replica. It claims no CPU, so that tasks find room beside it however many nodes are lost."""
        if self.uses_gpus(resources):
            return {"num_gpus": self.gpus_per_replica, "num_cpus": 0}
        environment = cpu_environment(num_threads=self.cpus_per_replica)
        return {"num_cpus": 0, "scheduling_strategy": "SPREAD", "runtime_env": {"env_vars": environment}}


def cpu_environment(*, num_threads: int) -> dict[str, str]:
    """Environment variables of a process that runs a model on CPUs; they are read when a process starts.

    glibc hands large blocks back to the kernel at once, so that each step of a growing key-value cache faults its pages in
    again: half of the time of llava-mini's decoding. The tunables keep the blocks.
    """
    tunables = ["hugetlb=1", f"mmap_threshold={1 << 30}", f"trim_threshold={1 << 34}", f"top_pad={1 << 28}"]
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{tunable}" for tunable in tunables),
    }


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
