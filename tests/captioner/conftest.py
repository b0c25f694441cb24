"""A tiny LLaVA, pictures, and the captioner as its users call it."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.config import CaptionConfig
from captioner.run import main
from foundry.command_line import run_command
from tests.captioner.tiny_llava import save_tiny_llava
from tests.in_this_process import commands_here


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


def save_pictures(folder: Path, *, count: int, seed: int = 0) -> Path:
    """Different pictures of noise, with an alt text next to each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"picture-{seed}-{number:04d}.jpg")
        (folder / f"picture-{seed}-{number:04d}.txt").write_text(f"a picture of the number {number}")
    return folder


def run_arguments(images: Path | str, out: Path | str, model: Path, *more: str) -> list[str]:
    """The arguments of a small run."""
    small = [
        "--unit_size",
        "8",
        "--generation.max_new_tokens",
        "12",
        "--ray.num_replicas",
        "1",
        "--ray.cpus_per_replica",
        "1",
        "--t5.tokenizer",
        "mini",
    ]
    return ["--images", str(images), "--out", str(out), "--model", str(model), *small, *more]


def start_captioner(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The command in a separate process, its output merged; killed with the test if it still runs."""
    return subprocess.Popen(
        [sys.executable, "-m", "captioner.run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ.copy(),
    )


def caption(arguments: Sequence[str], *, timeout_s: float = 240) -> tuple[int, str]:
    """Runs the command to its end; returns exit code and output."""
    process = start_captioner(arguments)
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output


def caption_here(arguments: Sequence[str]) -> tuple[int, str]:
    """The command in this process, its output merged: for what ends before Ray starts."""
    output = io.StringIO()
    with redirect_stderr(output), redirect_stdout(output):
        code = run_command(CaptionConfig, main, prog="python -m captioner.run", example="", argv=list(arguments))
    return code, output.getvalue()


def caption_plainly(arguments: Sequence[str]) -> tuple[int, str]:
    """The command in this process with its units in a plain loop: for what a run says and writes, however units are spread."""
    with commands_here():
        return caption_here(arguments)
