"""Tests of studio/judging."""
