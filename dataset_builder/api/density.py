"""Concept density of texts as an object: the table of the command, rows for a data frame, and rarefaction curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_builder.api.answer import Answer
from dataset_builder.concepts.density import PAPER_TABLE, VIEWS, ConceptDensity, rarefied
from dataset_builder.reports.density_rows import density_rows
from dataset_builder.reports.density_settings import DensitySettings
from dataset_builder.reports.density_table import DensityRow, density_table, row_names
from foundry.api.functions import takes_options

_SMALLEST_SAMPLE = 10


class Density(Answer):
    """The paper's Table 1 of some texts: a row for each text and way to count it.

    The columns: `name`, `source`, `column`, `prompt`, `counted` (as written or as T5 reads it, with and without meta-nouns),
    `num_captions`, `valid_nouns` (VN), `distinct_nouns` (DN), `ratio` (VN / DN, 0 to 1), `total_nouns`, `nouns_per_caption`;
    `sample_size`, `sample_valid_nouns`, `sample_distinct_nouns` and `sample_ratio`, which are to be expected of that many
    captions and so can be compared between rows; `captions_cut` and `nouns_cut`, the shares that T5 does not read.

    print() shows the table of `python -m dataset_builder.density`.
    """

    def __init__(self, rows: Sequence[DensityRow], *, sample_size: int) -> None:
        self._rows = tuple(rows)
        self._names = row_names(rows)
        self.sample_size = sample_size
        named = zip(self._names, self._rows, strict=True)
        super().__init__(pa.Table.from_pylist([_figures(name, row, view) for name, row in named for view in VIEWS]))

    def curve(self, *, points: int = 20) -> Answer:
        """VN and DN to be expected of random samples of growing size, of all nouns as written.

        The columns: `name` (that of the table's rows), `num_captions`, `valid_nouns`, `distinct_nouns`; at most `points` rows
        for each name.
        """
        found = [
            {"name": name, "num_captions": size, "valid_nouns": one.valid_nouns, "distinct_nouns": one.distinct_nouns}
            for name, row in zip(self._names, self._rows, strict=True)
            for size, one in _samples(row, points)
        ]
        types = [("name", pa.string()), ("num_captions", pa.int64())]
        types += [(name, pa.float64()) for name in ("valid_nouns", "distinct_nouns")]
        return Answer(pa.Table.from_pylist(found, schema=pa.schema(types)))

    @staticmethod
    def paper() -> Answer:
        """Table 1 of the PixArt-alpha paper: all nouns as written, each row over about 11.2 million images.

        The columns: `name`, `vn_dn` (VN / DN, rounded as printed), `ratio`, `total_nouns`, `nouns_per_caption`.
        """
        names = {"nouns_per_image": "nouns_per_caption"}
        rows = [{names.get(name, name): value for name, value in vars(row).items()} for row in PAPER_TABLE]
        return Answer(pa.Table.from_pylist(rows))

    def __str__(self) -> str:
        return density_table(self._rows, sample_size=self.sample_size)


@takes_options(DensitySettings, command="dataset_builder.density")
def measure_density(options: DensitySettings) -> Density:
    """Measures the concept density of texts: of runs, data sets and Parquet files, side by side.

    Captions of a run were counted when they were written; other texts are tagged now, which needs the extra `density`. Raises
    UserError for a source or a column that cannot be counted.

    Example:

        density = measure_density(sources=["runs/photos", "laion.parquet"], column=["caption", "alt_text"])
        print(density)
        density.df()[["name", "counted", "sample_ratio"]]
    """
    rows, sample_size = density_rows(options)
    return Density(rows, sample_size=sample_size)


def _figures(name: str, row: DensityRow, view: str) -> dict[str, Any]:
    whole, sample, text = row.whole[view], row.sample[view], row.text
    return {
        "name": name,
        "source": text.source,
        "column": text.column,
        "prompt": text.prompt,
        "counted": view,
        "num_captions": text.num_captions,
        "valid_nouns": int(whole.valid_nouns),
        "distinct_nouns": int(whole.distinct_nouns),
        "ratio": whole.ratio,
        "total_nouns": whole.total_nouns,
        "nouns_per_caption": whole.nouns_per_caption,
        "sample_size": sample.num_captions,
        "sample_valid_nouns": float(sample.valid_nouns),
        "sample_distinct_nouns": float(sample.distinct_nouns),
        "sample_ratio": sample.ratio,
        "captions_cut": row.captions_cut,
        "nouns_cut": row.nouns_cut,
    }


def _samples(row: DensityRow, points: int) -> list[tuple[int, ConceptDensity]]:
    number = row.text.num_captions
    counts = row.text.counts["count"].to_numpy().astype(np.int64)
    sizes = np.geomspace(min(_SMALLEST_SAMPLE, number), number, points).round().astype(int) if number else np.array([], int)
    return [(int(size), rarefied(counts, num_captions=number, sample_size=int(size))) for size in np.unique(sizes)]
