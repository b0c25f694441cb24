"""The settings of the benchmark geneval. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GenEvalConfig:
    """Where prompts and judges come from."""

    metadata: str | None = None
    """GenEval's evaluation_metadata.jsonl, from your copy of it; default: a few prompts of our own."""
    clip: str = "ViT-L-14-quickgelu:openai"
    """CLIP that names colours: a folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG."""
    detector: str = "google/owlv2-base-patch16-ensemble"
    """Zero-shot detector of transformers: a folder or a hub id."""
