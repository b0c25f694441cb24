"""Ray nodes for tests, each in a separate process group that can be killed without touching any other Ray."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
START_S = 180
START_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head on loopback: its address for drivers and nodes, and that of its dashboard for jobs."""

    address: str
    jobs: str
    folder: str


@contextmanager
def ray_head(*, num_cpus: int = 2) -> Iterator[Head]:
    """A head with separate ports and a separate folder."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        port, dashboard, agent = free_ports(3)
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        where = ["--head", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
        process = _start([*where, *ports, f"--num-cpus={num_cpus}"], folder=folder)
        try:
            for needed in (dashboard, agent):
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


def _start(arguments: list[str], *, folder: str) -> subprocess.Popen[bytes]:
    """`ray start`, until it says that the node runs. Tried again: Ray's parts wait 15 s for each other on a busy machine."""
    for _ in range(START_TRIES):
        said = Path(folder, f"started-{time.monotonic_ns()}.log")
        with said.open("wb") as log:
            command = [RAY, "start", "--block", *arguments]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
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
