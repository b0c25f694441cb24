"""Figures: `python -m benchmarks.NAME` prints a table and one line of JSON."""
