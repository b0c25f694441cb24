"""Files of a captioning run at one moment, and the views that SQL has on them.

Readers list files from the commits and plans, never by a glob. `stored` holds one relation for each kind of file as it is on
disk; the views read it. Their columns are those of the schemas, also where a kind has no file yet.

Noun counts of whole blocks of units are summed, so that a query over all nouns opens one file per block and not one per unit.
Block b is BLOCK_UNITS units from unit b * BLOCK_UNITS. Once all are committed, noun_blocks.py publishes their sums in the run's
folder `merged`, by the protocol of units and commits with the block as the unit. A record names the files that were summed by
their digests: where it fits the commits it is used, else the units' own files are read.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataset_builder.reviews.records import Reviews, read_reviews
from dataset_builder.schema import CAPTIONS, NOUN_COUNTS, TALLIES
from dataset_builder.sql.score_files import ScoreFiles, newest_scores, unscored
from dataset_builder.sql.views import (
    SCORED,
    carried_columns,
    carried_sql,
    columns_sql,
    noun_counts_sql,
    nouns_sql,
    objects_sql,
    quoted,
    scores_sql,
    value_sql,
)
from foundry.errors import UserError
from foundry.images.index import IMAGES, INDEX, REJECTED
from foundry.storage.folder import Folder
from foundry.storage.locations import advice_for
from foundry.storage.run_record import RunRecord
from foundry.units.commits import RETRIED, Commit, committed_units, read_commits

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database

VIEWS = {
    "images": "one row per image, read or still to be read, with the columns of its source",
    "captions": "one row per image and prompt",
    "caption_objects": "one row per object with a box in a structured caption",
    "nouns": "one row per noun of a caption, in its order (position starts at 1)",
    "noun_counts": "one row per prompt and noun, summed over the run",
    "rejected": "one row per image that could not be captioned, with the reason",
    RETRIED: "one row per earlier rejection of an image that was tried again: it is captioned now, or in rejected again",
    "commits": "one row per finished unit",
    "scores": "one row per image of the newest scoring: CLIP, aesthetic, sharpness",
    "caption_scores": "one row per image and prompt of the newest scoring, with the CLIP score of each sentence",
    "embeddings": "one row per image of the newest scoring: its CLIP embedding, of length 1",
    "edits": "one row per edit of a caption by a person; the current one of each caption is what a data set takes",
    "flags": "one row per judgement of a caption by a person: good, bad, look again",
}

STORED = SCORED | {
    "images": IMAGES,
    "captions": CAPTIONS,
    "noun_counts": NOUN_COUNTS,
    "rejected": REJECTED,
    RETRIED: pa.schema([*REJECTED, pa.field("retry", pa.int32(), nullable=False)]),
    "planned": INDEX,
    "block_tallies": TALLIES,
    "loose_captions": CAPTIONS,
}
"""The kinds of file, and the schema that each has. Of units in a block, `noun_counts` and `block_tallies` are those of the
block; `loose_captions` are the captions of the other units."""
MERGED = "merged"
"""The folder of the blocks, inside a run."""
BLOCK_UNITS = 256
_SUMMED = ("captions", "noun_counts")


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """An index file: `rows` images in consecutive units, all full but perhaps the last."""

    path: str
    first_unit: int
    units: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """One plans/<n>.json: the index files of planning n, and what the sources looked like when they were read."""

    path: str
    """The path of the record, relative to the run."""
    parts: tuple[PlanPart, ...]
    sources: tuple[dict[str, Any], ...]
    num_repeated: int
    num_passed_over: int
    carried: dict[str, str]


def read_plans(run: Folder) -> list[PlanRecord]:
    """The plans as far as they are published, in their order."""
    names = [name for name in run.names("plans") if name.endswith(".json")]
    paths = [f"plans/{name}" for name in sorted(names, key=lambda name: int(name.removesuffix(".json")))]
    records = {path: json.loads(data) for path, data in run.read_many(paths).items()}
    return [
        PlanRecord(
            path=path,
            parts=tuple(PlanPart(**part) for part in record["parts"]),
            sources=tuple(record["sources"]),
            num_repeated=record["num_repeated"],
            num_passed_over=record.get("num_passed_over", 0),
            carried=record.get("carried", {}),
        )
        for path, record in records.items()
    ]


@dataclass(frozen=True)
class RunFiles:
    """A run at one moment: its run.json, its commits, and the index files of the units without one."""

    folder: Folder
    record: RunRecord
    commits: tuple[Commit, ...]
    open_parts: tuple[str, ...] = ()
    scores: ScoreFiles | None = None
    blocks: tuple[Commit, ...] = ()
    """The records of the blocks that fit the commits."""

    @property
    def views(self) -> dict[str, str]:
        """VIEWS."""
        return VIEWS

    @property
    def schemas(self) -> dict[str, pa.Schema]:
        """STORED."""
        return STORED

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the captions were written and counted with."""
        return self.record.settings

    @property
    def empty_views(self) -> dict[str, str]:
        """The views on scores, where nothing was scored."""
        return {} if self.scores else unscored(self.folder, SCORED)

    def tables(self) -> dict[str, pa.Table]:
        """The views that do not come from files."""
        return {"commits": commits_table(self), "edits": self.reviews.edits, "flags": self.reviews.flags}

    def statements(self) -> list[str]:
        """The statements that create the other views on the relations of `stored`."""
        return view_sql(self)

    def paths(self, kind: str) -> list[str]:
        """The files of a kind of STORED, relative to the run."""
        if kind == "planned":
            return list(self.open_parts)
        if kind in SCORED:
            return self.scores.paths(kind) if self.scores else []
        if kind == "block_tallies":
            return self._block_paths("tallies")
        if kind == "loose_captions":
            return _paths(self._loose, "captions")
        if kind == "noun_counts":
            return [*self._block_paths(kind), *_paths(self._loose, kind)]
        return _paths(self.commits, kind)

    def _block_paths(self, kind: str) -> list[str]:
        return [f"{MERGED}/{path}" for path in _paths(self.blocks, kind)]

    @cached_property
    def _loose(self) -> list[Commit]:
        """The commits of the units that are in no block."""
        summed = units_of(self.blocks)
        return [commit for commit in self.commits if commit.unit not in summed]

    def unit_paths(self, kind: str, units: Iterable[int]) -> list[str]:
        """The files of a kind of these units alone; a unit without rows of the kind has none."""
        paths = self._paths_by_unit[kind]
        return [paths[unit] for unit in units if unit in paths]

    @cached_property
    def _paths_by_unit(self) -> dict[str, dict[int, str]]:
        kinds = ("images", "captions")
        found = {kind: {c.unit: c.files[kind].path for c in self.commits if kind in c.files} for kind in kinds}
        for kind in SCORED:
            commits = [commit for commit in (self.scores.commits if self.scores else ()) if kind in commit.files]
            found[kind] = dict(zip([commit.unit for commit in commits], self.paths(kind), strict=True))
        return found

    @cached_property
    def reviews(self) -> Reviews:
        """The edits and flags of people, as they are when first asked for."""
        return read_reviews(self.folder)

    @property
    def image_columns(self) -> list[str]:
        """The columns of the view `images`."""
        return [*IMAGES.names, *self.carried]

    @cached_property
    def carried(self) -> dict[str, tuple[str, str]]:
        """The columns of the sources: name in `images` → (name in the metadata, SQL type)."""
        return carried_columns(self.record.carried, where=f"{self.folder.url}/run.json")


def read_run(url: str) -> RunFiles:
    """The present state of the captioning run at `url`. Raises UserError if there is none or it cannot be read."""
    run = find_run(url)
    if run is None:
        advice = advice_for(url, "give the folder that captioner.run wrote")
        raise UserError(f"{url} is not a captioning run: it has no run.json: {advice}")
    return run


def find_run(url: str) -> RunFiles | None:
    """The same; None if there is none."""
    folder = Folder(url)
    record = RunRecord.read(folder)
    if record is None:
        return None
    try:
        commits = tuple(read_commits(folder))
        scores = newest_scores(folder)
        blocks = fitting_blocks(folder, commits)
    except ValueError as error:
        raise UserError(f"{url}: {error}: read it with the version that wrote it") from None
    return RunFiles(folder, record, commits, _open_parts(folder, done={commit.unit for commit in commits}), scores, blocks)


def open_run(url: str) -> "Database":
    """The run at `url` (a folder or an fsspec URL) as it is now. Raises UserError if there is none."""
    from dataset_builder.sql.database import open_files

    return open_files(read_run(url))


def merged_folder(run: Folder) -> Folder:
    """The folder of a run's blocks."""
    return Folder(f"{run.url.rstrip('/')}/{MERGED}")


def whole_blocks(commits: Iterable[Commit]) -> dict[int, list[Commit]]:
    """The commits of each block that has them all, by the block's number."""
    blocks: dict[int, list[Commit]] = {}
    for commit in commits:
        blocks.setdefault(commit.unit // BLOCK_UNITS, []).append(commit)
    return {number: members for number, members in blocks.items() if len(members) == BLOCK_UNITS}


def block_id(members: Sequence[Commit]) -> str:
    """A hash of the run and of all files that a block sums up."""
    state = [[c.run_id, c.unit, [c.files[kind].sha256 for kind in _SUMMED if kind in c.files]] for c in members]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def units_of(blocks: Iterable[Commit]) -> set[int]:
    """The units that these records sum up."""
    return {unit for block in blocks for unit in range(block.unit * BLOCK_UNITS, (block.unit + 1) * BLOCK_UNITS)}


def fitting_blocks(run: Folder, commits: Sequence[Commit]) -> tuple[Commit, ...]:
    """The records of the blocks that are published and fit these commits of the run."""
    folder = merged_folder(run)
    blocks = whole_blocks(commits) if committed_units(folder) else {}
    records = read_commits(folder) if blocks else []
    return tuple(record for record in records if record.unit in blocks and record.run_id == block_id(blocks[record.unit]))


def view_sql(run: RunFiles) -> list[str]:
    """The statements that create VIEWS, but for those of `tables`, on the relations of `stored`."""
    prompts, value = run.record.prompt_names, value_sql(run.record.structured_prompts)
    return [
        _images_sql(run),
        f"CREATE VIEW captions AS SELECT {columns_sql(CAPTIONS)}, {value} FROM stored.captions",
        objects_sql(),
        nouns_sql(),
        noun_counts_sql(prompts[0] if len(prompts) == 1 else None),
        _tallies_sql(max_tokens=run.record.max_tokens),
        "CREATE VIEW stored.bodies AS SELECT prompt AS body, noun, count FROM noun_counts",
        f"CREATE VIEW rejected AS SELECT {columns_sql(REJECTED)} FROM stored.rejected",
        f"CREATE VIEW {RETRIED} AS SELECT {columns_sql(STORED[RETRIED])} FROM stored.{RETRIED}",
        *scores_sql(),
    ]


def commits_table(run: RunFiles) -> pa.Table:
    """The view `commits`: what the commit records say, one row per unit; times are UTC, durations seconds."""
    commits = run.commits
    captions = [commit.files.get("captions") for commit in commits]
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(commit, name) for commit in commits], pa.int64())
        for name in ("unit", "planned", "completed", "num_rejected")
    }
    columns["num_captions"] = pa.array([file.rows if file else 0 for file in captions], pa.int64())
    columns["num_tokens"] = pa.array([commit.num_tokens for commit in commits], pa.int64())
    columns["rejected"] = pa.array([list(commit.rejected.items()) for commit in commits], pa.map_(pa.string(), pa.int64()))
    for stage in ("prepare", "process", "finish"):
        columns[f"{stage}_s"] = pa.array([commit.seconds.get(stage) for commit in commits], pa.float64())
    times = pa.array([commit.committed_at for commit in commits], pa.string()).cast(pa.timestamp("ms", "UTC"))
    columns["committed_at"] = times.cast(pa.timestamp("ms"))
    columns["attempt"] = pa.array([commit.attempt for commit in commits], pa.string())
    columns["retry"] = pa.array([commit.retry for commit in commits], pa.int32())
    return pa.table(columns)


def _paths(commits: Iterable[Commit], kind: str) -> list[str]:
    return [commit.files[kind].path for commit in commits if kind in commit.files]


def _open_parts(folder: Folder, *, done: set[int]) -> tuple[str, ...]:
    """The index files that hold a unit which is not done."""
    parts = [part for plan in read_plans(folder) for part in plan.parts]
    units = {part.path: range(part.first_unit, part.first_unit + part.units) for part in parts}
    return tuple(path for path in sorted(units) if not done.issuperset(units[path]))


def _images_sql(run: RunFiles) -> str:
    """Images of finished units as they were read, and those of the index that no finished unit has dealt with."""
    own = [quoted(name) for name in IMAGES.names]
    both = [name for name in IMAGES.names if name in INDEX.names]
    return (
        f"CREATE VIEW images AS SELECT {', '.join([*own, *carried_sql(run.carried)])} FROM ("
        f"SELECT {columns_sql(IMAGES)} FROM stored.images UNION ALL BY NAME "
        f"SELECT {', '.join(map(quoted, both))} FROM stored.planned "
        "WHERE key NOT IN (SELECT key FROM stored.images UNION ALL SELECT key FROM stored.rejected))"
    )


def _tallies_sql(*, max_tokens: int) -> str:
    """schema.TALLIES. What has no words has no text; the text itself would take long to read."""
    filters = {"num_captions": "num_words > 0", "num_empty": "num_words = 0", "num_cut": f"num_t5_tokens > {max_tokens}"}
    counts = ", ".join(f"count(*) FILTER ({condition}) AS {name}" for name, condition in filters.items())
    sums = ", ".join(f"sum({name})::BIGINT AS {name}" for name in filters)
    return (
        f"CREATE VIEW stored.tallies AS SELECT prompt, {sums} FROM (SELECT {columns_sql(TALLIES)} FROM stored.block_tallies "
        f"UNION ALL SELECT prompt, {counts} FROM stored.loose_captions GROUP BY prompt) GROUP BY prompt"
    )
