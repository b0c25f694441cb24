"""Scenes as files: JPEGs with text next to them, WebDataset tars, or Parquet with the images inside; and their ground truth.

The truth is written to `_truth.parquet`, whose leading underscore keeps it from being taken for a source of images.
"""

import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from examples.openmoji.composition import Scene, draw_scene, render
from examples.openmoji.descriptions import Texts, describe
from foundry.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TRUTH_FILE = "_truth.parquet"
_LICENSE_FILE = "_license.txt"
_LICENSE_TEXT = """These images are composed of drawings of OpenMoji, the open-source emoji and icon project (https://openmoji.org),
licensed CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/); so are the images.
"""
_JPEG_QUALITY = 95
_PER_SHARD = 1000


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """Scenes to write; two sets that differ in `format` alone hold the same images and texts."""

    count: int
    seed: int
    split: str
    single_objects: bool
    num_kinds: int | None
    format: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One scene with all that is written about it."""

    key: str
    scene: Scene
    texts: Texts
    class_label: str | None
    """The kind of the one object, in a set of single objects."""


def sample(wanted: SceneSet, index: int) -> Sample:
    """Sample `index` of the set; it does not depend on the set's count or format."""
    scene = draw_scene(
        seed=wanted.seed,
        index=index,
        split=wanted.split,
        single_object=wanted.single_objects,
        num_kinds=wanted.num_kinds,
    )
    label = scene.objects[0].kind if wanted.single_objects else None
    key = f"{wanted.split}-{wanted.seed}-{index:07d}"
    return Sample(key=key, scene=scene, texts=describe(scene, seed=wanted.seed), class_label=label)


def jpeg_bytes(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG of high quality, without chroma subsampling."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def write_scenes(wanted: SceneSet, out: Path) -> bool:
    """Writes the set; returns False if it was there already. Raises UserError if another set is in the folder."""
    settings = json.dumps(dataclasses.asdict(wanted), sort_keys=True)
    if _is_written(out, settings):
        return False
    out.mkdir(parents=True, exist_ok=True)
    (out / _LICENSE_FILE).write_text(_LICENSE_TEXT)
    (out / ".unfinished").write_text(settings)
    write_shard = {"jpeg": _write_jpegs, "tar": _write_tar, "parquet": _write_parquet}[wanted.format]
    with _truth_writer(out / TRUTH_FILE, settings) as write_truth:
        for first in range(0, wanted.count, _PER_SHARD):
            samples = [sample(wanted, index) for index in range(first, min(first + _PER_SHARD, wanted.count))]
            write_shard(samples, out, first // _PER_SHARD)
            write_truth(samples)
    (out / ".unfinished").unlink()
    return True


def _is_written(out: Path, settings: str) -> bool:
    """Whether the folder holds this set whole."""
    import pyarrow.parquet as pq

    truth, unfinished = out / TRUTH_FILE, out / ".unfinished"
    if truth.exists():
        found = (pq.read_schema(truth).metadata or {}).get(b"settings", b"").decode()
    elif unfinished.exists():
        found = unfinished.read_text()
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds other files: name another folder with --out")
    else:
        return False
    if found != settings:
        raise UserError(f"{out} holds scenes of other settings: {found}: name another folder with --out")
    return truth.exists()


def _write_jpegs(samples: list[Sample], out: Path, shard: int) -> None:
    """Loose files in folders of a thousand, or in one folder for each class; the alt text is next to each."""
    for one in samples:
        folder = out / (one.class_label or f"{shard:05d}")
        folder.mkdir(exist_ok=True)
        (folder / f"{one.key}.jpg").write_bytes(jpeg_bytes(render(one.scene)))
        (folder / f"{one.key}.txt").write_text(one.texts.alt_text)


def _write_tar(samples: list[Sample], out: Path, shard: int) -> None:
    """A WebDataset shard: jpg, txt and, for single objects, cls."""
    from dataset_builder.dataset.webdataset import add_member

    with _whole_file(out / f"scenes-{shard:05d}.tar") as path, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for one in samples:
            members = {"jpg": jpeg_bytes(render(one.scene)), "txt": one.texts.alt_text.encode()}
            if one.class_label:
                members["cls"] = one.class_label.encode()
            for suffix, content in members.items():
                add_member(tar, f"{one.key}.{suffix}", content)


def _write_parquet(samples: list[Sample], out: Path, shard: int) -> None:
    """A table as `datasets` writes it: image {bytes, path}, with alt_text and class_label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("alt_text", pa.string()), ("class_label", pa.string())])
    rows = [
        {
            "image": {"bytes": jpeg_bytes(render(one.scene)), "path": f"{one.key}.jpg"},
            "alt_text": one.texts.alt_text,
            "class_label": one.class_label,
        }
        for one in samples
    ]
    with _whole_file(out / f"scenes-{shard:05d}.parquet") as path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="none")


def truth_schema() -> "pa.Schema":
    """The columns of `_truth.parquet`: one row per image."""
    import pyarrow as pa

    thing = pa.struct(
        [(name, pa.string()) for name in ("kind", "size", "place")]
        + [(name, pa.int32()) for name in ("x_px", "y_px", "width_px", "height_px", "size_px")]
    )
    relation = pa.struct([(name, pa.string()) for name in ("subject", "relation", "other")])
    return pa.schema(
        [
            ("key", pa.string()),
            ("index", pa.int64()),
            ("split", pa.string()),
            ("objects", pa.list_(thing)),
            ("background_color", pa.string()),
            ("pattern", pa.string()),
            ("relation", relation),
            ("class_label", pa.string()),
            *((name, pa.string()) for name in ("alt_text", "dense", "medium", "short")),
        ]
    )


def _truth_row(one: Sample) -> dict[str, Any]:
    scene = one.scene
    return {
        "key": one.key,
        "index": scene.index,
        "split": scene.split,
        "objects": [dataclasses.asdict(thing) for thing in scene.objects],
        "background_color": scene.color,
        "pattern": scene.pattern,
        "relation": dataclasses.asdict(scene.relation) if scene.relation else None,
        "class_label": one.class_label,
        **dataclasses.asdict(one.texts),
    }


@contextmanager
def _truth_writer(path: Path, settings: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = truth_schema().with_metadata({"settings": settings})
    with _whole_file(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        yield lambda samples: writer.write_table(pa.Table.from_pylist([_truth_row(one) for one in samples], schema=schema))


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A name to write to; what was written takes the place of `path` only when it is complete."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    os.replace(unfinished, path)
