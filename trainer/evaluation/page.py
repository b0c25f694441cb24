"""The page of an evaluation: its figures, and the worst and best images of each category. Holds everything itself."""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from dataset_builder.reports.page import Picture, Section, Table, cards_html, page, table_html
from foundry.storage.folder import new_file
from trainer.evaluation.benchmark import Benchmark
from trainer.evaluation.images import DrawnImage
from trainer.evaluation.judging import GENERATED, Judged
from trainer.evaluation.summary import Summary, remarks, score_tables

PAGE = "page.html"
_THUMBNAIL_PX = 192


def write_page(
    out: Path,
    benchmark: Benchmark,
    *,
    drawn: Sequence[DrawnImage],
    judged: Sequence[Judged],
    summary: Summary,
    num_images: int,
) -> None:
    """Writes page.html, with `num_images` of the worst and of the best images of each category."""
    ceiling = ["the ceiling is the score of true images by the same judge"] if benchmark.true_images else []
    sections = [Section(title="Figures", lead="; ".join([*ceiling, *remarks(summary)]), body=_tables(summary))]
    verdicts: dict[tuple[Path | None, str], list[Judged]] = defaultdict(list)
    for one in judged:
        if one.images == GENERATED:
            verdicts[one.path, one.prompt.category].append(one)
    for category, metric in benchmark.metric_of.items():
        own = [image for image in drawn if image.prompt.category == category]
        own.sort(key=lambda image: _mean(verdicts[image.path, image.prompt.category], metric))
        worst, best = own[:num_images], own[max(num_images, len(own) - num_images) :][::-1]
        pictures = [
            _picture(image, verdicts[image.path, category], metric, summary.prompts.rewritten) for image in [*worst, *best]
        ]
        lead = f"Sorted by {metric}, mean of the judges: the {len(worst)} worst, then the {len(best)} best of {len(own)}."
        if own:
            sections.append(Section(title=category, lead=lead, body=cards_html(pictures)))
    text = page(title=f"Evaluation: {benchmark.name}", subtitle=f"{len(drawn)} images", sections=sections)
    with new_file(out / PAGE) as partial:
        partial.write_text(text, encoding="utf-8")


def _tables(summary: Summary) -> str:
    tables = [Table(columns=columns, rows=[_rounded(row) for row in rows]) for columns, rows in score_tables(summary)]
    distances = [_rounded([one.embedding, one.num_images, one.value, one.between_true]) for one in summary.distances]
    if distances:
        tables.append(
            Table(columns=("Fréchet distance by", "images", "distance", "of true images of other prompts"), rows=distances)
        )
    return "".join(map(table_html, tables))


def _rounded(cells: Sequence[Any]) -> list[Any]:
    return [round(cell, 3) if isinstance(cell, float) else cell for cell in cells]


def _mean(verdicts: Sequence[Judged], metric: str) -> float:
    values = [one.verdict.values[metric] for one in verdicts if metric in one.verdict.values]
    return fmean(values) if values else 0.0


def _picture(image: DrawnImage, verdicts: Sequence[Judged], metric: str, rewritten: Mapping[str, str]) -> Picture:
    text = rewritten.get(image.prompt.text)
    seen = "; ".join(f"{one.judge}: {one.verdict.seen}" for one in verdicts if one.verdict.seen)
    return Picture(
        key=f"{image.prompt.text} (seed {image.seed}{', held out' if image.prompt.held_out else ''})",
        jpeg_base64=_jpeg(image),
        caption="; ".join(filter(None, [f"drawn as: {text}" if text else "", seen])),
        figures={one.judge: one.verdict.values.get(metric) for one in verdicts},
    )


def _jpeg(image: DrawnImage) -> str:
    """Small images are enlarged without smoothing, large ones reduced."""
    picture = Image.fromarray(image.pixels())
    scale = _THUMBNAIL_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    shown = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
