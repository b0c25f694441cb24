"""Command that writes a report page about a run or data set: `python -m dataset_builder.report RUN|DATASET --out report.html`.

The page has the funnel, the concept density next to the paper's, histograms, rarefaction, frequent and rare nouns, the density
against other figures, repetitions, and a gallery. It is one self-contained file, which you can send by mail.
"""

from dataclasses import dataclass

from foundry.command_line import run_command
from foundry.errors import UserError
from foundry.reporting.lines import say


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Raises ValueError for a negative number of pictures."""

    source: str
    """Folder or URL of a captioning run, finished or not, or of a data set."""
    out: str
    """Path of the HTML file to write."""
    pictures: int = 48
    """Number of thumbnails in the gallery; 0: read no image."""
    title: str = ""
    """Heading of the page; default: the last part of the source."""

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"pictures must be 0 or more, found {self.pictures}")


def main(config: ReportConfig) -> int:
    """Writes the page and returns 0."""
    from pathlib import Path

    from dataset_builder.reports.page import page
    from dataset_builder.reports.sections import report_sections
    from dataset_builder.sql.dataset_files import open_stored

    with open_stored(config.source) as database:
        sections = report_sections(database, num_pictures=config.pictures)
    name = config.title or config.source.rstrip("/").rsplit("/", 1)[-1]
    text = page(title=name, subtitle=f"captions and their concept density; source: {config.source}", sections=sections)
    try:
        Path(config.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{config.out} cannot be written ({error.strerror}): give another --out") from None
    say(f"{config.out}: {len(text.encode()):,} bytes; open it in a browser")
    return 0


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
