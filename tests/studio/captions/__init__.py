"""Tests of studio/captions."""
