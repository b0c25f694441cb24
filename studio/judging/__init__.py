"""Blind comparison of two checkpoints: pairs, verdicts on disk, their tally."""
