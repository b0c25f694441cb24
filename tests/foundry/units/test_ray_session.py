"""What keeps Ray from starting, or from being joined, is named with what to set."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_nodes import RAY, Head, ray_head

ROOT = Path(__file__).resolve().parents[3]
START = """
import sys
from foundry.errors import UserError
from foundry.units.cluster import RaySettings
from foundry.units.ray_session import cluster_nodes, start_ray
try:
    start_ray(RaySettings(address=sys.argv[1] if len(sys.argv) > 1 else None))
    print(len(cluster_nodes()), "node")
except UserError as error:
    print(error)
"""


def start(*address: str, folder: Path, **environment: str) -> str:
    """What a process in a folder says that starts or joins a Ray."""
    command = [sys.executable, "-c", START, *address]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    variables |= {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout.strip()


def test_a_temporary_folder_with_a_long_path_is_named_with_what_to_set(tmp_path: Path) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    said = start(folder=tmp_path, TMPDIR=str(long))
    assert said.startswith(f"Ray cannot keep its sockets and logs in {long}/ray (OSError: validate_socket"), said
    assert said.endswith("such as RAY_TMPDIR=/tmp") and "busy" not in said


def test_a_temporary_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = start(folder=tmp_path, RAY_TMPDIR=str(tmp_path / "file"))
    assert said.startswith(f"Ray cannot keep its sockets and logs in {tmp_path}/file/ray (NotADirectoryError"), said


def test_an_empty_variable_leaves_nothing_in_the_working_directory(tmp_path: Path) -> None:
    assert start(folder=tmp_path, TMPDIR="", RAY_TMPDIR="") == "1 node"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A Ray head that asks for a token, which lies in the tests' home."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "token")
        subprocess.run([RAY, "get-auth-token", "--generate"], check=True, capture_output=True, timeout=120)
        with ray_head(num_cpus=1) as started:
            yield started


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of another"}])
def test_a_head_that_asks_for_a_token_is_not_taken_for_one_that_is_away(
    head: Head, tmp_path: Path, mode: dict[str, str]
) -> None:
    said = start(head.address, folder=tmp_path, HOME=str(tmp_path), **mode)
    assert f"the Ray at {head.address} refuses this process" in said and "RAY_AUTH_TOKEN" in said, said
    assert "start one" not in said


@pytest.mark.slow
def test_a_head_is_joined_with_its_token(head: Head, tmp_path: Path) -> None:
    assert start(head.address, folder=tmp_path, RAY_AUTH_MODE="token") == "1 node"
