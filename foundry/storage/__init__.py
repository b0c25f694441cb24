"""Storage on disk or object stores: folders, locations, schemas, the files of models."""
