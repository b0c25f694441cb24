"""Settings of a subject's data set: `python -m trainer.dreambooth`. Imports nothing heavy."""

from dataclasses import dataclass, field

from model.generation.pipeline_parts import RuntimeConfig
from model.sampling import SamplingConfig

WORD = "{word}"


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """All settings of `python -m trainer.dreambooth`."""

    images: str
    """Folder of 5 to 50 images of the subject or style; a .txt of an image's name is its caption."""
    trigger_word: str
    """Word that will ask for the subject, such as `sks dog`; captions contain it."""
    checkpoint: str
    """Checkpoint to adapt; it also draws the images that preserve what it knows."""
    out: str
    """Folder for images, captions and weights. The same command resumes it."""
    template: str = "a photo of {word}"
    """Caption of images without a .txt; {word} is the trigger word."""
    class_prompt: str | None = None
    """Prompt for the class of the subject, such as `a photo of a dog`, which the network should not forget."""
    prior_prompts: str | None = None
    """File of prompts that the network should keep drawing as it does, instead of one class prompt."""
    num_prior_images: int = 200
    """Number of images that the checkpoint draws of these prompts; 0: none, and the network may forget what it knew."""
    prior_weight: float = 1.0
    """Weight of all these images together, relative to 1 for the subject's images together."""
    seed: int = 0
    """Random seed of the first image of each prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampler, steps and guidance of these images."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Device, number format and batch size of the pipeline."""
    text_encoder: str | None = None
    """Folder or hub id of the text encoder, if not as pipeline.json records it."""
    vae: str | None = None
    """Folder or hub id of the VAE, if not as pipeline.json records it."""

    def __post_init__(self) -> None:
        named = sum(prompts is not None for prompts in (self.class_prompt, self.prior_prompts))
        problems = [
            message
            for message, holds in [
                ("trigger_word must not be empty", bool(self.trigger_word.strip())),
                (f"template must have {WORD} once, found {self.template!r}", self.template.count(WORD) == 1),
                ("num_prior_images must be 0 or more", self.num_prior_images >= 0),
                ("prior_weight must be above 0", self.prior_weight > 0),
                ("seed must be 0 or more", self.seed >= 0),
                (
                    "give either class_prompt or prior_prompts, so that the network keeps what it knows, or num_prior_images 0",
                    named == (self.num_prior_images > 0),
                ),
            ]
            if not holds
        ]
        if problems:
            raise ValueError("; ".join(problems))
