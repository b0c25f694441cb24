"""The leaf for data: schemas, image sources, units and commits, concept density, DuckDB."""
