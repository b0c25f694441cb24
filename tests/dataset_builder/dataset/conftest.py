"""A small run, and the recipe that keeps all of it."""

from pathlib import Path

import pytest

from dataset_builder.dataset.recipe import BuildConfig
from foundry.storage.folder import Folder
from tests.dataset_builder.small_run import SmallRun


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Eight images: img_4 is rejected, img_6 and img_7 are not captioned yet, the others have a dense and a short caption."""
    return SmallRun().write(Folder(str(tmp_path / "owls"))).url


@pytest.fixture
def config(run: str, tmp_path: Path) -> BuildConfig:
    return BuildConfig(captions=(run,), out=str(tmp_path / "dataset"), splits={"train": 1.0})
