"""Command that scores images and their captions: `python -m dataset_builder.score RUN|DATASET`, alone or as a Ray job.

Scores are CLIP between an image and each sentence of its captions, LAION's aesthetic predictor, sharpness, and the perceptual
hash and embeddings by which duplicates are found. The same command resumes, also after the run has grown.
"""

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dataset_builder.scores.clip import DEFAULT_CLIP, NO_CLIP
from foundry.command_line import counted, run_command
from foundry.units.cluster import RaySettings, check_paths
from foundry.units.rejection import allowed_rejections

_DTYPE_FILE = "dtype"

if TYPE_CHECKING:
    from dataset_builder.scores.job import ScoreJob
    from foundry.storage.folder import Folder
    from foundry.units.commits import Unit


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """All settings of `python -m dataset_builder.score`. Raises ValueError for settings out of range."""

    source: str
    """Folder or URL of a captioning run or a data set; the scores are stored in it."""
    clip: str = DEFAULT_CLIP
    """CLIP to score with: MODEL:TAG of open_clip, hf-hub:ORG/NAME, a folder with open_clip_config.json, or `none`."""
    aesthetic: str | None = None
    """Path of LAION's aesthetic predictor (linearMSE) as safetensors; it needs the embeddings of the default CLIP."""
    batch_size: int = 64
    """Number of images or sentences in a batch of the model; affects the speed, and scores by rounding alone."""
    max_rejected: float | None = None
    """Share of the images (0 to 1) that may be rejected before scoring stops; default: 0.01, but at least 100 images."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Ray settings: where the work runs."""

    def __post_init__(self) -> None:
        problems = []
        if self.batch_size < 1:
            problems.append(f"batch_size must be at least 1, found {self.batch_size}")
        if self.max_rejected is not None and not 0 <= self.max_rejected <= 1:
            problems.append(f"max_rejected must be between 0 and 1, found {self.max_rejected}")
        if self.aesthetic and self.clip == NO_CLIP:
            problems.append("the aesthetic predictor reads CLIP embeddings: name a CLIP, or leave it out")
        if problems:
            raise ValueError("; ".join(problems))


def main(config: ScoreConfig) -> int:
    """Scores what is not scored yet; returns 0, or 1 where more images failed than the budget allows."""
    from dataset_builder.scores.job import score_job
    from dataset_builder.scores.plan import plan_scores
    from dataset_builder.sql.score_files import score_folder
    from foundry.storage.folder import Folder, store_errors
    from foundry.storage.locations import is_local_path
    from foundry.units.commits import committed_units, read_commits
    from foundry.units.run import run_job

    started = time.perf_counter()
    check_paths([path for path in (config.source, config.aesthetic) if path])
    scored = Folder(config.source)
    with store_errors(scored):
        job = score_job(config.source, clip=config.clip, aesthetic=config.aesthetic, batch_size=config.batch_size)
        out = score_folder(scored, job.score_id)
        units = plan_scores(scored, out, is_run=job.is_run)
        done = committed_units(out)
    left = [unit for unit in units if unit.number not in done]
    to_do = f"{len(left)} of {counted(len(units), 'unit')} to do"
    if left and job.clip:
        job = _in_dtype(config, job, out)
    computed = f"; {config.clip} in {job.dtype}" if left and job.clip else ""
    print(f"scores {job.score_id} of {config.source}: {_images(units)} images, {to_do}{computed}")
    rejected = sum(commit.num_rejected for commit in read_commits(out))
    budget = allowed_rejections(config.max_rejected, _images(units))
    if left:
        paths = [config.source, config.aesthetic or "", config.clip if job.clip and job.clip.is_folder else ""]
        visible = {path: "" for path in paths if path and is_local_path(path)}
        if not run_job(job, left, settings=config.ray, visible=visible, budget=budget - rejected, started=started):
            return 1
    commits = read_commits(out)
    rejected = sum(commit.num_rejected for commit in commits)
    print(f"{_images(units)} images = {sum(commit.completed for commit in commits)} scored + {rejected} rejected")
    return 1 if rejected > budget else 0


def _in_dtype(config: ScoreConfig, job: "ScoreJob", out: "Folder") -> "ScoreJob":
    """The work in the number format that this scoring began with, else in the one that the replicas' hardware is fast in.

    Attaches to Ray to find that out.
    """
    from foundry.units.ray_session import dtype_of_replicas, start_ray

    if not out.exists(_DTYPE_FILE):
        start_ray(config.ray)
        out.create(_DTYPE_FILE, dtype_of_replicas(config.ray).encode())
    return replace(job, dtype=out.read(_DTYPE_FILE).decode())  # type: ignore[arg-type]


def _images(units: "list[Unit]") -> int:
    return sum(unit.num_images for unit in units)


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            ScoreConfig,
            main,
            prog="python -m dataset_builder.score",
            example="python -m dataset_builder.score runs/photos --clip ViT-L-14-quickgelu:openai",
            positional=("source",),
        )
    )
