"""The plan of a feature store: the samples of each unit. Shuffled once, each unit of one split and one bucket.

So a unit is a shard that is read from its beginning to its end, and units can be taken in any order. `plan/<n>.json` publishes
the units of planning n; sources that have grown get further units. Several resolutions made in one pass share one plan.
"""

import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.units.commits import Unit, row_groups_bytes
from trainer.features.buckets import Size, nearest_buckets
from trainer.features.sources import SAMPLE, FeatureSource

if TYPE_CHECKING:
    import pyarrow as pa

UNITS_PER_PART = 400
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, kw_only=True)
class PlannedUnit(Unit):
    """A piece of the plan."""

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    database.execute("CREATE TABLE planned (key VARCHAR)")
    for part in sorted({unit.part for unit in plan.units}):
        with folder.open(part) as file:
            _insert(database, "planned", "SELECT key FROM batch", pq.read_table(file, columns=["key"]))
    fields = [*SAMPLE, pa.field("buckets", pa.list_(pa.int32()))]
    _insert(database, "staged", "SELECT * FROM batch", pa.schema(fields).empty_table(), create=True)
    for table in source.tables():
        _insert(database, "staged", "SELECT * FROM batch", table.append_column("buckets", _buckets(table, settings, source)))
    database.execute("CREATE TABLE fresh AS SELECT * FROM staged ANTI JOIN planned USING (key)")
    repeated = database.sql("SELECT key FROM fresh GROUP BY key HAVING count(*) > 1 LIMIT 1").fetchall()
    if repeated:
        raise UserError(f"{source.url} has the key {repeated[0][0]} twice: build a data set of it, which gives unique keys")


def _insert(database: Any, table: str, select: str, batch: "pa.Table", *, create: bool = False) -> None:
    database.register("batch", batch)
    database.execute(f"CREATE TABLE {table} AS {select}" if create else f"INSERT INTO {table} {select}")
    database.unregister("batch")


def _buckets(table: "pa.Table", settings: PlanSettings, source: FeatureSource) -> "pa.Array":
    """Bucket of each sample at each resolution, as indices of the tables."""
    import pyarrow as pa

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


# md5, since DuckDB's own hash differs between versions. Units are ordered by the hash of their first sample.
_UNITS_SQL = """
WITH split AS (
    SELECT * EXCLUDE (split), md5_number_lower(key || '/' || $seed) AS shuffled,
        coalesce(split, CASE WHEN md5_number_lower(key) < $threshold THEN 'validation' ELSE 'train' END) AS split
    FROM fresh
), numbered AS (
    SELECT *, (row_number() OVER (PARTITION BY split, buckets ORDER BY shuffled, key) - 1) // $unit_size AS piece FROM split
)
SELECT * FROM numbered ORDER BY min(shuffled) OVER (PARTITION BY split, buckets, piece), split, buckets, piece, shuffled, key
"""


def _write_units(folder: Folder, reader: Any, plan: FeaturePlan, settings: PlanSettings) -> Iterator[PlannedUnit]:
    """Cuts a stream of record batches, sorted by unit, into index files of UNITS_PER_PART units, a row group each."""
    attempt = secrets.token_hex(4)
    numbered = enumerate(_whole_units(reader), start=len(plan.units))
    while units := list(islice(numbered, UNITS_PER_PART)):
        path = f"plan/{plan.num_plans}-{attempt}-{units[0][0]:08d}.parquet"
        folder.create(path, row_groups_bytes([table.select(SAMPLE.names) for _, table in units]))
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
                split=table["split"][0].as_py(),
                buckets=buckets,
            )


def _whole_units(reader: Any) -> "Iterator[pa.Table]":
    """One table for each run of rows of the same split, buckets and piece."""
    import pyarrow as pa

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
