"""Sections of the report page, queried from a run or a data set by the same SQL; no query holds all rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_builder.concepts.density import PAPER_TABLE, rarefied
from dataset_builder.concepts.density import VIEWS as WAYS
from dataset_builder.reports.charts import Histogram, Series, histogram_svg, lines_svg
from dataset_builder.reports.page import Gallery, Picture, Section, Table, charts_html, gallery_html, table_html
from dataset_builder.reports.thumbnails import read_thumbnails
from foundry.errors import UserError

if TYPE_CHECKING:
    from dataset_builder.sql.database import Database

_BINS = 24
_CURVE_POINTS = 16
_GROUPS = 10

HISTOGRAMS = {
    "num_words": "Words of a caption",
    "num_t5_tokens": "T5 tokens of a caption",
    "num_nouns": "Nouns of a caption",
    "num_distinct_nouns": "Different nouns of a caption",
    "mean_logprob": "Confidence of a caption (mean log-probability)",
}
_SCORES = {
    "clip_mean": "CLIP score, mean of the sentences",
    "clip_least": "CLIP score, worst sentence",
    "aesthetic": "Aesthetic score",
    "sharpness": "Sharpness",
}
_AGAINST = {
    "c.num_words": "words",
    "c.mean_logprob": "confidence (mean log-probability)",
    "s.clip_mean": "CLIP score",
    "i.num_masks": "number of masks",
}


def report_sections(database: "Database", *, num_pictures: int) -> list[Section]:
    """The page, part by part. Raises UserError if there is no caption yet."""
    if not database.fetch("SELECT 1 FROM captions LIMIT 1").num_rows:
        raise UserError("there is no caption to report on yet: caption first")
    head, tail = noun_tables(database)
    curves, against = rarefaction(database), density_against(database)
    spans = [lines_svg(f"{name} of a sample", lines, x_name="captions", is_log=True) for name, lines in curves.items()]
    relations = [lines_svg(f"Nouns by {name}", lines, x_name=name) for name, lines in against.items()]
    contents = {
        "Funnel": ("How many images each step left, and how many it dropped and why.", table_html(funnel_table(database))),
        "Concept density": (
            "VN: nouns that appear more than 10 times. DN: different nouns. As T5 reads it: of the part that the encoder sees.",
            table_html(density_rows(database)),
        ),
        "Statuses": ("Captions by prompt and status; only those that are ok have a text.", table_html(statuses(database))),
        "Rarefaction": ("The nouns to be expected of a random sample of the captions.", charts_html(spans)),
        "Histograms": (
            "Of captions, and of scores where there are any.",
            charts_html(map(histogram_svg, caption_histograms(database))),
        ),
        "Density against": ("Mean nouns of a caption in ten groups of equal size.", charts_html(relations)),
        "Frequent nouns": ("The 100 most frequent, over all captions of a prompt.", table_html(head)),
        "Rare nouns": ("100 of the rarest: the long tail, or mistakes.", table_html(tail)),
        "Repetitions": (
            "By the share of a caption's nouns that repeat an earlier one.",
            table_html(repetitions(database)),
        ),
        "Gallery": ("A fixed random choice.", gallery_html(gallery(database, number=num_pictures))),
    }
    return [Section(title=title, lead=lead, body=body) for title, (lead, body) in contents.items()]


def funnel_table(database: "Database") -> Table:
    """The funnel: that of a data set, or captioned and rejected images of a run."""
    if "funnel" in database.views:
        rows = database.fetch("SELECT step, reason, kept, dropped FROM funnel").to_pylist()
        return Table(columns=("step", "reason", "left", "dropped"), rows=[list(row.values()) for row in rows])
    counts = database.fetch(
        "SELECT (SELECT count(*) FROM images) + (SELECT count(*) FROM rejected) AS planned, "
        "(SELECT count(width) FROM images) AS captioned"
    ).to_pylist()[0]
    rejected = database.fetch("SELECT reason, count(*) AS n FROM rejected GROUP BY ALL ORDER BY n DESC, reason").to_pylist()
    left = counts["planned"]
    rows = [["planned", "", left, 0]]
    waiting = left - counts["captioned"] - sum(row["n"] for row in rejected)
    for step, reason, dropped in [*(("rejected", row["reason"], row["n"]) for row in rejected), ("waiting", "", waiting)]:
        left -= dropped
        rows += [[step, reason, left, dropped]] if dropped else []
    return Table(columns=("step", "reason", "left", "dropped"), rows=rows)


def density_rows(database: "Database") -> Table:
    """The paper's Table 1: each prompt by each way of counting, and the paper's own rows."""
    found = database.fetch("FROM density()").to_pylist()
    rows: list[list[Any]] = [
        [
            row["prompt"],
            WAYS[row["counted"]],
            row["num_captions"],
            row["valid_nouns"],
            row["distinct_nouns"],
            100 * (row["ratio"] or 0),
            row["total_nouns"],
            row["nouns_per_caption"],
        ]
        for row in found
    ]
    for paper in PAPER_TABLE:
        valid, distinct = map(_whole, paper.vn_dn.split(" / "))
        figures = [100 * paper.ratio, _whole(paper.total_nouns), paper.nouns_per_image]
        rows.append([paper.name, "the paper's Table 1, rounded", 11_200_000, valid, distinct, *figures])
    names = ("captions of", "counted", "captions", "VN", "DN", "VN / DN in %", "nouns", "nouns a caption")
    note = "VN and DN grow with the number of captions; compare bodies of different size by the curves below."
    return Table(columns=names, rows=rows, note=note)


def statuses(database: "Database") -> Table:
    """Number of captions by prompt and status."""
    counted = "SELECT prompt, status, count(*) AS captions FROM captions GROUP BY ALL ORDER BY prompt, captions DESC, status"
    return _table(database.fetch(counted).to_pylist())


def caption_histograms(database: "Database") -> list[Histogram]:
    """Histograms of the captions' figures and of the scores, as far as there are any."""
    longest = int(database.settings.get("t5", {}).get("max_tokens", 0))
    found = []
    for view, names in (("captions", HISTOGRAMS), ("scores", _SCORES)):
        for column, title in names.items():
            mark = (float(longest), f"T5 reads {longest}") if column == "num_t5_tokens" and longest else None
            histogram = _histogram(database, view, column, title=title, mark=mark)
            found += [histogram] if histogram else []
    return found


def rarefaction(database: "Database") -> dict[str, list[Series]]:
    """VN and DN to be expected of samples of growing size, a line to each prompt."""
    curves: dict[str, list[Series]] = {"VN": [], "DN": []}
    for row in database.fetch("SELECT prompt, num_captions FROM density() WHERE counted = 'written'").to_pylist():
        name = row["prompt"].replace("'", "''")
        counts = database.fetch(f"SELECT count FROM noun_counts WHERE prompt = '{name}'")["count"].to_numpy().astype(np.int64)
        number = row["num_captions"]
        sizes = sorted({round(size) for size in np.geomspace(1, max(number, 1), _CURVE_POINTS)})
        samples = [(size, rarefied(counts, num_captions=number, sample_size=size)) for size in sizes]
        curves["VN"].append(Series(name=row["prompt"], points=[(size, sample.valid_nouns) for size, sample in samples]))
        curves["DN"].append(Series(name=row["prompt"], points=[(size, sample.distinct_nouns) for size, sample in samples]))
    return curves


def noun_tables(database: "Database") -> tuple[Table, Table]:
    """The most frequent nouns, and the rarest; of those that appear but once a fixed random choice."""
    shown = "SELECT prompt, noun, count, num_captions, if(is_meta, 'speaks of the image', '') AS remark FROM noun_counts "
    head = database.fetch(f"{shown} ORDER BY count DESC, noun LIMIT 100").to_pylist()
    tail = database.fetch(f"{shown} ORDER BY count, hash(noun), noun LIMIT 100").to_pylist()
    return _table(head), _table(tail)


def density_against(database: "Database") -> dict[str, list[Series]]:
    """Mean number of nouns and of different nouns in ten equal groups of captions by another figure."""
    joined = "FROM captions c LEFT JOIN scores s USING (key) LEFT JOIN images i USING (key)"
    charts = {}
    for column, name in _AGAINST.items():
        rows = database.fetch(
            f"SELECT avg(x) AS x, avg(nouns) AS nouns, avg(different) AS different FROM (SELECT {column} AS x, "
            f"c.num_nouns AS nouns, c.num_distinct_nouns AS different, ntile({_GROUPS}) OVER (ORDER BY {column}) AS part "
            f"{joined} WHERE {column} IS NOT NULL AND c.caption <> '') GROUP BY part ORDER BY x"
        ).to_pylist()
        if len({row["x"] for row in rows}) > 1:
            charts[name] = [Series(name=of, points=[(row["x"], row[of]) for row in rows]) for of in ("nouns", "different")]
    return charts


def repetitions(database: "Database") -> Table:
    """The captions that name the same nouns again and again."""
    return _table(
        database.fetch(
            "SELECT key, prompt, round(1 - num_distinct_nouns / num_nouns, 3) AS repetition, num_nouns, num_words, caption "
            "FROM captions WHERE num_nouns > 0 ORDER BY repetition DESC, num_nouns DESC, key LIMIT 25"
        ).to_pylist()
    )


def gallery(database: "Database", *, number: int) -> Gallery:
    """A fixed random choice of images with their first caption, in prose where there is any."""
    has_samples = "samples" in database.views
    embedded = "(SELECT m.image.bytes FROM samples m WHERE m.key = i.key)" if has_samples else "NULL"
    rows = database.fetch(
        f"WITH chosen AS (SELECT * FROM images WHERE width IS NOT NULL ORDER BY hash(key), key LIMIT {number}), "
        "said AS (SELECT key, first(caption ORDER BY value IS NOT NULL, caption = '', prompt) AS caption, "
        "first(num_nouns ORDER BY value IS NOT NULL, caption = '', prompt) AS nouns "
        "FROM captions WHERE key IN (SELECT key FROM chosen) GROUP BY key) "
        "SELECT i.key, i.uri, i.member, i.byte_offset, i.byte_length, i.row, said.*, s.clip_mean, s.aesthetic, s.sharpness, "
        f"{embedded} AS data FROM chosen i LEFT JOIN said USING (key) LEFT JOIN scores s USING (key) ORDER BY i.key"
    ).to_pylist()
    thumbnails = read_thumbnails(rows)
    pictures = [_picture(thumbnails.by_key[row["key"]], row) for row in rows if row["key"] in thumbnails.by_key]
    return Gallery(pictures=pictures, unread=thumbnails.unread)


def _picture(thumbnail: str, row: Mapping[str, Any]) -> Picture:
    figures = {name: row[name] for name in ("nouns", "clip_mean", "aesthetic", "sharpness")}
    return Picture(key=row["key"], jpeg_base64=thumbnail, caption=row["caption"] or "", figures=figures)


def _histogram(database: "Database", view: str, column: str, *, title: str, mark: tuple[float, str] | None) -> Histogram | None:
    """Equal bins from the least to the greatest value, whole numbers where the values are; None if all are null."""
    span = database.fetch(f"SELECT min({column})::DOUBLE AS low, max({column})::DOUBLE AS high FROM {view}").to_pylist()[0]
    if span["low"] is None:
        return None
    low, high = span["low"], span["high"]
    step = (high - low) / _BINS or 1.0
    if column.startswith("num_"):
        step = max(1.0, np.ceil(step))
    bins = max(1, int((high - low) / step) + column.startswith("num_"))
    rows = database.fetch(
        f"SELECT least(floor(({column} - {low}) / {step})::INT, {bins - 1}) AS bin, count(*) AS n FROM {view} "
        f"WHERE {column} IS NOT NULL GROUP BY bin"
    ).to_pylist()
    counts = {row["bin"]: row["n"] for row in rows}
    edges = [low + step * number for number in range(bins + 1)]
    return Histogram(title=title, edges=edges, counts=[counts.get(number, 0) for number in range(bins)], mark=mark)


def _whole(printed: str) -> int:
    """A number as the paper prints it: 210K, 72.0M."""
    return round(float(printed[:-1]) * {"K": 1_000, "M": 1_000_000}[printed[-1]])


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    names = [name.replace("_", " ") for name in rows[0]] if rows else []
    return Table(columns=names, rows=[list(row.values()) for row in rows])
