"""Tests of studio/training."""
