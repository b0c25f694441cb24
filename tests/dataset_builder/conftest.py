"""A tiny CLIP of random weights."""

from pathlib import Path

import pytest

from tests.dataset_builder.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))
