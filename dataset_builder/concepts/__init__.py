"""Nouns of captions, their counts and the concept density."""
