"""Trainings as they run: curves, sample grids, stopping and resuming."""
