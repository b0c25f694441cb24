"""The figures of the demo's page: scores, losses, times."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from dataset_builder.reports.charts import Series, lines_svg
from dataset_builder.reports.page import Table, charts_html, table_html
from examples.openmoji.demo_grid import HEADINGS
from examples.openmoji.demo_results import Drawn
from examples.openmoji.demo_steps import StepTime, duration
from trainer.monitoring.run_folder import read_metrics

_HEADLINE = {
    "object": "of the requested objects are drawn",
    "background": "of the backgrounds are right",
    "place": "of the objects are in the right place",
    "all": "of the images have everything right",
}


def headline_html(last: Drawn) -> str:
    """The most important shares at the end of training, by each judge."""
    boxes = []
    for metric, what in _HEADLINE.items():
        scores = [last.score(metric, judge) for judge in last.judges]
        shares = " · ".join(f"{score['value']:.0%}" for score in scores)
        ceilings = " · ".join(f"{score['ceiling']:.0%}" for score in scores)
        boxes.append(f"<div><b>{shares}</b>{escape(what)}<br><span>of rendered scenes: {ceilings}</span></div>")
    return f'<div class="headline">{"".join(boxes)}</div>'


def scores_html(drawn: Sequence[Drawn], *, last: Drawn) -> str:
    """Every metric over all prompts, by judge and stage, next to the judges' scores of rendered scenes."""
    titles = [HEADINGS[one.name][0] for one in drawn]
    rows = []
    for metric in last.metrics:
        for judge in last.judges:
            ends = last.score(metric, judge)
            values = [one.score(metric, judge)["value"] for one in drawn]
            rows.append([metric, judge, *(_rounded(value) for value in (*values, ends["held_out"], ends["ceiling"]))])
    return table_html(Table(columns=("metric", "judge", *titles, "held out, after aesthetic", "ceiling"), rows=rows))


def losses_html(training: Path, stages: Sequence[str]) -> str:
    """Loss over images seen, of training and of images that are not trained on, a chart to each stage."""
    charts = []
    for stage in stages:
        rows = read_metrics(training / stage)
        lines = [
            Series(name=name, points=[(row["images_seen"], row["loss"]) for row in rows if row["kind"] == kind])
            for name, kind in (("training", "train"), ("validation", "validation"))
        ]
        charts.append(lines_svg(f"{stage}: loss", [line for line in lines if line.points], x_name="images seen"))
    return charts_html(charts)


def times_html(times: Sequence[StepTime]) -> str:
    """Each step with its command and a bar."""
    longest = max(one.seconds for one in times)
    rows = "".join(
        f"<tr><td>{escape(one.title)}<code>{escape(one.command)}</code></td>"
        f'<td class="number">{duration(one.seconds)}</td>'
        f'<td style="width:30%"><i style="width:{100 * one.seconds / longest:.1f}%"></i></td></tr>'
        for one in times
    )
    total = duration(sum(one.seconds for one in times))
    rows += f'<tr><td><b>in all</b></td><td class="number"><b>{total}</b></td><td></td></tr>'
    return f'<div class="wide all"><table class="steps"><tbody>{rows}</tbody></table></div>'


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
