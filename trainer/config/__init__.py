"""Settings of a training: frozen dataclasses, filled by a stage's function, a file and flags. Import no torch."""
