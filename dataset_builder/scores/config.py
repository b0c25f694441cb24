"""Settings of scoring."""

from dataclasses import dataclass, field

from dataset_builder.scores.clip import DEFAULT_CLIP, NO_CLIP
from foundry.units.cluster import RaySettings
from foundry.units.rejection import max_rejected_problems


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
    """Number of images or sentences per batch of the model; affects the speed, and scores only by rounding."""
    max_rejected: float | None = None
    """Share of the images (0 to 1) that may be rejected before scoring stops; default: 0.01, but at least 100 images."""
    ray: RaySettings = field(default_factory=RaySettings)
    """Ray settings: where the work runs."""

    def __post_init__(self) -> None:
        problems = max_rejected_problems(self.max_rejected)
        if self.batch_size < 1:
            problems.append(f"batch_size must be at least 1, found {self.batch_size}")
        if self.aesthetic and self.clip == NO_CLIP:
            problems.append("the aesthetic predictor reads CLIP embeddings: name a CLIP, or leave it out")
        if problems:
            raise ValueError("; ".join(problems))
