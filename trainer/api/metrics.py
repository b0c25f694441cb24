"""Metrics of trainings as rows, for data frames and plots; needs nothing but the core."""

import os
from pathlib import Path
from typing import Any

from dataset_builder.api.answer import Answer
from foundry.errors import UserError
from foundry.storage.json_lines import read_rows
from trainer.monitoring.tracking.rows import METRICS


def load_metrics(*runs: "str | os.PathLike[str]", kind: str | None = None) -> Answer:
    """Reads the metrics of trainings, each the folder RUN_DIR/<stage>, also while they run.

    A row for each interval (`kind` is train), validation and spike, in the order of writing, with the folder as `run`. `loss`
    is the mean of the interval, `bands` are validation losses by quarter of the timesteps, `images_per_s` is the speed of the
    steps, and `overall_images_per_s` that with all between them. What a row does not have is null. `kind` chooses one kind.

    Raises UserError for a folder without metrics.

    Example:

        from trainer import load_metrics
        curves = load_metrics("runs/alignment", "runs/aesthetic", kind="validation").df()
        curves.pivot(index="images_seen", columns="run", values="loss").plot()
    """
    import pyarrow as pa

    if not runs:
        raise UserError("give the folder of a training or several, RUN_DIR/<stage>, such as runs/alignment")
    rows = [{"run": os.fspath(run), **row} for run in runs for row in _rows(Path(run)) if kind in (None, row["kind"])]
    names = dict.fromkeys(["run", "kind", "images_seen", *(name for row in rows for name in row)])
    if not rows:
        return Answer(pa.table({name: pa.array([], pa.string()) for name in names}), notes=_nothing(runs, kind))
    return Answer(pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}))


def _rows(run: Path) -> list[dict[str, Any]]:
    """Raises UserError for a folder that is no training's."""
    path = run / METRICS
    if path.exists():
        return read_rows(path)
    stages = sorted(found.parent.name for found in run.glob(f"*/{METRICS}"))
    found = f": it has the trainings {', '.join(stages)}" if stages else ""
    raise UserError(f"{run} has no {METRICS}{found}: give the folder of a training, RUN_DIR/<stage>")


def _nothing(runs: "tuple[str | os.PathLike[str], ...]", kind: str | None) -> list[str]:
    found = sorted({str(row["kind"]) for run in runs for row in _rows(Path(run))})
    return [f"no rows{f' of the kind {kind}' if kind else ''} yet; there are {', '.join(found) or 'none of any kind'}"]
