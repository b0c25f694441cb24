"""Networks: diffusion transformer, frozen encoders, sampling, checkpoint formats, generation."""

from typing import TYPE_CHECKING

__all__ = [
    "GenerationRequest",
    "Pipeline",
    "RuntimeConfig",
    "SamplingConfig",
    "VAEConfig",
    "draw",
    "load_checkpoint",
    "load_vae",
    "make_grid",
    "open_pipeline",
    "to_pixels",
]

if TYPE_CHECKING:
    from model.api.drawing import draw
    from model.encoders.vae import VAEConfig, load_vae, to_pixels
    from model.formats.checkpoint import load_checkpoint
    from model.generation.image_files import make_grid
    from model.generation.pipeline import Pipeline, open_pipeline
    from model.generation.pipeline_parts import RuntimeConfig
    from model.generation.request import GenerationRequest
    from model.sampling import SamplingConfig
else:
    from foundry.api.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "model.api.drawing": ["draw"],
            "model.encoders.vae": ["VAEConfig", "load_vae", "to_pixels"],
            "model.formats.checkpoint": ["load_checkpoint"],
            "model.generation.image_files": ["make_grid"],
            "model.generation.pipeline": ["Pipeline", "open_pipeline"],
            "model.generation.pipeline_parts": ["RuntimeConfig"],
            "model.generation.request": ["GenerationRequest"],
            "model.sampling": ["SamplingConfig"],
        },
    )
