"""Sources of features: a data set, a captioning run, or images with class labels; read as one kind of row.

DATASET   what dataset_builder.build wrote: dataset.json and samples/*/*.parquet
RUN       what captioner.run wrote: run.json; its committed images and captions
IMAGES    Parquet with an image (or a path to one) and a class label, images with labels in sidecars, a folder of class folders:
          labels only
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.errors import UserError
from foundry.images.index import IMAGES, REFERENCE_NAMES, refer_to_embedded
from foundry.storage.file_kinds import MASKS, PassedOver
from foundry.storage.folder import Folder
from foundry.storage.locations import is_data_url, is_url, normalise
from foundry.storage.run_record import RunRecord
from foundry.storage.schema import check_version
from foundry.units.rejection import ImageError

if TYPE_CHECKING:
    from dataset_builder.sql.dataset_files import DatasetFiles
    from foundry.images.reader import ImageReader
    from foundry.images.sources import Source

ALT_TEXT = "alt_text"
"""The name of the alt text among the captions, which bear the names of their prompts."""
_CAPTIONS = pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("text", pa.string())]))
_BATCH_ROWS = 4096

# One row per image. Empty captions are not there; split and class_label are null where the source says nothing, width and
# height (pixels) where only the image itself does.
SAMPLE = pa.schema(
    [
        pa.field("key", pa.string()),
        *(IMAGES.field(name).with_nullable(True) for name in REFERENCE_NAMES),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("split", pa.string()),
        pa.field("class_label", pa.string()),
        pa.field("captions", _CAPTIONS),
    ]
)


class FeatureSource(Protocol):
    """Something that features can be made of."""

    @property
    def url(self) -> str:
        """The address of the source."""

    @property
    def licence(self) -> str:
        """Licence and terms of the images, as far as they are known."""

    def tables(self) -> Iterator[pa.Table]:
        """Its samples as tables of SAMPLE. Raises UserError if it cannot be read."""

    def findings(self) -> Iterator[str]:
        """Findings about the source: what was left out and what a user should know, one line each; complete after `tables`."""


def open_source(url: str, *, ignore: Sequence[str] = MASKS) -> FeatureSource:
    """Finds out what is at `url`; images whose names fit a pattern of `ignore` are left out where they are searched.

    Raises UserError if nothing is that features can be made of.
    """
    from dataset_builder.sql.dataset_files import is_dataset
    from foundry.images.sources import find_sources
    from foundry.storage.run_record import is_run

    folder = Folder(normalise(url))
    if is_dataset(folder.url):
        return DatasetSource(folder.url)
    if is_run(folder.url):
        return RunSource(folder.url)
    passed_over = PassedOver()
    sources = find_sources([folder.url], passed_over=passed_over, ignore=ignore)
    return LabelledImages(folder.url, sources=tuple(sources), searched=passed_over)


@dataclass(frozen=True)
class DatasetSource:
    """A data set of dataset_builder.build."""

    url: str

    @cached_property
    def files(self) -> "DatasetFiles":
        """The files that dataset.json names."""
        from dataset_builder.sql.dataset_files import read_dataset

        return read_dataset(self.url)

    @property
    def licence(self) -> str:
        """Licences of all its sources."""
        return "; ".join(sorted({run["licence"] for run in self.files.record["runs"] if run.get("licence")}))

    def tables(self) -> Iterator[pa.Table]:
        """Its Parquet files in order. An embedded image is referred to by file and row."""
        for name in self.files.paths("samples"):
            yield from self._file(self.files.folder, name)

    def findings(self) -> Iterator[str]:
        """None: nothing is searched."""
        yield from ()

    def _file(self, folder: Folder, name: str) -> Iterator[pa.Table]:
        captions = ["captions.list.element.prompt", "captions.list.element.caption"]
        columns = ["key", *REFERENCE_NAMES, "width", "height", "split", "class_label", "alt_text", *captions]
        here = folder.location(name)
        first = 0
        try:
            with folder.open(name) as opened:
                file = pq.ParquetFile(opened)
                check_version(file.schema_arrow, where=name)
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    yield _to_samples(refer_to_embedded(batch.to_pylist(), uri=here, first_row=first))
                    first += len(batch)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{here} cannot be read ({error}): build the data set again") from None


@dataclass(frozen=True)
class RunSource:
    """A captioning run, as far as it is committed now."""

    url: str

    @property
    def licence(self) -> str:
        """The licence that captioner.run was given."""
        record = RunRecord.read(Folder(self.url))
        return record.licence if record is not None else ""

    def tables(self) -> Iterator[pa.Table]:
        """Images that were read, with their captions by prompt."""
        from dataset_builder.sql.run_files import open_run

        columns = ", ".join(
            f"images.{name}" for name in ("key", *REFERENCE_NAMES, "width", "height", "class_label", "alt_text")
        )
        captions = "list({'prompt': prompt, 'caption': caption} ORDER BY prompt) FILTER (prompt IS NOT NULL) AS captions"
        with open_run(self.url) as run:
            rows = "FROM images LEFT JOIN captions USING (key) WHERE width IS NOT NULL GROUP BY ALL"
            for batch in run.batches(f"SELECT {columns}, {captions} {rows}"):
                yield _to_samples(batch.to_pylist())

    def findings(self) -> Iterator[str]:
        """None: nothing is searched."""
        yield from ()


@dataclass(frozen=True)
class LabelledImages:
    """Images with class labels: from a column of Parquet or a list, a `.cls` or `.json` next to the image, else the name of the
    folder that holds the image. A tar's or a list's own name is no class."""

    url: str
    sources: "tuple[Source, ...]"
    """The sources that were found there."""
    licence: str = ""
    searched: PassedOver = field(default_factory=PassedOver)
    """Files that the search left out."""
    _indexed: dict[str, PassedOver] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tables(self) -> Iterator[pa.Table]:
        """All images that are found; keys are paths below the folder."""
        from foundry.images.reader import ImageReader
        from foundry.images.sources import index_source

        for source in self.sources:
            found = self._indexed[source.uri] = PassedOver()
            labels = _parquet_labels(source.uri) if source.kind == "parquet" else None
            with ImageReader() as reader:
                for table in index_source(source, passed_over=found):
                    rows = table.to_pylist()
                    reader.expect([row | {"byte_offset": None, "sidecars": _labels_of(row)} for row in rows])
                    for row in rows:
                        row["key"] = row["relative"]
                        if row["class_label"] is None:
                            row["class_label"] = _class_label(reader, row, found) if labels is None else labels[row["row"]]
                    yield _to_samples(rows)

    def findings(self) -> Iterator[str]:
        """Findings: what the search and the index left out, or interpreted in a way that may not be meant."""
        total = PassedOver()
        for passed_over in (self.searched, *self._indexed.values()):
            total.add(passed_over)
        for finding, (count, where) in total.notes.items():
            yield f"{count:,} {finding} (first: {where})"
        if line := total.line():
            yield line


def class_names(source: FeatureSource) -> tuple[str, ...]:
    """The classes of a source, numbers by value, else by name. Raises UserError if there are none."""
    found: set[str] = set()
    for table in source.tables():
        found |= set(table["class_label"].unique().to_pylist()) - {None}
    if not found:
        raise UserError(
            f"{source.url} has no class labels: give Parquet with a column class_label or label, a .cls file (or a .json with "
            "class_label) for each image, in tars next to it, or a folder of class folders"
        )
    return tuple(sorted(found, key=_class_order))


def _class_order(name: str) -> tuple[Literal[0, 1], int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _to_samples(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of any source as SAMPLE, with the alt text as one more caption."""
    samples = []
    for row in rows:
        said = {one["prompt"]: one["caption"] for one in row.get("captions") or ()}
        if row.get(ALT_TEXT):
            said.setdefault(ALT_TEXT, row[ALT_TEXT])
        captions = [{"name": name, "text": text} for name, text in said.items() if text and text.strip()]
        samples.append({name: row.get(name) for name in SAMPLE.names} | {"captions": captions})
    return pa.Table.from_pylist(samples, schema=SAMPLE)


def _parquet_labels(uri: str) -> list[str | None]:
    """The class label of each row of a Parquet file."""
    from foundry.images.metadata import CLASS_LABEL_NAMES, map_columns
    from foundry.images.parquet import layout_of, name_classes, open_parquet

    with open_parquet(uri) as file:
        layout = layout_of(file.schema_arrow)
        columns = [name for name in file.schema_arrow.names if name.lower() in CLASS_LABEL_NAMES and name in layout.types]
        if not columns:
            return [None] * file.metadata.num_rows
        rows = file.read(columns=columns).to_pylist()
    return [map_columns(name_classes(row, layout.class_names)).class_label for row in rows]


def _labels_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sidecars of an image that may hold its class label."""
    return [sidecar for sidecar in row["sidecars"] if sidecar["suffix"] in (".cls", ".json")]


def _class_label(reader: "ImageReader", row: Mapping[str, Any], passed_over: PassedOver) -> str | None:
    """The class label in the sidecars of an image, else its folder's name; None if one of them cannot be read."""
    if sidecars := _labels_of(row):
        try:
            label = reader.read_sidecars({**row, "sidecars": sidecars}).class_label
        except ImageError as error:
            passed_over.note("images have no class label, since a file next to them cannot be read", error.message)
            return None
        if label is not None:
            return label
    if row["row"] is not None or is_data_url(row["uri"]):
        return None  # a row of a list that holds no path
    return _folder_name(row["member"] or row["relative"])


def _folder_name(path: str) -> str | None:
    """The folder in which a file lies, below the one that was given or inside a tar; a host or a bucket is none."""
    *folders, _ = path.split("://", 1)[-1].split("/")[1 if is_url(path) else 0 :]
    return (folders[-1] or None) if folders else None
