"""Writes small images and containers for tests, and a file system that counts what is read through it."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from PIL import Image

from foundry.images.index import SOURCE_INDEX
from foundry.images.sources import Source, find_sources, index_source, index_sources


def jpeg(seed: int = 0, *, size: tuple[int, int] = (32, 24)) -> bytes:
    """A JPEG whose bytes differ from seed to seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encode(Image.fromarray(noise), "JPEG")


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes]], *, tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sa1b_json(image_id: int, areas: Iterable[int]) -> bytes:
    """A JSON as SA-1B has it; Source: the data set's README."""
    image = {"image_id": image_id, "width": 2250, "height": 1500, "file_name": f"sa_{image_id}.jpg"}
    annotations = [{"id": 7, "segmentation": {"size": [1500, 2250], "counts": "abc"}, "area": area} for area in areas]
    return json.dumps({"image": image, "annotations": annotations}).encode()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows_of(*images: str | Path) -> list[dict[str, Any]]:
    """All rows of all sources, each table checked against the schema."""
    rows: list[dict[str, Any]] = []
    for source in find_sources([str(given) for given in images]):
        for table in index_source(source):
            assert table.schema == SOURCE_INDEX
            table.validate(full=True)
            rows += table.to_pylist()
    return rows


def carried_by(source: Source) -> dict[str, str]:
    (indexed,) = index_sources([source])
    assert list(indexed.tables)
    return indexed.carried


def relatives(*images: str | Path) -> list[str]:
    return [row["relative"] for row in rows_of(*images)]


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


class CountingFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """`counting://name` serves bytes from memory by ranges and keeps every range that was fetched.

    Like s3fs it keeps listings until it is told to forget them.
    """

    protocol = "counting"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    fetched: ClassVar[list[tuple[str, int, int]]] = []
    listings: ClassVar[dict[str, list[str]]] = {}

    @classmethod
    def serve(cls, files: Mapping[str, bytes]) -> None:
        fsspec.register_implementation("counting", cls, clobber=True)
        cls.files = dict(files)
        cls.fetched = []
        cls.listings = {}

    @classmethod
    def fetched_bytes(cls) -> int:
        return sum(end - start for _, start, end in cls.fetched)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        if path in self.files:
            return [self.info(path)]
        if path not in self.listings:
            prefix = f"{path.rstrip('/')}/" if path else ""
            names = {prefix + name.removeprefix(prefix).split("/", 1)[0] for name in self.files if name.startswith(prefix)}
            # In an arbitrary order, as file systems list.
            self.listings[path] = sorted(names, key=lambda name: name[::-1])
        return [self.info(name) if detail else name for name in self.listings[path]]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file", "ETag": f"etag of {path}"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> "_CountingFile":
        return _CountingFile(self, path, mode, size=self.info(path)["size"], **options)


class _CountingFile(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        CountingFileSystem.fetched.append((self.path, start, end))
        return CountingFileSystem.files[self.path][start:end]
