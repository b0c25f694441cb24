"""Hostile images: whatever the bytes are, each image is decoded or rejected, in bounded memory and time."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captioner.config import CaptionConfig
from captioner.run import main
from dataset_builder.sql.run_files import open_run
from foundry.command_line import run_command
from tests.captioner.conftest import run_arguments
from tests.captioner.tiny_llava import save_tiny_llava
from tests.faults.conftest import Tally
from tests.faults.images import CRAFTED, originals
from tests.faults.mutation import mutants
from tests.in_this_process import commands_here

MAX_SECONDS = 5.0
MAX_MB = 600
SUFFIXES = ("jpg", "png", "webp", "gif", "tiff", "bmp", "avif")
MANY = 20_000


def decoded(folder: Path) -> dict[str, Any]:
    """What tests.faults.decode_all says of the folder; an error that names the image where the process does not end well."""
    command = [sys.executable, "-m", "tests.faults.decode_all", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout.splitlines()[-1:], done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def written(folder: Path, images: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("count", [400, pytest.param(MANY, marks=[pytest.mark.faults, pytest.mark.slow])])
def test_damaged_images_are_decoded_or_rejected(tmp_path: Path, rng: random.Random, tally: Tally, count: int) -> None:
    images = {f"{number:05d}": data for number, data in enumerate(mutants(originals(), rng, count))}
    found = decoded(written(tmp_path / "images", images))
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["decoded"] and found["outcomes"]["broken"], found
    assert found["peak_mb"] < MAX_MB and found["seconds"] < MAX_SECONDS, found
    tally("images", count)


@pytest.mark.slow
def test_crafted_images_cost_no_more_than_others(tmp_path: Path, tally: Tally) -> None:
    found = decoded(written(tmp_path / "images", {name: make() for name, make in CRAFTED.items()}))
    assert sum(found["outcomes"].values()) == len(CRAFTED)
    assert found["peak_mb"] < MAX_MB and found["seconds"] < MAX_SECONDS, found
    tally("crafted images", len(CRAFTED))


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.faults)])
def test_a_run_over_such_images_accounts_for_each(tmp_path: Path, rng: random.Random, tally: Tally, *, count: int) -> None:
    damaged = mutants(originals(), rng, count)
    images = {f"damaged_{number}.{SUFFIXES[number % len(SUFFIXES)]}": data for number, data in enumerate(damaged)}
    images |= {f"crafted_{number}.jpg": make() for number, make in enumerate(CRAFTED.values())}
    folder, run = written(tmp_path / "images", images), tmp_path / "run"
    arguments = run_arguments(folder, run, save_tiny_llava(tmp_path / "llava"), "--max_rejected", "1")
    with commands_here():
        assert run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=arguments) == 0
    with open_run(str(run)) as database:
        keys = database.fetch("SELECT key FROM rejected UNION ALL SELECT DISTINCT key FROM captions")["key"].to_pylist()
        planned = database.fetch("SELECT sum(planned) AS n FROM commits")["n"].to_pylist()
    assert sorted(keys) == sorted(name.rpartition(".")[0] for name in images)
    assert planned == [len(images)]
    tally("captioned", len(images))
