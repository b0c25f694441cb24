"""Tests of dataset_builder/reviews."""
