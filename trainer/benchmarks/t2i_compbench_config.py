"""The settings of the benchmark t2i_compbench. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class T2ICompBenchConfig:
    """Where prompts and judges come from."""

    folder: str | None = None
    """Your copy of T2I-CompBench, or its examples/dataset; default: a few prompts of our own."""
    blip: str = "Salesforce/blip-vqa-capfilt-large"
    """BLIP for visual question answering: a folder or a hub id."""
    clip: str = "ViT-B-32-quickgelu:openai"
    """CLIP: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """Zero-shot detector of transformers: a folder or a hub id."""
