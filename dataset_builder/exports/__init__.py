"""Databases that DuckDB's own program opens, and the data dictionary."""
