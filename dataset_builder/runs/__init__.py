"""Runs: the plan of a captioning run, and the import of captions that exist."""
