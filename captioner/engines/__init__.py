"""Engines: where captions come from, and the models that they load."""
