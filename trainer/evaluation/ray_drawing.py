"""Drawing on Ray: each replica opens the pipeline of a checkpoint and draws shard after shard into one shared folder.

The shards run as units of foundry.units.ray_driver. Their commits stay in memory: an image's own file records what it was
drawn with, so that files alone tell what is left to draw.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from foundry.errors import UserError
from foundry.hardware import Dtype
from foundry.storage.locations import absolute_if_there
from foundry.units.cluster import RaySettings
from foundry.units.commits import Commit, Unit
from foundry.units.ray_driver import run_units
from foundry.units.ray_session import check_visible, cluster_nodes, dtype_of_replicas, replicas_use_gpus, start_ray
from foundry.units.rejection import Failure
from foundry.units.workers import JobFailed
from model.generation.pipeline import Pipeline
from trainer.evaluation.config import EvaluateConfig
from trainer.evaluation.drawing import Drawing

_SHARD_TIMEOUT_S = 24 * 3600.0  # a shard of staged drawing is a thousand images, which may be large ones on a CPU


def dtype_of_drawers(config: EvaluateConfig) -> Dtype:
    """The number format that `auto` means on the workers that draw. Raises UserError where a node does not answer."""
    settings = _ray_settings(config)
    start_ray(settings)
    return dtype_of_replicas(settings)


def draw_on_ray(drawing: Drawing, indices: Sequence[int]) -> None:
    """Draws the images of these indices on `num_workers` workers.

    Raises UserError for more workers than GPUs, a folder that a node does not see, or an image that fails again and again.
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
    with tqdm(total=len(indices), unit="image") as bar:
        run_units(
            DrawingJob(drawing),
            shards,
            settings=settings,
            on_start=bar.unpause,
            on_commit=lambda commit: bar.update(commit.completed if commit else 0),
        )


@dataclass(frozen=True, kw_only=True)
class Shard(Unit):
    """Unit of drawing: the images of these indices."""

    indices: tuple[int, ...]


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
        """Draws the first image of all, in one step and into no file; not staged, where that would load all parts anew."""
        if engine.runtime.staged:
            return
        request = self.drawing.request
        one_step = replace(request, sampling=replace(request.sampling, num_inference_steps=1))
        next(iter(engine.stream(one_step, images=[0])))

    def process(self, engine: Pipeline, payload: Sequence[int], *, one_by_one: bool) -> int:
        """Draws the images; returns how many are there. Those that a lost replica has drawn are not drawn again."""
        missing = self.drawing.missing(payload)
        for batch in [[index] for index in missing] if one_by_one else [missing]:
            self.drawing.draw(engine, batch)
        return len(payload)

    def finish(self, unit: Unit, *, facts: float, output: int, excluded: dict[int, Failure]) -> Commit:
        """The record of a shard that is drawn, which nobody keeps. Raises JobFailed where an image is left out."""
        assert isinstance(unit, Shard)
        for position, failure in excluded.items():
            path = self.drawing.paths[unit.indices[position]]
            raise JobFailed(f"{path.name} cannot be drawn ({failure.message}); the same command resumes after the images drawn")
        seconds = {"draw": time.time() - facts}
        return Commit(
            run_id="",
            unit=unit.number,
            planned=unit.num_images,
            completed=output,
            rejected={},
            files={},
            seconds=seconds,
        )


def _ray_settings(config: EvaluateConfig) -> RaySettings:
    gpus = 1 if config.runtime.device in ("auto", "cuda") else 0
    return RaySettings(num_replicas=config.num_workers, gpus_per_replica=gpus, unit_timeout_s=_SHARD_TIMEOUT_S)


def _check_gpus(num_workers: int, settings: RaySettings) -> None:
    held = sum(int(node.gpus) for node in cluster_nodes())
    if replicas_use_gpus(settings) and held < num_workers:
        raise UserError(f"--num_workers {num_workers}: this Ray has {held} GPUs, one for each worker")
