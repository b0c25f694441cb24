"""The environment of all tests: offline, polite to other processes, and with a separate home."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

_HOME = Path(tempfile.mkdtemp(prefix="t2i-home-"))
"""Ray writes an access token to the home folder."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other process on two cores
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # otherwise they starve next to the other process of the suite
    "TOKENIZERS_PARALLELISM": "false",
}


# Before the conftest of a folder below, which may import torch, and before any test module: OpenMP and the hub read their
# settings once. Subprocesses inherit all of it.
os.environ.update(_ENVIRONMENT, HOME=str(_HOME))


def pytest_configure() -> None:
    """Examples of hypothesis may take any time."""
    hypothesis.settings.register_profile("busy", deadline=None)  # a deadline measures the machine's other work
    hypothesis.settings.load_profile("busy")


@pytest.hookimpl(trylast=True)  # after those that are not run were taken out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: whatever comes last is worked on by one process alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    """A file of tests that starts Ray in its process ends it, as the next file's workers must find that file's modules; and the
    form of messages is the default one again.
    """
    yield
    if (lines := sys.modules.get("foundry.reporting.lines")) is not None:
        lines.choose_format("auto")
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    import torch

    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def file_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, or asked for, in any Folder from now on."""
    from foundry.storage.folder import Folder

    names: list[str] = []
    read, read_many, exists = Folder.read, Folder.read_many, Folder.exists

    def counted_read(self: Folder, name: str) -> bytes:
        names.append(name)
        return read(self, name)

    def counted_read_many(self: Folder, many: list[str]) -> dict[str, bytes]:
        names.extend(many)
        return read_many(self, many)

    def counted_exists(self: Folder, name: str = "") -> bool:
        names.append(name)
        return exists(self, name)

    monkeypatch.setattr(Folder, "read", counted_read)
    monkeypatch.setattr(Folder, "read_many", counted_read_many)
    monkeypatch.setattr(Folder, "exists", counted_exists)
    return names
