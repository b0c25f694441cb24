"""Units to score: those of a captioning run, or an index of a data set, cut into units of the usual size.

A row to score has the key, the reference and the content hash of an image, and its captions by prompt.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.sql.dataset_files import find_dataset
from foundry.errors import UserError
from foundry.images.decoding import DecodeLimits
from foundry.images.index import IMAGES, REFERENCE_NAMES, refer_to_embedded
from foundry.storage.folder import Folder
from foundry.storage.run_record import RunRecord
from foundry.storage.schema import versioned
from foundry.units.commits import Unit, read_commit, read_commits, read_unit

UNIT_IMAGES = 512
"""Images in a unit of a data set."""

_CAPTIONS = pa.field("captions", pa.list_(pa.struct([("prompt", pa.string()), ("caption", pa.string())])), nullable=False)
_ROWS = pa.schema([*(IMAGES.field(name) for name in ("key", *REFERENCE_NAMES, "content_hash")), _CAPTIONS])


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A captioning run or a data set that is scored, by its record, which is read once."""

    folder: Folder
    identity: str
    """The run_id of a run, or a hash of the files of a data set."""
    limits: DecodeLimits
    """The limits that its images were decoded with."""
    samples: list[str] | None
    """The files of samples of a data set; None for a run."""
    structured: tuple[str, ...] = ()
    """The prompts whose captions are JSON."""

    @property
    def is_run(self) -> bool:
        """Whether it is a captioning run."""
        return self.samples is None


def find_scored(url: str) -> Scored:
    """The run or data set at `url`. Raises UserError for a folder that is neither."""
    folder = Folder(url)
    if run := RunRecord.read(folder):
        limits = DecodeLimits(**run.settings.get("limits", {}))
        structured = tuple(run.structured_prompts)
        return Scored(folder=folder, identity=run.run_id, limits=limits, samples=None, structured=structured)
    dataset = find_dataset(url)
    if dataset is None:
        raise UserError(
            f"{url} is neither a captioning run nor a data set: give a folder that captioner.run or dataset_builder.build wrote"
        )
    identity = hashlib.sha256(json.dumps(dataset.record["files"], sort_keys=True).encode()).hexdigest()[:16]
    return Scored(
        folder=folder,
        identity=identity,
        limits=DecodeLimits(),
        samples=dataset.paths("samples"),
        structured=tuple(dataset.structured),
    )


def plan_scores(scored: Scored, out: Folder) -> list[Unit]:
    """All units, scored or not. Raises UserError if there is nothing to score."""
    folder, samples = scored.folder, scored.samples
    units = run_units_to_score(folder) if samples is None else index_samples(folder, samples, out)
    if not units:
        raise UserError(f"{folder.url} holds no captioned image yet: caption first")
    return units


def run_units_to_score(run: Folder) -> list[Unit]:
    """The units of a captioning run that are committed and hold an image."""
    commits = [commit for commit in read_commits(run) if "images" in commit.files]
    return [
        Unit(number=commit.unit, part=commit.files["images"].path, row_group=0, num_images=commit.completed)
        for commit in commits
    ]


def read_run_rows(run: Folder, unit: Unit) -> list[dict[str, Any]]:
    """The rows of such a unit."""
    rows = read_unit(run, unit)
    captions: dict[str, list[dict[str, str]]] = {row["key"]: [] for row in rows}
    files = read_commit(run, unit.number).files
    if "captions" in files:
        with run.open(files["captions"].path) as file:
            for said in pq.read_table(file, columns=["key", "prompt", "caption"]).to_pylist():
                if (key := said.pop("key")) in captions:  # else captioned by a retry since the units were planned
                    captions[key].append(said)
    return [row | {"captions": captions[row["key"]]} for row in rows]


def index_samples(dataset: Folder, parts: list[str], out: Folder) -> list[Unit]:
    """Writes the index of a data set's files into `out`, unless it is there, and returns its units; read_unit reads them.

    Raises UserError if a file cannot be read.
    """
    units: list[Unit] = []
    for number, part in enumerate(parts):
        name = f"plan/{number:05d}.parquet"
        if not out.exists(name):
            out.create(name, _index_bytes(dataset, part))
        with out.open(name) as file:
            metadata = pq.ParquetFile(file).metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        units += [
            Unit(number=len(units) + group, part=name, row_group=group, num_images=size) for group, size in enumerate(sizes)
        ]
    return units


def _index_bytes(dataset: Folder, part: str) -> bytes:
    """A row group to a unit, from a file of samples that is read in pieces."""
    buffer = io.BytesIO()
    try:
        with pq.ParquetWriter(buffer, versioned(_ROWS), compression="zstd") as writer:
            for rows in _units_of_rows(dataset, part):
                writer.write_table(pa.Table.from_pylist(rows, schema=versioned(_ROWS)), row_group_size=len(rows))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{dataset.path(part)} cannot be read ({error}): build the data set again") from None
    return buffer.getvalue()


def _units_of_rows(dataset: Folder, part: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a file, UNIT_IMAGES at a time. Those whose bytes are in the file itself refer to it."""
    columns = ["key", *REFERENCE_NAMES, "content_hash", "captions.list.element.prompt", "captions.list.element.caption"]
    pending: list[dict[str, Any]] = []
    first_row = 0
    with dataset.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(UNIT_IMAGES, columns=columns):
            pending += refer_to_embedded(batch.to_pylist(), uri=dataset.location(part), first_row=first_row)
            first_row += len(batch)
            while len(pending) >= UNIT_IMAGES:
                yield pending[:UNIT_IMAGES]
                pending = pending[UNIT_IMAGES:]
    if pending:
        yield pending
