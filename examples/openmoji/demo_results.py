"""Results of the demo's networks: images and verdicts, as trainer.evaluate has written them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from examples.openmoji.demo_commands import STAGES, DemoFolder
from model.formats.checkpoint import MINI
from model.generation.image_files import image_names
from trainer.evaluation.benchmark import ALL
from trainer.evaluation.images import IMAGES
from trainer.evaluation.judging import GENERATED
from trainer.evaluation.summary import RESULTS, SUMMARY_JSON


@dataclass(frozen=True)
class Finding:
    """A judge's finding about an image by a metric."""

    value: float
    """0 to 1."""
    seen: str
    """Description of what the judge saw."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One network's images of the prompts."""

    name: str
    """A stage, or `mini`."""
    images: dict[str, Path]
    """Images by prompt."""
    scores: list[dict[str, Any]]
    """Scores as in summary.json: category, judge, metric, value, held_out, ceiling."""
    findings: dict[tuple[str, str, str], Finding]
    """Findings by prompt, judge and metric."""

    @property
    def judges(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(dict.fromkeys(score["judge"] for score in self.scores if score["category"] == ALL))

    @property
    def metric_of(self) -> dict[str, str]:
        """The metric of each category."""
        return {score["category"]: score["metric"] for score in self.scores if score["category"] != ALL}

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that are measured over all prompts."""
        return tuple(dict.fromkeys(score["metric"] for score in self.scores if score["category"] == ALL))

    def score(self, metric: str, judge: str) -> dict[str, Any]:
        """Over all prompts."""
        return next(one for one in self.scores if (one["category"], one["metric"], one["judge"]) == (ALL, metric, judge))


def read_drawn(folder: DemoFolder) -> list[Drawn]:
    """Drawings of the stages in order, then of the bundled network."""
    return [_read(folder, name) for name in (*STAGES, MINI)]


def _read(folder: DemoFolder, name: str) -> Drawn:
    evaluation = folder.evaluation(name)
    rows = pq.read_table(evaluation / RESULTS, filters=[("images", "=", GENERATED)]).to_pylist()
    images = folder.classes if name == STAGES[0] else evaluation / IMAGES
    return Drawn(
        name=name,
        images={row["prompt"]: images / image_names([row["prompt"]], [row["seed"]])[0] for row in rows},
        scores=json.loads((evaluation / SUMMARY_JSON).read_text(encoding="utf-8"))["scores"],
        findings={(row["prompt"], row["judge"], row["metric"]): Finding(row["value"], row["seen"]) for row in rows},
    )
