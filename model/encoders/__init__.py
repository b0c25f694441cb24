"""Frozen encoders: text to T5 tokens, images to latents; how their files are found."""
