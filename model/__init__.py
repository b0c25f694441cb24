"""Networks: diffusion transformer, frozen encoders, sampling, checkpoint formats, generation."""
