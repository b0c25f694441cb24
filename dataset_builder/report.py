"""One page about a captioning run or a data set: `python -m dataset_builder.report RUN|DATASET --out report.html`.

The funnel, the concept density beside the paper's, histograms, rarefaction, frequent and rare nouns, what density goes along
with, repetitions, and a gallery. The page holds everything itself and can be sent to somebody.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foundry.command_line import run_command
from foundry.errors import UserError

if TYPE_CHECKING:
    from dataset_builder.reports.page import Section
    from dataset_builder.sql.database import Database


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Raises ValueError for a negative number of pictures."""

    source: str
    """Folder or URL of a captioning run (also while it goes on) or a data set."""
    out: str
    """The HTML file."""
    pictures: int = 48
    """Thumbnails in the gallery; 0 reads no image."""
    title: str = ""
    """Heading; by default, the last part of the source."""

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures must be 0 or more, found {self.pictures}")


def main(config: ReportConfig) -> int:
    """Writes the page and returns 0."""
    from pathlib import Path

    from dataset_builder.reports.page import page
    from dataset_builder.sql.database import open_stored

    with open_stored(config.source) as database:
        sections = report_sections(database, num_pictures=config.pictures)
    name = config.title or config.source.rstrip("/").rsplit("/", 1)[-1]
    text = page(title=name, subtitle=f"captions and their concept density; source: {config.source}", sections=sections)
    try:
        Path(config.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{config.out} cannot be written ({error.strerror}): give another --out") from None
    print(f"{config.out}: {len(text.encode()):,} bytes; open it in a browser")
    return 0


def report_sections(database: "Database", *, num_pictures: int) -> "list[Section]":
    """The page, part by part. Raises UserError where there is no caption yet."""
    from dataset_builder.reports import sections as data
    from dataset_builder.reports.charts import histogram_svg, lines_svg
    from dataset_builder.reports.page import Section, charts_html, gallery_html, table_html

    if not database.fetch("SELECT 1 FROM captions LIMIT 1").num_rows:
        raise UserError("there is no caption to report on yet: caption first")
    head, tail = data.noun_tables(database)
    curves, against = data.rarefaction(database), data.density_against(database)
    spans = [lines_svg(f"{name} of a sample", lines, x_name="captions", is_log=True) for name, lines in curves.items()]
    relations = [lines_svg(f"Nouns by {name}", lines, x_name=name) for name, lines in against.items()]
    contents = {
        "Funnel": ("How many images each step left, and how many it dropped and why.", table_html(data.funnel_table(database))),
        "Concept density": (
            "VN: nouns that appear more than 10 times. DN: different nouns. As T5 reads it: of the part that the encoder sees.",
            table_html(data.density_rows(database)),
        ),
        "Rarefaction": ("The nouns to be expected of a random sample of the captions.", charts_html(spans)),
        "Histograms": (
            "Of captions, and of scores where there are any.",
            charts_html(map(histogram_svg, data.caption_histograms(database))),
        ),
        "Density against": ("Mean nouns of a caption in ten groups of equal size.", charts_html(relations)),
        "Frequent nouns": ("The 100 most frequent, over all captions of a prompt.", table_html(head)),
        "Rare nouns": ("100 of the rarest: the long tail, or mistakes.", table_html(tail)),
        "Repetitions": (
            "By the share of a caption's nouns that it had named before.",
            table_html(data.repetitions(database)),
        ),
        "Gallery": ("A fixed random choice.", gallery_html(data.gallery(database, number=num_pictures))),
    }
    return [Section(title=title, lead=lead, body=body) for title, (lead, body) in contents.items()]


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ReportConfig,
            main,
            prog="python -m dataset_builder.report",
            example="python -m dataset_builder.report runs/photos --out report.html",
            positional=("source",),
        )
    )
