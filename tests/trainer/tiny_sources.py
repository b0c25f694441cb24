"""Pictures, and what features can be made of: a data set, class folders. Features of them, made in this process."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dataset_builder.schema import DATASET_VERSION, SAMPLES
from foundry.storage.folder import Folder
from foundry.units.commits import Unit, table_bytes
from model.encoders.text_encoder import TextEncoderConfig
from model.encoders.vae import VAEConfig
from tests.foundry.units.plain_loop import run_plainly
from tests.model.tiny_parts import save_tiny_t5, save_tiny_vae
from trainer.features.config import PrecomputeConfig
from trainer.features.job import Encoders
from trainer.features.preparation import prepare

SIZES = ((32, 32), (40, 36), (30, 64), (70, 33))
"""Height and width of the pictures, in turn."""


def save_picture(path: Path, *, size: tuple[int, int], seed: int) -> Path:
    """Smooth colours, so that resizing changes little, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)
    return path


def sample_row(folder: Path, number: int, *, embed: bool = False) -> dict[str, Any]:
    """A row of schema.SAMPLES with its picture; each fifth has no alt text, numbers above 9 belong to no validation split."""
    height, width = SIZES[number % len(SIZES)]
    key = f"picture_{number:03d}"
    path = save_picture(folder / "pictures" / f"{key}.png", size=(height, width), seed=number)
    said = [{"prompt": "dense", "caption": f"a large owl number {number} on the left"}]
    row: dict[str, Any] = {"key": key, "run": "r", "split": "train" if number % 5 else "validation", "content_hash": "0"}
    row |= {"width": width, "height": height, "bucket": "1.0", "class_label": ("owl", "key")[number % 2]}
    row |= {"alt_text": None if number % 5 == 1 else f"an owl {number}"}
    row |= {"image": {"bytes": path.read_bytes(), "path": path.name}} if embed else {"uri": str(path)}
    return row | {"captions": [_caption(one) for one in said], "nouns": [[] for _ in said]}


def write_dataset(folder: Path, *, count: int = 20, embed: bool = False) -> Path:
    """A data set of two files, as dataset_builder.build leaves it."""
    rows = [sample_row(folder, number, embed=embed) for number in range(count)]
    files = []
    for split in ("train", "validation"):
        name = f"samples/{split}/part-00000.parquet"
        table = pa.Table.from_pylist([row for row in rows if row["split"] == split], schema=SAMPLES)
        Folder(str(folder)).write(name, table_bytes(table))
        files.append({"kind": "samples", "split": split, "path": name, "rows": len(table)})
    record = {"schema_version": DATASET_VERSION, "runs": [{"name": "r", "licence": "CC0-1.0"}], "files": files}
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def write_class_folders(folder: Path, *, count: int = 8) -> Path:
    """Two folders named for their class."""
    for number in range(count):
        save_picture(folder / ("owl", "key")[number % 2] / f"{number}.png", size=SIZES[number % len(SIZES)], seed=number)
    return folder


def tiny_precompute(root: Path, dataset: Path, **changes: Any) -> PrecomputeConfig:
    """Settings for tiny encoders, which are saved under `root`."""
    if not (root / "t5").exists():
        save_tiny_t5(root / "t5")
        save_tiny_vae(root / "vae")
    settings: dict[str, Any] = {
        "dataset": str(dataset),
        "out": str(root / "features"),
        "stage": "alignment",
        "resolution": [32],
        "unit_size": 4,
        "shuffle_folder": str(root),
        "vae": VAEConfig(name=str(root / "vae"), dtype="float32", sliced=False),
        "text_encoder": TextEncoderConfig(name=str(root / "t5"), dtype="float32", max_caption_tokens=20),
    }
    return PrecomputeConfig(**settings | changes)


def make_features(config: PrecomputeConfig) -> Sequence[Unit]:
    """The steps of trainer.precompute in one process, without Ray; returns the units that were made."""
    prepared = prepare(config, describe=Encoders.describe)
    run_plainly(prepared.job, prepared.units)
    return prepared.units


def _caption(said: dict[str, str]) -> dict[str, Any]:
    numbers = ("num_words", "num_t5_tokens", "num_nouns", "num_distinct_nouns", "num_meta_nouns", "num_t5_nouns")
    counted = {"status": "ok", "finish_reason": "stop", "repetition": 0.0, "opener": "", "meta_share": 0.0}
    return {**said, **dict.fromkeys(numbers, 1), **counted}
