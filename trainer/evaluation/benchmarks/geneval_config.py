"""The settings of the benchmark geneval. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GenEvalConfig:
    """Where prompts and judges come from."""

    folder: str | None = None
    """Your copy of GenEval's repository, or of its prompts/; default: a few prompts of our own."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """OWLv2 or OWL-ViT: a folder or a hub id."""
    threshold: float = 0.2
    """Confidences below are no finds."""
    counting_threshold: float = 0.3
    """Likewise, where a prompt says how many."""
    max_overlap: float = 0.5
    """Boxes of one class that overlap a surer one by more (intersection over union) are the same object."""
    clip: str = "ViT-L-14-quickgelu:openai"
    """CLIP that names colours: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""

    def __post_init__(self) -> None:
        if not all(0 <= value < 1 for value in (self.threshold, self.counting_threshold)) or not 0 <= self.max_overlap <= 1:
            raise ValueError("geneval: threshold and counting_threshold must be from 0 to below 1, max_overlap from 0 to 1")
