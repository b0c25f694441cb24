"""Python API of captions and data sets: runs and data sets to ask, scores, builds, density."""
