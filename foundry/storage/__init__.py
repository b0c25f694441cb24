"""What is on disk or object storage: folders, locations, schemas, the files of models."""
