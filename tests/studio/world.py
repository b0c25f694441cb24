"""A run of pictures with captions that differ, hostile signs among them; a training with metrics and samples."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foundry.images.reader import content_hash
from foundry.storage.folder import Folder
from model.generation.image_files import save_png
from tests.dataset_builder.small_run import SmallRun

PROMPT = "an owl <b>on</b> a branch"
HOSTILE = "<img src=x onerror=\"document.title='broken'\"> ${1+1} {{2+2}} `3`"
TEXTS = (
    "An owl sits beside a house.",
    "A tree under the sky, an owl, an owl and a house.",
    f"A house {HOSTILE} and a tree.",
)


@dataclass(frozen=True, kw_only=True)
class PictureRun(SmallRun):
    """A run whose images are there: PNGs in a folder. Its units have the captions of TEXTS in turn."""

    pictures: Path = field(default_factory=Path)
    num_images: int = 30
    unit_size: int = 10
    num_committed: int = 3
    rejected: tuple[str, ...] = ()

    def commit(self, folder: Folder, number: int, images: Any) -> None:
        """Publishes a unit of these images."""
        text = TEXTS[number % len(TEXTS)]
        own = replace(self, captions={prompt: f"{text} {prompt}" for prompt in self.captions})
        SmallRun.commit(own, folder, number, images)

    def _image(self, key: str) -> dict[str, Any]:
        path = self.pictures / f"{key}.png"
        if not path.exists():
            shade = int(key.removeprefix("img_")) * 7 % 255
            Image.fromarray(np.full((48, 64, 3), shade, np.uint8)).save(path)
        return super()._image(key) | {"uri": str(path), "content_hash": content_hash(path.read_bytes())}


def write_picture_run(folder: Path, **options: Any) -> str:
    """Writes the run into a folder and returns its address."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    return PictureRun(pictures=pictures, **options).write(Folder(str(folder / "run"))).url


def write_training(folder: Path, *, rows: int, bands: tuple[float, ...] = (0.5, 0.25)) -> Path:
    """Writes the folder of a training with so many intervals, one validation and two grids of samples; returns it."""
    folder.mkdir(parents=True)
    train = [
        {"kind": "train", "step": n, "images_seen": 64 * n, "resolution": 64, "loss": 1 / n, "gradient_norm": 1.0, "lr": 1e-3}
        | {"images_per_s": 100.0, "data_wait": 0.25, "mfu": None, "memory_bytes": 2e9, "eta_s": 60.0}
        for n in range(1, rows + 1)
    ]
    validation = {"kind": "validation", "images_seen": 64 * rows, "resolution": 64, "loss": 0.4, "bands": list(bands)}
    lines = [*train, validation, {"kind": "spike", "images_seen": 64, "loss": 9.0, "usual_loss": 1.0, "keys": []}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines) + '{"kind": "tra')
    start = {"argv": ["/somewhere/trainer/fit.py", "--stage", "alignment", "--run_dir", "my runs"]}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    for images in (64, 128):
        path = folder / "samples" / f"{images:012d}.png"
        save_png(Image.new("RGB", (8, 8)), path, {"texts": [PROMPT], "images_seen": images})
    return folder
