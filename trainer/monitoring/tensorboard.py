"""Shows runs in TensorBoard: `python -m trainer.tensorboard RUN …` writes RUN/tensorboard from its metrics.jsonl and samples.

Then `tensorboard --logdir RUNS`. The horizontal axis counts images seen. Run again, or with --follow_s, it adds what is new.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_SCALARS = ("loss", "gradient_norm", "lr", "images_per_s", "data_wait", "mfu", "memory_bytes")


@dataclass(frozen=True)
class TensorBoardConfig:
    """Settings of `python -m trainer.tensorboard`."""

    runs: list[str]
    """Folders of runs, such as runs/aesthetic."""
    follow_s: float = 0.0
    """Look for new rows every so many seconds, until Ctrl-C; 0: once."""

    def __post_init__(self) -> None:
        if not self.runs or self.follow_s < 0:
            raise ValueError("expected one run or more, and follow_s of 0 or more")


def main(config: TensorBoardConfig) -> int:
    """Writes the event files; returns 0."""
    readers = [RunReader(Path(run)) for run in config.runs]
    while True:
        for reader in readers:
            reader.read()
        if not config.follow_s:
            return 0
        time.sleep(config.follow_s)


class RunReader:
    """Copies a run's metrics and samples into events, each once; begins anew where the run went back to a checkpoint."""

    def __init__(self, run: Path) -> None:
        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"expected a run's folder with metrics.jsonl, found none in {run}: give RUNS/<stage>")
        self._run = run
        self._rows: list[dict[str, Any]] = []
        self._images: set[str] = set()
        self._writer: SummaryWriter | None = None

    def read(self) -> None:
        """Adds what is new."""
        from trainer.monitoring.run_folder import read_metrics

        rows = read_metrics(self._run)
        if self._writer is None or rows[: len(self._rows)] != self._rows:
            self._begin()
        assert self._writer is not None
        for row in rows[len(self._rows) :]:
            _add_row(self._writer, row)
        for path in sorted((self._run / "samples").glob("*.png")):
            if path.name not in self._images:
                self._images.add(path.name)
                _add_image(self._writer, path)
        self._writer.flush()
        print(f"{self._run}: {len(rows) - len(self._rows)} new rows in {self._run / FOLDER}", flush=True)
        self._rows = rows

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self._run / FOLDER, ignore_errors=True)
        self._rows, self._images = [], set()
        self._writer = SummaryWriter(str(self._run / FOLDER))


def _add_row(writer: "SummaryWriter", row: dict[str, Any]) -> None:
    images = row["images_seen"]
    for name in _SCALARS:
        if row.get(name) is not None:
            writer.add_scalar(f"{row['kind']}/{name}", row[name], images)
    for place, loss in enumerate(row.get("bands", ())):
        writer.add_scalar(f"{row['kind']}/loss_of_band_{place}", loss, images)
    if row["kind"] == "spike":
        writer.add_text("spike", ", ".join(row["keys"]), images)


def _add_image(writer: "SummaryWriter", path: Path) -> None:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    writer.add_image("samples", pixels, int(path.stem), dataformats="HWC")


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            TensorBoardConfig,
            main,
            prog="python -m trainer.tensorboard",
            example="python -m trainer.tensorboard runs/alignment",
            positional=("runs",),
        )
    )
