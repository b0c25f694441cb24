"""Reading of trainer.precompute without decoding and encoding: `python -m benchmarks.precompute_reading`.

Images of random bytes in Parquet files with row groups of 20 MB, read by one process from a warm page cache: a part of them
in the order of a hash, one by one, as units were once planned (hash_order), and all of them by the units of the plan, as
precompute reads them, through the extents that units of a node share.

images_per_s, hash_order_images_per_s          images read in a second
speedup                                        the first over the second
cpu_ms_per_image, hash_order_cpu_ms_per_image  time of processors for an image, which other processes disturb less
mb_per_image, hash_order_mb_per_image          MB that are read from Parquet for an image of image_mb
disk_mb_per_image                              MB of it that are written to the node's disk, where its units read them

The mix, of a plan of --tars tars of equal size (no images are read):

sources_per_unit, uniform_sources_per_unit     tars that the 256 images of a unit are from; and were each drawn from all images
largest_share                                  largest share of a unit's images that one tar has, over all units
sources_per_window                             tars in four units, which training shuffles together
"""

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmarks.report import print_report
from foundry.command_line import run_command

if TYPE_CHECKING:
    import pyarrow as pa

    from foundry.images.reader import ImageReader

_UNIT = 256
_SIDE = 256
_GROUP_MB = 20
_IMAGES_PER_FILE = 1024


@dataclass(frozen=True)
class PrecomputeReadingConfig:
    """Settings of the benchmark."""

    images: int = 8192
    """Images in Parquet files."""
    image_kb: int = 230
    """Size of an image, in kB."""
    hash_order_images: int = 256
    """Images that are read in the order of a hash."""
    tars: int = 200
    """Tars of the plan whose mix is measured."""
    images_per_tar: int = 1000
    """Images of each of them."""


@dataclass(frozen=True)
class _Source:
    """Images in containers, as a source of features: each is of the first bucket."""

    containers: Mapping[str, int]
    """How many images each has, by its location."""
    image_bytes: int
    is_parquet: bool
    url: str = "benchmark"
    licence: str = ""

    def tables(self) -> "Iterator[pa.Table]":
        """A table for each container."""
        import pyarrow as pa

        from trainer.features.sources import SAMPLE

        for uri, count in self.containers.items():
            same = {"uri": uri, "member": "image", "width": _SIDE, "height": _SIDE, "split": "train", "captions": []}
            rows = [{**same, "key": f"{uri}/{number}", **self._place(number)} for number in range(count)]
            yield pa.Table.from_pylist(rows, schema=SAMPLE)

    def findings(self) -> Iterator[str]:
        """None."""
        yield from ()

    def _place(self, number: int) -> dict[str, int]:
        if self.is_parquet:
            return {"row": number}
        return {"byte_offset": 512 + number * (self.image_bytes + 1024), "byte_length": self.image_bytes}


def main(config: PrecomputeReadingConfig) -> int:
    """Prints the figures; returns 0."""
    with tempfile.TemporaryDirectory() as directory:
        figures = reading_figures(config, Path(directory)) | mix_figures(config, Path(directory))
    print_report("Reading of precompute", figures)
    return 0


def reading_figures(config: PrecomputeReadingConfig, directory: Path) -> dict[str, float]:
    """Speed and bytes of reading, in the order of a hash and as the plan says."""
    from foundry.images.ahead.extents import ExtentCache
    from foundry.images.ahead.reading import read_ahead
    from foundry.images.loading import read_rows

    num_bytes = config.image_kb * 1000
    units = _plan(directory / "plan", _write_parquet(config, directory, num_bytes))
    hashed = sorted((row for rows in units for row in rows), key=lambda row: hashlib.md5(row["key"].encode()).digest())
    with _Clock() as before:
        read_rows(hashed[: config.hash_order_images], _read)
    cache, written = ExtentCache(name="benchmark", max_bytes=1 << 40, parent=str(directory)), 0
    with _Clock() as now:
        for number, rows in enumerate(units):
            assert not read_ahead(rows, _read, cache=cache, max_bytes=1 << 30, turn=number).rejected
    written = sum(path.stat().st_size for path in cache.folder.iterdir())
    old_speed, speed = config.hash_order_images / before.seconds, config.images / now.seconds
    return {
        "images_per_s": speed,
        "hash_order_images_per_s": old_speed,
        "speedup": speed / old_speed,
        "cpu_ms_per_image": now.cpu_seconds / config.images * 1000,
        "hash_order_cpu_ms_per_image": before.cpu_seconds / config.hash_order_images * 1000,
        "image_mb": num_bytes / 1e6,
        "mb_per_image": (now.read_bytes / config.images - num_bytes) / 1e6,  # each is read once more, from the node's disk
        "hash_order_mb_per_image": before.read_bytes / config.hash_order_images / 1e6,
        "disk_mb_per_image": written / config.images / 1e6,
    }


def mix_figures(config: PrecomputeReadingConfig, directory: Path) -> dict[str, float]:
    """Sources of units and of four of them together."""
    tars = {f"s3://bucket/{number:05}.tar": config.images_per_tar for number in range(config.tars)}
    source = _Source(tars, config.image_kb * 1000, is_parquet=False)
    units = [rows for rows in _plan(directory / "mix", source) if len(rows) == _UNIT]
    counts = [Counter(row["uri"] for row in rows) for rows in units]
    random = sorted(range(len(units)), key=lambda number: hashlib.md5(str(number).encode()).digest())  # as training takes them
    windows = [set().union(*(counts[unit] for unit in random[start : start + 4])) for start in range(0, len(random) - 3, 4)]
    return {
        "sources": config.tars,
        "sources_per_unit": fmean(map(len, counts)),
        "uniform_sources_per_unit": config.tars * (1 - (1 - 1 / config.tars) ** _UNIT),
        "largest_share": max(max(count.values()) for count in counts) / _UNIT,
        "sources_per_window": fmean(map(len, windows)),
    }


def _write_parquet(config: PrecomputeReadingConfig, directory: Path, num_bytes: int) -> _Source:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise = np.random.default_rng(0).bytes(num_bytes + config.images)  # each image is another part of it
    files: dict[str, int] = {}
    for start in range(0, config.images, _IMAGES_PER_FILE):
        path = directory / f"images-{start:08}.parquet"
        numbers = range(start, min(start + _IMAGES_PER_FILE, config.images))
        table = pa.table({"image": pa.array([noise[number : number + num_bytes] for number in numbers], pa.large_binary())})
        pq.write_table(table, path, row_group_size=_GROUP_MB * 10**6 // num_bytes, use_dictionary=False)
        files[str(path)] = len(numbers)
    return _Source(files, num_bytes, is_parquet=True)


def _plan(folder: Path, source: _Source) -> list[list[dict[str, Any]]]:
    """The rows of each unit, in the order of the units."""
    from foundry.storage.folder import Folder
    from foundry.units.commits import read_unit
    from trainer.features.plan import PlanSettings, extend_feature_plan

    settings = PlanSettings(tables={_SIDE: ((_SIDE, _SIDE),)}, seed=0, unit_size=_UNIT, validation_share=0.0, min_validation=0)
    plan = extend_feature_plan([Folder(str(folder))], source, settings)
    return [read_unit(Folder(str(folder)), unit) for unit in plan.units]


def _read(reader: "ImageReader", row: Mapping[str, Any]) -> int:
    """Reads an image, and says its size."""
    from foundry.images.reader import reference_of

    return len(reader.read(reference_of(row)))


class _Clock:
    """Seconds of a block, those of processors, and bytes that this process read from files in it, cached or not (Linux)."""

    seconds = 0.0
    cpu_seconds = 0.0
    read_bytes = 0

    def __enter__(self) -> "_Clock":
        self._started, self._cpu, self._before = time.perf_counter(), time.process_time(), _bytes_read()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = time.process_time() - self._cpu
        self.read_bytes = _bytes_read() - self._before


def _bytes_read() -> int:
    lines: Sequence[str] = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            PrecomputeReadingConfig,
            main,
            prog="python -m benchmarks.precompute_reading",
            example="python -m benchmarks.precompute_reading --images 4096",
        )
    )
