"""The plan of a feature store: the samples of each unit. Shuffled once, each unit of one split and one bucket.

So a unit is a shard that is read from its beginning to its end, and units can be taken in any order. `plan/<n>.json` publishes
the units of planning n; sources that have grown get further units. Several resolutions made in one pass share one plan.

The samples of a unit follow from the source and the seed alone (_ORDER_SQL). In the order of the source, samples are cut into
blocks; a window takes a block from each of 32 to 63 equal parts of that order, chosen by a hash; and units are cut from the
samples of a window, shuffled by a hash. So each unit has images from all over the source, and the containers that a window
needs are few enough for a node to read each part of them once (foundry/images/ahead).
"""

import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foundry.errors import UserError
from foundry.images.index import LISTED
from foundry.images.parquet import row_group_starts
from foundry.storage.folder import Folder
from foundry.units.commits import row_groups_bytes
from foundry.units.workers import WindowedUnit
from trainer.features.buckets import Size, nearest_buckets
from trainer.features.sources import SAMPLE, FeatureSource

UNITS_PER_PART = 400
BLOCK_SAMPLES = 128
"""Samples of a block, at least; the row groups of a Parquet file and the byte ranges of a tar stay whole."""
PLACES = 32
"""Blocks of a window, at least."""
_MAX_GAP_BYTES = 256 << 10
_MAX_SPAN_BYTES = 16 << 20
_FOOTER_THREADS = 16
TRAIN, VALIDATION = "train", "validation"
_BUCKETS = pa.field("buckets", pa.list_(pa.int32()))
_ROW_GROUPS = pa.schema([pa.field("uri", pa.string()), pa.field("first_row", pa.int64()), pa.field("num_rows", pa.int64())])
# The rows of a unit: a sample with its extent in its container, in rows or bytes; null where it is read alone.
INDEX = pa.schema([*SAMPLE, pa.field("extent_start", pa.int64()), pa.field("extent_length", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class PlannedUnit(WindowedUnit):
    """A piece of the plan. Its window is the last one where its samples are from several; plans of before had none."""

    split: str
    buckets: dict[int, Size]
    """Height and width in pixels at each resolution."""


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """All units, in the order of their numbers, and how many plannings there were."""

    units: tuple[PlannedUnit, ...]
    num_plans: int
    validation_share: float | None
    """Share of the samples that became validation where the source says nothing; none before the first planning."""

    @property
    def num_samples(self) -> int:
        """Number of samples in all units."""
        return sum(unit.num_images for unit in self.units)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of the division of samples into units."""

    tables: Mapping[int, Sequence[Size]]
    """The buckets of each resolution."""
    seed: int
    """Random seed for the order in which samples are cut into units."""
    unit_size: int
    """Samples per unit, at most."""
    validation_share: float
    """Share of the samples for validation where the source has no splits."""
    min_validation: int
    """Minimum number of validation samples, where that is no more than a tenth."""


def read_feature_plan(folder: Folder) -> FeaturePlan:
    """The plan of a store as far as it is published; empty if nothing is."""
    names = sorted((name for name in folder.names("plan") if name.endswith(".json")), key=lambda name: int(name[:-5]))
    records = [json.loads(data) for data in folder.read_many([f"plan/{name}" for name in names]).values()]
    return FeaturePlan(
        units=tuple(_unit_of(unit) for record in records for unit in record["units"]),
        num_plans=len(records),
        validation_share=records[0]["validation_share"] if records else None,
    )


def extend_feature_plan(folders: Sequence[Folder], source: FeatureSource, settings: PlanSettings) -> FeaturePlan:
    """Appends units for the samples of the source that are not planned yet, in all stores alike; returns the whole plan.

    The files are in the first store; the others name them there. Raises UserError if stores do not have the same plan.
    """
    plans = [read_feature_plan(folder) for folder in folders]
    plan = max(plans, key=lambda one: one.num_plans)
    lead = folders[0]
    if plans[0] == plan:
        fresh = _plan_fresh(lead, plan, source, settings)
        if not fresh["units"] and plan.num_plans:
            return _publish_elsewhere(folders, plan)
        if not lead.create(f"plan/{plan.num_plans}.json", json.dumps(fresh).encode()):
            raise UserError(f"another process is planning {lead.url} at the same time: wait until it has, then run this again")
    return _publish_elsewhere(folders, read_feature_plan(lead))


def _publish_elsewhere(folders: Sequence[Folder], plan: FeaturePlan) -> FeaturePlan:
    """Gives the other stores the plan of the first, with paths that lead there."""
    lead = folders[0]
    here = f"../{lead.root.rsplit('/', 1)[-1]}/"
    for folder in folders[1:]:
        for number in range(read_feature_plan(folder).num_plans, plan.num_plans):
            record = json.loads(lead.read(f"plan/{number}.json"))
            for unit in record["units"]:
                unit["part"] = here + unit["part"]
            folder.create(f"plan/{number}.json", json.dumps(record).encode())
        if read_feature_plan(folder).num_samples != plan.num_samples:
            raise UserError(
                f"{folder.url} and {lead.url} have other plans: give another folder, or one resolution at a time", setting="out"
            )
    return plan


def _unit_of(record: dict[str, Any]) -> PlannedUnit:
    buckets = {int(resolution): (size[0], size[1]) for resolution, size in record["buckets"].items()}
    return PlannedUnit(**{**record, "buckets": buckets})


def _plan_fresh(folder: Folder, plan: FeaturePlan, source: FeatureSource, settings: PlanSettings) -> dict[str, Any]:
    """Writes the index files of samples that are not planned; returns the record that publishes them."""
    from dataset_builder.sql.database import scratch_database

    with tempfile.TemporaryDirectory() as directory, scratch_database(directory) as database:
        _stage(database, folder, plan=plan, source=source, settings=settings)
        _place(database, settings)
        share = plan.validation_share
        if share is None:
            count = database.sql("SELECT count(*) FROM fresh").fetchall()[0][0]
            share = max(settings.validation_share, min(0.1, settings.min_validation / max(count, 1)))
        cut = {"seed": str(settings.seed), "unit_size": settings.unit_size, "threshold": int(share * 2**64)}
        reader = database.sql(_UNITS_SQL, params=cut).to_arrow_reader(settings.unit_size * 16)
        units = [asdict(unit) for unit in _write_units(folder, reader, plan, settings)]
    return {"units": units, "validation_share": share}


def _stage(database: Any, folder: Folder, *, plan: FeaturePlan, source: FeatureSource, settings: PlanSettings) -> None:
    """Fills the table `fresh` with the source's samples that are not planned yet, each with its buckets."""
    import pyarrow.parquet as pq

    database.execute("CREATE TABLE planned (key VARCHAR)")
    for part in sorted({unit.part for unit in plan.units}):
        with folder.open(part) as file:
            _insert(database, "planned", "SELECT key FROM batch", pq.read_table(file, columns=["key"]))
    fields = [*SAMPLE, _BUCKETS]
    _insert(database, "staged", "SELECT * FROM batch", pa.schema(fields).empty_table(), create=True)
    for table in source.tables():
        _insert(database, "staged", "SELECT * FROM batch", table.append_column("buckets", _buckets(table, settings, source)))
    database.execute("CREATE TABLE fresh AS SELECT * FROM staged ANTI JOIN planned USING (key)")
    repeated = database.sql("SELECT key FROM fresh GROUP BY key HAVING count(*) > 1 LIMIT 1").fetchall()
    if repeated:
        raise UserError(f"{source.url} has the key {repeated[0][0]} twice: build a data set of it, which gives unique keys")


def _place(database: Any, settings: PlanSettings) -> None:
    """Fills the table `placed`: the extent and the window of each sample of `fresh`."""
    condition = f"\"row\" IS NOT NULL AND member IS DISTINCT FROM '{LISTED}'"
    uris = [uri for (uri,) in database.sql(f"SELECT DISTINCT uri FROM fresh WHERE {condition} ORDER BY uri").fetchall()]
    with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
        found = zip(uris, threads.map(_starts, uris), strict=True)
        groups = pa.Table.from_batches((_row_groups(*one) for one in found), _ROW_GROUPS)
    _insert(database, "row_groups", "SELECT * FROM batch", groups, create=True)
    sizes = {"gap": _MAX_GAP_BYTES, "span": _MAX_SPAN_BYTES, "block": BLOCK_SAMPLES, "places": PLACES}
    database.execute(_ORDER_SQL, {"seed": str(settings.seed), **sizes})


def _starts(uri: str) -> list[int]:
    """First rows of the row groups of a Parquet file, and the number of its rows; none of one that cannot be read.

    Its images are then read one by one, where each is rejected with a reason.
    """
    try:
        return row_group_starts(uri)
    except UserError:
        return []


def _row_groups(uri: str, starts: Sequence[int]) -> "pa.RecordBatch":
    lengths = np.diff(starts)
    columns = [pa.array([uri] * len(lengths), pa.string()), pa.array(starts[:-1], pa.int64()), pa.array(lengths, pa.int64())]
    return pa.record_batch(columns, schema=_ROW_GROUPS)


def _insert(database: Any, table: str, select: str, batch: "pa.Table", *, create: bool = False) -> None:
    database.register("batch", batch)
    database.execute(f"CREATE TABLE {table} AS {select}" if create else f"INSERT INTO {table} {select}")
    database.unregister("batch")


def _buckets(table: "pa.Table", settings: PlanSettings, source: FeatureSource) -> "pa.Array":
    """Bucket of each sample at each resolution, as indices of the tables."""
    indices: list[npt.NDArray[np.int32]] = []
    for sizes in settings.tables.values():
        if len(sizes) == 1:
            indices.append(np.zeros(len(table), dtype=np.int32))
            continue
        if table["width"].null_count or table["height"].null_count:
            raise UserError(
                f"{source.url} does not tell the sizes of its images: build a data set of it, or crop all to squares",
                setting="square",
            )
        indices.append(nearest_buckets(table["height"].to_numpy(), table["width"].to_numpy(), sizes))
    return pa.array(list(np.stack(indices, axis=1)), pa.list_(pa.int32()))


# Extents are row groups, or runs of ranges in a tar with small gaps, cut after 16 MiB; one with a single sample is none. Blocks
# hold whole extents. With m windows, each run of m blocks gives one block to each window, in the order of a hash. md5, since
# DuckDB's own hash differs between versions.
_ORDER_SQL = """
CREATE TABLE placed AS
WITH sorted AS (
    SELECT key, fresh.uri, byte_offset, byte_offset + byte_length AS byte_end, first_row, num_rows,
        row_number() OVER (ORDER BY fresh.uri, fresh."row", byte_offset, key) AS place
    FROM fresh ASOF LEFT JOIN row_groups ON fresh.uri = row_groups.uri AND fresh."row" >= row_groups.first_row
), runs AS (
    SELECT *, sum(CAST(coalesce(byte_offset - before > $gap, false) AS INTEGER)) OVER (PARTITION BY uri ORDER BY place) AS run
    FROM (SELECT *, max(byte_end) OVER (PARTITION BY uri ORDER BY place ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW) AS before
        FROM sorted)
), pieces AS (
    SELECT *, (byte_offset - min(byte_offset) OVER (PARTITION BY uri, run)) // $span AS piece FROM runs
), extents AS (
    SELECT key, place, uri, coalesce(first_row, min(byte_offset) OVER same) AS extent_start,
        coalesce(num_rows, max(byte_end) OVER same - min(byte_offset) OVER same) AS extent_length,
        count(*) OVER same > 1 AS is_shared, min(place) OVER same AS first_place
    FROM pieces WINDOW same AS (PARTITION BY uri, run, piece, first_row)
), blocks AS (
    SELECT key, CASE WHEN is_shared THEN extent_start END AS extent_start,
        CASE WHEN is_shared THEN extent_length END AS extent_length,
        dense_rank() OVER (ORDER BY CASE WHEN is_shared AND extent_length IS NOT NULL THEN first_place ELSE place END // $block)
            - 1 AS block
    FROM extents
), windows AS (
    SELECT block, row_number() OVER (PARTITION BY block // num_windows ORDER BY md5_number_lower(block || '/' || $seed)) - 1
            AS "window"
    FROM (SELECT DISTINCT block, greatest(1, (SELECT max(block) + 1 FROM blocks) // $places) AS num_windows FROM blocks)
)
SELECT key, extent_start, extent_length, "window" FROM blocks JOIN windows USING (block)
"""

# Units are ordered by their window, so that those that share extents are made at about the same time.
_UNITS_SQL = """
WITH split AS (
    SELECT * EXCLUDE (split), md5_number_lower(key || '/' || $seed) AS shuffled,
        coalesce(split, CASE WHEN md5_number_lower(key) < $threshold THEN 'validation' ELSE 'train' END) AS split
    FROM fresh JOIN placed USING (key)
), numbered AS (
    SELECT *, (row_number() OVER (PARTITION BY split, buckets ORDER BY "window", shuffled, key) - 1) // $unit_size AS piece
    FROM split
)
SELECT * FROM (
    SELECT *, max("window") OVER (PARTITION BY split, buckets, piece) AS unit_window,
        min(shuffled) OVER (PARTITION BY split, buckets, piece) AS first_shuffled
    FROM numbered
) ORDER BY unit_window, first_shuffled, split, buckets, piece, shuffled, key
"""


def _write_units(folder: Folder, reader: Any, plan: FeaturePlan, settings: PlanSettings) -> Iterator[PlannedUnit]:
    """Cuts a stream of record batches, sorted by unit, into index files of UNITS_PER_PART units, a row group each."""
    attempt = secrets.token_hex(4)
    numbered = enumerate(_whole_units(reader), start=len(plan.units))
    while units := list(islice(numbered, UNITS_PER_PART)):
        path = f"plan/{plan.num_plans}-{attempt}-{units[0][0]:08d}.parquet"
        folder.create(path, row_groups_bytes([table.select(INDEX.names) for _, table in units]))
        for group, (number, table) in enumerate(units):
            indices = table["buckets"][0].as_py()
            buckets = {
                resolution: sizes[index] for (resolution, sizes), index in zip(settings.tables.items(), indices, strict=True)
            }
            yield PlannedUnit(
                number=number,
                part=path,
                row_group=group,
                num_images=len(table),
                window=table["unit_window"][0].as_py(),
                split=table["split"][0].as_py(),
                buckets=buckets,
            )


def _whole_units(reader: Any) -> "Iterator[pa.Table]":
    """One table for each run of rows of the same split, buckets and piece."""
    pieces = (piece for batch in reader for piece in _runs(pa.Table.from_batches([batch])))
    for _, tables in groupby(pieces, key=_unit_name):
        yield pa.concat_tables(tables).combine_chunks()


def _runs(table: "pa.Table") -> "Iterator[pa.Table]":
    """A table cut where the unit changes."""
    columns = (table[name].to_pylist() for name in ("split", "buckets", "piece"))
    start = 0
    for _, rows in groupby(zip(*columns, strict=True)):
        length = len(list(rows))
        yield table.slice(start, length)
        start += length


def _unit_name(table: "pa.Table") -> tuple[Any, ...]:
    return tuple(table[name][0].as_py() for name in ("split", "buckets", "piece"))
