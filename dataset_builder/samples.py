"""The rows of a data set: the images that a selection chose, with their captions, read from the runs stretch by stretch."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dataset_builder.run_views import RunFiles, literal, quoted, stored_urls
from dataset_builder.schema import SAMPLE_CAPTION
from dataset_builder.selection import CAPTION_FIGURES

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder.sql import Workbench

BATCH_ROWS = 100_000
"""Images that are in memory at a time; a stretch holds whole units."""

_IMAGE = (
    *("uri", "member", "byte_offset", "byte_length", "row", "content_hash", "width", "height", "format"),
    *("alt_text", "class_label", "num_masks", "mask_area_px", "metadata"),
)
_SCORES = ("clip_mean", "clip_least", "aesthetic", "sharpness")


@dataclass(frozen=True)
class _Stretch:
    """Some units of one run, by its number."""

    run: int
    units: list[int]


def sample_batches(bench: "Workbench", runs: dict[str, RunFiles]) -> "Iterator[pa.Table]":
    """Tables of schema.SAMPLES without images, by a workbench in which a selection has taken its steps.

    Sorted by key within a table. The tables follow run by run, then the least keys of their units, so that a run is sorted
    where the keys of its units do not overlap, as those of a sorted source do not.
    """
    names = list(runs)
    prompts = [_prompts(bench, number, run) for number, run in enumerate(runs.values())]
    for stretch in _stretches(bench):
        name = names[stretch.run]
        yield _as_samples(bench.fetch(_stretch_sql(stretch, name, runs[name], prompts[stretch.run])))


def _stretches(bench: "Workbench") -> Iterator[_Stretch]:
    units = bench.fetch("SELECT run, unit, count(*) AS rows FROM chosen GROUP BY run, unit ORDER BY run, min(key)")
    for run, rows in groupby(units.to_pylist(), key=_run_of):
        waiting: list[int] = []
        num_rows = 0
        for row in rows:
            if waiting and num_rows + row["rows"] > BATCH_ROWS:
                yield _Stretch(run, waiting)
                waiting, num_rows = [], 0
            waiting.append(row["unit"])
            num_rows += row["rows"]
        yield _Stretch(run, waiting)


def _run_of(row: dict[str, Any]) -> int:
    return int(row["run"])


def _prompts(bench: "Workbench", run: int, files: RunFiles) -> list[str]:
    """The prompts of the captions that are kept, in the order of the run's settings."""
    found = bench.fetch(f"SELECT DISTINCT prompt FROM survey WHERE run = {run} AND step IS NULL ORDER BY prompt")
    known = [prompt["name"] for prompt in files.settings.get("prompts", {}).get("prompts", [])]
    return sorted(found["prompt"].to_pylist(), key=[*known, *found["prompt"].to_pylist()].index)


def _stretch_sql(stretch: _Stretch, name: str, run: RunFiles, prompts: list[str]) -> str:
    """A join for each prompt: to group the captions by key would take twice as long."""
    here = f"run = {stretch.run} AND unit IN ({', '.join(map(str, stretch.units))})"
    own = [field.name for field in SAMPLE_CAPTION if field.name not in CAPTION_FIGURES]
    fields = [f"{quoted(name)} := c.{quoted(name)}" for name in own]
    fields += [f"{name} := {sql}" for name, sql in CAPTION_FIGURES.items()]
    texts = ", ".join(
        f"text_{number} AS (SELECT key, struct_pack({', '.join(fields)}) AS caption FROM {_files(stretch, run, 'captions')} c "
        f"JOIN (SELECT key, prompt FROM survey WHERE {here} AND step IS NULL) USING (key, prompt) "
        f"WHERE prompt = {literal(prompt)})"
        for number, prompt in enumerate(prompts)
    )
    joins = " ".join(f"LEFT JOIN text_{number} USING (key)" for number in range(len(prompts)))
    captions = f"[{', '.join(f'text_{number}.caption' for number in range(len(prompts)))}]"
    if len(prompts) > 1:
        captions = f"list_filter({captions}, lambda c: c IS NOT NULL)"
    return (
        f"WITH here AS (SELECT * FROM chosen WHERE {here}), {texts} "
        f"SELECT here.sample_key AS key, {literal(name)} AS run, here.split, {', '.join(f'i.{quoted(n)}' for n in _IMAGE)}, "
        f"{captions} AS captions, {', '.join(f's.{n}' for n in _SCORES)}, here.exact_group, here.near_group "
        f"FROM here JOIN {_files(stretch, run, 'images')} i USING (key) {joins} "
        f"LEFT JOIN {_files(stretch, run, 'scores')} s USING (key) ORDER BY sample_key"
    )


def _files(stretch: _Stretch, run: RunFiles, kind: str) -> str:
    """The relation over the files of a stretch; that of the whole run, which is empty then, where there are none."""
    urls = ", ".join(map(literal, stored_urls(run.folder, run.unit_paths(kind, stretch.units))))
    return f"read_parquet([{urls}], hive_partitioning = false)" if urls else f"run_{stretch.run}.stored.{kind}"


def _as_samples(rows: "pa.Table") -> "pa.Table":
    """The columns of schema.SAMPLES, with the bucket and without an image."""
    import numpy as np
    import pyarrow as pa

    from dataset_builder.aspect_buckets import ASPECT_RATIOS, nearest_ratios
    from dataset_builder.schema import SAMPLES

    heights, widths = (rows[name].to_numpy().astype(np.int32) for name in ("height", "width"))
    buckets = pa.array(ASPECT_RATIOS).take(pa.array(nearest_ratios(heights, widths)))
    image = pa.nulls(len(rows), SAMPLES.field("image").type)
    return rows.append_column("bucket", buckets).append_column("image", image).select(SAMPLES.names).cast(SAMPLES)
