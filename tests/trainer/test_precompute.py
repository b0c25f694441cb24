"""The command `trainer.precompute`: settings that are missing, the budget of rejections, the whole way on Ray."""

import contextlib
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from foundry.command_line import run_command
from foundry.units.rejection import ALWAYS_ALLOWED_REJECTIONS
from tests.trainer.features.test_preparation import all_samples, store
from tests.trainer.tiny_sources import make_features, tiny_precompute, write_dataset
from trainer.features.config import PrecomputeConfig
from trainer.features.store import FeatureStore
from trainer.precompute import main


def run(*arguments: str) -> int:
    """The command, in this process; for what ends before Ray starts."""
    return run_command(PrecomputeConfig, main, prog="python -m trainer.precompute", example="", argv=arguments)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["--stage", "pixel"], ["vae"]),
        (["--stage", "alignment"], ["vae", "text_encoder"]),
        (["--stage", "aesthetic", "--vae.name", "mini"], ["text_encoder"]),
        (["--stage", "alignment", "--text_encoder.name", "mini"], ["vae"]),
    ],
)
def test_encoders_that_are_not_named_are_one_line_that_says_what_to_type(
    given: list[str], missing: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--dataset", str(tmp_path), "--out", str(tmp_path / "features"), *given) == 2
    names = " and ".join(f"--{kind}.name" for kind in missing)
    real, toys = (
        " ".join(f"--{kind}.name {name}" for kind in missing) for name in ("PixArt-alpha/PixArt-XL-2-1024-MS", "mini")
    )
    assert capsys.readouterr().err == (
        f"error: {names} {'is' if len(missing) == 1 else 'are'} missing: type {real} for a real model, or {toys} for the toy, "
        "which only understands 64-pixel emoji scenes\n"
    )
    assert not (tmp_path / "features").exists()


def test_all_settings_are_printed_without_encoders_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--stage", "alignment", "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["vae"]["name"], printed["text_encoder"]["name"], printed["vae"]["sliced"]) == ("", "", False)


def test_the_budget_counts_what_earlier_starts_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "dataset", count=ALWAYS_ALLOWED_REJECTIONS + 10)
    for number in range(ALWAYS_ALLOWED_REJECTIONS + 1):
        (dataset / "pictures" / f"picture_{number:03d}.png").write_bytes(b"broken")
    config = tiny_precompute(tmp_path, dataset, unit_size=32)
    make_features(config)
    assert main(config) == 1
    assert "more samples are rejected already than max_rejected allows" in capsys.readouterr().err
    assert main(dataclasses.replace(config, max_rejected=1.0)) == 0


@pytest.mark.slow
def test_the_command_makes_on_ray_what_a_loop_makes_also_when_its_replica_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "dataset", count=60)
    (dataset / "pictures" / "picture_007.png").write_bytes(b"broken")
    config = tiny_precompute(tmp_path, dataset, resolution=[32, 64], unit_size=2)
    arguments = ["--dataset", str(dataset), "--out", str(tmp_path / "on_ray"), "--stage", "alignment", "--unit_size", "2"]
    arguments += ["--resolution", "32", "64", "--vae.name", str(tmp_path / "vae"), "--vae.sliced", "false"]
    arguments += ["--text_encoder.name", str(tmp_path / "t5"), "--text_encoder.max_caption_tokens", "20"]
    arguments += ["--vae.dtype", "float32", "--text_encoder.dtype", "float32", "--ray.num_replicas", "1"]
    command = [sys.executable, "-m", "trainer.precompute", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    commits, killed = tmp_path / "on_ray" / "alignment" / "32" / "commits", False
    while process.poll() is None and not killed:
        if commits.exists() and len(list(commits.glob("*.json"))) >= 3:
            killed = _kill_replica(process.pid)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=280)
    assert killed and process.returncode == 0, output
    assert "core_worker" not in output  # what Ray logs of its actors is no message to the user
    assert "59 samples at 64 px" in output and "1 rejected as not_an_image" in output
    make_features(config)
    for resolution in (32, 64):
        here, there = store(config, resolution), FeatureStore.open(str(tmp_path / "on_ray" / "alignment" / str(resolution)))
        samples = all_samples(here)
        assert samples == all_samples(there) and there.missing_units == 0
        for request in samples.values():
            torch.testing.assert_close(here.read([request]).mean, there.read([request]).mean, rtol=0.02, atol=1e-3)
    assert run(*arguments) == 0
    assert "0 units to do" in capsys.readouterr().out


def _kill_replica(parent: int) -> bool:
    """Kills the encoders' process among the children; whether there was one."""
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "Replica" in " ".join(child.cmdline()):
                child.kill()
                return True
    return False
