"""Recipes of data sets: sliders, the funnel of a dry run, YAML."""
