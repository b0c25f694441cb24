"""Drawing on Ray: each replica opens the pipeline of a checkpoint and draws shard after shard into one shared folder.

The shards run as units of foundry.units.ray_driver. Their commits stay in memory: an image's own file records what it was
drawn with, so that files alone tell what is left to draw.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foundry.errors import NotFiniteOutput, UserError
from foundry.hardware import Dtype
from foundry.reporting.progress import Bar
from foundry.storage.locations import absolute_if_there
from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit
from foundry.units.ray_driver import run_units
from foundry.units.ray_session import check_visible, cluster_nodes, dtype_of_replicas, replicas_use_gpus, start_ray
from foundry.units.rejection import Failure
from foundry.units.workers import JobFailed
from model.generation.pipeline import Pipeline
from model.lora.settings import LoraChoice
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.drawing import Drawing

_SHARD_TIMEOUT_S = 24 * 3600.0  # a shard of staged drawing is a thousand images, which may be large ones on a CPU


def dtype_of_drawers(config: EvaluateConfig) -> Dtype:
    """The number format that `auto` means on the workers that draw. Raises UserError if a node does not answer."""
    settings = _ray_settings(config)
    start_ray(settings)
    return dtype_of_replicas(settings)


def draw_on_ray(drawing: Drawing, indices: Sequence[int]) -> None:
    """Draws the images of these indices on `num_workers` workers.

    Raises UserError for more workers than GPUs, a folder that a node does not see, or an image that fails again and again; and,
    once all others are drawn, for images that are NaN or infinite.
    """
    config = drawing.config
    drawing = replace(
        drawing,
        paths=tuple(path.absolute() for path in drawing.paths),
        config=replace(
            config,
            checkpoint=absolute_if_there(config.checkpoint),
            text_encoder=absolute_if_there(config.text_encoder),
            vae=absolute_if_there(config.vae),
            lora=tuple(_absolute_lora(text) for text in config.lora),
        ),
    )
    settings = _ray_settings(config)
    start_ray(settings)
    _check_gpus(config.num_workers, settings)
    folder = drawing.paths[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    check_visible({str(folder): ""})
    shards = [
        Shard(number=number, part="", row_group=0, num_images=len(shard), indices=tuple(shard))
        for number, shard in enumerate(drawing.shards(indices))
    ]
    not_finite: list[ShardCommit] = []
    with Bar("drawing", total=len(indices)) as bar:

        def note(commit: Commit | None) -> None:
            bar.advance(commit.completed if commit else 0)
            if isinstance(commit, ShardCommit) and commit.not_finite:
                not_finite.append(commit)

        run_units(
            DrawingJob(drawing),
            shards,
            settings=settings,
            on_start=bar.restart,
            on_commit=note,
        )
    if not_finite:
        number = sum(sum(commit.rejected.values()) for commit in not_finite)
        raise NotFiniteOutput(f"{number} of {len(indices)} images are left out, the first of them: {not_finite[0].not_finite}")


@dataclass(frozen=True, kw_only=True)
class Shard(Unit):
    """Unit of drawing: the images of these indices."""

    indices: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardCommit(Commit):
    """Record of a shard that is drawn."""

    not_finite: str = ""
    """Message about its images that are NaN or infinite; empty: there are none."""


@dataclass(frozen=True)
class Drawn:
    """Outcome of a shard: how many images were looked for, how many of them are NaN or infinite, and what was said of these."""

    num_images: int
    num_not_finite: int = 0
    not_finite: str = ""


@dataclass(frozen=True)
class DrawingJob:
    """Drawing of a shard; see foundry.units.workers.UnitJob for the calls."""

    drawing: Drawing

    def prepare(self, unit: Unit, positions: Sequence[int]) -> tuple[list[int], float]:
        """The indices of the images, and the time now."""
        assert isinstance(unit, Shard)
        return [unit.indices[position] for position in positions], time.time()

    def warm_up(self) -> None:
        """Nothing is loaded for preparing and finishing."""

    def load_engine(self) -> Pipeline:
        """The pipeline of the checkpoint, on this replica's device."""
        return self.drawing.open_pipeline()

    def check(self, engine: Pipeline) -> None:
        """Draws the first image of all, in one step and into no file; not staged, where that would load all parts again.

        That this image is NaN or infinite says nothing about the others.
        """
        if engine.runtime.staged:
            return
        request = self.drawing.drawn_request
        one_step = replace(request, sampling=replace(request.sampling, num_inference_steps=1))
        with contextlib.suppress(NotFiniteOutput):
            next(iter(engine.stream(one_step, images=[0])))

    def process(self, engine: Pipeline, payload: Sequence[int], *, one_by_one: bool) -> Drawn:
        """Draws the images that can be drawn. Those that a lost replica has drawn are not drawn again."""
        missing = self.drawing.missing(payload)
        messages: list[str] = []
        for batch in [[index] for index in missing] if one_by_one else [missing]:
            try:
                self.drawing.draw(engine, batch)
            except NotFiniteOutput as error:
                messages.append(str(error))
        left_out = len(self.drawing.missing(payload)) if messages else 0
        return Drawn(len(payload), left_out, messages[0] if messages else "")

    def finish(self, unit: Unit, *, facts: float, output: Drawn, excluded: dict[int, Failure]) -> Commit:
        """The record of a shard that is drawn, which nobody keeps. Raises JobFailed if an image is left out."""
        assert isinstance(unit, Shard)
        for position, failure in excluded.items():
            path = self.drawing.paths[unit.indices[position]]
            raise JobFailed(f"{path.name} cannot be drawn ({failure.message}); the same command resumes after the images drawn")
        seconds = {"draw": time.time() - facts}
        return ShardCommit(
            run_id="",
            unit=unit.number,
            planned=unit.num_images,
            completed=output.num_images - output.num_not_finite,
            rejected={"not_finite": output.num_not_finite} if output.num_not_finite else {},
            files={},
            seconds=seconds,
            not_finite=output.not_finite,
        )


def _absolute_lora(text: str) -> str:
    choice = LoraChoice.parse(text)
    return f"{absolute_if_there(choice.path)}:{choice.scale!r}"


def _ray_settings(config: EvaluateConfig) -> RaySettings:
    gpus = 1 if config.runtime.device in ("auto", "cuda") else 0
    return RaySettings(num_replicas=config.num_workers, gpus_per_replica=gpus, unit_timeout_s=_SHARD_TIMEOUT_S)


def _check_gpus(num_workers: int, settings: RaySettings) -> None:
    held = sum(int(node.gpus) for node in cluster_nodes())
    if replicas_use_gpus(settings) and held < num_workers:
        raise UserError(f"{num_workers} workers: this Ray has {held} GPUs, one for each worker", setting="num_workers")
