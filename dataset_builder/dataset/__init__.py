"""Data sets made from runs: recipe, selection, samples, files."""
