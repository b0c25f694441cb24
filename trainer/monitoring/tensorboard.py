"""TensorBoard events of a run, written from its metrics and samples into RUN/tensorboard."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.reporting.lines import say
from trainer.monitoring.run_folder import METRICS, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_SCALARS = ("loss", "gradient_norm", "lr", "images_per_s", "data_wait", "mfu", "memory_bytes")


class RunReader:
    """Copies a run's metrics and samples into events, each once; starts again where the run went back to a checkpoint."""

    def __init__(self, run: Path) -> None:
        if not (run / METRICS).is_file():
            raise UserError(f"expected a run's folder with {METRICS}, found none in {run}: give RUNS/<stage>")
        self._run = run
        self._rows: list[dict[str, Any]] = []
        self._images: set[str] = set()
        self._writer: SummaryWriter | None = None

    def read(self) -> None:
        """Adds what is new."""
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
        say(f"{self._run}: {len(rows) - len(self._rows)} new rows in {self._run / FOLDER}")
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
    for name, loss in row.get("technique_losses", {}).items():
        writer.add_scalar(f"{row['kind']}/loss_of_{name}", loss, images)
    for index, loss in enumerate(row.get("bands", ())):
        if loss is not None:  # a band without samples
            writer.add_scalar(f"{row['kind']}/loss_of_band_{index}", loss, images)
    if row["kind"] == "spike":
        writer.add_text("spike", ", ".join(row["keys"]), images)


def _add_image(writer: "SummaryWriter", path: Path) -> None:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    writer.add_image("samples", pixels, int(path.stem), dataformats="HWC")
