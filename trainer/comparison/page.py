"""Page of a comparison in one file: curves of the validation loss, differences to base with their intervals, tables."""

from collections.abc import Iterator, Sequence
from html import escape
from statistics import fmean

from dataset_builder.reports.charts import Interval, Series, intervals_svg, lines_svg
from dataset_builder.reports.page import Section, Table, charts_html, page, table_html
from foundry.storage.folder import new_file
from trainer.comparison.results import ALL, Compared, Figure, loss_is_comparable
from trainer.comparison.table import Cells, band_rows, cost_rows, headline, loss_rows, markdown, notes, score_rows

PAGE, SUMMARY_MD = "page.html", "summary.md"
_AXES = {"flops": "FLOPs", "seconds": "seconds of training", "images": "images seen"}
_STYLE = ".charts { margin-bottom: 14px }"
_MANY = 4
_SHOWN_SCORES = 12
"""Charts of scores, at most; the table has all."""


def write_page(compared: Compared) -> None:
    """Writes page.html and summary.md, each complete or not at all."""
    for name, text in ((PAGE, comparison_page(compared)), (SUMMARY_MD, markdown(compared))):
        with new_file(compared.folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def comparison_page(compared: Compared) -> str:
    """The whole document."""
    figures = {kind: [one for one in compared.figures if one.kind == kind] for kind in ("loss", "score")}
    overall = [one for one in figures["loss"] if one.name == ALL]
    bands = [one for one in figures["loss"] if one.name != ALL]
    differences = [_intervals(one, compared, title="difference of the loss to base") for one in overall]
    curves = [_curves(ALL, compared, title="validation loss")]
    sections = [
        Section(
            title="Validation loss",
            lead="Means over seeds; lower is better. Curves of more than three validations begin at the second.",
            body=charts_html([*curves, *differences]) + _table(loss_rows(compared)),
        ),
        Section(
            title="Bands of timesteps",
            lead="High timesteps are mostly noise. The table has base's losses, and the differences of the others.",
            body=charts_html(_curves(one.name, compared, title=f"timesteps {one.name}") for one in bands)
            + charts_html(_intervals(one, compared, title=f"difference, timesteps {one.name}") for one in bands)
            + _table(band_rows(compared)),
        ),
        *_score_sections(compared, figures["score"]),
        Section(title="Cost", lead="Means over seeds, of a whole training.", body=_table(cost_rows(compared))),
        Section(title="Arms", lead="What each changes in the settings of base.", body=_arms(compared)),
        Section(title="Notes", lead="", body="".join(f"<p>{escape(note)}</p>" for note in notes(compared))),
    ]
    return page(title="Comparison of techniques", subtitle=headline(compared), sections=sections, style=_STYLE)


def _score_sections(compared: Compared, figures: Sequence[Figure]) -> Iterator[Section]:
    if not figures:
        return
    charts = charts_html(_intervals(one, compared, title=one.name) for one in figures[:_SHOWN_SCORES])
    lead = f"By {compared.scores[0].benchmark}, at the end of training; charts show differences to base."
    yield Section(title="Prompt scores", lead=lead, body=charts + _table(score_rows(compared, every=True)))


def _curves(band: str, compared: Compared, *, title: str) -> str:
    """The mean loss of each arm over its compute. Of many validations the first is left out, which is far above the rest."""
    series = []
    for plan in compared.plans:
        rows = [row for row in compared.rows if row["arm"] == plan.arm.name and row["band"] == band]
        at = {images: [row for row in rows if row["images"] == images] for images in sorted({row["images"] for row in rows})}
        points = [(fmean(row[compared.equal] for row in same), fmean(row["loss"] for row in same)) for same in at.values()]
        if loss_is_comparable(plan.arm, compared.plans[0].arm, band=band):
            series.append(Series(name=plan.arm.name, points=points[1:] if len(points) >= _MANY else points))
    return lines_svg(title, series, x_name=_AXES[compared.equal], from_zero=False)


def _intervals(figure: Figure, compared: Compared, *, title: str) -> str:
    """The differences to base of all arms that have one."""
    found = []
    for number, plan in enumerate(compared.plans):
        estimate = figure.estimates.get(plan.arm.name)
        if estimate is not None and (difference := estimate.difference) is not None:
            points = list(difference.values.values())
            found.append(
                Interval(
                    name=plan.arm.name, value=difference.mean, half_width=difference.half_width, points=points, colour=number
                )
            )
    return intervals_svg(title, found) if found else ""


def _arms(compared: Compared) -> str:
    rows = [
        [
            plan.arm.name,
            "; ".join(f"{name}: {value}" for name, value in plan.arm.changes.items()) or "nothing",
            f"{plan.opened.same_start:.0%}",
        ]
        for plan in compared.plans
    ]
    return table_html(Table(columns=("arm", "changes", "weights that start as base's"), rows=rows))


def _table(cells: Cells) -> str:
    columns, rows = cells
    return table_html(Table(columns=columns, rows=[[_number(cell) for cell in row] for row in rows]))


def _number(cell: str) -> str | float | int:
    """A cell that is a plain number as one, so that the table sorts by it."""
    try:
        return int(cell.replace(",", ""))
    except ValueError:
        return cell
