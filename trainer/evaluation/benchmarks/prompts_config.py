"""The settings of the benchmark prompts: FID and CLIP score over a list of prompts. Imports nothing heavy."""

from dataclasses import dataclass, field

from trainer.evaluation.benchmarks.fid_config import FidConfig


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Which prompts, and what their images are held against."""

    file: str | None = None
    """Prompts: .txt with one a line, or a .csv, .jsonl or .parquet with a column of them; default: a few of our own."""
    column: str = "prompt"
    """The column of the prompts."""
    category_column: str | None = None
    """The column that says under which category a prompt's score is summed up; default: one category."""
    limit: int | None = None
    """The first so many prompts; default: all."""
    clip: str | None = "ViT-L-14-quickgelu:openai"
    """CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG; null: no CLIP score."""
    fid: FidConfig = field(default_factory=FidConfig)
    """What the FID is taken from."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError("prompts.limit must be 1 or more")
