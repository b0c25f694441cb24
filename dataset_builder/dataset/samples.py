"""Rows of a data set: the chosen images with their captions, read from the runs stretch by stretch, their aspect bucket, and
their bytes in the `Image` format of Hugging Face datasets where they are embedded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dataset_builder.dataset.caption_steps import CAPTION_FIGURES, SelectionState
from dataset_builder.schema import SAMPLE_CAPTION
from dataset_builder.sql.run_files import RunFiles
from dataset_builder.sql.views import literal, quoted, stored_urls
from foundry.images.index import REFERENCE_NAMES

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from dataset_builder.sql.database import Workbench


BATCH_ROWS = 100_000
"""Images that are in memory at a time; a stretch holds whole units."""
_IMAGE = (
    *(*REFERENCE_NAMES, "content_hash", "width", "height", "format"),
    *("class_label", "num_masks", "mask_area_px", "metadata"),
)
_SCORES = ("clip_mean", "clip_least", "aesthetic", "sharpness")
_ROWS = 512
ASPECT_RATIOS = (
    *("0.25", "0.26", "0.27", "0.28", "0.32", "0.33", "0.35", "0.4", "0.42", "0.48"),
    *("0.5", "0.52", "0.57", "0.6", "0.68", "0.72", "0.78", "0.82", "0.88", "0.94"),
    *("1.0", "1.07", "1.13", "1.21", "1.29", "1.38", "1.46", "1.67", "1.75", "2.0"),
    *("2.09", "2.4", "2.5", "2.89", "3.0", "3.11", "3.62", "3.75", "3.88", "4.0"),
)


def sample_batches(state: SelectionState) -> "Iterator[pa.Table]":
    """Tables of schema.SAMPLES without images, from the workbench in which the steps of a selection were taken.

    Sorted by key within a table. The tables follow run by run, then the least keys of their units, so that a run is sorted
    where the keys of its units do not overlap, as those of a sorted source do not.
    """
    runs = [
        _Run(
            number=number,
            name=name,
            files=files,
            prompts=_prompts(state.bench, number, files, state.renamed),
            captions=partial(state.captions, number),
        )
        for number, (name, files) in enumerate(state.runs.items())
    ]
    for owner in runs:
        for units in _stretches(state.bench, owner.number):
            others = [_Part(runs[number], units) for number, units in _others(state.bench, owner.number, units)]
            yield _as_samples(state.bench.fetch(_stretch_sql(_Part(owner, units), others)))


@dataclass(frozen=True)
class Embedded:
    """`samples` with their images and without references; `dropped` are rows of schema.DROPPED."""

    samples: "pa.Table"
    dropped: "pa.Table"


def embed_images(samples: "pa.Table") -> Iterator[Embedded]:
    """Reads the images of samples, some rows at a time. An image that cannot be read, or is another one now, is dropped.

    Raises StoreError if a store fails, so that nothing is dropped that may be read another day.
    """
    for start in range(0, len(samples), _ROWS):
        yield _embed(samples.slice(start, _ROWS))


def nearest_ratios(heights: "NDArray[np.int32]", widths: "NDArray[np.int32]") -> "NDArray[np.intp]":
    """The index in ASPECT_RATIOS of the nearest ratio to each image's, (N,); the smaller one where two are as near."""
    import numpy as np

    ratios = np.array([float(ratio) for ratio in ASPECT_RATIOS])
    return np.searchsorted((ratios[1:] + ratios[:-1]) / 2, heights / widths)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run with the prompts of its captions that are kept, and what the data set calls them."""

    number: int
    name: str
    files: RunFiles
    prompts: dict[str, str]
    captions: Callable[[str], str]
    """SQL for a relation of its captions with the texts that people rewrote."""


@dataclass(frozen=True)
class _Part:
    """Some units of a run."""

    run: _Run
    units: list[int]

    def files(self, kind: str) -> str:
        """The relation over the files of a kind; that of the whole run, which is empty then, where there are none."""
        folder = self.run.files.folder
        urls = ", ".join(map(literal, stored_urls(folder, self.run.files.unit_paths(kind, self.units))))
        return f"read_parquet([{urls}], hive_partitioning = false)" if urls else f"run_{self.run.number}.stored.{kind}"


def _stretches(bench: "Workbench", run: int) -> Iterator[list[int]]:
    """The units of a run, in lists that hold at most BATCH_ROWS images each."""
    rows = bench.fetch(
        f"SELECT unit, count(*) AS rows FROM chosen WHERE run = {run} GROUP BY unit ORDER BY min(key)"
    ).to_pylist()
    waiting: list[int] = []
    num_rows = 0
    for row in rows:
        if waiting and num_rows + row["rows"] > BATCH_ROWS:
            yield waiting
            waiting, num_rows = [], 0
        waiting.append(row["unit"])
        num_rows += row["rows"]
    if waiting:
        yield waiting


def _others(bench: "Workbench", owner: int, units: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The other runs, and those of their units, that hold images of a stretch."""
    here = f"SELECT key FROM chosen WHERE {_of(owner, units)}"
    found = f"SELECT run, list(DISTINCT unit ORDER BY unit) AS units FROM others WHERE owner = {owner} AND key IN ({here})"
    for row in bench.fetch(f"{found} GROUP BY run ORDER BY run").to_pylist():
        yield row["run"], row["units"]


def _prompts(bench: "Workbench", run: int, files: RunFiles, renamed: Mapping[tuple[int, str], str]) -> dict[str, str]:
    """The prompts of the captions that are kept, in the order of the run's settings, and what the data set calls them."""
    found = bench.fetch(f"SELECT DISTINCT prompt FROM survey WHERE run = {run} AND step IS NULL ORDER BY prompt")
    ordered = sorted(found["prompt"].to_pylist(), key=[*files.record.prompt_names, *found["prompt"].to_pylist()].index)
    return {prompt: renamed.get((run, prompt), prompt) for prompt in ordered}


def _stretch_sql(owner: _Part, others: list[_Part]) -> str:
    """A join for each prompt: to group the captions by key would take twice as long."""
    number, units = owner.run.number, owner.units
    texts = dict(_texts(owner))
    alt_texts = ["i.alt_text"]
    joins = []
    for other in others:
        theirs = f"SELECT key FROM others WHERE owner = {number} AND {_of(other.run.number, other.units)}"
        texts |= _texts(other, among=theirs)
        alt_texts.append(f"image_{other.run.number}.alt_text")
        images = f"SELECT key, alt_text FROM {other.files('images')} JOIN ({theirs}) USING (key)"
        joins.append(f"LEFT JOIN ({images}) AS image_{other.run.number} USING (key)")
    joins += [f"LEFT JOIN {text} USING (key)" for text in texts]
    captions = f"[{', '.join(f'{text}.caption' for text in texts)}]"
    if len(texts) > 1:
        captions = f"list_filter({captions}, lambda c: c IS NOT NULL)"
    image = [f"i.{quoted(name)}" for name in _IMAGE] + [f"coalesce({', '.join(alt_texts)}) AS alt_text"]
    return (
        f"WITH here AS (SELECT * FROM chosen WHERE {_of(number, units)}), "
        f"{', '.join(f'{text} AS ({sql})' for text, sql in texts.items())} "
        f"SELECT here.sample_key AS key, {literal(owner.run.name)} AS run, here.split, {', '.join(image)}, "
        f"{captions} AS captions, {', '.join(f's.{n}' for n in _SCORES)}, here.exact_group, here.near_group "
        f"FROM here JOIN {owner.files('images')} i USING (key) {' '.join(joins)} "
        f"LEFT JOIN {owner.files('scores')} s USING (key) ORDER BY sample_key"
    )


def _texts(part: _Part, *, among: str = "") -> Iterator[tuple[str, str]]:
    """A name and the SQL of (key, caption) for each prompt: schema.SAMPLE_CAPTION and the nouns. `among` selects keys."""
    own = [*(field.name for field in SAMPLE_CAPTION if field.name not in (*CAPTION_FIGURES, "prompt")), "nouns"]
    fields = [f"{quoted(name)} := c.{quoted(name)}" for name in own]
    fields += [f"{name} := {sql}" for name, sql in CAPTION_FIGURES.items()]
    kept = f"SELECT key, prompt FROM survey WHERE {_of(part.run.number, part.units)} AND step IS NULL"
    kept += f" AND key IN ({among})" if among else ""
    captions = part.run.captions(part.files("captions"))
    for number, (prompt, called) in enumerate(part.run.prompts.items()):
        sql = (
            f"SELECT key, struct_pack(prompt := {literal(called)}, {', '.join(fields)}) AS caption "
            f"FROM {captions} c JOIN ({kept}) USING (key, prompt) WHERE prompt = {literal(prompt)}"
        )
        yield f"text_{part.run.number}_{number}", sql


def _of(run: int, units: list[int]) -> str:
    return f"run = {run} AND unit IN ({', '.join(map(str, units))})"


def _as_samples(rows: "pa.Table") -> "pa.Table":
    """The columns of schema.SAMPLES, with the bucket, without an image; the nouns become a column next to the captions."""
    import numpy as np
    import pyarrow as pa

    from dataset_builder.schema import SAMPLES

    heights, widths = (rows[name].to_numpy().astype(np.int32) for name in ("height", "width"))
    buckets = pa.array(ASPECT_RATIOS).take(pa.array(nearest_ratios(heights, widths)))
    lists = rows["captions"].combine_chunks()
    said = lists.flatten()
    captions = [said.field(field.name) for field in SAMPLE_CAPTION]
    made = {
        "bucket": buckets,
        "image": pa.nulls(len(rows), SAMPLES.field("image").type),
        "captions": _regrouped(lists, pa.StructArray.from_arrays(captions, fields=list(SAMPLE_CAPTION))),
        "nouns": _regrouped(lists, said.field("nouns")),
    }
    columns = {name: rows[name] for name in rows.column_names} | made
    return pa.table({name: columns[name] for name in SAMPLES.names}).cast(SAMPLES)


def _regrouped(lists: "pa.ListArray", values: "pa.Array") -> "pa.ListArray":
    """Lists as long as `lists`, of a value for each of theirs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.ListArray.from_arrays(pc.subtract(lists.offsets, lists.offsets[0]), values)


def _embed(samples: "pa.Table") -> Embedded:
    import pyarrow as pa

    from dataset_builder.dataset.caption_steps import EMBED
    from dataset_builder.schema import DROPPED, SAMPLES
    from foundry.images.decoding import suffix_of_format
    from foundry.images.loading import Refusals
    from foundry.images.reader import ImageReader, content_hash, reference_of
    from foundry.units.rejection import ImageError

    rows = samples.select(["key", "run", *REFERENCE_NAMES, "content_hash", "format"]).to_pylist()
    images, dropped = [], []
    refusals = Refusals(len(rows))
    with ImageReader() as reader:
        reader.expect([{**row, "sidecars": []} for row in rows])
        for row in rows:
            image, reason = None, ""
            try:
                with refusals.of_one_image():
                    data = reader.read(reference_of(row))
                image = {"bytes": data, "path": f"{row['key']}.{suffix_of_format(row['format'])}"}
                reason = "" if content_hash(data) == row["content_hash"] else "the image has changed since it was captioned"
            except ImageError as error:
                reason = error.reason
            if reason:
                dropped.append({"key": row["key"], "run": row["run"], "step": EMBED, "reason": reason})
            images.append(None if reason else image)
    column = pa.array(images, SAMPLES.field("image").type)
    table = samples.set_column(SAMPLES.get_field_index("image"), SAMPLES.field("image"), column).filter(column.is_valid())
    for name in REFERENCE_NAMES:
        field = SAMPLES.field(name)
        table = table.set_column(SAMPLES.get_field_index(name), field, pa.nulls(len(table), field.type))
    return Embedded(table.cast(SAMPLES), pa.Table.from_pylist(dropped, schema=DROPPED))
