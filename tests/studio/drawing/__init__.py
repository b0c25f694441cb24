"""Tests of studio/drawing."""
