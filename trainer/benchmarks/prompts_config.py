"""The settings of the benchmark prompts: FID and CLIP score over a list of prompts. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Which prompts, and what their images are held against."""

    file: str | None = None
    """Prompts: .txt, .jsonl or .csv."""
