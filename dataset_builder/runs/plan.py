"""Plan of a run: its images, their keys and their units. Made once from the sources, then only extended.

An index file holds one row group per unit, so that a worker reads its own rows and nothing else. `plans/<n>.json` publishes
the index files of planning n; plan 0 comes from the first planning, later ones from sources that have grown.
"""

import json
import logging
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from dataset_builder.sql.run_files import PlanPart, read_plans
from foundry.errors import UserError
from foundry.images.sources import Source, index_sources
from foundry.reporting.progress import Bar
from foundry.storage.file_kinds import PassedOver
from foundry.storage.folder import Folder, store_errors
from foundry.units.commits import Unit, row_groups_bytes

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
_SOON_S = 2.0
"""Indexing that takes less is not shown."""
UNITS_PER_PART = 400


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All index files of a run, in the order of their units, and what the sources looked like when they were read.

    num_passed_over counts the files in tars that were left out because of their names. carried holds the columns that the
    sources carry, with their DuckDB types; of a name that several carry, a type that holds the values of all.
    """

    unit_size: int
    parts: tuple[PlanPart, ...]
    sources: tuple[dict[str, Any], ...]
    num_plans: int
    num_repeated: int
    num_passed_over: int
    carried: dict[str, str]

    @property
    def num_units(self) -> int:
        """All units, committed or not."""
        return sum(part.units for part in self.parts)

    @property
    def num_images(self) -> int:
        """All images, in whatever unit."""
        return sum(part.rows for part in self.parts)

    def units(self, *, limit: int | None = None) -> list[Unit]:
        """The units in order; with `limit`, the first ones that together hold at least that many images."""
        units: list[Unit] = []
        remaining = self.num_images if limit is None else limit
        for unit in self._all_units():
            if remaining <= 0:
                break
            units.append(unit)
            remaining -= unit.num_images
        return units

    def _all_units(self) -> Iterator[Unit]:
        for part in self.parts:
            for group in range(part.units):
                size = min(self.unit_size, part.rows - group * self.unit_size)
                yield Unit(number=part.first_unit + group, part=part.path, row_group=group, num_images=size)


def read_plan(run: Folder, *, unit_size: int) -> Plan:
    """The plan as far as it is published; empty if nothing is."""
    records = read_plans(run)
    return Plan(
        unit_size=unit_size,
        parts=tuple(part for record in records for part in record.parts),
        sources=tuple(source for record in records for source in record.sources),
        num_plans=len(records),
        num_repeated=sum(record.num_repeated for record in records),
        num_passed_over=sum(record.num_passed_over for record in records),
        carried=_common_types(record.carried for record in records),
    )


def extend_plan(run: Folder, sources: Sequence[Source], *, unit_size: int) -> Plan:
    """Appends units for the images of `sources` that are not planned yet, and returns the whole plan.

    Containers that are as they were when they were planned are not opened again. Raises UserError if a tar or a Parquet
    file has changed, since the planned byte ranges and rows would no longer hold. What takes longer than two seconds is
    counted on stderr.
    """
    with store_errors(run):
        plan = read_plan(run, unit_size=unit_size)
    fresh = _unseen(sources, plan)
    if not fresh:
        return plan
    indexed = _index(run, fresh, plan)
    if not indexed["parts"] and plan.num_plans:
        return plan
    return publish_plan(run, plan, indexed | {"sources": [source.record() for source in fresh]})


def publish_plan(run: Folder, plan: Plan, record: Mapping[str, Any]) -> Plan:
    """Makes `record` the next one of the plan, and returns the whole. Raises UserError if another process was faster."""
    with store_errors(run):
        if not run.create(f"plans/{plan.num_plans}.json", json.dumps(record, indent=1).encode()):
            raise UserError(f"another process is planning {run.url} at the same time: wait until it has, then run this again")
        return read_plan(run, unit_size=plan.unit_size)


def discard_plan(run: Folder) -> None:
    """Removes a plan of which nothing is committed, the newest part first, so that what is left is always a plan."""
    with store_errors(run):
        for record in reversed(read_plans(run)):
            for path in (record.path, *(part.path for part in record.parts)):
                run.filesystem.rm_file(run.path(path))


def _common_types(sources: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The columns of all, each with a type that holds the values of all."""
    from foundry.images.metadata import merge_types

    types: dict[str, str] = {}
    for source in sources:
        merge_types(types, source)
    return types


def _unseen(sources: Sequence[Source], plan: Plan) -> list[Source]:
    """The sources that have to be read: new ones, and those that can grow (folders of files, lists)."""
    planned = {source["uri"]: source for source in plan.sources}
    fresh = []
    for source in sources:
        before = planned.get(source.uri)
        same = before is not None and (before["num_bytes"], before["modified"]) == (source.num_bytes, source.modified)
        if before is not None and not same and source.kind in ("tar", "parquet"):
            raise UserError(
                f"{source.uri} has changed since it was planned: put it under another name, or start a new folder",
                setting="out",
            )
        if not same or source.kind == "files":
            fresh.append(source)
    return fresh


def _index(run: Folder, sources: Sequence[Source], plan: Plan) -> dict[str, Any]:
    """Writes the index files of what is new; returns what a plan's record says of them."""
    from dataset_builder.sql.database import scratch_database

    with tempfile.TemporaryDirectory() as directory, scratch_database(directory) as database:
        database.execute("CREATE TABLE planned (key VARCHAR, uri VARCHAR, member VARCHAR, row BIGINT)")
        for part in plan.parts:
            _insert(database, "planned (SELECT key, uri, member, row FROM batch)", _read_part(run, part))
        record = _stage(database, sources)
        (record["num_repeated"],) = database.execute(_FRESH_SQL).fetchall()[0]
        reader = database.sql(_KEYED_SQL).to_arrow_reader(plan.unit_size * 16)
        record["parts"] = [asdict(part) for part in write_parts(run, reader, plan)]
    return record


def _stage(database: Any, sources: Sequence[Source]) -> dict[str, Any]:
    """Reads the sources into the table `staged`, numbered in their order; returns what a plan's record says of all."""
    from foundry.images.index import SOURCE_INDEX

    rows = "SELECT *, nextval('positions') AS position FROM batch"
    database.execute("CREATE SEQUENCE positions")
    database.register("batch", SOURCE_INDEX.empty_table())
    database.execute(f"CREATE TABLE staged AS {rows}")
    carried: list[dict[str, str]] = []
    passed_over = PassedOver()
    with Bar("indexing", soon_s=_SOON_S) as bar:
        for source in index_sources(sources):
            for batch in source.tables:
                _insert(database, f"staged ({rows})", batch)
                bar.advance(len(batch))
            carried.append(source.carried)
            passed_over.add(source.passed_over)
    for finding, (count, where) in passed_over.notes.items():
        logger.warning("%s %s (first: %s)", f"{count:,}", finding, where)
    if line := replace(passed_over, files=0).line():
        logger.warning("in tars: %s", line)
    return {"carried": _common_types(carried), "num_passed_over": passed_over.files}


# An image that the sources list twice, or that was planned before, is one image: the first reference counts.
_FRESH_SQL = """
CREATE TABLE fresh AS
SELECT * FROM staged ANTI JOIN planned ON staged.uri = planned.uri
    AND staged.member IS NOT DISTINCT FROM planned.member AND staged.row IS NOT DISTINCT FROM planned.row;
CREATE TABLE repeated AS
SELECT position FROM fresh QUALIFY row_number() OVER (PARTITION BY uri, member, row ORDER BY position) > 1;
DELETE FROM fresh WHERE position IN (SELECT position FROM repeated);
SELECT count(*) FROM repeated
"""

# The file stem where it is unique in the run, else the relative path, else (two roots with the same paths) the whole reference.
_KEYED_SQL = """
WITH candidates AS (
    SELECT position, stem, relative, concat_ws('#', uri, member, row) AS whole,
        count(*) OVER (PARTITION BY stem) = 1 AND stem NOT IN (SELECT key FROM planned) AS stem_is_unique,
        count(*) OVER (PARTITION BY relative) = 1 AND relative NOT IN (SELECT key FROM planned) AS relative_is_unique
    FROM fresh
), keys AS (
    SELECT position, CASE WHEN stem_is_unique THEN stem WHEN relative_is_unique THEN relative ELSE whole END AS candidate, whole
    FROM candidates
), unique_keys AS (
    SELECT position, CASE WHEN count(*) OVER (PARTITION BY candidate) = 1 THEN candidate ELSE whole END AS key FROM keys
)
SELECT key, uri, member, byte_offset, byte_length, row, sidecars, alt_text, class_label, metadata
FROM fresh JOIN unique_keys USING (position) ORDER BY position
"""


def _insert(database: Any, into: str, batch: "pa.Table") -> None:
    database.register("batch", batch)
    database.execute(f"INSERT INTO {into}")
    database.unregister("batch")


def _read_part(run: Folder, part: PlanPart) -> "pa.Table":
    import pyarrow.parquet as pq

    with run.open(part.path) as file:
        return pq.read_table(file, columns=["key", "uri", "member", "row"])


def write_parts(run: Folder, reader: Any, plan: Plan, *, schema: "pa.Schema | None" = None) -> Iterator[PlanPart]:
    """Cuts a stream of record batches into index files of UNITS_PER_PART units, a row group each; default schema: INDEX."""
    from foundry.images.index import INDEX

    attempt = secrets.token_hex(4)
    first_unit = plan.num_units
    units = _row_groups(reader, plan.unit_size, schema or INDEX)
    while tables := list(islice(units, UNITS_PER_PART)):
        path = f"images/plan-{plan.num_plans}-{attempt}-{first_unit:08d}.parquet"
        with store_errors(run):
            run.create(path, row_groups_bytes(tables))
        yield PlanPart(path=path, first_unit=first_unit, units=len(tables), rows=sum(len(table) for table in tables))
        first_unit += len(tables)


def _row_groups(reader: Any, unit_size: int, schema: "pa.Schema") -> Iterator["pa.Table"]:
    """Tables of exactly `unit_size` rows (the last one may be shorter) from batches of any size."""
    import pyarrow as pa

    pending = schema.empty_table()
    for batch in reader:
        pending = pa.concat_tables([pending, pa.Table.from_batches([batch]).cast(schema)])
        while len(pending) >= unit_size:
            yield pending.slice(0, unit_size)
            pending = pending.slice(unit_size)
    if len(pending):
        yield pending
