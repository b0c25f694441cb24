"""Latents and caption features: planned, encoded on Ray, stored, read back."""
