"""Ray nodes for tests, each in a separate process group that can be killed without touching any other Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
START_S = 180
START_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head on loopback: its address for drivers and nodes, and that of its dashboard, if it has one, for jobs."""

    address: str
    jobs: str
    folder: str


@contextmanager
def ray_head(
    *,
    num_cpus: int = 2,
    python: Path | None = None,
    environment: Mapping[str, str] | None = None,
    gpu_nodes: int = 0,
    takes_jobs: bool = False,
) -> Iterator[Head]:
    """A head with separate ports and a separate folder; `python`: the interpreter of another environment that has Ray.

    `takes_jobs`: with a dashboard, whose ten processes take seconds to start. `gpu_nodes`: so many nodes come when a GPU is
    asked for, by Ray's own autoscaler; they are here, and only say to have one.
    """
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        port, dashboard, agent = free_ports(3)
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        where = ["--head", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        options = [*where, *ports, f"--num-cpus={num_cpus}", f"--include-dashboard={takes_jobs}"]
        if gpu_nodes:
            environment = {**(environment or os.environ), "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
            options.append(f"--autoscaling-config={_write_autoscaling(folder, port=port, gpu_nodes=gpu_nodes)}")
        process = _start(options, folder=folder, python=python, environment=environment)
        try:
            for needed in (dashboard, agent) if takes_jobs else ():
                _wait_for_port(needed)
            yield Head(address=f"127.0.0.1:{port}", jobs=f"http://127.0.0.1:{dashboard}", folder=folder)
        finally:
            kill_node(process)


@contextmanager
def ray_node(head: Head, *, num_cpus: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """One more node, under another loopback address, so that no driver takes it for its own."""
    where = [f"--address={head.address}", "--node-ip-address=127.0.0.2", f"--num-cpus={num_cpus}"]
    process = _start(where, folder=head.folder)
    try:
        yield process
    finally:
        kill_node(process)


def kill_node(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to all processes of a node at once, as when a machine goes away."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _write_autoscaling(folder: str, *, port: int, gpu_nodes: int) -> Path:
    """A cluster of Ray's provider for tests, whose nodes are raylets on this machine."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    here = {"disable_node_updaters": True, "disable_launch_config_check": True}
    cluster = {
        "cluster_name": "pretended",
        "max_workers": gpu_nodes,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"} | here,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": gpu_nodes},
        },
    } | {f"{name}_commands": [] for name in commands}
    path = Path(folder, "cluster.json")
    path.write_text(json.dumps(cluster))
    return path


def _start(
    arguments: list[str], *, folder: str, python: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """`ray start`, until it says that the node runs. Tried again: Ray's parts wait 15 s for each other on a busy machine."""
    for _ in range(START_TRIES):
        said = Path(folder, f"started-{time.monotonic_ns()}.log")
        with said.open("wb") as log:
            program = [RAY] if python is None else [str(python), "-m", "ray.scripts.scripts"]
            command = [*program, "start", "--block", *arguments]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0, env=environment)
        deadline = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < deadline:
            if "Ray runtime started" in said.read_text():
                return process
            time.sleep(0.2)
        kill_node(process)
    raise AssertionError(f"no Ray node started: {said.read_text()}")


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at port {port}"
            time.sleep(0.2)
        else:
            return
