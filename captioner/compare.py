"""Command that compares captioners on the same images, image by image: a table, and a page with captions side by side.

python -m captioner.compare runs/llava runs/qwen --out compare.html                     figures, and captions side by side
python -m captioner.compare runs/ladder --prompts dense short                           the prompts of one run
python -m captioner.compare runs/llava runs/qwen --out compare.html --checkpoint DIT    TaBR: drawn again from captions
"""

from dataclasses import dataclass, field

from captioner.comparison.tabr import TabrSettings
from foundry.command_line import run_command


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """All settings of `python -m captioner.compare`. Raises ValueError for settings out of range."""

    runs: tuple[str, ...]
    """Captioning runs over the same images, finished or not; local folders or fsspec URLs."""
    prompts: tuple[str, ...] = ()
    """Names of the prompts to compare; default: all prompts of all runs."""
    out: str | None = None
    """Path of the HTML page to write; TaBR's images go into a folder next to it. Default: no page."""
    pictures: int = 24
    """Number of images on the page: half of them those on which the captions disagree most, half random."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    clip: str | None = None
    """CLIP that scores the sentences, named as for dataset_builder.score; default: use the scores of the runs."""
    sample_size: int = 1000
    """Number of images for which CLIP scores and counts are computed if those of the runs cannot be compared."""
    checkpoint: str | None = None
    """Checkpoint that draws images from the captions, for TaBR: a folder, or `mini`; default: no TaBR."""
    tabr: TabrSettings = field(default_factory=TabrSettings)
    """Settings of TaBR: how many images are drawn from captions, and how they are compared with the originals."""

    def __post_init__(self) -> None:
        problems = [f"{name} must be at least 1" for name in ("pictures", "sample_size") if getattr(self, name) < 1]
        if not self.runs:
            problems.append("give two runs, or one with several prompts")
        if self.checkpoint and not self.out:
            problems.append("--checkpoint needs --out: the images that are drawn are kept next to the page")
        if problems:
            raise ValueError("; ".join(problems))


def main(config: CompareConfig) -> int:
    """Prints the comparison, writes the page and returns 0."""
    from captioner.comparison.comparing import compare_runs
    from captioner.comparison.table import comparison_json, comparison_text

    found = compare_runs(
        config.runs,
        prompts=config.prompts,
        sample_size=config.sample_size,
        clip=config.clip,
        checkpoint=config.checkpoint,
        tabr=config.tabr,
        out=config.out,
        pictures=config.pictures,
    )
    print(comparison_json(found) if config.json else comparison_text(found))
    if config.out and not config.json:
        print(f"{config.out}: open it in a browser")
    return 0


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            CompareConfig,
            main,
            prog="python -m captioner.compare",
            example="python -m captioner.compare runs/llava runs/qwen --out compare.html",
            positional=("runs",),
        )
    )
