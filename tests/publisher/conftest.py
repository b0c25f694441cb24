"""A hub on loopback, for this process, and a small data set."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

from dataset_builder.dataset.building import build_dataset
from dataset_builder.dataset.recipe import BuildConfig
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun
from tests.hub_server import TOKEN, HubServer, hub_server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The hub of huggingface_hub, which has read its environment already; with a token that may write."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        HfFileSystem.clear_instance_cache()
        close_session()
        yield server
        close_session()
        HfFileSystem.clear_instance_cache()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of five images that are referred to."""
    run = SmallRun().write(Folder(str(tmp_path / "owls"))).url
    build_dataset(BuildConfig(captions=(run,), out=str(tmp_path / "dataset"), splits={"train": 1.0}))
    return tmp_path / "dataset"
