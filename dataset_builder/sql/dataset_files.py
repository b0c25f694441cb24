"""Files of a data set, named by its dataset.json, and the views that SQL has on them.

A data set exists once dataset.json does, which is written last. Readers list the files from it, never by a glob.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dataset_builder.schema import (
    DATASET_VERSION,
    DROPPED,
    DROPPED_CAPTIONS,
    FUNNEL,
    GROUPS,
    NOUN_INDEX,
    SAMPLE_CAPTION,
    SAMPLES,
    SPLIT_NOUN_COUNTS,
    TALLIES,
)
from dataset_builder.sql.losses import with_losses
from dataset_builder.sql.run_files import find_run
from dataset_builder.sql.score_files import ScoreFiles, newest_scores, unscored
from dataset_builder.sql.views import (
    SCORED,
    carried_columns,
    carried_sql,
    noun_counts_sql,
    nouns_sql,
    objects_sql,
    quoted,
    scores_sql,
    value_sql,
)
from foundry.errors import UserError
from foundry.storage.folder import Folder
from foundry.storage.locations import advice_for

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder.sql.database import Database
    from dataset_builder.sql.views import Stored

DATASET_RECORD = "dataset.json"

VIEWS = {
    "samples": "one row per image, with its captions, scores and split",
    "images": "the same without the captions, with the columns of the sources",
    "captions": "one row per image and prompt",
    "caption_objects": "one row per object with a box in a structured caption",
    "nouns": "one row per noun of a caption, in its order (position starts at 1)",
    "noun_counts": "one row per prompt and noun, summed over the splits",
    "scores": "one row per image: CLIP, aesthetic, sharpness, of the data set's newest scoring or else its runs'",
    "caption_scores": "one row per image and prompt, if the data set itself was scored",
    "embeddings": "one row per image: its CLIP embedding, if the data set itself was scored",
    "funnel": "images left and dropped by each step of the recipe, in order; the first row is the input",
    "dropped": "one row per image of the runs that was left out, with the step and the reason",
    "dropped_captions": "one row per caption that was left out although its image was kept, with the step and the reason",
    "groups": "one row per image in a group of duplicates, kept or not",
}

STORED = SCORED | {
    "samples": SAMPLES,
    "noun_counts": SPLIT_NOUN_COUNTS,
    "noun_index": NOUN_INDEX,
    "funnel": FUNNEL,
    "dropped": DROPPED,
    "dropped_captions": DROPPED_CAPTIONS,
    "groups": GROUPS,
}
"""The kinds of file, and the schema that each has."""

_PLAIN = ("funnel", "dropped", "dropped_captions", "groups")
# Where the data set itself was not scored, the scores are those of the runs, which the samples hold.
_SCORES_OF_SAMPLES = "SELECT key, clip_mean, clip_least, aesthetic, sharpness, NULL::BIGINT AS perceptual_hash FROM samples"


@dataclass(frozen=True)
class DatasetFiles:
    """A data set: its folder and its dataset.json."""

    folder: Folder
    record: dict[str, Any]
    scores: ScoreFiles | None = None

    @property
    def views(self) -> dict[str, str]:
        """VIEWS."""
        return VIEWS

    @property
    def schemas(self) -> "dict[str, pa.Schema]":
        """STORED."""
        return STORED

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the captions were counted with."""
        settings: dict[str, Any] = self.record["settings"]
        return settings

    @property
    def structured(self) -> list[str]:
        """The prompts whose captions are JSON; none in data sets that were built before there were any."""
        found: list[str] = self.record.get("structured", [])
        return found

    @property
    def splits(self) -> dict[str, int]:
        """The splits and how many images each has."""
        splits: dict[str, int] = self.record["splits"]
        return splits

    def paths(self, kind: str, *, split: str | None = None) -> list[str]:
        """The files of a kind of STORED, relative to the data set, in the order of their rows; those of samples by split."""
        if kind in SCORED:
            return self.scores.paths(kind) if self.scores else []
        files = [file for file in self.record["files"] if file["kind"] == kind]
        return [file["path"] for file in files if split is None or file["split"] == split]

    @property
    def empty_views(self) -> dict[str, str]:
        """The views on scores of the data set itself, where it was not scored."""
        return {} if self.scores else unscored(self.folder, [name for name in SCORED if name != "scores"])

    def tables(self) -> "dict[str, pa.Table]":
        """The relations that do not come from files."""
        import pyarrow as pa

        return {"stored.tallies": pa.Table.from_pylist(self.record["captions"], schema=TALLIES)}

    def statements(self) -> list[str]:
        """The statements that create VIEWS on the relations of `stored`."""
        images = [quoted(name) for name in SAMPLES.names if name not in ("captions", "nouns", "image")]
        samples, counts = "FROM stored.samples", "noun, count FROM stored.noun_counts"
        # By their positions, not as unnested lists: so duckdb does not read the captions where only the nouns are asked for.
        positions = "unnest(nouns) AS nouns, unnest(range(1, 1 + len(nouns))) AS position"
        unnested = f"(SELECT key, split, captions, {positions} {samples})"
        fields = ", ".join(f"captions[position].{quoted(field.name)} AS {quoted(field.name)}" for field in SAMPLE_CAPTION)
        captions = f"SELECT key, split, {fields}, nouns FROM {unnested}"
        return [
            f"CREATE VIEW samples AS SELECT {', '.join(map(quoted, SAMPLES.names))} FROM stored.samples",
            f"CREATE VIEW images AS SELECT {', '.join([*images, *carried_sql(self.carried)])} FROM stored.samples",
            f"CREATE VIEW captions AS SELECT *, {value_sql(self.structured)} FROM ({captions})",
            objects_sql(),
            nouns_sql(),
            noun_counts_sql(),
            f"CREATE VIEW stored.bodies AS SELECT prompt AS body, {counts} UNION ALL SELECT split, {counts}",
            *(scores_sql() if self.scores else [f"CREATE VIEW scores AS {_SCORES_OF_SAMPLES}", *scores_sql()[1:]]),
            *(f"CREATE VIEW {name} AS SELECT * EXCLUDE unit FROM stored.{name}" for name in _PLAIN),
        ]

    @cached_property
    def carried(self) -> dict[str, tuple[str, str]]:
        """The columns of the sources: name in `images` → (name in the metadata, SQL type)."""
        return carried_columns(self.record["carried"], where=f"{self.folder.url}/{DATASET_RECORD}")


def is_dataset(url: str) -> bool:
    """Whether a finished data set is at `url`."""
    return Folder(url).exists(DATASET_RECORD)


def read_dataset(url: str) -> DatasetFiles:
    """The data set at `url`. Raises UserError if there is none, or one of another schema version."""
    dataset = find_dataset(url)
    if dataset is None:
        raise UserError(
            f"{url} is not a data set: it has no {DATASET_RECORD}: "
            + advice_for(url, "give the folder that dataset_builder.build wrote")
        )
    return dataset


def find_dataset(url: str) -> DatasetFiles | None:
    """The same; None if there is none."""
    folder = Folder(url)
    try:
        record = json.loads(folder.read(DATASET_RECORD))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{url}/{DATASET_RECORD} cannot be read ({error}): check the folder") from None
    if record.get("schema_version") != DATASET_VERSION:
        found = record.get("schema_version")
        raise UserError(f"{url} has schema version {found}, this program reads {DATASET_VERSION}: build it again")
    for file in record["files"]:
        if file["path"].startswith("/") or ".." in file["path"].split("/"):
            raise UserError(f"{url}/{DATASET_RECORD} names {file['path']}, a file outside of the data set: build it again")
    return DatasetFiles(folder, record, newest_scores(folder))


def open_stored(url: str, *, training: str | None = None) -> "Database":
    """Opens a captioning run or a data set for SQL, to be closed or used by `with`. Raises UserError where there is none."""
    from dataset_builder.sql.database import open_files

    return open_files(read_stored(url, training=training))


def read_stored(url: str, *, training: str | None = None) -> "Stored":
    """The run or the data set at `url` as it is now, with the losses that the training of a folder recorded.

    Raises UserError if there is neither, or no such folder.
    """
    stored = find_dataset(url) or find_run(url)
    if stored is None:
        raise UserError(
            f"{url} is neither a run nor a data set: it has no run.json and no dataset.json: "
            + advice_for(url, "give a folder that captioner.run or dataset_builder.build wrote")
        )
    return with_losses(stored, training)
