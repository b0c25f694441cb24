"""Tests of studio/recipes."""
