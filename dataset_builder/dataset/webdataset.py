"""WebDataset export of a data set: OUT/<split>/shard-00000.tar with <key>.<suffix>, <key>.txt and <key>.json of each image.

The suffix is that of the image's content.

The bytes of the images are those that the references name, checked against their hash; the JSON holds the rest of the row. A
shard that exists is finished, so that the same command again writes only what is missing; OUT/webdataset.json says of
what the shards are, so that no other command does.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from dataset_builder.sql.dataset_files import DatasetFiles
from dataset_builder.sql.views import distinct_names
from foundry.errors import UserError
from foundry.hardware import usable_cores
from foundry.images.decoding import DecodeLimits, decode_image, image_suffix, is_plain
from foundry.images.index import REFERENCE_NAMES
from foundry.images.loading import Refusals
from foundry.images.reader import ImageReader, content_hash, reference_of
from foundry.reporting.lines import say
from foundry.storage.file_kinds import is_ignored
from foundry.storage.folder import Folder
from foundry.units.rejection import ImageError

_COMMON_SUFFIXES = ("jpg", "png", "webp")
"""Formats that the usual readers of WebDataset open."""
_BATCH_ROWS = 256
_RECORD = "webdataset.json"


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """Rows first to last - 1 of a file of samples, as one tar."""

    dataset: str
    part: str
    first: int
    last: int
    out: str
    name: str
    prompt: str
    reencode: bool


@dataclass(frozen=True, kw_only=True)
class _Written:
    """Images of a shard, and why the others are not in it, by key."""

    images: int
    failed: dict[str, str]


def export_shards(
    dataset: DatasetFiles,
    out: str,
    *,
    prompt: str,
    images_per_shard: int,
    reencode: bool = False,
    num_workers: int | None = None,
) -> int:
    """Writes all shards; returns 0, or 1 where an image could not be read or has no caption under the prompt.

    With `reencode` images that are no JPEG, PNG or WebP, or that Pillow refuses as they are, become PNG: the first frame,
    upright, in 8-bit RGB, as it was captioned.
    Raises UserError for a prompt that no caption has, and where `out` holds shards of something else.
    """
    known = [tally["prompt"] for tally in dataset.record["captions"]]
    if prompt and prompt not in known:
        raise UserError(
            f"{dataset.folder.url} has no captions under {prompt}: give one of {', '.join(known)}", setting="prompt"
        )
    record = {"dataset": dataset.record["identity"], "prompt": prompt, "images_per_shard": images_per_shard}
    _claim(Folder(out), record | ({"reencode": True} if reencode else {}))
    shards = list(_shards(dataset, out, prompt=prompt, images_per_shard=images_per_shard, reencode=reencode))
    there = {shard.name for shard in shards if Folder(out).exists(shard.name)}
    left = [shard for shard in shards if shard.name not in there]
    say(f"{out}: {len(shards):,} shards, {len(left):,} to write")
    images = 0
    failed: dict[str, str] = {}
    for written in _write_all(left, num_workers or usable_cores()):
        images += written.images
        failed |= written.failed
    for key, reason in list(failed.items())[:20]:
        say(f"left out: {key}: {reason}", err=True)
    say(f"{images:,} images written, {len(failed):,} left out")
    return 1 if failed else 0


def _claim(out: Folder, record: dict[str, Any]) -> None:
    """Says in `out` of what its shards are. Raises UserError if they are of something else."""
    if not out.create(_RECORD, json.dumps(record, indent=1).encode()) and json.loads(out.read(_RECORD)) != record:
        raise UserError(f"{out.url} holds shards of another data set, prompt or size: give another OUT")


def _shards(dataset: DatasetFiles, out: str, *, prompt: str, images_per_shard: int, reencode: bool) -> Iterator[_Shard]:
    for split in dataset.splits:
        number = 0
        for part in dataset.paths("samples", split=split):
            with dataset.folder.open(part) as file:
                num_rows = pq.ParquetFile(file).metadata.num_rows
            for first in range(0, num_rows, images_per_shard):
                yield _Shard(
                    dataset=dataset.folder.url,
                    part=part,
                    first=first,
                    last=min(first + images_per_shard, num_rows),
                    out=out,
                    name=f"{split}/shard-{number:05d}.tar",
                    prompt=prompt,
                    reencode=reencode,
                )
                number += 1


def _write_all(shards: list[_Shard], num_workers: int) -> Iterator[_Written]:
    if num_workers == 1 or len(shards) < 2:
        yield from map(_write_shard, shards)
        return
    with ProcessPoolExecutor(min(num_workers, len(shards)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_write_shard, shards)


def _write_shard(shard: _Shard) -> _Written:
    buffer = io.BytesIO()
    images = 0
    failed: dict[str, str] = {}
    refusals = Refusals(shard.last - shard.first)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar, ImageReader() as reader:
        for row in _rows(shard):
            caption = _caption(row, shard.prompt)
            if caption is None:
                failed[row["key"]] = f"no caption under {shard.prompt}"
                continue
            try:
                with refusals.of_one_image():
                    data = _image_bytes(reader, row)
                suffix = image_suffix(data)
                if shard.reencode and (suffix not in _COMMON_SUFFIXES or not is_plain(data)):
                    data, suffix = _as_png(data), "png"
                    row |= {"content_hash": content_hash(data), "format": "PNG"}
            except ImageError as error:
                failed[row["key"]] = f"{error.reason}: {error.message}"
                continue
            name = _name(row["key"])
            add_member(tar, f"{name}.{suffix}", data)
            add_member(tar, f"{name}.txt", caption.encode())
            add_member(tar, f"{name}.json", json.dumps(_facts(row), ensure_ascii=False).encode())
            images += 1
    Folder(shard.out).create(shard.name, buffer.getvalue())
    return _Written(images=images, failed=failed)


def _rows(shard: _Shard) -> Iterator[dict[str, Any]]:
    """The rows of a shard, without decoding row groups that are not its own."""
    with Folder(shard.dataset).open(shard.part) as opened:
        file = pq.ParquetFile(opened)
        begin = 0
        for group in range(file.metadata.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            if begin < shard.last and end > shard.first:
                position = begin
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group]):
                    low, high = max(shard.first - position, 0), min(shard.last - position, len(batch))
                    yield from batch.slice(low, high - low).to_pylist() if high > low else []
                    position += len(batch)
            begin = end


def _image_bytes(reader: ImageReader, row: Mapping[str, Any]) -> bytes:
    """The encoded image. Raises ImageError if it cannot be read or is another one by now."""
    if row["uri"] is None:
        return bytes(row["image"]["bytes"])
    data = reader.read(reference_of(row))
    if content_hash(data) != row["content_hash"]:
        raise ImageError("changed", f"{row['uri']} holds other bytes than when the data set was built")
    return data


def _as_png(data: bytes) -> bytes:
    """Raises ImageError if the image cannot be decoded."""
    limits = DecodeLimits(max_image_bytes=len(data), max_image_pixels=1 << 40)  # it was captioned within its run's limits
    buffer = io.BytesIO()
    Image.fromarray(decode_image(data, limits=limits).pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _caption(row: Mapping[str, Any], prompt: str) -> str | None:
    """The caption under a prompt, or the first one; None if there is none."""
    captions = [said["caption"] for said in row["captions"] if not prompt or said["prompt"] == prompt]
    return next(iter(captions), None)


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without the image and its reference, with the columns that the source carried, named as in SQL."""
    left_out = ("image", *REFERENCE_NAMES, "metadata")
    carried = json.loads(row["metadata"]) if row["metadata"] else {}
    names = distinct_names(carried)
    facts = {names[name]: value for name, value in carried.items()}
    return facts | {name: value for name, value in row.items() if name not in left_out and value is not None}


def _name(key: str) -> str:
    """A key as WebDataset wants it, where the suffix begins at the first dot, and as a search takes it, which passes over
    folders that begin with `_`; different keys keep different names."""
    escaped = key.replace("%", "%25").replace(".", "%2E").replace("\0", "%00").replace("//", "/%2F").strip("/")
    *folders, name = escaped.split("/")
    return "/".join([*(_escaped_mark(folder) for folder in folders), name])


def _escaped_mark(folder: str) -> str:
    return f"%{ord(folder[0]):02X}{folder[1:]}" if is_ignored(folder, is_folder=True) else folder


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Appends a file of these bytes."""
    member = tarfile.TarInfo(name)  # its time stays 0, so that the same data set makes the same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
