"""Source run: a captioning run whose images another run captions, all or those that a query names, with its captions at hand.

The plan is made once, from what the source run has committed at that moment: each row of the index names the file that holds
the image's captions then. Files of commits never change, so whatever becomes of the source run, a resume reads the same.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.runs.plan import Plan, publish_plan, read_plan, write_parts
from dataset_builder.sql.run_files import RunFiles, read_plans, read_run
from foundry.errors import StoreError, UserError
from foundry.images.index import INDEX
from foundry.reporting.lines import say
from foundry.storage.folder import Folder, store_errors
from foundry.storage.locations import advice_for
from foundry.storage.run_record import RunRecord

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database

ALL_CAPTIONED = "SELECT DISTINCT key FROM captions"
"""The images of a source run, where nothing else is asked for: those that have captions."""

_FILE = pa.field("captions_file", pa.string())
_ROWS = pa.schema([*INDEX, _FILE])


def read_source_record(url: str) -> RunRecord:
    """The run.json of the source run. Raises UserError if there is none that captions can be taken from."""
    record = RunRecord.read(Folder(url))
    if record is None:
        raise UserError(
            f"{url} is not a captioning run: it has no run.json: "
            + advice_for(url, "give the folder that captioner.run wrote"),
            setting="captions_from",
        )
    record.check(Folder(url))
    return record


@dataclass(frozen=True)
class ChosenImages:
    """Images of a source run that a query names: the table `wanted` of the database has their keys."""

    files: RunFiles
    database: Any


@contextmanager
def chosen_images(url: str, *, only: str) -> Iterator[ChosenImages]:
    """The images of the run at `url` that the query `only` names by the column `key`; it runs once, and is judged at once.

    Raises UserError for a query that is wrong, names no image, or names keys that are none.
    """
    from dataset_builder.sql.database import scratch_database

    files = read_run(url)
    with tempfile.TemporaryDirectory() as directory, scratch_database(directory) as database:
        with store_errors(files.folder):
            _stage_keys(database, files, only=only)
            _check_keys(database, files)
        yield ChosenImages(files, database)


def plan_from_run(run: Folder, chosen: ChosenImages | None, *, unit_size: int) -> Plan:
    """The plan of `run` over these images of a source run; None if the plan that is there is known to stay.

    A plan that is there stays in any case; of a new one, the numbers of images are printed.
    """
    with store_errors(run):
        plan = read_plan(run, unit_size=unit_size)
    if plan.num_plans:
        return plan
    assert chosen is not None
    with store_errors(chosen.files.folder):
        record = _index(run, chosen, plan)
        total = sum(part.rows for record in read_plans(chosen.files.folder) for part in record.parts)
    plan = publish_plan(run, plan, record)
    say(f"{plan.num_images:,} of the {total:,} images of {chosen.files.folder.url}")
    return plan


def read_captions(source: Folder, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The source run's captions of these rows of the plan, by key and prompt. Raises UserError if a file is gone."""
    found: dict[str, dict[str, str]] = {row["key"]: {} for row in rows}
    for path in sorted({row[_FILE.name] for row in rows if row[_FILE.name] is not None}):
        try:
            with source.open(path) as file:
                table = pq.ParquetFile(file).read(columns=["key", "prompt", "caption"])
        except FileNotFoundError:
            raise UserError(f"{source.url}/{path}, the source of the captions, no longer exists: restore that run") from None
        for said in table.to_pylist():
            if said["key"] in found:
                found[said["key"]][said["prompt"]] = said["caption"]
    return found


def _index(run: Folder, chosen: ChosenImages, plan: Plan) -> dict[str, Any]:
    """Writes the index files; returns what the plan's record says of them."""
    files, database = chosen.files, chosen.database
    plans = read_plans(files.folder)
    database.register("planned", pa.RecordBatchReader.from_batches(_positioned(_ROWS), _index_batches(files, _ROWS)))
    wanted = "SELECT * EXCLUDE (position) FROM planned SEMI JOIN wanted USING (key) ORDER BY position"
    reader = database.sql(wanted).to_arrow_reader(plan.unit_size * 16)
    parts = [asdict(part) for part in write_parts(run, reader, plan, schema=_ROWS)]
    return {
        "sources": [source for record in plans for source in record.sources],
        "carried": files.record.carried,
        "num_repeated": 0,
        "num_passed_over": 0,
        "parts": parts,
    }


def _stage_keys(database: Any, files: RunFiles, *, only: str) -> None:
    """Makes the table `wanted` of the keys that the query answers with."""
    from dataset_builder.sql.database import open_files

    database.execute("CREATE TABLE answered (key VARCHAR)")
    columns: list[str] = []
    with open_files(files) as views:
        for batch in _answers(views, only):  # to the end, since an open result blocks the connection
            columns = batch.schema.names
            if "key" in columns:
                database.register("batch", batch)
                database.execute("INSERT INTO answered SELECT key FROM batch")
                database.unregister("batch")
    if "key" not in columns:
        found = ", ".join(columns)
        raise UserError(f"the query must return a column key, it returns {found}: SELECT key FROM …", setting="only")
    database.execute("CREATE TABLE wanted AS SELECT DISTINCT key FROM answered WHERE key IS NOT NULL")


def _answers(views: "Database", only: str) -> Iterator[pa.RecordBatch]:
    """The answer to the query. Raises UserError with its setting where DuckDB refuses it."""
    try:
        yield from views.batches(only)
    except StoreError:
        raise
    except UserError as error:
        raise UserError(str(error), setting=error.setting or "only") from None


def _check_keys(database: Any, files: RunFiles) -> None:
    """Raises UserError if no image is wanted, or a key that is no image's."""
    url = files.folder.url
    if database.execute("SELECT count(*) FROM wanted").fetchall() == [(0,)]:
        advice = "ask it with python -m dataset_builder.query first"
        raise UserError(f"the query names no image of {url}: {advice}", setting="only")
    keys = pa.schema([INDEX.field("key")])
    database.register("known", pa.RecordBatchReader.from_batches(_positioned(keys), _index_batches(files, keys)))
    unknown = database.execute("SELECT key FROM wanted ANTI JOIN known USING (key) ORDER BY key").fetchall()
    if unknown:
        raise UserError(
            f"the query names {len(unknown):,} keys that are not images of {url}, such as {unknown[0][0]!r}: correct the query",
            setting="only",
        )


def _index_batches(files: RunFiles, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of the source run's plan in their order, with their position and, in `schema`, the file of their captions."""
    captions = {commit.unit: commit.files["captions"].path for commit in files.commits if "captions" in commit.files}
    columns = [name for name in schema.names if name != _FILE.name]
    position = 0
    for part in (part for plan in read_plans(files.folder) for part in plan.parts):
        with files.folder.open(part.path) as file:
            index = pq.ParquetFile(file)
            for group in range(part.units):
                table = index.read_row_group(group, columns=columns)
                if _FILE.name in schema.names:
                    path = captions.get(part.first_unit + group)
                    table = table.append_column(_FILE, pa.array([path] * len(table), pa.string()))
                table = table.append_column("position", pa.array(range(position, position + len(table)), pa.int64()))
                position += len(table)
                yield from table.cast(_positioned(schema)).to_batches()


def _positioned(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*schema, pa.field("position", pa.int64())])
