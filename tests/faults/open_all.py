"""Reader of all files of a folder, each as a user names it: python -m tests.faults.open_all FOLDER.

The last line says, as JSON, how many were opened and refused, which failed in any other way, and time and memory.
"""

import faulthandler
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from captioner.prompt_sets import load_prompts
from dataset_builder.dataset.recipe import BuildConfig
from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.images.loading import read_images
from foundry.images.sources import find_sources, index_sources
from model.formats.official_files import read_weights
from model.lora.file import read_adapter
from tests.faults.decode_all import peak_mb
from trainer.evaluation.frechet import read_statistics

MAX_READ_ROWS = 100


def _images(path: Path) -> None:
    for source in index_sources(find_sources([str(path)])):
        rows = [row for table in source.tables for row in table.slice(0, MAX_READ_ROWS).to_pylist()]
        rows = [{**row, "key": str(number)} for number, row in enumerate(rows[:MAX_READ_ROWS])]
        found = read_images(rows, limits=DecodeLimits(max_image_pixels=1_000_000))
        assert len(found.images) + len(found.rejected) == len(rows)


def _settings(path: Path) -> None:
    """As a prompt set, and as the settings of a command; that of the two is raised which the file was not meant for."""
    said = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(said):
        arguments = ["--config", str(path), "--captions", "x", "--out", "x"]
        code = run_command(BuildConfig, lambda _config: 0, prog="python -m x", example="", argv=arguments)
    if code == 0:
        return
    _check_line(said.getvalue().strip())
    load_prompts(str(path))


def _weights(path: Path) -> None:
    for read in (read_weights, read_adapter):
        try:
            read(path)
        except UserError as error:
            _check_line(str(error))
    read_weights(path)


def _statistics(path: Path) -> None:
    read_statistics(path, width=4, taken_by={})


OPENERS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys((".tar", ".parquet", ".jsonl", ".csv", ".tsv"), _images),
    ".yaml": _settings,
    ".safetensors": _weights,
    ".pth": read_weights,
    ".npz": _statistics,
}


def _check_line(message: str) -> None:
    assert message and "\n" not in message and len(message) < 3_000, message[:3_000]


def main(folder: str) -> None:
    faulthandler.enable()
    os.chdir(folder)
    outcomes: Counter[str] = Counter()
    failed, slowest = {}, (0.0, "")
    for path in sorted(Path().iterdir()):
        print(path.name, flush=True)
        began = time.process_time()
        try:
            OPENERS[path.suffix](path)
            outcomes["opened"] += 1
        except UserError as error:
            _check_line(str(error))
            outcomes["refused"] += 1
        except Exception:  # noqa: BLE001 - whatever else is raised is what is looked for
            failed[path.name] = traceback.format_exc()[-700:]
        slowest = max(slowest, (time.process_time() - began, path.name))
    found = {"outcomes": outcomes, "failed": failed, "seconds": slowest[0], "slowest": slowest[1], "peak_mb": peak_mb()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
