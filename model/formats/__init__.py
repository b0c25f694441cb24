"""Checkpoints in the formats of others and in our own."""
