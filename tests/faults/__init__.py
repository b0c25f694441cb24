"""Fault tests: hostile files, texts, SQL and requests; what is tried, and how often, is counted for docs/reliability.md."""
