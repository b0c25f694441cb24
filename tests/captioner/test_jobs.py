"""The same command as a job on a running Ray, with the code shipped along and with the package installed."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.status import read_status
from dataset_builder.storage import Folder
from tests.captioner.conftest import run_arguments, save_pictures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A Ray head on loopback with ports, token and folder of its own; yields the address for jobs."""
    port, dashboard, agent = free_ports(3)
    with pytest.MonkeyPatch.context() as environment, tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        call([RAY, "get-auth-token", "--generate"])
        loopback = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        started = call([RAY, "start", "--head", *loopback, *ports, f"--temp-dir={folder}", "--num-cpus=2"])
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"http://127.0.0.1:{dashboard}"
        call([RAY, "stop", "--force"])


@pytest.mark.parametrize("ships_code", [True, False])
def test_a_job_captions(head: str, tmp_path: Path, tiny_llava: Path, ships_code: bool) -> None:
    images, run = save_pictures(tmp_path / "images", count=12), tmp_path / "run"
    working_dir = ["--working-dir", "."] if ships_code else []
    submit = [RAY, "job", "submit", "--address", head, *working_dir, "--", "python", "-m", "captioner.run"]
    done = call([*submit, *run_arguments(images, run, tiny_llava)])
    assert done.returncode == 0, done.stdout + done.stderr
    status = read_status(Folder(str(run)))
    assert (status.planned, status.captioned, status.remaining) == (12, 12, 0)


def test_a_job_refuses_relative_paths(head: str, tmp_path: Path, tiny_llava: Path) -> None:
    submit = [RAY, "job", "submit", "--address", head, "--", "python", "-m", "captioner.run"]
    done = call([*submit, *run_arguments("photos", tmp_path / "run", tiny_llava)])
    assert done.returncode != 0 and "photos: a relative path inside a Ray job" in done.stdout
