"""A run with pictures, opened."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.captions.source import CaptionSource, open_sources
from tests.studio.world import write_picture_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    return write_picture_run(tmp_path)


@pytest.fixture
def source(run: str, tmp_path: Path) -> Iterator[CaptionSource]:
    with open_sources([run], cache=tmp_path / "cache") as (opened,):
        opened.index()
        yield opened
