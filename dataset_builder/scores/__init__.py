"""Scores of images and captions: CLIP, aesthetics, sharpness."""
