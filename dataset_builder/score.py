"""Scores images and their captions: `python -m dataset_builder.score RUN|DATASET`, alone or as a Ray job.

CLIP between an image and each sentence of its captions, LAION's aesthetic predictor, sharpness, and the perceptual hash and the
embeddings by which duplicates are found. The same command again goes on where it ended, also after the run has grown.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from foundry.command_line import counted, run_command
from foundry.errors import UserError
from foundry.units.cluster import RaySettings, check_paths
from foundry.units.rejection import allowed_rejections

if TYPE_CHECKING:
    from dataset_builder.scores.clip import ClipSource
    from dataset_builder.scores.job import ScoreJob
    from foundry.images.decoding import DecodeLimits
    from foundry.storage.folder import Folder
    from foundry.units.commits import Unit

DEFAULT_CLIP = "ViT-L-14-quickgelu:openai"
NO_CLIP = "none"
SCORING_VERSION = 1
"""Changes whenever the same settings give other scores."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """All settings of `python -m dataset_builder.score`. Raises ValueError for settings out of range."""

    source: str
    """Folder or URL of a captioning run or a data set; the scores are put inside."""
    clip: str = DEFAULT_CLIP
    """open_clip's MODEL:TAG, hf-hub:ORG/NAME, a folder with open_clip_config.json, or `none` for what needs no model."""
    aesthetic: str | None = None
    """LAION's predictor (linearMSE) as a safetensors file; it wants the embeddings of the default CLIP."""
    batch_size: int = 64
    """Images or sentences that the model takes at a time; it changes the speed and no score by more than rounding."""
    max_rejected: float | None = None
    """Share of the images that may fail before scoring stops; default: 1 %, but at least 100."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Where the work runs."""

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
    from dataset_builder.sql.score_files import score_folder
    from foundry.storage.folder import Folder, store_errors
    from foundry.storage.locations import is_local_path
    from foundry.units.commits import committed_units, read_commits
    from foundry.units.run import run_job

    started = time.perf_counter()
    check_paths([path for path in (config.source, config.aesthetic) if path])
    scored = Folder(config.source)
    with store_errors(scored):
        job = score_job(config)
        out = score_folder(scored, job.score_id)
        units = plan_scores(scored, out, is_run=job.is_run)
        done = committed_units(out)
    left = [unit for unit in units if unit.number not in done]
    to_do = f"{len(left)} of {counted(len(units), 'unit')} to do"
    if left and job.clip:
        job = _in_dtype(config, job)
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


def score_job(config: ScoreConfig) -> "ScoreJob":
    """The work on a unit, with all that can be found out before Ray starts, and its record. Raises UserError."""
    from dataset_builder.scores.clip import resolve_clip
    from dataset_builder.scores.job import ScoreJob
    from dataset_builder.sql.score_files import record_name, score_folder
    from foundry.storage.folder import Folder

    scored = Folder(config.source)
    is_run = scored.exists("run.json")
    limits, of = _what(scored, is_run=is_run)
    clip = resolve_clip(config.clip) if config.clip != NO_CLIP else None
    settings = {
        "of": of,
        "scoring_version": SCORING_VERSION,
        "clip": {"fingerprint": clip.fingerprint, "preprocess": clip.preprocess} if clip else None,
        "aesthetic": _aesthetic_fingerprint(config.aesthetic, clip) if config.aesthetic and clip else None,
        "limits": asdict(limits),
    }
    score_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    record = {
        "score_id": score_id,
        "clip": config.clip,
        "settings": settings,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    scored.create(record_name(score_id), json.dumps(record, indent=1).encode())
    return ScoreJob(
        scored=config.source,
        out=score_folder(scored, score_id).url,
        score_id=score_id,
        is_run=is_run,
        clip=clip,
        aesthetic=config.aesthetic,
        batch_size=config.batch_size,
        limits=limits,
    )


def _in_dtype(config: ScoreConfig, job: "ScoreJob") -> "ScoreJob":
    """The work in the number format that the replicas' hardware is fast in; this attaches to Ray to find it out."""
    from foundry.units.ray_session import dtype_of_replicas, start_ray

    start_ray(config.ray)
    return replace(job, dtype=dtype_of_replicas(config.ray))


def plan_scores(scored: "Folder", out: "Folder", *, is_run: bool) -> "list[Unit]":
    """All units, scored or not. Raises UserError where there is nothing to score."""
    from dataset_builder.scores.plan import index_samples, run_units_to_score
    from dataset_builder.sql.dataset_files import read_dataset

    units = run_units_to_score(scored) if is_run else index_samples(scored, read_dataset(scored.url).paths("samples"), out)
    if not units:
        raise UserError(f"{scored.url} holds no captioned image yet: caption first")
    return units


def _what(scored: "Folder", *, is_run: bool) -> "tuple[DecodeLimits, str]":
    """The limits of decoding and the identity of what is scored."""
    from foundry.images.decoding import DecodeLimits

    if is_run:
        record = json.loads(scored.read("run.json"))
        return DecodeLimits(**record["settings"].get("limits", {})), record["run_id"]
    if not scored.exists("dataset.json"):
        raise UserError(f"{scored.url} is neither a captioning run nor a data set: give what captioner.run or build wrote")
    files = json.loads(scored.read("dataset.json"))["files"]
    return DecodeLimits(), hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def _aesthetic_fingerprint(path: str, clip: "ClipSource") -> str:
    """Also looks whether it can be loaded and fits the CLIP, here and not on the workers."""
    from pathlib import Path

    from dataset_builder.scores.aesthetic import AestheticPredictor
    from foundry.storage.model_files import files_fingerprint

    width = AestheticPredictor(path).width
    if width != clip.width:
        raise UserError(
            f"{path} reads embeddings of width {width}, {clip.name} gives {clip.width}: LAION's predictor needs {DEFAULT_CLIP}"
        )
    return files_fingerprint([Path(path)])


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
