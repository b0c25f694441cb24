"""Checkpoint formats: ours, those of diffusers and of the authors."""
