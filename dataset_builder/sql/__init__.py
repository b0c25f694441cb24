"""SQL over runs and data sets; `database.py` alone imports duckdb."""
