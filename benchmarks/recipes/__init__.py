"""Recipes of training, compared in the small world: settings, trainings, compute, losses and where one reaches the other."""
