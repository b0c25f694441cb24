"""Benchmarks of a checkpoint: images, judges, scores, a page."""
