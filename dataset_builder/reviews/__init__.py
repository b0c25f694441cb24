"""Edits and flags of captions by people, as files of a run."""
